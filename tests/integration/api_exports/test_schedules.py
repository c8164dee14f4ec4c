"""Schedules make local months, and a job may come too late. Only the runners of the tests make files here."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.support.api_facts import NOW, ORG
from tests.support.api_server import BASE, Api, served
from tests.support.export_servers import OCTOBER, STRANGER_ORG, queued, server_runner

OFF_THE_HOUR = ("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
WEST = "America/Los_Angeles"
SCHEDULE = f"{BASE}/orgs/{ORG}/export-schedule"


@pytest.fixture(scope="module")
def server(env: dict[str, str]) -> Iterator[Api]:
    with served({**env, "EXPORT_IN_API": "false"}, NOW) as server:
        yield server


@pytest.fixture
def no_schedule(database_url: str) -> Iterator[None]:
    yield
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM analytics.export_schedules")
        connection.execute("DELETE FROM analytics.export_jobs WHERE created_by = 'schedule'")


def scheduled(server: Api, **body: Any) -> tuple[int, Any]:
    status, _, answer = server.request("PUT", SCHEDULE, body=json.dumps(body).encode())
    return status, json.loads(answer)


@pytest.mark.usefixtures("no_schedule")
@pytest.mark.parametrize("zone", ["UTC", WEST, "Europe/Berlin", "Pacific/Kiritimati"])
def test_a_schedule_makes_local_months(
    env: dict[str, str], database_url: str, server: Api, zone: str
) -> None:
    status, answer = scheduled(server, granularity="weekly", timeZone=zone, groupBy="model")
    assert (status, answer["timeZone"], answer["groupBy"]) == (200, zone, "model")
    assert server.ok(SCHEDULE) == answer
    with psycopg.connect(database_url, autocommit=True) as connection:
        for now in (NOW, NOW, NOW + timedelta(days=3)):
            server_runner(env, now).schedule(connection)
        found = connection.execute(
            "SELECT range_start, range_end, time_zone, group_by, granularity, idempotency_key"
            " FROM analytics.export_jobs WHERE created_by = 'schedule'"
        ).fetchall()
        [job_id] = connection.execute(
            "SELECT job_id FROM analytics.export_jobs WHERE created_by = 'schedule'"
        ).fetchone() or [None]
    assert (answer["nextMonth"], answer["nextMonthFault"], answer["lastJob"]) == ("2026-10", None, None)
    shown = server.ok(SCHEDULE)
    assert shown["nextMonth"] == "2026-11"
    assert shown["lastJob"] == {"jobId": str(job_id), "month": "2026-10", "status": "pending", "error": None}
    at = ZoneInfo(zone)
    october = [datetime(2026, month, 1, tzinfo=at) for month in (10, 11)]
    assert found == [(*october, zone, "model", "weekly", "schedule:2026-10")]


@pytest.mark.usefixtures("no_schedule")
def test_a_schedule_is_of_what_it_names(env: dict[str, str], database_url: str, server: Api) -> None:
    status, answer = scheduled(server, groupBy="client", dimensions=["client:Zeta", "client:"])
    assert (status, answer["groupBy"], answer["dimensions"]) == (200, "client", ["client:", "client:Zeta"])
    assert server.ok(SCHEDULE) == answer
    with psycopg.connect(database_url, autocommit=True) as connection:
        server_runner(env, NOW).schedule(connection)
    [job] = [one for one in server.ok(f"{BASE}/orgs/{ORG}/exports")["items"] if one["dimensions"]]
    assert (job["groupBy"], job["dimensions"]) == ("client", ["client:", "client:Zeta"])
    status, answer = scheduled(server)
    assert (status, answer["groupBy"], answer["dimensions"]) == (200, "model,client", [])


@pytest.mark.usefixtures("no_schedule")
def test_a_local_month_is_made_once_it_has_ended_and_is_final(
    env: dict[str, str], database_url: str, server: Api
) -> None:
    """The slowest watermark is that of 10 November, and a zone's October ends hours before or after UTC's."""
    for zone, offset in (("Pacific/Kiritimati", -14), (WEST, 7)):
        assert scheduled(server, timeZone=zone)[0] == 200
        ended = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=offset)
        with psycopg.connect(database_url, autocommit=True) as connection:
            for minutes, month in ((-1, 9), (0, 10)):
                server_runner(env, ended + timedelta(minutes=minutes)).schedule(connection)
                newest = connection.execute(
                    "SELECT max(idempotency_key) FROM analytics.export_jobs WHERE time_zone = %s"
                    " AND created_by = 'schedule'",
                    (zone,),
                ).fetchone()
                assert newest == (f"schedule:2026-{month:02}",)
            connection.execute("DELETE FROM analytics.export_jobs WHERE created_by = 'schedule'")


@pytest.mark.usefixtures("no_schedule")
def test_a_schedule_from_before_means_utc_and_an_unknown_zone_stops_nobody(
    env: dict[str, str], database_url: str, server: Api
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        add = (
            "INSERT INTO analytics.export_schedules (org_id, format, granularity, models, created_by,"
            " created_at) VALUES (%s, 'csv', 'daily', '{}', 'x', now())"
        )
        connection.execute(add, (ORG,))
        connection.execute(add, (STRANGER_ORG,))
        connection.execute(
            "UPDATE analytics.export_schedules SET time_zone = 'Atlantis/Capital' WHERE org_id = %s",
            (STRANGER_ORG,),
        )
        assert server.ok(SCHEDULE)["timeZone"] == "UTC"
        unknown = server.ok(f"{BASE}/orgs/{STRANGER_ORG}/export-schedule")
        assert (unknown["timeZone"], unknown["nextMonth"]) == ("Atlantis/Capital", None)
        server_runner(env, NOW).schedule(connection)
        found = connection.execute(
            "SELECT org_id, range_start, range_end FROM analytics.export_jobs WHERE created_by = 'schedule'"
        ).fetchall()
    october = [datetime.fromisoformat(OCTOBER[name]) for name in ("start", "end")]
    assert found == [(ORG, *october)]


@pytest.mark.usefixtures("no_schedule")
def test_a_schedule_whose_months_outlive_the_minute_rows_is_refused(server: Api) -> None:
    for zone in OFF_THE_HOUR:
        for body in ({"format": "focus-1.2"}, {"groupBy": "model"}, {}):
            status, problem = scheduled(server, timeZone=zone, **body)
            assert (status, [fault["field"] for fault in problem["errors"]]) == (400, ["timeZone"])
            said = "RETENTION_MINUTE" if body else "figures by client"
            assert said in problem["errors"][0]["message"]


@pytest.mark.usefixtures("no_schedule")
def test_a_schedule_says_that_rows_of_day_zones_come_too_late_for_its_next_file(env: dict[str, str]) -> None:
    """Nothing has been counted by the quarter yet, and the minute rows of October are gone."""
    with served({**env, "EXPORT_IN_API": "false", "DAY_ZONES": "Asia/Kolkata"}, NOW) as server:
        status, answer = scheduled(server, timeZone="Asia/Kolkata", format="focus-1.2")
        assert (status, answer["nextMonth"]) == (200, "2026-10")
        assert answer["nextMonthFault"].startswith("timeZone: its days do not begin on whole hours of UTC")
        assert server.ok(SCHEDULE) == answer


def test_a_job_whose_minute_rows_lapsed_before_it_was_made_says_so(
    env: dict[str, str], database_url: str
) -> None:
    runner = server_runner(env, NOW + timedelta(days=9))
    job_id = queued(database_url, STRANGER_ORG, format="focus-1.2", time_zone="Asia/Kolkata")
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert runner.run_one(connection)
        row = connection.execute(
            "SELECT status, attempts, error FROM analytics.export_jobs WHERE job_id = %s", (job_id,)
        ).fetchone()
    assert row is not None
    assert row[:2] == ("failed", 1)
    assert "rows that are not there now" in row[2]
    assert "2026-11-05" in row[2]
