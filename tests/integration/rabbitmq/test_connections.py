"""The RabbitMQ transport against a real broker: every framing, and every way a connection dies."""

import asyncio
import random
import ssl
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import urlsplit

import pika
import pytest

from deploy.local.ports import free_port
from deploy.local.servers import RabbitMQ
from pipeline.config import StreamConfig
from pipeline.transports import Chunk, OffsetGone, Subscription, TransportError
from pipeline.transports.rabbitmq.batches import gzip_batch
from pipeline.transports.rabbitmq.connection import DeliveredChunk, StreamConnection
from pipeline.transports.rabbitmq.publisher import Framing
from pipeline.transports.rabbitmq.subscription import RabbitMQSubscription
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.conftest import missing
from tests.support.tcp_proxy import TcpProxy

PATIENCE_S = 120
Make = Callable[..., RabbitMQTransport]


class Settings(TypedDict, total=False):
    """What a test may set of a transport."""

    ca_file: str
    max_age_s: float
    max_bytes: int
    heartbeat_s: int
    address: str


@pytest.fixture
async def make(rabbitmq: RabbitMQ) -> AsyncIterator[Make]:
    """Make transports of one stream of the test's own; `port` goes through a proxy."""
    stream = f"test.{uuid.uuid4().hex}"
    made: list[RabbitMQTransport] = []

    def make(
        *, port: int | None = None, url: str | None = None, **settings: Unpack[Settings]
    ) -> RabbitMQTransport:
        if url is None:
            url = f"rabbitmq-stream://guest:guest@127.0.0.1:{port or urlsplit(rabbitmq.url).port}/%2F"
        config = StreamConfig(url=url, stream=stream, consumer="test", **settings)
        made.append(RabbitMQTransport(config))
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
async def transport(make: Make) -> RabbitMQTransport:
    transport = make()
    await transport.open()
    return transport


@pytest.fixture
async def proxy(rabbitmq: RabbitMQ) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", rabbitmq.ports["stream"]) as proxy:
        yield proxy


@asynccontextmanager
async def plain_connection(rabbitmq: RabbitMQ) -> AsyncIterator[StreamConnection]:
    """A connection for what the transport has no method for."""
    connection = StreamConnection(
        "127.0.0.1", rabbitmq.ports["stream"], tls=None, heartbeat_s=10, name="test"
    )
    await connection.dial(vhost="/", user="guest", password="guest")
    try:
        yield connection
    finally:
        await connection.close()


def numbered(first: int, after: int) -> list[bytes]:
    return [b'{"n": %d, "text": "%s"}' % (n, b"x" * (n % 300)) for n in range(first, after)]


async def publish(transport: RabbitMQTransport, bodies: list[bytes], framing: Framing = "raw") -> None:
    publisher = await transport.publisher(framing)
    await publisher.publish(bodies)
    await publisher.close()


async def receive(subscription: Subscription) -> Chunk:
    async with asyncio.timeout(PATIENCE_S):
        return await subscription.receive()


async def read(subscription: Subscription, count: int) -> list[bytes]:
    bodies: list[bytes] = []
    while len(bodies) < count:
        bodies += (await receive(subscription)).bodies
        subscription.grant()
    return bodies


async def received_until_failure(subscription: Subscription, match: str) -> list[bytes]:
    bodies: list[bytes] = []

    async def read_on() -> None:
        while True:
            bodies.extend((await receive(subscription)).bodies)
            subscription.grant()

    with pytest.raises(TransportError, match=match):
        await read_on()
    with pytest.raises(TransportError, match=match):
        await receive(subscription)
    return bodies


async def test_the_amqp_port_where_the_stream_port_belongs_is_named_as_that_mistake(
    rabbitmq: RabbitMQ, make: Make
) -> None:
    transport = make(port=rabbitmq.ports["amqp"])
    with pytest.raises(TransportError, match=r"an AMQP port \(5672\) where the stream port \(5552\) belongs"):
        await transport.open()


# --- several addresses ---------------------------------------------------------------------------


async def test_the_hosts_of_a_url_are_tried_in_turn_by_readers_and_publishers(
    rabbitmq: RabbitMQ, make: Make
) -> None:
    dead, port = free_port(), rabbitmq.ports["stream"]
    url = f"rabbitmq-stream://guest:guest@127.0.0.1:{dead},[::1]:{dead},127.0.0.1:{port}/%2F"
    transport = make(url=url)
    await transport.open()
    await publish(transport, numbered(0, 10))
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, 10) == numbered(0, 10)
    nobody = make(url=f"rabbitmq-stream://guest:guest@127.0.0.1:{dead},[::1]:{dead}/%2F")
    with pytest.raises(TransportError, match=f"127.0.0.1:{dead} .*::1:{dead} "):
        await nobody.open()


