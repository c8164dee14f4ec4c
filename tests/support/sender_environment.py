"""The packages that senders use (LiteLLM, the SDKs of OpenTelemetry and CloudEvents), apart from all else.

Our own environment has other versions of what they depend on, and needs none of them. So they have a virtual
environment of their own in the cache. It is made once for each lock and Python, in about a minute, by the pip
of this environment, as pip is configured here.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from deploy.local import rootfs

PROGRAMS = Path(__file__).resolve().parents[1] / "data/senders"
LOCK = PROGRAMS / "requirements.lock"
INSTALL_S = 600


class Unavailable(Exception):
    """The environment cannot be made. The text says why."""


def python() -> Path:
    """The path of the senders' own interpreter; its environment is made first if it is missing.

    Raises:
        Unavailable: there is no pip, or the packages cannot be had.
    """
    recipe = f"{sys.version}\n{sys.base_prefix}\n{LOCK.read_text()}"
    final = rootfs.cache_folder() / f"senders-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with rootfs.exclusive(rootfs.cache_folder() / "senders.lock"):
        if not final.is_dir():
            _make(final)
    return final / "bin/python"


def _make(final: Path) -> None:
    """Make the environment under another name first: one that was interrupted is never used."""
    if find_spec("pip") is None:
        raise Unavailable("this environment has no pip, which would install the senders' packages")
    made = final.with_name(f"{final.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    _run(sys.executable, "-m", "venv", "--without-pip", str(made))
    install = ("install", "-q", "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK))
    _run(sys.executable, "-m", "pip", "--python", str(made / "bin/python"), *install)
    made.rename(final)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the senders' packages were not installed in {INSTALL_S} s") from None
    if done.returncode:
        raise Unavailable(f"the senders' packages cannot be installed: {done.stderr.strip()[-600:]}")
