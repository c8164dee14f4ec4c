"""Bringing a database to the schema that this code needs.

`upgrade` is safe to run at any time, and from several processes at once. One process migrates. The others
wait for its advisory lock, for a bounded time, and name the process that holds the lock. A migration is one
transaction, so it happens whole or not at all. The lock ends with the transaction, even behind a pooler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from psycopg.errors import FeatureNotSupported, LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from pipeline.common import connect
from sql import editions, roles
from sql.schema import HEAD, SCHEMA

LOCK_WAIT_S: Final = 60.0
"""How long a migration waits for another migration, and then for the tables that it must change."""

_LOCK: Final = 0x5350454E44  # "SPEND"
_LOOK_S: Final = 0.2
_SAY_AFTER_S: Final = 2.0
_TABLE_S: Final = 1.0
"""How long one try waits for a table. Whoever needs that table waits behind us, and so do those who need the
tables that we have changed already. So after this time the try is rolled back, and they have their turn."""


class MigrationRefused(Exception):
    """The migration had to give up; nothing was changed. The message says why, and has the remedy."""


def upgrade(
    database_url: str,
    *,
    retention_minute_s: float = editions.DEFAULT_MINUTE_S,
    retention_rollup_s: float = editions.DEFAULT_ROLLUP_S,
    lock_wait_s: float = LOCK_WAIT_S,
    say: Callable[[str], None] = lambda _: None,
) -> editions.Applied:
    """Create or upgrade the schema, and then set up the edition's features and the rights of `sql.roles`.

    ``say`` is called with a line of text if the migration has to wait. The line names the other process.

    Raises:
        MigrationRefused: others held a lock for longer than ``lock_wait_s``, or a table is compressed.
        sqlalchemy.exc.DBAPIError: the database is away or refused (`pipeline.common.connect.Refused`).
    """
    session = connect.Session(
        application_name="spendstream-migrate", lock_timeout_s=min(_TABLE_S, lock_wait_s)
    )
    engine = connect.engine(database_url, session)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    started = time.monotonic()
    said = False
    while True:
        try:
            with engine.begin() as connection:
                # Else a migration that was killed would keep its locks until its statement is done. Servers
                # on Windows do not have this setting.
                with suppress(DBAPIError), connection.begin_nested():
                    connection.execute(text("SET LOCAL client_connection_check_interval = '1s'"))
                _lock(connection, lock_wait_s, say)
                _create_schema(connection)
                _refuse_newer(connection)
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                applied = editions.apply(
                    connection, retention_minute_s=retention_minute_s, retention_rollup_s=retention_rollup_s
                )
                return replace(applied, notes=(*applied.notes, *roles.apply(connection)))
        except DBAPIError as error:
            if isinstance(error.orig, FeatureNotSupported):
                raise MigrationRefused(
                    f"the database refuses a change of a table ({str(error.orig).splitlines()[0]})."
                    " TimescaleDB refuses that for a table that may be compressed. docs/howto/compression.md"
                    " says how to uncompress the table for the migration; nothing was changed"
                ) from error
            if not isinstance(error.orig, LockNotAvailable):
                raise
            waited_s = time.monotonic() - started
            if not said or waited_s >= lock_wait_s:
                with engine.connect() as other:
                    users = _sessions(other, _TABLE_USERS, {"schema": SCHEMA})
            if waited_s >= lock_wait_s:
                raise MigrationRefused(
                    f"a table was in use for more than {lock_wait_s:g} s by {users}: end that work, or"
                    " migrate when it is done; nothing was changed"
                ) from error
            if not said:
                say(f"waiting up to {lock_wait_s:g} s for a table in use by {users}")
                said = True
            time.sleep(_TABLE_S)


def _create_schema(connection: Connection) -> None:
    """Make the schema if it is missing.

    ``IF NOT EXISTS`` would need the right to make schemas in the database also where the schema is there. Now
    the schema's owner can migrate a database of somebody else, such as one that a superuser has restored.
    """
    if not connection.scalar(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}):
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))


def _refuse_newer(connection: Connection) -> None:
    """A later version may have migrated the database; then this version can change nothing."""
    found = revision(connection)
    if found is not None and found > HEAD:
        raise MigrationRefused(
            f"its schema is at revision {found}, and this version knows no later one than {HEAD}: migrate"
            " with the version that made it, or a later one; nothing was changed"
        )


def _lock(connection: Connection, lock_wait_s: float, say: Callable[[str], None]) -> None:
    """Take the lock of migrations, trying for at most ``lock_wait_s``, and report the wait."""
    started = time.monotonic()
    said = False
    while not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": _LOCK}):
        waited_s = time.monotonic() - started
        halves = {"high": _LOCK >> 32, "low": _LOCK % 2**32}
        if waited_s >= lock_wait_s:
            raise MigrationRefused(
                f"another migration has held the database for more than {lock_wait_s:g} s:"
                f" {_sessions(connection, _LOCK_HOLDER, halves)}. If none is running (a pooler may have kept"
                " its session), end that session with SELECT pg_terminate_backend(its process id) and migrate"
                " again; nothing was changed"
            )
        if not said and waited_s >= _SAY_AFTER_S:
            holder = _sessions(connection, _LOCK_HOLDER, halves)
            say(f"waiting up to {lock_wait_s:g} s for another migration: {holder}")
            said = True
        time.sleep(_LOOK_S)


_SESSION: Final = """
    SELECT 'process ' || a.pid || ' (' || coalesce(nullif(a.application_name, ''), 'no name') || ', '
        || coalesce(host(a.client_addr), 'local') || ', ' || coalesce(a.state, 'of another user') || ')'
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND a.pid IN (
"""
_LOCK_HOLDER: Final = (
    _SESSION
    + """ SELECT l.pid FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted
        AND l.classid::bigint = :high AND l.objid::bigint = :low AND l.objsubid = 1)"""
)
_TABLE_USERS: Final = (
    _SESSION
    + """ SELECT l.pid FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
        WHERE l.granted AND c.relnamespace = to_regnamespace(:schema)) LIMIT 5"""
)


def _sessions(connection: Connection, query: str, values: dict[str, Any]) -> str:
    return ", ".join(connection.scalars(text(query), values)) or "a session that has just ended"


def revision(connection: Connection) -> str | None:
    """The revision of the schema in the database; None if there is no schema."""
    if not connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.alembic_version"}):
        return None
    return MigrationContext.configure(
        connection, opts={"version_table_schema": SCHEMA}
    ).get_current_revision()
