"""A database with the usage of orgs that ask for notices, and what ``spendstream alerts`` finds there."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row

from api.config import DatabaseConfig, RangeConfig
from api.notices.judge import Found
from api.notices.metrics import NoticeMetrics
from api.notices.watch import NoticeWatch
from api.reading.database import Database
from tests.support.alerts_world import MODEL, ORG, START, AlertsWorld, call
from tests.support.api_facts import Event

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
NINE = START + 9 * HOUR
MARKUP = "<!channel> *a* & `b`"


class NoticesWorld(AlertsWorld):
    """Usage, and orgs that ask for notices."""

    def ask(self, org: uuid.UUID = ORG, **given: Any) -> None:
        """Have an org ask for both, as the API does, since long ago."""
        fields = {
            "org_id": org,
            "unusual_enabled": True,
            "unusual_factor": 3,
            "unusual_minimum": 10,
            "unusual_since": START - 10 * WEEK,
            "summary_enabled": False,
            "summary_zone": "UTC",
            "summary_since": START,
        } | given
        names = ", ".join(fields)
        self.execute(
            f"INSERT INTO analytics.notices AS n ({names}, version, set_by, updated_at)"
            f" VALUES ({', '.join(f'%({name})s' for name in fields)}, 1, 'test', now())"
            f" ON CONFLICT (org_id) DO UPDATE SET version = n.version + 1,"
            f" {', '.join(f'{name} = excluded.{name}' for name in fields)}",
            fields,
        )

    def webhook(self, form: str = "standard", org: uuid.UUID = ORG) -> None:
        self.execute(
            "INSERT INTO analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed, enabled,"
            " created_by, created_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, 'w', %s, '', '', true, 'test', now(), now())",
            [org, form],
        )

    def rows(self, text: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute(text).fetchall()

    def notices(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM analytics.notices_sent ORDER BY kind, period_start, org_id")

    def told(self) -> list[str]:
        """The periods of all notices, in order."""
        return [row["period"] for row in self.notices()]

    def bodies(self) -> list[Any]:
        found = self.rows("SELECT body FROM analytics.webhook_deliveries ORDER BY created_at, delivery_id")
        return [json.loads(row["body"]) for row in found]

    @asynccontextmanager
    async def noticing(
        self, url: str | None = None, now: datetime | None = None
    ) -> AsyncIterator[NoticeWatch]:
        """A watch of notices that knows no mark yet."""
        database = Database(DatabaseConfig(url=url or self.url, allow_privileged=url is None, timeout_s=30.0))
        clock = now or START + 9 * DAY
        try:
            yield NoticeWatch(database, RangeConfig(), lambda: clock, NoticeMetrics(CollectorRegistry()))
        finally:
            await database.close()

    def notice(self, **given: Any) -> Found:
        """What a process that has just started finds in its first look."""

        async def look() -> Found:
            async with self.noticing(**given) as watch:
                return await watch.look()

        return asyncio.run(look())

    def empty(self) -> None:
        """Forget all but the usage, which the next `count` writes anew."""
        self.execute(
            "TRUNCATE analytics.notices, analytics.notices_sent, analytics.webhooks, analytics.budgets,"
            " analytics.names, analytics.partitions CASCADE"
        )


def weeks(*dollars: float, at: datetime = NINE, **given: Any) -> list[Event]:
    """What an hour cost in the weeks before, the newest first, and something five weeks ago."""
    before = [call(at - number * WEEK, cost, **given) for number, cost in enumerate(dollars, 1)]
    return [*before, call(at - 5 * WEEK, 1, **given)]


def busy(orgs: Iterable[uuid.UUID]) -> list[Event]:
    """An unusual hour and a day of each org."""
    return [
        event
        for org in orgs
        for event in (*weeks(1, 1, 1, 1, org=org), call(NINE, 50, org=org, model=MODEL, partition=1))
    ]
