"""Programs that tests need, taken from PATH, or from Debian's packages.

`executable` installs a package, which only root on Debian can. `unpacked` fetches a package into the cache
and leaves the system alone. So no server starts that Debian would start with the installation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.local import Unavailable, rootfs


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


def unpacked(package: str, name: str) -> str:
    """The path of a program: from PATH, else out of a Debian package that is unpacked into the cache once.

    The program must need no more than the C library. Raises `Unavailable`.
    """
    if found := _found((name,)):
        return found
    folder = rootfs.cache_folder() / f"{package}-unpacked"
    program = folder / "usr/bin" / name
    if program.exists():
        return str(program)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(f"{name} is not on PATH, and only on Debian or Ubuntu it can be fetched")
    with rootfs.exclusive(rootfs.cache_folder() / "build.lock"):
        if not program.exists():  # another process may have fetched it just now
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{package}-") as temporary:
                _fetch(package, Path(temporary))
                (Path(temporary) / "unpacked").rename(folder)
    if not program.exists():
        raise Unavailable(f"the package {package} has no program {name}")
    return str(program)


def _fetch(package: str, folder: Path) -> None:
    """Unpack a package into ``folder``/unpacked. Raises `Unavailable`."""
    folder.chmod(0o755)
    download = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package)
    done = _run(download, folder)
    if done.returncode and os.geteuid() == 0:  # the lists may be older than the archive
        _run(("apt-get", "-qq", "update"), folder)
        done = _run(download, folder)
    if done.returncode:
        raise Unavailable(f"{package} cannot be fetched: {done.stderr[-500:]}")
    (archive,) = folder.glob("*.deb")
    done = _run(("dpkg-deb", "--extract", str(archive), str(folder / "unpacked")), folder)
    if done.returncode:
        raise Unavailable(f"{package} cannot be unpacked: {done.stderr[-500:]}")


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _found(names: Sequence[str]) -> str | None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)
