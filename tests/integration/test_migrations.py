"""The schema that migrations make: it is the one the code describes, on every edition, however often run."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from deploy.local import Stack
from deploy.local.server import Server
from pipeline.admin import doctor
from pipeline.common.connect import Session, engine
from pipeline.config import RetentionConfig
from pipeline.worker import maintenance
from sql import migrate, roles
from sql.editions import HYPERTABLES, Edition
from sql.schema import HEAD, SCHEMA, metadata
from tests.support import books, community
from tests.support.api_server import BASE, served
from tests.support.surroundings import NOW, ORG, bodies, expected, flushed

SESSION = Session(application_name="test")


def differences(url: str) -> list[object]:
    """What Alembic would change to get from the database to `sql.schema`."""
    with engine(url, SESSION).connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "compare_type": True,
                "compare_server_default": False,
                "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
                "include_object": lambda thing, name, *_: name != "alembic_version",
            },
        )
        found: list[object] = compare_metadata(context, metadata)
        names = set(inspect(connection).get_table_names(SCHEMA))
    assert names >= {table.name for table in metadata.sorted_tables}
    return found


@pytest.mark.parametrize(
    ("fixture", "editions"),
    [("embedded_postgres_url", {Edition.POSTGRESQL}), ("timescale", {Edition.APACHE, Edition.COMMUNITY})],
)
def test_migrations_make_the_schema_that_the_code_describes(
    fixture: str, editions: set[Edition], request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(fixture)
    applied = migrate.upgrade(url)
    assert applied.edition in editions
    assert differences(url) == []
    assert migrate.upgrade(url) == applied
    with engine(url, SESSION).connect() as connection:
        assert migrate.revision(connection) == HEAD


def test_rollups_are_hypertables_on_timescaledb(timescale: str) -> None:
    migrate.upgrade(timescale)
    with engine(timescale, SESSION).connect() as connection:
        found = set(
            connection.scalars(text("SELECT hypertable_name FROM timescaledb_information.hypertables"))
        )
    assert found == set(HYPERTABLES)


def test_processes_that_migrate_at_once_do_not_collide(embedded_postgres_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [embedded_postgres_url] * 4))
    assert differences(embedded_postgres_url) == []


def test_the_owner_of_the_schema_migrates_the_database_of_somebody_else(embedded_postgres_url: str) -> None:
    """As after a restore by a superuser, who owns the database then, so the login may make no schema."""
    role = f"owner_{uuid.uuid4().hex[:8]}"
    url = embedded_postgres_url.replace("//postgres:@", f"//{role}@")
    assert url != embedded_postgres_url
    with psycopg.connect(embedded_postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            with pytest.raises(DBAPIError, match="permission denied for database"):
                migrate.upgrade(url)
            connection.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}".encode())
            migrate.upgrade(url)
            migrate.upgrade(url)
            with engine(url, SESSION).connect() as theirs:
                assert migrate.revision(theirs) == HEAD
        finally:
            connection.execute(f"DROP OWNED BY {role} CASCADE".encode())
            connection.execute(f"DROP ROLE {role}".encode())


def test_an_empty_database_has_no_revision(embedded_postgres_url: str) -> None:
    with engine(embedded_postgres_url, SESSION).connect() as connection:
        assert migrate.revision(connection) is None


def test_policies_that_an_earlier_version_made_go_and_no_others(embedded_postgres_url: str) -> None:
    url = embedded_postgres_url
    community.shape(url)
    assert migrate.upgrade(url).edition == Edition.COMMUNITY
    assert community.retentions(url) == {}
    ours = {"usage_minute": "336:00:00", "usage_hour": "9600:00:00", "client_hour": "720:00:00"}
    theirs = {"usage_day": "400 days", "client_day": "5 years", "usage_errors_hour": "336:00:00"}
    for table, interval in (ours | theirs).items():
        community.add_retention(url, table, interval)
    notes = migrate.upgrade(url, retention_rollup_s=720 * 3600.0).notes
    assert community.retentions(url) == theirs
    for table in ours:
        assert any(f"policy of {table} that we once made is gone" in note for note in notes), table
    for table, interval in theirs.items():
        assert any(f"{table} has a retention policy of {interval}" in note for note in notes), table


@pytest.fixture
def elsewhere(stack: Stack, up: Callable[[Server], None]) -> Iterator[str]:
    """A database whose operator put the extension into a schema of its own."""
    up(stack.postgres)
    name = f"test_{uuid.uuid4().hex}"
    url = stack.postgres.create_database(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP EXTENSION timescaledb")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "Its own"')
        connection.execute('CREATE EXTENSION timescaledb SCHEMA "Its own"')
    yield url
    stack.postgres.drop_database(name)


def test_a_table_that_may_be_compressed_is_named_with_the_remedy(embedded_postgres_url: str) -> None:
    """Debian's edition compresses nothing, so a trigger raises the error of the Community edition."""
    with psycopg.connect(embedded_postgres_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'operation not supported on hypertables that have columnstore enabled'"
            " USING ERRCODE = 'feature_not_supported'; END $$"
        )
        connection.execute(
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('ALTER TABLE')"
            " EXECUTE FUNCTION public.refuse()"
        )
    with pytest.raises(migrate.MigrationRefused, match=r"columnstore enabled.*docs/howto/compression\.md"):
        migrate.upgrade(embedded_postgres_url)
    with psycopg.connect(embedded_postgres_url) as connection:
        assert connection.execute("SELECT to_regclass('analytics.partitions')").fetchone() == (None,)


