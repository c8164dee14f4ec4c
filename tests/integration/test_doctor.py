"""``spendstream doctor`` against real servers, healthy and not."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from api.webhooks.sealed import Endpoint, Sealer
from deploy.local.server import Server
from deploy.local.servers import S3, RabbitMQ
from deploy.local.stack import Stack
from pipeline.admin import doctor
from pipeline.admin.doctor import Finding, Level
from pipeline.cli import main
from pipeline.common import settings
from pipeline.common.settings_table import SETTINGS
from sql.schema import HEAD
from tests.support import community, processes
from tests.support.migrated import upgrade
from tests.support.rabbitmq import broker_user

DEAD = "127.0.0.1:1"


def examine(*processes: str, **environment: str) -> dict[str, list[Finding]]:
    by_name: dict[str, list[Finding]] = {}
    for finding in doctor.examine(environment, processes):
        by_name.setdefault(finding.name, []).append(finding)
        assert bool(finding.remedy) == (finding.level is not Level.OK), finding
    return by_name


def one(findings: dict[str, list[Finding]], name: str) -> Finding:
    (finding,) = findings[name]
    return finding


@pytest.fixture
def stream_url(tmp_path: Path) -> str:
    (tmp_path / "stream" / "analytics.usage.v1").mkdir(parents=True)
    return f"embedded://{tmp_path / 'stream'}"


@pytest.fixture
def migrated(migrated_url: str) -> str:
    return migrated_url


def test_wrong_configuration_is_told_fault_by_fault_and_nothing_is_tried() -> None:
    findings = examine(HTTP_PORT="x", DATABASE_URL="http://nonsense")
    assert set(findings) == {"configuration"}
    assert [f.level for f in findings["configuration"]] == [Level.FAIL] * 3
    assert "RABBITMQ_URL is not set" in " ".join(f.detail for f in findings["configuration"])


def test_a_variable_that_resembles_a_setting_is_warned_of() -> None:
    findings = examine(
        DATABASE_URL=f"postgresql://x@{DEAD}/x",
        RABBITMQ_URL=f"rabbitmq-stream://{DEAD}/",
        FLUSH_INTERVALL="1s",
    )
    (warning,) = [f for f in findings["configuration"] if f.level is Level.WARN]
    assert "FLUSH_INTERVALL" in warning.detail
    assert "did you mean FLUSH_INTERVAL?" in warning.remedy


def test_a_healthy_embedded_setup(migrated: str, stream_url: str) -> None:
    findings = examine(DATABASE_URL=migrated, RABBITMQ_URL=stream_url, HTTP_PORT="0", METRICS_PORT="0")
    assert {f.level for each in findings.values() for f in each} == {Level.OK}, findings
    assert one(findings, "database").detail.endswith("edition: PostgreSQL")
    assert one(findings, "schema").detail == f"revision {HEAD}"
    assert "GiB free" in one(findings, "disk").detail
    assert "not configured" in one(findings, "redis").detail
    assert "not configured" in one(findings, "archive").detail
    assert "not configured" in one(findings, "object store").detail
    assert "-0." in one(findings, "clock").detail or "+0." in one(findings, "clock").detail


def test_the_archive_is_looked_at_where_it_will_be_written(
    migrated: str, stream_url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place, level, words in (
        (tmp_path, Level.OK, "can be written"),
        (tmp_path / "a" / "b", Level.OK, "is not there yet, and can be made"),
        (tmp_path / "file" / "b", Level.FAIL, "cannot be written"),
    ):
        findings = examine(DATABASE_URL=migrated, RABBITMQ_URL=stream_url, ARCHIVE_URL=f"file://{place}")
        assert (one(findings, "archive").level, words in one(findings, "archive").detail) == (level, True)


def test_everything_away_is_said_in_seconds_without_secrets() -> None:
    started = time.monotonic()
    findings = examine(
        DATABASE_URL=f"postgresql://u:geheim@{DEAD}/d",
        RABBITMQ_URL=f"rabbitmq-stream://u:geheim@{DEAD}/",
        REDIS_URL=f"redis://:geheim@{DEAD}/0",
        S3_ENDPOINT=f"http://{DEAD}",
        S3_BUCKET="exports",
        S3_ACCESS_KEY="geheim",
        S3_SECRET_KEY="geheim",
        HTTP_PORT="1",
        METRICS_PORT="1",
    )
    assert time.monotonic() - started < 60
    for name in ("database", "stream", "redis", "object store"):
        assert one(findings, name).level is Level.FAIL, findings
    for name in ("worker", "api"):
        assert one(findings, name).level is Level.WARN
        assert f"start it with `spendstream {name}`" in one(findings, name).remedy
    assert "geheim" not in str(findings)


def test_each_address_of_a_process_is_asked() -> None:
    away = {"DATABASE_URL": f"postgresql://x@{DEAD}/x", "RABBITMQ_URL": f"rabbitmq-stream://{DEAD}/"}
    findings = examine(
        **away, HTTP_HOST="127.0.0.1,::1", HTTP_PORT="1", METRICS_HOST="::,0.0.0.0", METRICS_PORT="1"
    )
    for name in ("api", "worker"):
        asked = {f.detail.partition("://")[2].partition("/")[0] for f in findings[name]}
        assert asked == {"127.0.0.1:1", "[::1]:1"}, findings[name]


def test_a_database_without_schema_or_with_another(migrated: str, stream_url: str) -> None:
    with psycopg.connect(migrated) as connection:
        connection.execute("UPDATE analytics.alembic_version SET version_num = '0000'")
    schema = one(examine(DATABASE_URL=migrated, RABBITMQ_URL=stream_url), "schema")
    assert schema.level is Level.FAIL
    assert "revision 0000, but this version needs" in schema.detail
    with psycopg.connect(migrated) as connection:
        connection.execute("DROP SCHEMA analytics CASCADE")
    schema = one(examine(DATABASE_URL=migrated, RABBITMQ_URL=stream_url), "schema")
    assert (schema.level, schema.remedy) == (Level.FAIL, "run `spendstream migrate`")


def test_a_login_that_cannot_make_the_schema_is_told_whose_the_database_is(
    login: Callable[[str], str], migrated: str, stream_url: str
) -> None:
    """As after a restore into a database that a superuser has made."""
    url = login("pg_monitor")
    with psycopg.connect(migrated) as connection:
        connection.execute("DROP SCHEMA analytics CASCADE")
    schema = one(examine("worker", DATABASE_URL=url, RABBITMQ_URL=stream_url), "schema")
    assert "may not make one: the database belongs to postgres" in schema.detail
    assert "OWNER TO" in schema.remedy


def test_a_job_on_our_tables_that_failed_is_named(embedded_postgres_url: str, stream_url: str) -> None:
    community.shape(embedded_postgres_url)
    upgrade(embedded_postgres_url)
    environment = {"DATABASE_URL": embedded_postgres_url, "RABBITMQ_URL": stream_url}
    assert "jobs" not in examine(**environment)
    job = community.fail_a_job(embedded_postgres_url, "usage_hour", "out of shared memory\nHINT: more")
    found = one(examine(**environment), "jobs")
    assert found.level is Level.WARN
    assert f"job {job} (policy_compression on usage_hour) failed when it last ran, 2 of 5" in found.detail
    assert found.detail.endswith("out of shared memory")
    assert f"run_job({job})" in found.remedy


def test_missing_privileges_are_named(migrated: str, stream_url: str) -> None:
    role = "doctor_reader"
    with psycopg.connect(migrated) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA analytics TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA analytics TO {role}")
    try:
        url = migrated.replace("//postgres:@", f"//{role}@")
        assert url != migrated
        privileges = one(examine(DATABASE_URL=url, RABBITMQ_URL=stream_url), "privileges")
    finally:
        with psycopg.connect(migrated) as connection:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
    assert privileges.level is Level.FAIL
    assert "INSERT on " in privileges.detail
    assert "SELECT" not in privileges.detail
    assert "GRANT" in privileges.remedy


@pytest.fixture
def login(migrated: str) -> Iterator[Callable[[str], str]]:
    """Make a login in a role, as the pages say; its URL."""
    made = []

    def make(role: str) -> str:
        made.append(f"doctor_{role}")
        with psycopg.connect(migrated) as connection:
            connection.execute(f"CREATE ROLE {made[-1]} LOGIN IN ROLE {role}")
        url = migrated.replace("//postgres:@", f"//{made[-1]}@")
        assert url != migrated
        return url

    yield make
    with psycopg.connect(migrated) as connection:
        for name in made:
            connection.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize(
    ("role", "fits"),
    [
        ("spendstream_reader", ("api", "exporter")),
        ("spendstream_collector", ("collector",)),
        ("pg_monitor", ()),
    ],
)
def test_a_login_of_the_pages_is_well_for_its_process_and_lacks_rights_for_the_others(
    login: Callable[[str], str], stream_url: str, role: str, fits: tuple[str, ...]
) -> None:
    environment = {"DATABASE_URL": login(role), "RABBITMQ_URL": stream_url, "COLLECTOR_PORT": "0"}
    for process in ("worker", "api", "exporter", "collector"):
        findings = examine(process, **environment)
        privileges = one(findings, "privileges")
        assert privileges.level is (Level.OK if process in fits else Level.FAIL), (process, privileges)
        assert one(findings, "schema").level is Level.OK, "a login without rights is no fault of the schema"
        assert "database" in findings
        assert one(findings, "database").level is Level.OK
    assert "INSERT" in one(examine("worker", **environment), "privileges").detail
    untold = one(examine(**environment), "privileges")
    assert untold.level is (Level.WARN if fits else Level.FAIL), untold
    assert not fits or f"--for {fits[0]}" in untold.remedy
    assert "as the owner" not in untold.remedy


def test_webhooks_that_no_key_of_the_setting_opens_are_counted(
    login: Callable[[str], str], migrated: str
) -> None:
    old, new, other = ("o" * 32, "n" * 32, "t" * 32)
    url = login("spendstream_alerter")
    assert "webhooks" not in examine("alerts", DATABASE_URL=url, WEBHOOK_KEY=new)
    with psycopg.connect(migrated) as connection:
        for key, number in ((old, 2), (new, 1)):
            for _ in range(number):
                webhook_id = uuid.uuid4()
                sealed = Sealer([key]).seal(webhook_id, Endpoint(url="https://example.com/", secrets=()))
                connection.execute(
                    "INSERT INTO analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed,"
                    " enabled, created_by, created_at, updated_at)"
                    " VALUES (%s, %s, 'x', 'standard', 'x', %s, true, 'x', now(), now())",
                    (webhook_id, webhook_id, sealed),
                )
    for keys, level, words in (
        (f"{old},{new}", Level.OK, "3, and WEBHOOK_KEY opens all, 1 of them with a key behind the first"),
        (f"{new},{old}", Level.OK, "3, and WEBHOOK_KEY opens all, 2 of them with a key behind the first"),
        (new, Level.FAIL, "2 of 3 were encrypted with a key that WEBHOOK_KEY does not have"),
        (f"{other},{old}", Level.FAIL, "1 of 3 were encrypted with"),
        (None, Level.FAIL, "3 are in the database, and WEBHOOK_KEY is not set"),
    ):
        given = {"WEBHOOK_KEY": keys} if keys else {}
        found = one(examine("alerts", DATABASE_URL=url, **given), "webhooks")
        assert found.level is level
        assert words in found.detail
        assert old not in str(found)


def test_a_gateway_of_this_host_is_warned_of_until_somebody_names_it(stream_url: str) -> None:
    """A proxy that only ends TLS connects from loopback, and passes on what a client says of itself."""
    environment = {"DATABASE_URL": f"postgresql://{DEAD}/d", "RABBITMQ_URL": stream_url}
    for process, port in (("api", "HTTP_PORT"), ("collector", "COLLECTOR_PORT")):
        given = {**environment, port: "0"}

        def warned(**more: str) -> bool:
            found = examine(process, **given, **more)[process]  # noqa: B023
            return any(one.level is Level.WARN and "X-Actor-Roles" in one.detail for one in found)

        assert warned(AUTH_MODE="gateway")
        assert warned(AUTH_MODE="gateway", TRUSTED_PROXIES=""), "an empty value is the default"
        assert not warned(AUTH_MODE="gateway", TRUSTED_PROXIES="127.0.0.1/32")
        jwt = {"JWT_ISSUER": "i", "JWT_AUDIENCE": "a", "JWT_SECRET": "s" * 32}
        assert not warned(AUTH_MODE="jwt", **jwt)


def test_the_owners_login_is_well_for_the_worker_and_refused_for_the_api_as_the_api_refuses_it(
    migrated: str, stream_url: str
) -> None:
    environment = {"DATABASE_URL": migrated, "RABBITMQ_URL": stream_url}
    assert one(examine("worker", **environment), "privileges").level is Level.OK
    refused = one(examine("api", **environment), "privileges")
    assert refused.level is Level.FAIL
    assert "spendstream_reader" in refused.remedy
    assert one(examine("api", **environment, API_ALLOW_PRIVILEGED="true"), "privileges").level is Level.OK


def test_each_process_is_checked_for_what_it_needs_alone(stream_url: str) -> None:
    alone = examine("collector", RABBITMQ_URL=stream_url)
    assert {"stream", "collector", "database", "redis"} <= set(alone)
    assert not {"worker", "api", "archive", "object store", "privileges"} & set(alone)
    assert "not configured" in one(alone, "database").detail
    api = examine("api", DATABASE_URL=f"postgresql://{DEAD}/d")
    assert {"api", "object store", "database"} <= set(api)
    assert not {"stream", "worker", "collector"} & set(api)
    (missing,) = examine("worker", RABBITMQ_URL=stream_url)["configuration"]
    assert "DATABASE_URL is not set" in missing.detail


def test_the_environment_of_a_collector_alone_is_checked_for_a_collector(stream_url: str) -> None:
    """As on the page of the collector: a broker, a spool and a mode, and no database."""
    findings = examine(RABBITMQ_URL=stream_url, COLLECTOR_SPOOL=stream_url[11:], AUTH_MODE="gateway")
    assert "collector" in findings
    assert "worker" not in findings
    assert all(f.level is not Level.FAIL for each in findings.values() for f in each), findings
    (missing,) = examine(RABBITMQ_URL=stream_url)["configuration"]
    assert "--for" in missing.remedy


def test_the_progress_of_each_partition_is_shown(migrated: str, stream_url: str) -> None:
    insert = (
        "INSERT INTO analytics.partitions (partition, stream, offered, accepted, duplicate, rejected,"
        " committed_offset, updated_at) VALUES (0, 'a', 10, 7, 2, 1, 12, now())"
    )
    with psycopg.connect(migrated) as connection:
        connection.execute(insert)
    partition = one(examine(DATABASE_URL=migrated, RABBITMQ_URL=stream_url), "partition")
    assert partition.level is Level.OK
    assert "a: 7 accepted, 2 duplicate, 1 rejected, next offset 12, last commit 0 s ago" in partition.detail


@pytest.mark.parametrize(("ahead_s", "level"), [(0, Level.OK), (10, Level.WARN), (-100, Level.FAIL)])
def test_clocks_apart(
    migrated: str, stream_url: str, monkeypatch: pytest.MonkeyPatch, ahead_s: float, level: Level
) -> None:
    real = time.time
    monkeypatch.setattr("pipeline.admin.doctor.database.time.time", lambda: real() + ahead_s)
    assert one(examine(DATABASE_URL=migrated, RABBITMQ_URL=stream_url), "clock").level is level


@pytest.mark.parametrize(("free", "level"), [(2**40, Level.OK), (2**31, Level.WARN), (2**20, Level.FAIL)])
def test_little_disk(stream_url: str, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("pipeline.admin.doctor.host.shutil.disk_usage", lambda _: usage)
    findings = examine(DATABASE_URL=f"postgresql://{DEAD}/d", RABBITMQ_URL=stream_url)
    assert one(findings, "disk").level is level


def test_a_stream_that_the_worker_will_declare_is_no_fault(migrated: str, tmp_path: Path) -> None:
    url = f"embedded://{tmp_path / 'none'}"
    for database in (migrated, f"postgresql://{DEAD}/d"):
        stream = one(examine(DATABASE_URL=database, RABBITMQ_URL=url), "stream")
        assert stream.level is Level.WARN
        assert "`spendstream worker` declares it" in stream.remedy
    assert not (tmp_path / "none").exists(), "the doctor changes nothing"


@pytest.mark.parametrize(
    ("stream", "level"),
    [
        ("analytics.usage.v1", Level.FAIL),
        ("analytics.usage.v1-3", Level.FAIL),
        ("analytics.usage", Level.WARN),
    ],
)
def test_a_stream_that_is_gone_is_a_fault(migrated: str, tmp_path: Path, stream: str, level: Level) -> None:
    """What the worker declares anew then would begin at another event than the next one."""
    with psycopg.connect(migrated) as connection:
        connection.execute(
            "INSERT INTO analytics.partitions (partition, stream, offered, accepted, duplicate, rejected,"
            " committed_offset, updated_at) VALUES (3, %s, 7, 7, 0, 0, 7, now())",
            (stream,),
        )
    url = f"embedded://{tmp_path / 'none'}"
    found = one(examine(DATABASE_URL=migrated, RABBITMQ_URL=url), "stream")
    assert found.level is level
    assert ("7 records of it are in the database" in found.detail) == (level is Level.FAIL)


@contextmanager
def page(status: int, body: bytes) -> Iterator[str]:
    """The port of a server that answers each question with this page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield str(server.server_address[1])
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "state", "level", "detail"),
    [
        (503, "unavailable", Level.WARN, "not ready: 503 database is unavailable"),
        (200, "unavailable", Level.WARN, "ready, but database is unavailable"),
        (200, "degraded", Level.WARN, "ready, but database is degraded"),
        (200, "off", Level.OK, "ready at "),
        (200, "ok", Level.OK, "ready at "),
    ],
)
def test_a_component_that_is_not_well_is_a_warning_also_of_a_process_that_is_ready(
    stream_url: str, status: int, state: str, level: Level, detail: str
) -> None:
    components = {"database": {"status": state}, "stream": {"status": "ok"}}
    with page(status, json.dumps({"components": components}).encode()) as port:
        environment = {"DATABASE_URL": f"postgresql://{DEAD}/d", "RABBITMQ_URL": stream_url}
        worker = one(examine("worker", **environment, METRICS_PORT=port), "worker")
    assert worker.level is level
    assert worker.detail.startswith(detail)


