"""The embedded log as several processes write it at once."""

import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from pipeline.transports.embedded.log_files import (
    LogReader,
    LogWriter,
)


def stored(folder: Path) -> list[bytes]:
    """The bodies of all records."""
    reader = LogReader(folder, 0)
    bodies: list[bytes] = []
    while chunk := reader.peek():
        bodies += chunk.bodies(len(bodies))
        reader.advance(chunk)
    reader.close()
    return bodies


def _append_many(folder: str, mark: str, together: Barrier) -> None:
    writer = LogWriter(Path(folder), clock=time.time, max_bytes=2**30, max_age_s=10**9, segment_bytes=1000)
    together.wait()
    for n in range(100):
        writer.append([b"%s-%d" % (mark.encode(), n)] * 3)
    writer.close()


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    writers = [context.Process(target=_append_many, args=(str(tmp_path), mark, together)) for mark in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    bodies = stored(tmp_path)
    assert len(bodies) == 900
    for mark in (b"a", b"b", b"c"):
        own = [body for body in bodies if body.startswith(mark)]
        assert own == [b"%s-%d" % (mark, n) for n in range(100) for _ in range(3)]
