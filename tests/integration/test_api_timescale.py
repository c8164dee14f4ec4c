"""The same queries on TimescaleDB: the same figures, and no more chunks than the range needs."""

import asyncio
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from multidict import MultiDict
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from api import rollups
from api.config import RangeConfig
from api.cursors import Cursors
from api.questions import FiguresQuestion, Parser
from sql import migrate
from tests.integration.test_api import (
    BASE,
    EVENTS,
    NOW,
    ORG,
    WATERMARKS,
    Api,
    Question,
    check_reliability,
    expected_usage,
    key_of,
    load,
    questions,
    served,
    shown_usage,
)


@pytest.fixture
def database_url(timescale: str) -> str:
    migrate.upgrade(timescale)
    load(timescale, EVENTS, WATERMARKS)
    return timescale


@pytest.fixture
def server(database_url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        yield server


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=questions())
def test_figures_on_timescaledb_equal_a_naive_count(server: Api, question: Question) -> None:
    expected = question.series(EVENTS)
    query = {**question.query(), "limit": 10_000}
    usage = server.ok(f"{BASE}/orgs/{ORG}/usage", query)
    assert [key_of(point) for point in usage["series"]] == [key for key, _ in expected]
    for point, (_, events) in zip(usage["series"], expected, strict=True):
        assert shown_usage(point) == expected_usage(events)
    assert shown_usage(usage["totals"]) == expected_usage(question.chosen(EVENTS))
    check_reliability(server.ok(f"{BASE}/orgs/{ORG}/reliability", query)["totals"], question.chosen(EVENTS))


class _Asked(Exception):
    """What would have been executed."""


class _Listener:
    async def execute(self, statement: Any) -> Any:
        raise _Asked(statement)


def plan(url: str, question: FiguresQuestion) -> str:
    """EXPLAIN of the series' query, bound as the API binds it."""
    with pytest.raises(_Asked) as caught:
        asyncio.run(rollups.series(_Listener(), question, rollups.USAGE, 1001))  # type: ignore[arg-type]
    compiled = caught.value.args[0].compile(
        dialect=PGDialect_psycopg(), compile_kwargs={"render_postcompile": True}
    )
    with psycopg.connect(url, prepare_threshold=None) as connection:
        rows = connection.execute("EXPLAIN " + compiled.string, compiled.params)
        return "\n".join(line for (line,) in rows)


def needed(url: str, table: str, start: datetime, end: datetime) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT chunk_name FROM timescaledb_information.chunks"
            " WHERE hypertable_schema = 'analytics' AND hypertable_name = %s"
            " AND range_start < %s AND range_end > %s",
            (table, end, start),
        )
        return {name for (name,) in rows}


DAY = NOW.replace(hour=0, minute=0, second=0)
HOUR = NOW.replace(minute=0, second=0)
MINUTE = NOW.replace(second=0)
RANGES: tuple[tuple[dict[str, str], datetime, datetime, tuple[str, ...]], ...] = (
    ({"granularity": "hour"}, HOUR - timedelta(days=7), HOUR, ("usage_hour",)),
    ({"granularity": "hour"}, MINUTE - timedelta(days=7), MINUTE, ("usage_hour", "usage_minute")),
    ({"granularity": "day"}, DAY - timedelta(days=390), DAY, ("usage_day",)),
    ({"granularity": "month"}, DAY - timedelta(days=390), DAY, ("usage_day",)),
    ({"timeZone": "America/Los_Angeles"}, DAY - timedelta(days=40), HOUR, ("usage_hour",)),
    ({"timeZone": "Asia/Kolkata"}, DAY - timedelta(days=9), HOUR, ("usage_hour", "usage_minute")),
    ({"granularity": "minute"}, MINUTE - timedelta(hours=20), MINUTE, ("usage_minute",)),
    ({"groupBy": "client"}, DAY - timedelta(days=100), DAY, ("client_day",)),
)


def test_no_plan_scans_more_chunks_than_the_range_needs(database_url: str) -> None:
    parser = Parser(ranges=RangeConfig(), cursors=Cursors(b"secret"), clock=lambda: NOW)
    for query, start, end, tables in RANGES:
        pairs = {"start": start.isoformat(), "end": end.isoformat(), **query}
        shown = plan(database_url, parser.figures("usage", ORG, MultiDict(pairs)))
        scanned = set(re.findall(r"_hyper_\d+_\d+_chunk", shown))
        assert scanned
        assert scanned <= {name for table in tables for name in needed(database_url, table, start, end)}, (
            shown
        )
