"""Archives in tests: the rows by the oracle, the rows in the files, and a partition that fills an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import psycopg

from pipeline.archive import files, rebuild, reconcile
from pipeline.archive.reconcile import Report, Scope
from pipeline.archive.store import Store, open_store
from pipeline.config import ArchiveConfig
from pipeline.core.accepted import AcceptedEvents
from pipeline.core.events import DETAILS
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.watermark import DAY_US
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, migrated, mix
from tests.support import oracle as naive
from tests.support.memory_sink import uuid_of

NOW_US = 1_790_000_000_000_000
END_US = NOW_US + 365 * DAY_US
EVERYTHING = Scope(start_us=0, end_us=END_US)
RULES = Rules(
    clients_per_org_hour_max=3,
    models_per_org_hour_max=3,
    dimensions=mix.DIMENSIONS,
    split_hours=tuple(range(0, 24, 2)),
    values_per_org_hour_max=3,
)

Row = tuple[Any, ...]
"""The columns `COLUMNS` of an event, and then its own value of each dimension: ((dimension, value), …)."""

COLUMNS = (
    "offset",
    "event_id",
    "org_id",
    "model_id",
    "client_id",
    "occurred_at",
    "latency_ms",
    "status",
    "error_code",
    "input_tokens",
    "output_tokens",
    "cost_microcents",
    *DETAILS[:-1],
    "service_tier",
    "rate_class",
    "provider",
    "model_name",
)


def accepted(oracle: naive.Oracle, stream: Iterable[tuple[int, int, bytes]]) -> list[Row]:
    """Feed (offset, broker time, body) to the oracle; returns the accepted events in stream order."""
    found = []
    for offset, broker_us, body in stream:
        outcome = oracle.feed(offset, broker_us, body)
        if isinstance(outcome, naive.Accepted):
            found.append(row(offset, outcome.event, oracle.rules))
    return found


def row(offset: int, e: naive.Event, rules: naive.Rules) -> Row:
    """The row of an accepted event."""
    ids = (offset, e.event_id, e.org_id, e.model_id, e.client_id)
    at = naive.EPOCH + timedelta(microseconds=e.occurred_us)
    names = ("input_tokens", "output_tokens", "cost_microcents", *DETAILS[:-1])
    figures = (getattr(e, name) for name in names)
    labels = (e.provider, e.model_name)
    values = tuple((dimension, e.value(source)) for dimension, source in rules.dimensions)
    return (
        *(*ids, at, e.latency_ms, e.status, e.error_code),
        *(*figures, e.service_tier, rules.rate_class(e), *labels, values),
    )


def rows(table: Any) -> list[Row]:
    """The rows of an Arrow table of events, in its order."""
    columns = (table.column(name).to_pylist() for name in COLUMNS)
    values = (
        tuple((one["dimension"], one["value"]) for one in event)
        for event in table.column("dimensions").to_pylist()
    )
    return list(zip(*columns, values, strict=True))


def archived(database_url: str, store: Store, *, partition: int = 0) -> list[Row]:
    """Every event of a partition in listed files, by offset. Each file must agree with the manifest."""
    found: list[Row] = []
    with psycopg.connect(database_url) as connection:
        listed = connection.execute(
            "SELECT path, hour, row_count, sha256 FROM analytics.archive_files WHERE partition = %s",
            (partition,),
        ).fetchall()
    for path, hour, row_count, sha256 in listed:
        in_file = rows(files.read(store, path, row_count=row_count, sha256=sha256))
        assert {row[5].replace(minute=0, second=0, microsecond=0) for row in in_file} == {hour}
        found.extend(in_file)
    return sorted(found)


def outbox_difference(
    outbox: Sequence[AcceptedEvents], oracle: naive.Oracle, wanted: Sequence[Row]
) -> list[str]:
    """List the faults of an outbox. It must have every accepted event once, as the event was counted."""
    lines = []
    kept = [row for part in outbox for row in _rows_of(part)]
    if kept != list(wanted):
        lines.append(f"outbox: {kept}, oracle {wanted}")
    numbers = [part.first_number for part in outbox]
    if numbers != [sum(map(len, outbox[:i])) for i in range(len(outbox))]:
        lines.append(f"outbox: numbers {numbers} of parts of {[len(part) for part in outbox]}")
    counted: Counter[tuple[Any, ...]] = Counter()
    late: Counter[tuple[Any, ...]] = Counter()
    for part in outbox:
        for i, client in enumerate(part.counted_client.tolist()):
            us = int(part.occurred_us[i])
            hour = naive.EPOCH + timedelta(microseconds=us - us % naive.HOUR_US)
            key = uuid_of(part.org[i]), hour, uuid_of(part.counted_model[i]), part.clients[client]
            counted[key] += 1
            late[key] += int(part.late[i]) >= 2
    rows = {key: (row.invocations, row.revision) for key, row in oracle.client_hour.items()}
    if {key: (count, late[key]) for key, count in counted.items()} != rows:
        lines.append(f"outbox: clients {dict(counted)}, late {dict(late)}, oracle {rows}")
    by_value = Counter(key for part in outbox for key in _values_counted(part))
    invocations = {key: row.invocations for key, row in oracle.breakdown_hour.items()}
    if by_value != invocations:
        lines.append(f"outbox: values {dict(by_value)}, oracle {invocations}")
    return lines


def _rows_of(part: AcceptedEvents) -> Iterable[Row]:
    """The events of an outbox in their order, without Arrow."""
    columns = (
        *(part.latency_ms, part.status, part.error_code, part.input_tokens, part.output_tokens),
        *(part.cost_microcents, part.details, part.rate_class, part.provider, part.model_name),
    )
    for i, figures in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        latency_ms, status, code, tokens_in, tokens_out, microcents, details, rate_class, *label = figures
        *kinds, unestimated, tier = details
        yield (
            int(part.offset[i]),
            *(uuid_of(ids[i]) for ids in (part.event, part.org, part.model)),
            part.clients[part.client[i]],
            naive.EPOCH + timedelta(microseconds=int(part.occurred_us[i])),
            *(latency_ms, status, part.error_codes[code], tokens_in, tokens_out),
            None if unestimated else microcents,
            *(*kinds, tier, rate_class),
            *(part.labels[place] for place in label),
            tuple(zip(part.dimensions, (part.values[place] for place in part.value[i]), strict=True)),
        )


def _values_counted(part: AcceptedEvents) -> Iterable[tuple[Any, ...]]:
    """The rows of `breakdown_hour` under which each event of an outbox was counted."""
    for i, us in enumerate(part.occurred_us.tolist()):
        hour = naive.EPOCH + timedelta(microseconds=us - us % naive.HOUR_US)
        for dimension, value in zip(part.dimensions, part.counted_value[i].tolist(), strict=True):
            yield uuid_of(part.org[i]), hour, uuid_of(part.counted_model[i]), dimension, part.values[value]


class Partition:
    """A worker's partition in a database of its own, fed from a list of bodies."""

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        migrated.upgrade(url)
        self.url, self.bodies = url, bodies
        self.sink = TimescaleSink(url)
        self.oracle = naive.Oracle(books.oracle_rules(RULES))
        self._ledger: Ledger | None = None

    async def recover(self) -> None:
        """Begin anew, as a worker does after a restart."""
        self._claim, self._ledger = await books.recover(self.sink, RULES, keep_accepted=True)

    async def feed(self, upto: int, *, leave_out: bool = False, broker_us: int = NOW_US) -> None:
        """Read and flush up to a body. With ``leave_out`` the outbox gets no events, as when it is full."""
        if self._ledger is None:
            await self.recover()
        assert self._ledger is not None
        ledger, first = self._ledger, self._ledger.received_offset
        part = self.bodies[first:upto]
        for chunk in books.chunks_of(part, size=50, broker_us=broker_us, first_offset=first):
            ledger.ingest(**chunk)
        blocks = ledger.missing()
        if blocks:
            ledger.adopt(await self.sink.load(self._claim, blocks), blocks)
        batch = ledger.drain(now_us=0, caught_up=False)
        if leave_out:
            batch.accepted = None
        await self.sink.flush(self._claim, batch)

    def accepted(self) -> list[Row]:
        """The rows that the archive must hold after all bodies."""
        stream = ((i, NOW_US, body) for i, body in enumerate(self.bodies))
        return accepted(self.oracle, stream)

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(statement).fetchall()


def reconciled(url: str, config: ArchiveConfig, scope: Scope = EVERYTHING) -> Report:
    """Compare the database with the archive."""
    with rebuild.connected(url) as connection:
        return reconcile.reconcile(connection, open_store(config), scope)
