"""Turns at the partitions of a super stream on a real broker: hand-overs, cuts, silence, and the commands."""

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.config import StreamConfig
from pipeline.processes import child as children
from pipeline.transports import Chunk, ReadFrom, Subscription, TransportError
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.subscription import SUBSCRIPTION
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from pipeline.transports.routing import org_key, partition_of
from tests.support.tcp_proxy import TcpProxy

PATIENCE_S = 120
BUSY_S = 8
"""A busy machine may take this much longer than is promised. It is less than a heartbeat."""
Make = Callable[..., Awaitable[RabbitMQTransport]]


@pytest.fixture
async def make(rabbitmq: RabbitMQ) -> AsyncIterator[Make]:
    """Make transports of one super stream of the test's own; `port` goes through a proxy."""
    stream = f"test.{uuid.uuid4().hex}"
    made: list[RabbitMQTransport] = []

    async def make(*, partitions: int, port: int | None = None, heartbeat_s: int = 10) -> RabbitMQTransport:
        url = f"rabbitmq-stream://guest:guest@127.0.0.1:{port or urlsplit(rabbitmq.url).port}/%2F"
        config = StreamConfig(url=url, stream=stream, consumer="test", heartbeat_s=heartbeat_s)
        made.append(RabbitMQTransport(config))
        await made[-1].create_super_stream(partitions=partitions)
        await made[-1].open()
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
async def proxy(rabbitmq: RabbitMQ) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", rabbitmq.ports["stream"]) as proxy:
        yield proxy


def of_orgs(first: int, after: int) -> list[bytes]:
    return [
        b'{"orgId": "%s", "n": %d}' % (str(uuid.UUID(int=n % 97)).encode(), n) for n in range(first, after)
    ]


async def receive(subscription: Subscription) -> Chunk:
    async with asyncio.timeout(PATIENCE_S):
        return await subscription.receive()


# --- what a deactivation does ------------------------------------------------------------------------

# Of two consumers of partition 1, the broker makes the second active: partition number modulo consumers. So a
# partition is taken away by joining the group, and given back by leaving it.
MOVING, KEY = 1, "hello0"


class Turn:
    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.calls: list[str] = []
        self.changed = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.failure: Exception | None = None

    async def activated(self) -> ReadFrom:
        await self._called("activated")
        return ReadFrom(self.offset)

    async def deactivated(self) -> None:
        await self._called("deactivated")

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        self.changed.set()
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            self.changed.set()
            raise
        if self.failure is not None:
            raise self.failure
        self.calls.append("done")
        self.changed.set()

    async def until(self, *calls: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.calls != list(calls):
                self.changed.clear()
                await self.changed.wait()


ON, OFF = ("activated", "done"), ("deactivated", "done")


async def publish(transport: RabbitMQTransport, first: int, after: int) -> None:
    """One chunk a record, all of them into the partition that moves."""
    assert partition_of(KEY, 4) == MOVING
    publisher = await transport.publisher()
    for n in range(first, after):
        await publisher.publish([b"%d" % n], [KEY])
    await publisher.close()


async def read(subscription: Subscription, first: int, after: int) -> None:
    for n in range(first, after):
        chunk = await receive(subscription)
        assert (chunk.first_offset, chunk.bodies) == (n, [b"%d" % n])
        subscription.grant()


async def test_a_partition_that_comes_back_is_read_from_the_new_answer(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 30)
    turn, peer = Turn(3), Turn(10)
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    await read(ours, 3, 10)
    theirs = await transport.compete(partition=MOVING, owner=peer)
    await read(theirs, 10, 20)
    await turn.until(*ON, *OFF)
    turn.offset = 20
    await theirs.close()
    await read(ours, 20, 30)
    assert turn.calls == [*ON, *OFF, *ON]
    assert peer.calls == [*ON]
    assert await ours.caught_up(30)


async def test_nothing_is_delivered_between_a_deactivation_and_the_next_activation(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 30)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    await read(ours, 0, 1)
    assert not await ours.caught_up(1)  # whose answer comes after the chunks that were sent before
    theirs = await transport.compete(partition=MOVING, owner=peer, credit=30)
    await turn.until(*ON, *OFF)
    waiting = asyncio.create_task(receive(ours))
    await read(theirs, 0, 30)
    assert not waiting.done()
    turn.offset = 7
    await theirs.close()
    assert (await waiting).first_offset == 7
    ours.grant()
    await read(ours, 8, 30)


async def test_credit_outlives_a_term_and_every_chunk_received_is_owed_its_grant(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 20)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=2)
    assert [(await receive(ours)).first_offset for _ in range(2)] == [0, 1]
    theirs = await transport.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, *OFF)
    ours.grant()  # late: nobody may read now
    turn.offset = 10
    await theirs.close()
    assert (await receive(ours)).first_offset == 10
    more = asyncio.create_task(receive(ours))
    assert not await ours.caught_up(11)
    assert not more.done(), "chunks 1 and 10 are outstanding, and the credit is 2"
    ours.grant()  # of a chunk of the first term
    assert (await more).first_offset == 11
    ours.grant()
    ours.grant()
    await read(ours, 12, 20)
    with pytest.raises(AssertionError):
        ours.grant()


