"""What the tests of exports share: the months that they order, and a runner in this process."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry

from tests.support.api_facts import MODELS, NOW

STRANGER_ORG = uuid.UUID("aaaaaaaa-0000-4000-8000-0000000000ee")
OCTOBER = {"start": "2026-10-01T00:00:00Z", "end": "2026-11-01T00:00:00Z"}
RECENT = {"start": "2026-10-20T05:00:00Z", "end": "2026-11-10T12:00:00Z"}
ORDERS = [
    {"timeRange": RECENT, "granularity": "hourly", "format": "csv"},
    {"timeRange": RECENT, "granularity": "daily", "format": "csv-excel"},
    {"timeRange": OCTOBER, "granularity": "daily", "format": "csv", "models": [str(MODELS[0])]},
    {"timeRange": RECENT, "granularity": "monthly", "format": "csv"},
    {"timeRange": RECENT, "granularity": "daily", "format": "focus-1.2"},
    {"timeRange": RECENT, "granularity": "monthly", "format": "focus-1.2"},
    {"timeRange": RECENT, "granularity": "hourly", "format": "focus-1.3"},
    {"timeRange": RECENT, "granularity": "hourly", "format": "parquet"},
    {"timeRange": {**OCTOBER, "start": "2025-11-15T00:00:00Z"}, "granularity": "daily", "format": "parquet"},
    {"timeRange": RECENT, "granularity": "weekly", "format": "csv", "groupBy": "model"},
    {"timeRange": RECENT, "granularity": "weekly", "format": "focus-1.3", "timeZone": "America/Los_Angeles"},
    {"timeRange": RECENT, "granularity": "daily", "format": "parquet", "timeZone": "Pacific/Kiritimati"},
]


def server_runner(env: Mapping[str, str], now: datetime, registry: CollectorRegistry | None = None) -> Any:
    """A runner as the API has one. ``registry`` is where it counts its attempts."""
    import api.config
    from api.app import export_runner, export_store
    from api.metrics import Exports

    config = api.config.load(env)
    store = export_store(config)
    assert store is not None
    return export_runner(config, store, lambda: now, Exports(registry or CollectorRegistry()))


def attempts(registry: CollectorRegistry) -> dict[str, float]:
    """How many attempts have ended in each way, without those in which none has."""
    counted = {
        sample.labels["outcome"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "analytics_export_attempts_total"
    }
    return {outcome: count for outcome, count in counted.items() if count}


def queued(url: str, org: uuid.UUID, **columns: Any) -> uuid.UUID:
    """A job that nobody has made yet, as an earlier version would have stored it."""
    job_id = uuid.uuid4()
    row = {
        "job_id": job_id, "org_id": org, "status": "pending", "format": "csv", "granularity": "daily",
        "range_start": datetime(2026, 11, 1, tzinfo=UTC), "range_end": datetime(2026, 11, 9, tzinfo=UTC),
        "models": [], "created_by": "x", "created_at": NOW - timedelta(days=999), "attempts": 0, **columns,
    }  # fmt: skip
    names, values = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    with psycopg.connect(url) as connection:
        connection.execute(f"INSERT INTO analytics.export_jobs ({names}) VALUES ({values})".encode(), row)
    return job_id
