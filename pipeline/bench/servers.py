"""Contenders that need servers, and the filled streams and empty databases for them.

The bench leaves an existing stack as it was. Its streams and databases have names of their own, and they are
deleted at the end. The user of DATABASE_URL must be allowed to create databases.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, Self
from urllib.parse import urlunsplit

import msgspec
import psycopg
from psycopg import sql as psql

from pipeline.bench import contenders, workload
from pipeline.bench.answers import Answer, Outcome
from pipeline.bench.contenders import Clock, Event, Task, timed
from pipeline.common import settings, urls
from pipeline.common.connect import Session, connect
from pipeline.common.operator import OperatorError
from pipeline.common.settings_table import SETTINGS
from pipeline.config import StreamConfig
from pipeline.processes.child import Child
from pipeline.transports import Transport
from pipeline.transports.factory import open_transport
from sql import migrate

BASE: Final = "/analytics/v1"
READY_S: Final = 300.0
STALLED_S: Final = 300.0
_SESSION: Final = Session(application_name="spendstream-bench")


class BenchError(OperatorError):
    """A run could not start, or one of its processes failed."""


# --- streams -------------------------------------------------------------------------------------


def stream_config(url: str, stream: str) -> StreamConfig:
    return StreamConfig(url=url, stream=stream, consumer="spendstream-bench")


def new_name() -> str:
    return f"spendstream_bench_{secrets.token_hex(6)}"


async def fill(url: str, stream: str, copies: Iterator[Sequence[bytes]], *, partitions: int) -> None:
    """Make a stream and publish all copies. Each event goes to the partition of its org, as in the field."""
    transport = open_transport(stream_config(url, stream))
    try:
        if partitions > 1:
            await transport.create_super_stream(partitions=partitions)
        await transport.open()
        publisher = await transport.publisher()
        for bodies in copies:
            for chunk in workload.chunks(bodies, 20_000):
                await publisher.publish(chunk)
    finally:
        await transport.close()


async def delete_stream(url: str, stream: str) -> None:
    """Delete a stream of ours. An embedded stream stays in its folder."""
    if not url.startswith("rabbitmq-stream"):
        return
    from pipeline.transports.rabbitmq.transport import RabbitMQTransport

    transport = RabbitMQTransport(stream_config(url, stream))
    try:
        await transport.delete()
    finally:
        await transport.close()


def drain(task: Task) -> Outcome:
    """Take chunks from the broker without reading them: no contender behind a stream can be faster."""
    assert task.rabbitmq_url is not None
    url, clock = task.rabbitmq_url, Clock()

    async def drain_partition(transport: Transport, partition: int, end_offset: int) -> None:
        subscription = await transport.subscribe(partition=partition, offset=0)
        next_offset = 0
        while next_offset < end_offset:
            chunk = await subscription.receive()
            next_offset = chunk.next_offset
            subscription.grant()

    async def race() -> None:
        nonlocal clock
        transport = open_transport(stream_config(url, task.stream))
        await transport.open()
        extents = await transport.extents()
        with timed() as clock:
            await asyncio.gather(
                *(drain_partition(transport, n, extent.end_offset) for n, extent in enumerate(extents))
            )
        await transport.close()

    asyncio.run(race())
    return contenders.outcome(task.events, clock, None)


# --- databases -----------------------------------------------------------------------------------


@contextmanager
def database(url: str) -> Iterator[str]:
    """Make an empty database on the same server, and drop it afterwards; yields its URL.

    The database has TimescaleDB if the server has it.
    """
    name = new_name()
    mine = urlunsplit(urls.split(url)._replace(path=f"/{name}"))
    with connect(url, _SESSION, autocommit=True) as connection:
        connection.execute(psql.SQL("CREATE DATABASE {} TEMPLATE template0").format(psql.Identifier(name)))
        try:
            with connect(mine, _SESSION, autocommit=True) as inside, suppress(psycopg.Error):
                inside.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
            yield mine
        finally:
            connection.execute(psql.SQL("DROP DATABASE {} WITH (FORCE)").format(psql.Identifier(name)))


_ROLLED_UP: Final = """
    SELECT org_id, model_id, (extract(epoch FROM bucket_start) / 3600)::bigint, sum(invocations)::bigint,
        sum(errors + timeouts + throttles)::bigint, sum(input_tokens)::bigint, sum(output_tokens)::bigint,
        sum(cost_microcents)::bigint, sum(latency_sum_ms)::bigint
    FROM analytics.{table} GROUP BY 1, 2, 3