@pytest.mark.parametrize(("status", "body"), [(404, b'{"status": 404}'), (200, b"hello")])
def test_something_else_on_a_port_of_ours_is_named_with_the_setting(
    stream_url: str, status: int, body: bytes
) -> None:
    with page(status, body) as port:
        found = examine("collector", RABBITMQ_URL=stream_url, COLLECTOR_PORT=port)["collector"][-1]
    assert found.level is Level.WARN
    assert "something else" in found.detail
    assert "COLLECTOR_PORT" in found.remedy


def test_a_check_that_breaks_does_not_hide_the_others(
    stream_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: settings.Values) -> Iterator[Finding]:
        raise AssertionError("oops")

    monkeypatch.setattr("pipeline.admin.doctor.stores.redis", broken)
    findings = examine(DATABASE_URL=f"postgresql://{DEAD}/d", RABBITMQ_URL=stream_url)
    assert one(findings, "redis").detail == "AssertionError: oops"
    assert {"database", "stream", "object store", "worker", "api"} <= set(findings)


# --- the command --------------------------------------------------------------------------------------


def run(*options: str, **environment: str) -> tuple[int, str, str]:
    clean = {setting.name: None for setting in SETTINGS}
    result = CliRunner().invoke(main, ["doctor", *options], env={**clean, **environment})
    return result.exit_code, result.stdout, result.stderr


