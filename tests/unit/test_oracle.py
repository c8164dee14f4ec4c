"""The oracle itself, on cases small enough to be worked out by hand."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tests.support import mix
from tests.support.oracle import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    OVERFLOW_CLIENT,
    OVERFLOW_ERROR_CODE,
    SECOND_US,
    Accepted,
    Duplicate,
    Event,
    Oracle,
    Outcome,
    Rejected,
    Rules,
    decode,
    total,
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


def test_a_plain_event_counts_in_every_rollup() -> None:
    oracle = Oracle()
    feed(oracle, body(clientId="app", status="timeout", errorCode="deadline"))
    day = NOON.replace(hour=0)
    measures = (1, 0, 0, 1, 0, 10, 20, 250_000, 120, 120, 0)
    assert {key: row.measures for key, row in oracle.usage_minute.items()} == {(ORG, NOON, MODEL): measures}
    assert {key: row.measures for key, row in oracle.usage_hour.items()} == {(ORG, NOON, MODEL): measures}
    assert {key: row.measures for key, row in oracle.usage_day.items()} == {(ORG, day, MODEL): measures}
    assert {key: row.measures for key, row in oracle.client_hour.items()} == {
        (ORG, NOON, MODEL, "app"): measures
    }
    assert {key: row.measures for key, row in oracle.client_day.items()} == {
        (ORG, day, MODEL, "app"): measures
    }
    assert dict(oracle.usage_errors_hour) == {(ORG, NOON, MODEL, "app", 2, "deadline"): 1}
    assert oracle.orgs_seen[ORG].first == oracle.orgs_seen[ORG].last == NOON
    assert (oracle.offered, oracle.accepted, oracle.duplicate, oracle.rejected) == (1, 1, 0, 0)


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
        ("orgId", "modelId", "occurredAt", "latencyMs", "inputTokens", "outputTokens", "costEstimateCents"),
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
    snake["cost_estimate_cents"] = None  # present, so it wins, and null is no cost
    assert decode(json.dumps(snake).encode()) == Rejected("invalid", ("costEstimateCents",))


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
    "costEstimateCents",
]


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
    ],
)
def test_field_rules(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert isinstance(decode(body(**{field: value})), Event), value
    for value in bad:
        assert decode(body(**{field: value})) == Rejected("invalid", (field,)), value


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


def test_future_and_too_late_are_decided_by_the_brokers_time() -> None:
    oracle = Oracle(Rules(dedupe_window_us=2 * HOUR_US))
    outcomes = feed(
        oracle,
        body(1, NOON_US + 5 * MINUTE_US),
        body(2, NOON_US + 5 * MINUTE_US + 1),
        body(3, NOON_US - 2 * HOUR_US),
        body(4, NOON_US - 2 * HOUR_US - 1),
    )
    assert [type(each) for each in outcomes] == [Accepted, Rejected, Accepted, Rejected]
    assert [each.reason for each in oracle.dead_letters] == ["future", "too_late"]
    assert [each.offset for each in oracle.dead_letters] == [1, 3]


def test_dedupe_is_by_org_and_event_and_the_first_counts() -> None:
    oracle = Oracle()
    outcomes = feed(
        oracle,
        body(1, inputTokens=5),
        body(1, inputTokens=7),
        body(1, inputTokens=5, orgId=str(ORG_2)),
        body(1, inputTokens=5, actorId=str(ORG_2)),
        body(1, NOON_US - 3 * HOUR_US, inputTokens=5),
    )
    assert [type(each) for each in outcomes] == [Accepted, Rejected, Accepted, Duplicate, Rejected]
    assert {each.reason for each in outcomes if isinstance(each, Rejected)} == {"conflict"}
    assert oracle.usage_hour[ORG, NOON, MODEL].input_tokens == 5
    assert oracle.orgs_seen[ORG].first == NOON


def test_a_rejected_event_does_not_take_its_id() -> None:
    oracle = Oracle()
    outcomes = feed(oracle, body(1, status="?"), body(1, NOON_US + HOUR_US), body(1))
    assert [type(each) for each in outcomes] == [Rejected, Rejected, Accepted]


def test_an_id_is_forgotten_by_the_hour_of_its_first_occurrence() -> None:
    oracle = Oracle(Rules(dedupe_window_us=2 * HOUR_US))
    at_us = NOON_US + 30 * MINUTE_US  # remembered until 12:00 + 1 h + 2 h
    end_us = NOON_US + 3 * HOUR_US
    assert isinstance(oracle.feed(0, at_us, body(1, at_us)), Accepted)
    assert oracle.feed(1, end_us - 1, body(1, end_us)) == Rejected("conflict", ("eventId",))
    assert isinstance(oracle.feed(2, end_us, body(1, end_us)), Accepted)
    assert isinstance(oracle.feed(3, end_us + 1, body(1, end_us)), Duplicate)


def test_the_floor_of_the_window_never_goes_back() -> None:
    oracle = Oracle(Rules(dedupe_window_us=2 * HOUR_US))
    assert isinstance(oracle.feed(0, NOON_US, body(1, NOON_US)), Accepted)
    assert isinstance(oracle.feed(1, NOON_US + HOUR_US, body(2, NOON_US)), Accepted)
    assert oracle.feed(2, NOON_US, body(3, NOON_US - HOUR_US - 1)) == Rejected("too_late")
    assert isinstance(oracle.feed(3, NOON_US, body(3, NOON_US - HOUR_US)), Accepted)
    assert oracle.feed(4, NOON_US, body(4, NOON_US + 5 * MINUTE_US + 1)) == Rejected("future")


def test_revision_counts_events_behind_the_watermark() -> None:
    oracle = Oracle()
    later_us = NOON_US + MINUTE_US + 10 * SECOND_US
    feed(oracle, body(1), body(2, later_us - 1), broker_us=later_us)
    feed(oracle, body(3), broker_us=later_us)  # watermark 12:00:59.999999
    minute = oracle.usage_minute[ORG, NOON, MODEL]
    assert (minute.invocations, minute.revision) == (2, 0)
    feed(oracle, body(4, later_us), body(5), body(5), broker_us=later_us)  # watermark 12:01:00
    assert (minute.invocations, minute.revision) == (3, 1)
    assert oracle.usage_hour[ORG, NOON, MODEL].revision == 0
    assert oracle.usage_day[ORG, NOON.replace(hour=0), MODEL].invocations == 5


def test_an_event_does_not_move_its_own_watermark() -> None:
    oracle = Oracle()
    feed(oracle, body(1))
    assert oracle.usage_minute[ORG, NOON, MODEL].revision == 0
    assert oracle.watermark_us == NOON_US - 10 * SECOND_US


def test_clients_beyond_the_bound_share_a_row_per_hour() -> None:
    oracle = Oracle(Rules(clients_max=3))
    names = ["a", "", "other", "b", "c", "a", "other"]
    feed(oracle, *(body(i, clientId=name) for i, name in enumerate(names)))
    feed(oracle, body(100, NOON_US - HOUR_US, clientId="c"))
    day = NOON.replace(hour=0)
    count = {key[3]: row.invocations for key, row in oracle.client_hour.items() if key[1] == NOON}
    assert count == {"a": 2, "": 1, "other": 2, "b": 1, OVERFLOW_CLIENT: 1}
    of_day = {key[3]: row.invocations for key, row in oracle.client_day.items() if key[1] == day}
    assert of_day == {"a": 2, "": 1, "other": 2, "b": 1, OVERFLOW_CLIENT: 1, "c": 1}
    assert set(oracle.clients_seen) == {(ORG, name) for name in of_day}


def test_error_codes_beyond_the_bound_share_a_row() -> None:
    oracle = Oracle(Rules(error_codes_max=1))
    feed(oracle, body(0, errorCode="x"))  # a success: no error, and it takes no slot
    for i, code in enumerate(["a", "b", None, "a", "other"], start=1):
        feed(oracle, body(i, status="error", errorCode=code))
    assert {key[4:]: count for key, count in oracle.usage_errors_hour.items()} == {
        (1, "a"): 2,
        (1, OVERFLOW_ERROR_CODE): 2,
        (1, ""): 1,
    }


def test_total_equals_the_sum_over_clients_and_over_minutes() -> None:
    oracle = Oracle()
    for i in range(50):
        at_us = NOON_US - i * 7 * MINUTE_US
        feed(oracle, body(i, at_us, clientId=str(i % 3), latencyMs=i, costEstimateCents=f"0.00{i}"))
    measures = total(oracle.usage_day.values()).measures
    assert total(oracle.client_day.values()).measures == measures
    assert total(oracle.client_hour.values()).measures[:-1] == measures[:-1]
    assert total(oracle.usage_minute.values()).measures[:-1] == measures[:-1]
    assert measures[0] == 50


def test_percentiles_are_nearest_rank() -> None:
    oracle = Oracle()
    feed(oracle, *(body(i, latencyMs=i) for i in range(1, 101)))
    row = oracle.usage_day[ORG, NOON.replace(hour=0), MODEL]
    assert [row.percentile_ms(p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]


def test_a_day_starts_at_midnight_utc() -> None:
    oracle = Oracle()
    midnight_us = NOON_US // DAY_US * DAY_US
    feed(oracle, body(1, midnight_us - 1), body(2, midnight_us), broker_us=midnight_us)
    assert [key[1].day for key in sorted(oracle.usage_day)] == [22, 23]


def test_the_oracle_decides_the_acceptance_mix_as_it_was_made() -> None:
    made = mix.make(40_000, seed=7, now_us=NOON_US)
    oracle = Oracle()
    outcomes = feed(oracle, *made.bodies)
    wrong = []
    for kind, reason, raw, outcome in zip(made.kinds, made.reasons, made.bodies, outcomes, strict=True):
        if reason:
            expected = isinstance(outcome, Rejected) and outcome.reason == reason
        else:
            expected = isinstance(outcome, Accepted if kind in ("good", "late", "other_org") else Duplicate)
        if not expected:
            wrong.append((kind, reason, outcome, raw[:300]))
    assert wrong == []
    assert oracle.offered == oracle.accepted + oracle.duplicate + oracle.rejected == 40_000
    kinds = {each.name for each in (*mix.MALFORMED, *mix.INVALID)}
    assert kinds <= set(made.kinds)
    assert {"late", "duplicate", "respelled", "reused", "other_org"} <= set(made.kinds)
    conflicts = sum(letter.reason == "conflict" for letter in oracle.dead_letters)
    assert 0.04 < (oracle.duplicate + conflicts) / 40_000 < 0.06


def test_every_invalid_kind_names_its_field() -> None:
    maker = mix.make(1, seed=1, now_us=NOON_US)
    good = {name: json.dumps(value) for name, value in event(metadata={}).items()}
    assert maker.bodies
    for kind in mix.INVALID:
        for variant in mix.VARIANTS:
            outcome = decode(kind.spoil(good, variant, random.Random(1)))
            assert isinstance(outcome, Rejected), (kind.name, variant)
            assert outcome.fields[0] == kind.fields[0], (kind.name, variant, outcome)


def test_the_mix_is_the_same_for_the_same_seed() -> None:
    assert mix.make(500, seed=3, now_us=NOON_US) == mix.make(500, seed=3, now_us=NOON_US)
    assert mix.make(500, seed=3, now_us=NOON_US) != mix.make(500, seed=4, now_us=NOON_US)


def test_groups_keep_the_order() -> None:
    bodies = [b"%d" % i for i in range(1000)]
    grouped = list(mix.groups(bodies, ("raw", "gzip"), seed=1))
    assert [each for _, group in grouped for each in group] == bodies
    assert {framing for framing, _ in grouped} == {"raw", "gzip"}
