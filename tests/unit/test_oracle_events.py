"""The oracle itself, on cases small enough to be worked out by hand: which bodies are events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.oracle import (
    SECOND_US,
    Accepted,
    Duplicate,
    Event,
    Oracle,
    Rejected,
    decode,
)
from tests.support.oracle_events import NOON_US, ORG, body, decoded, event, feed


def test_the_three_variants_mean_the_same_event() -> None:
    camel = event(actorId=None, clientId="é", metadata={"a": "b"})
    names = {
        "eventId": "event_id",
        "orgId": "org_id",
        "modelId": "model_id",
        "actorId": "actor_id",
        "clientId": "client_id",
        "occurredAt": "occurred_at",
        "latencyMs": "latency_ms",
        "inputTokens": "input_tokens",
        "outputTokens": "output_tokens",
        "costEstimateCents": "cost_estimate_cents",
    }
    snake = {names.get(name, name): value for name, value in camel.items()}
    short = {("cost_estimate" if name == "cost_estimate_cents" else name): v for name, v in snake.items()}
    envelopes = [
        {"specversion": "1.0", "type": "analytics.usage.v1", "id": "x", "source": "/", "data": data}
        for data in (camel, snake)
    ]
    results = [decode(json.dumps(each).encode()) for each in (camel, snake, short, *envelopes)]
    assert isinstance(results[0], Event)
    assert results == [results[0]] * 5


def test_the_other_spelling_is_ignored() -> None:
    assert decoded(event_id="nonsense", latency_ms="x", specversion="7").latency_ms == 120
    both = {"event_id": event()["eventId"], **event(eventId=...)}
    assert decode(json.dumps(both).encode()) == Rejected(
        "invalid",
        ("orgId", "modelId", "occurredAt", "latencyMs", "inputTokens", "outputTokens"),
    )


def test_cost_estimate_cents_wins_over_cost_estimate() -> None:
    snake = {
        "event_id": str(ORG),
        "org_id": str(ORG),
        "model_id": str(ORG),
        "occurred_at": "2026-11-23T12:00:00Z",
        "latency_ms": 1,
        "status": "success",
        "input_tokens": 1,
        "output_tokens": 1,
        "cost_estimate": "2",
        "cost_estimate_cents": "3",
    }
    result = decode(json.dumps(snake).encode())
    assert isinstance(result, Event)
    assert result.cost_microcents == 3_000_000
    snake["cost_estimate_cents"] = None  # present, so it wins, and null is no estimate
    result = decode(json.dumps(snake).encode())
    assert isinstance(result, Event)
    assert result.cost_microcents is None


@pytest.mark.parametrize(
    ("envelope", "fields"),
    [
        ({"specversion": "0.3"}, ("specversion",)),
        ({"specversion": 1.0}, ("specversion",)),
        ({"type": "other"}, ("type",)),
        ({"type": ...}, ("type",)),
        ({"data": ...}, ("data",)),
        ({"data": [1]}, ("data",)),
        ({"data": "{}"}, ("data",)),
        ({"data": {"specversion": "1.0", "type": "analytics.usage.v1", "data": event()}}, ("data",)),
        ({"data": event(status="ok"), "type": "x"}, ("type", "status")),
        ({"data": event(eventId=...)}, ("eventId",)),
    ],
)
def test_a_wrong_envelope_is_invalid(envelope: dict[str, Any], fields: tuple[str, ...]) -> None:
    whole = {"specversion": "1.0", "type": "analytics.usage.v1", "data": event(), **envelope}
    whole = {name: value for name, value in whole.items() if value is not ...}
    assert decode(json.dumps(whole).encode()) == Rejected("invalid", fields)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b"[{}]",
        b'"text"',
        b"17",
        b"{} {}",
        body()[:-20],
        body(metadata={"a": "cut off here"})[:-10],
        body().replace(b"120", b"NaN"),
        body().replace(b"120", b"Infinity"),
        body().replace(b"120", b"-Infinity"),
        body().replace(b"120", b"012"),
        body().replace(b"120", b"+12"),
        body().replace(b"120", b"1."),
        body().replace(b"120", b".5"),
        body().replace(b"120", b"0x1"),
        body().replace(b"{", b"{,"),
        body().replace(b"}", b",}"),
        body().replace(b'"success"', b"'success'"),
        body().replace(b"success", b"\xff\xfe"),
        body().replace(b"success", b"\xed\xa0\x80"),  # a surrogate in UTF-8
        body().replace(b"success", b"a\nb"),
        body().replace(b"success", b"\\x41"),
        b"\xef\xbb\xbf" + body(),
        json.dumps(event()).encode("utf-16"),
        body(metadata={"pad": "x" * 65536}),
    ],
)
def test_malformed(raw: bytes) -> None:
    assert decode(raw) == Rejected("malformed")


def test_the_size_bound_is_inclusive() -> None:
    short = len(body(metadata={"pad": ""}))
    assert isinstance(decode(body(metadata={"pad": "x" * (65536 - short)})), Event)
    assert decode(body(metadata={"pad": "x" * (65537 - short)})) == Rejected("malformed")


def test_the_last_of_duplicate_keys_wins() -> None:
    assert decode(body().replace(b"{", b'{"latencyMs": "bad", ')) == decode(body())
    assert decode(body().replace(b"}", b', "latencyMs": "bad"}')) == Rejected("invalid", ("latencyMs",))


def test_an_enormous_number_in_an_ignored_field_is_still_json() -> None:
    assert decode(body().replace(b"}", b', "x": ' + b"9" * 10_000 + b', "y": 1e999999}')) == decode(body())


@pytest.mark.parametrize("field", ["eventId", "orgId", "modelId", "actorId"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        str(ORG)[:-1],
        str(ORG) + "1",
        str(ORG) + "\n",
        ORG.hex,
        "{" + str(ORG) + "}",
        "urn:uuid:" + str(ORG),
        "1111111g-1111-4111-8111-111111111111",
        "11111111-11114-111-8111-111111111111",
        "１1111111-1111-4111-8111-111111111111",
        5,
        True,
        [],
        {},
    ],
)
def test_uuid_rule(field: str, value: Any) -> None:
    assert decode(body(**{field: value})) == Rejected("invalid", (field,))


def test_uuids_are_values_not_text() -> None:
    low = body(eventId="abcdefab-1111-4111-8111-111111111111")
    high = body(eventId="ABCDEFAB-1111-4111-8111-111111111111")
    assert [type(each) for each in feed(Oracle(), low, high)] == [Accepted, Duplicate]


REQUIRED = [
    "orgId",
    "modelId",
    "occurredAt",
    "latencyMs",
    "status",
    "inputTokens",
    "outputTokens",
]


KINDS = ["cacheReadTokens", "cacheWriteTokens", "cacheWrite1hTokens", "reasoningTokens"]


@pytest.mark.parametrize("field", [*REQUIRED, "eventId"])
@pytest.mark.parametrize("value", [None, ...])
def test_a_required_field_missing_or_null(field: str, value: Any) -> None:
    assert decode(body(**{field: value})) == Rejected("invalid", (field,))


def test_an_empty_object_names_every_required_field() -> None:
    result = decode(b"{}")
    assert isinstance(result, Rejected)
    assert set(result.fields) == {"eventId", *REQUIRED}


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("clientId", ["", "a" * 128, "😀" * 128, "é", None], ["a" * 129, "😀" * 129, 5, True, [], {}]),
        ("clientId", ["\u0001", "\uffff"], ["a\0b", "\ud800", "a\udfffb"]),
        ("errorCode", ["", "a" * 64, None], ["a" * 65, 500, False, ["x"], "\0", "\udc00"]),
        ("metadata", [None, {}, {"a": ""}, {"": "x"}], [[], "x", 1, {"a": 1}, {"a": None}, {"a": {}}]),
        (
            "status",
            ["success", "error", "timeout", "throttled"],
            ["Success", "", "ok", "success ", 0, [], True],
        ),
        ("latencyMs", [0, 2**31 - 1], [-1, 2**31, 1.5, "1", True, [], 10**30]),
        ("inputTokens", [0, 10**12], [-1, 10**12 + 1, 1.5, "1", False, {}]),
        ("outputTokens", [0, 10**12], [-1, 10**12 + 1, 1.5, "1", False, {}]),
        *((kind, [0, 1, None], [-1, 10**12 + 1, 1.5, "1", False, {}]) for kind in KINDS),
        ("costEstimateCents", [None, 0, "0"], [True, [], "x"]),
    ],
)
def test_field_rules(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert isinstance(decode(body(**{field: value})), Event), value
    for value in bad:
        assert decode(body(**{field: value})) == Rejected("invalid", (field,)), value


def test_kinds_of_tokens_are_parts_of_the_input_and_of_the_output() -> None:
    parts = {"cacheReadTokens": 2, "cacheWriteTokens": 3, "cacheWrite1hTokens": 5, "reasoningTokens": 7}
    fits = decoded(inputTokens=10, outputTokens=7, **parts)
    assert (fits.cache_read_tokens, fits.cache_write_tokens, fits.cache_write_1h_tokens) == (2, 3, 5)
    assert fits.reasoning_tokens == 7
    assert decode(body(inputTokens=9, outputTokens=7, **parts)) == Rejected("invalid", ("inputTokens",))
    assert decode(body(inputTokens=10, outputTokens=6, **parts)) == Rejected("invalid", ("outputTokens",))


def test_no_estimate_is_not_an_estimate_of_zero() -> None:
    oracle = Oracle()
    results = feed(oracle, body(1), body(2, costEstimateCents=None), body(2, costEstimateCents=0))
    assert [type(each) for each in results] == [Accepted, Accepted, Rejected]
    [row] = oracle.usage_day.values()
    assert (row.invocations, row.unestimated, row.cost_microcents) == (2, 1, 250_000)


@pytest.mark.parametrize("text", [b"120.0", b"1.2e2", b"12000e-2", b"120E0", b"0.00012e+6"])
def test_an_integer_is_one_however_it_is_written(text: bytes) -> None:
    assert decode(body().replace(b"120", text)) == decode(body())


@pytest.mark.parametrize(
    "text", [b"120.5", b"1e-1", b"-1", b"-120.0", b"1e99", b"1e9999999999999999999", b'"120"']
)
def test_no_other_number_is_an_integer(text: bytes) -> None:
    assert decode(body().replace(b"120", text)) == Rejected("invalid", ("latencyMs",))


def test_minus_zero_is_zero() -> None:
    result = decode(body().replace(b"120", b"-0").replace(b"0.25", b"-0.0e5"))
    assert isinstance(result, Event)
    assert (result.latency_ms, result.cost_microcents) == (0, 0)


@pytest.mark.parametrize(
    ("text", "microcents"),
    [
        ("0", 0),
        ("-0", 0),
        ("-0.000", 0),
        ("1", 1_000_000),
        ("0.1", 100_000),
        ("0.000001", 1),
        ("0.0000005", 0),  # half to even
        ("0.0000015", 2),
        ("0.0000025", 2),
        ("0.00000050000000000000000000000001", 1),
        ("1e-6", 1),
        ("5E-7", 0),
        ("5.1e-7", 1),
        ("1E+2", 100_000_000),
        ("1e-99999999999999999999999", 0),
        ("100000000", 10**14),
        ("1e8", 10**14),
        ("99999999.9999995", 10**14),
        ("0.12345649999999999999999999999999999999999999999999999999999999", 123_456),
    ],
)
def test_cost_is_exact(text: str, microcents: int) -> None:
    assert decoded(costEstimateCents=text).cost_microcents == microcents
    number = decode(body(costEstimateCents="@").replace(b'"@"', text.encode()))
    assert isinstance(number, Event)
    assert number.cost_microcents == microcents


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-0.0000001",
        "-1e-99999",
        "100000000.0000001",
        "100000001",
        "1e9",
        "1e99999999999999",
        "0." + "1" * 63,
    ],
)
def test_cost_out_of_range(text: str) -> None:
    rejected = Rejected("invalid", ("costEstimateCents",))
    assert decode(body(costEstimateCents=text)) == rejected
    assert decode(body(costEstimateCents="@").replace(b'"@"', text.encode())) == rejected


@pytest.mark.parametrize(
    "value",
    [
        "",
        " 1",
        "1 ",
        "+1",
        "1.",
        ".5",
        "01",
        "1e",
        "0x1",
        "NaN",
        "inf",
        "1_000",
        "1,5",
        "１",
        "1\n",
        True,
        [],
        {},
    ],
)
def test_cost_text_is_json_number_grammar(value: Any) -> None:
    assert decode(body(costEstimateCents=value)) == Rejected("invalid", ("costEstimateCents",))


@pytest.mark.parametrize(
    ("text", "after_noon_us"),
    [
        ("2026-11-23T12:00:00Z", 0),
        ("2026-11-23t12:00:00z", 0),
        ("2026-11-23 12:00:00Z", 0),
        ("2026-11-23T14:30:00+02:30", 0),
        ("2026-11-22T12:01:00-23:59", 0),
        ("2026-11-23T12:00:00-00:00", 0),
        ("2026-11-23T12:00:00.5Z", 500_000),
        ("2026-11-23T12:00:00.1234567Z", 123_456),
        ("2026-11-23T12:00:00.9999999999999999999999999999999999999999999Z", 999_999),
    ],
)
def test_time_forms(text: str, after_noon_us: int) -> None:
    assert decoded(occurredAt=text).occurred_us == NOON_US + after_noon_us


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:30:00-00:30", 0),
        ("2024-02-29T00:00:00Z", 1_709_164_800 * SECOND_US),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_800 * SECOND_US - 1),
    ],
)
def test_time_bounds(text: str, at_us: int) -> None:
    assert decoded(occurredAt=text).occurred_us == at_us


@pytest.mark.parametrize(
    "value",
    [
        "",
        "2026-11-23",
        "2026-11-23T12:00:00",
        "2026-11-23T12:00Z",
        "2026-11-23T12:00:00.Z",
        "2026-11-23T12:00:00,5Z",
        "2026-11-23T12:00:00+0100",
        "2026-11-23T12:00:00+01",
        "2026-11-23T12:00:00+24:00",
        "2026-11-23T12:00:00+01:60",
        "2026-11-23T12:00:60Z",
        "2026-11-23T12:60:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-31T12:00:00Z",
        "2025-02-29T12:00:00Z",
        "2026-13-01T12:00:00Z",
        "2026-00-01T12:00:00Z",
        "2026-11-00T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:30:00+01:00",
        "9999-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00+01:00",
        "2026-11-23T12:00:00Z ",
        " 2026-11-23T12:00:00Z",
        "2026-11-23_12:00:00Z",
        "2026-11-23  12:00:00Z",
        "26-11-23T12:00:00Z",
        "２026-11-23T12:00:00Z",
        "2026-11-23T12:00:00." + "1" * 44 + "Z",
        1_795_435_200,
        True,
        {},
    ],
)
def test_time_faults(value: Any) -> None:
    assert decode(body(occurredAt=value)) == Rejected("invalid", ("occurredAt",))


def test_time_text_is_at_most_64_characters() -> None:
    text = "2026-11-23T12:00:00." + "1" * 43 + "Z"
    assert len(text) == 64
    assert decoded(occurredAt=text).occurred_us == NOON_US + 111_111
