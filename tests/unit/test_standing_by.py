"""A worker that stands by, or leaves the consumer group: it is ready when all is well, and never crashes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from pipeline.config import FlushConfig
from pipeline.core.batch import Position
from pipeline.core.rules import Rules
from pipeline.sink import Claim, Contested
from pipeline.transports import Chunk, Owner, Subscription, Transport
from pipeline.worker.life import Life
from pipeline.worker.membership import Membership
from pipeline.worker.partition import PartitionWorker
from tests.support.memory_sink import MemoryDatabase, MemorySink
from tests.support.memory_transport import MemoryBroker, MemoryTransport


class Waits:
    """A `Backoff` that notes each wait, and wakes its task when the test says so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def wait(self) -> None:
        self.begun.set()
        await self.go_on.wait()

    def reset(self) -> None: ...


class Place:
    """A worker beside the broker and the database that it uses."""

    def __init__(self) -> None:
        self.broker = MemoryBroker("s")
        self.transport = MemoryTransport(self.broker)
        self.sink = MemorySink(MemoryDatabase())
        self.waits = Waits()
        self.worker = PartitionWorker(
            index=0,
            stream="s",
            transport=self.transport,
            sink=self.sink,
            rules=Rules(),
            flush=FlushConfig(),
            backoff=lambda: self.waits,
        )


async def test_a_worker_that_let_go_while_the_database_was_away_is_ready_once_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.worker.partition.HAND_OVER_S", 0.01)
    monkeypatch.setattr("pipeline.worker.partition.LET_GO_S", 0.01)
    place = Place()
    worker = place.worker
    await worker.activated()
    place.sink.down = True
    flushing = asyncio.create_task(worker.flush())
    await place.waits.begun.wait()
    await worker.deactivated()  # the broker gives the partition to another worker meanwhile
    place.waits.go_on.set()
    await flushing
    assert not worker.active
    await worker.flush()
    assert worker.database_error == "away", "the database is still away"
    place.sink.down = False
    await worker.flush()
    assert worker.database_error is None


async def test_a_worker_whose_recovery_was_cut_short_is_ready_once_the_database_is_back() -> None:
    """The broker's node dies while the worker waits for the database, and another worker is activated."""
    place = Place()
    place.sink.down = True
    activation = asyncio.create_task(place.worker.activated())
    await place.waits.begun.wait()
    activation.cancel()
    await asyncio.wait((activation,))
    assert place.worker.database_error == "away"
    place.sink.down = False
    await place.worker.flush()
    assert place.worker.database_error is None


async def test_a_worker_that_stops_asks_the_database_for_nothing_more() -> None:
    place = Place()
    place.worker.database_error = "away"
    place.worker.take_no_more()
    await place.worker.flush()
    assert place.worker.database_error == "away"


async def test_a_claim_that_another_worker_tries_now_is_not_said_to_be_contested_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def contested(self: MemorySink, *what: Any) -> tuple[Claim, Position]:
        raise Contested("group b commits there")

    monkeypatch.setattr(MemorySink, "claim", contested)
    place = Place()
    receiving = asyncio.ensure_future(place.worker.receive())
    await place.waits.begun.wait()
    assert place.worker.stream_error == "group b commits there"
    place.transport.down = True
    place.transport.cut()
    await asyncio.wait((receiving,), timeout=0.01)
    assert place.worker.stream_error == "the connection was cut"
    receiving.cancel()
    await asyncio.wait((receiving,))


class Leaving:
    """A subscription whose last chunk comes while it is being closed, as the socket still holds chunks."""

    def __init__(self) -> None:
        self.receives = asyncio.Event()
        self.granted = 0
        self._closing = asyncio.Event()

    async def receive(self) -> Chunk:
        self.receives.set()
        await self._closing.wait()
        return Chunk(partition=0, first_offset=7, next_offset=8, timestamp_us=1, bodies=[b"{"])

    def grant(self) -> None:
        self.granted += 1

    async def close(self) -> None:
        self._closing.set()
        await asyncio.sleep(0)


class LeavingTransport:
    def __init__(self, subscription: Leaving) -> None:
        self._subscription = subscription

    async def open(self) -> None: ...

    async def compete(self, *, partition: int, owner: Owner) -> Subscription:
        return cast(Subscription, self._subscription)


async def test_a_chunk_that_comes_while_the_worker_leaves_the_group_is_granted_to_its_own_subscription() -> (
    None
):
    place, leaving = Place(), Leaving()
    group = Membership(
        cast(Transport, LeavingTransport(leaving)),
        index=0,
        stream="s",
        owner=place.worker,
        life=Life(),
        steady_us=lambda: 0,
        backoff=lambda: place.waits,
    )
    receiving = asyncio.ensure_future(group.receive())
    await leaving.receives.wait()
    await group.leave()
    await place.worker.book(await receiving)  # a worker that owns nothing gives the credit back
    assert leaving.granted == 1