@pytest.mark.parametrize("address", ["advertised", "given"])
async def test_only_the_given_address_is_dialled_where_the_advertised_one_cannot_be_reached(
    make: Make, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """As behind a load balancer: the first looks land on a node that does not lead the stream."""
    looks = 0

    async def leader(connection: StreamConnection, stream: str) -> tuple[str, int]:
        nonlocal looks
        looks += 1
        return connection.advertised if looks > 8 else ("no-such-host.invalid", 5552)

    transport = make(port=proxy.port, address=address)
    await transport.open()
    await publish(transport, numbered(0, 3))
    monkeypatch.setattr(StreamConnection, "leader", leader)
    if address == "advertised":
        with pytest.raises(TransportError, match="no-such-host"):
            await transport.subscribe(partition=0, offset=0)
    else:
        subscription = await transport.subscribe(partition=0, offset=0)
        assert await read(subscription, 3) == numbered(0, 3)


# --- framings ------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="does not fit"):
        await publisher.publish([*numbered(0, 100), b"x" * 2**20])
    await publisher.publish(numbered(0, 1))
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await read(subscription, 1) == numbered(0, 1)


# --- what the broker keeps -------------------------------------------------------------------------


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


# --- connections that die --------------------------------------------------------------------------


async def test_a_cut_connection_ends_the_subscription_and_a_new_one_goes_on(
    make: Make, proxy: TcpProxy
) -> None:
    transport = make(port=proxy.port)
    await transport.open()
    await publish(transport, numbered(0, 10))
    subscription = await transport.subscribe(partition=0, offset=0)
    bodies = await read(subscription, 10)
    waiting = asyncio.create_task(receive(subscription))
    assert await subscription.caught_up(10)
    proxy.cut()
    with pytest.raises(TransportError, match="was cut"):
        await waiting
    with pytest.raises(TransportError, match="was cut"):
        await subscription.caught_up(10)
    await publish(transport, numbered(10, 20))
    again = await transport.subscribe(partition=0, offset=10)
    assert bodies + await read(again, 10) == numbered(0, 20)
    await transport.ping()


async def test_a_frozen_connection_is_noticed_by_its_silence(make: Make, proxy: TcpProxy) -> None:
    transport = make(port=proxy.port, heartbeat_s=3)
    await transport.open()
    subscription = await transport.subscribe(partition=0, offset=0)
    publisher = await transport.publisher()
    assert await subscription.caught_up(0)
    proxy.freeze()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(TransportError, match="silent for 6 s"):
            await subscription.receive()
        with pytest.raises(TransportError):
            await publisher.publish(numbered(0, 1))
    await subscription.close()


async def test_an_idle_connection_lives_on_heartbeats(make: Make, proxy: TcpProxy) -> None:
    transport = make(port=proxy.port, heartbeat_s=3)
    await transport.open()
    subscription = await transport.subscribe(partition=0, offset=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await subscription.receive()
    await publish(transport, numbered(0, 1))
    assert await read(subscription, 1) == numbered(0, 1)


async def test_a_subscription_without_credit_lives_on_heartbeats(make: Make) -> None:
    transport = make(heartbeat_s=3)
    await transport.open()
    for n in range(4):
        await publish(transport, numbered(n, n + 1))
    subscription = await transport.subscribe(partition=0, offset=0, credit=1)
    first = await receive(subscription)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await subscription.receive()
    subscription.grant()
    assert [*first.bodies, *await read(subscription, 4 - len(first.bodies))] == numbered(0, 4)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x06\x00\x08\x00\x01\x00\x50",  # a delivery that ends in its header
        b"\x00\x00\x00\x04\x00\x08\x00\x02",  # a delivery of a version that was not agreed on
        b"\x00\x00\x00\x04\x0f\xff\x00\x01",  # a command that does not exist
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
    ],
    ids=["short", "version", "unknown", "empty", "endless"],
)
async def test_a_frame_that_cannot_be_decoded_ends_the_subscription(
    make: Make, proxy: TcpProxy, frame: bytes
) -> None:
    transport = make(port=proxy.port)
    await transport.open()
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await subscription.caught_up(0)
    proxy.inject(frame)
    with pytest.raises(TransportError, match="could not be handled"):
        await receive(subscription)


async def test_bytes_changed_on_the_way_are_caught_by_the_checksum(make: Make, proxy: TcpProxy) -> None:
    transport = make(port=proxy.port)
    await transport.open()
    await publish(transport, [b'{"costEstimateCents": 1000}'])
    proxy.replace = (b": 1000}", b": 9000}")
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await received_until_failure(subscription, "checksum does not hold") == []


async def test_the_leader_is_followed_to_the_address_it_advertises(
    rabbitmq: RabbitMQ, make: Make, proxy: TcpProxy
) -> None:
    """The node behind the URL calls itself by another port, so it is not the leader."""
    port = str(rabbitmq.ports["stream"]).encode()
    transport = make(port=proxy.port)
    await transport.open()
    proxy.replace = (b"advertised_port\x00\x05" + port, b"advertised_port\x00\x0511111")
    subscription = await transport.subscribe(partition=0, offset=0)
    proxy.cut()
    await publish(make(), numbered(0, 1))
    assert await read(subscription, 1) == numbered(0, 1)


