"""One truth about what was spent: every answer and file says what a naive count says, on both databases."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.prices import book, compare
from tests.support import focus
from tests.support.api_facts import rfc3339
from tests.support.api_server import BASE
from tests.support.exports import downloaded, ended
from tests.support.live import Events, check_equals_rest
from tests.support.price_books import price, write
from tests.support.priced_place import Place
from tests.support.priced_usage import (
    EVERYTHING,
    WATERMARK,
    Spent,
    amount,
    key_of,
    shown,
)
from tests.support.spend_rows import BOOK, DAY, MODELS, ORGS, rows

SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
ZONES = ("UTC", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Kiritimati")


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    granularity = draw(st.sampled_from(("minute", "hour", "day", "week", "month")))
    groups = draw(
        st.sampled_from(((), ("model",), ("client",), ("model", "client"), ("team",), ("model", "team")))
    )
    zone = draw(st.sampled_from(ZONES))
    if {"client", "team"} & {*groups} and (granularity == "minute" or zone == "Asia/Kolkata"):
        zone, granularity = "UTC", "day"
    hours = draw(st.integers(1, 24 if granularity == "minute" else 80))
    start = DAY + timedelta(hours=draw(st.integers(-4, 70)))
    return {
        "start": start,
        "end": start + timedelta(hours=hours),
        "granularity": granularity,
        "groupBy": groups,
        "timeZone": zone,
        "modelId": sorted(draw(st.sets(st.sampled_from(sorted(MODELS)), max_size=3))),
        "limit": draw(st.sampled_from((1, 7, 10_000))),
        "costBasis": draw(st.sampled_from(("auto", "auto", "book", "estimate"))),
        "version": draw(st.none() | st.integers(0, len(BOOK))),
    }


def key_in(point: Mapping[str, Any]) -> tuple[str, str, str]:
    return point["bucketStart"], point["modelId"] or "", point["clientId"] or point["value"] or ""


@settings(max_examples=60, suppress_health_check=SLOW)
@given(asked=questions(), org=st.sampled_from(ORGS))
def test_every_page_of_every_question_costs_what_a_naive_count_says(
    place: Place, asked: dict[str, Any], org: str
) -> None:
    version = place.version if asked["version"] is None else asked["version"]
    parts = [
        part
        for part in place.world.parts(org)
        if asked["start"] <= part.minute < asked["end"] and part.model in (asked["modelId"] or MODELS)
    ]
    key = key_of(asked["granularity"], asked["timeZone"], asked["groupBy"])
    basis = asked["costBasis"]
    expected = place.world.series(parts, key, version, basis)
    query = {
        **{name: value for name, value in asked.items() if name != "version"},
        "start": rfc3339(asked["start"]),
        "end": rfc3339(asked["end"]),
        "groupBy": asked["groupBy"] or ("none",),
        **({} if asked["version"] is None else {"priceVersion": version}),
    }
    found: list[tuple[Any, Spent]] = []
    cursor: dict[str, str] = {}
    for _ in range(4 if asked["limit"] == 1 else 1000):
        page = place.usage(org, query | cursor)
        assert page["priceVersion"] == version
        assert shown(page["totals"]) == place.world.spent(parts, version, basis)
        found += [(key_in(point), shown(point)) for point in page["series"]]
        if page["nextCursor"] is None:
            assert len(found) == len(expected)
            break
        cursor = {"cursor": page["nextCursor"]}
    assert found == list(expected.items())[: len(found)]


def test_rest_live_files_and_views_agree_at_one_version(place: Place) -> None:
    world, day = place.world, key_of("day", "UTC", ("model", "client"))
    for org in ORGS:
        parts = list(world.parts(org))
        total = world.spent(parts)
        assert total[1] == "mixed"
        by_day = world.series(parts, day)
        totals = place.usage(org, EVERYTHING)["totals"]
        assert shown(totals) == total
        body = {"timeRange": EVERYTHING, "granularity": "daily"}
        job, data = place.exported(org, body)
        assert (job["priceVersion"], job["costBasis"]) == (place.version, "auto")
        lines = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        assert {
            (row["bucketStart"], row["modelId"], row["clientId"]): (
                amount(row["costAmount"]),
                row["costBasis"],
                amount(row["estimateAmount"]),
                int(row["unpricedInvocations"]),
            )
            for row in lines
        } == by_day
        assert {(row["modelId"], row["provider"], row["modelName"]) for row in lines} == {
            (model, *names) for model, names in MODELS.items()
        }
        assert {row["priceVersion"] for row in lines} == {str(place.version)}
        _, data = place.exported(org, {**body, "format": "parquet"})
        table = pq.read_table(io.BytesIO(data)).to_pylist()
        assert {
            (rfc3339(row["bucketStart"]), row["modelId"], row["clientId"]): (
                row["costAmount"],
                row["costBasis"],
                row["estimateAmount"],
                row["unpricedInvocations"],
            )
            for row in table
        } == by_day
        assert {(row["modelId"], row["provider"] or "", row["modelName"] or "") for row in table} == {
            (model, *names) for model, names in MODELS.items()
        }
        _, data = place.exported(org, {**body, "format": "focus-1.2"})
        by_model = world.series(parts, key_of("day", "UTC", ("model",)))
        skus = focus.by_bucket(focus.rows_of(data))
        assert {(start, model, ""): focus.total(rows) for (start, model), rows in skus.items()} == {
            key: cost or 0 for key, (cost, *_) in by_model.items()
        }
        with closing(Events(place.server, org)) as events:
            _, live = events.until("usage")
        check_equals_rest(place.server, org, live)
        assert live["priceVersion"] == place.version
        assert datetime.fromisoformat(live["watermark"]) == WATERMARK
        assert shown(live["month"]) == total
        with psycopg.connect(place.url) as connection:
            for table_name in ("spend_hour", "spend_day"):
                query = f"SELECT sum(cost) AS cost, sum(unpriced) AS unpriced FROM analytics.{table_name}"
                [view] = rows(connection, f"{query} WHERE org_id = %s", (org,))
                assert (view["cost"], view["unpriced"]) == (total[0], total[3])
    listed = place.server.ok(f"{BASE}/orgs", EVERYTHING)
    assert listed["priceVersion"] == place.version
    assert {item["orgId"]: shown(item) for item in listed["items"]} == {
        org: world.spent(world.parts(org)) for org in ORGS
    }


_TABLES = (
    *("usage_minute", "usage_quarter", "usage_hour", "usage_day", "usage_errors_hour", "client_hour"),
    *("client_day", "breakdown_hour", "breakdown_day", "models_seen"),
)
_FORMATS = "csv", "csv-excel", "parquet", "focus-1.2", "focus-1.3"


def test_a_correction_leaves_every_answer_and_file_of_the_old_version_as_it_was_to_the_byte(
    place: Place,
) -> None:
    old = {"priceVersion": place.version}
    rows_before = _rows(place)
    assert all(rows_before[table] for table in _TABLES if table not in ("usage_quarter", "usage_errors_hour"))
    before = {org: _answers(place, org, old) for org in ORGS}
    _correct(place)
    assert _rows(place) == rows_before, "no row of usage was written"
    for org in ORGS:
        for name, (tag, body) in _answers(place, org, old).items():
            assert (name, tag, body) == (name, *before[org][name])
        newest = _answers(place, org, {})
        changed = {name for name, (_, body) in newest.items() if body != before[org][name][1]}
        assert changed == {*newest}, "each says the new version"
    query = EVERYTHING | {"granularity": "hour", "groupBy": "model"} | old
    tag = before[ORGS[0]]["usage by hour, model"][0] or ""
    path = f"{BASE}/orgs/{ORGS[0]}/usage"
    assert place.server.request("GET", path, query, headers={"If-None-Match": tag})[0] == 304


def _answers(place: Place, org: str, version: dict[str, Any]) -> dict[str, tuple[str | None, bytes]]:
    """Each question about an org and each file of it, by name: the tag and the bytes."""
    answers: dict[str, tuple[str | None, bytes]] = {}
    first_day = EVERYTHING | {"end": rfc3339(DAY + timedelta(days=1))}  # the longest range by minute
    for granularity in ("minute", "hour", "day", "week", "month"):
        span = first_day if granularity == "minute" else EVERYTHING
        for group_by in ("model", "none", *(("client", "team") if granularity != "minute" else ())):
            query = span | version | {"granularity": granularity, "groupBy": group_by}
            status, headers, body = place.server.request("GET", f"{BASE}/orgs/{org}/usage", query)
            assert status == 200, body
            answers[f"usage by {granularity}, {group_by}"] = headers["ETag"], body
    status, headers, body = place.server.request("GET", f"{BASE}/orgs", EVERYTHING | version)
    assert status == 200, body
    answers["orgs"] = headers["ETag"], body
    for form in _FORMATS:
        order = {"timeRange": EVERYTHING, "granularity": "hourly", "format": form} | version
        answers[form] = None, place.exported(org, order)[1]
    return answers


def _rows(place: Place) -> dict[str, list[Any]]:
    """Where each row of usage lies, and the transaction that wrote it: both change with any write."""
    with psycopg.connect(place.url) as connection:
        return {
            table: connection.execute(
                f"SELECT tableoid, xmin::text, ctid::text FROM analytics.{table} ORDER BY 1, 2, 3"
            ).fetchall()
            for table in _TABLES
        }


def _correct(place: Place) -> None:
    """Make another price of the model in the book's first row count, in a version of its own."""
    with psycopg.connect(place.url, autocommit=True) as connection:
        write(connection, [[price(rate=Decimal("3.25"), valid_from=DAY - timedelta(days=9))]])


