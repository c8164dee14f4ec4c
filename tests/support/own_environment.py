"""Packages that tests use apart from all else: environments of their own in the cache, each made once.

Our own environment has other versions of what such packages depend on, and needs none of them. An environment
is made by the pip of this one, as pip is configured here, for each lock and Python.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from deploy.local import Unavailable, rootfs

INSTALL_S = 600


def kept(name: str, locks: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The folder in the cache that ``make`` fills, made first if these locks and this Python have none.

    A folder is made under another name first, so one that was interrupted is never used.

    Raises:
        Unavailable: ``make`` has found that it cannot be made.
    """
    recipe = "\n".join((sys.version, sys.base_prefix, *(lock.read_text() for lock in locks)))
    final = rootfs.cache_folder() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with rootfs.exclusive(rootfs.cache_folder() / f"{name}.lock"):
        if not final.is_dir():
            made = final.with_name(f"{final.name}.tmp")
            shutil.rmtree(made, ignore_errors=True)
            make(made)
            made.rename(final)
    return final


def install(folder: Path, lock: Path) -> None:
    """Make a virtual environment in a folder, with the packages of a lock. Raises `Unavailable`."""
    if find_spec("pip") is None:
        raise Unavailable("this environment has no pip, which would install the packages")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    options = ("install", "-q", "--require-hashes", "--only-binary", ":all:", "-r", str(lock))
    run(sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), *options)


def run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command of an installation; what it printed. Raises `Unavailable` if it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} was not ready in {INSTALL_S} s") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout
