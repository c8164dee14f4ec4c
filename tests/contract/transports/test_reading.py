"""The promises of every transport, tested with the embedded log and with a real RabbitMQ."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from pipeline.config import StreamConfig
from pipeline.transports import Chunk, OffsetGone, ReadFrom, Subscription, Transport, TransportError
from pipeline.transports.factory import open_transport
from pipeline.transports.routing import org_key, partition_of

PATIENCE_S = 120
FOLLOWED_S = 10
"""Two seconds are promised, and a busy machine gets more. Missed heartbeats would tell after 20 s or more."""
Make = Callable[..., Awaitable[Transport]]


@pytest.fixture(params=["embedded", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "embedded":
        return f"embedded://{tmp_path}"
    return str(request.getfixturevalue("rabbitmq").url)


@pytest.fixture
async def make(url: str) -> AsyncIterator[Make]:
    """Make transports for a stream of the test's own. With `opened=False` the stream is not declared."""
    stream = f"test.{uuid.uuid4().hex}"
    made: list[Transport] = []

    async def make(
        *, opened: bool = True, max_bytes: int = 2**30, partitions: int = 0, consumer: str = "test"
    ) -> Transport:
        made.append(
            open_transport(StreamConfig(url=url, stream=stream, consumer=consumer, max_bytes=max_bytes))
        )
        if partitions:
            await made[-1].create_super_stream(partitions=partitions)
        if opened:
            await made[-1].open()
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
async def transport(make: Make) -> Transport:
    return await make()


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


async def test_records_arrive_in_order_with_their_offsets(transport: Transport) -> None:
    await publish(transport, numbered(0, 7), numbered(7, 8), numbered(8, 500))
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, from_offset=0, up_to=500) == numbered(0, 500)


async def test_reading_resumes_at_any_offset_also_inside_a_chunk(transport: Transport) -> None:
    await publish(transport, numbered(0, 7), numbered(7, 8), numbered(8, 20))
    for offset in range(20):
        subscription = await transport.subscribe(partition=0, offset=offset)
        assert await read(subscription, from_offset=offset, up_to=20) == numbered(offset, 20)
        await subscription.close()


async def test_a_reader_that_starts_before_the_first_record_gets_it(transport: Transport) -> None:
    subscription = await transport.subscribe(partition=0, offset=0)
    waiting = asyncio.create_task(receive(subscription))
    assert await subscription.caught_up(0)
    await publish(transport, numbered(0, 1))
    assert (await waiting).bodies == numbered(0, 1)


async def test_an_idle_stream_delivers_what_comes_later(transport: Transport) -> None:
    await publish(transport, numbered(0, 3))
    subscription = await transport.subscribe(partition=0, offset=0)
    await read(subscription, from_offset=0, up_to=3)
    for first in range(3, 8):
        waiting = asyncio.create_task(read(subscription, from_offset=first, up_to=first + 1))
        assert await subscription.caught_up(first)
        assert not waiting.done()
        await publish(transport, numbered(first, first + 1))
        assert await waiting == numbered(first, first + 1)


async def test_a_reader_at_the_end_waits_for_the_next_record(transport: Transport) -> None:
    await publish(transport, numbered(0, 5))
    subscription = await transport.subscribe(partition=0, offset=5)
    assert await subscription.caught_up(5)
    await publish(transport, numbered(5, 6))
    assert await read(subscription, from_offset=5, up_to=6) == numbered(5, 6)


async def test_no_more_chunks_than_credit_arrive_until_granted(transport: Transport) -> None:
    publisher = await transport.publisher()
    for n in range(12):
        await publisher.publish(numbered(n, n + 1))
    subscription = await transport.subscribe(partition=0, offset=0, credit=3)
    first = [await receive(subscription) for _ in range(3)]
    more = asyncio.create_task(receive(subscription))
    # The answer to a question comes after any chunk that the broker has sent before.
    assert not await subscription.caught_up(first[-1].next_offset)
    assert not more.done()
    # One grant lets one chunk come, even after several grants were withheld. A second grant is not needed.
    subscription.grant()
    fourth = await more
    subscription.grant()
    rest = await read(subscription, from_offset=fourth.next_offset, up_to=12)
    assert [body for chunk in (*first, fourth) for body in chunk.bodies] + rest == numbered(0, 12)


