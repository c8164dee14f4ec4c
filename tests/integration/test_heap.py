"""Freed memory stays with the process. A process of its own is asked, since it holds for all that follows."""

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
