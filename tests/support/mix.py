"""The acceptance mix: a long, nasty, seeded stream of events, good and bad in every way.

    mix = make(100_000, seed=1, now_us=time.time_ns() // 1000)
    for framing, bodies in groups(mix.bodies, ("raw", "amqp", "gzip", "pika"), seed=1):
        ...publish...

Every body has a label with its kind and, if it is bad, with the reason for which it must be rejected. The
oracle knows the sums of the stream, from the offsets and broker times that the stream really gave.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeVar

from pipeline.core.dimensions import Dimension

HOUR_US = 3_600_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Fields = dict[str, str]
"""JSON text by camelCase name. It is text because the spelling of a number matters."""

SNAKE = {
    "eventId": "event_id",
    "orgId": "org_id",
    "modelId": "model_id",
    "actorId": "actor_id",
    "clientId": "client_id",
    "occurredAt": "occurred_at",
    "latencyMs": "latency_ms",
    "errorCode": "error_code",
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cacheReadTokens": "cache_read_tokens",
    "cacheWriteTokens": "cache_write_tokens",
    "cacheWrite1hTokens": "cache_write_1h_tokens",
    "reasoningTokens": "reasoning_tokens",
    "serviceTier": "service_tier",
    "modelName": "model_name",
}
VARIANTS = ("camel", "snake", "snake_cost_estimate", "cloudevent", "cloudevent_snake")


def encode(fields: Fields, variant: str) -> bytes:
    """Encode one body in a variant. Every variant of the same fields is the same event."""
    if "snake" in variant:
        cost = "cost_estimate" if variant == "snake_cost_estimate" else "cost_estimate_cents"
        fields = {cost if k == "costEstimateCents" else SNAKE.get(k, k): v for k, v in fields.items()}
    text = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    if variant.startswith("cloudevent"):
        text = '{"specversion":"1.0","id":"1","source":"/m","type":"analytics.usage.v1","data":' + text + "}"
    return text.encode("utf-8", "surrogatepass")


# --- bad events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadKind:
    """A kind of bad event. ``spoil`` makes the body from good fields, a variant and a source of luck."""

    name: str
    reason: str
    spoil: Callable[[Fields, str, random.Random], bytes]
    fields: tuple[str, ...] = ()


def _bytes_kind(name: str, change: Callable[[bytes], bytes]) -> BadKind:
    return BadKind(name, "malformed", lambda fields, variant, _: change(encode(fields, variant)))


def _field_kind(name: str, value: str | None) -> BadKind:
    """A kind in which a field holds ``value`` (JSON text). None: the field is missing."""

    def spoil(fields: Fields, variant: str, _: random.Random) -> bytes:
        changed = {**fields, name: value or ""}
        if value is None:
            del changed[name]
            if name == "eventId":  # in snake_case the other fields would be missing as well
                variant = "camel"
        return encode(changed, variant)

    shown = "missing" if value is None else value if len(value) < 40 else value[:39] + "…"
    return BadKind(f"{name}={shown}", "invalid", spoil, (name,))


def _fields_kind(name: str, changed: Fields, *fields: str) -> BadKind:
    """A kind in which several fields have other values (JSON text), and ``fields`` are faulty."""
    return BadKind(name, "invalid", lambda good, variant, _: encode({**good, **changed}, variant), fields)


def _whole_kind(name: str, text: str, *fields: str) -> BadKind:
    """A kind in which the body is ``text``, with a good event in place of ``@``."""

    def spoil(good: Fields, variant: str, _: random.Random) -> bytes:
        inner = encode(good, "snake" if "snake" in variant else "camel")
        return text.encode().replace(b"@", inner)

    return BadKind(name, "invalid", spoil, fields)


def _cut_in_string(fields: Fields, variant: str, luck: random.Random) -> bytes:
    body = encode(fields, variant)
    start = body.index(b'"', luck.randrange(len(body) // 2)) + 1
    return body[: start + 3]


def _cut_anywhere(fields: Fields, variant: str, luck: random.Random) -> bytes:
    body = encode(fields, variant)
    return body[: luck.randrange(1, len(body))]


def _instead(new: bytes) -> Callable[[bytes], bytes]:
    return lambda _: new


def _last(new: bytes) -> Callable[[bytes], bytes]:
    return lambda body: body[:-1] + new


MALFORMED: tuple[BadKind, ...] = (
    BadKind("cut in a string", "malformed", _cut_in_string),
    BadKind("cut anywhere", "malformed", _cut_anywhere),
    *(_bytes_kind(text.decode("latin-1"), _instead(text)) for text in (
        b" ", b"null", b"true", b"17", b'"text"', b"[]", b"[{}]", b"{", b"}", b"hello", b"<event/>",
        b"\0", b"\xff",
    )),
    _bytes_kind("array", lambda body: b"[" + body + b"]"),
    _bytes_kind("two values", lambda body: body + b" " + body),
    _bytes_kind("trailing garbage", lambda body: body + b"x"),
    _bytes_kind("trailing NUL", lambda body: body + b"\0"),
    _bytes_kind("trailing comma", _last(b",}")),
    _bytes_kind("comment", _last(b"/* c */}")),
    _bytes_kind("single quotes", lambda body: body.replace(b'"', b"'")),
    _bytes_kind("bare name", _last(b",x:1}")),
    *(_bytes_kind(word.decode(), _last(b',"x":' + word + b"}")) for word in (
        b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b"1.", b".5", b"0x10", b"1e", b"True", b"undefined",
        b"--1",
    )),
    _bytes_kind("bad escape", _last(b',"x":"\\x41"}')),
    _bytes_kind("short unicode escape", _last(b',"x":"\\u12"}')),
    _bytes_kind("raw newline in a string", _last(b',"x":"a\nb"}')),
    _bytes_kind("not UTF-8", _last(b',"x":"\xff"}')),
    _bytes_kind("UTF-8 cut", _last(b',"x":"\xe2\x82"}')),
    _bytes_kind("overlong UTF-8", _last(b',"x":"\xc0\xaf"}')),
    _bytes_kind("surrogate in UTF-8", _last(b',"x":"\xed\xa0\x80"}')),
    _bytes_kind("byte order mark", lambda body: b"\xef\xbb\xbf" + body),
    _bytes_kind("UTF-16", lambda body: body.decode().encode("utf-16")),
    _bytes_kind("one byte over 64 KiB", lambda body: body + b" " * (65_537 - len(body))),
)  # fmt: skip

_UUID = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
_BAD_UUIDS = (
    None, '""', '"x"', "null", "7", "true", "[]", "{}", f'"{_UUID[:-1]}"', f'"{_UUID}0"', f'"{_UUID} "',
    f'"{{{_UUID}}}"', f'"{_UUID.replace("-", "")}"', f'"urn:uuid:{_UUID}"', f'"{_UUID.replace("a", "g")}"',
    '"0a1b2c3d4-e5f-4a6b-8c7d-9e0f1a2b3c4d"', f'"{_UUID[:35]}\\u0000"', f'"{_UUID[:35]}\u0661"',
)  # fmt: skip
_BAD_COUNTS = (
    None,
    "null",
    "-1",
    "-1.0",
    "0.5",
    "812.4",
    "1e-1",
    "1e30",
    "1e999999999999",
    '"12"',
    '"12.0"',
    "true",
    "[]",
    "{}",
    "9" * 30,
)
_BAD_TIMES = (
    None, "null", '""', "1795435200", "true", "[]", '"now"', '"2026-11-23"',
    '"2026-11-23T12:00:00"', '"2026-11-23T12:00Z"', '"2026-11-23T12:00:00.Z"',
    '"2026-11-23T12:00:00,5Z"', '"2026-11-23T12:00:00+0100"',
    '"2026-11-23T12:00:00+24:00"', '"2026-11-23T12:00:00+01:60"', '"2026-11-23T12:00:60Z"',
    '"2026-11-23T12:60:00Z"', '"2026-11-23T24:00:00Z"', '"2026-02-30T12:00:00Z"', '"2025-02-29T12:00:00Z"',
    '"2026-13-01T12:00:00Z"', '"2026-00-01T12:00:00Z"', '"2026-11-00T12:00:00Z"', '"0000-01-01T00:00:00Z"',
    '"1969-12-31T23:59:59.999999Z"', '"1970-01-01T00:30:00+01:00"', '"9999-12-31T23:59:59-01:00"',
    '"2026-11-23T12:00:00Z "', '"2026-11-23T12:00:00.' + "1" * 44 + 'Z"', '"20\u0662\u0666-11-23T12:00:00Z"',
)  # fmt: skip
_BAD_COSTS = (
    "-1", '"-1"', "-0.0000001", "-1e-400", "100000001", "100000000.0000001", "1e9", "1e400",
    '"1e400"', '""', '" 1"', '"1 "', '"+1"', '"1."', '".5"', '"01"', '"1e"', '"NaN"', '"Infinity"',
    '"1_0"', '"1,5"', '"\u0661"',
    "true", "[]", "{}", "0." + "1" * 63, '"0.' + "1" * 63 + '"',
)  # fmt: skip

_KINDS = ("cacheReadTokens", "cacheWriteTokens", "cacheWrite1hTokens", "reasoningTokens")
_RESERVED = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_VERSION = '{"specversion":?,"type":"analytics.usage.v1","data":@}'

INVALID: tuple[BadKind, ...] = (
    *(_field_kind(name, value) for name in ("eventId", "orgId", "modelId") for value in _BAD_UUIDS),
    *(_field_kind("modelId", f'"{value}"') for value in (_RESERVED, _RESERVED.upper())),
    *(_field_kind("actorId", value) for value in _BAD_UUIDS if value not in (None, "null")),
    *(_field_kind(name, v) for name in ("latencyMs", "inputTokens", "outputTokens") for v in _BAD_COUNTS),
    *(_field_kind(name, v) for name in _KINDS for v in _BAD_COUNTS if v not in (None, "null")),
    _field_kind("cacheReadTokens", "1000000000001"),
    _fields_kind(
        "more cached than input",
        {"inputTokens": "9", "cacheReadTokens": "4", "cacheWriteTokens": "3", "cacheWrite1hTokens": "3"},
        "inputTokens",
    ),
    _fields_kind("more reasoning", {"outputTokens": "9", "reasoningTokens": "1e1"}, "outputTokens"),
    *(_field_kind("serviceTier", v) for v in ('""', '"Batch"', '"economy"', '"batch "', "1", "true", "[]")),
    *(_field_kind("provider", v) for v in ('"' + "x" * 65 + '"', "5", "[]", '"a\\u0000"', '"\\ud800"')),
    *(_field_kind("modelName", v) for v in ('"' + "x" * 129 + '"', "4.1", "{}", '"\\u0000"', '"é\\udc00"')),
    _field_kind("latencyMs", "2147483648"),
    _field_kind("inputTokens", "1000000000001"),
    _field_kind("outputTokens", "1000000000001"),
    *(_field_kind("occurredAt", value) for value in _BAD_TIMES),
    *(_field_kind("costEstimateCents", value) for value in _BAD_COSTS),
    *(_field_kind("status", v) for v in (None, "null", '""', '"Success"', '"ok"', '"error "', "0", "[]")),
    *(_field_kind("clientId", v) for v in ('"' + "x" * 129 + '"', "5", "true", "[]", "{}")),
    *(_field_kind("clientId", v) for v in ('"a\\u0000b"', '"\\ud800"', '"x\\udfff"', '"' + "😀" * 129 + '"')),
    *(_field_kind("errorCode", v) for v in ('"' + "x" * 65 + '"', "500", "[]", '"\\u0000"', '"\\udc00"')),
    *(_field_kind("metadata", v) for v in ("[]", '"x"', "1", "true", '{"a":1}', '{"a":null}', '{"a":{}}')),
    _whole_kind("empty object", "{}", "eventId"),
    _whole_kind("unknown object", '{"hello":"world"}', "eventId"),
    _whole_kind("specversion 0.3", _VERSION.replace("?", '"0.3"'), "specversion"),
    _whole_kind("specversion as number", _VERSION.replace("?", '1.0'), "specversion"),
    _whole_kind("specversion null", _VERSION.replace("?", 'null'), "specversion"),
    _whole_kind("other type", '{"specversion":"1.0","type":"analytics.usage.v2","data":@}', "type"),
    _whole_kind("no type", '{"specversion":"1.0","data":@}', "type"),
    _whole_kind("no data", '{"specversion":"1.0","type":"analytics.usage.v1"}', "data"),
    _whole_kind("data null", '{"specversion":"1.0","type":"analytics.usage.v1","data":null}', "data"),
    _whole_kind("data array", '{"specversion":"1.0","type":"analytics.usage.v1","data":[@]}', "data"),
    _whole_kind("data text", '{"specversion":"1.0","type":"analytics.usage.v1","data":"{}"}', "data"),
    _whole_kind("data empty", '{"specversion":"1.0","type":"analytics.usage.v1","data":{}}', "eventId"),
    _whole_kind(
        "envelope in an envelope",
        '{"specversion":"1.0","type":"analytics.usage.v1","data":'
        '{"specversion":"1.0","type":"analytics.usage.v1","data":@}}',
        "data",
    ),
)  # fmt: skip


def _untimely(now_us: int, window_us: int) -> tuple[BadKind, ...]:
    """Kinds with a time that is too late or in the future, even if the mix is published an hour later."""

    def at(us: int) -> Callable[[Fields, str, random.Random], bytes]:
        return lambda fields, variant, luck: encode({**fields, "occurredAt": _time(us, luck)}, variant)

    return (
        BadKind("a day ahead", "future", at(now_us + 24 * HOUR_US)),
        BadKind(
            "year 9999", "future", lambda f, v, _: encode({**f, "occurredAt": '"9999-12-31T23:59:59Z"'}, v)
        ),
        BadKind("just beyond the window", "too_late", at(now_us - window_us - 60_000_000)),
        BadKind("years ago", "too_late", at(now_us - window_us - 20_000 * HOUR_US)),
        BadKind("1970", "too_late", lambda f, v, _: encode({**f, "occurredAt": '"1970-01-01T00:00:00Z"'}, v)),
    )


# --- good events --------------------------------------------------------------------------------


def _uuid(luck: random.Random) -> str:
    h = f"{luck.getrandbits(128):032x}"
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:]}"


def _time(at_us: int, luck: random.Random) -> str:
    """A time in one of its many spellings, as JSON text."""
    zone_minutes = luck.choice((0, 0, 0, 0, 60, -300, 330, 765, -1439, 1439))
    at = (EPOCH + timedelta(microseconds=at_us)).astimezone(timezone(timedelta(minutes=zone_minutes)))
    fraction = luck.choice(("us", "us", "us", "ns", "long", "cut"))
    digits = f"{at.microsecond:06d}"
    if fraction == "ns":
        digits += "999"
    elif fraction == "long":
        digits += "9" * luck.randint(1, 32)
    elif fraction == "cut":
        digits = digits.rstrip("0")
    sign, minutes = ("-", -zone_minutes) if zone_minutes < 0 else ("+", zone_minutes)
    zone = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    if zone_minutes == 0:
        zone = luck.choice(("Z", "Z", "Z", "z", "+00:00", "-00:00"))
    between = luck.choice(("T", "T", "T", "t", " "))
    return f'"{at:%Y-%m-%d}{between}{at:%H:%M:%S}{"." + digits if digits else ""}{zone}"'


_COSTS = (
    "0", "-0", "0.0", "1", "12", "0.5", "0.000001", "0.0000005", "0.0000015", "0.0000025", "1e-7", "5e-7",
    "25E-7", "1.5e-3", "1E2", "3e+1", "0.12345649999999999999999999999999", "99999999.9999995",
    "1e8", "0.1", "0.2", "0.3",
)  # fmt: skip


def _cost(luck: random.Random) -> str:
    if luck.random() < 0.1:
        text = luck.choice(_COSTS)
    else:
        text = f"{luck.lognormvariate(-2, 2):.{luck.choice((2, 6, 6, 8, 15))}f}"
    return f'"{text}"' if luck.random() < 0.4 else text


_INTEGERS: dict[int, Callable[[int], str]] = {
    0: lambda n: f"{n}.0",
    1: lambda n: f"{n}E0",
    2: lambda n: f"{n}000e-3",
    3: lambda n: f"{n / 100:.2f}e2",
}
"""Other spellings of an integer, by its remainder when divided by 97."""


def _count(luck: random.Random, middle: float, most: int) -> int:
    if luck.random() < 0.01:
        return luck.choice((0, 1, most))
    return min(most, int(luck.lognormvariate(middle, 1.2)))


def _spelled(count: int) -> str:
    return _INTEGERS[count % 97](count) if count % 97 in _INTEGERS and count < 10**12 else str(count)


def _parts(luck: random.Random, whole: int, *names: str) -> Fields:
    """Kinds of tokens that are parts of a count: all of them together are at most the whole."""
    parts = {}
    for name in luck.sample(names, luck.randint(0, len(names))):
        count = luck.choice((0, whole, luck.randint(0, whole)))
        whole -= count
        parts[name] = luck.choice((_spelled(count), _spelled(count), "null" if count == 0 else str(count)))
    return parts


_CLIENTS = (
    "other",
    "",
    "clé ünïcode",
    "😀" * 128,
    "=cmd|' /C calc'!A0",
    "a\\tb",
    "x" * 128,
    "\\u00e9",
    "null",
    "0",
)
_CODES = (
    "null",
    '""',
    '"other"',
    '"rate_limit"',
    '"500"',
    '"' + "e" * 64 + '"',
    '"\\u65e5\\u672c"',
    '"context_length"',
)
_TIERS = ('"standard"', '"batch"', '"flex"', '"priority"', '"fast"', "null")
_PROVIDERS = ('"openai"', '"anthropic"', '"azure"', "null", '""', '"' + "é" * 64 + '"', '"a\\"b"')
_MODEL_NAMES = (
    '"gpt-4o-2024-08-06"', '"claude-sonnet-4-5"', '"gpt-4o"', "null", '"' + "m" * 128 + '"', '"\\u00e9"',
    '"模型"',
)  # fmt: skip
DIMENSIONS = (
    Dimension("user", "actorId"),
    Dimension("team", "metadata.team"),
    Dimension("feature", "metadata.fé-ture"),
)
"""Dimensions whose values the good events of a mix carry."""
DIMENSIONS_SETTING = ",".join(f"{one.name}={one.source}" for one in DIMENSIONS)
_METADATA = (
    "null", "{}", '{"region":"eu"}', '{"a":"","b":"\\u0000"}', '{ "team" : "" }', '{"team":"other"}',
    '{"team":"search","fé-ture":"answers"}', '{"fé-ture":"answers","x":"1","team":"search"}',
    '{"team":"ads","team":"search"}', '{"team":"search","te\\u0061m":"ads"}', '{"\\u0074eam":"search"}',
    '{"team":"s\\u0065arch"}', '{"team":"' + "t" * 128 + '"}', '{"team":"' + "t" * 129 + '"}',
    '{"team":"' + "é" * 128 + '"}', '{"team":"' + "😀" * 129 + '","fé-ture":"' + "x" * 3000 + '"}',
    '{"team":"a\\u0000"}', '{"team":"\\ud800"}', '{"team":"a\\nb"}',
    '{"team":"t","team":"' + "t" * 200 + '"}',
    '{"teams":"x","tea":"y","":"z","fe-ture":"v"}', '{"fé-ture":"日本"}',
)  # fmt: skip
_BOUNDARIES = (127_999, 128_000, 128_001, 199_999, 200_000, 200_001, 272_000, 272_001)
_EXTRAS = (
    '"unknown":{"deep":[1,2,{"x":null}]}', '"x":1e400', '"x":"\\ud83d\\ude00"', '"x":"\\ud800"', '"":0',
    '"x":' + "9" * 400, '"specversion":"9"', '"type":"?"', '"data":[]', '"costEstimate":"bad"',
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """A mix: its ``bodies`` in order, with the kind and the reason of each.

    ``reasons`` has the reason for which a body must be rejected, or '' for a good body. A kind is ``good``,
    ``late``, ``duplicate`` (the same bytes), ``respelled`` (the same event in another variant), ``reused``
    (id and org of another event, with another payload), ``other_org`` (the id of another org's event, which
    counts) or the name of a `BadKind`. ``orgs`` and ``models`` are the ids that occur.
    """

    bodies: list[bytes] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    orgs: list[str]
    models: list[str]


class _Maker:
    def __init__(self, seed: int, now_us: int, span_us: int, orgs: int, models: int, clients: int) -> None:
        self.luck = random.Random(seed)
        self.now_us = now_us
        self.span_us = span_us
        self.orgs = [_uuid(self.luck) for _ in range(orgs)]
        self.models = [_uuid(self.luck) for _ in range(models)]
        self.actors = [_uuid(self.luck) for _ in range(5)]
        self.clients = [*_CLIENTS, *(f"key-{i}" for i in range(clients))]

    def fields(self, progress: float) -> Fields:
        """A good event at ``progress`` (0..1) of the span that ends now, give or take a second."""
        luck = self.luck
        at_us = self.now_us - round((1 - progress) * self.span_us) - luck.randrange(1_000_000)
        status = luck.choices(("success", "error", "timeout", "throttled"), (90, 4, 3, 3))[0]
        org = self.orgs[min(int(luck.paretovariate(1.0)), len(self.orgs)) - 1]
        input_tokens, output_tokens = _count(luck, 7, 10**12), _count(luck, 5, 10**12)
        if luck.random() < 0.05:
            input_tokens = luck.choice(_BOUNDARIES)
        fields = {
            "eventId": f'"{_uuid(luck)}"',
            "orgId": f'"{luck.choice((org, org, org.upper()))}"',
            "modelId": f'"{luck.choice(self.models)}"',
            "occurredAt": _time(at_us, luck),
            "latencyMs": _spelled(_count(luck, 6, 2**31 - 1)),
            "status": f'"{status}"',
            "inputTokens": _spelled(input_tokens),
            "outputTokens": _spelled(output_tokens),
            "costEstimateCents": _cost(luck),
        }
        if luck.random() < 0.3:
            fields |= _parts(luck, input_tokens, *_KINDS[:3]) | _parts(luck, output_tokens, _KINDS[3])
        if luck.random() < 0.3:
            fields |= {"serviceTier": luck.choice(_TIERS)}
        if luck.random() < 0.3:
            fields |= {"provider": luck.choice(_PROVIDERS), "modelName": luck.choice(_MODEL_NAMES)}
        if luck.random() < 0.1:
            fields["costEstimateCents"] = "null"
        elif luck.random() < 0.05:
            del fields["costEstimateCents"]
        if luck.random() < 0.6:
            fields["clientId"] = luck.choice(
                ("null", *(f'"{each}"' for each in luck.choices(self.clients, k=4)))
            )
        if luck.random() < 0.5:
            actor = luck.choice((*self.actors, _uuid(luck)))
            fields["actorId"] = luck.choice(("null", f'"{actor}"', f'"{actor.upper()}"'))
        if status != "success" or luck.random() < 0.05:
            fields["errorCode"] = luck.choice(_CODES)
        if luck.random() < 0.3:
            fields["metadata"] = luck.choice(_METADATA)
        elif luck.random() < 0.5:
            fields["metadata"] = f'{{"team":"team-{luck.randrange(9)}","fé-ture":"f{luck.randrange(99)}"}}'
        return fields

    def encode(self, fields: Fields) -> bytes:
        body = encode(fields, self.luck.choices(VARIANTS, (60, 15, 5, 15, 5))[0])
        roll = self.luck.random()
        if roll < 0.02:
            end = b"}}" if body.startswith(b'{"specversion"') else b"}"
            body = body.removesuffix(end) + b"," + self.luck.choice(_EXTRAS).encode() + end
        elif roll < 0.03:
            body = b" \r\n\t" + body + b"\n"
        elif roll < 0.04:
            body = json.dumps(json.loads(body, parse_float=_keep, parse_int=_keep), indent=1).encode()
            body = body.replace(b'"\\u0001', b"").replace(b'\\u0001"', b"")
        elif roll < 0.05:
            body = body.replace(b"{", b'{"latencyMs":"overruled","latency_ms":[],', 1)
        elif roll < 0.0502:
            body += b" " * (65_536 - len(body))
        return body


def _keep(number: str) -> str:
    return f"\x01{number}\x01"


def make(
    n: int,
    *,
    seed: int,
    now_us: int,
    window_us: int = 24 * HOUR_US,
    span_us: int = 3 * HOUR_US,
    orgs: int = 25,
    models: int = 6,
    clients: int = 30,
    duplicates: float = 0.05,
    late: float = 0.02,
    bad: float = 0.01,
) -> Mix:
    """Make a mix of ``n`` bodies: 5 % duplicates of some sort, 2 % late events, and 1 % bad events.

    The bad events go through all kinds in turn.
    Good events occur in order over ``span_us`` up to ``now_us``. A late event may occur earlier, by at most
    the dedupe window less two hours. With 35,000 bodies or more the mix has every kind of bad event.
    """
    maker = _Maker(seed, now_us, span_us, orgs, models, clients)
    luck = maker.luck
    mix = Mix(orgs=maker.orgs, models=maker.models)
    bad_kinds = [*MALFORMED, *INVALID, *_untimely(now_us, window_us)]
    luck.shuffle(bad_kinds)
    good: list[Fields] = []
    sent: list[bytes] = []
    n_bad = 0
    for i in range(n):
        fields = maker.fields(i / n)
        roll = luck.random()
        reason = ""
        if roll < bad:
            spoiled = bad_kinds[n_bad % len(bad_kinds)]
            n_bad += 1
            kind, reason = spoiled.name, spoiled.reason
            body = spoiled.spoil({"metadata": "{}", **fields}, luck.choice(VARIANTS), luck)
        elif roll < bad + duplicates and good:
            earlier = (
                luck.randrange(len(good)) if luck.random() < 0.3 else -luck.randint(1, min(50, len(good)))
            )
            kind = luck.choices(("duplicate", "respelled", "reused"), (70, 15, 15))[0]
            if kind == "duplicate":
                body = sent[earlier]
            elif kind == "respelled":
                event_id = good[earlier]["eventId"]
                again = {**good[earlier], "eventId": luck.choice((event_id, event_id.upper()))}
                body = maker.encode(dict(luck.sample(list(again.items()), len(again))))
            else:
                reason = "conflict"
                body = maker.encode(
                    {**fields, "eventId": good[earlier]["eventId"], "orgId": good[earlier]["orgId"]}
                )
        else:
            kind = "good"
            if roll > 1 - late:
                kind = "late"
                at_us = now_us - luck.randrange(2 * HOUR_US, window_us - 2 * HOUR_US)
                fields["occurredAt"] = _time(at_us, luck)
            elif luck.random() < 0.005 and good:
                first = good[-luck.randint(1, min(500, len(good)))]
                if first["orgId"].lower() != fields["orgId"].lower():
                    kind, fields["eventId"] = "other_org", first["eventId"]
            body = maker.encode(fields)
            if kind != "other_org":
                good.append(fields)
                sent.append(body)
        mix.bodies.append(body)
        mix.kinds.append(kind)
        mix.reasons.append(reason)
    return mix


Framing = TypeVar("Framing", bound=str)


def groups(
    bodies: Sequence[bytes], framings: Sequence[Framing], *, seed: int, most: int = 400
) -> Iterator[tuple[Framing, list[bytes]]]:
    """Cut bodies into consecutive groups of 1 to ``most``. Each group has the framing for its publication."""
    luck = random.Random(seed)
    at = 0
    while at < len(bodies):
        n = min(luck.choice((1, 2, 10, 100, most)), most)
        yield luck.choice(framings), list(bodies[at : at + n])
        at += n
