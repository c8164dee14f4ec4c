"""The pages of metrics of all our processes, without the processes."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import generate_latest

from api import metrics as api_metrics
from api.access.turns import Turns
from api.reading.pool import Pool
from pipeline import metrics
from pipeline.collector import in_work
from pipeline.collector import metrics as collector_metrics
from pipeline.common.connect import AsyncConnection


class FakeSpool:
    """What metrics say of a spool."""

    bytes = bytes_max = records = records_lost = records_too_large = 0
    oldest_at = None


async def _no_connection() -> AsyncConnection:
    raise NotImplementedError


def text() -> str:
    """What worker, API and collector show of all that they can show."""
    api = api_metrics.Metrics()
    api.watch(Pool(_no_connection, size=1, timeout_s=1), Turns(each=1, pool_size=1), stream_max_age_s=1)
    api.expect([("GET", "/x")])
    now = datetime.now(UTC)
    facts = api_metrics.Facts(watermarks={0: now}, open_exports={"pending": 0})
    collector = collector_metrics.Metrics()
    collector.show(in_work.InWork(1), FakeSpool())
    pages = api.exposition(facts, now) + generate_latest(metrics.REGISTRY) + collector.exposition()
    return pages.decode()