async def test_credit_survives_many_terms(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 40)
    turn = Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    for term in range(12):
        turn.offset = term
        await turn.until(*(ON + OFF) * term, *ON)
        if term % 3 == 0:
            await read(ours, term, term + 2)
        elif term % 3 == 1:
            assert (await receive(ours)).first_offset == term
        peer = Turn()
        theirs = await transport.compete(partition=MOVING, owner=peer)
        if term % 3 == 1:
            ours.grant()  # may meet the deactivation on its way
        await turn.until(*(ON + OFF) * (term + 1))
        turn.offset = term + 1
        await theirs.close()
    first = [await receive(ours) for _ in range(3)]
    assert [chunk.first_offset for chunk in first] == [12, 13, 14]
    more = asyncio.create_task(receive(ours))
    assert not await ours.caught_up(15)
    assert not more.done()
    for _ in first:
        ours.grant()
    assert (await more).first_offset == 15
    ours.grant()
    await read(ours, 16, 40)


async def test_credit_that_meets_a_deactivation_on_its_way_is_refused_and_not_lost(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 10)
    turn = Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    await turn.until(*ON)
    theirs = await transport.compete(partition=MOVING, owner=Turn())
    await turn.until(*ON, *OFF)
    ours._kept_credit -= 2  # sent before the reader knew
    ours._connection.credit_chunks(SUBSCRIPTION, 2)
    assert not await ours.caught_up(0)  # the refusal came before this answer
    await theirs.close()
    assert [(await receive(ours)).first_offset for _ in range(3)] == [0, 1, 2]
    more = asyncio.create_task(receive(ours))
    assert not await ours.caught_up(3)
    assert not more.done()
    ours.grant()
    assert (await more).first_offset == 3


async def test_the_peer_waits_until_the_owner_has_let_go(make: Make) -> None:
    transport = await make(partitions=4)
    turn, peer = Turn(), Turn()
    await transport.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.may_go_on.clear()
    await transport.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, "deactivated")
    await transport.ping()
    assert peer.calls == []
    turn.may_go_on.set()
    await peer.until(*ON)


async def test_an_owner_that_never_lets_go_does_not_keep_its_close_or_the_peer(make: Make) -> None:
    transport = await make(partitions=4)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.may_go_on.clear()
    await transport.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, "deactivated")
    async with asyncio.timeout(PATIENCE_S):
        await ours.close()
        await peer.until(*ON)
    assert turn.calls == [*ON, "deactivated", "cancelled"]


async def test_an_owner_that_fails_to_let_go_loses_the_partition_and_is_told(make: Make) -> None:
    transport = await make(partitions=4)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.failure = RuntimeError("no flush")
    await transport.compete(partition=MOVING, owner=peer)
    with pytest.raises(TransportError, match=r"the owner of partition 1 failed.*no flush"):
        await receive(ours)
    await peer.until(*ON)


async def test_a_partition_taken_back_during_activation_is_let_go_in_order(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 5)
    turn, peer = Turn(), Turn()
    turn.may_go_on.clear()
    ours = await transport.compete(partition=MOVING, owner=turn)
    await turn.until("activated")
    waiting = asyncio.create_task(receive(ours))
    theirs = await transport.compete(partition=MOVING, owner=peer)
    while not ours._updates:  # until the broker has asked
        await ours.caught_up(0)
    assert turn.calls == ["activated"], "one after the other"
    assert peer.calls == []
    turn.may_go_on.set()
    await read(theirs, 0, 5)
    assert turn.calls == [*ON, *OFF]
    assert not waiting.done()
    await theirs.close()
    assert (await waiting).first_offset == 0
    ours.grant()
    await read(ours, 1, 5)


async def test_heartbeats_go_on_while_an_owner_recovers(make: Make) -> None:
    transport = await make(partitions=4, heartbeat_s=3)
    await publish(transport, 0, 1)
    turn = Turn()
    turn.may_go_on.clear()
    ours = await transport.compete(partition=MOVING, owner=turn)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await ours.receive()
    turn.may_go_on.set()
    await read(ours, 0, 1)


