"""A receiver for each protocol, and a deployment of all four processes that sends it traces."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from deploy.local.servers import RabbitMQ
from tests.support import otlp_receiver
from tests.support.otlp_receiver import Receiver


@pytest.fixture(params=["http/protobuf", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def receiver(protocol: str) -> Iterator[Receiver]:
    with (otlp_receiver.over_grpc if protocol == "grpc" else otlp_receiver.over_http)() as found:
        yield found


@pytest.fixture
def env(rabbitmq: RabbitMQ, migrated_timescale: str) -> dict[str, str]:
    """The settings that all processes share, without traces."""
    return {
        **rabbitmq.env,
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_STREAM": f"traces.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
