"""A plug-in of tox: `tox -e py313` needs no Python 3.13 on the host, so its name chooses no interpreter."""

from __future__ import annotations

from tox.plugin import impl
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class Host(VirtualEnvRunner):
    """An environment of the Python that runs tox, whatever the environment's name says."""

    @staticmethod
    def id() -> str:
        return "host"

    @classmethod
    def extract_base_python(cls, env_name: str) -> None:
        return None


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(Host)
