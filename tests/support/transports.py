"""What the contract tests of the transports share: publish and read, on any transport."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from pipeline.transports import Chunk, ReadFrom, Subscription, Transport

PATIENCE_S = 120
Make = Callable[..., Awaitable[Transport]]


def numbered(first: int, after: int) -> list[bytes]:
    return [b'{"n": %d}' % n for n in range(first, after)]


async def publish(transport: Transport, *batches: list[bytes]) -> None:
    publisher = await transport.publisher()
    for batch in batches:
        await publisher.publish(batch)
    await publisher.close()


async def receive(subscription: Subscription) -> Chunk:
    async with asyncio.timeout(PATIENCE_S):
        return await subscription.receive()


async def read(subscription: Subscription, *, from_offset: int, up_to: int) -> list[bytes]:
    """Read all bodies up to an offset, and check the offsets of each chunk."""
    bodies: list[bytes] = []
    next_offset, timestamp_us = from_offset, 0
    while next_offset < up_to:
        chunk = await receive(subscription)
        assert chunk.first_offset == next_offset
        assert chunk.next_offset == next_offset + len(chunk.bodies)
        assert chunk.timestamp_us >= timestamp_us
        assert chunk.bodies
        next_offset, timestamp_us = chunk.next_offset, chunk.timestamp_us
        bodies += chunk.bodies
        subscription.grant()
    assert next_offset == up_to
    return bodies


async def truncate(transport: Transport) -> int:
    """Publish until retention has taken the first record; return the first offset that is left."""
    publisher = await transport.publisher()
    for _ in range(200):
        await publisher.publish([b"x" * 1000] * 100)
        subscription = await transport.subscribe(partition=0, offset=0)
        first_offset = (await receive(subscription)).first_offset
        await subscription.close()
        if first_offset > 1:
            return first_offset
    raise AssertionError("retention took nothing")


def of_orgs(first: int, after: int) -> list[bytes]:
    return [
        b'{"orgId": "%s", "n": %d}' % (str(uuid.UUID(int=n % 17)).encode(), n) for n in range(first, after)
    ]


class Turn:
    """An owner that reads from an offset, and records the calls that it gets."""

    def __init__(self, offset: int = 0, before_us: int | None = None) -> None:
        self.offset = offset
        self.before_us = before_us
        self.calls: list[str] = []
        self.active = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.failure: Exception | None = None

    async def activated(self) -> ReadFrom:
        self.calls.append("activated")
        self.active.set()
        await self.may_go_on.wait()
        if self.failure is not None:
            raise self.failure
        return ReadFrom(self.offset, self.before_us)

    async def deactivated(self) -> None:
        self.calls.append("deactivated")
        self.active.clear()
        await self.may_go_on.wait()
