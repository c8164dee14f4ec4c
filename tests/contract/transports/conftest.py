"""Each test of this folder runs with the embedded log and with a real RabbitMQ."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.config import StreamConfig
from pipeline.transports import Transport
from pipeline.transports.factory import open_transport
from tests.support.transports import Make


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
