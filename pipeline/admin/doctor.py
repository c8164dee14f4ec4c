"""``spendstream doctor``: is everything there that the processes need, and if not, what to do about it.

It looks and changes nothing: it declares no stream and migrates no schema. Each check answers with
findings; a check that cannot be made because an earlier one failed is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pipeline.common import lookalikes, settings
from pipeline.common.object_store import ObjectStore
from pipeline.config import stream_config
from pipeline.core.care import CRASHES_MIN, Care, remedy

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pipeline.transports import OffsetGone, Transport

_TIMEOUT_S: Final = 5
_OLDEST_POSTGRESQL: Final = 15
_SKEW_WARN_S: Final = 2.0
_SKEW_FAIL_S: Final = 60.0
_DISK_WARN_BYTES: Final = 5 * 2**30
_DISK_FAIL_BYTES: Final = 2**30
_SCHEMA: Final = "analytics"
_PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """``remedy`` says what an operator does about it; '' when there is nothing to do."""

    level: Level
    name: str
    detail: str
    remedy: str = ""


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding, as it is made; each dependency is given up after a few seconds. Never raises."""
    try:
        values = settings.read(environment, required=("DATABASE_URL", "RABBITMQ_URL"))
    except settings.ConfigError as error:
        for fault in error.faults:
            yield Finding(
                Level.FAIL, "configuration", fault, "correct the environment; `spendstream config` shows it"
            )
        return
    given = sum(origin == "environment" for origin in values.origins.values())
    yield Finding(Level.OK, "configuration", f"{given} settings from the environment, the rest defaults")
    for lookalike in lookalikes.find(environment):
        yield Finding(
            Level.WARN,
            "configuration",
            f"{lookalike.variable} is not a setting and changes nothing",
            f"did you mean {lookalike.setting}? rename or remove the variable",
        )
    checks: tuple[tuple[str, Callable[[settings.Values], Iterator[Finding]]], ...] = (
        ("database", _database),
        ("stream", _stream),
        ("redis", _redis),
        ("object store", _object_store),
        ("archive", _archive),
        ("disk", _disk),
        ("worker", _worker),
        ("api", _api),
    )
    for name, check in checks:
        try:
            yield from check(values)
        except Exception as error:  # a doctor that dies of one organ does not look at the next
            yield Finding(
                Level.FAIL,
                name,
                f"{type(error).__name__}: {_first_line(error)}",
                "this is unexpected: report it",
            )


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


# --- database -----------------------------------------------------------------------------------


def _database(values: settings.Values) -> Iterator[Finding]:
    from sqlalchemy.exc import DBAPIError

    from pipeline.common.connect import Refused, Session, engine

    session = Session(
        application_name="spendstream-doctor",
        statement_timeout_s=_TIMEOUT_S,
        connect_timeout_s=round(_TIMEOUT_S),
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
            f"cannot be used: {_first_line(error.orig)}",
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
    """The worker's idle watermark and every freshness lag compare the two clocks."""
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
    """Workers end at one place of a partition, again and again."""
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
    """An extension that came after the last migration, or in the middle of a failed one, is not in use."""
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
    """Jobs of TimescaleDB on our tables (compression, an operator's retention) fail in silence otherwise."""
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
            f" {_first_line(message or 'see timescaledb_information.job_errors')}",
            f'after its cause is mended, CALL run_job({job_id}); of "cannot drop portal" see whether its work'
            " is done all the same",
        )


# --- stream, Redis, object store ----------------------------------------------------------------


def _stream(values: settings.Values) -> Iterator[Finding]:
    from pipeline.transports import StreamAbsent, TransportError
    from pipeline.transports.factory import open_transport

    config = stream_config(values)

    standing = _standing(values, config.stream)

    async def ping() -> list[OffsetGone]:
        transport = open_transport(config)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await transport.ping()
                return await _gaps(transport, standing)
        finally:
            await transport.close()

    remedy = "is the broker running, and do host, port, user, password and vhost in RABBITMQ_URL fit?"
    if urlsplit(config.url).scheme == "embedded":
        remedy = "check the folder's permissions"
    try:
        gaps = asyncio.run(ping())
    except StreamAbsent:
        yield _absent(config.stream, sum(row.offered for row in standing))
    except (TransportError, TimeoutError, ValueError) as error:
        detail = f"no answer in {_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else _first_line(error)
        yield Finding(Level.FAIL, "stream", f"{config.stream} cannot be used: {detail}", remedy)
    else:
        yield Finding(Level.OK, "stream", f"{config.stream} can be read")
        yield from _groups(config.consumer, standing)
        for gap in gaps:
            yield Finding(Level.FAIL, "stream", str(gap), gap.remedy)


