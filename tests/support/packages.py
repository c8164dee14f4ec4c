"""Programs that tests need, taken from PATH or installed from Debian's packages.

A program is installed only if this is Debian and we are root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from deploy.local import rootfs


class Unavailable(Exception):
    """A program is missing and cannot be installed. The text says why."""


def executable(package: str, names: Sequence[str]) -> str:
    """The path of a program with one of the names, installed first if missing. Raises `Unavailable`."""
    if found := _found(names):
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"none of {', '.join(names)} is on PATH, and only root on Debian can install one")
    with rootfs.exclusive(rootfs.cache_folder() / "build.lock"):
        for command in (("update", "-qq"), ("install", "-qq", "-y", "--no-install-recommends", package)):
            done = subprocess.run(
                ("apt-get", *command),
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise Unavailable(f"{package} cannot be installed: {done.stderr[-500:]}")
    found = _found(names)
    if not found:
        raise Unavailable(f"{package} was installed and is not on PATH")
    return found


def _found(names: Sequence[str]) -> str | None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)