async def test_with_a_credit_of_one_each_chunk_waits_for_its_grant(transport: Transport) -> None:
    publisher = await transport.publisher()
    for n in range(5):
        await publisher.publish(numbered(n, n + 1))
    subscription = await transport.subscribe(partition=0, offset=0, credit=1)
    assert await read(subscription, from_offset=0, up_to=5) == numbered(0, 5)


async def test_an_empty_stream_is_caught_up(transport: Transport) -> None:
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await subscription.caught_up(0)
    assert await subscription.offset_lag(0) == 0


async def test_lag_is_nothing_exactly_when_everything_was_delivered(transport: Transport) -> None:
    await publish(transport, numbered(0, 10))
    subscription = await transport.subscribe(partition=0, offset=0)
    assert not await subscription.caught_up(0)
    assert 1 <= await subscription.offset_lag(0) <= 10
    await read(subscription, from_offset=0, up_to=10)
    assert await subscription.caught_up(10)
    assert await subscription.offset_lag(10) == 0
    assert not await subscription.caught_up(9)
    assert 1 <= await subscription.offset_lag(4) <= 6
    await publish(transport, numbered(10, 11))
    assert not await subscription.caught_up(10)
    await read(subscription, from_offset=10, up_to=11)
    assert await subscription.caught_up(11)


@pytest.mark.parametrize("offset", range(11))
async def test_lag_is_known_before_anything_was_received(transport: Transport, offset: int) -> None:
    await publish(transport, numbered(0, 10))
    subscription = await transport.subscribe(partition=0, offset=offset)
    for _ in range(3):
        assert await subscription.caught_up(offset) == (offset == 10)
        assert (await subscription.offset_lag(offset) == 0) == (offset == 10)


async def test_two_subscriptions_read_independently(transport: Transport) -> None:
    await publish(transport, numbered(0, 50))
    one = await transport.subscribe(partition=0, offset=0)
    other = await transport.subscribe(partition=0, offset=20)
    assert await read(other, from_offset=20, up_to=50) == numbered(20, 50)
    await other.close()
    assert await read(one, from_offset=0, up_to=50) == numbered(0, 50)


async def test_two_publishers_interleave_without_loss(transport: Transport) -> None:
    publishers = [await transport.publisher() for _ in range(2)]

    async def publish_each(publisher_number: int) -> None:
        for n in range(publisher_number, 200, 2):
            await publishers[publisher_number].publish(numbered(n, n + 1))

    await asyncio.gather(publish_each(0), publish_each(1))
    subscription = await transport.subscribe(partition=0, offset=0)
    bodies = await read(subscription, from_offset=0, up_to=200)
    assert sorted(bodies) == sorted(numbered(0, 200))
    assert [b for b in bodies if int(b[6:-1]) % 2] == numbered(0, 200)[1::2]


async def test_bodies_of_any_size_and_content_arrive_as_they_are(transport: Transport) -> None:
    bodies = [
        b"",
        b"x",
        b"\x00",
        b"\x00\x53",
        b"\x00" * 300,
        bytes(range(256)) * 256,
        b"{" + b"a" * 65_536 + b"}",
        b"b" * 900_000,
        b"",
    ]
    await publish(transport, bodies)
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, from_offset=0, up_to=len(bodies)) == bodies


async def test_publishing_nothing_adds_nothing(transport: Transport) -> None:
    await publish(transport, [], numbered(0, 1), [])
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, from_offset=0, up_to=1) == numbered(0, 1)
    assert await subscription.caught_up(1)


async def test_a_hundred_thousand_records_while_they_are_published(transport: Transport) -> None:
    bodies = numbered(0, 100_000)
    subscription = await transport.subscribe(partition=0, offset=0)
    reading = asyncio.create_task(read(subscription, from_offset=0, up_to=100_000))
    await publish(transport, *(bodies[at : at + 7000] for at in range(0, 100_000, 7000)))
    assert await reading == bodies
    assert await subscription.caught_up(100_000)


