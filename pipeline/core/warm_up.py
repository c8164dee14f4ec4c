"""Warming up: run every compiled loop once before the first event comes."""

from __future__ import annotations

import numpy as np

from pipeline.core import dedupe
from pipeline.core.dedupe import SeenIds
from pipeline.core.dimensions import ACTOR, Dimension
from pipeline.core.events import Reader
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules


def warm_up() -> None:
    """Run every kernel once. Otherwise the first event would wait while kernels are compiled or loaded."""
    event = (
        b'{"eventId":"00000000-0000-4000-8000-00000000000%d","orgId":"00000000-0000-4000-8000-000000000000",'
        b'"modelId":"00000000-0000-4000-8000-000000000000","clientId":"c","occurredAt":"2026-01-01T00:00:00Z",'
        b'"latencyMs":1,"status":"error","errorCode":"e","inputTokens":1,"outputTokens":1,'
        b'"costEstimateCents":"0.1","modelName":"m"}'
    )
    for rules in (Rules(dimensions=(Dimension("user", ACTOR),)), Rules(sum_max=1)):
        ledger = Ledger(rules)
        ledger.ingest(
            first_offset=0,
            next_offset=3,
            timestamp_us=1_767_225_600_000_000,
            bodies=[event % 1, event % 1, event % 2],
        )
        ledger.drain(now_us=0, caught_up=False)
    reader = Reader()
    columns, _ = reader.read([event % 1])
    reader.older_checks(columns)
    _warm_up_ids()


def _warm_up_ids() -> None:
    seen, one = SeenIds(), np.ones(1, np.int32)
    seen.add(np.ones((1, 2), np.uint64), one, one, one.astype(np.uint64), one)
    for number in range(dedupe.TABLES):
        seen.renew(number, live_from=0)
    seen.reserve(2**16)  # more than the logs hold: the ids move to longer ones
