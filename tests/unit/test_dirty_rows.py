"""The bound on dirty rows counts what a flush would write, before the flush adds it up."""

from __future__ import annotations

import uuid

from pipeline.core.batch import Batch
from pipeline.core.intake import FOLD_EVENTS
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from tests.support.ledgers import NOW_US, event


def written(batch: Batch) -> int:
    seen = len(batch.orgs) + len(batch.models) + len(batch.clients)
    return batch.row_count + seen + len(batch.dead_letters)


def bodies(count: int, *, models: int) -> list[bytes]:
    return [event(i, modelId=str(uuid.UUID(int=1000 + i % models))) for i in range(count)]


def test_dirty_rows_counts_what_a_flush_would_write_of_random_models() -> None:
    ledger = Ledger(Rules(models_per_org_hour_max=10**6))
    part = [*bodies(FOLD_EVENTS, models=FOLD_EVENTS), b"{"]
    ledger.ingest(first_offset=0, next_offset=len(part), timestamp_us=NOW_US, bodies=part)
    at_most = ledger.dirty_rows
    ledger.gather()
    exact = ledger.dirty_rows
    assert at_most >= exact == written(ledger.drain(now_us=NOW_US, caught_up=False)) > 5 * FOLD_EVENTS
    assert ledger.dirty_rows == 0


def test_many_events_of_few_rows_do_not_stop_reading() -> None:
    ledger = Ledger(Rules())
    part = bodies(FOLD_EVENTS, models=3)
    ledger.ingest(first_offset=0, next_offset=len(part), timestamp_us=NOW_US, bodies=part)
    assert ledger.dirty_rows < 100
