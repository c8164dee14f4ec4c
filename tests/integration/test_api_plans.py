"""No query of any route scans more chunks than its range needs.

PostgreSQL itself tells: auto_explain sends the plan of each query, as it was run, to the connection that ran
it, and the connections of the API are listened to. So nothing is left out, no COPY and no query to come.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.common import connect
from tests.support.api_facts import MODELS, NOW, ORG, WATERMARKS, load
from tests.support.api_questions import EVENTS
from tests.support.api_server import BASE, Api, served
from tests.support.exports import made
from tests.support.live import Events
from tests.support.teams import load_teams

MINUTE, HOUR = NOW.replace(second=0), NOW.replace(minute=0, second=0)
DAY = HOUR.replace(hour=0)
LIVE = min(WATERMARKS.values())
WEEK, YEAR = timedelta(days=7), timedelta(days=390)
HOURS, DAYS = timedelta(hours=1), timedelta(days=1)

Needs = tuple[tuple[str, datetime, datetime], ...]
"""Tables, each with a range in which it may be read."""


@dataclass(slots=True)
class Plans:
    """What the API's connections were told of their queries."""

    texts: list[str] = field(default_factory=list)

    def note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if (diagnostic.message_primary or "").startswith("duration:"):
            self.texts.append(diagnostic.message_primary or "")

    def scanned(self) -> set[str]:
        return {
            chunk
            for text in self.texts
            for line in text.splitlines()
            if "never executed" not in line
            for chunk in re.findall(r"on (?:\w+\.)?(_hyper_\d+_\d+_chunk)", line)
        }


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Plans:
    """Heard from now on, on every connection that this process opens."""
    plans = Plans()
    open_, open_async = connect.Connection.connect, connect.AsyncConnection.connect

    def listening(*arguments: Any, **options: Any) -> Any:
        connection = open_(*arguments, **options)
        connection.add_notice_handler(plans.note)
        return connection

    async def listening_async(*arguments: Any, **options: Any) -> Any:
        connection = await open_async(*arguments, **options)
        connection.add_notice_handler(plans.note)
        return connection

    monkeypatch.setattr(connect.AsyncConnection, "connect", listening_async)
    monkeypatch.setattr(connect.Connection, "connect", listening)
    return plans


@pytest.fixture
def database_url(migrated_timescale: str) -> str:
    load(migrated_timescale, EVENTS, WATERMARKS)
    load_teams(migrated_timescale)
    with psycopg.connect(migrated_timescale, autocommit=True) as connection:
        for name, value in (
            ("session_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_level", "notice"),
            ("auto_explain.log_analyze", "on"),
        ):
            database = connection.info.dbname
            connection.execute(f"ALTER DATABASE \"{database}\" SET {name} = '{value}'")
    return migrated_timescale


@pytest.fixture
def server(database_url: str, plans: Plans, tmp_path: Path) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url, "EXPORT_DIR": str(tmp_path)}, NOW) as server:
        yield server


def chunks_of(url: str, needs: Needs) -> set[str]:
    with psycopg.connect(url) as connection:
        return {
            name
            for table, start, end in needs
            for (name,) in connection.execute(
                "SELECT chunk_name FROM timescaledb_information.chunks"
                " WHERE hypertable_schema = 'analytics' AND hypertable_name = %s"
                " AND range_start < %s AND range_end > %s",
                (table, end, start),
            )
        }


def asked(route: str, start: datetime, end: datetime, **query: Any) -> Callable[[Api], None]:
    def ask(server: Api) -> None:
        server.ok(f"{BASE}{route}", {"start": start.isoformat(), "end": end.isoformat(), **query})

    return ask


def paged(route: str, start: datetime, end: datetime, **query: Any) -> Callable[[Api], None]:
    """The second page only counts; the first gives its cursor."""

    def ask(server: Api) -> None:
        whole = {"start": start.isoformat(), "end": end.isoformat(), "limit": 2, **query}
        cursor = server.ok(f"{BASE}{route}", whole)["nextCursor"]
        server.ok(f"{BASE}{route}", {**whole, "cursor": cursor})

    return ask


