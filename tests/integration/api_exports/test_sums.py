"""One truth by dimension: models, clients and the values of each dimension add up to the same everywhere.

The count has more models, clients and values than may be counted by name, a price book and events without a
price. The views by hour and by day are held against REST, REST against its pages of any size, and both
against the live figures and the files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core import wire
from tests.support.api_facts import Figures, bucket_of, figures, floor, rfc3339, summed
from tests.support.api_server import BASE, Api
from tests.support.dimensions import NAMES, NOW
from tests.support.exports import GRANULARITIES
from tests.support.live import Events
from tests.support.mixed_usage import DAYS, MIX, ORG, file_of, usage_of
from tests.support.spend_rows import rows

SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
SPLITS = ("client", *NAMES)
EVERY_GROUPING = ("none", "model", *SPLITS, *(f"model,{name}" for name in SPLITS))
PAGES_MAX = 12


def groupings(granularity: str) -> tuple[str, ...]:
    """Rows by minute are neither by client nor by dimension."""
    return ("none", "model") if granularity == "minute" else EVERY_GROUPING


def usage(server: Api, query: dict[str, Any]) -> Any:
    return server.ok(f"{BASE}/orgs/{ORG}/usage", query)


def paged(server: Api, query: dict[str, Any], size: int) -> Iterator[Any]:
    """The points of all pages. The size of a page grows until there are at most `PAGES_MAX` of them."""
    whole = usage(server, query | {"limit": 10_000})
    assert whole["nextCursor"] is None
    size = max(size, -(-len(whole["series"]) // PAGES_MAX))
    pages = 0
    cursor: dict[str, str] = {}
    while True:
        page = usage(server, query | {"limit": size} | cursor)
        assert page["totals"] == whole["totals"]
        assert len(page["series"]) <= size
        yield from page["series"]
        pages += 1
        if page["nextCursor"] is None:
            assert pages == max(1, -(-len(whole["series"]) // size))
            return
        cursor = {"cursor": page["nextCursor"]}


def added_up(parts: Iterable[tuple[Any, Figures]]) -> dict[Any, Figures]:
    """The sums of the figures that have the same key."""
    groups: dict[Any, list[Figures]] = defaultdict(list)
    for key, part in parts:
        groups[key].append(part)
    return {key: summed(group) for key, group in groups.items()}


def start_of(point: Any) -> datetime:
    return datetime.fromisoformat(point["bucketStart"])


def spent(url: str, view: str, models: list[str]) -> list[tuple[datetime, Figures]]:
    """The rows of a view of spend: the start and the figures of each."""
    with psycopg.connect(url) as connection:
        connection.execute("SET timezone = 'UTC'")
        found = rows(
            connection,
            f"SELECT * FROM analytics.{view} WHERE org_id = %s"
            " AND (cardinality(%s::uuid[]) = 0 OR model_id = ANY(%s::uuid[]))",
            (ORG, models, models),
        )
    counts = (
        *("invocations", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
        *("cache_write_1h_tokens", "reasoning_tokens", "unpriced"),
    )
    return [(row["bucket_start"], (*(row[name] for name in counts), row["cost"])) for row in found]


@st.composite
def spans(draw: st.DrawFn) -> tuple[datetime, datetime]:
    """Whole hours that end in the hour of the newest events or up to half a day before it."""
    end = floor(NOW, "hour") + timedelta(hours=1 - draw(st.integers(0, 12)))
    return end - timedelta(hours=draw(st.integers(1, 30))), end


@pytest.mark.parametrize("granularity", ["minute", "hour", "day", "week", "month"])
@settings(max_examples=4, suppress_health_check=SLOW)
@given(
    span=spans(),
    zone=st.sampled_from(("UTC", "America/Los_Angeles")),
    models=st.sets(st.sampled_from([*MIX.models, str(wire.OVERFLOW_MODEL)]), max_size=3).map(sorted),
    size=st.integers(1, 300),
)
def test_models_clients_and_the_values_of_each_dimension_add_up_to_the_same(
    mixed: Api,
    mixed_url: str,
    granularity: str,
    span: tuple[datetime, datetime],
    zone: str,
    models: list[str],
    size: int,
) -> None:
    start, end = span
    if granularity == "minute":
        start = max(start, end - timedelta(hours=24))  # a longer range has too many minutes
    time_range = {"start": rfc3339(start), "end": rfc3339(end)}
    query = {**time_range, "granularity": granularity, "timeZone": zone, "modelId": models}

    def bucket(at: datetime) -> str:
        return rfc3339(bucket_of(at, "hour" if granularity == "minute" else granularity, zone))

    def by_bucket_and_model(points: Iterable[Any]) -> dict[Any, Figures]:
        return added_up(((point["bucketStart"], point["modelId"]), figures(point)) for point in points)

    in_views = added_up(
        (bucket(at), part) for at, part in spent(mixed_url, "spend_hour", models) if start <= at < end
    )
    whole = usage(mixed, query | {"groupBy": "model", "limit": 10_000})
    by_model = by_bucket_and_model(whole["series"])
    for groups in groupings(granularity):
        points = list(paged(mixed, query | {"groupBy": groups}, size))
        in_points = added_up((bucket(start_of(point)), figures(point)) for point in points)
        assert in_points == in_views, f"REST by {groups}"
        if "model" in groups:
            assert by_bucket_and_model(points) == by_model, f"REST by {groups}: the models apart"
        totals = usage(mixed, query | {"groupBy": groups})["totals"]
        assert figures(totals) == summed(in_views.values()), f"totals by {groups}"
    for groups in groupings(granularity) if granularity != "minute" else ():  # no file is by minute
        order = {
            "timeRange": time_range,
            "granularity": next(name for name, same in GRANULARITIES.items() if same == granularity),
            "format": "csv",
            "timeZone": zone,
            "groupBy": groups,
            "models": models,
        }
        in_file = usage_of(order, file_of(mixed, order))
        assert added_up((key[0], part) for key, part in in_file.items()) == in_views, f"CSV by {groups}"


@settings(max_examples=3, suppress_health_check=SLOW)
@given(size=st.integers(1, 300))
def test_the_live_figures_are_what_models_clients_and_values_add_up_to(mixed: Api, size: int) -> None:
    with closing(Events(mixed, ORG)) as events:
        _, live = events.until("usage")
    for granularity in ("minute", "hour", "day", "month"):
        shown = live[granularity]
        start = start_of(shown)
        length = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
        end = (
            start + length[granularity]
            if granularity in length
            else (start + timedelta(days=32)).replace(day=1)
        )
        query = {"start": rfc3339(start), "end": rfc3339(end), "granularity": granularity}
        for groups in groupings(granularity):
            points = paged(mixed, query | {"groupBy": groups}, size)
            assert summed(map(figures, points)) == figures(shown), f"{granularity} by {groups}"


def test_the_count_has_more_names_than_it_may_name_and_costs_of_each_kind(mixed: Api, mixed_url: str) -> None:
    """What makes the sums above hard: without it they could be right by chance."""
    for name in SPLITS:
        points = usage(mixed, DAYS | {"granularity": "day", "groupBy": f"model,{name}", "limit": 10_000})
        assert str(wire.OVERFLOW_MODEL) in {point["modelId"] for point in points["series"]}
        values = {point["clientId"] if name == "client" else point["value"] for point in points["series"]}
        assert {None, wire.OVERFLOW_CLIENT if name == "client" else wire.OVERFLOW_VALUE} < values
    totals = usage(mixed, DAYS)["totals"]
    assert totals["cost"]["basis"] == "mixed"
    assert 0 < totals["unpriced"]["invocations"] < totals["invocations"]
    by_day = spent(mixed_url, "spend_day", [])
    assert added_up(by_day) == added_up(
        (floor(at, "day"), part) for at, part in spent(mixed_url, "spend_hour", [])
    )
    assert summed(part for _, part in by_day) == figures(totals)
