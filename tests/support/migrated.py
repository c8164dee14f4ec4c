"""Databases at the schema's head, copied from one that this process has migrated.

    create(url)         # CREATE DATABASE and `sql.migrate.upgrade(url)` at once
    upgrade(url)        # as `sql.migrate.upgrade(url)`, for a database that is new

A migration from nothing to the head takes 1.7 s of a processor, and a copy of a migrated database 0.1 s. The
first call for a server migrates a template. `upgrade` replaces the empty database by a copy of it. A database
that is not as ``CREATE DATABASE`` makes it is migrated in its place. So is one for a test about migrations:
that test calls `sql.migrate.upgrade`.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sql import migrate
from sql.editions import Applied, Edition

_LOCK: Final = threading.Lock()
_TEMPLATES: Final[dict[tuple[Any, ...], tuple[str, Applied]]] = {}
"""The name of the template, and what the migration returned, by server and kind of database."""

_NEW: Final = """
SELECT
    coalesce((SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), ''),
    coalesce(current_setting('timescaledb.license', true), ''),
    (SELECT system_identifier FROM pg_control_system()),
    current_user,
    pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
    d.datdba = (SELECT oid FROM pg_roles WHERE rolname = current_user AND rolsuper)
        AND d.datacl IS NULL
        AND NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid)
        AND (SELECT array_agg(extname ORDER BY extname) FROM pg_extension) <@ '{plpgsql, timescaledb}'::name[]
        AND NOT EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'public'
            AND n.nspname <> 'information_schema'
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = n.oid AND deptype = 'e'))
        AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e'))
FROM pg_database AS d WHERE d.datname = current_database()
"""
"""What a template must have in common with a database, and at last: is the database new?"""


def create(url: str, *, extension: bool = False) -> None:
    """Create the database of ``url`` at the head, with TimescaleDB's ``extension`` or without it."""
    available = "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'"
    with psycopg.connect(at(url, "postgres"), autocommit=True) as connection:
        found, version = connection.execute(_NEW).fetchone(), connection.execute(available).fetchone()
        assert found is not None
        kind = [*found[:-1]]
        kind[0] = version[0] if extension and version else ""
        applied = _copied(connection, url, kind)
    if applied.edition is not Edition.POSTGRESQL:
        _background(url, "start")


def drop(url: str) -> None:
    """Drop the database of ``url``."""
    with psycopg.connect(at(url, "postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{_name(url)}" WITH (FORCE)'.encode())


def upgrade(url: str) -> Applied:
    """Bring the new database at ``url`` to the head; returns what the migration did."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(_NEW).fetchone()
    assert found is not None
    *kind, new = found
    if not new:
        return migrate.upgrade(url)
    with psycopg.connect(at(url, "postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{_name(url)}" WITH (FORCE)'.encode())
        applied = _copied(connection, url, kind)
    if applied.edition is not Edition.POSTGRESQL:
        _background(url, "start")
    return applied


def at(url: str, database: str) -> str:
    """The URL of another database of the same server."""
    return make_conninfo(url, dbname=database)


def _name(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


def _is_there(connection: psycopg.Connection, key: tuple[Any, ...]) -> bool:
    """Has the server the template? A test may have deleted all that it had."""
    found = "SELECT FROM pg_database WHERE datname = %s"
    return key in _TEMPLATES and connection.execute(found, (_TEMPLATES[key][0],)).fetchone() is not None


def _copied(connection: psycopg.Connection, url: str, kind: list[Any]) -> Applied:
    """Copy the template of that kind to ``url``; returns what the template's migration did."""
    key = (connection.info.host, connection.info.port, *kind)
    with _LOCK:
        if not _is_there(connection, key):
            _TEMPLATES[key] = _template(connection, url, kind)
        template, applied = _TEMPLATES[key]
    # Copying files takes less of a processor than writing each page into the log. Who waits for the disk
    # at its checkpoints are servers that keep what they have, and those of tests do not.
    connection.execute(f'CREATE DATABASE "{_name(url)}" TEMPLATE "{template}" STRATEGY FILE_COPY'.encode())
    return applied


def _template(connection: psycopg.Connection, url: str, kind: list[Any]) -> tuple[str, Applied]:
    name = f"template_{uuid.uuid4().hex}"
    extension, *_, encoding, collate, ctype = kind
    connection.execute(
        f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING '{encoding}'"
        f" LC_COLLATE '{collate}' LC_CTYPE '{ctype}'".encode()
    )
    own = at(url, name)
    if extension:
        with psycopg.connect(own, autocommit=True) as inside:
            inside.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    applied = migrate.upgrade(own)
    if applied.edition is not Edition.POSTGRESQL:
        _background(own, "stop")
    # A database to which somebody is connected cannot be copied, and TimescaleDB's launcher connects to each
    # that lets it.
    connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    while connection.execute(others, (name,)).fetchone() is not None:
        time.sleep(0.02)
    return name, applied


def _background(url: str, do: str) -> None:
    """Start or stop TimescaleDB's scheduler of a database. CREATE EXTENSION starts one, a copy does not."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SELECT _timescaledb_functions.{do}_background_workers()".encode())
