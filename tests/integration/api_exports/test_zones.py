"""Files in time zones: local days, weeks and months, as REST has them."""

import csv
import io
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import focus
from tests.support.api_facts import MODELS, NOW, ORG, bucket_of, figures, floor, rfc3339, summed
from tests.support.api_server import BASE, Api
from tests.support.export_servers import OCTOBER, queued
from tests.support.exports import (
    EXPORTS,
    GRANULARITIES,
    downloaded,
    expected_rows,
    made,
    order,
    rows_of,
)

ON_THE_HOUR = ("UTC", "America/Los_Angeles", "Europe/London", "Pacific/Auckland", "Pacific/Kiritimati")
OFF_THE_HOUR = ("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
WEST = "America/Los_Angeles"
SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """Any order in any zone that the rows can answer exactly."""
    form = draw(st.sampled_from(("csv", "csv-excel", "parquet", "focus-1.2", "focus-1.3")))
    granularity = draw(st.sampled_from(sorted(GRANULARITIES)))
    by_model = form.startswith("focus") or draw(st.booleans())
    minutes = by_model and draw(st.booleans())  # what only minute rows can answer
    zone = draw(st.sampled_from(OFF_THE_HOUR if minutes else ON_THE_HOUR))
    back, length = (8, 3 * 1440) if minutes else (300, 30 * 1440)
    start = NOW - timedelta(days=back) + timedelta(minutes=draw(st.integers(0, back * 1440)))
    end = start + timedelta(minutes=draw(st.integers(1, length)))
    grain = "minute" if minutes else "hour"
    span = {"start": floor(start, grain), "end": floor(end, grain) + timedelta(hours=1)}
    return {
        "timeRange": {name: rfc3339(at) for name, at in span.items()},
        "granularity": granularity,
        "format": form,
        "timeZone": zone,
        "groupBy": "model" if by_model else "model,client",
        "models": sorted(map(str, draw(st.sets(st.sampled_from(MODELS), max_size=2)))),
    }


@settings(max_examples=40, suppress_health_check=SLOW)
@given(body=orders())
def test_a_file_in_any_zone_is_a_naive_count_and_what_rest_says(server: Api, body: dict[str, Any]) -> None:
    job = made(server, body)
    assert (job["status"], job["timeZone"], job["groupBy"]) == (
        "succeeded",
        body["timeZone"],
        body["groupBy"],
    )
    found = rows_of(body, downloaded(server, job))
    assert found == expected_rows(body)
    query = {
        **body["timeRange"],
        "granularity": GRANULARITIES[body["granularity"]],
        "timeZone": body["timeZone"],
        "modelId": body["models"],
        "limit": 10_000,
    }
    answer = server.ok(f"{BASE}/orgs/{ORG}/usage", query)
    points = {(point["bucketStart"], point["modelId"]): figures(point) for point in answer["series"]}
    groups: dict[Any, list[Any]] = {}
    for (bucket, model, _), row in found.items():
        groups.setdefault((bucket, model), []).append(row)
    assert {key: summed(rows) for key, rows in groups.items()} == points
    assert summed(found.values()) == figures(answer["totals"])


def focus_file(server: Api, **body: Any) -> list[Any]:
    job = made(server, {"format": "focus-1.2", **body})
    assert job["status"] == "succeeded", job
    return focus.rows_of(downloaded(server, job))


def test_charge_periods_have_23_and_25_hours_and_billing_periods_are_local_months(server: Api) -> None:
    for start, end, change, hours in (
        ("2026-03-07T08:00:00Z", "2026-03-10T07:00:00Z", "2026-03-08T08:00:00Z", 23),
        ("2026-10-31T07:00:00Z", "2026-11-03T08:00:00Z", "2026-11-01T07:00:00Z", 25),
    ):
        rows = focus_file(server, timeRange={"start": start, "end": end}, granularity="daily", timeZone=WEST)
        lengths = {
            row["ChargePeriodStart"]: datetime.fromisoformat(row["ChargePeriodEnd"])
            - datetime.fromisoformat(row["ChargePeriodStart"])
            for row in rows
        }
        assert lengths.pop(change) == timedelta(hours=hours)
        assert set(lengths.values()) == {timedelta(hours=24)}
        for row in rows:
            month = bucket_of(datetime.fromisoformat(row["ChargePeriodStart"]), "month", WEST)
            later = bucket_of(month + timedelta(days=40), "month", WEST)
            periods = row["BillingPeriodStart"], row["BillingPeriodEnd"]
            assert periods == (rfc3339(month), rfc3339(later))


def test_a_week_is_billed_in_the_month_in_which_its_charge_begins(server: Api) -> None:
    span = {"start": "2026-10-26T00:00:00Z", "end": "2026-11-10T00:00:00Z"}
    found = {
        (row["ChargePeriodStart"], row["ChargePeriodEnd"], row["BillingPeriodStart"])
        for row in focus_file(server, timeRange=span, granularity="weekly")
    }
    assert found == {
        ("2026-10-26T00:00:00Z", "2026-11-02T00:00:00Z", OCTOBER["start"]),
        ("2026-11-02T00:00:00Z", "2026-11-09T00:00:00Z", OCTOBER["end"]),
        ("2026-11-09T00:00:00Z", "2026-11-10T00:00:00Z", OCTOBER["end"]),
    }
    later = {**span, "start": "2026-11-01T00:00:00Z"}
    first = min(
        focus_file(server, timeRange=later, granularity="weekly"), key=lambda row: row["ChargePeriodStart"]
    )
    assert (first["ChargePeriodStart"], first["BillingPeriodStart"]) == (later["start"], later["start"])


def test_an_hourly_order_may_have_31_local_days(server: Api) -> None:
    """October has 745 hours where summer time ends in it."""
    october = {"start": "2026-09-30T22:00:00Z", "end": "2026-10-31T23:00:00Z"}
    body = {"timeRange": october, "granularity": "hourly"}
    assert order(server, body)[0] == 400
    assert made(server, body | {"timeZone": "Europe/Berlin"})["status"] == "succeeded"


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"timeZone": "Mars/Olympus"}, "timeZone", "IANA"),
        ({"timeZone": 5}, "timeZone", "IANA"),
        ({"timeZone": "Asia/Kolkata"}, "timeZone", "figures by client exist from the hour grain up"),
        ({"timeZone": "Asia/Kolkata", "format": "focus-1.2"}, "timeZone", "minute rows"),
        ({"timeZone": "Asia/Kolkata", "groupBy": "model"}, "timeZone", "go back to 2026-10-27T12:34Z only"),
        ({"groupBy": "Client"}, "groupBy", "expected model, client or a dimension"),
    ],
)
def test_a_zone_that_the_rows_cannot_answer_is_refused_as_by_rest(
    server: Api, change: dict[str, Any], field: str, message: str
) -> None:
    status, problem = order(server, {"timeRange": OCTOBER, **change})
    assert status == 400
    [fault] = problem["errors"]
    assert fault["field"] == field
    assert message in fault["message"]


