"""The older usage record: every field, and faults in its own words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.collector import ids
from pipeline.collector.dialects import Offered, contract, usage_record
from pipeline.core import wire

ORG = ids.org_id("acme")
ACTOR = "0190B5A0-7b1c-7c3e-8e0f-3f1d2c4b5a69"
RECORD: dict[str, Any] = {
    "record_id": "rec_1",
    "organization_id": "acme",
    "api_key_id": "key-1",
    "user_id": ACTOR,
    "provider": "openai",
    "model": "gpt-4o-2024-08-06",
    "tokens_input": 1450,
    "tokens_output": 260,
    "tokens_cache_read": 1000,
    "tokens_cache_write": 200,
    "tokens_cache_write_1h": 100,
    "tokens_reasoning": 64,
    "cost_usd": 8.275e-3,
    "latency_ms": 812.5,
    "status": "success",
    "error_code": None,
    "service_tier": "default",
    "timestamp": "2026-11-23T10:00:00.250Z",
    "metadata": {"team": "search", "n": 5},
}


def offered(record: dict[str, Any], default_org: UUID | None = None) -> Offered:
    [found] = contract.read(json.dumps(record).encode(), default_org=default_org)
    return found


def event(record: dict[str, Any], default_org: UUID | None = None) -> wire.Event:
    found = offered(record, default_org)
    assert isinstance(found.event, bytes), found.faults
    read = wire.read(found.event)
    assert isinstance(read, wire.Event)
    return read


def test_every_field_of_a_record_arrives() -> None:
    assert event(RECORD) == wire.Event(
        event_id=ids.event_id(ORG, "usage_record", "rec_1"),
        org_id=ORG,
        model_id=ids.model_id("openai", "gpt-4o-2024-08-06"),
        client_id="key-1",
        occurred_us=1_795_428_000_250_000,
        latency_ms=812,
        status=0,
        error_code="",
        input_tokens=1450,
        output_tokens=260,
        cost_microcents=827_500,
        cache_read_tokens=1000,
        cache_write_tokens=200,
        cache_write_1h_tokens=100,
        reasoning_tokens=64,
        service_tier=0,
        provider="openai",
        model_name="gpt-4o-2024-08-06",
        actor_id=ACTOR.lower(),
        metadata={"team": "search"},
    )
    assert offered(RECORD).org_name == "acme"


def test_ids_that_are_uuids_stay_and_then_no_name_is_to_be_registered() -> None:
    given = {**RECORD, "record_id": ACTOR, "organization_id": ACTOR, "model_id": ACTOR}
    read = event(given)
    assert read.event_id == read.org_id == read.model_id == UUID(ACTOR)
    assert offered(given).org_name is None


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"status": "failed"}, "status", 1),
        ({"status": "timed_out"}, "status", 2),
        ({"status": "rate_limited", "error_code": "429"}, "status", 3),
        ({"timestamp": 1_795_428_000.25}, "occurred_us", 1_795_428_000_250_000),
        ({"timestamp": 1_795_428_000}, "occurred_us", 1_795_428_000_000_000),
        ({"cost_usd": "0.00827512345678"}, "cost_microcents", 827_512),
        ({"cost_usd": 0}, "cost_microcents", 0),
        ({"cost_usd": None}, "cost_microcents", None),
        ({"service_tier": "flex"}, "service_tier", 2),
        ({"user_id": "u-7", "metadata": None}, "metadata", {"user": "u-7"}),
        ({"latency_ms": 3}, "latency_ms", 3),
        ({"model": "m" * 200}, "model_name", "m" * 128),
    ],
)
def test_what_older_routers_write_is_understood(change: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(event({**RECORD, **change}), field) == value


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"tokens_input": -1}, ["tokens_input"]),
        ({"tokens_input": "7", "latency_ms": None}, ["latency_ms", "tokens_input"]),
        ({"tokens_cache_read": 1400}, ["tokens_input"]),
        ({"cost_usd": -0.01}, ["cost_usd"]),
        ({"cost_usd": {"a": 1}}, ["cost_usd"]),
        ({"cost_usd": "1" * 100}, ["cost_usd"]),
        ({"timestamp": "yesterday"}, ["timestamp"]),
        ({"timestamp": 1e300}, ["timestamp"]),
        ({"status": "CANARY"}, ["status"]),
        ({"model": ""}, ["model"]),
        ({"record_id": ""}, ["record_id"]),
        ({"organization_id": "x" * 129}, ["organization_id"]),
        ({"organization_id": None}, ["organization_id"]),
        ({"service_tier": "CANARY"}, ["service_tier"]),
        ({"latency_ms": 1e400}, ["latency_ms"]),
    ],
)
def test_a_fault_is_named_in_the_records_own_words(change: dict[str, Any], fields: list[str]) -> None:
    text = json.dumps({**RECORD, **change}).replace("Infinity", "1e400")
    [found] = contract.read(text.encode())
    assert found.event is None
    assert sorted(fault.field for fault in found.faults) == fields
    said = " ".join(fault.message for fault in found.faults).replace(wire.NEGATIVE_COST, "")
    assert "CANARY" not in said
    assert not re.search("|".join(wire.CAMEL_NAMES), re.sub(r"expected one of [\w, ]+", "", said))


def test_a_time_that_is_there_and_wrong_is_not_called_missing() -> None:
    [found] = contract.read(json.dumps({**RECORD, "timestamp": 1e300}).encode())
    assert "missing" not in found.faults[0].message


@pytest.mark.parametrize("name", ["a\0", "\0", "\ud83d", "a\udc00", "caf\ufffd"])
@pytest.mark.parametrize("field", ["organization_id", "record_id"])
def test_a_name_of_which_no_certain_id_can_be_made_is_a_fault(field: str, name: str) -> None:
    """Otherwise two orgs, or two calls, would have the same id."""
    [found] = contract.read(json.dumps({**RECORD, field: name}).encode())
    assert [fault.field for fault in found.faults] == [field]
    assert "no id can be made" in found.faults[0].message
    for whole in ("caf\u00e9", "\U0001f600"):
        assert event({**RECORD, field: whole})


def test_the_callers_only_org_is_the_default() -> None:
    record = {name: value for name, value in RECORD.items() if name != "organization_id"}
    assert event(record, default_org=ORG).org_id == ORG
    assert event(RECORD, default_org=UUID(int=1)).org_id == ORG


def test_an_event_of_ours_with_a_field_called_record_id_is_an_event_of_ours() -> None:
    for name in ("eventId", "event_id"):
        [found] = contract.read(json.dumps({**RECORD, name: ACTOR}).encode())
        verdict = wire.read(found.event)  # type: ignore[arg-type]
        assert isinstance(verdict, wire.Invalid)


def test_the_page_has_the_table_of_the_fields_that_are_read() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/howto/publish-events.md").read_text()
    fields = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert {*RECORD, "model_id"} <= fields
    assert usage_record.ID in fields
