"""The fake of the transports: a broker in memory with partitions, credit and single active consumers.

Tasks switch only where `switch` is awaited, so a seed decides every interleaving. A test can cut a
connection, hide the cut from its owner (a zombie), and move a partition to another owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.transports import Chunk, Extent, Owner, Publisher, Subscription, TransportError


async def _no_wait() -> None:
    await asyncio.sleep(0)


@dataclass
class MemoryPartition:
    name: str
    chunks: list[Chunk] = field(default_factory=list)
    competitors: list[MemorySubscription] = field(default_factory=list)
    active: MemorySubscription | None = None
    moving: asyncio.Task[None] | None = None

    @property
    def end(self) -> int:
        return self.chunks[-1].next_offset if self.chunks else 0

    def stored_us(self, offset: int) -> int | None:
        """The time at which the chunk of a record was stored."""
        for chunk in self.chunks:
            if chunk.first_offset <= offset < chunk.next_offset:
                return chunk.timestamp_us
        return None


class MemoryBroker:
    """Keeps the streams, and goes on when its clients die."""

    def __init__(self, name: str = "s", partitions: int = 1) -> None:
        self.name = name
        names = [name] if partitions == 1 else [f"{name}-{i}" for i in range(partitions)]
        self.partitions = [MemoryPartition(one) for one in names]

    def publish(self, partition: int, bodies: Sequence[bytes], *, timestamp_us: int) -> None:
        """Store the bodies as one chunk."""
        stored = self.partitions[partition]
        stored.chunks.append(
            Chunk(
                partition=partition,
                first_offset=stored.end,
                next_offset=stored.end + len(bodies),
                timestamp_us=timestamp_us,
                bodies=list(bodies),
            )
        )
        for competitor in stored.competitors:
            competitor.news.set()

    def elect(self, partition: int) -> None:
        """Make the first living competitor the owner, if there is no owner and nobody is being asked."""
        stored = self.partitions[partition]
        if stored.moving is not None and not stored.moving.done():
            return
        stored.competitors = [one for one in stored.competitors if not one.gone]
        if stored.active is not None and stored.active.gone:
            stored.active = None
        if stored.active is None and stored.competitors:
            stored.moving = asyncio.create_task(self._activate(stored, stored.competitors[0], partition))

    async def _activate(self, stored: MemoryPartition, chosen: MemorySubscription, partition: int) -> None:
        stored.active = chosen
        await chosen.activate()
        stored.moving = None
        self.elect(partition)  # the chosen competitor may have gone meanwhile

    def move(self, partition: int) -> None:
        """Take the partition from its owner in good order, and give it to the next competitor."""
        stored = self.partitions[partition]
        if stored.active is None or (stored.moving is not None and not stored.moving.done()):
            return
        stored.moving = asyncio.create_task(self._move(stored, stored.active, partition))

    async def _move(self, stored: MemoryPartition, owner: MemorySubscription, partition: int) -> None:
        await owner.deactivate()
        if owner in stored.competitors:
            stored.competitors.remove(owner)
            stored.competitors.append(owner)
        stored.active = stored.moving = None
        self.elect(partition)

    async def close(self) -> None:
        """End the tasks of the broker itself."""
        for stored in self.partitions:
            if stored.moving is not None:
                stored.moving.cancel()
                await asyncio.gather(stored.moving, return_exceptions=True)


class PartialTransport:
    """A `pipeline.transports.Transport` whose methods all fail. A fake overrides the methods that it has."""

    stream: str

    async def open(self) -> None:
        raise NotImplementedError

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> Subscription:
        raise NotImplementedError

    async def partitions(self) -> Sequence[str]:
        raise NotImplementedError

    async def compete(self, *, partition: int, owner: Owner, credit: int = 4) -> Subscription:
        raise NotImplementedError

    async def create_super_stream(self, *, partitions: int) -> bool:
        raise NotImplementedError

    async def extents(self) -> Sequence[Extent]:
        raise NotImplementedError

    async def stored_us(self, *, partition: int, offset: int) -> int | None:
        raise NotImplementedError

    async def publisher(self) -> Publisher:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class MemoryTransport(PartialTransport):
    """One client of a `MemoryBroker`, through which a worker competes for partitions."""

    def __init__(self, broker: MemoryBroker, *, switch: Callable[[], Awaitable[None]] = _no_wait) -> None:
        self.stream = broker.name
        self.down = False
        self._broker = broker
        self._switch = switch
        self._opened: list[MemorySubscription] = []

    async def open(self) -> None:
        await self.ping()

    async def ping(self) -> None:
        await self._switch()
        if self.down:
            raise TransportError("the broker is away")

    async def partitions(self) -> Sequence[str]:
        await self.ping()
        return [stored.name for stored in self._broker.partitions]

    async def compete(self, *, partition: int, owner: Owner, credit: int = 4) -> MemorySubscription:
        await self.ping()
        subscription = MemorySubscription(self, self._broker, partition=partition, owner=owner, credit=credit)
        self._opened.append(subscription)
        self._broker.partitions[partition].competitors.append(subscription)
        self._broker.elect(partition)
        return subscription

    @property
    def credit_owed(self) -> int:
        """How many chunks have come over living connections without a grant since."""
        return sum(one._outstanding for one in self._opened if not one.gone)

    def cut(self, *, secretly: bool = False) -> None:
        """Lose every connection. With ``secretly`` the client hears of the loss only by `reveal`."""
        for subscription in self._opened:
            subscription.lose(secretly=secretly)

    def reveal(self) -> None:
        """Let the client hear of the connections that it lost."""
        for subscription in self._opened:
            if subscription.gone:
                subscription.lose(secretly=False)

    async def close(self) -> None:
        self.cut()

    async def wait(self) -> None:
        await self._switch()


class MemorySubscription:
    """See `pipeline.transports.Subscription`."""

    def __init__(
        self, transport: MemoryTransport, broker: MemoryBroker, *, partition: int, owner: Owner, credit: int
    ) -> None:
        self.partition = partition
        self.first_offset: int | None = None
        self.gone = False
        self.news = asyncio.Event()
        self._lost = asyncio.Event()
        self._dead = False
        self._transport = transport
        self._broker = broker
        self._owner = owner
        self._credit = credit
        self._outstanding = 0
        self._offset: int | None = None
        """The offset at which delivery goes on. None while another consumer is active."""
        self._asking: asyncio.Task[Any] | None = None

    @property
    def _stored(self) -> MemoryPartition:
        return self._broker.partitions[self.partition]

    async def activate(self) -> None:
        """Ask the owner for the offset. If the client goes away meanwhile, nothing is delivered to it."""
        asking = await self._ask(self._owner.activated)
        if asking is not None:
            place = asking.result()
            assert place.offset == 0 or place.before_us == self._stored.stored_us(place.offset - 1)
            self._offset = place.offset
            self.news.set()

    async def deactivate(self) -> None:
        self._offset = None
        asking = await self._ask(self._owner.deactivated)
        if asking is not None:
            asking.result()

    async def _ask(self, question: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any] | None:
        """The owner's answer, or None if the connection is lost first. A zombie's task goes on by itself."""
        if self.gone:
            return None
        asking = self._asking = asyncio.create_task(question())
        lost = asyncio.create_task(self._lost.wait())
        await asyncio.wait([asking, lost], return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        return None if self.gone or asking.cancelled() else asking

    def lose(self, *, secretly: bool) -> None:
        self.gone = True
        self._lost.set()
        self._offset = None
        if not secretly:
            self._dead = True
        self.news.set()
        if self._asking is not None and not secretly:
            self._asking.cancel()
        self._broker.elect(self.partition)

    async def receive(self) -> Chunk:
        while True:
            await self._transport.wait()
            if self._dead:
                raise TransportError("the connection was cut")
            chunk = self._next()
            if chunk is not None:
                self._offset = chunk.next_offset
                self._outstanding += 1
                return chunk
            self.news.clear()
            await self.news.wait()

    def _next(self) -> Chunk | None:
        offset = self._offset
        if offset is None or self._outstanding >= self._credit:
            return None
        for chunk in self._stored.chunks:
            if chunk.next_offset > offset:
                skipped = max(0, offset - chunk.first_offset)
                return Chunk(
                    partition=chunk.partition,
                    first_offset=chunk.first_offset + skipped,
                    next_offset=chunk.next_offset,
                    timestamp_us=chunk.timestamp_us,
                    bodies=chunk.bodies[skipped:],
                )
        return None

    def grant(self) -> None:
        if not self._dead:
            assert self._outstanding > 0, "a grant without a chunk that was received"
            self._outstanding -= 1
            self.news.set()

    async def caught_up(self, next_offset: int) -> bool:
        return await self.offset_lag(next_offset) == 0

    async def offset_lag(self, next_offset: int) -> int:
        await self._transport.wait()
        if self._dead:
            raise TransportError("the connection was cut")
        self.first_offset = next((chunk.first_offset for chunk in self._stored.chunks), 0)
        return max(0, self._stored.end - next_offset)

    async def close(self) -> None:
        self.lose(secretly=False)
