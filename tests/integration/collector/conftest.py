"""A broker, a database and a stream of the test's own."""

import uuid

import pytest

from deploy.local.servers import RabbitMQ


@pytest.fixture
def env(rabbitmq: RabbitMQ, migrated_timescale: str) -> dict[str, str]:
    """The settings that collector, worker and API share."""
    return {
        **rabbitmq.env,
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_STREAM": f"collector.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
        "COLLECTOR_RATE_LIMIT": "0",
    }
