"""Our own JSON and CloudEvents: what comes out is judged as what came in, and nothing else comes out."""

from __future__ import annotations

import base64
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.collector.dialects import Offered, Unreadable, contract, framing
from pipeline.core import wire
from pipeline.core.wire import Fault
from tests.support import mix

ORG = UUID("5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e")
CANARY = "CANARY-7f1c"
GOOD: dict[str, Any] = {
    "eventId": "0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69",
    "orgId": str(ORG),
    "modelId": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "actorId": None,
    "clientId": "key-1",
    "occurredAt": "2026-11-23T10:00:00.25Z",
    "latencyMs": 812,
    "status": "success",
    "errorCode": None,
    "inputTokens": 1450,
    "outputTokens": 260,
    "costEstimateCents": "0.8275",
    "cacheReadTokens": 1000,
    "provider": "openai",
    "modelName": "gpt-4o-2024-08-06",
    "metadata": {"team": "search"},
}
SNAKE = {wire.SNAKE_NAMES[name]: value for name, value in GOOD.items()}
EVENT = wire.read(json.dumps(GOOD).encode())
CLOUD = {"specversion": "1.0", "type": wire.EVENT_TYPE, "source": CANARY, "id": CANARY, "data": GOOD}


def offered(body: Any, **how: Any) -> list[Offered]:
    return list(contract.read(body if isinstance(body, bytes) else json.dumps(body).encode(), **how))


def one(body: Any, **how: Any) -> Offered:
    [found] = offered(body, **how)
    return found


def event_of(found: Offered) -> bytes:
    assert isinstance(found.event, bytes), found.faults
    return found.event


def verdict_of(found: Offered) -> wire.Event | wire.Invalid:
    if found.event is None:
        return wire.Invalid(reason="malformed", faults=found.faults)
    return wire.read(event_of(found))


def tried(body: bytes) -> tuple[Offered | None, str]:
    """What a body offers; or None, and why the whole of it is unreadable."""
    try:
        return one(body), ""
    except Unreadable as error:
        return None, str(error)


def without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}


def test_every_kind_of_good_and_bad_event_is_judged_as_if_it_had_come_by_the_stream() -> None:
    made = mix.make(4_000, seed=5, now_us=1_790_000_000_000_000, bad=0.3)
    events = 0
    for body in made.bodies:
        if body.startswith(b"["):
            continue  # several events, here
        expected = wire.read(body.strip(b" \t\r\n"))  # space around an event is no part of it
        found, said = tried(body)
        if found is None:
            assert isinstance(expected, wire.Invalid), body
            assert said[:8] == expected.faults[0].message[:8], body
            continue
        assert verdict_of(found) == expected, body
        if isinstance(expected, wire.Event):
            events += 1
            assert wire.read(contract.canonical(event_of(found))) == expected, body
    assert events > 1_000


@pytest.mark.parametrize(
    "event", [GOOD, SNAKE, CLOUD, {**CLOUD, "data": SNAKE}], ids=["camel", "snake", "cloud", "both"]
)
def test_an_event_comes_out_in_camel_case_with_the_contracts_fields_only(event: dict[str, Any]) -> None:
    inner = event.get("data", event)
    noise = {
        "prompt": CANARY,
        "messages": [{"content": CANARY}],
        "record_id": CANARY,
        "event": {"eventId": CANARY},
    }
    noisy = {**event, **noise, "data": {**inner, **noise}} if "data" in event else {**event, **noise}
    found = event_of(one(noisy))
    assert CANARY.encode() not in found
    assert list(json.loads(contract.canonical(found)).items()) == list(GOOD.items())


def test_numbers_are_copied_digit_by_digit() -> None:
    text = (
        json.dumps(GOOD).replace('"0.8275"', "0.82750000000000000000000000000001").replace("1450", "1.45e3")
    )
    found = event_of(one(text.encode()))
    assert b'"inputTokens":1.45e3' in found
    assert b'"costEstimateCents":0.82750000000000000000000000000001' in found


