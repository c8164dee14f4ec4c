"""What keeps the database from growing without bound, on every edition.

The worker drops old chunks (rows on plain PostgreSQL) itself: a retention job of TimescaleDB would obey the
database's clock alone, and nobody would notice that it fails. Every step is a transaction of its own, safe to
run twice and from several workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from pipeline.config import RetentionConfig
from sql import queries
from sql.connect import Session, connect_async
from sql.editions import HYPERTABLES

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3600.0
_DAY: Final = timedelta(days=1)
_SESSION: Final = Session(application_name="spendstream-maintenance")
_SEEN: Final = ("orgs_seen", "models_seen", "clients_seen")


async def expire(
    database_url: str, retention: RetentionConfig, *, dedupe_window_us: int, now: datetime
) -> dict[str, int]:
    """One round. Returns how many rows (or chunks) went from each table.

    Raises:
        psycopg.Error: the database is away or refuses; the next round does the rest.
    """
    query = queries.load("maintenance")
    gone: dict[str, int] = {}
    async with await connect_async(database_url, _SESSION, autocommit=True) as connection:

        async def drop(name: str, text: str, values: Mapping[str, object]) -> None:
            async with connection.transaction():  # each step of its own: what was done stays done
                gone[name] = (await connection.execute(text.encode(), values)).rowcount

        row = await (await connection.execute(query["extension"])).fetchone()
        for table in HYPERTABLES:
            kept_s = retention.minute_s if table == "usage_minute" else retention.rollup_s
            before = {"before": now - timedelta(seconds=kept_s)}
            if row is None:
                await drop(table, query["expire_rows"].format(table=table), before)
            else:
                await drop(table, query["expire_chunks"].format(table=table, functions=row[0]), before)
        before = {"before": now - timedelta(seconds=retention.rollup_s)}
        for table in _SEEN:
            await drop(table, query["expire_seen"].format(table=table), before)
        await drop("replays", query["expire_replays"], before)
        before = {"before": now - timedelta(seconds=retention.dead_letters_s)}
        await drop("dead_letters", query["expire_dead_letters"], before)
        # By the broker's time of the partition itself, so that replaying an old stream keeps its ids.
        window = timedelta(microseconds=dedupe_window_us) + _DAY
        async with connection.transaction():
            row = await (await connection.execute(query["expire_ids"], {"window": window})).fetchone()
        assert row is not None
        gone["dedupe_ids"] = row[0]
    return {table: count for table, count in gone.items() if count}


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
    """A round at start and then every hour, until cancelled; a failed one is left to the next."""
    while True:
        try:
            now = await earlier_time(database_url, clock())
            gone = await expire(database_url, retention, dedupe_window_us=dedupe_window_us, now=now)
            log.info("maintenance_done", extra={"expired": gone})
        except psycopg.Error as error:
            log.warning("maintenance_failed", extra={"error": str(error).strip()})
        await asyncio.sleep(INTERVAL_S)
