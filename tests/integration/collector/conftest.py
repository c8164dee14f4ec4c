"""A broker, a database and a stream of the test's own."""

import uuid

import pytest

from deploy.local.servers import RabbitMQ
from sql import migrate


@pytest.fixture
def env(rabbitmq: RabbitMQ, timescale: str) -> dict[str, str]:
    """The settings that collector, worker and API share."""
    migrate.upgrade(timescale)
    return {
        **rabbitmq.env,
        "DATABASE_URL": timescale,
        "RABBITMQ_STREAM": f"collector.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
        "COLLECTOR_RATE_LIMIT": "0",
    }