async def test_the_extension_may_be_in_any_schema(elsewhere: str, tmp_path: Path) -> None:
    assert migrate.upgrade(elsewhere).edition in {Edition.APACHE, Edition.COMMUNITY}
    assert migrate.upgrade(elsewhere).edition in {Edition.APACHE, Edition.COMMUNITY}
    environment = {"DATABASE_URL": elsewhere, "RABBITMQ_URL": f"embedded://{tmp_path}"}
    findings = await asyncio.to_thread(lambda: list(doctor.examine(environment)))
    (found,) = [finding for finding in findings if finding.name == "hypertables"]
    assert (found.level, found.detail.endswith('in schema "Its own"')) == (doctor.Level.OK, True)
    events = bodies(100)
    await flushed(elsewhere, events)
    login = f"api_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE {roles.READER}")
    try:
        reader = elsewhere.replace("postgres:postgres@", f"{login}:x@")
        with served({"DATABASE_URL": reader, "API_ALLOW_PRIVILEGED": "false"}, NOW) as server:
            span = {"start": "2026-11-10T00:00:00Z", "end": "2026-11-11T00:00:00Z", "groupBy": "none"}
            totals = server.ok(f"{BASE}/orgs/{ORG}/usage", span)["totals"]
    finally:
        with psycopg.connect(elsewhere, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {login}")
    assert totals["invocations"] == 100
    assert not books.difference(books.stored_in_database(elsewhere), expected(events))
    retention = RetentionConfig(minute_s=86400.0, rollup_s=86400.0, dead_letters_s=86400.0, audit_s=86400.0)
    later = NOW + timedelta(days=400)
    done = await maintenance.expire(elsewhere, retention, dedupe_window_us=1, now=later)
    unset = {"breakdown_hour", "breakdown_day", "usage_quarter"}  # no dimension and no time zone was set
    assert set(HYPERTABLES) - unset <= set(done.gone)


def test_an_extension_that_came_after_the_migration_is_told_of_until_it_is_used(
    elsewhere: str, tmp_path: Path
) -> None:
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute("DROP EXTENSION timescaledb")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'not now'; END $$"
        )
        connection.execute(
            "CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION')"
            " EXECUTE FUNCTION public.no()"
        )
    applied = migrate.upgrade(elsewhere)
    assert applied.edition == Edition.POSTGRESQL
    assert any("could not be created: not now" in note for note in applied.notes)
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute("DROP EVENT TRIGGER no")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION timescaledb")

    def levels() -> list[doctor.Level]:
        environment = {"DATABASE_URL": elsewhere, "RABBITMQ_URL": f"embedded://{tmp_path}"}
        return [finding.level for finding in doctor.examine(environment) if finding.name == "hypertables"]

    assert levels() == [doctor.Level.FAIL]
    assert migrate.upgrade(elsewhere).edition in {Edition.APACHE, Edition.COMMUNITY}
    assert levels() == [doctor.Level.OK]


def test_every_role_is_named_with_what_it_is_for(embedded_postgres_url: str) -> None:
    notes = "\n".join(migrate.upgrade(embedded_postgres_url).notes)
    for role in (roles.READER, roles.COLLECTOR, roles.BI, *roles.WRITERS):
        assert role in notes
    with psycopg.connect(embedded_postgres_url) as connection:
        rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'spendstream\\_%'")
        made = {name for (name,) in rows}
    assert set(re.findall(r"spendstream_\w+", notes)) <= made
