"""Logs of ids in files that the system may page out, so that a long dedupe window need not fit in memory.

Scratch only: a file has no name from the start and is gone with the process. What counts is in the database.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.dedupe import NewLog


def logs_in(folder: Path) -> NewLog:
    """Make logs for `pipeline.core.dedupe.SeenIds` in ``folder``, which should be on a disk of this host.

    Their room is reserved on the disk when they are made: a full disk is an OSError then, and never a fault
    of a page later. Raises OSError at once if the folder cannot be written.
    """

    def new_log(entries: int) -> npt.NDArray[Any]:
        size = entries * 32
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
        return np.frombuffer(mapped, np.uint32).reshape(entries, 8)

    new_log(1)
    return new_log
