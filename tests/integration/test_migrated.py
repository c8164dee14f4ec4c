"""A copy of the template is a migrated database: the same tables, rights, hypertables and jobs."""

from __future__ import annotations

import time
import uuid
from typing import Any

import psycopg
import pytest

from sql import migrate
from sql.schema import HEAD
from tests.support import community, migrated

OURS = "relnamespace = 'analytics'::regnamespace"
SHAPE = {
    "extensions": "SELECT extname, extversion, extnamespace::regnamespace::text FROM pg_extension",
    "schemas": "SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast)'",
    "tables": f"SELECT relname, relkind, relacl::text, reloptions::text FROM pg_class WHERE {OURS}",
    "columns": "SELECT attrelid::regclass::text, attname, atttypid::regtype::text, attnotnull, attacl::text,"
    " attgenerated, attidentity FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
    f" WHERE {OURS}",
    "defaults": "SELECT adrelid::regclass::text, adnum, pg_get_expr(adbin, adrelid)"
    f" FROM pg_attrdef AS d JOIN pg_class AS c ON c.oid = d.adrelid WHERE {OURS}",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'analytics'::regnamespace",
    "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'analytics'",
    "triggers": "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
    f" WHERE {OURS} AND NOT tgisinternal",
    "functions": "SELECT proname, prosrc, proacl::text FROM pg_proc"
    " WHERE pronamespace = 'analytics'::regnamespace",
    "database": "SELECT pg_encoding_to_char(encoding), datcollate, datctype, datacl::text, datallowconn,"
    " datistemplate FROM pg_database WHERE datname = current_database()",
}
TIMESCALE = {
    "hypertables": "SELECT hypertable_name, compression_enabled, num_dimensions FROM"
    " timescaledb_information.hypertables",
    "dimensions": "SELECT hypertable_name, column_name, time_interval"
    " FROM timescaledb_information.dimensions",
    "jobs": "SELECT job_id, application_name, schedule_interval, max_runtime, max_retries, retry_period,"
    " proc_schema, proc_name, owner::text, scheduled, fixed_schedule, config, hypertable_schema,"
    " hypertable_name FROM timescaledb_information.jobs",
}

TEMPLATES = "SELECT datname FROM pg_database WHERE datname LIKE 'template\\_%'"
"""Servers of the tests before may have left more than one: another edition has another."""


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return sorted(connection.execute(query.encode()).fetchall(), key=repr)


@pytest.mark.parametrize("server", ["embedded_postgres_url", "timescale"])
def test_a_copy_is_as_a_migration_makes_it(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(server)
    copied = migrated.upgrade(url)
    queries = SHAPE | (TIMESCALE if server == "timescale" else {})
    copy = {name: rows(url, query) for name, query in queries.items()}
    name = f"real_{uuid.uuid4().hex}"
    elsewhere = migrated.at(url, "postgres")
    templates = rows(elsewhere, TEMPLATES)
    assert templates
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())
        try:
            assert migrate.upgrade(migrated.at(url, name)) == copied
            for what, query in queries.items():
                assert copy[what] == rows(migrated.at(url, name), query), what
            assert len(copy["tables"]) > 50
            assert migrated.upgrade(migrated.at(url, name)) == copied, "one that is not new stays as it is"
            connection.execute(f'CREATE DATABASE "{name}_again" TEMPLATE template0'.encode())
            again = migrated.at(url, f"{name}_again")
            if server == "timescale":
                with psycopg.connect(again, autocommit=True) as inside:
                    inside.execute("CREATE EXTENSION timescaledb")
            assert migrated.upgrade(again) == copied
            assert rows(elsewhere, TEMPLATES) == templates, "each copy is one of the same template"
        finally:
            for made in (name, f"{name}_again"):
                connection.execute(f'DROP DATABASE IF EXISTS "{made}" WITH (FORCE)'.encode())
    assert rows(url, "SELECT version_num FROM analytics.alembic_version") == [(HEAD,)]


def test_a_scheduler_runs_the_jobs_of_a_copy(migrated_timescale: str) -> None:
    """It starts at once. The launcher would look for new databases once a minute."""
    jobs = "SELECT count(*) FROM timescaledb_information.jobs WHERE scheduled"
    assert rows(migrated_timescale, jobs) != [(0,)]
    scheduler = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE %s"
    with psycopg.connect(migrated_timescale, autocommit=True) as connection:
        deadline = time.monotonic() + 30
        while connection.execute(scheduler, ("%Scheduler",)).fetchone() is None:
            assert time.monotonic() < deadline, "nothing runs the jobs of the copy"
            time.sleep(0.05)


def test_a_database_that_somebody_has_set_up_is_migrated_in_its_place(embedded_postgres_url: str) -> None:
    community.shape(embedded_postgres_url)
    before = rows(embedded_postgres_url, "SELECT oid FROM pg_database WHERE datname = current_database()")
    assert migrated.upgrade(embedded_postgres_url).edition == "TimescaleDB Community"
    after = rows(embedded_postgres_url, "SELECT oid FROM pg_database WHERE datname = current_database()")
    assert after == before
