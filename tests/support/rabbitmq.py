"""What the tests of the RabbitMQ transport share: publish, read, and read until the connection fails."""

import asyncio
import base64
import json
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypedDict

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


@contextmanager
def broker_user(rabbitmq: RabbitMQ, *, configure: str, write: str, read: str) -> Iterator[str]:
    """A user with these rights on the vhost /, each a regular expression; yields the user's stream URL."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    _manage(rabbitmq, "PUT", f"/api/users/{name}", {"password": "secret", "tags": ""})
    try:
        rights = {"configure": configure, "write": write, "read": read}
        _manage(rabbitmq, "PUT", f"/api/permissions/%2F/{name}", rights)
        yield f"rabbitmq-stream://{name}:secret@127.0.0.1:{rabbitmq.ports['stream']}/%2F"
    finally:
        _manage(rabbitmq, "DELETE", f"/api/users/{name}")


def _manage(rabbitmq: RabbitMQ, method: str, path: str, body: dict[str, Any] | None = None) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{rabbitmq.ports['management']}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S):
        pass


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
