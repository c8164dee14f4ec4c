"""The doctor's checks of the database: schema, privileges, clock, partitions, extension and jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pipeline.admin.doctor.finding import TIMEOUT_S, Finding, Level, first_line
from pipeline.common import settings
from pipeline.core.care import CRASHES_MIN, Care, remedy

if TYPE_CHECKING:
    from sqlalchemy import Connection

_OLDEST_POSTGRESQL: Final = 15
_SKEW_WARN_S: Final = 2.0
_SKEW_FAIL_S: Final = 60.0
_SCHEMA: Final = "analytics"
_PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


def check(values: settings.Values) -> Iterator[Finding]:
    from sqlalchemy.exc import DBAPIError

    from pipeline.common.connect import Refused, Session, engine

    session = Session(
        application_name="spendstream-doctor",
        statement_timeout_s=TIMEOUT_S,
        connect_timeout_s=round(TIMEOUT_S),
    )
    try:
        with engine(values["DATABASE_URL"], session).connect() as connection:
            yield from _connected(connection)
    except DBAPIError as error:
        if isinstance(error.orig, Refused):
            detail, _, remedy = str(error.orig).partition(": ")
            yield Finding(Level.FAIL, "database", detail, remedy)
            return
        yield Finding(
            Level.FAIL,
            "database",
            f"cannot be used: {first_line(error.orig)}",
            "is PostgreSQL running, and do host, user, password and database in DATABASE_URL fit?",
        )


def _connected(connection: Connection) -> Iterator[Finding]:
    from sqlalchemy import text

    from sql import editions, migrate, schema

    number = int(connection.scalar(text("SHOW server_version_num")) or 0)
    version = connection.scalar(text("SHOW server_version"))
    edition = editions.detect(connection)
    if number // 10_000 < _OLDEST_POSTGRESQL:
        yield Finding(
            Level.FAIL,
            "database",
            f"PostgreSQL {version} is too old",
            f"upgrade it to PostgreSQL {_OLDEST_POSTGRESQL} or later",
        )
    else:
        yield Finding(Level.OK, "database", f"PostgreSQL {version}, edition: {edition}")
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        yield Finding(Level.FAIL, "database", "is a read-only standby", "point DATABASE_URL to the primary")
    if getattr(connection.connection.driver_connection, "pooled", False):
        yield Finding(
            Level.WARN,
            "pooler",
            "DATABASE_URL leads through a connection pooler, which may give each transaction another session:"
            " live figures are looked for every 3 s, as no notification comes through",
            "all works so; where it can, let the worker reach PostgreSQL itself",
        )
    yield _clocks(connection)

    revision = migrate.revision(connection)
    if revision == schema.HEAD:
        yield Finding(Level.OK, "schema", f"revision {revision}")
        yield from _privileges(connection)
        yield from _partitions(connection)
        if edition is not editions.Edition.POSTGRESQL:
            yield from _hypertables(connection)
            yield from _jobs(connection)
    elif revision is None:
        yield Finding(Level.FAIL, "schema", "the database has none", "run `spendstream migrate`")
    else:
        yield Finding(
            Level.FAIL,
            "schema",
            f"revision {revision}, but this version needs {schema.HEAD}",
            "run `spendstream migrate`; if it knows no such revision, this version is older than the schema",
        )


def _clocks(connection: Connection) -> Finding:
    """Compare the database's clock with ours: the idle watermark and every freshness lag need both."""
    from sqlalchemy import text

    connection.scalar(text("SELECT 1"))
    before = time.time()
    theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
    skew_s = theirs - (before + time.time()) / 2
    if abs(skew_s) < _SKEW_WARN_S:
        return Finding(Level.OK, "clock", f"the database's is {skew_s:+.3f} s off ours")
    return Finding(
        Level.FAIL if abs(skew_s) > _SKEW_FAIL_S else Level.WARN,
        "clock",
        f"the database's is {skew_s:+.1f} s off ours: freshness is wrong by as much",
        "run NTP (chrony, systemd-timesyncd) on both hosts",
    )


