"""Small events for the tests of the oracle, with one field changed at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tests.support.oracle import (
    SECOND_US,
    Event,
    Oracle,
    Outcome,
    decode,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * SECOND_US
ORG = UUID("11111111-1111-4111-8111-111111111111")
ORG_2 = UUID("22222222-2222-4222-8222-222222222222")
MODEL = UUID("33333333-3333-4333-8333-333333333333")


def event(number: int = 1, at_us: int = NOON_US, **changes: Any) -> dict[str, Any]:
    at = datetime.fromtimestamp(at_us // SECOND_US, UTC)
    result = {
        "eventId": f"00000000-0000-4000-8000-{number:012x}",
        "orgId": str(ORG),
        "modelId": str(MODEL),
        "occurredAt": f"{at:%Y-%m-%dT%H:%M:%S}.{at_us % SECOND_US:06d}Z",
        "latencyMs": 120,
        "status": "success",
        "inputTokens": 10,
        "outputTokens": 20,
        "costEstimateCents": 0.25,
        **changes,
    }
    return {name: value for name, value in result.items() if value is not ...}


def body(*arguments: Any, **changes: Any) -> bytes:
    return json.dumps(event(*arguments, **changes)).encode()


def feed(oracle: Oracle, *bodies: bytes, broker_us: int = NOON_US) -> list[Outcome]:
    return [oracle.feed(oracle.next_offset, broker_us, each) for each in bodies]


def decoded(**changes: Any) -> Event:
    result = decode(body(**changes))
    assert isinstance(result, Event), result
    return result
