"""A process with a spool, to be killed: python -m tests.support.spool_child FOLDER FIRST [--drain].

It appends records with growing numbers from several tasks. For each append that was answered it writes
``a FIRST END``. With ``--drain`` it also takes records, and writes ``p NUMBER…`` before it says that they are
published, as if a broker had confirmed them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from pipeline.collector.spool import Spool, SpoolFull
from pipeline.common.operator import OperatorError

BYTES_MAX, SEGMENT_BYTES = 64 * 2**20, 100_000
_TASKS = 8


def record(number: int) -> tuple[str, bytes]:
    """The key and the body of a number: anybody can tell whether a body is torn."""
    size = random.Random(number).choice((0, 100, 400, 400, 400, 3000))
    return f"org {number % 7}", b"%d " % number + b"%d" % (number % 10) * size


def number_of(body: bytes) -> int:
    return int(body.split(b" ", 1)[0])


def _say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


class _Child:
    def __init__(self, spool: Spool, first: int) -> None:
        self._spool = spool
        self._next = first

    async def append(self) -> None:
        while True:
            first = self._next
            self._next += random.choice((1, 1, 1, 20, 200))
            end = self._next
            try:
                await self._spool.append([record(number) for number in range(first, end)])
            except SpoolFull:
                await asyncio.sleep(0.01)
            else:
                _say(f"a {first} {end}")

    async def drain(self) -> None:
        while True:
            taken = await self._spool.oldest(bytes_max=40_000, records_max=100)
            _say(f"p {' '.join(str(number_of(body)) for body in taken.bodies)}")
            self._spool.published(taken)
            await asyncio.sleep(0)


async def _main(folder: Path, first: int, drain: bool) -> None:
    spool = await Spool.open(folder, bytes_max=BYTES_MAX, segment_bytes=SEGMENT_BYTES)
    child = _Child(spool, first)
    _say("open")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_TASKS):
            tasks.create_task(child.append())
        if drain:
            tasks.create_task(child.drain())


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), "--drain" in sys.argv))
    except OperatorError as error:
        sys.exit(str(error))
