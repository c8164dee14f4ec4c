"""The fast reader against the contract's full statement, and both against the oracle's own reading."""

from __future__ import annotations

import json
import random
import string
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core import wire
from pipeline.core.events import DETAILS, MODEL_NAME, PROVIDER, TIER, Columns, Names, Reader
from tests.support import mix
from tests.support import oracle as naive

GOOD: dict[str, Any] = {
    "eventId": "0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69",
    "orgId": "AAAAAAAA-7b1c-4c3e-8e0f-3f1d2c4b5a69",
    "modelId": "bbbbbbbb-7b1c-4c3e-8e0f-3f1d2c4b5a69",
    "actorId": "cccccccc-7b1c-4c3e-8e0f-3f1d2c4b5a69",
    "clientId": "key-1",
    "occurredAt": "2026-11-23T10:00:00.25Z",
    "latencyMs": 120,
    "status": "error",
    "errorCode": "rate_limit",
    "inputTokens": 12,
    "outputTokens": 34,
    "costEstimateCents": 0.0425,
    "metadata": {"region": "eu"},
}
NEWER: dict[str, Any] = {
    "cacheReadTokens": 5,
    "cacheWriteTokens": 4,
    "cacheWrite1hTokens": 2,
    "reasoningTokens": 7,
    "serviceTier": "batch",
    "provider": "openai",
    "modelName": "gpt-4o",
}
"""The fields that 0.1.0 did not know, each with a value of its own."""


def columns_as_events(reader: Reader, columns: Columns) -> dict[int, wire.Event]:
    """The columns as the slow reader would give them, by source."""

    def uuid_int(halves: Any) -> int:
        return int(halves[0]) << 64 | int(halves[1])

    unestimated = columns.details[:, DETAILS.index("unestimated")]
    assert not columns.cost_microcents[unestimated > 0].any()
    return {
        int(columns.source[i]): wire.Event(
            event_id=UUID(int=uuid_int(columns.event[i])),
            org_id=UUID(int=uuid_int(reader.orgs.keys[columns.org[i]])),
            model_id=UUID(int=uuid_int(reader.models.keys[columns.model[i]])),
            client_id=reader.clients.texts[columns.client[i]],
            occurred_us=int(columns.occurred_us[i]),
            latency_ms=int(columns.latency_ms[i]),
            status=int(columns.status[i]),
            error_code=reader.error_codes.texts[columns.error_code[i]],
            input_tokens=int(columns.input_tokens[i]),
            output_tokens=int(columns.output_tokens[i]),
            cost_microcents=None if unestimated[i] else int(columns.cost_microcents[i]),
            cache_read_tokens=int(columns.details[i, 0]),
            cache_write_tokens=int(columns.details[i, 1]),
            cache_write_1h_tokens=int(columns.details[i, 2]),
            reasoning_tokens=int(columns.details[i, 3]),
            service_tier=int(columns.details[i, TIER]),
            provider=reader.labels.texts[columns.labels[i, PROVIDER]],
            model_name=reader.labels.texts[columns.labels[i, MODEL_NAME]],
        )
        for i in range(len(columns))
    }


def assert_read_alike(bodies: list[bytes]) -> None:
    """Fast, slow and oracle give one verdict and one value for each body."""
    reader = Reader(dimensions=mix.DIMENSIONS)
    columns, refused = reader.read(bodies)
    fast = columns_as_events(reader, columns)
    texts = reader.clients.texts
    values = {
        source: [texts[number] for number in columns.values[i].tolist()]
        for i, source in enumerate(columns.source.tolist())
    }
    bad = {refusal.source: refusal for refusal in refused}
    assert sorted([*fast, *bad]) == list(range(len(bodies)))
    assert list(fast) == sorted(fast)
    for source, body in enumerate(bodies):
        slow, oracle = wire.read(body), naive.decode(body)
        if isinstance(slow, wire.Event):
            assert fast.get(source) == replace(slow, actor_id="", metadata={}), body
            assert isinstance(oracle, naive.Event), body
            assert values[source] == [one.value_of(slow) for one in mix.DIMENSIONS], body
            assert values[source] == [oracle.value(one.source) for one in mix.DIMENSIONS], body
            assert (slow.event_id, slow.org_id, slow.model_id) == (
                oracle.event_id,
                oracle.org_id,
                oracle.model_id,
            )
            for field in ("client_id", "occurred_us", "latency_ms", "status", "error_code"):
                assert getattr(slow, field) == getattr(oracle, field), (field, body)
            for field in ("input_tokens", "output_tokens", "cost_microcents", *DETAILS[:-1]):
                assert getattr(slow, field) == getattr(oracle, field), (field, body)
            for field in ("service_tier", "provider", "model_name"):
                assert getattr(slow, field) == getattr(oracle, field), (field, body)
        else:
            assert (bad[source].reason, bad[source].faults) == (slow.reason, slow.faults), body
            assert isinstance(oracle, naive.Rejected), body
            assert oracle.reason == slow.reason, body


