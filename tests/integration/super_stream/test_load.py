"""Turns at the partitions of a super stream under load: workers that join, leave, are cut off and freeze."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pipeline.transports import ReadFrom, Subscription, TransportError
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from pipeline.transports.routing import org_key, partition_of
from tests.support.super_streams import MOVING, ON, PATIENCE_S, Make, Turn, of_orgs
from tests.support.tcp_proxy import TcpProxy

BUSY_S = 8
"""A busy machine may take this much longer than is promised. It is less than a heartbeat."""


class Books:
    """What a database would hold: the records of each partition, each once and in order."""

    def __init__(self, partitions: int) -> None:
        self.counted: list[list[bytes]] = [[] for _ in range(partitions)]
        self.owners: list[set[str]] = [set() for _ in range(partitions)]
        self.changed = asyncio.Event()
        self.last_taken_at = 0.0

    def change(self) -> None:
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


class PartitionOwner:
    """Counts in memory, and commits when it must let go; what it has not committed dies with it."""

    def __init__(self, name: str, partition: int, books: Books) -> None:
        self.name, self.partition, self.books = name, partition, books
        self.pending: list[bytes] | None = None
        self.is_dead = False

    async def activated(self) -> ReadFrom:
        await asyncio.sleep(0.01)  # a recovery takes its time
        owners = self.books.owners[self.partition]
        assert not owners, f"{self.name} takes partition {self.partition} from {owners}, who was not asked"
        owners.add(self.name)
        self.pending = []
        self.books.last_taken_at = time.monotonic()
        self.books.change()
        return ReadFrom(len(self.books.counted[self.partition]))

    async def deactivated(self) -> None:
        await asyncio.sleep(0.01)  # so does a flush
        self.flush()
        self.forget()

    def flush(self) -> None:
        assert self.pending is not None
        self.books.counted[self.partition] += self.pending
        self.pending = []
        self.books.change()

    def forget(self) -> None:
        self.pending = None
        self.books.owners[self.partition].discard(self.name)

    async def work(self, subscription: Subscription) -> None:
        while True:
            chunk = await subscription.receive()
            if self.is_dead:
                continue
            assert self.pending is not None, "delivered to one who does not own"
            assert chunk.first_offset == len(self.books.counted[self.partition]) + len(self.pending)
            self.pending += chunk.bodies
            if len(self.pending) > 50:
                self.flush()
            self.books.change()
            subscription.grant()


class Worker:
    """Competes for every partition, as each worker does."""

    def __init__(self, name: str, transport: RabbitMQTransport, books: Books) -> None:
        self.transport = transport
        self.owners = [PartitionOwner(name, number, books) for number in range(len(books.counted))]
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self) -> None:
        for owner in self.owners:
            subscription = await self.transport.compete(partition=owner.partition, owner=owner, credit=2)
            self.tasks.append(asyncio.create_task(owner.work(subscription)))

    def owned(self) -> list[int]:
        return [owner.partition for owner in self.owners if owner.pending is not None]

    def die(self) -> None:
        """As kill -9 does: nothing is committed any more."""
        for owner in self.owners:
            owner.is_dead = True
            owner.forget()
        self.owners = []

    async def leave(self) -> None:
        """As SIGTERM does: stop reading, commit, let go."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for owner in self.owners:
            if owner.pending is not None:
                owner.flush()
                owner.forget()
        await self.transport.close()

    async def ended(self) -> list[BaseException | None]:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def load(transport: RabbitMQTransport) -> AsyncIterator[list[bytes]]:
    """Publish until the end of the block; the list is complete then."""
    published: list[bytes] = []
    publisher = await transport.publisher()
    stop = asyncio.Event()

    async def publish_on() -> None:
        while not stop.is_set():
            batch = of_orgs(len(published), len(published) + 200)
            await publisher.publish(batch)
            published.extend(batch)
            await asyncio.sleep(0.005)

    publishing = asyncio.create_task(publish_on())
    try:
        yield published
    finally:
        stop.set()
        await publishing


def expected_books(published: list[bytes], partitions: int) -> list[list[bytes]]:
    return [
        [body for body in published if partition_of(org_key(body), partitions) == number]
        for number in range(partitions)
    ]


