"""The pages of metrics of all our processes, without the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from unittest.mock import Mock, patch

from prometheus_client import CollectorRegistry, generate_latest

from api import metrics as api_metrics
from api.access.turns import Turns
from api.alerts import metrics as alerts_metrics
from api.notices.metrics import NoticeMetrics
from api.reading.pool import Pool
from pipeline import metrics
from pipeline.collector import in_work
from pipeline.collector import metrics as collector_metrics
from pipeline.common import traces
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
    alerts = CollectorRegistry()
    alerts_metrics.Metrics(alerts)
    NoticeMetrics(alerts)
    with _traced():
        pages = api.exposition(facts, now) + generate_latest(metrics.REGISTRY) + collector.exposition()
    pages += generate_latest(alerts)
    return pages.decode()


@contextmanager
def _traced() -> Iterator[None]:
    """Tracing is on meanwhile, as far as metrics are concerned."""
    tracer = Mock(counts=lambda: {"exported": 0})
    with patch.object(traces, "_tracer", tracer):
        yield
