"""Transports of one stream of the test's own, and a proxy before the broker."""

import uuid
from collections.abc import AsyncIterator
from typing import Unpack
from urllib.parse import urlsplit

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.config import StreamConfig
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support.rabbitmq import Make, Settings
from tests.support.tcp_proxy import TcpProxy


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