def listed(route: str) -> Callable[[Api], None]:
    return lambda server: server.ok(f"{BASE}{route}")


def followed(server: Api) -> None:
    with closing(Events(server, ORG)) as events:
        events.until("usage")


def exported(granularity: str, form: str, start: datetime, end: datetime) -> Callable[[Api], None]:
    def export(server: Api) -> None:
        span = {"start": start.isoformat(), "end": end.isoformat()}
        job = made(server, {"timeRange": span, "granularity": granularity, "format": form})
        assert job["status"] == "succeeded", job

    return export


ORG_PATH = f"/orgs/{ORG}"
ROUTES: dict[str, tuple[Callable[[Api], None], Needs]] = {
    "hours": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour"),
        (("usage_hour", HOUR - WEEK, HOUR),),
    ),
    "hours, first page": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", limit=3),
        (
            ("usage_hour", HOUR - WEEK, HOUR),
            ("usage_day", HOUR - WEEK, HOUR),
        ),
    ),
    "hours, pages": (
        paged(f"{ORG_PATH}/usage", HOUR - 10 * WEEK, HOUR, granularity="hour"),
        (("usage_hour", HOUR - 10 * WEEK, HOUR), ("usage_day", HOUR - 10 * WEEK, HOUR)),
    ),
    "hours off the hour": (
        asked(f"{ORG_PATH}/usage", MINUTE - WEEK, MINUTE, granularity="hour"),
        (
            ("usage_hour", MINUTE - WEEK, MINUTE),
            ("usage_minute", MINUTE - WEEK, HOUR - WEEK + HOURS),
            ("usage_minute", HOUR, MINUTE),
        ),
    ),
    "hours of a model": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", modelId=str(MODELS[0])),
        (("usage_hour", HOUR - WEEK, HOUR),),
    ),
    "hours by model and client": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", groupBy="model,client"),
        (("client_hour", HOUR - WEEK, HOUR),),
    ),
    "hours of clients": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", clientId=["alpha", ""]),
        (("client_hour", HOUR - WEEK, HOUR),),
    ),
    "hours together": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", groupBy="none"),
        (("usage_hour", HOUR - WEEK, HOUR),),
    ),
    "days": (asked(f"{ORG_PATH}/usage", DAY - YEAR, DAY), (("usage_day", DAY - YEAR, DAY),)),
    "days, pages": (paged(f"{ORG_PATH}/usage", DAY - YEAR, DAY), (("usage_day", DAY - YEAR, DAY),)),
    "days by client": (
        asked(f"{ORG_PATH}/usage", DAY - 100 * DAYS, DAY, groupBy="client"),
        (("client_day", DAY - 100 * DAYS, DAY),),
    ),
    "hours by model and team": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", groupBy="model,team"),
        (("breakdown_hour", HOUR - WEEK, HOUR),),
    ),
    "hours of teams": (
        asked(f"{ORG_PATH}/usage", HOUR - WEEK, HOUR, granularity="hour", dimension=["team:alpha", "team:"]),
        (("breakdown_hour", HOUR - WEEK, HOUR),),
    ),
    "days by team": (
        asked(f"{ORG_PATH}/usage", DAY - 100 * DAYS, DAY, groupBy="team"),
        (("breakdown_day", DAY - 100 * DAYS, DAY),),
    ),
    "days with edges": (
        asked(f"{ORG_PATH}/usage", HOUR - 30 * DAYS, HOUR),
        (
            ("usage_day", DAY - 29 * DAYS, DAY),
            ("usage_hour", HOUR - 30 * DAYS, DAY - 29 * DAYS),
            ("usage_hour", DAY, HOUR),
        ),
    ),
    "days with edges by model and client": (
        asked(f"{ORG_PATH}/usage", HOUR - 30 * DAYS, HOUR, groupBy="model,client"),
        (
            ("client_day", DAY - 29 * DAYS, DAY),
            ("client_hour", HOUR - 30 * DAYS, DAY - 29 * DAYS),
            ("client_hour", DAY, HOUR),
        ),
    ),
    "days of Los Angeles": (
        asked(f"{ORG_PATH}/usage", DAY - 40 * DAYS, HOUR, timeZone="America/Los_Angeles"),
        (("usage_hour", DAY - 40 * DAYS, HOUR),),
    ),
    "days of Kolkata": (
        asked(f"{ORG_PATH}/usage", DAY - 9 * DAYS, HOUR, timeZone="Asia/Kolkata"),
        (("usage_hour", DAY - 9 * DAYS, HOUR), ("usage_minute", DAY - 9 * DAYS, HOUR)),
    ),
    "months": (
        asked(f"{ORG_PATH}/usage", DAY - YEAR, DAY, granularity="month"),
        (("usage_day", DAY - YEAR, DAY),),
    ),
    "minutes": (
        asked(f"{ORG_PATH}/usage", MINUTE - 20 * HOURS, MINUTE, granularity="minute"),
        (("usage_minute", MINUTE - 20 * HOURS, MINUTE),),
    ),
    "reliability": (
        asked(f"{ORG_PATH}/reliability", DAY - WEEK, DAY),
        (("usage_day", DAY - WEEK, DAY), ("usage_errors_hour", DAY - WEEK, DAY)),
    ),
    "reliability by hour and client, pages": (
        paged(f"{ORG_PATH}/reliability", HOUR - WEEK, HOUR, granularity="hour", groupBy="client"),
        (
            ("client_hour", HOUR - WEEK, HOUR),
            ("client_day", HOUR - WEEK, HOUR),
            ("usage_errors_hour", HOUR - WEEK, HOUR),
        ),
    ),
    "all orgs": (
        asked("/orgs", HOUR - 30 * DAYS, HOUR),
        (
            ("usage_day", DAY - 29 * DAYS, DAY),
            ("usage_hour", HOUR - 30 * DAYS, DAY - 29 * DAYS),
            ("usage_hour", DAY, HOUR),
        ),
    ),
    "csv by hour": (
        exported("hourly", "csv", HOUR - WEEK, HOUR),
        (("client_hour", HOUR - WEEK, HOUR),),
    ),
    "focus by day": (
        exported("daily", "focus-1.2", DAY - 100 * DAYS, DAY),
        (("usage_day", DAY - 100 * DAYS, DAY),),
    ),
    "parquet by month": (
        exported("monthly", "parquet", DAY - 100 * DAYS, DAY),
        (("client_day", DAY - 100 * DAYS, DAY),),
    ),
    "freshness": (listed(f"{ORG_PATH}/freshness"), ()),
    "models": (listed(f"{ORG_PATH}/models"), ()),
    "clients": (listed(f"{ORG_PATH}/clients"), ()),
    "dimensions": (listed(f"{ORG_PATH}/dimensions"), ()),
    "teams": (listed(f"{ORG_PATH}/dimensions/team"), ()),
    "adjustments": (listed(f"{ORG_PATH}/adjustments"), ()),
    "exports": (listed(f"{ORG_PATH}/exports"), ()),
    "schedule": (lambda server: server.get(f"{BASE}{ORG_PATH}/export-schedule") and None, ()),
    "readiness": (listed("/status/readyz"), ()),
    # The last one: the server may ask once more for a follower who has gone.
    "live": (
        followed,
        (
            ("usage_minute", LIVE.replace(second=0), MINUTE),
            ("usage_hour", HOUR, HOUR + HOURS),
            ("usage_day", DAY.replace(day=1), DAY.replace(month=DAY.month + 1, day=1)),
        ),
    ),
}


def test_no_query_of_any_route_scans_more_chunks_than_its_range_needs(
    server: Api, database_url: str, plans: Plans
) -> None:
    listed("/status/readyz")(server)
    for name, (ask, needs) in ROUTES.items():
        plans.texts.clear()
        ask(server)
        assert plans.texts, f"{name}: no plan was heard"
        scanned, allowed = plans.scanned(), chunks_of(database_url, needs)
        assert scanned <= allowed, (name, scanned - allowed, "\n\n".join(plans.texts))
        assert bool(scanned) == bool(needs), (name, plans.texts)
    assert len(chunks_of(database_url, (("usage_hour", NOW - 500 * DAYS, NOW),))) > 40
