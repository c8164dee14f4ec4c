"""Counting events by dimension as a worker does, with small caps, so that `other` is in play."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from pipeline.core.rules import Rules
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, mix, oracle_events

NOW = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
RULES = Rules(
    clients_per_org_hour_max=4,
    models_per_org_hour_max=4,
    dimensions=mix.DIMENSIONS,
    values_per_org_hour_max=4,
)
NAMES = [one.name for one in mix.DIMENSIONS]


async def count(
    url: str, bodies: list[bytes], rules: Rules, *, stream: str = books.STREAM, at: datetime = NOW
) -> None:
    """Count bodies after those that the stream has brought before. The broker has them since ``at``."""
    at_us = int(at.timestamp()) * 1_000_000
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, rules, stream=stream)
    first = ledger.received_offset
    for chunk in books.chunks_of(bodies, size=500, broker_us=at_us, first_offset=first):
        ledger.ingest(**chunk)
    await books.flush(sink, claim, ledger, now_us=at_us)
    await sink.close()


def events(*, hours: float, count: int = 60) -> list[bytes]:
    """Events of one org within the hour before ``hours`` after `NOW`, of three teams."""
    last = NOW + timedelta(hours=hours)
    times = [last - timedelta(minutes=60 * i / count) for i in range(count)]
    return [
        oracle_events.body(
            uuid.uuid4().int,
            int(at.timestamp() * 1_000_000),
            metadata={"team": ("search", "ads", "")[i % 3]},
            eventId=str(uuid.uuid4()),
        )
        for i, at in enumerate(times)
    ]