def test_every_kind_of_good_and_bad_event_is_read_alike() -> None:
    made = mix.make(20_000, seed=3, now_us=1_790_000_000_000_000, bad=0.2)
    assert_read_alike(made.bodies)


def test_events_with_all_facts_and_without_an_estimate_are_read_fast() -> None:
    kinds: dict[str, Any] = {
        "cacheReadTokens": 3,
        "cacheWriteTokens": None,
        "cacheWrite1hTokens": 4,
        "reasoningTokens": 34,
    }
    kinds |= {"serviceTier": "flex", "provider": "azure", "modelName": "gpt-4o-2024-08-06"}
    snake = {wire.SNAKE_NAMES[name]: value for name, value in (GOOD | kinds).items()}
    events = [GOOD | kinds, snake, GOOD | {"costEstimateCents": None}]
    scanned = Reader().scan([json.dumps(event).encode() for event in events])
    assert scanned.doubtful.tolist() == []
    assert scanned.columns.details.tolist() == [[3, 0, 4, 34, 0, 2], [3, 0, 4, 34, 0, 2], [0, 0, 0, 0, 1, 0]]
    assert scanned.columns.labels[0].tolist() == scanned.columns.labels[1].tolist() != [0, 0]
    assert scanned.columns.labels[2].tolist() == [0, 0]
    assert scanned.columns.cost_microcents.tolist() == [42_500, 42_500, 0]
    too_many = [GOOD | {"cacheReadTokens": 9, "cacheWriteTokens": 4}, GOOD | {"reasoningTokens": 35}]
    for event, field in zip(too_many, ("inputTokens", "outputTokens"), strict=True):
        columns, [refused] = Reader().read([json.dumps(event).encode()])
        assert not len(columns)
        assert [fault.field for fault in refused.faults] == [field]
        assert "is less than" in refused.faults[0].message


@pytest.mark.parametrize(
    "text",
    [
        "\0" * 16 + ":00Z",  # a reader that has read no time yet knows no minute either
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00Zz",
        "2026-01-01T00:00:00Z ",
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:00+00:0",
        "2026-01-01T00:00:00+00:000",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00.1",
        "2026-01-01T00:00:00." + "1" * 18 + "Z",
        "2026-01-01T00:00:00." + "1" * 19 + "Z",
        "2026-01-01T00:00",
        "2026",
        "",
    ],
)
def test_a_time_ends_where_its_quote_is(text: str) -> None:
    assert_read_alike([spelled(f'"{text}"', "occurredAt"), spelled(f'"{text}', "occurredAt")])


@pytest.mark.parametrize(
    "text", ["0.5", "0.5 ", " 0.5", "1e", "1e+", "1e0001", "1.", "1-1", "1.5.2", "5e-1", ""]
)
def test_a_cost_ends_where_its_quote_or_its_number_does(text: str) -> None:
    spellings = text, f'"{text}"', f'"{text}', f'{text}"'
    assert_read_alike([spelled(one, "costEstimateCents") for one in spellings])


def spelled(number: str, field: str = "latencyMs") -> bytes:
    """A good event in which ``field`` is written so."""
    return json.dumps({**GOOD, field: "@"}).replace('"@"', number).encode()


@pytest.mark.parametrize("field", ["latencyMs", "inputTokens", "outputTokens"])
def test_an_integer_is_taken_however_json_writes_it(field: str) -> None:
    """JSON Schema calls any number without a fraction an integer; 812.0 was rejected."""
    texts = ["812", "812.0", "8.12e2", "8.12E+2", "81200e-2", "812." + "0" * 500, "0.812e0000000000000003"]
    texts += ["812" + "0" * 300 + "e-300"]
    bodies = [spelled(text, field) for text in texts]
    assert_read_alike(bodies)
    assert {wire.read(body) for body in bodies} == {wire.read(spelled("812", field))}
    assert isinstance(wire.read(bodies[1]), wire.Event)


