"""The usage record of older routers: flat JSON, found by its field ``record_id``, costs in US dollars.

    {"record_id": "rec_1", "organization_id": "acme", "api_key_id": "key-1", "provider": "openai",
     "model": "gpt-4o-2024-08-06", "tokens_input": 1450, "tokens_output": 260, "cost_usd": 0.008275,
     "latency_ms": 812, "status": "success", "timestamp": "2026-11-23T10:00:00.250Z"}

`contract` meets such records at /v1/events and hands them on. docs/howto/publish-events.md has the table of
fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

import msgspec

from pipeline.collector import ids
from pipeline.collector.dialects import Offered, framing
from pipeline.collector.dialects.drafts import (
    SERVICE_TIERS,
    Draft,
    Number,
    Value,
    cents_of_dollars,
    metadata_of,
    microseconds_of,
    text_of,
    time_of,
    value_of,
)
from pipeline.core import wire

NAME: Final = "usage_record"
ID: Final = "record_id"
STATUSES: Final = {
    **{status: status for status in wire.STATUSES},
    "ok": "success",
    "succeeded": "success",
    "completed": "success",
    "failure": "error",
    "failed": "error",
    "timed_out": "timeout",
    "rate_limited": "throttled",
}
METADATA_MAX: Final = 32
"""So many keys of a record's metadata are kept."""
_METADATA: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def offered(members: Mapping[str, bytes | msgspec.Raw], *, default_org: UUID | None = None) -> Offered:
    """The event of a record. ``members`` are its JSON texts by name."""

    def given(name: str) -> Value:
        return value_of(members.get(name, b""))

    draft = Draft(NAME)
    draft.put_org(("organization_id", given("organization_id")), default=default_org)
    record_id = given(ID)
    draft.put_event_id(record_id if isinstance(record_id, str) and record_id else None, ID)
    model_id = given("model_id")
    draft.put_model(
        given("provider"),
        given("model"),
        "model",
        ids.uuid_of(model_id) if isinstance(model_id, str) else None,
    )
    draft.put("clientId", text_of(given("api_key_id"), wire.CLIENT_ID_CHARS_MAX), "api_key_id")
    user = given("user_id")
    is_actor = draft.put_actor(user, "user_id")
    timestamp = given("timestamp")
    if isinstance(timestamp, Number):
        timestamp = time_of(microseconds_of(timestamp)) or timestamp
    draft.put("occurredAt", timestamp, "timestamp")
    draft.put("latencyMs", _rounded(given("latency_ms")), "latency_ms")
    status = given("status")
    draft.put("status", STATUSES.get(status, status) if isinstance(status, str) else status, "status")
    draft.put("errorCode", text_of(given("error_code"), wire.ERROR_CODE_CHARS_MAX), "error_code")
    for name, spelled in _TOKENS.items():
        draft.put(name, given(spelled), spelled)
    draft.put("costEstimateCents", cents_of_dollars(given("cost_usd")), "cost_usd")
    tier = given("service_tier")
    draft.put("serviceTier", SERVICE_TIERS.get(tier, tier) if isinstance(tier, str) else tier, "service_tier")
    labels = _labels(members.get("metadata", b""))
    if not is_actor:
        labels.setdefault("user", user)
    draft.put("metadata", metadata_of(labels) or None, "metadata")
    return draft.offered()


_TOKENS: Final = {
    "inputTokens": "tokens_input",
    "outputTokens": "tokens_output",
    "cacheReadTokens": "tokens_cache_read",
    "cacheWriteTokens": "tokens_cache_write",
    "cacheWrite1hTokens": "tokens_cache_write_1h",
    "reasoningTokens": "tokens_reasoning",
}


def _rounded(latency: Value) -> Value:
    """Whole milliseconds: older routers write 812.4. Something else stays as it is, and is a fault."""
    if not isinstance(latency, Number) or len(latency) > wire.NUMBER_CHARS_MAX or "." not in latency:
        return latency
    return Number(f"{round(float(latency))}") if abs(float(latency)) < wire.LATENCY_MS_MAX else latency


def _labels(metadata: bytes | msgspec.Raw) -> dict[str, Value]:
    """The first keys of the metadata whose values are texts."""
    try:
        members = framing.decoded(bytes(metadata) or b"{}", _METADATA)
    except msgspec.DecodeError:
        return {}
    named = ((text_of(name, wire.VALUE_CHARS_MAX), value_of(value)) for name, value in members.items())
    return {name: value for name, value in list(named)[:METADATA_MAX] if name and isinstance(value, str)}