def test_the_variant_is_the_one_that_the_worker_sees() -> None:
    """Where both spellings are there, one counts, and nothing of the other gets in."""
    both = {**SNAKE, **without(GOOD, "clientId")}
    assert verdict_of(one(both)) == wire.read(json.dumps(both).encode())
    assert b"client" not in event_of(one(both))
    two_costs = {**SNAKE, "cost_estimate": 7}
    assert b'"cost_estimate"' not in event_of(one(two_costs))
    assert verdict_of(one(two_costs)) == EVENT
    no_cost = {**SNAKE, "cost_estimate_cents": None, "cost_estimate": 7}
    short = {**without(SNAKE, "cost_estimate_cents"), "cost_estimate": "0.8275"}
    for event in (no_cost, short):
        assert verdict_of(one(event)) == wire.read(json.dumps(event).encode())
        assert wire.read(contract.canonical(event_of(one(event)))) == wire.read(json.dumps(event).encode())
    around = {**SNAKE, "specversion": CANARY, "data": CANARY}
    assert verdict_of(one(around)) == EVENT
    assert CANARY.encode() not in event_of(one(around))


def test_a_fault_is_named_as_the_sender_spells_the_field() -> None:
    cases = [
        ({**GOOD, "latencyMs": -1}, ["latencyMs"]),
        ({**SNAKE, "latency_ms": -1, "status": 5}, ["latency_ms", "status"]),
        ({**CLOUD, "data": without(SNAKE, "occurred_at")}, ["data.occurred_at"]),
        ({**CLOUD, "type": CANARY, "data": {**GOOD, "status": CANARY}}, ["type", "data.status"]),
        ({**CLOUD, "specversion": 1.0}, ["specversion"]),
        ({**CLOUD, "data": [CANARY]}, ["data"]),
        (without(CLOUD, "data"), ["data"]),
        ({**CLOUD, "data": CLOUD}, ["data"]),
        (without(GOOD, "eventId"), ["eventId"]),
    ]
    for event, fields in cases:
        found = one(event)
        verdict = verdict_of(found)
        assert isinstance(verdict, wire.Invalid)
        assert [fault.field for fault in verdict.faults] == fields, event
        assert verdict == wire.read(json.dumps(event).encode())
        assert CANARY not in str(verdict.faults)


def test_the_callers_only_org_is_the_org_of_an_event_that_names_none() -> None:
    for event, name in ((GOOD, "orgId"), (SNAKE, "org_id")):
        assert verdict_of(one(without(event, name), default_org=ORG)) == EVENT
        assert verdict_of(one({**CLOUD, "data": without(event, name)}, default_org=ORG)) == EVENT
        assert verdict_of(one(event, default_org=UUID(int=7))) == EVENT, "the event's own org stays"
        assert verdict_of(one({**event, name: None}, default_org=ORG)) == EVENT, "null is no org"
        null = verdict_of(one({**event, name: None}))
        assert isinstance(null, wire.Invalid)
        assert null.faults[0].field == name
        missing = verdict_of(one(without(event, name)))
        assert isinstance(missing, wire.Invalid)
        assert missing.faults == (Fault(name, "is missing"),)


def test_an_array_and_lines_are_read_item_by_item_in_their_order() -> None:
    items = [GOOD, SNAKE, 5, None, [GOOD], CLOUD, {}]
    found = offered(items)
    assert [verdict_of(item) == EVENT for item in found] == [True, True, False, False, False, True, False]
    assert [item.faults[0].message for item in found[2:5]] == ["not a JSON object"] * 3
    for content_type in ("application/x-ndjson", "application/jsonl; charset=utf-8", "APPLICATION/NDJSON"):
        lines = b"\r\n\n".join(json.dumps(item).encode() for item in items)
        assert offered(lines, content_type=content_type) == found
    assert offered([]) == offered(b"", content_type="application/x-ndjson") == []


