"""A database with the usage of some orgs and budgets, and the watch of ``spendstream alerts`` on it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from api.alerts.judge import Judged
from api.alerts.metrics import Metrics
from api.alerts.watch import Watch
from api.budgets.kept import SQL
from api.config import DatabaseConfig, RangeConfig
from api.reading.database import Database
from tests.support.api_facts import Event, load

START: Final = datetime(2026, 11, 2, tzinfo=UTC)
"""A Monday."""
ORG: Final = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001")
OTHER: Final = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000002")
MODEL: Final = uuid.UUID("11111111-0000-4000-8000-000000000000")
OTHER_MODEL: Final = uuid.UUID("aaaaaaaa-1111-4000-8000-000000000000")
_ROLLUPS: Final = (
    "usage_minute, usage_hour, usage_day, client_hour, client_day, usage_errors_hour, orgs_seen, models_seen,"
    " clients_seen, partitions"
)


def call(at: datetime, dollars: float | int = 1, **given: Any) -> Event:
    """A call that costs so many dollars."""
    fields: dict[str, Any] = {
        "org": ORG,
        "model": MODEL,
        "client": "",
        "at": at,
        "partition": 0,
        "status": 0,
        "error_code": "",
        "latency_ms": 1,
        "input_tokens": 10,
        "output_tokens": 1,
        "microcents": round(dollars * 10**8),
        "kinds": (0, 0, 0, 0),
        "rate_class": 0,
    }
    return Event(**(fields | given))


class AlertsWorld:
    """Usage that can grow, and budgets, in a migrated database of one's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.events: list[Event] = []

    def count(self, events: Iterable[Event], *, watermark: datetime | None = None) -> None:
        """Count more events as the worker would. The watermark is that of the newest event unless given."""
        more = list(events)
        self.events += more
        newest = watermark or max((event.at for event in self.events), default=START)
        self.execute(f"TRUNCATE {', '.join('analytics.' + name.strip() for name in _ROLLUPS.split(','))}")
        load(self.url, self.events, {0: newest, 1: newest})
        self.execute(
            "UPDATE analytics.orgs_seen SET last_rollup_at ="
            " CASE WHEN org_id = ANY(%s) THEN clock_timestamp() ELSE 'epoch' END",
            [list({event.org for event in more})],
        )

    def budget(self, amount: str = "100", *thresholds: Mapping[str, str], **given: Any) -> uuid.UUID:
        """Make a budget of the org by day, whose threshold is 80 % unless given."""
        fields = {
            "budget_id": uuid.uuid4(),
            "org_id": ORG,
            "definition": 1,
            "name": "b",
            "model_id": None,
            "dimension": None,
            "value": None,
            "metric": "cost",
            "period": "day",
            "time_zone": "UTC",
            "amount": amount,
            "thresholds": json.dumps(thresholds or [{"percent": "80", "on": "actual"}]),
            "judged_from": START,
            "created_at": datetime.now(UTC),
            "updated_at": datetime.now(UTC),
        } | given
        fields = {name: value for name, value in fields.items() if value is not None}
        names = ", ".join(fields)
        self.execute(
            f"INSERT INTO analytics.budgets ({names}, version, created_by)"
            f" VALUES ({', '.join(f'%({name})s' for name in fields)}, 1, 'test')",
            fields,
        )
        return uuid.UUID(str(fields["budget_id"]))

    def change(self, budget_id: uuid.UUID, *, now: datetime | None = None, **given: Any) -> None:
        """Change a budget by the query of the API, at a time of its clock."""
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            row = connection.execute(
                "SELECT * FROM analytics.budgets WHERE budget_id = %s", [budget_id]
            ).fetchone()
            assert row is not None
            plan = row | given
            values = plan | {"thresholds": Jsonb(plan["thresholds"]), "actor": "test"}
            connection.execute(SQL["change"], values | {"now": now or datetime.now(UTC)})

    def budgets(self) -> list[dict[str, Any]]:
        """All budgets, as they are kept."""
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM analytics.budgets ORDER BY budget_id").fetchall()

    def alerts(self) -> list[dict[str, Any]]:
        """All alerts, by period and level."""
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute(
                "SELECT * FROM analytics.budget_alerts ORDER BY period_start, basis, level, budget_id"
            ).fetchall()

    def execute(self, text: str, values: Any = None) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(text, values)

    @asynccontextmanager
    async def watching(
        self,
        url: str | None = None,
        now: datetime | None = None,
        committed: Callable[[], None] = lambda: None,
        seconds: Callable[[], float] = time.monotonic,
        ranges: RangeConfig | None = None,
    ) -> AsyncIterator[Watch]:
        """A watch that knows no mark yet, as of a process that has just started."""
        database = Database(DatabaseConfig(url=url or self.url, allow_privileged=url is None, timeout_s=30.0))
        try:
            yield Watch(
                database,
                ranges or RangeConfig(),
                lambda: now or START + timedelta(days=20),
                Metrics(CollectorRegistry()),
                committed,
                seconds,
            )
        finally:
            await database.close()

    def look(self, **given: Any) -> Judged:
        """What a process that has just started judges in its first look."""

        async def look() -> Judged:
            async with self.watching(**given) as watch:
                return await watch.look()

        return asyncio.run(look())


class Crash(BaseException):
    """The process dies here."""


class Crashes:
    """Kills what runs before its n-th statement, counted from 0, or around its COMMIT."""

    def __init__(self, monkeypatch: Any, before: Sequence[tuple[str, Callable[[], None]]] = ()) -> None:
        self.left: int | None = None
        """How many statements are still done before the crash; None: there is none."""
        self.hooks = list(before)
        """What to do, once, before the first statement that has a text in it."""
        execute, commit = psycopg.AsyncCursor.execute, psycopg.AsyncConnection.commit

        async def counted(cursor: Any, query: Any, *more: Any, **given: Any) -> Any:
            self._count()
            for hook in [hook for hook in self.hooks if hook[0] in str(query)]:
                self.hooks.remove(hook)
                await asyncio.to_thread(hook[1])
            return await execute(cursor, query, *more, **given)

        async def committed(connection: Any) -> None:
            self._count()
            await commit(connection)
            self._count()

        monkeypatch.setattr(psycopg.AsyncCursor, "execute", counted)
        monkeypatch.setattr(psycopg.AsyncConnection, "commit", committed)

    def _count(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            self.left = None
            raise Crash
        self.left -= 1
