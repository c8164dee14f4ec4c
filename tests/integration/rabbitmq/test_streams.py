"""The RabbitMQ transport against a real broker: streams declared, cut by retention, deleted, made anew."""

import asyncio
from contextlib import suppress

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.transports import OffsetGone, TransportError
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support.rabbitmq import (
    PATIENCE_S,
    Make,
    numbered,
    plain_connection,
    publish,
    read,
    receive,
    received_until_failure,
)


async def test_a_missing_stream_is_declared_with_its_retention(rabbitmq: RabbitMQ, make: Make) -> None:
    transport = make(max_age_s=3600.0, max_bytes=10_000_000)
    await transport.open()
    queue = await asyncio.to_thread(rabbitmq.management, f"/api/queues/%2F/{transport.stream}")
    assert queue["type"] == "stream"
    assert queue["arguments"]["x-max-age"] == "3600s"
    assert queue["arguments"]["x-max-length-bytes"] == 10_000_000
    assert queue["arguments"]["x-stream-max-segment-size-bytes"] == 1_250_000


async def test_a_stream_declared_otherwise_is_taken_as_it_is(make: Make) -> None:
    await make(max_age_s=3600.0).open()
    other = make(max_age_s=7200.0)
    await other.open()
    await other.ping()


async def test_chunks_of_the_broker_itself_do_not_count_as_lag(
    rabbitmq: RabbitMQ, transport: RabbitMQTransport
) -> None:
    """Another consumer's stored offset takes an offset of the stream and is never delivered."""

    async def store_offset() -> None:
        async with plain_connection(rabbitmq) as connection:
            before = (await connection.stats(transport.stream))["committed_chunk_id"]
            await connection.store_offset(stream=transport.stream, reference="other", offset=1)
            async with asyncio.timeout(PATIENCE_S):
                while (await connection.stats(transport.stream))["committed_chunk_id"] == before:
                    pass

    subscription = await transport.subscribe(partition=0, offset=0)
    await store_offset()
    assert [await subscription.caught_up(0) for _ in range(3)] == [False, True, True]
    await publish(transport, numbered(0, 5))
    assert await read(subscription, 5) == numbered(0, 5)
    next_offset = 6
    assert await subscription.caught_up(next_offset)
    await store_offset()
    assert [await subscription.caught_up(next_offset) for _ in range(3)] == [False, True, True]
    late = await transport.subscribe(partition=0, offset=next_offset)
    assert [await late.caught_up(next_offset) for _ in range(3)] == [False, True, True]
    await publish(transport, numbered(5, 9))
    for one in (subscription, late):
        assert not await one.caught_up(next_offset)
        assert await read(one, 4) == numbered(5, 9)
        assert await one.caught_up(11)


async def test_retention_that_overtakes_a_reader_ends_its_subscription(make: Make) -> None:
    transport = make(max_bytes=512 * 1024)
    await transport.open()
    publisher = await transport.publisher()
    await publisher.publish([b"x" * 1000] * 10)
    subscription = await transport.subscribe(partition=0, offset=0, credit=1)
    first = await receive(subscription)
    for _ in range(100):
        await publisher.publish([b"x" * 1000] * 50)
    subscription.grant()

    async def ask_on() -> None:
        with suppress(TransportError):
            while True:
                await asyncio.sleep(0.2)
                await subscription.offset_lag(first.next_offset)

    # Sometimes the broker's reader meets the deletion half way and stays silent: then the questions of
    # lag, which a worker asks at each flush, find it.
    asking = asyncio.create_task(ask_on())
    await received_until_failure(subscription, "retention overtook")
    await asking
    again = await transport.subscribe(partition=0, offset=first.next_offset)
    with pytest.raises(OffsetGone):
        await receive(again)


async def test_a_stream_made_anew_does_not_pass_for_the_old_one(
    rabbitmq: RabbitMQ, make: Make, transport: RabbitMQTransport
) -> None:
    await publish(transport, numbered(0, 20))
    subscription = await transport.subscribe(partition=0, offset=0)
    await read(subscription, 20)
    async with plain_connection(rabbitmq) as connection:
        await connection.delete_stream(transport.stream)
    await received_until_failure(subscription, "was deleted or has moved")
    with pytest.raises(TransportError):
        await transport.ping()
    await make().open()
    await publish(transport, numbered(0, 5))
    again = await transport.subscribe(partition=0, offset=20)
    with pytest.raises(OffsetGone, match="made anew"):
        await receive(again)


async def test_a_publisher_of_a_deleted_stream_is_told(
    rabbitmq: RabbitMQ, transport: RabbitMQTransport
) -> None:
    publisher = await transport.publisher()
    async with plain_connection(rabbitmq) as connection:
        await connection.delete_stream(transport.stream)

    async def publish_on() -> None:
        while True:
            await publisher.publish(numbered(0, 1))

    with pytest.raises(TransportError):
        await asyncio.wait_for(publish_on(), PATIENCE_S)