async def test_a_cancelled_receive_loses_nothing(transport: Transport) -> None:
    publisher = await transport.publisher()
    subscription = await transport.subscribe(partition=0, offset=0)
    bodies: list[bytes] = []
    for wakes in range(30):
        receiving = asyncio.create_task(subscription.receive())
        if wakes % 3 == 0:
            await publisher.publish(numbered(wakes // 3, wakes // 3 + 1))
        for _ in range(wakes):
            await asyncio.sleep(0)
        receiving.cancel()
        try:
            bodies += (await receiving).bodies
            subscription.grant()
        except asyncio.CancelledError:
            continue
    assert bodies + await read(subscription, from_offset=len(bodies), up_to=10) == numbered(0, 10)


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


async def test_an_offset_that_retention_took_is_gone(make: Make) -> None:
    transport = await make(max_bytes=512 * 1024)
    await truncate(transport)
    subscription = await transport.subscribe(partition=0, offset=1)
    for _ in range(2):
        with pytest.raises(OffsetGone, match="are gone from the stream") as gone:
            await receive(subscription)
    assert gone.value.wanted_offset == 1
    assert gone.value.first_offset > 1


async def test_an_offset_beyond_the_end_shows_that_the_stream_is_another(transport: Transport) -> None:
    await publish(transport, numbered(0, 10))
    subscription = await transport.subscribe(partition=0, offset=11)
    with pytest.raises(OffsetGone, match="made anew") as gone:
        await receive(subscription)
    assert gone.value.end_offset == 10


async def test_an_empty_stream_cannot_hold_a_wanted_offset(transport: Transport) -> None:
    subscription = await transport.subscribe(partition=0, offset=5)
    with pytest.raises(OffsetGone, match="made anew"):
        await receive(subscription)


async def test_closing_ends_a_waiting_receive_and_is_idempotent(transport: Transport) -> None:
    await publish(transport, numbered(0, 1))
    subscription = await transport.subscribe(partition=0, offset=0)
    await receive(subscription)
    waiting = asyncio.create_task(receive(subscription))
    assert await subscription.caught_up(1)
    await subscription.close()
    await subscription.close()
    with pytest.raises(TransportError):
        await waiting
    with pytest.raises(TransportError):
        await receive(subscription)
    with pytest.raises(TransportError):
        await subscription.caught_up(1)
    subscription.grant()


async def test_closing_the_transport_closes_what_it_opened(make: Make) -> None:
    transport = await make()
    subscription = await transport.subscribe(partition=0, offset=0)
    publisher = await transport.publisher()
    await transport.close()
    await transport.close()
    with pytest.raises(TransportError):
        await receive(subscription)
    with pytest.raises(TransportError):
        await publisher.publish(numbered(0, 1))


async def test_opening_again_keeps_what_is_stored(make: Make) -> None:
    await publish(await make(), numbered(0, 10))
    again = await make()
    await again.open()
    subscription = await again.subscribe(partition=0, offset=0)
    assert await read(subscription, from_offset=0, up_to=10) == numbered(0, 10)


async def test_a_ping_answers_only_for_a_stream_that_exists(make: Make) -> None:
    transport = await make(opened=False)
    with pytest.raises(TransportError):
        await transport.ping()
    with pytest.raises(TransportError):
        await transport.subscribe(partition=0, offset=0)
    with pytest.raises(TransportError):
        await transport.publisher()
    await transport.open()
    await transport.ping()


async def test_only_partition_0_exists(transport: Transport) -> None:
    with pytest.raises(TransportError, match="one partition"):
        await transport.subscribe(partition=1, offset=0)


# --- several partitions ------------------------------------------------------------------------------


def of_orgs(first: int, after: int) -> list[bytes]:
    return [
        b'{"orgId": "%s", "n": %d}' % (str(uuid.UUID(int=n % 17)).encode(), n) for n in range(first, after)
    ]


async def test_a_plain_stream_is_one_partition(transport: Transport) -> None:
    assert await transport.partitions() == [transport.stream]


async def test_the_partitions_of_a_super_stream_are_named_and_numbered_in_order(make: Make) -> None:
    transport = await make(partitions=12)
    assert await transport.partitions() == [f"{transport.stream}-{number}" for number in range(12)]


async def test_each_record_lies_in_the_partition_of_its_key(make: Make) -> None:
    transport, bodies = await make(partitions=3), of_orgs(0, 300)
    publisher = await transport.publisher()
    await publisher.publish(bodies[:100])
    await publisher.publish(bodies[100:], [str(uuid.UUID(int=n % 17)) for n in range(100, 300)])
    for partition in range(3):
        expected = [body for body in bodies if partition_of(org_key(body), 3) == partition]
        assert len(expected) > 30
        subscription = await transport.subscribe(partition=partition, offset=0)
        assert await read(subscription, from_offset=0, up_to=len(expected)) == expected
        assert await subscription.caught_up(len(expected))


async def test_a_partition_that_does_not_exist_is_named(make: Make) -> None:
    transport = await make(partitions=2)
    with pytest.raises(TransportError, match="2 partitions, not 2"):
        await transport.subscribe(partition=2, offset=0)
    with pytest.raises(TransportError, match="2 partitions, not -1"):
        await transport.compete(partition=-1, owner=Turn())


async def test_creating_again_with_as_many_partitions_changes_nothing(make: Make) -> None:
    transport = await make(opened=False)
    assert await transport.create_super_stream(partitions=2)
    await publish(transport, of_orgs(0, 50))
    assert not await transport.create_super_stream(partitions=2)
    await transport.open()
    assert sum(extent.end_offset for extent in await transport.extents()) == 50


async def test_the_number_of_partitions_cannot_be_changed(make: Make) -> None:
    transport = await make(partitions=2)
    with pytest.raises(TransportError, match="has 2 partitions, not 3"):
        await transport.create_super_stream(partitions=3)
    assert len(await transport.partitions()) == 2


async def test_a_plain_stream_cannot_get_partitions(transport: Transport) -> None:
    await publish(transport, numbered(0, 1))
    with pytest.raises(TransportError, match="is a plain stream"):
        await transport.create_super_stream(partitions=2)
    assert await transport.partitions() == [transport.stream]


async def test_extents_tell_where_each_partition_begins_and_ends(make: Make) -> None:
    transport = await make(partitions=2)
    assert [(one.first_offset, one.end_offset) for one in await transport.extents()] == [(0, 0), (0, 0)]
    bodies = of_orgs(0, 100)
    await publish(transport, bodies[:60], bodies[60:])
    in_first = sum(partition_of(org_key(body), 2) == 0 for body in bodies)
    extents = await transport.extents()
    assert [extent.stream for extent in extents] == await transport.partitions()
    assert [(one.first_offset, one.end_offset) for one in extents] == [(0, in_first), (0, 100 - in_first)]


async def test_extents_tell_what_retention_has_taken(make: Make) -> None:
    transport = await make(max_bytes=512 * 1024)
    first_offset = await truncate(transport)
    (extent,) = await transport.extents()
    assert extent.first_offset >= first_offset
    assert extent.end_offset % 100 == 0


async def test_retention_of_one_partition_takes_no_offset_of_another(make: Make) -> None:
    transport = await make(max_bytes=512 * 1024, partitions=2)
    full, spared = "hello3", "hello1"
    assert [partition_of(key, 2) for key in (full, spared)] == [1, 0]
    publisher = await transport.publisher()
    await publisher.publish(numbered(0, 10), [spared] * 10)
    while (await transport.extents())[1].first_offset < 2:
        await publisher.publish([b"x" * 1000] * 100, [full] * 100)
    taken = await transport.compete(partition=1, owner=Turn(1))
    with pytest.raises(OffsetGone, match="are gone from the stream"):
        await receive(taken)
    kept = await transport.compete(partition=0, owner=Turn(1))
    assert await read(kept, from_offset=1, up_to=10) == numbered(1, 10)


# --- taking turns ------------------------------------------------------------------------------------


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


async def active(turn: Turn) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await turn.active.wait()


async def first_active(turns: Iterable[Turn]) -> Turn:
    looking = {asyncio.create_task(active(turn)): turn for turn in turns}
    done, others = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    (only,) = done
    await only
    return looking[only]


@pytest.mark.parametrize("offset", [0, 1, 7, 13, 20])
async def test_a_competitor_reads_from_the_offset_that_its_owner_answers(
    transport: Transport, offset: int
) -> None:
    await publish(transport, numbered(0, 7), numbered(7, 8), numbered(8, 20))
    turn = Turn(offset)
    subscription = await transport.compete(partition=0, owner=turn)
    await active(turn)
    reading = asyncio.create_task(read(subscription, from_offset=offset, up_to=21))
    await publish(transport, numbered(20, 21))
    assert await reading == numbered(offset, 21)
    assert await subscription.caught_up(21)
    assert turn.calls == ["activated"]


async def test_a_record_that_was_stored_at_another_time_shows_that_the_stream_is_another(
    transport: Transport,
) -> None:
    await publish(transport, numbered(0, 7), numbered(7, 20))
    stored_us = [await transport.stored_us(partition=0, offset=offset) for offset in (0, 6, 7, 19)]
    subscription = await transport.subscribe(partition=0, offset=0)
    chunks = [await receive(subscription)]
    while chunks[-1].next_offset < 20:
        subscription.grant()
        chunks.append(await receive(subscription))
    told = {o: chunk.timestamp_us for chunk in chunks for o in range(chunk.first_offset, chunk.next_offset)}
    assert stored_us == [told[offset] for offset in (0, 6, 7, 19)]
    with pytest.raises(TransportError, match="record 20"):
        await transport.stored_us(partition=0, offset=20)

    for offset in (3, 7, 8, 20):
        good = Turn(offset, told[offset - 1])
        reading = await transport.compete(partition=0, owner=good)
        await active(good)
        await publish(transport, numbered(20, 21))
        assert (await receive(reading)).first_offset == offset
        await reading.close()
        other = Turn(offset, told[offset - 1] + 1000)
        reading = await transport.compete(partition=0, owner=other)
        with pytest.raises(OffsetGone, match="made anew") as gone:
            await receive(reading)
        assert (gone.value.wanted_offset, gone.value.first_offset) == (offset, 0)
        await reading.close()


async def test_nothing_is_delivered_before_the_owner_has_answered(transport: Transport) -> None:
    await publish(transport, numbered(0, 5))
    turn = Turn(2)
    turn.may_go_on.clear()
    subscription = await transport.compete(partition=0, owner=turn)
    await active(turn)
    waiting = asyncio.create_task(receive(subscription))
    assert not await subscription.caught_up(2)
    assert not waiting.done()
    turn.may_go_on.set()
    assert (await waiting).first_offset == 2


async def test_a_second_competitor_waits_until_the_first_has_closed(make: Make) -> None:
    transport, other = await make(), await make()
    await publish(transport, numbered(0, 10))
    turn, next_turn = Turn(), Turn(4)
    first = await transport.compete(partition=0, owner=turn)
    await active(turn)
    second = await other.compete(partition=0, owner=next_turn)
    waiting = asyncio.create_task(read(second, from_offset=4, up_to=11))
    assert await read(first, from_offset=0, up_to=10) == numbered(0, 10)
    assert await second.caught_up(10)
    assert next_turn.calls == []
    await first.close()
    await publish(transport, numbered(10, 11))
    assert await waiting == numbered(4, 11)
    assert turn.calls == ["activated"], "who closes is not asked to step down"
    assert next_turn.calls == ["activated"]


async def test_a_partition_is_handed_round_without_loss_or_repetition(make: Make) -> None:
    transport = await make()
    await publish(transport, *(numbered(n, n + 5) for n in range(0, 100, 5)))
    taken: list[bytes] = []
    turns = [Turn() for _ in range(5)]
    waiting = {turn: await (await make()).compete(partition=0, owner=turn, credit=2) for turn in turns}
    while waiting:
        subscription = waiting.pop(await first_active(waiting))
        target = len(taken) + 20 if waiting else 100
        while len(taken) < target:
            taken += (await receive(subscription)).bodies
            subscription.grant()
        for turn in waiting:
            turn.offset = len(taken)
        await subscription.close()
    assert taken == numbered(0, 100)


async def test_an_owner_that_fails_ends_the_subscription_and_the_next_takes_over(make: Make) -> None:
    transport = await make()
    await publish(transport, numbered(0, 3))
    turn, next_turn = Turn(), Turn()
    turn.failure = RuntimeError("no database")
    first = await transport.compete(partition=0, owner=turn)
    await active(turn)
    second = await transport.compete(partition=0, owner=next_turn)
    for _ in range(2):
        with pytest.raises(TransportError, match=r"the owner of partition 0 failed.*no database") as failed:
            await receive(first)
        assert failed.value.__cause__ is turn.failure
    assert await read(second, from_offset=0, up_to=3) == numbered(0, 3)


async def test_an_offset_that_the_stream_has_lost_is_gone_for_a_competitor_too(transport: Transport) -> None:
    await publish(transport, numbered(0, 10))
    subscription = await transport.compete(partition=0, owner=Turn(11))
    with pytest.raises(OffsetGone, match="made anew") as gone:
        await receive(subscription)
    assert gone.value.end_offset == 10


async def test_closing_cancels_an_activation_and_frees_the_partition(make: Make) -> None:
    transport = await make()
    stuck, next_turn = Turn(), Turn()
    stuck.may_go_on.clear()
    first = await transport.compete(partition=0, owner=stuck)
    await active(stuck)
    waiting = asyncio.create_task(receive(first))
    await transport.compete(partition=0, owner=next_turn)
    async with asyncio.timeout(PATIENCE_S):
        await first.close()
        await first.close()
        await next_turn.active.wait()
    with pytest.raises(TransportError):
        await waiting


COMPETE = """
import asyncio, sys
from pipeline.config import StreamConfig
from pipeline.transports import ReadFrom
from pipeline.transports.factory import open_transport

class Owner:
    async def activated(self):
        print("active", flush=True)
        return ReadFrom(0)

async def main(url, stream):
    transport = open_transport(StreamConfig(url=url, stream=stream, consumer="test"))
    subscription = await transport.compete(partition=0, owner=Owner())
    while True:
        await subscription.receive()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed_is_followed_within_two_seconds(make: Make, url: str) -> None:
    transport, turn = await make(), Turn()
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMPETE, url, transport.stream, stdout=subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await running.stdout.readline() == b"active\n"
        subscription = await transport.compete(partition=0, owner=turn)
        assert await subscription.caught_up(0)
        assert turn.calls == []
    finally:
        running.kill()
        await running.wait()
    async with asyncio.timeout(FOLLOWED_S):
        await turn.active.wait()


async def test_a_competitor_that_waits_can_be_closed(make: Make) -> None:
    transport = await make()
    turn, never = Turn(), Turn()
    await transport.compete(partition=0, owner=turn)
    await active(turn)
    second = await transport.compete(partition=0, owner=never)
    waiting = asyncio.create_task(receive(second))
    assert await second.caught_up(0)
    await second.close()
    with pytest.raises(TransportError):
        await waiting
    await transport.close()
    assert never.calls == []


async def test_a_competitor_has_no_more_chunks_than_its_credit(transport: Transport) -> None:
    publisher = await transport.publisher()
    for n in range(12):
        await publisher.publish(numbered(n, n + 1))
    subscription = await transport.compete(partition=0, owner=Turn(), credit=3)
    first = [await receive(subscription) for _ in range(3)]
    more = asyncio.create_task(receive(subscription))
    assert not await subscription.caught_up(first[-1].next_offset)
    assert not more.done()
    subscription.grant()
    fourth = await more
    for _ in range(3):
        subscription.grant()
    rest = await read(subscription, from_offset=fourth.next_offset, up_to=12)
    assert [body for chunk in (*first, fourth) for body in chunk.bodies] + rest[:-1] == numbered(0, 11)


async def test_partitions_have_owners_of_their_own(make: Make) -> None:
    transport = await make(partitions=2)
    bodies = of_orgs(0, 100)
    await publish(transport, bodies)
    parts = [[body for body in bodies if partition_of(org_key(body), 2) == number] for number in range(2)]
    turns = [Turn(), Turn(3)]
    ours = [await transport.compete(partition=number, owner=turns[number]) for number in range(2)]
    for number in (1, 0):
        offset, end = turns[number].offset, len(parts[number])
        assert await read(ours[number], from_offset=offset, up_to=end) == parts[number][offset:]
        assert ours[number].partition == number


async def test_another_group_has_turns_of_its_own(make: Make) -> None:
    transport, other = await make(), await make(consumer="archive")
    await publish(transport, numbered(0, 5))
    one = await transport.compete(partition=0, owner=Turn())
    two = await other.compete(partition=0, owner=Turn(1))
    assert await read(one, from_offset=0, up_to=5) == numbered(0, 5)
    assert await read(two, from_offset=1, up_to=5) == numbered(1, 5)
