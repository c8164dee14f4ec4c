"""A lock on a folder itself, for what one process may do in the folder at a time.

A lock file can be deleted. Then a second process makes another one, locks that, and both believe that they
are alone. The lock here lies on the folder's own inode: whoever deletes files in the folder leaves it as it
is. It ends with the process that has it, and with all processes that inherited its descriptor.

A folder can be moved away and made again, and then its path leads to another one. So who has the lock for
long asks `is_there` before relying on the path.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def opened(folder: Path) -> int:
    """A descriptor of the folder, which is not locked yet. Raises OSError."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def taken(folder: Path) -> int:
    """Lock a folder for this descriptor alone; closing it ends the lock.

    Raises:
        BlockingIOError: somebody has the lock.
        OSError: there is no such folder, or its file system has no locks.
    """
    fd = opened(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_there(path: Path, fd: int) -> bool:
    """Does the path still lead to the folder, or file, of the descriptor?"""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