def test_the_command_exits_0_when_well_and_1_on_any_fault(migrated: str, stream_url: str) -> None:
    exit_code, output, _ = run(DATABASE_URL=migrated, RABBITMQ_URL=stream_url)
    assert exit_code == 0, output
    assert "ok    schema" in output
    exit_code, output, errors = run(DATABASE_URL=f"postgresql://{DEAD}/d", RABBITMQ_URL=stream_url)
    assert exit_code == 1
    assert "fail  database" in output
    assert "-> is PostgreSQL running" in output
    assert "1 of the checks failed" in errors


def test_the_command_checks_one_process_alone(stream_url: str) -> None:
    exit_code, output, _ = run("--for", "collector", RABBITMQ_URL=stream_url)
    assert exit_code == 0, output
    assert "checked for collector" in output
    assert run("--for", "nobody")[0] == 2
    for process in doctor.PROCESSES:
        assert run("--for", process)[0] == 1, "the command knows every process, and each needs a setting"


def test_json_findings(stream_url: str) -> None:
    exit_code, output, _ = run("--json", DATABASE_URL=f"postgresql://{DEAD}/d", RABBITMQ_URL=stream_url)
    assert exit_code == 1
    rows = [json.loads(line) for line in output.splitlines()]
    assert all(set(row) == {"level", "name", "detail", "remedy"} for row in rows)


