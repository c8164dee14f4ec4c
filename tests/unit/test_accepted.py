"""The accepted events that a batch brings for the archive, with what each was counted under."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline.core.events import DETAILS
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.sink import event_columns
from tests.support import archives, books, mix
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink

NOW_US = 1_790_000_000_000_000
RULES = Rules(
    clients_per_org_hour_max=3,
    models_per_org_hour_max=3,
    dimensions=mix.DIMENSIONS,
    split_hours=tuple(range(0, 24, 2)),
    values_per_org_hour_max=3,
)


def model_of(event: dict[str, Any]) -> Any:
    return event["counted_model_id"] or event["model_id"]


def test_events_that_an_earlier_version_left_in_the_outbox_are_read() -> None:
    ledger = Ledger(RULES, keep_accepted=True)
    bodies = mix.make(50, seed=22, now_us=NOW_US).bodies
    ledger.ingest(first_offset=0, next_offset=50, timestamp_us=NOW_US, bodies=bodies)
    batch = ledger.drain(now_us=0, caught_up=False)
    assert batch.accepted is not None
    table = event_columns.table_of(batch.accepted)
    kinds = list(DETAILS[:-1])
    later = ["counted_model_id", *kinds, "dimensions", "in_quarter"]
    before = table.drop_columns(later)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, before.schema) as writer:
        writer.write_table(before)
    found = event_columns.decode(bytes(sink.getvalue()))
    assert found.schema == event_columns.SCHEMA
    assert found.drop_columns(later).equals(before)
    assert set(found.column("in_quarter").to_pylist()) == {0}
    assert 1 in table.column("in_quarter").to_pylist()
    assert found.column("dimensions").to_pylist() == [[]] * len(table)
    assert all(set(found.column(kind).to_pylist()) == {0} for kind in kinds)
    assert found.column("counted_model_id").null_count == len(table) > 0


async def test_batches_bring_the_accepted_events_over_flushes_late_blocks_and_restarts() -> None:
    bodies = mix.make(3000, seed=21, now_us=NOW_US, late=0.2, bad=0.05).bodies
    sink = MemorySink()
    events: list[dict[str, Any]] = []
    oracle = naive.Oracle(books.oracle_rules(RULES))
    want = archives.accepted(oracle, ((i, NOW_US, body) for i, body in enumerate(bodies)))
    got = []
    claim, ledger = await books.recover(sink, RULES, keep_accepted=True)
    numbers = []
    for at in range(0, len(bodies), 300):
        if at == 1500:
            claim, ledger = await books.recover(sink, RULES, keep_accepted=True)
        for chunk in books.chunks_of(bodies[at : at + 300], size=100, broker_us=NOW_US, first_offset=at):
            ledger.ingest(**chunk)
        blocks = ledger.missing()
        if blocks:
            ledger.adopt(await sink.load(claim, blocks), blocks)
        batch = ledger.drain(now_us=0, caught_up=False)
        await sink.flush(claim, batch)
        assert batch.accepted is not None
        numbers.append((batch.accepted.first_number, len(batch.accepted)))
        table = event_columns.table_of(batch.accepted)
        assert event_columns.decode(event_columns.encode(table)).equals(table)
        got.extend(archives.rows(table))
        events.extend(table.to_pylist())
    assert [n for n, _ in numbers] == [sum(c for _, c in numbers[:i]) for i in range(len(numbers))]
    assert got == want

    # The names they were counted under and their lateness give the rows of the tables.
    for grain, name in ((3600, "client_hour"), (86400, "client_day")):
        counts: dict[Any, list[int]] = {}
        for e in events:
            at = e["occurred_at"].replace(minute=0, second=0, microsecond=0)
            at = at.replace(hour=0) if grain == 86400 else at
            row = counts.setdefault((e["org_id"], at, model_of(e), e["counted_client_id"]), [0, 0])
            row[0] += 1
            row[1] += e["late"] >= (2 if grain == 3600 else 3)
        assert counts == {key: [row.invocations, row.revision] for key, row in getattr(oracle, name).items()}
    values: Counter[Any] = Counter()
    for e in events:
        at = e["occurred_at"].replace(minute=0, second=0, microsecond=0)
        for one in e["dimensions"]:
            assert one["counted_value"] in (one["value"], naive.OVERFLOW_VALUE)
            values[e["org_id"], at, model_of(e), one["dimension"], one["counted_value"]] += 1
    assert values == {key: row.invocations for key, row in oracle.breakdown_hour.items()}
    quarters: Counter[Any] = Counter()
    for e in events:
        if e["in_quarter"]:
            minute = e["occurred_at"].minute // 15 * 15
            at = e["occurred_at"].replace(minute=minute, second=0, microsecond=0)
            quarters[e["org_id"], at, model_of(e), e["late"] >= 2] += 1
    rows = oracle.usage_quarter.items()
    assert +quarters == +Counter(
        {(*key, True): row.revision for key, row in rows}
        | {(*key, False): row.invocations - row.revision for key, row in rows}
    )
    failures: dict[Any, int] = {}
    for e in events:
        if e["status"]:
            at = e["occurred_at"].replace(minute=0, second=0, microsecond=0)
            names = e["counted_client_id"], e["status"], e["counted_error_code"]
            key = e["org_id"], at, model_of(e), *names
            failures[key] = failures.get(key, 0) + 1
    assert failures == dict(oracle.usage_errors_hour)
