"""What the tests of exports share: the months that they order, and a runner in this process."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.support.api_facts import MODELS

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
]


def server_runner(env: Mapping[str, str], now: datetime) -> Any:
    import api.config
    from api.app import export_runner, export_store

    config = api.config.load(env)
    store = export_store(config)
    assert store is not None
    return export_runner(config, store, lambda: now)
