"""Which memory a process holds: what the C library keeps of freed memory, and code that has had its use."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Final

KEPT_BYTES: Final = 128 << 20
"""At most this much freed memory at the end of the heap stays with the process."""
_ON_THE_HEAP_BYTES: Final = 32 << 20
"""Arrays up to this size come from the heap, the most that glibc takes. Larger ones are mapped alone."""

# Names of the parameters in glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_MAPPED_BYTES: Final = 1 << 20
TRIM_BYTES: Final = 1 << 20
"""A body of more bytes leaves enough holes for `trim`."""


def keep_freed_memory() -> bool:
    """Let this process use its freed memory again, instead of giving it back to the system at once.

    A worker makes the same arrays again with each fold and each flush, some MiB each. By default glibc gives
    them back when they are freed. The next array is then new memory, and the system must bring each page of
    4 KiB anew. Keeping up to `KEPT_BYTES` saves about a tenth of the CPU time of the core.

    Returns False if nothing was changed: the C library is another one, or the environment already says how
    much to keep (one of glibc's ``MALLOC_`` variables, or ``GLIBC_TUNABLES``).
    """
    return _set((_TRIM_THRESHOLD, KEPT_BYTES), (_MMAP_THRESHOLD, _ON_THE_HEAP_BYTES))


def give_freed_memory_back() -> bool:
    """Let this process give the memory of large texts back to the system as soon as they are freed.

    A collector reads bodies of very different sizes, in several threads. By default glibc keeps freed memory
    for each thread, and after a few large bodies it keeps even these. Here blocks from `_MAPPED_BYTES` on are
    mapped alone, and all threads share the rest. Returns False as `keep_freed_memory` does.
    """
    return _set((_MMAP_THRESHOLD, _MAPPED_BYTES), (_ARENA_MAX, 1))


def trim() -> None:
    """Give freed memory back that lies between blocks in use. It takes some milliseconds.

    glibc gives back by itself what is free at the end of the heap. A body of 10 MiB that arrives in pieces of
    64 KiB leaves 160 holes, which a larger block cannot use.
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


_MAPS: Final = Path("/proc/self/maps")
_DONTNEED: Final = 4
"""Linux's MADV_DONTNEED."""


def give_code_back(library: str) -> None:
    """Give the pages of code of a shared library back. Code that is called again comes anew from the file.

    ``library`` is the name of its file. Only pages that nobody can write are given back, so nothing is lost.
    Another system than Linux keeps them.
    """
    if not _MAPS.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    for line in _MAPS.read_text().splitlines():
        place, rights, *_ = line.split()
        if rights == "r-xp" and Path(line).name == library:
            first, end = (int(edge, 16) for edge in place.split("-"))
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _DONTNEED)


@cache
def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _set(*values: tuple[int, int]) -> bool:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    if not _is_glibc() or any(name in os.environ for name in names):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) for name, value in values)
