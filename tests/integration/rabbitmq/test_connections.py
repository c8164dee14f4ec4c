"""The RabbitMQ transport against a real broker: addresses, credentials, TLS, and how a connection dies."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from deploy.local.ports import free_port
from deploy.local.servers import RabbitMQ
from pipeline.transports import OffsetGone, TransportError
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.conftest import missing
from tests.support.rabbitmq import PATIENCE_S, Make, numbered, publish, read, receive, received_until_failure
from tests.support.tcp_proxy import TcpProxy


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
