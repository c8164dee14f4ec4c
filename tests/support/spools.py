"""Spools under test: opened, filled, drained, and ended as a killed process ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pipeline.collector import spool_files
from pipeline.collector.spool import Spool, Taken

ORG = "5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e"
MANY = 1000
FRAME_BYTES = spool_files.RECORD_HEAD_BYTES + len(ORG)
HEADER_BYTES, SEAL_BYTES = spool_files.HEADER_BYTES, spool_files.SEAL_BYTES


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[Spool]:
    spool = await Spool.open(folder, **{"bytes_max": 2**30, **settings})
    try:
        yield spool
    finally:
        await spool.close()


def offered(*bodies: bytes) -> list[tuple[str, bytes]]:
    return [(ORG, body) for body in bodies]


def numbered(first: int, last: int, *, body_bytes: int = 20) -> list[tuple[str, bytes]]:
    return offered(*(b"%d" % n + b" " * (body_bytes - len(b"%d" % n)) for n in range(first, last)))


async def take(spool: Spool, records_max: int = MANY, bytes_max: int = 2**30) -> Taken:
    async with asyncio.timeout(20):
        return await spool.oldest(bytes_max=bytes_max, records_max=records_max)


async def drained(spool: Spool, records_max: int = MANY) -> list[bytes]:
    """All bodies, each batch published."""
    bodies: list[bytes] = []
    while spool.records:
        taking = asyncio.create_task(take(spool, records_max))
        while spool.records and not taking.done():
            await asyncio.wait([taking], timeout=0.01)
        if spool.records == 0:
            taking.cancel()  # all that was left is too damaged to be read
            break
        taken = await taking
        assert 0 < len(taken.bodies) == len(taken.keys) <= records_max
        bodies += taken.bodies
        spool.published(taken)
    return bodies


async def abandoned(spool: Spool) -> None:
    """End a spool as kill -9 does: nothing is sealed, and the lock is free."""
    spool._write_thread.shutdown()
    spool._read_thread.shutdown()
    os.close(spool._lock_fd)


async def killed(folder: Path, *appends: list[tuple[str, bytes]], **settings: Any) -> None:
    """A process that appends and is killed."""
    spool = await Spool.open(folder, **{"bytes_max": 2**30, **settings})
    for records in appends:
        await spool.append(records)
    await abandoned(spool)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


async def settled(spool: Spool) -> None:
    """Wait until files of published segments are gone."""
    while spool._removing is not None:
        await asyncio.wait([spool._removing])


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.spool*"))
