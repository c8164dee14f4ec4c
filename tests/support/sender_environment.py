"""The packages that senders use (LiteLLM, the SDKs of OpenTelemetry and CloudEvents), apart from all else."""

from __future__ import annotations

from pathlib import Path

from tests.support import own_environment

PROGRAMS = Path(__file__).resolve().parents[1] / "data/senders"
LOCK = PROGRAMS / "requirements.lock"


def python() -> Path:
    """The senders' own interpreter; its environment is made first if it is missing, in about a minute.

    Raises:
        deploy.local.Unavailable: there is no pip, or the packages cannot be had.
    """
    folder = own_environment.kept("senders", (LOCK,), lambda made: own_environment.install(made, LOCK))
    return folder / "bin/python"