# --- real servers -------------------------------------------------------------------------------------


def test_the_whole_stack_is_well(migrated_timescale: str, rabbitmq: RabbitMQ, redis_url: str, s3: S3) -> None:
    environment = {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_STREAM": f"doctor-{time.time_ns()}",
        "REDIS_URL": redis_url,
        "HTTP_PORT": "0",
        "METRICS_PORT": "0",
        **{name: value for name, value in s3.env.items() if name.startswith("S3_")},
    }
    findings = examine(**environment)
    stream = one(findings, "stream")
    assert stream.level is Level.WARN, "nobody has declared this stream yet"
    assert {f.level for each in findings.values() for f in each} == {Level.OK, Level.WARN}, findings
    assert "TimescaleDB" in one(findings, "database").detail
    done = simulate(environment)
    assert done.returncode == 0, done.stderr
    findings = examine(**environment)
    assert {f.level for each in findings.values() for f in each} == {Level.OK}, findings

    environment["S3_BUCKET"] = "no-such-bucket"
    environment["ARCHIVE_URL"] = "s3://no-such-archive/prefix"
    host = re.sub(r"^[^:]+://(.*@)?", "", rabbitmq.url)
    environment["RABBITMQ_URL"] = f"rabbitmq-stream://nobody:wrong@{host}"
    findings = examine(**environment)
    assert one(findings, "object store").level is Level.FAIL
    assert "no-such-archive" in one(findings, "archive").detail
    assert one(findings, "archive").level is Level.FAIL
    assert one(findings, "stream").level is Level.FAIL


