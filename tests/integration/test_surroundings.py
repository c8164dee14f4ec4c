"""What server, database, role and environment say about text, dates and limits bends no figure."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql as psql
from sqlalchemy.exc import DBAPIError

from api.config import DatabaseConfig, ExportConfig, RangeConfig
from api.exports.runner import Runner
from api.exports.stores import FolderStore
from pipeline.admin import doctor, keys
from pipeline.archive import rebuild
from pipeline.common import connect
from pipeline.dead_letters import table
from pipeline.sink import SinkUnavailable
from pipeline.sink.timescale import TimescaleSink
from pipeline.worker import maintenance
from sql import migrate
from tests.support import books
from tests.support.api_server import BASE, served
from tests.support.surroundings import (
    NOW,
    NOW_US,
    ORG,
    RULES,
    SESSION,
    alter,
    bodies,
    expected,
    flushed,
    reset,
)

SURROUNDINGS = {
    "client_encoding": "LATIN1",
    "datestyle": "German, DMY",
    "timezone": "Asia/Kathmandu",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "search_path": "shadow, pg_catalog",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "100ms",
    "lock_timeout": "1ms",
    "idle_session_timeout": "500ms",
    "idle_in_transaction_session_timeout": "1ms",
    "transaction_timeout": "100ms",
    "row_security": "off",
    "standard_conforming_strings": "off",
    "timescaledb.max_tuples_decompressed_per_dml_transaction": "1",
}

ENVIRONMENT = {"PGCLIENTENCODING": "LATIN1", "PGDATESTYLE": "German", "PGTZ": "Asia/Tokyo"}


def settings_of_server(url: str) -> dict[str, str]:
    """Those of the matrix that this server knows; a name with a dot it takes unseen."""
    with connect.connect(url, SESSION) as connection:
        known = {row[0].lower() for row in connection.execute("SELECT name FROM pg_catalog.pg_settings")}
    return {name: value for name, value in SURROUNDINGS.items() if name in known or "." in name}


@pytest.fixture(params=["embedded_postgres_url", "timescale"])
def bent(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database that was migrated, and of which each setting is another than ours."""
    url: str = request.getfixturevalue(request.param)
    migrate.upgrade(url)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SCHEMA shadow")
        connection.execute("CREATE FUNCTION shadow.sum_of(x int) RETURNS int LANGUAGE sql AS 'SELECT 666'")
        connection.execute("CREATE TABLE shadow.usage_hour (nothing int)")
    alter(url, settings_of_server(url))
    yield url
    reset(url)


