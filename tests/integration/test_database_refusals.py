"""A database that refuses a flush, or ends a session: said each time, repeated exactly, never the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.common import connect
from pipeline.core.rules import Rules
from pipeline.sink import SinkUnavailable, Trouble
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, migrated, mix, processes, streams
from tests.support import oracle as naive
from tests.support.api_facts import NOW, ORG, WATERMARKS, load, random_events
from tests.support.api_server import BASE, Api, served
from tests.support.processes import metrics
from tests.support.streams import publish_embedded

NOW_US = 1_790_000_000_000_000
RULES = Rules()
LIMIT = "tuple decompression limit exceeded by operation"
DEAD = {
    "42710": '"timescaledb" already loaded with a different version',
    "XX000": "cache lookup failed for function 4711",
    "0A000": "cached plan must not change result type",
    "26000": 'prepared statement "_pg3_1" does not exist',
    "42883": 'could not find function "ts_hypertable_insert" in file "/usr/lib/timescaledb-2.19.3.so"',
    "58P01": 'could not access file "$libdir/timescaledb-2.19.3": No such file or directory',
    "57P01": "terminating connection due to administrator command",
}


def refuse(url: str, *, state: str, message: str, when: str = "true", table: str = "partitions") -> None:
    """Updates of a table fail with an error from now on, as long as ``when`` holds."""
    with psycopg.connect(url) as connection:
        connection.execute(
            f"""CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF {when} THEN
                    RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = '{message.replace("'", "''")}';
                END IF;
                RETURN NEW;
            END $$"""
        )
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON analytics.{table}"
            " FOR EACH ROW EXECUTE FUNCTION public.refuse()"
        )


def relent(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("DROP FUNCTION public.refuse CASCADE")


@pytest.fixture
def env(migrated_url: str, tmp_path: Path) -> dict[str, str]:
    return streams.embedded_env(migrated_url, tmp_path)


async def test_a_flush_that_fails_the_same_way_is_said_each_time_and_goes_in_once_it_can(
    env: dict[str, str], tmp_path: Path
) -> None:
    url = env["DATABASE_URL"]
    made = mix.make(500, seed=1, now_us=time.time_ns() // 1000)
    refuse(url, state="53400", message=LIMIT, table="usage_hour")

    def failures(worker: processes.Process) -> float:
        return metrics(worker)['analytics_flush_failures_total{kind="limit"}']

    with processes.worker(env, tmp_path) as worker:
        assert failures(worker) == 0
        await publish_embedded(env, made.bodies)
        processes.wait_for(lambda: failures(worker) >= 4, 180, worker.log)
        status, page = processes.get(worker.ready_url)
        said = [line for line in worker.events() if line["event"] == "flush_failed"]
        relent(url)
        streams.wait_committed(url, len(made.bodies), worker)
        processes.wait_for(lambda: processes.get(worker.ready_url)[0] == 200, 120, worker.log)
        assert worker.stop() == 0
    assert status == 503
    assert LIMIT in page["components"]["database"]["detail"]
    assert "the same flush has failed" in page["components"]["database"]["detail"]
    assert [line["attempts"] for line in said[:4]] == [1, 2, 3, 4]
    assert all(LIMIT in line["error"] and line["kind"] == "limit" for line in said)


async def test_a_worker_that_meets_keys_of_a_later_version_holds_its_events_and_says_what_to_do(
    env: dict[str, str], tmp_path: Path
) -> None:
    """As migration 0013 did to version 0.1.0: a column more in a key. Here the operator undoes the change."""
    url = env["DATABASE_URL"]
    made = mix.make(500, seed=2, now_us=time.time_ns() // 1000)
    key = "org_id, bucket_start, model_id, rate_class, partition"

    def rekey(columns: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute(
                "ALTER TABLE analytics.usage_day DROP CONSTRAINT usage_day_pkey,"
                f" ADD PRIMARY KEY ({columns})".encode()
            )

    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE analytics.usage_day ADD COLUMN later smallint NOT NULL DEFAULT 0")
    with processes.worker(env, tmp_path) as worker:
        rekey(f"{key}, later")
        await publish_embedded(env, made.bodies)
        refused = 'analytics_flush_failures_total{kind="refused"}'
        processes.wait_for(lambda: metrics(worker)[refused] >= 2, 180, worker.log)
        status, page = processes.get(worker.ready_url)
        committed = streams.committed_offset(url)
        rekey(key)
        streams.wait_committed(url, len(made.bodies), worker)
        assert worker.stop() == 0
    assert (status, committed) == (503, 0)
    assert "stop this worker and start that version" in page["components"]["database"]["detail"]


@pytest.mark.parametrize("state", DEAD)
async def test_a_session_that_an_update_of_the_extension_ended_is_a_lost_connection(
    embedded_postgres_url: str, state: str
) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    bodies = mix.make(200, seed=31, now_us=NOW_US).bodies
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    for chunk in books.chunks_of(bodies, size=50, broker_us=NOW_US):
        ledger.ingest(**chunk)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    pid = (await sink.database.connection()).info.backend_pid
    refuse(url, state=state, message=DEAD[state], when=f"pg_backend_pid() = {pid}", table="usage_hour")
    with pytest.raises(SinkUnavailable) as away:
        await sink.flush(claim, batch)
    assert DEAD[state] in str(away.value)
    await sink.flush(claim, batch)  # on a session of its own
    await sink.close()
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(bodies))
    assert not books.difference(books.stored_in_database(url), books.expected(oracle))


async def test_a_missing_function_is_not_taken_for_a_dead_session() -> None:
    """It is missing in every session: trying again would hide it."""

    class Missing(Exception):
        sqlstate = "42883"

    assert not connect.session_is_dead(Missing("function analytics.f(integer) does not exist"))
    assert connect.session_is_dead(Missing('could not find function "f" in file "x.so"'))


async def test_a_privilege_that_was_taken_is_waited_for(embedded_postgres_url: str) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE ROLE poor")
        connection.execute("GRANT poor TO CURRENT_USER")
    sink = TimescaleSink(url)
    try:
        for _ in range(2):
            await (await sink.database.connection()).execute("SET ROLE poor")
            with pytest.raises(SinkUnavailable, match="permission denied") as away:
                await sink.check_schema()
            assert away.value.trouble is Trouble.REFUSED
        await sink.check_schema()
    finally:
        await sink.close()
        with psycopg.connect(url) as connection:
            connection.execute("DROP ROLE poor")


@pytest.mark.parametrize("state", ["42710", "XX000", "0A000"])
def test_the_api_leaves_a_dead_session_and_answers_from_a_new_one(
    embedded_postgres_url: str, state: str
) -> None:
    """A view that fails in the sessions that are there, as a library does that is not the catalog's."""
    url = embedded_postgres_url
    migrated.upgrade(url)
    load(url, random_events(50, 1), WATERMARKS)
    span = {"start": "2026-11-10T00:00:00Z", "end": "2026-11-11T00:00:00Z", "groupBy": "none"}

    def asked(server: Api) -> list[Any]:
        questions = ((f"/orgs/{ORG}/freshness", ()), (f"/orgs/{ORG}/usage", span))
        return [server.ok(BASE + path, query) for path, query in questions]

    with served({"DATABASE_URL": url}, NOW) as server:
        before = asked(server)
        with psycopg.connect(url) as connection:
            pids = connection.execute(
                "SELECT array_agg(pid)::text FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            ).fetchone()
            assert pids is not None
            connection.execute(
                f"""CREATE FUNCTION public.fail() RETURNS boolean LANGUAGE plpgsql AS $$
                BEGIN
                    IF pg_backend_pid() = ANY ('{pids[0]}') THEN
                        RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = '{DEAD[state]}';
                    END IF;
                    RETURN true;
                END $$"""
            )
            for table in ("orgs_seen", "partitions", "usage_hour", "usage_minute", "usage_day"):
                connection.execute(f"ALTER TABLE analytics.{table} RENAME TO {table}_table")
                connection.execute(
                    f"CREATE VIEW analytics.{table} AS"
                    f" SELECT * FROM analytics.{table}_table WHERE public.fail()"
                )
        assert asked(server) == before
        assert server.get(f"{BASE}/status/readyz")[0] == 200
