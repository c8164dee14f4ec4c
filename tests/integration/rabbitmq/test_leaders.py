"""Answers of a leader that only a cluster gives: nothing committed yet, and chunks that are not visible."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.transports import OffsetGone, TransportError
from pipeline.transports.rabbitmq.connection import DeliveredChunk
from pipeline.transports.rabbitmq.subscription import RabbitMQSubscription


class Leader:
    """A leader's answers as a test wants them: a single node never shows these."""

    on_chunk: Callable[[DeliveredChunk], None]
    """Set by the subscription."""

    def __init__(
        self, *, first: int, committed: int, last: int, last_visible: tuple[int, int] | None
    ) -> None:
        self.answer = {"first_chunk_id": first, "committed_chunk_id": committed, "last_chunk_id": last}
        self.last_visible = last_visible
        """First and next offset of the chunk that a reader of the last chunk gets."""
        self.dead: TransportError | None = None

    async def stats(self, stream: str) -> dict[str, int]:
        return self.answer

    async def attach(self, stream: str, *, subscription_id: int, offset: int | None, credit: int) -> None:
        if offset is None and self.last_visible is not None:
            first_offset, next_offset = self.last_visible
            self.on_chunk(
                DeliveredChunk(
                    subscription_id=subscription_id,
                    first_offset=first_offset,
                    entries=0,
                    records=next_offset - first_offset,
                    timestamp_ms=0,
                    crc=0,
                    frame=b"",
                    start=0,
                    end=0,
                )
            )

    async def detach(self, subscription_id: int) -> None: ...

    def raise_if_dead(self) -> None:
        if self.dead is not None:
            raise self.dead

    def fail(self, error: TransportError) -> None:
        self.dead = error


async def subscription_to(leader: Leader, *, offset: int) -> RabbitMQSubscription:
    subscription = RabbitMQSubscription(
        leader,  # type: ignore[arg-type]
        stream="s",
        partition=0,
        offset=offset,
        credit=4,
    )
    await subscription.start()
    return subscription


async def test_a_new_leader_with_nothing_committed_yet_has_lost_no_offset() -> None:
    leader = Leader(first=0, committed=-1, last=90, last_visible=None)
    subscription = await subscription_to(leader, offset=100)
    subscription._connection.raise_if_dead()
    assert not await subscription.caught_up(100)
    leader.answer["committed_chunk_id"] = 90
    assert not await subscription.caught_up(100)
    leader.last_visible = (90, 100)
    assert await subscription.caught_up(100)


async def test_a_last_chunk_that_is_not_committed_leaves_the_lag_unknown() -> None:
    leader = Leader(first=0, committed=90, last=100, last_visible=None)
    subscription = await subscription_to(leader, offset=95)
    assert [await subscription.caught_up(95) for _ in range(3)] == [False, False, False]
    leader.last_visible = (90, 100)
    assert await subscription.offset_lag(95) == 5


async def test_a_probe_whose_caller_is_cancelled_does_not_stay_subscribed() -> None:
    leader = Leader(first=0, committed=90, last=90, last_visible=(90, 100))
    subscription = await subscription_to(leader, offset=95)
    attached: set[int] = set()
    attach, answer = leader.attach, asyncio.Event()

    async def attach_once(stream: str, *, subscription_id: int, **more: Any) -> None:
        assert subscription_id not in attached
        attached.add(subscription_id)
        await attach(stream, subscription_id=subscription_id, **more)

    async def detach_late(subscription_id: int) -> None:
        await answer.wait()
        attached.discard(subscription_id)

    leader.attach, leader.detach = attach_once, detach_late  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await subscription._end_of_last_chunk(91)
    answer.set()
    assert await subscription._end_of_last_chunk(92) == 100
    assert attached == set()


async def test_a_reader_left_silent_by_retention_is_ended_when_seen_twice() -> None:
    leader = Leader(first=0, committed=200, last=200, last_visible=(200, 210))
    subscription = await subscription_to(leader, offset=100)
    leader.answer["first_chunk_id"] = 150
    assert await subscription.offset_lag(100) > 0
    leader.answer["first_chunk_id"] = 100  # not below us after all: the count begins anew
    assert await subscription.offset_lag(100) > 0
    leader.answer["first_chunk_id"] = 150
    assert await subscription.offset_lag(100) > 0
    with pytest.raises(OffsetGone):
        await subscription.offset_lag(100)
    with pytest.raises(OffsetGone):
        await subscription.receive()
