"""Files and folders that only this user can read, under any umask. They hold what tenants did and spent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
_SPECIAL: Final = 0o7000


def opener(path: str, flags: int) -> int:
    """Give this to ``open(…, opener=…)``: only this user can read the new file."""
    return os.open(path, flags, FILE_MODE)


def make_folder(path: Path, *, below: Path) -> None:
    """Make the folder ``path`` and the missing folders above it. A second call changes nothing.

    A folder between ``below`` and ``path`` that exists already is closed to other users, if it is ours alone:
    it has our user and our group, and no sticky or set-group bit. ``below`` itself stays as it is, because
    somebody else may have chosen its mode. Raises OSError.
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
