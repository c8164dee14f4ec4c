"""Files and folders for this user alone, whatever the umask: they hold what tenants did and spent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
_SPECIAL: Final = 0o7000


def opener(path: str, flags: int) -> int:
    """For ``open(…, opener=…)``: a new file is this user's alone."""
    return os.open(path, flags, FILE_MODE)


def make_folder(path: Path, *, below: Path) -> None:
    """Make ``path`` and what is missing above it; safe to repeat.

    Those between ``below``, which may be somebody else's choice, and ``path`` are tightened if they are there
    already and ours alone: of our user and our group, without a sticky or set-group bit. Raises OSError.
    """
    if path == below or below not in path.parents:
        _make(path)
        return
    make_folder(path.parent, below=below)
    _make(path)
    there = path.lstat()
    ours = (there.st_uid, there.st_gid) == (os.geteuid(), os.getegid())
    if ours and there.st_mode & 0o077 and not there.st_mode & _SPECIAL and not path.is_symlink():
        path.chmod(FOLDER_MODE)


def _make(path: Path) -> None:
    if path.is_dir():
        return
    _make(path.parent)
    path.mkdir(FOLDER_MODE, exist_ok=True)