"""


def stored_answer(connection: psycopg.Connection[Any]) -> Answer:
    """The answer in the stored hourly rows. Raises BenchError if the other tables disagree with them."""

    def sums(table: str) -> Any:
        query = _ROLLED_UP.format(table=table)
        return contenders.as_sums(connection.execute(query.encode()).fetchall())

    hourly = sums("usage_hour")
    if sums("client_hour") != hourly:
        raise BenchError("client_hour does not add up to usage_hour")
    total = [sum(column) for column in zip(*hourly.values(), strict=True)]
    for table in ("usage_minute", "usage_day", "client_day"):
        if [sum(column) for column in zip(*sums(table).values(), strict=True)] != total:
            raise BenchError(f"{table} does not add up to usage_hour")
    counters = connection.execute(
        "SELECT sum(accepted)::bigint, sum(duplicate)::bigint, sum(rejected)::bigint,"
        " (SELECT coalesce(sum(records), 0)::bigint FROM analytics.dead_letters),"
        " (SELECT count(*) FROM analytics.dead_letters WHERE reason = 'conflict') FROM analytics.partitions"
    ).fetchone()
    assert counters is not None
    accepted, duplicate, rejected, dead_letters, conflicts = counters
    if dead_letters != rejected:
        raise BenchError(f"{rejected} events were rejected and {dead_letters} are dead letters")
    return Answer(
        sums=hourly,
        accepted=accepted,
        duplicate=duplicate + conflicts,
        conflict=conflicts,
        rejected=rejected - conflicts,
    )


# --- ours, whole -----------------------------------------------------------------------------------


def _free_ports(count: int) -> int:
    """The first of ``count`` adjacent free ports, below those from which the kernel serves clients."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with ExitStack() as probes, suppress(OSError):
            for number in range(count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            return port


class Service:
    """A process of ours as a user runs it, with the given settings only. The end of `with` kills it."""

    def __init__(self, task: Task, *command: str, pages: Sequence[str], **environment: str) -> None:
        """Start the process. It is ready when all ``pages`` answer 200."""
        inherited = settings.without(os.environ, [setting.name for setting in SETTINGS])
        self._name, self._pages = command[0], pages
        self._log = task.folder / f"{self._name}.log"
        self._child = Child.of_ours("pipeline.cli", *command, env=inherited | environment, log=self._log)
        self.pid = self._child.pid

    def check(self) -> None:
        """Raise BenchError if the process has ended."""
        if (code := self._child.exit_code()) is not None:
            raise self._failure(f"ended with code {code}")

    def wait_ready(self) -> None:
        started = time.monotonic()
        for page in self._pages:
            while True:
                self.check()
                with suppress(OSError), urllib.request.urlopen(page, timeout=10) as answer:
                    if answer.status == 200:
                        break
                if time.monotonic() - started > READY_S:
                    raise self._failure(f"was not ready within {READY_S:g} s")
                time.sleep(0.02)

    def stop(self) -> tuple[float, float]:
        """Stop by SIGTERM; returns CPU seconds of its whole life and peak MiB, both with its children."""
        peak_mib = contenders.peak_mib(self.pid)
        self._child.ask_to_end()
        code, cpu_s = self._child.wait_usage()
        if code != 0:
            raise self._failure(f"ended with code {code}")
        return cpu_s, peak_mib

    def _failure(self, what: str) -> BenchError:
        return BenchError(f"the {self._name} {what}: {self._child.tail()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.exit_code() is None:
            self._child.kill()


class Worker(Service):
    """``spendstream worker``, with ``task.processes``."""

    def __init__(self, task: Task, **environment: str) -> None:
        assert task.database_url is not None
        assert task.rabbitmq_url is not None
        port = _free_ports(task.processes)
        self._metrics = [f"http://127.0.0.1:{port + number}/metrics" for number in range(task.processes)]
        settings_of_task = {
            "DATABASE_URL": task.database_url,
            "RABBITMQ_URL": task.rabbitmq_url,
            "RABBITMQ_STREAM": task.stream,
            "METRICS_PORT": str(port),
        }
        super().__init__(
            task,
            "worker",
            *("--processes", str(task.processes)),
            pages=[page.replace("/metrics", "/readyz") for page in self._metrics],
            **(settings_of_task | environment),
        )

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels and the processes."""
        total = 0.0
        for url in self._metrics:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    page = answer.read().decode()
            except urllib.error.URLError as error:
                if isinstance(error.reason, ConnectionRefusedError):
                    continue  # not started yet, so it has counted nothing; `check` finds an ended process
                raise
            found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE)
            total += sum(map(float, found))
        return total


class Api(Service):
    """``spendstream api``, open to this machine."""

    def __init__(self, task: Task) -> None:
        assert task.database_url is not None
        self.port = _free_ports(1)
        super().__init__(
            task,
            "api",
            pages=[f"http://127.0.0.1:{self.port}{BASE}/status/readyz"],
            DATABASE_URL=task.database_url,
            AUTH_MODE="none",
            API_ALLOW_PRIVILEGED="true",
            API_RATE_LIMIT="0",
            HTTP_HOST="127.0.0.1",
            HTTP_PORT=str(self.port),
        )


_OFFERED: Final = """
    SELECT partition, offered, extract(epoch FROM updated_at)::float8,
        extract(epoch FROM clock_timestamp())::float8
    FROM analytics.partitions WHERE offered > 0
"""


def committed(task: Task, **environment: str) -> Outcome:
    """From a full broker to committed rows, by the real worker, in the steady state.

    The clock of a partition starts at the start of its first flush. So neither the start of the process
    counts nor the events of the first flush. The clock stops when the last event of all partitions is visible
    to another session. All times are those of the database's clock. The rate is the sum of the rates of the
    partitions.
    """
    assert task.database_url is not None
    migrate.upgrade(task.database_url)
    with (
        connect(task.database_url, _SESSION, autocommit=True) as connection,
        Worker(task, **environment) as worker,
    ):
        wal_from = _wal_bytes(connection)
        first: dict[int, tuple[int, float]] = {}
        last, last_news = 0, time.monotonic()
        while True:
            rows = connection.execute(_OFFERED).fetchall()
            for partition, offered, flushed_at, _ in rows:
                first.setdefault(partition, (offered, flushed_at))
            total = sum(row[1] for row in rows)
            if total >= task.events:
                break
            if total != last:
                last, last_news = total, time.monotonic()
            elif time.monotonic() - last_news > STALLED_S:
                raise BenchError(
                    f"nothing was committed for {STALLED_S:g} s: {total} of {task.events} events"
                )
            worker.check()
            time.sleep(0.02)
        ended = rows[0][3]
        counted = [(offered - first[p][0], ended - first[p][1]) for p, offered, _, _ in rows]
        flushes = worker.metric("analytics_flush_duration_seconds_count")
        figures = {
            "flushes": flushes,
            "flush_s": worker.metric("analytics_flush_duration_seconds_sum") / max(flushes, 1),
            "flush_rows": worker.metric("analytics_flush_rows_sum") / max(flushes, 1),
            "fold_s": worker.metric("analytics_fold_duration_seconds_sum"),
            "decode_s": worker.metric("analytics_decode_duration_seconds_sum"),
            "wal_bytes": (_wal_bytes(connection) - wal_from) / task.events,
        }
        cpu_s, peak_mib = worker.stop()
        answer = stored_answer(connection)
        disk = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert disk is not None
        figures["disk_bytes"] = disk[0] / task.events
    events = sum(count for count, _ in counted)
    if events == 0:
        raise BenchError("one flush took everything: give it more events (--copies)")
    return Outcome(
        events=events,
        seconds=events / sum(count / seconds for count, seconds in counted),
        cpu_s=cpu_s * events / task.events,
        peak_mib=peak_mib,
        answer=answer,
        figures=figures,
    )


def _wal_bytes(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


# --- the usual design ------------------------------------------------------------------------------

ROWS_AN_INSERT: Final = 500

_RAW: Final = """
    CREATE TABLE raw (
        org_id uuid NOT NULL, event_id uuid NOT NULL, model_id uuid NOT NULL, client_id text,
        occurred_at timestamptz NOT NULL, latency_ms integer NOT NULL, status text NOT NULL, error_code text,
        input_tokens bigint NOT NULL, output_tokens bigint NOT NULL, cost_microcents bigint NOT NULL,
        PRIMARY KEY (org_id, event_id, occurred_at)
    )
"""
_ROLL_UP: Final = """
    CREATE TABLE hourly AS
    SELECT org_id, model_id, date_trunc('hour', occurred_at) AS hour, count(*) AS events,
        count(*) FILTER (WHERE status <> 'success') AS failed, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cost_microcents) AS cost_microcents,
        sum(latency_ms) AS latency_ms
    FROM raw GROUP BY 1, 2, 3
"""


def insert_then_roll_up(task: Task) -> Outcome:
    """The usual design: raw rows by 500-row ``INSERT ... ON CONFLICT DO NOTHING``, then GROUP BY hour."""
    assert task.database_url is not None
    bodies = workload.load_bodies(task.file)
    decoder = msgspec.json.Decoder(Event)
    rejected = inserted = 0
    with connect(task.database_url, _SESSION, autocommit=True) as connection:
        connection.execute(_RAW)
        with suppress(psycopg.errors.UndefinedFunction):
            connection.execute("SELECT create_hypertable('raw', 'occurred_at')")
        with timed() as clock:
            rows: list[Any] = []
            for body in bodies:
                try:
                    event = decoder.decode(body)
                except msgspec.MsgspecError:
                    rejected += 1
                    continue
                rows += (
                    event.orgId,
                    event.eventId,
                    event.modelId,
                    event.clientId,
                    event.occurredAt,
                    event.latencyMs,
                    event.status,
                    event.errorCode,
                    event.inputTokens,
                    event.outputTokens,
                    event.microcents(),
                )
                if len(rows) == 11 * ROWS_AN_INSERT:
                    inserted += _insert(connection, rows)
                    rows = []
            if rows:
                inserted += _insert(connection, rows)
            connection.execute(_ROLL_UP)
        found = connection.execute(
            "SELECT org_id, model_id, extract(epoch FROM hour)::bigint / 3600, events, failed, input_tokens,"
            " output_tokens, cost_microcents, latency_ms FROM hourly"
        ).fetchall()
    answer = Answer(
        sums=contenders.as_sums(found),
        accepted=inserted,
        duplicate=len(bodies) - rejected - inserted,
        rejected=rejected,
    )
    return contenders.outcome(len(bodies), clock, answer)


def _insert(connection: psycopg.Connection[Any], rows: Sequence[Any]) -> int:
    one = f"({', '.join(['%s'] * 11)})"
    query = f"INSERT INTO raw VALUES {', '.join([one] * (len(rows) // 11))} ON CONFLICT DO NOTHING"
    return connection.execute(query.encode(), rows).rowcount