def _groups(consumer: str, standing: Sequence[Any]) -> Iterator[Finding]:
    """Another consumer group that commits there now: workers with these settings would get no partition."""
    from pipeline.sink import GROUP_QUIET_S

    now = time.time()
    for row in standing:
        quiet_s = now - row.updated_at.timestamp()
        if row.consumer not in (None, consumer) and row.retired_at is None and quiet_s < GROUP_QUIET_S:
            yield Finding(
                Level.FAIL,
                "stream",
                f"{row.stream} is read into this database by the consumer group {row.consumer!r}, and"
                f" RABBITMQ_CONSUMER is {consumer!r} here",
                "give all workers of a database the same RABBITMQ_CONSUMER, or each group a database of its"
                f" own; a renamed group gets the partition {GROUP_QUIET_S} s after the old one ended",
            )


async def _gaps(transport: Transport, standing: Sequence[Any]) -> list[OffsetGone]:
    """Where a worker would stop because the stream has lost what it reads next."""
    from pipeline.transports import ReadFrom
    from pipeline.transports.gap import look

    by_stream = {row.stream: row for row in standing}
    found = []
    for number, held in enumerate(await transport.extents()):
        row = by_stream.get(held.stream)
        if row is not None and row.retired_at is None:
            place = ReadFrom(row.committed_offset, row.broker_us)
            found.append(await look(transport, number, held, place))
    return [gone for gone in found if gone is not None]


def _absent(stream: str, counted: int) -> Finding:
    """A stream that nobody has declared is how every deployment begins; one that is gone lost events."""
    if not counted:
        remedy = (
            "`spendstream worker` declares it when it starts; several partitions: `spendstream stream create`"
        )
        return Finding(Level.WARN, "stream", f"{stream} does not exist yet", remedy)
    return Finding(
        Level.FAIL,
        "stream",
        f"{stream} does not exist, but {counted} records of it are in the database: it was deleted",
        "does RABBITMQ_URL name the right broker and vhost? After `spendstream stream create` a worker stops"
        " at the gap, and `spendstream stream accept-gap` goes on past what is lost",
    )


def _standing(values: settings.Values, stream: str) -> Sequence[Any]:
    """The rows of the stream's partitions in the database; none where the database cannot be asked."""
    from sqlalchemy import BigInteger, cast, func, or_, select
    from sqlalchemy.exc import DBAPIError

    from pipeline.common.connect import Session, engine
    from sql.schema import partitions as p

    session = Session(
        application_name="spendstream-doctor",
        statement_timeout_s=_TIMEOUT_S,
        connect_timeout_s=round(_TIMEOUT_S),
    )
    ours = or_(p.c.stream == stream, p.c.stream.startswith(f"{stream}-", autoescape=True))
    broker_us = cast(func.extract("epoch", p.c.broker_time) * 1_000_000, BigInteger).label("broker_us")
    columns = (
        p.c.stream,
        p.c.offered,
        p.c.committed_offset,
        p.c.retired_at,
        p.c.consumer,
        p.c.updated_at,
        broker_us,
    )
    try:
        with engine(values["DATABASE_URL"], session).connect() as connection:
            return connection.execute(select(*columns).where(ours)).all()
    except DBAPIError:  # `_database` has said why
        return ()