def test_a_correction_costs_by_model_what_the_comparison_of_its_versions_says(place: Place) -> None:
    org = ORGS[0]
    path = f"{BASE}/orgs/{org}/usage"
    by_month = EVERYTHING | {"granularity": "month"}
    before = place.server.request("GET", path, by_month)
    _correct(place)
    tag = {"If-None-Match": before[1]["ETag"]}
    assert place.server.request("GET", path, by_month, headers=tag)[0] == 200, "the book has changed"
    span = {"start": DAY, "end": DAY + timedelta(days=3)}
    with book.connected(place.url) as connection:
        said = compare.between_versions(
            connection, place.version, place.version + 1, orgs=[UUID(org)], **span
        )
    after = place.usage(org, by_month)
    assert after["priceVersion"] == place.version + 1
    by_model = [
        {point["modelId"]: shown(point)[0] for point in answer["series"]}
        for answer in (json.loads(before[2]), after)
    ]
    assert {
        model: (was, now)
        for model, was, now in zip(by_model[0], *map(dict.values, by_model), strict=True)
        if was != now
    } == {str(one.model_id): (one.before, one.after) for one in said}
    assert len(said) == 1


def test_a_version_that_is_yet_to_come_is_refused(place: Place) -> None:
    version = {"priceVersion": place.version + 1}
    for path in (f"{BASE}/orgs/{ORGS[0]}/usage", f"{BASE}/orgs"):
        status, problem = place.server.get(path, EVERYTHING | version)
        assert status == 400
        assert problem["errors"] == [
            {
                "field": "priceVersion",
                "message": f"the price book has no version {place.version + 1} yet;"
                f" its newest is {place.version}",
            }
        ]
    assert place.usage(ORGS[0], EVERYTHING)["priceVersion"] == place.version
    status, problem = place.server.get(f"{BASE}/orgs/{UUID(int=1)}/usage", EVERYTHING | {"costBasis": "b"})
    assert status == 400
    assert problem["errors"][0]["field"] == "costBasis"


def test_a_job_keeps_the_version_of_its_order_and_one_from_before_the_book_takes_the_newest(
    place: Place,
) -> None:
    path = f"{BASE}/orgs/{ORGS[0]}/exports"
    _, file = place.exported(ORGS[0], {"timeRange": EVERYTHING})
    jobs: dict[int | None, str] = {place.version: str(UUID(int=1)), None: str(UUID(int=2))}
    with psycopg.connect(place.url, autocommit=True) as connection:
        write(connection, [[price(rate=Decimal(7), valid_from=DAY - timedelta(days=9))]])
        for version, job_id in jobs.items():  # ordered before that, and made after it
            connection.execute(
                "INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start,"
                " range_end, models, created_by, created_at, attempts, price_version)"
                " VALUES (%s, %s, 'pending', 'csv', 'daily', %s, %s, '{}', 'test', now(), 0, %s)",
                (job_id, ORGS[0], DAY, DAY + timedelta(days=3), version),
            )
    for version, job_id in jobs.items():
        job = ended(place.server, place.server.ok(f"{path}/{job_id}"), path)
        assert (job["status"], job["priceVersion"]) == ("succeeded", version or place.version + 1)
        assert (downloaded(place.server, job, path) == file) == (version is not None)
