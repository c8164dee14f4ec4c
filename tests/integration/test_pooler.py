"""A connection pooler between us and PostgreSQL, in the mode that gives each transaction another session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from pipeline.admin import doctor
from pipeline.common import connect
from sql import migrate
from tests.conftest import or_missing
from tests.support import mix, older_schema, pgbouncer, processes, streams
from tests.support import oracle as naive
from tests.support.api_server import BASE, Client
from tests.support.exports import downloaded, made, rows_of
from tests.support.live import Events
from tests.support.streams import publish_embedded
from tests.support.surroundings import alter, reset

SESSION = connect.Session(application_name="test", statement_timeout_s=20)
FOREIGN = {
    "statement_timeout": "20s",
    "lock_timeout": "300ms",
    "intervalstyle": "iso_8601",
    "search_path": "nowhere",
    "bytea_output": "escape",
    "datestyle": "German, DMY",
    "default_transaction_isolation": "serializable",
}


@pytest.fixture
def pooled(timescale: str) -> Iterator[str]:
    with or_missing(), pgbouncer.running(timescale) as url:
        yield url


def locks(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchall()


def test_a_pooler_is_known_by_its_process_id(timescale: str, pooled: str) -> None:
    with connect.connect(pooled, SESSION) as through, connect.connect(timescale, SESSION) as direct:
        assert (through.pooled, direct.pooled) == (True, False)


def test_a_pooler_that_keeps_sessions_works_alike(timescale: str) -> None:
    with or_missing(), pgbouncer.running(timescale, mode="session") as url:
        migrate.upgrade(url)
        alter(timescale, FOREIGN)
        with connect.connect(url, SESSION) as connection:
            shown = connection.execute("SELECT current_setting('lock_timeout'), now()::text").fetchone()
        assert shown is not None
        assert (shown[0], shown[1][4]) == ("0", "-")


def test_migrate_works_twice_through_a_pooler_and_leaves_no_lock(timescale: str, pooled: str) -> None:
    first = migrate.upgrade(pooled)
    assert migrate.upgrade(pooled) == first
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(migrate.upgrade, [pooled, timescale, pooled])) == [first] * 3
    assert locks(timescale) == []


def test_a_lock_that_a_pooled_session_keeps_is_named_and_not_waited_for_in_silence(
    timescale: str, pooled: str
) -> None:
    said: list[str] = []
    with psycopg.connect(pooled, autocommit=True, application_name="spendstream-0.1.0") as old:
        old.execute(f"SELECT pg_advisory_lock({migrate._LOCK})")  # and the pooler keeps the session
    ((pid,),) = locks(timescale)
    started = time.monotonic()
    with pytest.raises(migrate.MigrationRefused, match=f"process {pid} .*pg_terminate_backend"):
        migrate.upgrade(timescale, lock_wait_s=3, say=said.append)
    assert time.monotonic() - started < 60
    assert [f"process {pid} (" in line for line in said] == [True]
    with psycopg.connect(timescale, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    migrate.upgrade(timescale, lock_wait_s=3)


def test_a_table_in_use_is_not_waited_for_in_silence(timescale: str) -> None:
    migrate.upgrade(timescale)
    with psycopg.connect(timescale) as idle:
        idle.execute("LOCK TABLE analytics.alembic_version")
        pid = idle.info.backend_pid
        with pytest.raises(migrate.MigrationRefused, match=f"in use for more than 1 s by process {pid} "):
            migrate.upgrade(timescale, lock_wait_s=1)


def test_others_have_their_turn_at_a_table_that_a_migration_waits_for(timescale: str) -> None:
    older_schema.make(timescale, "0010")  # 0011 changes analytics.partitions
    said: list[str] = []
    longest_s = 0.0
    with (
        psycopg.connect(timescale, autocommit=True) as other,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(timescale) as report,
    ):
        report.execute("SELECT FROM analytics.partitions")
        pid = report.info.backend_pid
        migration = pool.submit(migrate.upgrade, timescale, say=said.append)
        until = time.monotonic() + 6
        while (began := time.monotonic()) < until:
            other.execute("SELECT FROM analytics.partitions")
            longest_s = max(longest_s, time.monotonic() - began)
        assert not migration.done()
        report.rollback()
        migration.result()
    assert longest_s < 4
    assert [f"process {pid} " in line for line in said] == [True]


def test_a_schema_of_a_later_version_is_left_alone(timescale: str) -> None:
    migrate.upgrade(timescale)
    with psycopg.connect(timescale, autocommit=True) as connection:
        connection.execute("UPDATE analytics.alembic_version SET version_num = '9999'")
    with pytest.raises(migrate.MigrationRefused, match="at revision 9999"):
        migrate.upgrade(timescale)


@pytest.mark.parametrize("isolation", [None, psycopg.IsolationLevel.REPEATABLE_READ])
def test_each_transaction_has_our_settings_and_leaves_none_behind(
    timescale: str, pooled: str, isolation: psycopg.IsolationLevel | None
) -> None:
    alter(timescale, FOREIGN)
    names = [*FOREIGN, "timescaledb.max_tuples_decompressed_per_dml_transaction", "transaction_isolation"]
    show = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    wanted = {**SESSION.settings(), "statement_timeout": "20s", "transaction_isolation": "read committed"}
    if isolation is not None:
        wanted["transaction_isolation"] = "repeatable read"
    with psycopg.connect(pooled) as stranger:
        before = stranger.execute(show).fetchone()
    with connect.connect(pooled, SESSION) as ours:
        ours.isolation_level = isolation
        for _ in range(3):
            assert ours.execute(show).fetchone() == tuple(wanted[name] for name in names)
            ours.rollback()
        ours.autocommit = True
        with ours.transaction():
            assert ours.execute(show).fetchone() == tuple(wanted[name] for name in names)
    with psycopg.connect(pooled) as stranger:
        assert stranger.execute(show).fetchone() == before
    reset(timescale)


async def test_worker_api_and_exporter_are_exact_through_a_pooler(
    timescale: str, pooled: str, tmp_path: Path
) -> None:
    migrate.upgrade(pooled)
    alter(timescale, FOREIGN)
    now_us = time.time_ns() // 1000
    bodies = mix.make(3000, seed=12, now_us=now_us, bad=0.02, late=0.05, orgs=3).bodies
    oracle = naive.Oracle()
    oracle.feed_all((i, now_us, body) for i, body in enumerate(bodies))
    env = streams.embedded_env(pooled, tmp_path)
    archive = tmp_path / "archive"
    archive.mkdir()
    working = env | {"ARCHIVE_URL": f"file://{archive}", "ARCHIVE_INTERVAL": "200ms"}
    serving = env | {"EXPORT_DIR": str(tmp_path / "exports")}
    with processes.Api(serving, tmp_path) as api:
        assert isinstance(api, processes.Api)
        offered = 0
        for half in (bodies[:1500], bodies[1500:]):  # with a restart between them
            with processes.worker(working, tmp_path) as worker:
                await publish_embedded(env, half)
                offered += len(half)
                streams.wait_committed(timescale, offered, worker)
                assert worker.stop() == 0
        server = Client(urlsplit(api.ready_url).port or 0)
        assert api.ask("/status/readyz")[0] == 200
        orgs = sorted({str(key[0]) for key in oracle.usage_day})
        start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
        span = {"start": start.isoformat(), "end": (start + timedelta(days=3)).isoformat(), "groupBy": "none"}
        totals = {org: api.answer(f"/orgs/{org}/usage", **span)["totals"] for org in orgs}
        with closing(Events(server, orgs[0])) as events:
            _, live = events.until("usage")
        exported = 0
        for org, form in zip(orgs, ("csv", "parquet", "focus-1.2"), strict=True):
            body = {"timeRange": {"start": span["start"], "end": span["end"]}, "granularity": "daily"}
            body["format"] = form
            path = f"{BASE}/orgs/{org}/exports"
            job = made(server, body, path)
            assert job["status"] == "succeeded", form
            exported += sum(row[0] for row in rows_of(body, downloaded(server, job, path)).values())
        findings = await asyncio.to_thread(lambda: list(doctor.examine(env)))
    reset(timescale)
    with psycopg.connect(timescale) as connection:
        row = connection.execute("SELECT offered, accepted, duplicate, rejected FROM analytics.partitions")
        counters = row.fetchone()
    assert counters == (oracle.offered, oracle.accepted, oracle.duplicate, oracle.rejected)
    assert sum(total["invocations"] for total in totals.values()) == oracle.accepted
    assert exported == oracle.accepted
    assert live["orgId"] == orgs[0]
    assert locks(timescale) == []
    assert [finding.level for finding in findings if finding.name == "pooler"] == [doctor.Level.WARN]
    assert list(archive.rglob("*.parquet"))