def _privileges(connection: Connection) -> Iterator[Finding]:
    from sqlalchemy import text

    from sql.schema import metadata

    lacking = [
        f"{privilege} on {table.name}"
        for table in metadata.sorted_tables
        for privilege in _PRIVILEGES
        if not connection.scalar(
            text("SELECT has_table_privilege(:table, :privilege)"),
            {"table": f"{_SCHEMA}.{table.name}", "privilege": privilege},
        )
    ]
    if not connection.scalar(text("SELECT has_database_privilege(current_database(), 'TEMPORARY')")):
        lacking.append("TEMPORARY on the database")
    if not lacking:
        yield Finding(Level.OK, "privileges", "the worker may read and write every table")
        return
    shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
    yield Finding(
        Level.FAIL,
        "privileges",
        f"missing: {shown}",
        "as the schema's owner, GRANT them to this role, or let the worker connect as the owner",
    )


def _crashes(row: Any) -> Finding:
    """The finding on a partition at which workers crash again and again."""
    tried = None if row.trying_from is None else (row.trying_from, row.trying_to)
    found = Care.found(row.crashes - 1, offset=row.committed_offset, tried=tried)
    end = f" and before {tried[1]}" if tried is not None and Care.within(tried, row.committed_offset) else ""
    return Finding(
        Level.WARN if found is None else Level.FAIL,
        "partition",
        f"{row.stream}: workers have crashed {row.crashes - 1} times in a row at offset"
        f" {row.committed_offset} or after{end}",
        "let the worker run on: each time it takes in fewer records, until it knows the one at fault"
        if found is None
        else remedy(row.stream, found),
    )


def _partitions(connection: Connection) -> Iterator[Finding]:
    from sqlalchemy import select

    from sql.schema import partitions as p

    for row in connection.execute(select(p).order_by(p.c.partition)):
        since_s = time.time() - row.updated_at.timestamp()
        if row.crashes > CRASHES_MIN:
            yield _crashes(row)
        yield Finding(
            Level.OK,
            "partition",
            f"{row.stream}: {row.accepted} accepted, {row.duplicate} duplicate, {row.rejected} rejected,"
            f" next offset {row.committed_offset}, last commit {since_s:.0f} s ago"
            + (f", retired since {row.retired_at:%Y-%m-%d}" if row.retired_at is not None else ""),
        )


def _hypertables(connection: Connection) -> Iterator[Finding]:
    """Are all rollup tables hypertables? They are not if the extension came after the last migration."""
    from sqlalchemy import text

    from sql.editions import HYPERTABLES, extension_schema

    found = connection.scalars(
        text(
            "SELECT hypertable_name FROM timescaledb_information.hypertables"
            " WHERE hypertable_schema = :schema"
        ),
        {"schema": _SCHEMA},
    )
    plain = sorted(set(HYPERTABLES) - set(found))
    if plain:
        yield Finding(
            Level.FAIL,
            "hypertables",
            f"TimescaleDB is there, but these tables are plain: {', '.join(plain)}",
            "run `spendstream migrate`, which makes them hypertables with all their rows",
        )
    else:
        detail = f"all {len(HYPERTABLES)}, by the extension in schema {extension_schema(connection)}"
        yield Finding(Level.OK, "hypertables", detail)


def _jobs(connection: Connection) -> Iterator[Finding]:
    """The failed jobs of TimescaleDB on our tables: compression, or an operator's retention.

    Nothing else reports their failures.
    """
    from sqlalchemy import text

    failed = connection.execute(
        text(
            "SELECT j.job_id, j.proc_name, j.hypertable_name, s.total_failures, s.total_runs, e.err_message"
            " FROM timescaledb_information.jobs AS j"
            " JOIN timescaledb_information.job_stats AS s USING (job_id)"
            " LEFT JOIN LATERAL (SELECT err_message FROM timescaledb_information.job_errors"
            " WHERE job_id = j.job_id ORDER BY start_time DESC LIMIT 1) AS e ON true"
            " WHERE j.hypertable_schema = :schema AND s.last_run_status = 'Failed' ORDER BY j.job_id"
        ),
        {"schema": _SCHEMA},
    )
    for job_id, procedure, table, failures, runs, message in failed:
        yield Finding(
            Level.WARN,
            "jobs",
            f"job {job_id} ({procedure} on {table}) failed when it last ran, {failures} of {runs} times:"
            f" {first_line(message or 'see timescaledb_information.job_errors')}",
            f'after its cause is mended, CALL run_job({job_id}); of "cannot drop portal" see whether its work'
            " is done all the same",
        )
