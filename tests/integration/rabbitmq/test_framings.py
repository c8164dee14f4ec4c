"""The RabbitMQ transport against a real broker: records in every framing and batches that lie."""

import asyncio
import random
import struct

import pika
import pytest

from deploy.local.servers import RabbitMQ
from pipeline.transports.rabbitmq.batches import gzip_batch
from pipeline.transports.rabbitmq.publisher import Framing
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support.rabbitmq import PATIENCE_S, Make, numbered, plain_connection, publish, read, receive


@pytest.mark.parametrize("framing", ["raw", "amqp", "gzip"])
async def test_every_framing_gives_the_same_bodies(transport: RabbitMQTransport, framing: Framing) -> None:
    bodies = numbered(0, 3000)
    await publish(transport, bodies, framing)
    for offset in (0, 1, 1234, 2999):
        subscription = await transport.subscribe(partition=0, offset=offset)
        assert await read(subscription, 3000 - offset) == bodies[offset:]
        assert await subscription.caught_up(3000)
        await subscription.close()


async def test_framings_mixed_in_one_stream_keep_their_order(transport: RabbitMQTransport) -> None:
    framings: list[Framing] = ["gzip", "raw", "amqp", "gzip", "raw"]
    for number, framing in enumerate(framings):
        await publish(transport, numbered(number * 100, number * 100 + 100), framing)
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, 500) == numbered(0, 500)


async def test_messages_of_amqp_091_clients_are_read(rabbitmq: RabbitMQ, make: Make) -> None:
    transport = make()
    bodies = [*numbered(0, 300), b"", b"y" * 70_000]

    def publish_with_pika() -> None:
        connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.amqp_url))
        channel = connection.channel()
        channel.queue_declare(transport.stream, durable=True, arguments={"x-queue-type": "stream"})
        channel.confirm_delivery()
        for number, body in enumerate(bodies):
            properties = pika.BasicProperties(
                content_type="application/json",
                delivery_mode=2,
                headers={"tenant": "a", "number": number, "nested": {"list": [1, "b", None]}},
                message_id=str(number),
                timestamp=1_700_000_000,
            )
            channel.basic_publish("", transport.stream, body, properties if number % 2 else None)
        connection.close()

    await asyncio.to_thread(publish_with_pika)
    await transport.open()
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, len(bodies)) == bodies


def batch_frame(stored: bytes, *, codec: int, records: int, unpacked_bytes: int) -> bytes:
    entry = struct.pack(">BHII", 0x80 | codec << 4, records, unpacked_bytes, len(stored)) + stored
    payload = struct.pack(">BIQ", 0, 1, 1) + entry
    return struct.pack(">IHH", 4 + len(payload), 0x0002, 1) + payload


async def publish_batch(rabbitmq: RabbitMQ, stream: str, frame: bytes) -> None:
    async with plain_connection(rabbitmq) as connection:
        confirmed = asyncio.Event()
        connection.on_confirm = lambda _: confirmed.set()
        await connection.declare_publisher(stream=stream, reference=None, publisher_id=0)
        await connection.write(frame)
        await asyncio.wait_for(confirmed.wait(), PATIENCE_S)


@pytest.mark.parametrize("codec", [1, 4, 7])
async def test_a_batch_that_cannot_be_undone_is_delivered_as_unreadable_and_stops_nothing(
    rabbitmq: RabbitMQ, transport: RabbitMQTransport, codec: int
) -> None:
    frame = batch_frame(b"garbage", codec=codec, records=3, unpacked_bytes=100)
    await publish_batch(rabbitmq, transport.stream, frame)
    await publish(transport, numbered(0, 2))
    for offset in (0, 2):
        subscription = await transport.subscribe(partition=0, offset=offset)
        chunk = await receive(subscription)
        assert (chunk.first_offset, list(chunk.bodies)) == (offset, [])
        (run,) = chunk.unreadable
        assert (run.first_offset, run.records, run.stored.body) == (offset, 3 - offset, b"garbage")
        assert await read(subscription, 2) == numbered(0, 2)
        assert await subscription.caught_up(5)


async def test_a_chunk_that_unpacks_to_much_comes_in_parts_that_need_credit(
    rabbitmq: RabbitMQ, transport: RabbitMQTransport
) -> None:
    bodies = [b'{"n": %d, "text": "%s"}' % (n, b"x" * 1000) for n in range(30_000)]
    entries, count = b"", 0
    for first in range(0, len(bodies), 3000):
        unpacked_bytes, stored = gzip_batch(bodies[first : first + 3000])
        entries += struct.pack(">QBHII", count + 1, 0x90, 3000, unpacked_bytes, len(stored)) + stored
        count += 1
    payload = struct.pack(">BI", 0, count) + entries
    await publish_batch(
        rabbitmq, transport.stream, struct.pack(">IHH", 4 + len(payload), 0x0002, 1) + payload
    )
    subscription = await transport.subscribe(partition=0, offset=0, credit=2)
    parts = [await receive(subscription) for _ in range(2)]
    waiting = asyncio.create_task(receive(subscription))
    assert not await subscription.caught_up(parts[-1].next_offset)
    assert not waiting.done(), "its credit is used up"
    for _ in range(2):
        subscription.grant()
    parts.append(await waiting)
    subscription.grant()
    rest = await read(subscription, len(bodies) - sum(len(part.bodies) for part in parts))
    assert [bytes(body) for part in parts for body in part.bodies] + rest == bodies
    assert await subscription.caught_up(len(bodies))
    await publish(transport, numbered(0, 1))
    assert await read(subscription, 1) == numbered(0, 1)
    again = await transport.subscribe(partition=0, offset=20_001)
    assert await read(again, 9_999) == bodies[20_001:]


async def test_an_uncompressed_batch_is_read(rabbitmq: RabbitMQ, transport: RabbitMQTransport) -> None:
    plain = b"".join(len(body).to_bytes(4, "big") + body for body in numbered(0, 3))
    frame = batch_frame(plain, codec=0, records=3, unpacked_bytes=len(plain))
    await publish_batch(rabbitmq, transport.stream, frame)
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, 3) == numbered(0, 3)


@pytest.mark.parametrize("framing", ["raw", "amqp", "gzip"])
async def test_bodies_that_will_not_shrink_fit_in_a_frame(
    transport: RabbitMQTransport, framing: Framing
) -> None:
    bodies = [random.Random(seed).randbytes(size) for seed, size in enumerate([1_046_528, 200_000, 200_000])]
    await publish(transport, bodies, framing)
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, 3) == bodies


async def test_a_body_beyond_the_frame_size_is_refused(transport: RabbitMQTransport) -> None:
    publisher = await transport.publisher()
    with pytest.raises(ValueError, match="the stream takes at most"):
        await publisher.publish([*numbered(0, 100), b"x" * 2**20])
    await publisher.publish(numbered(0, 1))
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, 1) == numbered(0, 1)