def test_a_broken_line_is_the_fault_of_this_line_only() -> None:
    good = json.dumps(GOOD).encode()
    broken = [
        good[:-1],
        b'{"a": NaN}',
        b"\xff" + good,
        good + b",",
        b"\xef\xbb\xbf" + good,
        b"[" * 50_000,
        b'{"a":"\x01"}',
    ]
    found = offered(b"\n".join([good, *broken, good]), content_type="application/x-ndjson")
    assert [verdict_of(item) == EVENT for item in found] == [True, *[False] * len(broken), True]
    for item in found[1:-1]:
        assert item.faults[0].field == ""
        assert item.faults[0].message.startswith(("not JSON", "not UTF-8", "nested"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1},', "not JSON"),
        (b"[{},]", "not JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'[{"a":"\xc3"}]', "not UTF-8"),
        (b'{"a":Infinity}', "not JSON"),
        (b"[" * 1_000_000, "brackets do not match"),
        (b'{"a":' * 1_000_000, "nested"),
        (CANARY.encode(), "not JSON"),
    ],
)
def test_a_body_that_is_no_json_is_unreadable_and_not_quoted(body: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said) as caught:
        offered(body)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("events", [2, 300])
def test_lines_whose_ends_are_gone_are_answered_with_what_took_them(events: int) -> None:
    """``curl -d @events.ndjson`` sends the lines without their ends."""
    joined = json.dumps(GOOD).encode() * events
    (line,) = contract.read(joined, default_org=None, content_type="application/x-ndjson")
    (fault,) = line.faults
    assert "use --data-binary" in fault.message
    with pytest.raises(Unreadable, match="several events are an array, or lines as application/x-ndjson"):
        list(contract.read(joined, default_org=None))
    (other,) = contract.read(b"{", default_org=None, content_type="application/x-ndjson")
    assert "--data-binary" not in other.faults[0].message


def test_an_event_keeps_to_the_bounds_of_the_stream_with_its_unknown_fields() -> None:
    at_bound = {**GOOD, "prompt": ""}
    at_bound["prompt"] = "x" * (wire.BODY_BYTES_MAX - len(json.dumps(at_bound)))
    assert verdict_of(one(at_bound)) == EVENT
    for event, said in (
        ({**at_bound, "prompt": at_bound["prompt"] + "x"}, "larger than 65536 bytes"),
        ({**GOOD, "prompt": json.loads("[" * 200 + "]" * 200)}, "nested more than 200 deep"),
    ):
        assert one(event).faults == (Fault("", said),)
        assert one([event]).faults == (Fault("", said),)
        assert wire.check(json.dumps(event).encode())[0].message == said


HALF = b'"\\ud83d"'


def test_halves_of_surrogate_pairs_are_left_to_the_contracts_rules() -> None:
    """They are valid JSON. The contract allows them in metadata and in unknown fields, and nowhere else."""
    text = json.dumps(GOOD).encode()
    variants = [
        text.replace(b'"search"', HALF),
        text[:-1] + b', "prompt": ' + HALF + b"}",
        text.replace(b'"key-1"', HALF),
        json.dumps(SNAKE).encode().replace(b'"search"', HALF),
        json.dumps(CLOUD).encode().replace(b'"search"', HALF),
        text.replace(b'"search"', HALF).replace(b'"eventId"', b' "event\\u0049d" '),
        b'{ "\\ud83d" : [1e5, 123456789012345678901234567890] ,\n' + text[1:],
    ]
    for body in variants:
        expected = wire.read(body)
        assert verdict_of(one(body)) == expected, body
        found = offered(b"[" + body + b",\n" + body + b"]")
        assert [verdict_of(item) for item in found] == [expected] * 2
        if isinstance(expected, wire.Event):
            assert wire.read(contract.canonical(event_of(one(body)))) == expected
    assert isinstance(wire.read(variants[0]), wire.Event)


def test_of_a_name_that_stands_twice_the_last_one_counts() -> None:
    twice = json.dumps(GOOD)[:-1] + f', "latencyMs": 9, "x": "{CANARY}", "status": "error"}}'
    assert verdict_of(one(twice.encode())) == wire.read(twice.encode())


