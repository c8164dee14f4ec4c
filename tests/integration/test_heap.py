"""Freed memory stays with the process, or goes back with `trim`.

A process of its own is asked, since the settings hold for all that follows.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_ASK = """
import resource
import numpy as np
from pipeline.common.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def make():
    return [np.ones(1 << 20, np.uint8) for _ in range(64)]  # 64 MiB

kept = keep_freed_memory()
make()
before = faults()
make()
print(kept, faults() - before)
"""


def _asked(**environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned, and how many pages came anew with the second 64 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by its own rules"
)
def test_arrays_that_are_made_again_need_no_new_pages() -> None:
    kept, faults = _asked()
    assert kept == "True"
    assert faults < (64 << 20) / 4096 / 10


def test_what_the_environment_says_of_memory_stands() -> None:
    kept, _ = _asked(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"


_TRIM = """
from pathlib import Path
from pipeline.common.heap import give_freed_memory_back, trim

def mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

give_freed_memory_back()
pieces = [bytes(65_000) for _ in range(1000)]
rest = bytes(65_000)  # above the pieces, so that the end of the heap is in use
del pieces
before = mib()
trim()
print(before - mib())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by its own rules"
)
def test_the_holes_that_the_pieces_of_a_body_leave_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _TRIM], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 30, "of 62 MiB"
