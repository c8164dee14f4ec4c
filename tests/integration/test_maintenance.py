"""Retention: what is past it goes, what is within it stays, on every edition at hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pipeline import maintenance
from pipeline.config import RetentionConfig
from pipeline.sink.timescale import TimescaleSink
from sql import migrate
from sql.editions import Edition
from tests import community

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY_S = 86_400.0
RETENTION = RetentionConfig(minute_s=14 * DAY_S, rollup_s=400 * DAY_S, dead_letters_s=90 * DAY_S)
WINDOW_US = 24 * 3_600_000_000
ORG, MODEL = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
ROLLUPS = ("usage_minute", "usage_hour", "usage_day", "client_hour", "client_day", "usage_errors_hour")


def insert(connection: psycopg.Connection, table: str, at: datetime) -> None:
    """One row of a rollup table in the bucket that starts then."""
    key = {"org_id": ORG, "bucket_start": at, "model_id": MODEL, "partition": 0}
    if table == "usage_errors_hour":
        row = key | {"client_id": "", "status": 1, "error_code": "", "count": 1}
    else:
        counts = "invocations successes errors timeouts throttles input_tokens output_tokens"
        more = "cost_microcents latency_sum_ms latency_max_ms revision"
        row = key | dict.fromkeys(f"{counts} {more}".split(), 0) | {"latency_sketch": b"", "updated_at": at}
        if table.startswith("client"):
            row["client_id"] = ""
    names = ", ".join(row)
    values = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO analytics.{table} ({names}) VALUES ({values})", row)


def kept(connection: psycopg.Connection, table: str, column: str = "bucket_start") -> list[datetime]:
    rows = connection.execute(f"SELECT {column} FROM analytics.{table} ORDER BY {column}").fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize("fixture", ["embedded_postgres_url", "timescale"])
async def test_old_rows_go_and_young_rows_stay(fixture: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(fixture)
    migrate.upgrade(url)
    old = {name: NOW - timedelta(days=500) for name in ROLLUPS} | {"usage_minute": NOW - timedelta(days=16)}
    young = {name: NOW - timedelta(days=300) for name in ROLLUPS} | {"usage_minute": NOW - timedelta(days=13)}
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, old[name])
            insert(connection, name, young[name])
        for table, name in (("orgs_seen", ""), ("models_seen", "model_id"), ("clients_seen", "client_id")):
            for age, org in ((500, ORG), (300, MODEL)):
                at = NOW - timedelta(days=age)
                key = f", {name}" if name else ""
                value = {"": "", "model_id": f", '{MODEL}'", "client_id": ", 'c'"}[name]
                connection.execute(
                    f"INSERT INTO analytics.{table} (org_id{key}, partition, first_event_at, last_event_at,"
                    f" last_rollup_at) VALUES (%s{value}, 0, %s, %s, %s)",
                    (org, at, at, at),
                )
        broker_time = NOW - timedelta(days=700)  # an old stream is being replayed: its own time counts
        # The broker's clock went back by 4 h: its newest time counts, or the last one where that is all.
        times = broker_time - timedelta(hours=4), broker_time
        for number, (last, newest) in enumerate((times, (broker_time, None))):
            connection.execute(
                "INSERT INTO analytics.partitions"
                " (partition, stream, broker_time, newest_broker_time, updated_at)"
                " VALUES (%s, %s, %s, %s, %s)",
                (number, f"s{number}", last, newest, NOW),
            )
        for hours in (47, 49):
            connection.execute(
                "INSERT INTO analytics.dedupe_ids SELECT partition, %s, 1, '' FROM analytics.partitions",
                (broker_time - timedelta(hours=hours),),
            )
        for days in (91, 89):
            connection.execute(
                "INSERT INTO analytics.dead_letters VALUES (0, %s, 0, 's', 'malformed', '[]', NULL, %s)",
                (days, NOW - timedelta(days=days)),
            )
        for offset, settled in ((1, 401), (2, 399), (3, None)):
            connection.execute(
                "INSERT INTO analytics.replays"
                ' (partition, "offset", position, run, requested_at, broker_time, evidence, settled_at)'
                " VALUES (0, %s, 0, gen_random_uuid(), %s, %s, 'none', %s)",
                (offset, NOW, NOW, None if settled is None else NOW - timedelta(days=settled)),
            )
        for _ in range(2):  # a second round finds nothing more
            gone = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
            for name in ROLLUPS:
                assert kept(connection, name) == [young[name]], name
            for name in ("orgs_seen", "models_seen", "clients_seen"):
                assert kept(connection, name, "last_event_at") == [NOW - timedelta(days=300)]
            assert kept(connection, "dedupe_ids", "hour") == [broker_time - timedelta(hours=47)] * 2
            assert kept(connection, "partitions", "ids_from") == [broker_time - timedelta(hours=48)] * 2
            assert kept(connection, "dead_letters", '"offset"') == [89]
            assert kept(connection, "replays", '"offset"') == [2, 3]
        assert gone == {}
    sink = TimescaleSink(url)
    try:
        positions = [(await sink.claim(f"s{number}"))[1] for number in range(2)]
    finally:
        await sink.close()
    for position in positions:
        assert position.ids_from_hour * 3600 == (broker_time - timedelta(hours=48)).timestamp()
        assert position.newest_broker_us == broker_time.timestamp() * 1e6


async def test_the_worker_drops_chunks_itself_where_the_database_could_have_jobs(
    embedded_postgres_url: str,
) -> None:
    """Where nobody made a policy, or its job fails, on TimescaleDB Community."""
    url = embedded_postgres_url
    community.shape(url)
    assert migrate.upgrade(url).edition == Edition.COMMUNITY
    old, young = NOW - timedelta(days=500), NOW - timedelta(days=13)
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, old)
            insert(connection, name, young)
        gone = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
        assert gone == dict.fromkeys(ROLLUPS, 1)
        assert {name: kept(connection, name) for name in ROLLUPS} == {name: [young] for name in ROLLUPS}


async def test_a_host_whose_clock_is_ahead_expires_nothing(
    embedded_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(embedded_postgres_url)
    today = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    done = asyncio.Event()

    async def once(_: float) -> None:
        done.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(maintenance.asyncio, "sleep", once)
    with psycopg.connect(embedded_postgres_url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, today)
        running = asyncio.create_task(
            maintenance.run(
                embedded_postgres_url,
                RETENTION,
                dedupe_window_us=WINDOW_US,
                clock=lambda: datetime.now(UTC) + timedelta(days=500),
            )
        )
        await done.wait()
        running.cancel()
        assert {name: kept(connection, name) for name in ROLLUPS} == {name: [today] for name in ROLLUPS}
