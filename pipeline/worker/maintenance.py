"""What keeps the database from growing without bound, on every edition.

The worker drops old chunks (rows on plain PostgreSQL) itself: a retention job of TimescaleDB would obey the
database's clock alone, and nobody would notice that it fails. Every step is a transaction of its own, safe to
run twice and from several workers. Rows go in batches, so that no step holds its locks for long: of a backlog
of 3,000,000 rows a round drops 1,000,000 in 100 transactions, looks after the other tables, and the next
round, soon after, drops the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

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
    query = queries.load("maintenance")
    done = Round()

    def before(kept_s: float) -> dict[str, object]:
        return {"before": now - timedelta(seconds=kept_s), "most": batch_rows}

    async with await connect_async(database_url, _SESSION, autocommit=True) as connection:

        async def drop_rows(table: str, past: str, values: Mapping[str, object]) -> None:
            text = query["expire_rows"].format(table=table, past=past).encode()
            for _ in range(batches_max):
                gone = (await connection.execute(text, values)).rowcount  # a transaction: autocommit
                done.gone[table] = done.gone.get(table, 0) + gone
                if gone < batch_rows:
                    return
            done.left.add(table)

        row = await (await connection.execute(query["extension"])).fetchone()
        for table in HYPERTABLES:
            values = before(retention.minute_s if table == "usage_minute" else retention.rollup_s)
            if row is None:
                await drop_rows(table, "bucket_start < %(before)s", values)
            else:
                text = query["expire_chunks"].format(table=table, functions=row[0])
                done.gone[table] = (await connection.execute(text.encode(), values)).rowcount
        for table in _SEEN:
            await drop_rows(table, "last_event_at < %(before)s", before(retention.rollup_s))
        # Which events were counted by replays is known for as long as the rollup rows of that time.
        await drop_rows("replays", "settled_at < %(before)s", before(retention.rollup_s))
        for table, past in _REJECTED.items():
            await drop_rows(table, past, before(retention.dead_letters_s))
        for table, past in _AUDITED.items():
            await drop_rows(table, past, before(retention.audit_s))
        # By the broker's time of the partition itself, so that replaying an old stream keeps its ids.
        window = {"window": timedelta(microseconds=dedupe_window_us) + _DAY}
        for _ in range(batches_max):
            row = await (await connection.execute(query["expire_ids"].encode(), window)).fetchone()
            assert row is not None
            if not row[0]:
                break
            done.gone["dedupe_ids"] = done.gone.get("dedupe_ids", 0) + row[0]
        else:
            done.left.add("dedupe_ids")
    done.gone = {table: count for table, count in done.gone.items() if count}
    return done


async def earlier_time(database_url: str, host_now: datetime) -> datetime:
    """The host's time or the database's, whichever is earlier: one clock that is ahead must expire nothing.

    Raises:
        psycopg.Error: the database is away.
    """
    query = queries.load("maintenance")
    async with await connect_async(database_url, _SESSION, autocommit=True) as connection:
        row = await (await connection.execute(query["time"])).fetchone()
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
            pause_s = BACKLOG_INTERVAL_S if done.left else INTERVAL_S
        except psycopg.Error as error:
            log.warning("maintenance_failed", extra={"error": str(error).strip()})
        await asyncio.sleep(pause_s)
