"""The editions of the database, and setting up the features that an edition offers.

There are three editions: plain PostgreSQL, TimescaleDB under the Apache licence (hypertables, drop_chunks),
and TimescaleDB Community (also compression and jobs). The queries are the same on all three.

`apply` is idempotent and runs at the end of every migration. So if TimescaleDB is installed later, the next
``spendstream migrate`` sets its features up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sql.schema import SCHEMA


class Edition(StrEnum):
    POSTGRESQL = "PostgreSQL"
    APACHE = "TimescaleDB Apache"
    COMMUNITY = "TimescaleDB Community"


HYPERTABLES: Final = {
    "usage_minute": "1 day",
    "usage_hour": "7 days",
    "client_hour": "7 days",
    "breakdown_hour": "7 days",
    "usage_errors_hour": "7 days",
    "usage_quarter": "90 days",
    "usage_day": "90 days",
    "client_day": "90 days",
    "breakdown_day": "90 days",
}
"""The rollup tables, and the time that one chunk of each table spans."""

DEFAULT_MINUTE_S: Final = 14 * 86_400.0
DEFAULT_ROLLUP_S: Final = 400 * 86_400.0
"""The defaults of RETENTION_MINUTE and RETENTION_ROLLUP. Version 0.1.0 made retention policies with them."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of `apply`: the edition, and notes for the operator."""

    edition: Edition
    notes: tuple[str, ...]


def detect(connection: Connection) -> Edition:
    """The edition of the database, from its extension and licence setting."""
    if not connection.scalar(text("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")):
        return Edition.POSTGRESQL
    licence = connection.scalar(text("SELECT current_setting('timescaledb.license', true)"))
    return Edition.COMMUNITY if licence == "timescale" else Edition.APACHE


def extension_schema(connection: Connection) -> str:
    """The schema of the extension's functions, quoted. An operator may choose another than ``public``."""
    found = connection.scalar(
        text("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'timescaledb'")
    )
    return str(found)


def apply(connection: Connection, *, retention_minute_s: float, retention_rollup_s: float) -> Applied:
    """Set up the edition's features. The notes name missing features, and the parts that replace them."""
    notes: list[str] = []
    available = connection.scalar(text("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"))
    if available and detect(connection) is Edition.POSTGRESQL:
        try:
            with connection.begin_nested():
                connection.execute(text("CREATE EXTENSION timescaledb SCHEMA public"))
        except DBAPIError as error:
            if isinstance(error.orig, LockNotAvailable):
                raise
            notes.append(f"TimescaleDB is installed but could not be created: {str(error.orig).strip()}")
    edition = detect(connection)
    if edition is Edition.POSTGRESQL:
        notes.append("no hypertables: the worker's maintenance deletes rows past their retention")
        return Applied(edition, tuple(notes))
    functions = extension_schema(connection)
    for table, interval in HYPERTABLES.items():
        connection.execute(
            text(
                f"SELECT {functions}.create_hypertable(CAST(:table AS regclass), 'bucket_start',"
                " chunk_time_interval => CAST(:interval AS interval), create_default_indexes => false,"
                " if_not_exists => true, migrate_data => true)"
            ),
            {"table": f"{SCHEMA}.{table}", "interval": interval},
        )
    notes.append(f"{len(HYPERTABLES)} hypertables: the worker's maintenance drops old chunks")
    for table in HYPERTABLES:
        ours_s = (
            (retention_minute_s, DEFAULT_MINUTE_S)
            if table == "usage_minute"
            else (retention_rollup_s, DEFAULT_ROLLUP_S)
        )
        notes += _drop_our_policy(connection, functions, table, ours_s)
    return Applied(edition, tuple(notes))


def _drop_our_policy(
    connection: Connection, functions: str, table: str, ours_s: tuple[float, float]
) -> list[str]:
    """Remove the retention policy that version 0.1.0 made of ``ours_s`` seconds; the notes for the operator.

    Such a policy obeys the database's clock alone, and may drop rows that the worker would still keep. We
    know our own policy by the text of its interval. Version 0.1.0 gave seconds, and PostgreSQL writes these
    as ``336:00:00``. An operator writes ``14 days``.
    """
    relation = {"schema": SCHEMA, "table": table, "first": ours_s[0], "second": ours_s[1]}
    notes = []
    for drop_after, ours in connection.execute(text(_POLICIES), relation):
        if ours:
            connection.execute(
                text(f"SELECT {functions}.remove_retention_policy(CAST(:table AS regclass), true)"),
                {"table": f"{SCHEMA}.{table}"},
            )
            notes.append(
                f"the retention policy of {table} that we once made is gone: the worker drops chunks"
            )
        else:
            notes.append(
                f"{table} has a retention policy of {drop_after} that is not ours: it was left, and obeys the"
                " database's clock"
            )
    return notes


_POLICIES: Final = """
    SELECT coalesce(config ->> 'drop_after', config ->> 'drop_created_before'),
        coalesce(CAST(CAST(config ->> 'drop_after' AS interval) AS text) IN (
            CAST(make_interval(secs => :first) AS text), CAST(make_interval(secs => :second) AS text)), false)
    FROM timescaledb_information.jobs
    WHERE proc_name = 'policy_retention' AND hypertable_schema = :schema AND hypertable_name = :table
"""
