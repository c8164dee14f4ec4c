"""What keeps the database from growing without bound, on every edition.

The worker drops old chunks (rows on plain PostgreSQL) itself: a retention job of TimescaleDB would obey the
database's clock alone, and nobody would notice that it fails. Every step is a transaction of its own, safe to
run twice and from several workers. Rows go in batches, so that no step holds its locks for long: of a backlog
of 3,000,000 rows a round drops 1,000,000 in 100 transactions, looks after the other tables, and the next
round, soon after, drops the next. A table that refuses (somebody holds it, or took a right away) is named,
and the round goes on with the other tables.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from pipeline import metrics
from pipeline.common.connect import Session, connect_async
from pipeline.config import RetentionConfig
from sql import queries
from sql.editions import HYPERTABLES

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3600.0
BACKLOG_INTERVAL_S: Final = 10.0
"""After a round that left something."""
BATCH_ROWS: Final = 10_000
BATCHES_MAX: Final = 100
"""Of one table in one round."""
_SQL: Final = queries.load("maintenance")
_DAY: Final = timedelta(days=1)
_SESSION: Final = Session(application_name="spendstream-maintenance")

_SEEN: Final = ("orgs_seen", "models_seen", "clients_seen")
_AUDITED: Final = {
    "audit_log": "at < %(before)s",
    "api_keys": "revoked_at < %(before)s OR expires_at < %(before)s",
    # An export that succeeded becomes expired when its file goes; before that its link must work.
    "export_jobs": "status IN ('failed', 'expired') AND COALESCE(completed_at, created_at) < %(before)s",
}
_REJECTED: Final = {
    "dead_letters": "rejected_at < %(before)s",
    "skips": 'skipped_at < %(before)s AND "offset" < COALESCE((SELECT committed_offset'
    " FROM analytics.partitions AS p WHERE p.stream = skips.stream), 0)",
}


@dataclass(slots=True)
class Round:
    """What one round did."""

    gone: dict[str, int] = field(default_factory=dict)
    """Rows (or chunks) that went, by table."""
    left: set[str] = field(default_factory=set)
    """Tables that have more than one round takes."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tables that refused, with the database's words."""


async def expire(
    database_url: str,
    retention: RetentionConfig,
    *,
    dedupe_window_us: int,
    now: datetime,
    batch_rows: int = BATCH_ROWS,
    batches_max: int = BATCHES_MAX,
) -> Round:
    """One round.

    Raises:
        psycopg.Error: the database is away or refuses; the next round does the rest.
    """
    done = Round()
    async with await connect_async(database_url, _SESSION, autocommit=True) as connection:
        tables = _Tables(connection, done, now=now, batch_rows=batch_rows, batches_max=batches_max)
        row = await (await connection.execute(_SQL["extension"].encode())).fetchone()
        for table in HYPERTABLES:
            kept_s = retention.minute_s if table == "usage_minute" else retention.rollup_s
            if row is None:
                await tables.drop_rows(table, "bucket_start < %(before)s", kept_s)
            else:
                await tables.drop_chunks(table, kept_s, functions=row[0])
        for table in _SEEN:
            await tables.drop_rows(table, "last_event_at < %(before)s", retention.rollup_s)
        # Which events were counted by replays is known for as long as the rollup rows of that time.
        await tables.drop_rows("replays", "settled_at < %(before)s", retention.rollup_s)
        for table, past in _REJECTED.items():
            await tables.drop_rows(table, past, retention.dead_letters_s)
        for table, past in _AUDITED.items():
            await tables.drop_rows(table, past, retention.audit_s)
        await tables.drop_ids(dedupe_window_us)
    done.gone = {table: count for table, count in done.gone.items() if count}
    return done


class _Tables:
    """The steps of one round over one connection."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        done: Round,
        *,
        now: datetime,
        batch_rows: int,
        batches_max: int,
    ) -> None:
        self._connection = connection
        self._done = done
        self._now = now
        self._batch_rows = batch_rows
        self._batches_max = batches_max

    async def drop_chunks(self, table: str, kept_s: float, *, functions: str) -> None:
        """Drop whole chunks of a hypertable; ``functions`` is the schema of TimescaleDB's functions."""
        text = _SQL["expire_chunks"].format(table=table, functions=functions).encode()
        with self._named(table):
            self._add(table, (await self._connection.execute(text, self._before(kept_s))).rowcount)

    async def drop_rows(self, table: str, past: str, kept_s: float) -> None:
        """Drop rows in batches; ``past`` is the condition on a row that has had its time, in SQL."""
        text = _SQL["expire_rows"].format(table=table, past=past).encode()
        with self._named(table):
            for _ in range(self._batches_max):
                # A transaction of its own: autocommit.
                gone = (await self._connection.execute(text, self._before(kept_s))).rowcount
                self._add(table, gone)
                if gone < self._batch_rows:
                    return
            self._done.left.add(table)

    async def drop_ids(self, dedupe_window_us: int) -> None:
        """Drop ids an hour of one partition at a time: a flush of that partition waits so long, and no other.

        The broker's time of the partition decides, so that the replay of an old stream keeps its ids.
        """
        window = timedelta(microseconds=dedupe_window_us) + _DAY
        with self._named("dedupe_ids"):
            partitions = await (await self._connection.execute(_SQL["partitions"].encode())).fetchall()
            for (partition,) in partitions:
                values = {"partition": partition, "window": window}
                for _ in range(self._batches_max):
                    row = await (
                        await self._connection.execute(_SQL["expire_ids"].encode(), values)
                    ).fetchone()
                    assert row is not None
                    self._add("dedupe_ids", row[0])
                    if not row[0]:
                        break
                else:
                    self._done.left.add("dedupe_ids")

    def _before(self, kept_s: float) -> dict[str, object]:
        return {"before": self._now - timedelta(seconds=kept_s), "most": self._batch_rows}

    def _add(self, table: str, gone: int) -> None:
        self._done.gone[table] = self._done.gone.get(table, 0) + gone

    @contextmanager
    def _named(self, table: str) -> Iterator[None]:
        """A table that refuses is noted, and the round goes on; a connection that is gone ends the round."""
        try:
            yield
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            self._done.failed[table] = str(error).strip()


async def earlier_time(database_url: str, host_now: datetime) -> datetime:
    """The host's time or the database's, whichever is earlier: one clock that is ahead must expire nothing.

    Raises:
        psycopg.Error: the database is away.
    """
    async with await connect_async(database_url, _SESSION, autocommit=True) as connection:
        row = await (await connection.execute(_SQL["time"].encode())).fetchone()
        assert row is not None
        database_now: datetime = row[0]
        return min(host_now, database_now)


async def run(
    database_url: str,
    retention: RetentionConfig,
    *,
    dedupe_window_us: int,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """A round at start and then every hour, sooner where one left something; until cancelled. A failed round
    is left to the next."""
    while True:
        pause_s = INTERVAL_S
        try:
            now = await earlier_time(database_url, clock())
            done = await expire(database_url, retention, dedupe_window_us=dedupe_window_us, now=now)
            log.info("maintenance_done", extra={"expired": done.gone, "left": sorted(done.left)})
            for table, error in done.failed.items():
                _failed(table, error)
            pause_s = BACKLOG_INTERVAL_S if done.left else INTERVAL_S
        except psycopg.Error as error:
            _failed("", str(error).strip())
        await asyncio.sleep(pause_s)


def _failed(table: str, error: str) -> None:
    metrics.MAINTENANCE_FAILURES.labels(table).inc()
    log.warning("maintenance_failed", extra={"table": table, "error": error})
