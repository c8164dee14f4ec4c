"""What the tests of the RabbitMQ transport share: publish, read, and read until the connection fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypedDict

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.transports import Chunk, Subscription, TransportError
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.publisher import Framing
from pipeline.transports.rabbitmq.transport import RabbitMQTransport

PATIENCE_S = 120
Make = Callable[..., RabbitMQTransport]


class Settings(TypedDict, total=False):
    """What a test may set of a transport."""

    ca_file: str
    max_age_s: float
    max_bytes: int
    heartbeat_s: int
    address: str


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