# --- CloudEvents ---------------------------------------------


def test_cloud_events_are_read_structured_in_a_batch_and_as_base64() -> None:
    encoded = base64.b64encode(json.dumps(GOOD).encode()).decode()
    as_bytes = {**without(CLOUD, "data"), "data_base64": encoded, "datacontenttype": "application/json"}
    for content_type in (contract.CLOUD_EVENT, f"{contract.CLOUD_EVENT}; charset=utf-8", framing.JSON):
        assert verdict_of(one(CLOUD, content_type=content_type)) == EVENT
        assert verdict_of(one(as_bytes, content_type=content_type)) == EVENT
    found = offered([CLOUD, as_bytes, {**CLOUD, "type": "x"}], content_type=contract.CLOUD_EVENTS)
    assert [verdict_of(item) == EVENT for item in found] == [True, True, False]
    with pytest.raises(Unreadable, match="array"):
        offered(CLOUD, content_type=contract.CLOUD_EVENTS)
    with pytest.raises(Unreadable, match="one event"):
        offered([CLOUD], content_type=contract.CLOUD_EVENT)


@pytest.mark.parametrize(
    "text", ["", "!", "e30", 5, None, base64.b64encode(b"{").decode(), base64.b64encode(b"[]").decode()]
)
def test_data_in_base64_that_is_no_event_is_a_fault(text: Any) -> None:
    verdict = verdict_of(one({**without(CLOUD, "data"), "data_base64": text}))
    assert isinstance(verdict, wire.Invalid)
    assert verdict.faults[0].field in ("data_base64", "data")


def test_a_cloud_event_in_binary_mode_has_its_attributes_in_headers() -> None:
    headers = {"CE-SpecVersion": "1.0", "ce-type": wire.EVENT_TYPE, "ce-id": CANARY, "ce-source": CANARY}
    for event in (GOOD, SNAKE):
        assert verdict_of(one(event, headers=headers)) == EVENT
    assert verdict_of(one(GOOD, headers={"x-other": "1"})) == EVENT
    for written in ("analytics%2Eusage.v1", '"analytics.usage.v1"', '"analytics%2eusage\\.v1"'):
        assert one(GOOD, headers={**headers, "ce-type": written}) == one(GOOD), written
    wrong = one(GOOD, headers={**headers, "ce-type": CANARY})
    assert wrong.event is None
    assert wrong.faults == (Fault("ce-type", "expected analytics.usage.v1"),)
    assert [fault.field for fault in one(GOOD, headers={"ce-type": wire.EVENT_TYPE}).faults] == [
        "ce-specversion"
    ]
    assert verdict_of(one(CLOUD, headers=headers, content_type=contract.CLOUD_EVENT)) == EVENT
    with pytest.raises(Unreadable):
        offered([GOOD], headers=headers)


NAMES = [*wire.CAMEL_NAMES, *wire.SNAKE_NAMES.values(), "cost_estimate", "specversion", "type", "data", "x"]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**40)
    | st.floats()
    | st.sampled_from(["", "1.0", wire.EVENT_TYPE, "success", str(ORG), GOOD["occurredAt"], "\ud800", "é"])
)


@given(
    st.recursive(
        st.dictionaries(st.sampled_from(NAMES), VALUES | st.just(GOOD)),
        lambda inner: st.dictionaries(st.sampled_from(["data", "metadata", "x"]), inner).map(
            lambda d: {**CLOUD, **d}
        ),
        max_leaves=3,
    ),
    st.sampled_from([{}, GOOD, SNAKE, CLOUD]),
)
def test_any_mixture_of_fields_is_judged_as_by_the_stream(
    extra: dict[str, Any], event: dict[str, Any]
) -> None:
    body = json.dumps({**event, **extra}).encode()
    expected = wire.read(body)
    try:
        verdict = verdict_of(one(body))
    except Unreadable:
        assert isinstance(expected, wire.Invalid)
        assert expected.reason == "malformed"
        return
    assert verdict == expected
