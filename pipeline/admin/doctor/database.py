"""The doctor's checks of the database: schema, privileges, clock, partitions, extension and jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pipeline.admin.doctor import rights, webhooks
from pipeline.admin.doctor.finding import TIMEOUT_S, Finding, Level, first_line
from pipeline.admin.doctor.scope import Scope
from pipeline.common import settings
from pipeline.core.care import CRASHES_MIN, Care, remedy

if TYPE_CHECKING:
    from sqlalchemy import Connection

_OLDEST_POSTGRESQL: Final = 15
_SKEW_WARN_S: Final = 2.0
_SKEW_FAIL_S: Final = 60.0
_SCHEMA: Final = "analytics"
_LOGINS: Final = {
    "worker": "the schema's owner",
    "api": "a role IN ROLE spendstream_reader",
    "exporter": "a role IN ROLE spendstream_reader",
    "alerts": "a role IN ROLE spendstream_alerter",
    "collector": "a role IN ROLE spendstream_collector",
}
"""What the login of each process is."""


def check(values: settings.Values, asked: Scope) -> Iterator[Finding]:
    if values["DATABASE_URL"] is None:
        yield Finding(
            Level.OK,
            "database",
            "not configured (DATABASE_URL): the collector takes no API keys, and writes no names of orgs",
        )
        return
    import psycopg
    from sqlalchemy.exc import DBAPIError

    from pipeline.common.connect import Refused, Session, engine

    session = Session(
        application_name="spendstream-doctor",
        statement_timeout_s=TIMEOUT_S,
        connect_timeout_s=round(TIMEOUT_S),
    )
    try:
        with engine(values["DATABASE_URL"], session).connect() as connection:
            yield from _connected(connection, values, asked)
    except DBAPIError as error:
        if isinstance(error.orig, Refused):
            detail, _, remedy = str(error.orig).partition(": ")
            yield Finding(Level.FAIL, "database", detail, remedy)
            return
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            detail = f"its login may not do all that is checked: {first_line(error.orig)}"
            yield Finding(Level.FAIL, "database", detail, _login_remedy(asked))
            return
        yield Finding(
            Level.FAIL,
            "database",
            f"cannot be used: {first_line(error.orig)}",
            "is PostgreSQL running, and do host, user, password and database in DATABASE_URL fit?",
        )


def _connected(connection: Connection, values: settings.Values, asked: Scope) -> Iterator[Finding]:
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

    if not _may_read(connection, "alembic_version"):
        yield Finding(Level.OK, "schema", "its revision is not shown to this login")
        yield from _privileges(connection, values, asked)
        return
    revision = migrate.revision(connection)
    if revision == schema.HEAD:
        yield Finding(Level.OK, "schema", f"revision {revision}")
        yield from _privileges(connection, values, asked)
        if _may_read(connection, "partitions"):
            yield from _partitions(connection)
        if edition is not editions.Edition.POSTGRESQL and asked.has("worker"):
            yield from _hypertables(connection)
            yield from _jobs(connection)
        if asked.told and asked.has("api", "alerts") and _may_read(connection, "webhooks"):
            yield from webhooks.check(connection, values)
    elif revision is None:
        yield _no_schema(connection)
    else:
        yield Finding(
            Level.FAIL,
            "schema",
            f"revision {revision}, but this version needs {schema.HEAD}",
            "run `spendstream migrate`; if it knows no such revision, this version is older than the schema",
        )


def _no_schema(connection: Connection) -> Finding:
    """The finding on a database without our schema, which not every login may make."""
    from sqlalchemy import text

    may_make = connection.scalar(
        text(
            "SELECT to_regnamespace(:name) IS NOT NULL"
            " OR has_database_privilege(current_database(), 'CREATE')"
        ),
        {"name": _SCHEMA},
    )
    if may_make:
        return Finding(Level.FAIL, "schema", "the database has none", "run `spendstream migrate`")
    owner, database = connection.execute(
        text(
            "SELECT pg_get_userbyid(datdba), quote_ident(datname) FROM pg_catalog.pg_database"
            " WHERE datname = current_database()"
        )
    ).one()
    return Finding(
        Level.FAIL,
        "schema",
        f"the database has none, and this login may not make one: the database belongs to {owner}",
        f"run `spendstream migrate` as {owner}, or ALTER DATABASE {database} OWNER TO the role that migrates",
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


def _may_read(connection: Connection, table: str) -> bool:
    """May the login read this table of ours? True also if there is no such table."""
    from sqlalchemy import text

    allowed = connection.scalar(
        text(
            "SELECT has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')"
            " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = :schema AND c.relname = :table"
        ),
        {"schema": _SCHEMA, "table": table},
    )
    return allowed is not False


def _privileges(connection: Connection, values: settings.Values, asked: Scope) -> Iterator[Finding]:
    """Has the login the rights that the processes in question need?

    If nobody said which process the login is for, the login may be that of any process: a worker's may do
    everything, an API's may read, and a collector's may look keys up.
    """
    from sqlalchemy import text

    from sql.roles import WRITES_ROLLUPS

    if not asked.told:
        yield _fitting(connection, asked)
        return
    for process in sorted(asked.processes):
        lacking = rights.lacking(connection, process)
        if lacking:
            yield _lacking(process, lacking)
        elif (
            process in ("api", "exporter", "alerts")
            and not values["API_ALLOW_PRIVILEGED"]
            and connection.scalar(text(WRITES_ROLLUPS))
        ):
            yield Finding(
                Level.FAIL,
                "privileges",
                f"the login may write rollups, and the {process} refuses such a login",
                f"CREATE ROLE … LOGIN PASSWORD '…' {_LOGINS[process].removeprefix('a role ')},"
                " and let DATABASE_URL name it",
            )
        else:
            yield Finding(Level.OK, "privileges", f"the login has every right that the {process} needs")


def _fitting(connection: Connection, asked: Scope) -> Finding:
    """The finding on a login of which nobody said whose it is."""
    processes = [name for name in ("worker", "api", "collector") if asked.has(name) or name == "collector"]
    lacks = {process: rights.lacking(connection, process) for process in processes}
    fits = next((process for process in processes if not lacks[process]), None)
    if fits is None:
        return _lacking(processes[0], lacks[processes[0]])
    if fits == processes[0]:
        return Finding(Level.OK, "privileges", f"the {fits} has every right that it needs")
    also = "the API or the exporter" if fits == "api" else "the collector"
    return Finding(
        Level.WARN,
        "privileges",
        f"the login fits {also}, and no worker: a worker needs {len(lacks['worker'])} rights more",
        f"if it is meant so, `spendstream doctor --for {fits}` has no warning; a worker logs in as"
        f" {_LOGINS['worker']}",
    )


def _lacking(process: str, lacking: list[str]) -> Finding:
    shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
    return Finding(
        Level.FAIL,
        "privileges",
        f"missing for the {process}: {shown}",
        f"let the {process} log in as {_LOGINS[process]} (`spendstream migrate` makes the roles), or GRANT"
        " them to this login",
    )


def _login_remedy(asked: Scope) -> str:
    logins = "; ".join(f"{process}: {_LOGINS[process]}" for process in _LOGINS if asked.has(process))
    return f"let DATABASE_URL name the login of the process ({logins})"


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