async def test_an_activation_is_cancelled_when_the_connection_is_cut(make: Make, proxy: TcpProxy) -> None:
    through = await make(partitions=4, port=proxy.port)
    turn, peer = Turn(), Turn()
    turn.may_go_on.clear()
    ours = await through.compete(partition=MOVING, owner=turn)
    await turn.until("activated")
    proxy.cut()
    with pytest.raises(TransportError, match="was cut"):
        await receive(ours)
    await turn.until("activated", "cancelled")
    await (await make(partitions=4)).compete(partition=MOVING, owner=peer)
    await peer.until(*ON)


async def test_letting_go_may_end_although_the_connection_is_cut(make: Make, proxy: TcpProxy) -> None:
    through, direct = await make(partitions=4, port=proxy.port), await make(partitions=4)
    turn, peer = Turn(), Turn()
    ours = await through.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.may_go_on.clear()
    await direct.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, "deactivated")
    proxy.cut()
    await peer.until(*ON)
    with pytest.raises(TransportError, match="was cut"):
        await receive(ours)
    turn.may_go_on.set()
    await turn.until(*ON, *OFF)


# --- workers that come and go under load -------------------------------------------------------------


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


# --- a broker that starts ---------------------------------------------------------------------------

# For some tenths of a second it shows no super stream, then one with a part of its partitions.


async def test_a_client_that_comes_while_the_broker_starts_finds_all_partitions_or_waits(
    rabbitmq: RabbitMQ, make: Make
) -> None:
    transport = await make(partitions=3)
    streams = await transport.partitions()
    await transport.close()
    restarting = asyncio.create_task(asyncio.to_thread(rabbitmq.restart))
    answers: list[list[str]] = []
    refusals = 0
    while not restarting.done() or not answers:
        fresh = RabbitMQTransport(
            StreamConfig(url=rabbitmq.url, stream=transport.stream, consumer="test", heartbeat_s=10)
        )
        try:
            await fresh.open()
            answers.append(list(await fresh.partitions()))
        except TransportError:
            refusals += 1
        finally:
            await fresh.close()
        await asyncio.sleep(0.005)
    await restarting
    assert refusals > 0
    assert all(answer == streams for answer in answers)
    again = await make(partitions=3)
    assert not await (await again._live_control()).exists(again.stream)


