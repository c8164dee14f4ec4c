"""Transports of one super stream of the test's own, and a proxy before the broker."""

import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.config import StreamConfig
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support.super_streams import Make
from tests.support.tcp_proxy import TcpProxy


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