def _redis(values: settings.Values) -> Iterator[Finding]:
    if not values["REDIS_URL"]:
        yield Finding(Level.OK, "redis", "not configured: the database answers freshness")
        return
    import redis

    try:
        with redis.Redis.from_url(
            values["REDIS_URL"], socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        yield Finding(
            Level.FAIL,
            "redis",
            f"cannot be used: {_first_line(error)}",
            "is Redis running, and does REDIS_URL fit? Unset it to do without: the database then answers",
        )
    else:
        yield Finding(Level.OK, "redis", "answers")


def _object_store(values: settings.Values) -> Iterator[Finding]:
    if not values["S3_ENDPOINT"]:
        yield Finding(Level.OK, "object store", "not configured")
    else:
        yield _bucket("object store", values, values["S3_BUCKET"])


def _archive(values: settings.Values) -> Iterator[Finding]:
    url = values["ARCHIVE_URL"]
    if url is None:
        yield Finding(Level.OK, "archive", "not configured (ARCHIVE_URL)")
        return
    parts = urlsplit(url)
    if parts.scheme == "s3":
        yield _bucket("archive", values, parts.netloc)
        return
    folder = Path(url2pathname(parts.path))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        state = "can be written" if there == folder else f"is not there yet, and can be made in {there}"
        yield Finding(Level.OK, "archive", f"folder {folder} {state}")
    else:
        yield Finding(
            Level.FAIL,
            "archive",
            f"folder {folder} cannot be written",
            f"let this user write in {there}, or change ARCHIVE_URL; until then events wait in the database",
        )


def _bucket(name: str, values: settings.Values, bucket: str) -> Finding:
    """Can a bucket be listed, in the way in which exports and archive will use it?"""
    import s3fs
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    options = values.make(ObjectStore).options(connect_s=_TIMEOUT_S, read_s=_TIMEOUT_S, attempts=1)
    store = s3fs.S3FileSystem(**options)
    store.retries = 1
    try:
        store.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except (OSError, BotoCoreError) as error:
        return Finding(
            Level.FAIL,
            name,
            f"bucket {bucket} cannot be listed: {_first_line(error)}",
            "does the bucket exist at S3_ENDPOINT, and may the key list, read and write it?",
        )
    return Finding(Level.OK, name, f"bucket {bucket} can be listed")


# --- this host ----------------------------------------------------------------------------------


def _disk(values: settings.Values) -> Iterator[Finding]:
    """Of the embedded stream only: a broker's and a database's disk are not ours to see."""
    url = urlsplit(values["RABBITMQ_URL"])
    if url.scheme != "embedded":
        return
    folder = Path(unquote(url.path))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free for the embedded stream in {folder}"
    remedy = "free some space, or lower STREAM_MAX_BYTES and STREAM_MAX_AGE"
    if not os.access(folder, os.W_OK):
        yield Finding(Level.FAIL, "disk", f"{folder} cannot be written", "check its owner and permissions")
    elif free < _DISK_FAIL_BYTES:
        yield Finding(Level.FAIL, "disk", detail, remedy)
    elif free < _DISK_WARN_BYTES:
        yield Finding(Level.WARN, "disk", detail, remedy)
    else:
        yield Finding(Level.OK, "disk", detail)


def _worker(values: settings.Values) -> Iterator[Finding]:
    yield _page("worker", values["METRICS_HOST"], values["METRICS_PORT"], "/readyz")


def _api(values: settings.Values) -> Iterator[Finding]:
    yield _page("api", values["HTTP_HOST"], values["HTTP_PORT"], "/analytics/v1/status/readyz")


def _page(name: str, host: str, port: int, path: str) -> Finding:
    """A process that runs elsewhere, or not yet, is no fault: it cannot be told from here."""
    if port == 0:
        return Finding(Level.OK, name, "listens on a port of its own choice: not looked for")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S):
            return Finding(Level.OK, name, f"ready at {url}")
    except urllib.error.HTTPError as error:
        remedy = f"see what its log says; {url} names the component"
        return Finding(
            Level.WARN, name, f"not ready: {error.code} {_unready(error.read(10_000))}".strip(), remedy
        )
    except (OSError, ValueError) as error:
        remedy = f"start it with `spendstream {name}`, unless it runs on another host"
        return Finding(
            Level.WARN,
            name,
            f"not reachable at {url}: {_first_line(getattr(error, 'reason', error))}",
            remedy,
        )


def _unready(body: bytes) -> str:
    try:
        components: dict[str, Any] = json.loads(body)["components"]
        return ", ".join(
            f"{name} is {part['status']}" for name, part in components.items() if part["status"] != "ok"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