async def progress(books: Books, records: int = 500) -> None:
    """Until every partition has moved on by so much: none stalls."""
    before = [len(counted) for counted in books.counted]
    await books.until(
        lambda: all(len(now) >= was + records for now, was in zip(books.counted, before, strict=True))
    )


async def settle(books: Books, published: list[bytes], *workers: Worker) -> None:
    """Until all that was published is in the books or in the memory of an owner; then compare it."""
    expected = expected_books(published, len(books.counted))

    def everything_was_read() -> bool:
        held = [len(counted) for counted in books.counted]
        for worker in workers:
            for owner in worker.owners:
                held[owner.partition] += len(owner.pending or [])
        return held == [len(records) for records in expected]

    await books.until(everything_was_read)
    for worker in workers:
        await worker.leave()
    assert books.counted == expected


async def test_workers_that_join_and_leave_under_load_lose_and_double_nothing(make: Make) -> None:
    books = Books(4)
    workers = [Worker(f"worker-{number}", await make(partitions=4), books) for number in range(3)]
    async with load(await make(partitions=4)) as published:
        await workers[0].join()
        await books.until(lambda: workers[0].owned() == [0, 1, 2, 3])
        await progress(books)
        await workers[1].join()
        await books.until(lambda: [w.owned() for w in workers[:2]] == [[0, 2], [1, 3]])
        await progress(books)
        await workers[2].join()
        await books.until(lambda: [w.owned() for w in workers] == [[0, 3], [1], [2]])
        await progress(books)
        await workers[0].leave()
        await books.until(lambda: sorted(workers[1].owned() + workers[2].owned()) == [0, 1, 2, 3])
        await progress(books)
    await settle(books, published, *workers[1:])


async def test_a_cut_worker_is_followed_within_two_seconds(make: Make, proxy: TcpProxy) -> None:
    books = Books(4)
    cut = Worker("cut", await make(partitions=4, port=proxy.port), books)
    peer = Worker("peer", await make(partitions=4), books)
    async with load(await make(partitions=4)) as published:
        await cut.join()
        await peer.join()
        await books.until(lambda: [cut.owned(), peer.owned()] == [[0, 2], [1, 3]])
        await progress(books)
        cut.die()
        proxy.cut()
        began = time.monotonic()
        await books.until(lambda: peer.owned() == [0, 1, 2, 3])
        assert books.last_taken_at - began < 2 + BUSY_S
        assert all(isinstance(error, TransportError) for error in await cut.ended())
        await progress(books)
    await settle(books, published, peer)


async def test_a_frozen_worker_is_followed_within_the_heartbeat_bound(make: Make, proxy: TcpProxy) -> None:
    """As SIGSTOP or a cable pulled: nothing is closed, nothing answers. The broker gives up after two beats,
    and looks at them twice a beat."""
    books, heartbeat_s = Books(4), 4
    frozen = Worker("frozen", await make(partitions=4, port=proxy.port, heartbeat_s=heartbeat_s), books)
    peer = Worker("peer", await make(partitions=4, heartbeat_s=heartbeat_s), books)
    async with load(await make(partitions=4)) as published:
        await frozen.join()
        await peer.join()
        await books.until(lambda: [frozen.owned(), peer.owned()] == [[0, 2], [1, 3]])
        await progress(books)
        proxy.freeze()
        frozen.die()
        began = time.monotonic()
        await books.until(lambda: peer.owned() == [0, 1, 2, 3])
        assert books.last_taken_at - began < 3 * heartbeat_s + BUSY_S
        assert all(isinstance(error, TransportError) for error in await frozen.ended())
        await progress(books)
    await settle(books, published, peer)


async def test_a_frozen_worker_that_is_asked_to_step_down_keeps_nobody_for_long(
    make: Make, proxy: TcpProxy
) -> None:
    """The peer joins while the owner is frozen: the broker waits for an answer that never comes."""
    through = await make(partitions=4, port=proxy.port, heartbeat_s=4)
    turn, peer = Turn(), Turn()
    await through.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    proxy.freeze()
    await (await make(partitions=4)).compete(partition=MOVING, owner=peer)
    async with asyncio.timeout(PATIENCE_S):
        await peer.until(*ON)
    assert turn.calls == [*ON]
