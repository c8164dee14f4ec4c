"""Maintenance: deleting rows past their retention, so that the database does not grow without bound.

Each round also counts the calls that have no known cost, for a metric.

The worker drops old chunks itself, and old rows on plain PostgreSQL. A retention job of TimescaleDB would
obey the database's clock alone, and nobody would notice a failure of the job.

Every step is a transaction of its own, and is safe to run twice and from several workers. Rows are deleted in
batches, so that no step holds its locks for long. Example: of a backlog of 3,000,000 rows, one round deletes
1,000,000 in 100 transactions and then looks after the other tables. The next round comes 10 s later and
deletes the next 1,000,000. A table may refuse, because another session has locked it or a privilege is
missing. The log then names the table, and the round goes on with the other tables.
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
"""The pause after a round that left expired rows behind."""
BATCH_ROWS: Final = 10_000
BATCHES_MAX: Final = 100
"""The most batches of one table in one round."""
_SQL: Final = queries.load("maintenance")
_DAY: Final = timedelta(days=1)
_SESSION: Final = Session(application_name="spendstream-maintenance")

_SEEN: Final = ("orgs_seen", "models_seen", "clients_seen", "values_seen")
_AUDITED: Final = {
    "audit_log": "at < %(before)s",
    "api_keys": "revoked_at < %(before)s OR expires_at < %(before)s",
    # A succeeded export becomes expired when its file is deleted. Until then its link must work.
    "export_jobs": "status IN ('failed', 'expired') AND COALESCE(completed_at, created_at) < %(before)s",
}
_REJECTED: Final = {
    "dead_letters": "rejected_at < %(before)s",
    "skips": 'skipped_at < %(before)s AND "offset" < COALESCE((SELECT committed_offset'
    " FROM analytics.partitions AS p WHERE p.stream = skips.stream), 0)",
}


for _table in ("", *HYPERTABLES, *_SEEN, "replays", *_REJECTED, *_AUDITED, "dedupe_ids"):
    metrics.MAINTENANCE_FAILURES.labels(_table)  # shown from the start, at 0


@dataclass(slots=True)
class Round:
    """The result of one round."""

    gone: dict[str, int] = field(default_factory=dict)
    """The number of deleted rows (or chunks), by table."""
    left: set[str] = field(default_factory=set)
    """The tables with more expired rows than one round deletes."""
    failed: dict[str, str] = field(default_factory=dict)
    """The database's error for each table that refused."""


async def expire(
    database_url: str,
    retention: RetentionConfig,
    *,
    dedupe_window_us: int,
    now: datetime,
    batch_rows: int = BATCH_ROWS,
    batches_max: int = BATCHES_MAX,
) -> Round:
    """Run one round: delete rows past their retention, of every table.

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
        # The ids of replayed events are kept as long as rollup rows: a second replay must find them.
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
        """Drop rows in batches; ``past`` is the SQL condition on a row past its retention."""
        text = _SQL["expire_rows"].format(table=table, past=past).encode()
        with self._named(table):
            for _ in range(self._batches_max):
                # With autocommit each statement is a transaction of its own.
                gone = (await self._connection.execute(text, self._before(kept_s))).rowcount
                self._add(table, gone)
                if gone < self._batch_rows:
                    return
            self._done.left.add(table)

    async def drop_ids(self, dedupe_window_us: int) -> None:
        """Drop the ids of one hour of one partition at a time, so that only this partition's flush must wait.

        An hour is dropped when the partition's newest broker time is past the hour by more than the dedupe
        window and a day. Example: with a window of 24 hours and the newest broker time 12:30 on the 10th, the
        hours that begin before 12:30 on the 8th are dropped. The broker time decides, not the clock, so that
        a worker that reads an old stream keeps its ids.
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
        """Note the error of a table that refuses, and go on. A lost connection ends the round."""
        try:
            yield
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            self._done.failed[table] = str(error).strip()


async def unpriced(database_url: str, now: datetime) -> dict[str, int]:
    """The calls of the last 24 whole hours whose cost nobody knows, by reason. Raises `psycopg.Error`."""
    end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    async with await connect_async(database_url, _SESSION, autocommit=True) as connection:
        row = await (
            await connection.execute(_SQL["unpriced"].encode(), {"start": end - _DAY, "end": end})
        ).fetchone()
        assert row is not None
        return dict(zip(("unnamed", "no_price"), row, strict=True))


async def earlier_time(database_url: str, host_now: datetime) -> datetime:
    """The earlier of the host's time and the database's time, so that a clock that is ahead deletes nothing.

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
    """Run a round at the start and then every hour, until cancelled.

    The next round comes after 10 s if a round left expired rows behind. A round that fails is logged, and the
    next round does its work.
    """
    while True:
        pause_s = INTERVAL_S
        try:
            now = await earlier_time(database_url, clock())
            done = await expire(database_url, retention, dedupe_window_us=dedupe_window_us, now=now)
            log.info("maintenance_done", extra={"expired": done.gone, "left": sorted(done.left)})
            for table, error in done.failed.items():
                _failed(table, error)
            pause_s = BACKLOG_INTERVAL_S if done.left else INTERVAL_S
            for reason, calls in (await unpriced(database_url, now)).items():
                metrics.UNPRICED.labels(reason).set(calls)
        except psycopg.Error as error:
            _failed("", str(error).strip())
        await asyncio.sleep(pause_s)


def _failed(table: str, error: str) -> None:
    metrics.MAINTENANCE_FAILURES.labels(table).inc()
    log.warning("maintenance_failed", extra={"table": table, "error": error})
