"""Logs of ids in files that the system may page out, so that a long dedupe window need not fit in memory.

The files are scratch: they have no names, and they are gone when the process ends. The database holds the ids
that count.
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

    The room of a log is reserved on the disk when the log is made. So a full disk raises OSError then, and no
    page of the log fails later. Raises OSError at once if the folder cannot be written.
    """

    def new_log(entries: int) -> npt.NDArray[Any]:
        size = entries * 32
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
        return np.frombuffer(mapped, np.uint32).reshape(entries, 8)

    new_log(1)
    return new_log