@pytest.mark.parametrize("text", ["0.0", "-0.0", "0e99999999999999999999", "0.000e-7", "-0"])
def test_zero_is_zero_however_it_is_written(text: str) -> None:
    assert_read_alike([spelled(text)])
    assert wire.read(spelled(text)) == wire.read(spelled("0"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("812.4", "expected an integer"),
        ("8124e-1", "expected an integer"),
        ("812." + "0" * 500 + "1", "expected an integer"),
        ("1e-9999999999999999999999", "expected an integer"),
        ('"812"', "expected an integer"),
        ('"812.0"', "expected an integer"),
        ("-812.0", "must lie between 0 and 2147483647"),
        ("2147483648.0", "must lie between 0 and 2147483647"),
        ("1e9999999999999999999999", "must lie between 0 and 2147483647"),
        ("9" * 5000, "must lie between 0 and 2147483647"),
    ],
)
def test_what_is_no_integer_is_named(text: str, message: str) -> None:
    assert_read_alike([spelled(text)])
    assert wire.check(spelled(text)) == [wire.Fault("latencyMs", message)]


def test_how_deep_a_body_may_nest_depends_on_nothing_but_the_body() -> None:
    """Python bounds it by its version and by the depth of the caller, so a replay could decide otherwise."""

    def nested(depth: int) -> bytes:
        inner = "[" * (depth - 1) + "]" * (depth - 1)
        return json.dumps({**GOOD, "x": "@"}).replace('"@"', inner).encode()

    quoted = json.dumps({**GOOD, "x": "[" * 5000 + '"' + "[" * 5000}).encode()
    bodies = [nested(wire.DEPTH_MAX), nested(wire.DEPTH_MAX + 1), nested(20_000), quoted]
    assert_read_alike(bodies)
    assert [wire.check(body) == [] for body in bodies] == [True, False, False, True]
    assert wire.check(bodies[1]) == [wire.Fault("", "nested more than 200 deep")]


