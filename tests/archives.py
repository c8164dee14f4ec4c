"""What an archive must hold, by the oracle, and what it does hold, in the same form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests import oracle as naive

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
            e = outcome.event
            ids = (offset, e.event_id, e.org_id, e.model_id, e.client_id)
            at = naive.EPOCH + naive.timedelta(microseconds=e.occurred_us)
            figures = (e.input_tokens, e.output_tokens, e.cost_microcents)
            found.append((*ids, at, e.latency_ms, e.status, e.error_code, *figures))
    return found


def rows(table: Any) -> list[Row]:
    """The rows of an Arrow table of events, in its order."""
    return list(zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True))
