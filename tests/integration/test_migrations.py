"""The schema that migrations make: it is the one the code describes, on every edition, however often run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from sql import migrate
from sql.connect import Session, engine
from sql.editions import HYPERTABLES, Edition
from sql.schema import SCHEMA, metadata
from tests import community

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
        found = compare_metadata(context, metadata)
        names = set(inspect(connection).get_table_names(SCHEMA))
    assert names >= {table.name for table in metadata.sorted_tables}
    return found


@pytest.mark.parametrize(
    ("fixture", "edition"),
    [("embedded_postgres_url", Edition.POSTGRESQL), ("timescale", Edition.APACHE)],
)
def test_migrations_make_the_schema_that_the_code_describes(
    fixture: str, edition: Edition, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(fixture)
    applied = migrate.upgrade(url)
    assert applied.edition == edition
    assert differences(url) == []
    assert migrate.upgrade(url) == applied
    with engine(url, SESSION).connect() as connection:
        assert migrate.revision(connection) == migrate.HEAD


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
