"""All dialects: whatever comes in, offers come out, or one word on the whole body; and nothing that was
said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.collector.dialects import Offered, Unreadable, contract, gen_ai, litellm, otlp, protobuf
from pipeline.core import wire

DATA = Path(__file__).resolve().parents[2] / "data"
ORG = UUID("5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e")
BINARY = {"ce-specversion": "1.0", "ce-type": wire.EVENT_TYPE}
Reader = Callable[..., Iterator[Offered]]
READERS: list[Reader] = [
    contract.read,
    partial(contract.read, content_type="application/x-ndjson"),
    partial(contract.read, content_type=contract.CLOUD_EVENT),
    partial(contract.read, content_type=contract.CLOUD_EVENTS),
    partial(contract.read, headers=BINARY),
    litellm.read,
    partial(litellm.read, content_type="application/x-ndjson"),
    otlp.read,
    partial(otlp.read, content_type="application/json"),
]
FIELDS = {*wire.CAMEL_NAMES, *wire.SNAKE_NAMES.values(), "cost_estimate"}


def assert_in_bounds(found: Offered) -> None:
    """An offer is an event of the contract's fields within its size, or a fault, or passed over."""
    assert (found.event is None) == bool(found.faults or found.passed_over)
    assert not (found.faults and found.passed_over)
    for fault in found.faults:
        assert len(fault.field) < 100
        assert 0 < len(fault.message) < 400
    if found.event is None:
        assert found.org_name is None
        return
    assert isinstance(found.event, bytes)
    assert len(found.event) <= wire.BODY_BYTES_MAX + 100
    try:
        event = json.loads(found.event)
    except ValueError:
        assert isinstance(wire.read(found.event), wire.Invalid)
        return
    if "eventId" not in event and "event_id" not in event and "specversion" in event:
        assert set(event) == {"specversion", "type", "data"}
        assert event["specversion"] in ("1.0", None)
        assert event["type"] in (wire.EVENT_TYPE, None)
        event = event["data"] or {}
    assert set(event) <= FIELDS or event == {"specversion": None}


def read_everywhere(body: bytes) -> int:
    """Read a body as every dialect does. Returns how many events came out."""
    events = 0
    for read in READERS:
        for default_org in (None, ORG):
            said = "read"
            try:
                for found in read(body, default_org=default_org):
                    assert_in_bounds(found)
                    events += found.event is not None
            except Unreadable as error:
                said = str(error)
            assert 0 < len(said) < 200
    return events


KNOWN = sorted(
    {
        *FIELDS,
        *(
            "specversion",
            "type",
            "data",
            "data_base64",
            "record_id",
            "organization_id",
            "timestamp",
            "latency_ms",
        ),
        *(
            "status",
            "call_type",
            "litellm_call_id",
            "startTime",
            "endTime",
            "usage_object",
            "response",
            "usage",
        ),
        *(
            "prompt_tokens",
            "response_cost",
            "cost_breakdown",
            "error_information",
            "request_tags",
            "metadata",
        ),
        *(
            "resourceSpans",
            "resource",
            "scopeSpans",
            "scope",
            "spans",
            "attributes",
            "key",
            "value",
            "stringValue",
        ),
        *(
            "intValue",
            "doubleValue",
            "traceId",
            "spanId",
            "events",
            "endTimeUnixNano",
            "startTimeUnixNano",
            "code",
        ),
    }
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["success", "failure", "acompletion", "1.0", wire.EVENT_TYPE, str(ORG), *sorted(gen_ai.WANTED)]
    )
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KNOWN), inner, max_size=6),
    max_leaves=20,
)
SAMPLES = [
    *(json.dumps(entry).encode() for entry in json.loads((DATA / "litellm/sdk.json").read_bytes())[:3]),
    (DATA / "otlp/traceloop.pb").read_bytes(),
    json.dumps(json.loads((DATA / "otlp/vercel-7.json").read_bytes())).encode(),
]


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xef\xbb\xbf[]")
@example(b"[NaN]")
@example(b"null\n")
@example(b'{"a":1,}')
@example(b'{"\\ud800":"\\udc00","eventId":1e999999}')
def test_any_bytes_are_offers_or_unreadable(body: bytes) -> None:
    read_everywhere(body)


@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_any_json_is_offers_or_unreadable(value: Any, is_ascii: bool, indent: int | None) -> None:
    read_everywhere(json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "replace"))


@given(st.sampled_from(SAMPLES), st.data())
def test_any_damage_to_what_a_real_sender_sent_is_offers_or_unreadable(
    body: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(body)))
    cut = data.draw(st.integers(0, 40))
    read_everywhere(body[:at] + data.draw(st.binary(max_size=12)) + body[at + cut :])


def test_the_samples_are_read() -> None:
    assert all(read_everywhere(body) for body in SAMPLES)


BOMBS = {
    "arrays": b"[" * 2_000_000,
    "closed arrays": b"[" * 1_000_000 + b"]" * 1_000_000,
    "objects": b'{"a":' * 400_000,
    "objects in lines": (b'{"data":' * 300 + b"1" + b"}" * 300 + b"\n") * 300,
    "data in data": b'{"specversion":"1.0","data":' * 150 + b"1" + b"}" * 150,
    "escapes": b'{"eventId":"' + b"\\u0041" * 300_000 + b'"}',
    "backslashes": b'{"eventId":"' + b"\\" * 1_000_001 + b'"}',
    "quotes": b'[' + b'"\\"' * 700_000,
    "half pairs": b'["' + b"\\ud800" * 300_000 + b'"]',
    "digits": b'{"eventId":1,"latencyMs":' + b"9" * 60_000 + b"}",
    "exponent": b'[{"record_id":"a","cost_usd":1e999999999,"timestamp":1e9999999,"tokens_input":1e999999}]',
    "tags": b'{"status":"success","call_type":"acompletion","request_tags":[' + b"1," * 1_000_000 + b'"a"]}',
    "one name": b"{" + b'"eventId":1,' * 5000 + b'"a":1}',
    "names": b"{" + b",".join(b'"%d":1' % n for n in range(6000)) + b"}",
    "spaces": b" " * 2_000_000,
    "blank lines": b"\n" * 2_000_000,
    "groups": b"\x0b" * 1_000_000,
    "nested messages": b"",
}  # fmt: skip
for _ in range(300):
    BOMBS["nested messages"] = protobuf.field(1, BOMBS["nested messages"])


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_done_within_seconds(name: str) -> None:
    """On a slow machine, in all dialects together."""
    started = time.process_time()
    read_everywhere(BOMBS[name])
    assert time.process_time() - started < 30


def test_an_event_is_what_msgspec_and_python_read_alike() -> None:
    for body in SAMPLES:
        for read in READERS:
            try:
                found = list(read(body, default_org=ORG))
            except Unreadable:
                continue
            for one in found:
                if isinstance(one.event, bytes):
                    assert msgspec.json.decode(one.event) == json.loads(one.event)