def show(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> None:
    """Let the broker give these answers about a super stream before the true ones."""
    left, truly = list(answers), StreamConnection.partitions_of

    async def partitions_of(self: StreamConnection, super_stream: str) -> list[str]:
        return list(left.pop(0)) if left else await truly(self, super_stream)

    monkeypatch.setattr(StreamConnection, "partitions_of", partitions_of)


def another(transport: RabbitMQTransport, rabbitmq: RabbitMQ) -> RabbitMQTransport:
    return RabbitMQTransport(StreamConfig(url=rabbitmq.url, stream=transport.stream, consumer="test"))


async def test_a_super_stream_that_is_not_shown_yet_is_not_made_a_plain_one(
    rabbitmq: RabbitMQ, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = await make(partitions=2)
    fresh = another(transport, rabbitmq)
    show(monkeypatch, [])
    with pytest.raises(TransportError, match="-0', but neither a stream nor a super stream"):
        await fresh.open()
    show(monkeypatch, [])
    with pytest.raises(TransportError, match="-0', but neither a stream nor a super stream"):
        await transport.open()
    await fresh.open()
    assert await fresh.partitions() == await transport.partitions()
    await fresh.close()


async def test_nor_is_one_with_partitions_of_other_names(
    rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test.{uuid.uuid4().hex}"
    streams = [f"{name}-eu", f"{name}-us"]
    config = StreamConfig(url=rabbitmq.url, stream=name, consumer="test")
    creator, fresh = RabbitMQTransport(config), RabbitMQTransport(config)
    await (await creator._live_control()).create_super_stream(name, streams, ["eu", "us"], {})
    show(monkeypatch, [], [], [])
    await fresh.open()
    assert await fresh.partitions() == streams
    await creator.close()
    await fresh.close()


async def test_a_part_of_the_partitions_is_not_taken_for_all(
    rabbitmq: RabbitMQ, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = await make(partitions=3)
    streams = await transport.partitions()
    fresh = another(transport, rabbitmq)
    show(monkeypatch, [streams[1]])
    with pytest.raises(TransportError, match="the broker is starting"):
        await fresh.partitions()
    assert await fresh.partitions() == streams
    for part in ([streams[1]], streams[:2]):
        show(monkeypatch, part, part)
        with pytest.raises(TransportError, match=f"has the partitions .*, and before had {streams[0]}"):
            await fresh.subscribe(partition=0, offset=0)
    await fresh.close()


# --- what the broker keeps, and the commands ----------------------------------------------------------


async def test_each_partition_is_declared_with_the_retention_of_a_plain_stream(
    rabbitmq: RabbitMQ, make: Make
) -> None:
    transport = await make(partitions=2)
    for stream in await transport.partitions():
        queue = await asyncio.to_thread(rabbitmq.management, f"/api/queues/%2F/{stream}")
        assert queue["arguments"]["x-max-age"] == "604800s"
        assert queue["arguments"]["x-max-length-bytes"] == 20 * 2**30
        assert queue["arguments"]["x-stream-max-segment-size-bytes"] == 500_000_000
    exchange = f"/api/exchanges/%2F/{transport.stream}/bindings/source"
    bindings = await asyncio.to_thread(rabbitmq.management, exchange)
    assert {(one["routing_key"], one["destination"]) for one in bindings} == {
        (str(number), f"{transport.stream}-{number}") for number in range(2)
    }


async def test_what_a_failed_creation_left_is_named_with_its_remedy(rabbitmq: RabbitMQ) -> None:
    name = f"test.{uuid.uuid4().hex}"
    left = RabbitMQTransport(StreamConfig(url=rabbitmq.url, stream=f"{name}-1", consumer="test"))
    await left.open()
    transport = RabbitMQTransport(StreamConfig(url=rabbitmq.url, stream=name, consumer="test"))
    with pytest.raises(TransportError, match=f"{name}-1 exist without their super stream"):
        await transport.create_super_stream(partitions=2)
    await transport.close()
    await left.close()


async def test_a_stream_and_a_super_stream_of_one_name_are_refused(make: Make) -> None:
    transport = await make(partitions=2)
    control = await transport._live_control()
    await control.create_stream(transport.stream, {})
    for refused in (transport.ping(), transport.open(), transport.partitions()):
        with pytest.raises(TransportError, match="both a stream and a super stream"):
            await refused


async def spendstream(rabbitmq: RabbitMQ, stream: str, *arguments: str) -> tuple[int, str, str]:
    running = await asyncio.create_subprocess_exec(
        *children.command_line("pipeline.cli", *arguments),
        env=children.environment({**os.environ, "RABBITMQ_URL": rabbitmq.url, "RABBITMQ_STREAM": stream}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await running.communicate()
    assert running.returncode is not None
    return running.returncode, output.decode(), errors.decode()


async def test_the_stream_commands_create_and_show_partitions(rabbitmq: RabbitMQ) -> None:
    name = f"test.{uuid.uuid4().hex}"
    exit_code, _, errors = await spendstream(rabbitmq, name, "stream", "show")
    assert exit_code == 1
    assert f"stream '{name}' does not exist" in errors
    created = (0, f"created {name} with 3 partitions\n", "")
    assert await spendstream(rabbitmq, name, "stream", "create", "--partitions", "3") == created
    exit_code, output, _ = await spendstream(rabbitmq, name, "stream", "create", "--partitions", "3")
    assert (exit_code, output) == (0, f"already there: {name} with 3 partitions\n")
    exit_code, _, errors = await spendstream(rabbitmq, name, "stream", "create", "--partitions", "4")
    assert exit_code == 1
    assert "has 3 partitions, not 4" in errors
    assert (await spendstream(rabbitmq, name, "stream", "create", "--partitions", "0"))[0] == 2
    exit_code, output, _ = await spendstream(rabbitmq, name, "stream", "show")
    assert (exit_code, output) == (0, "".join(f"{i}  {name}-{i}  empty\n" for i in range(3)))


async def test_the_simulator_publishes_to_all_partitions_by_org(rabbitmq: RabbitMQ, make: Make) -> None:
    transport = await make(partitions=3)
    options = ("--rate", "2000", "--duration", "1s", "--orgs", "40")
    exit_code, output, _ = await spendstream(rabbitmq, transport.stream, "simulate", *options)
    assert exit_code == 0
    assert "published 2000 events" in output
    exit_code, output, _ = await spendstream(rabbitmq, transport.stream, "stream", "show", "--json")
    shown = [json.loads(line) for line in output.splitlines()]
    assert sum(row["endOffset"] for row in shown) == 2000
    for row in shown:
        assert row["endOffset"] > 0
        subscription = await transport.subscribe(partition=row["partition"], offset=0)
        next_offset = 0
        while next_offset < row["endOffset"]:
            chunk = await receive(subscription)
            subscription.grant()
            next_offset = chunk.next_offset
            assert {partition_of(org_key(body), 3) for body in chunk.bodies} == {row["partition"]}
