"""Which work on a chunk leaves the event loop, so that other partitions and readiness go on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from pipeline.config import FlushConfig
from pipeline.core.rules import Rules
from pipeline.transports import Chunk, Subscription
from pipeline.worker.membership import Delivery
from pipeline.worker.partition import PartitionWorker
from tests.support import books, ledgers
from tests.support.memory_sink import MemorySink
from tests.support.memory_transport import MemoryBroker, MemoryTransport


class Granted:
    """A subscription that only takes grants."""

    def grant(self) -> None: ...


async def _done_apart(bodies: list[bytes], **bounds: int) -> list[str]:
    """The names of the steps that a worker does apart while it books a chunk of these bodies."""
    apart: list[str] = []

    async def note(work: Callable[..., Any], **arguments: Any) -> Any:
        apart.append(getattr(work, "func", work).__name__)
        return await asyncio.to_thread(work, **arguments)

    worker = PartitionWorker(
        index=0,
        stream=books.STREAM,
        transport=MemoryTransport(MemoryBroker(books.STREAM)),
        sink=MemorySink(),
        rules=Rules(),
        flush=FlushConfig(**bounds),
        apart=note,
    )
    await worker.activated()
    [chunk] = books.chunks_of(bodies, size=len(bodies), broker_us=ledgers.NOW_US)
    await worker.book(Delivery(Chunk(partition=0, **chunk), cast(Subscription, Granted()), worker._life.term))
    booked = apart.copy()
    await worker.flush()
    await worker.close()
    assert apart[len(booked) :] == ["drain_or_missing"]
    return booked


async def test_a_fold_of_bad_events_or_of_a_large_chunk_leaves_the_event_loop() -> None:
    good = [ledgers.event(number) for number in range(20_000)]
    assert await _done_apart(good[:8192]) == []
    assert await _done_apart(good) == ["fold"]
    assert await _done_apart([b'{"x": {}}'] * 8192) == ["fold"]
    assert await _done_apart([ledgers.event(n, ago_us=99 * ledgers.HOUR_US) for n in range(8192)]) == ["fold"]


async def test_rows_are_gathered_apart_once_they_may_be_too_many() -> None:
    many = [ledgers.event(number, orgId=f"00000000-0000-0000-0000-{number:012x}") for number in range(8192)]
    assert await _done_apart(many, dirty_rows_max=100) == ["gather"]
