"""The promises of every transport: offsets, credit, lag, retention, and the end."""

import asyncio

import pytest

from pipeline.transports import OffsetGone, Transport, TransportError
from tests.support.transports import Make, numbered, publish, read, receive, truncate


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


async def test_the_first_offset_is_known_with_the_lag(transport: Transport) -> None:
    await publish(transport, numbered(0, 3))
    subscription = await transport.subscribe(partition=0, offset=0)
    assert subscription.first_offset is None
    await subscription.offset_lag(0)
    assert subscription.first_offset == 0


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
