"""What an archive must hold, by the oracle, and what it does hold, in the same form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import psycopg

from pipeline.archive import files
from pipeline.archive.store import Store
from pipeline.core.accepted import AcceptedEvents
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.sink import Claim, Sink
from tests.support import books
from tests.support import oracle as naive
from tests.support.memory_sink import uuid_of

Row = tuple[Any, ...]
"""(offset, event, org, model, client, time, latency, status, error code, tokens in and out, microcents)."""

_COLUMNS = (
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
)


def accepted(oracle: naive.Oracle, stream: Iterable[tuple[int, int, bytes]]) -> list[Row]:
    """Feed (offset, broker time, body) to the oracle: the events that it accepts, in stream order."""
    found = []
    for offset, broker_us, body in stream:
        outcome = oracle.feed(offset, broker_us, body)
        if isinstance(outcome, naive.Accepted):
            found.append(row(offset, outcome.event))
    return found


def row(offset: int, e: naive.Event) -> Row:
    """The row of an accepted event."""
    ids = (offset, e.event_id, e.org_id, e.model_id, e.client_id)
    at = naive.EPOCH + timedelta(microseconds=e.occurred_us)
    figures = (e.input_tokens, e.output_tokens, e.cost_microcents)
    return (*ids, at, e.latency_ms, e.status, e.error_code, *figures)


def rows(table: Any) -> list[Row]:
    """The rows of an Arrow table of events, in its order."""
    return list(zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True))


def archived(database_url: str, store: Store, *, partition: int = 0) -> list[Row]:
    """Every event of a partition in listed files, by offset; each file is checked against the manifest."""
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
    """Is every accepted event in the outbox once, under the names and as late as it was counted?"""
    lines = []
    offsets = [offset for part in outbox for offset in part.offset.tolist()]
    if offsets != [row[0] for row in wanted]:
        lines.append(f"outbox: offsets {offsets}, oracle {[row[0] for row in wanted]}")
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
    return lines


async def recover(sink: Sink, rules: Rules, *, stream: str = books.STREAM) -> tuple[Claim, Ledger]:
    """A ledger as a worker with an archive builds it at start."""
    claim, position = await sink.claim(stream)
    ledger = Ledger(rules, position, keep_accepted=True)
    ledger.adopt(await sink.resident_rows(claim, ledger.resident_from()))
    async for hour, segment in sink.live_ids(claim, from_hour=ledger.live_hours_from()):
        ledger.recover_ids(hour, segment)
    return claim, ledger