@pytest.mark.parametrize("environment", [{}, ENVIRONMENT], ids=["plain", "libpq"])
async def test_nothing_that_a_database_or_environment_says_bends_a_figure(
    bent: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    migrate.upgrade(bent)
    events = bodies(100)
    await flushed(bent, events)
    with served({"DATABASE_URL": bent}, NOW) as server:
        ready = server.ok(f"{BASE}/status/readyz")
        span = {"start": "2026-11-10T00:00:00Z", "end": "2026-11-11T00:00:00Z", "groupBy": "none"}
        totals = server.ok(f"{BASE}/orgs/{ORG}/usage", span)["totals"]
        crabs = server.ok(f"{BASE}/orgs/{ORG}/usage", {**span, "clientId": "emoji 🦀"})["totals"]
        freshness = server.ok(f"{BASE}/orgs/{ORG}/freshness")
    assert ready["status"] == "ready"
    assert (totals["invocations"], crabs["invocations"]) == (100, 20)
    assert datetime.fromisoformat(freshness["watermark"]) == NOW - timedelta(seconds=10)
    reset(bent)
    for name in environment:
        monkeypatch.delenv(name)
    assert not books.difference(books.stored_in_database(bent), expected(events))


def test_each_setting_of_the_matrix_is_told_by_us(bent: str) -> None:
    """So that none of them stays as the database says it, whatever it does today."""
    session = connect.Session(application_name="test", statement_timeout_s=7)
    wanted = {**session.settings(), "client_encoding": "UTF8", "statement_timeout": "7s"}
    with connect.connect(bent, session) as connection:
        for name in settings_of_server(bent):
            row = connection.execute("SELECT current_setting(%s, true)", (name,)).fetchone()
            assert row == (wanted[name],), name


async def test_a_role_without_privileges_lifts_the_limit_of_decompressed_rows(timescale: str) -> None:
    role = f"writer_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(timescale, autocommit=True) as connection:
        connection.execute(psql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(psql.Identifier(role)))
    sink = TimescaleSink(timescale.replace("postgres:postgres@", f"{role}:x@"))
    try:
        for _ in range(2):  # also after the connection was lost
            mine = await sink.database.connection()
            shown = await mine.execute(
                "SELECT current_setting('timescaledb.max_tuples_decompressed_per_dml_transaction'), user"
            )
            assert await shown.fetchone() == ("0", role)
            await mine.close()
    finally:
        with psycopg.connect(timescale, autocommit=True) as connection:
            connection.execute(psql.SQL("DROP ROLE {}").format(psql.Identifier(role)))


# --- databases that must not be used as they are ----------------------------------------------------


def not_utf8(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """A LATIN1 database, what is said of it, and what is said to do."""
    server = request.getfixturevalue("embedded_postgres")
    name = f"latin_{uuid.uuid4().hex}"
    server.psql(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    request.addfinalizer(lambda: server.psql(f'DROP DATABASE "{name}" WITH (FORCE)'))
    return server.get_uri(name), "encoding is LATIN1", "ENCODING 'UTF8'"


def restoring(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """A database in a restore, or in which one left its mark."""
    url = request.getfixturevalue("timescale")
    migrate.upgrade(url)
    alter(url, {"timescaledb.restoring": "on"})
    return url, "timescaledb.restoring is on", "timescaledb_post_restore()"


@pytest.fixture(params=[not_utf8, restoring])
def unfit(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    found: tuple[str, str, str] = request.param(request)
    return found


async def test_nobody_uses_an_unfit_database_and_everybody_says_the_remedy(
    unfit: tuple[str, str, str], tmp_path: Path
) -> None:
    url, fault, remedy = unfit
    said: list[str] = []

    def refused(use: Callable[[], object]) -> None:
        with pytest.raises((psycopg.OperationalError, DBAPIError)) as error:
            use()
        said.append(str(error.value))

    sink = TimescaleSink(url)
    for _ in range(2):  # at every connection, not at the first alone
        with pytest.raises(SinkUnavailable) as away:
            await sink.check_schema()
        said.append(str(away.value))
    with pytest.raises(psycopg.OperationalError) as upkeep:
        await maintenance.earlier_time(url, NOW)
    said.append(str(upkeep.value))
    refused(lambda: migrate.upgrade(url))
    refused(lambda: rebuild.connected(url))
    refused(lambda: table.connected(url))
    refused(lambda: keys.listed(url))
    database = DatabaseConfig(url=url, allow_privileged=True)
    config = ExportConfig(folder=str(tmp_path))
    store = FolderStore(tmp_path, b"secret", "http://here")
    exporter = Runner(database=database, config=config, store=store, ranges=RangeConfig(), clock=lambda: NOW)
    refused(lambda: exporter._connection().__enter__())
    for text in said:
        assert fault in text
        assert remedy in text

    environment = {"DATABASE_URL": url, "RABBITMQ_URL": f"embedded://{tmp_path}/log"}
    findings = await asyncio.to_thread(lambda: list(doctor.examine(environment)))
    of_database = [finding for finding in findings if finding.name == "database"]
    assert [finding.level for finding in of_database] == [doctor.Level.FAIL]
    assert fault in of_database[0].detail
    assert remedy in of_database[0].remedy

    with served({"DATABASE_URL": url}, NOW) as server:
        status, answer = server.get(f"{BASE}/status/readyz")
        assert (status, answer["status"]) == (503, "not_ready")
        assert remedy in answer["components"]["database"]["detail"]
        assert server.get(f"{BASE}/orgs/{ORG}/freshness")[0] == 503


async def test_a_worker_goes_on_once_the_restore_is_finished(timescale: str) -> None:
    migrate.upgrade(timescale)
    events = bodies(40)
    sink = TimescaleSink(timescale)
    claim, ledger = await books.recover(sink, RULES)
    for chunk in books.chunks_of(events, size=20, broker_us=NOW_US):
        ledger.ingest(**chunk)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    alter(timescale, {"timescaledb.restoring": "on"})
    await sink.close()  # the connection is lost meanwhile
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match="timescaledb_post_restore"):
            await sink.flush(claim, batch)
    with psycopg.connect(timescale, autocommit=True) as connection:
        name = psql.Identifier(connection.info.dbname)
        connection.execute(psql.SQL("ALTER DATABASE {} RESET timescaledb.restoring").format(name))
    await sink.flush(claim, batch)
    await sink.close()
    assert not books.difference(books.stored_in_database(timescale), expected(events))