def test_the_key_of_an_order_is_bound_to_its_zone_and_grouping(server: Api) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"timeRange": OCTOBER, "granularity": "monthly"}
    first = order(server, body, key)[1]
    assert (
        order(server, body | {"timeZone": "UTC", "groupBy": "model,client"}, key)[1]["jobId"]
        == first["jobId"]
    )
    for change in ({"timeZone": WEST}, {"groupBy": "model"}):
        assert order(server, body | change, key)[0] == 409


def test_a_job_from_before_means_utc_and_clients(server: Api, database_url: str) -> None:
    job_id = queued(database_url, ORG)
    body = {"timeRange": {"start": "2026-11-01T00:00:00Z", "end": "2026-11-09T00:00:00Z"}, "format": "csv"}
    body |= {"granularity": "daily"}
    made(server, body)  # by then the older job is made, too
    job = server.ok(f"{EXPORTS}/{job_id}")
    assert (job["status"], job["timeZone"], job["groupBy"]) == ("succeeded", "UTC", "model,client")
    assert rows_of(body, downloaded(server, job)) == expected_rows(body)


def test_an_order_without_clients_has_none_in_its_file(server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "granularity": "monthly", "groupBy": "model"})
    lines = list(csv.DictReader(io.StringIO(downloaded(server, job).decode(), newline="")))
    assert len(lines) == len(MODELS)
    assert {line["clientId"] for line in lines} == {""}