@pytest.mark.parametrize(
    ("read", "write", "faults"),
    [
        (".*", ".*", set()),
        (".*", "", {"published to"}),
        ("", ".*", {"read"}),
        ("", "", {"read", "published to"}),
    ],
)
def test_the_broker_s_rights_are_tried_for_what_each_process_does(
    rabbitmq: RabbitMQ, migrated: str, read: str, write: str, faults: set[str]
) -> None:
    stream = f"doctor-{time.time_ns()}"
    done = simulate({"RABBITMQ_URL": rabbitmq.url, "RABBITMQ_STREAM": stream})
    assert done.returncode == 0, done.stderr
    with broker_user(rabbitmq, configure="", write=write, read=read) as url:
        environment = {"RABBITMQ_URL": url, "RABBITMQ_STREAM": stream, "DATABASE_URL": migrated}
        both = examine("worker", "collector", **environment)["stream"]
        reading, publishing = (examine(each, **environment)["stream"] for each in ("worker", "collector"))
    failed = [found for found in both if found.level is Level.FAIL]
    assert {
        word for word in ("read", "published to") if any(f" be {word}" in f.detail for f in failed)
    } == faults
    assert all("set_permissions" in found.remedy for found in failed)
    assert [found.level for found in reading] == [Level.FAIL if "read" in faults else Level.OK]
    assert [found.level for found in publishing] == [Level.FAIL if "published to" in faults else Level.OK]


def test_servers_that_hang_do_not_hang_the_doctor(
    stack: Stack, timescale: str, redis_url: str, up: Callable[[Server], None], stream_url: str
) -> None:
    stack.postgres.pause()
    stack.redis.pause()
    try:
        started = time.monotonic()
        findings = examine(DATABASE_URL=timescale, REDIS_URL=redis_url, RABBITMQ_URL=stream_url)
        assert time.monotonic() - started < 120
    finally:
        stack.postgres.resume()
        stack.redis.resume()
    assert one(findings, "database").level is Level.FAIL
    assert one(findings, "redis").level is Level.FAIL


def simulate(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return processes.command("simulate", "--rate", "100", "--duration", "200ms", env=environment)