async def test_a_leader_that_cannot_be_reached_is_named(
    rabbitmq: RabbitMQ, make: Make, proxy: TcpProxy
) -> None:
    transport = make(port=proxy.port)
    await transport.open()
    port = rabbitmq.ports["stream"]
    proxy.replace = (b"127.0.0.1" + port.to_bytes(4, "big"), b"127.0.0.1" + (1).to_bytes(4, "big"))
    with pytest.raises(TransportError, match=r"leader of stream .* cannot be reached: 127\.0\.0\.1:1"):
        await transport.subscribe(partition=0, offset=0)


async def test_a_killed_broker_loses_nothing_that_it_confirmed(
    rabbitmq: RabbitMQ, make: Make, transport: RabbitMQTransport
) -> None:
    publisher = await transport.publisher()
    await publisher.publish(numbered(0, 1000))
    subscription = await transport.subscribe(partition=0, offset=0)
    bodies = await read(subscription, 1000)
    confirmed = 1000

    async def publish_on() -> None:
        nonlocal confirmed
        while True:
            await publisher.publish(numbered(confirmed, confirmed + 10))
            confirmed += 10

    publishing = asyncio.create_task(publish_on())
    killing = asyncio.create_task(asyncio.to_thread(rabbitmq.kill))
    bodies += await received_until_failure(subscription, "was cut|did not answer|was silent")
    with pytest.raises(TransportError):
        await publishing
    await killing
    with pytest.raises(TransportError):
        await make().open()
    await asyncio.to_thread(rabbitmq.start)

    async with asyncio.timeout(PATIENCE_S):
        while True:  # the stream's leader comes back some seconds after the broker does
            try:
                again = await transport.subscribe(partition=0, offset=len(bodies))
                break
            except OffsetGone:
                raise
            except TransportError:
                await asyncio.sleep(0.1)
    await publish(transport, [b"end"])
    while bodies[-1] != b"end":
        bodies += (await receive(again)).bodies
        again.grant()
    # What was under way when it died may be there or not.
    assert bodies[:confirmed] == numbered(0, confirmed)
    assert bodies[confirmed:-1] == numbered(confirmed, len(bodies) - 1)
    assert len(bodies) - 1 - confirmed <= 10


# --- who may connect -------------------------------------------------------------------------------


async def test_a_wrong_password_is_named_and_not_shown(rabbitmq: RabbitMQ, make: Make) -> None:
    transport = make(url=rabbitmq.url.replace("guest:guest", "guest:wr0ng%40"))
    with pytest.raises(TransportError, match=r"user 'guest'.*authentication failure") as refused:
        await transport.open()
    assert "wr0ng" not in str(refused.value)


async def test_a_vhost_that_does_not_exist_is_named(rabbitmq: RabbitMQ, make: Make) -> None:
    transport = make(url=rabbitmq.url.replace("%2F", "elsewhere"))
    with pytest.raises(TransportError, match="vhost 'elsewhere'"):
        await transport.open()


async def test_a_port_where_nobody_listens_is_a_transport_error(make: Make) -> None:
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1 "):
        await make(port=1).open()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        f" -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -out {certificate} -keyout {key}"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        missing("openssl is not installed")
    return certificate, key


async def test_tls_is_spoken_and_the_certificate_is_checked(
    rabbitmq: RabbitMQ, make: Make, certificate: tuple[Path, Path]
) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*certificate)
    async with TcpProxy("127.0.0.1", rabbitmq.ports["stream"], tls=server_side) as proxy:
        url = f"rabbitmq-stream+tls://guest:guest@127.0.0.1:{proxy.port}/"
        trusting = make(url=url, ca_file=str(certificate[0]))
        await trusting.open()
        await publish(trusting, numbered(0, 3000))
        subscription = await trusting.subscribe(partition=0, offset=0)
        assert await read(subscription, 3000) == numbered(0, 3000)
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            await make(url=url).open()
        await trusting.close()


def test_a_ca_file_that_is_missing_is_a_wrong_configuration(make: Make) -> None:
    with pytest.raises(ValueError, match="CA file"):
        make(url="rabbitmq-stream+tls://host/", ca_file="/missing.pem")


@pytest.mark.parametrize("url", ["amqp://host", "rabbitmq-stream://", "rabbitmq-stream:///vhost"])
def test_only_urls_of_streams_are_accepted(make: Make, url: str) -> None:
    with pytest.raises(ValueError, match="rabbitmq-stream://"):
        make(url=url)


async def test_a_grant_that_no_chunk_earned_is_a_fault_of_the_caller(transport: RabbitMQTransport) -> None:
    subscription = await transport.subscribe(partition=0, offset=0)
    with pytest.raises(AssertionError):
        subscription.grant()


# --- what only a cluster does ------------------------------------------------------------------------


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
