"""What the database at hand can do beyond plain PostgreSQL, and making use of it.

Three editions are told apart: plain PostgreSQL, TimescaleDB under the Apache licence (hypertables,
drop_chunks) and TimescaleDB Community (also retention jobs). `apply` is idempotent and runs at the end
of every migration, so a database that gains an edition gains its features at the next ``spendstream
migrate``. The queries are the same on all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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
    "usage_errors_hour": "7 days",
    "usage_day": "90 days",
    "client_day": "90 days",
}
"""Rollup tables and the span of one chunk of each."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` found and did, for the operator."""

    edition: Edition
    notes: tuple[str, ...]


def detect(connection: Connection) -> Edition:
    """The edition of the database, by its extension and licence setting."""
    if not connection.scalar(text("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")):
        return Edition.POSTGRESQL
    licence = connection.scalar(text("SELECT current_setting('timescaledb.license', true)"))
    return Edition.COMMUNITY if licence == "timescale" else Edition.APACHE


def extension_schema(connection: Connection) -> str:
    """The schema of the extension's functions, quoted; an operator may choose another than ``public``."""
    found = connection.scalar(
        text("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'timescaledb'")
    )
    return str(found)


def apply(connection: Connection, *, retention_minute_s: float, retention_rollup_s: float) -> Applied:
    """Use what the edition offers; the notes name what it lacks, and what does the work instead."""
    notes: list[str] = []
    available = connection.scalar(text("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"))
    if available and detect(connection) is Edition.POSTGRESQL:
        try:
            with connection.begin_nested():
                connection.execute(text("CREATE EXTENSION timescaledb SCHEMA public"))
        except DBAPIError as error:
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
    notes.append(f"{len(HYPERTABLES)} hypertables")
    if edition is Edition.APACHE:
        notes.append("no retention jobs in this edition: the worker's maintenance drops old chunks")
        return Applied(edition, tuple(notes))
    for table in HYPERTABLES:
        seconds = retention_minute_s if table == "usage_minute" else retention_rollup_s
        relation = {"table": f"{SCHEMA}.{table}"}
        connection.execute(text("SELECT remove_retention_policy(CAST(:table AS regclass), true)"), relation)
        connection.execute(
            text("SELECT add_retention_policy(CAST(:table AS regclass), make_interval(secs => :seconds))"),
            {**relation, "seconds": seconds},
        )
    notes.append("retention jobs drop old chunks")
    return Applied(edition, tuple(notes))