# JSON text, not values: how a number is spelled matters.
_numbers = st.one_of(
    st.integers(-2, 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(0, 10**9, allow_nan=False, places=8).map(str),
    st.from_regex(r"\A-?[0-9]{1,22}(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?\Z"),
    st.sampled_from(
        [
            "1e8",
            "100000000",
            "100000000.0000000000001",
            "99999999.9999995",
            "0.0000005",
            "0.0000015",
            "1e-7",
            "5e-7",
        ]
    ),
    st.sampled_from(
        [
            "1e99",
            "-0",
            "-0.0",
            "00",
            "812.0",
            "8.12e2",
            "8124e-1",
            "1e15",
            "1.",
            ".5",
            "0e0",
            "1E+2",
            "true",
            "null",
            '""',
            "NaN",
            "0e99999",
        ]
    ),
)
_quoted = _numbers.map(lambda text: text if text.startswith('"') else f'"{text}"')
_times = st.one_of(
    st.datetimes().map(lambda t: json.dumps(t.isoformat() + "Z")),
    st.from_regex(
        r"\A[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9]"
        r"(\.[0-9]{1,9})?([Zz]|[+-][0-2][0-9]:[0-6][0-9])\Z"
    ).map(json.dumps),
    st.sampled_from(["2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z"]).map(json.dumps),
    st.sampled_from(["1970-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2026-01-01T00:00:00"]).map(
        json.dumps
    ),
    st.text(max_size=40).map(json.dumps),
)
_texts = st.one_of(
    st.text(max_size=140).map(json.dumps),
    st.sampled_from(
        [
            '"\\u0000"',
            '"\\ud800"',
            '"\\ud83d\\ude00"',
            "null",
            "7",
            '"' + "é" * 128 + '"',
            '"' + "😀" * 65 + '"',
        ]
    ),
)
_uuids = st.one_of(
    st.uuids().map(lambda u: json.dumps(str(u))),
    st.uuids().map(lambda u: json.dumps(str(u).upper())),
    st.text(alphabet=string.hexdigits + "-é", min_size=34, max_size=38).map(json.dumps),
    st.sampled_from(["null", '"0190b5a07b1c7c3e8e0f3f1d2c4b5a69"', '"{0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a}"']),
)
_FIELD_TEXT = {
    "serviceTier": st.sampled_from(
        ['"batch"', '"fast"', '"Fast"', '"standard "', "null", "1", '"fl\\u0065x"']
    ),
    "provider": _texts,
    "modelName": _texts,
    "costEstimateCents": st.one_of(_numbers, _quoted),
    "latencyMs": _numbers,
    "inputTokens": _numbers,
    "outputTokens": _numbers,
    "occurredAt": _times,
    "clientId": _texts,
    "errorCode": _texts,
    "eventId": _uuids,
    "orgId": _uuids,
    "modelId": _uuids,
    "actorId": _uuids,
    "status": st.sampled_from(
        ['"success"', '"Success"', '"timeout"', '"throttled"', "null", "1", '"suc\\u0063ess"']
    ),
    "metadata": st.sampled_from(
        ["null", "{}", '{"a":"b"}', '{"a":1}', "[]", '{"a":null}', '{"\\ud800":"x"}']
    ),
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A good event with some fields spelled anew, in any variant, sometimes with the names of another."""
    fields = {name: json.dumps(value) for name, value in GOOD.items()}
    for name in draw(st.lists(st.sampled_from(sorted(_FIELD_TEXT)), max_size=2, unique=True)):
        fields[name] = draw(_FIELD_TEXT[name])
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=1)):
        if draw(st.booleans()):
            del fields[name]
    body = mix.encode(fields, draw(st.sampled_from(mix.VARIANTS)))
    extra = draw(
        st.sampled_from(
            [
                "",
                '"x":1,',
                '"specversion":"1.0",',
                '"event_id":"y",',
                '"eventId":"z",',
                '"data":{},',
                '"x":"\xff",',
                '"cost_estimate":"x",',
                '"cost_estimate_cents":1,',
                '"type":"other",',
                '"x":[1,{"a":"\\ud800"}],',
            ]
        )
    )
    return body.replace(b"{", b"{" + extra.encode("latin-1"), 1)


_NESTED_TWICE_CLOSED_ONCE = (
    b'{"specversion":"1.0","type":"analytics.usage.v1","data":{"x":1,"data":'
    + json.dumps(GOOD).encode()
    + b"}"
)


@given(st.lists(bodies(), min_size=1, max_size=4))
@example([b"{" * 70_000])
@example([b'{"a":' * 20_000 + b"1" + b"}" * 20_000])
@example([b'{"eventId":"\xc3', b'\xa9"}'])
@example([_NESTED_TWICE_CLOSED_ONCE])
def test_any_body_is_read_alike(many: list[bytes]) -> None:
    assert_read_alike(many)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_malformed_or_read_alike(body: bytes) -> None:
    assert_read_alike([body])


_KEYS = st.sampled_from(["team", "fé-ture", "tea", "", "team\0", "Team"]) | st.text(max_size=6)
_TEXTS = st.text(max_size=8) | st.sampled_from(
    ["t" * 128, "t" * 129, "é" * 128, "😀" * 129, "\ud800", "a\0b"]
)


@given(
    metadata=st.lists(st.tuples(_KEYS, _TEXTS | st.none() | st.just(7)), max_size=4),
    actor=st.none() | st.uuids().map(str) | st.uuids().map(lambda one: str(one).upper()) | st.just("x"),
    ascii_only=st.booleans(),
)
def test_any_metadata_and_actor_are_read_alike(
    metadata: list[tuple[str, Any]], actor: str | None, ascii_only: bool
) -> None:
    pairs = (f"{json.dumps(k, ensure_ascii=ascii_only)}:{json.dumps(v)}" for k, v in metadata)
    text = json.dumps({**GOOD, "actorId": actor, "metadata": 0}).replace(
        '"metadata": 0', f'"metadata":{{{",".join(pairs)}}}'
    )
    assert_read_alike([text.encode("utf-8", "surrogatepass")])


def test_actors_and_metadata_are_read_fast() -> None:
    """The slow reader is not needed for a value that is too long, nor for an actor in capitals."""
    bodies = [
        json.dumps(
            {**GOOD, "actorId": GOOD["actorId"].upper(), "metadata": metadata}, ensure_ascii=False
        ).encode()
        for metadata in (
            {"team": "search", "x": "y"},
            {"fé-ture": "日本"},
            {"team": "t" * 1000},
            {"team": ""},
            {},
        )
    ]
    reader = Reader(dimensions=mix.DIMENSIONS)
    scanned = reader.scan(bodies)
    assert not len(scanned.doubtful)
    texts = [[reader.clients.texts[number] for number in row] for row in scanned.columns.values.tolist()]
    assert texts == [
        [GOOD["actorId"], "search", ""],
        [GOOD["actorId"], "", "日本"],
        [GOOD["actorId"], wire.OVERFLOW_VALUE, ""],
        [GOOD["actorId"], "", ""],
        [GOOD["actorId"], "", ""],
    ]


@pytest.mark.parametrize("variant", mix.VARIANTS)
def test_all_variants_mean_the_same_event(variant: str) -> None:
    given = {**GOOD, **NEWER}
    body = mix.encode({name: json.dumps(value) for name, value in given.items()}, variant)
    event = wire.read(body)
    assert event == wire.read(json.dumps(given).encode())
    assert isinstance(event, wire.Event)
    found = (*(getattr(event, name) for name in DETAILS[:4]), event.provider, event.model_name)
    assert found == tuple(NEWER[name] for name in (*wire.TOKEN_KINDS, "provider", "modelName"))
    assert event.service_tier == wire.SERVICE_TIERS.index(NEWER["serviceTier"])
    reader = Reader()
    columns, rejected = reader.read([body])
    assert not rejected
    counted = replace(event, actor_id="", metadata={})  # no dimension was set that would read them
    assert columns_as_events(reader, columns) == {0: counted}


def test_no_event_can_have_the_name_of_what_is_beyond_a_cap() -> None:
    for field, name in (("clientId", wire.OVERFLOW_CLIENT), ("errorCode", wire.OVERFLOW_ERROR_CODE)):
        verdict = wire.read(json.dumps({**GOOD, field: name}).encode())
        assert isinstance(verdict, wire.Invalid)
        assert [fault.field for fault in verdict.faults] == [field]
    reader = Reader()
    columns, _ = reader.read([json.dumps({**GOOD, "clientId": "other", "errorCode": "other"}).encode()])
    assert columns.client.tolist() != [reader.clients.OVERFLOW]
    assert columns.error_code.tolist() != [reader.error_codes.OVERFLOW]


def test_the_check_of_a_payload_ignores_spelling_and_sees_every_counted_field() -> None:
    reader = Reader()
    spelled = [
        json.dumps(GOOD).encode(),
        json.dumps({**GOOD, "costEstimateCents": "0.04250"}, indent=1).encode(),
    ]
    columns, _ = reader.read(spelled)
    assert columns.check[0] == columns.check[1]
    for field, other in {
        "modelId": GOOD["orgId"],
        "clientId": "key-2",
        "occurredAt": "2026-11-23T10:00:00.26Z",
        "latencyMs": 121,
        "status": "timeout",
        "errorCode": None,
        "inputTokens": 13,
        "outputTokens": 35,
        "costEstimateCents": 0.0426,
    }.items():
        changed, _ = reader.read([json.dumps({**GOOD, field: other}).encode()])
        assert changed.check[0] != columns.check[0], field


def test_faults_name_every_broken_rule_as_the_sender_spelled_it() -> None:
    body = json.dumps({**GOOD, "latencyMs": -1, "status": "ok", "costEstimateCents": "x"}).encode()
    assert [fault.field for fault in wire.check(body)] == ["latencyMs", "status", "costEstimateCents"]
    snake = mix.encode({k: json.dumps(v) for k, v in {**GOOD, "latencyMs": -1}.items()}, "cloudevent_snake")
    assert [fault.field for fault in wire.check(snake)] == ["data.latency_ms"]


def test_numbers_of_ids_survive_growth() -> None:
    reader, luck = Reader(), random.Random(1)
    orgs = [str(UUID(int=luck.getrandbits(128))) for _ in range(5000)]
    made = [json.dumps({**GOOD, "orgId": org}).encode() for org in orgs]
    first, _ = reader.read(made[:1000])
    both, _ = reader.read(made)
    assert both.org[:1000].tolist() == first.org.tolist()
    assert len(reader.orgs) == 5000
    assert [str(event.org_id) for event in columns_as_events(reader, both).values()] == orgs


@given(st.lists(st.lists(st.text("ab\0é", max_size=26), max_size=40), max_size=4), st.integers(0, 900))
def test_names_are_numbered_in_order_of_first_sight(batches: list[list[str]], before: int) -> None:
    names = Names("(overflow)")
    known = ["", "(overflow)"]
    for batch in ([f"before-{number}" for number in range(before)], *batches):
        numbers = names.numbers(batch).tolist()
        known.extend(text for text in dict.fromkeys(batch) if text not in known)
        assert [known[number] for number in numbers] == batch
    assert names.texts == known
