"""The wire contract v1: reads one usage event in any of its three variants, and names every fault.

This module is the one full statement of the contract. It reads a single body, slowly. `pipeline.core.events`
reads the common case fast and asks this module about all other bodies. The API's ``POST /events/validate``
asks this module alone. Nothing here needs a clock or a memory: the ledger decides about ``future``,
``too_late`` and duplicates.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Final
from uuid import UUID

BODY_BYTES_MAX: Final = 64 * 1024
CLIENT_ID_CHARS_MAX: Final = 128
ERROR_CODE_CHARS_MAX: Final = 64
OVERFLOW_CLIENT: Final = (
    "other clients: the events of all clients of this hour beyond the first CLIENTS_PER_ORG_HOUR_MAX,"
    " which are counted under their own names"
)
"""The name under which clients over the cap of an org's hour are counted. No client can have this name,
because it is longer than `CLIENT_ID_CHARS_MAX`. Version 0.1.0 wrote ``other``, which a client can have as its
name."""
OVERFLOW_ERROR_CODE: Final = (
    "other error codes: all of this hour beyond the first 100, which are counted by name"
)
"""The same for error codes. The name is longer than `ERROR_CODE_CHARS_MAX`."""
OVERFLOW_MODEL: Final = UUID(int=2**128 - 1)
"""The same for models over MODELS_PER_ORG_HOUR_MAX. It is the Max UUID of RFC 9562, which identifies nothing.
An event that names this model is rejected."""
VALUE_CHARS_MAX: Final = 128
OVERFLOW_VALUE: Final = (
    "other values: the events of all values of this hour beyond the first VALUES_PER_ORG_HOUR_MAX, which are"
    " counted under their own names, and of values that are too long to be kept"
)
"""The same for the values of dimensions. The name is longer than `VALUE_CHARS_MAX`."""
PROVIDER_CHARS_MAX: Final = 64
MODEL_NAME_CHARS_MAX: Final = 128
LATENCY_MS_MAX: Final = 2**31 - 1
TOKENS_MAX: Final = 10**12
COST_MICROCENTS_MAX: Final = 10**8 * 10**6
NUMBER_CHARS_MAX: Final = 64
DEPTH_MAX: Final = 200
"""How deep a body may nest. Python has a bound of its own, but it differs by version and by caller."""
EVENT_TYPE: Final = "analytics.usage.v1"

STATUSES: Final = ("success", "error", "timeout", "throttled")
"""A status is kept as its place in this tuple. All statuses but the first count as errors."""


SERVICE_TIERS: Final = ("standard", "batch", "flex", "priority", "fast")
"""A service tier is kept as its place in this tuple. It is the tier that was charged."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule: the field as the sender spelled it ('' for the whole body), and the message."""

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One valid usage event in canonical form. An absent client or error code is ''."""

    event_id: UUID
    org_id: UUID
    model_id: UUID
    client_id: str
    occurred_us: int
    latency_ms: int
    status: int
    error_code: str
    input_tokens: int
    output_tokens: int
    cost_microcents: int | None
    """The producer's estimate. None: there is no estimate, which does not mean that the call was free."""
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    """Parts of ``input_tokens``. Together they are at most ``input_tokens``."""
    reasoning_tokens: int = 0
    """A part of ``output_tokens``."""
    service_tier: int = 0
    """A place in `SERVICE_TIERS`."""
    provider: str = ""
    model_name: str = ""
    """Labels of the model. '' if absent. They do not belong to the payload: a copy may lack them."""
    actor_id: str = ""
    """'' if absent. The actor and the metadata do not belong to the payload, either."""
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def payload(self) -> Event:
        """The event without labels, actor and metadata: of two copies, this must be the same."""
        return replace(self, provider="", model_name="", actor_id="", metadata={})

    @property
    def old_payload(self) -> Event:
        """What versions up to 0.2.0 saw of the event: no kinds of tokens, and no service tier."""
        old = replace(self.payload, cache_read_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0)
        return replace(old, reasoning_tokens=0, service_tier=0)

    def is_copy_of(self, counted: Event) -> bool:
        """Has this event the payload that was counted, perhaps by an earlier version?"""
        return counted.payload in (self.payload, self.old_payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """The reason why a body is no event, and its faults.

    The reason is ``malformed`` (not a JSON object, or too large) or ``invalid`` (a broken rule).
    """

    reason: str
    faults: tuple[Fault, ...]


class _Number(str):
    """The text of a JSON number, kept as text so that no digit is lost."""


class _NotJson(ValueError):
    pass


def _no_constant(word: str) -> Any:
    raise _NotJson(f"{word} is not JSON")


_decode: Final = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_no_constant).decode
"""Decodes a text of JSON. Made once, because ``json.loads`` makes a decoder at each call."""


def check(body: bytes) -> list[Fault]:
    """List every fault of a body. An empty list means that the event is valid."""
    verdict = read(body)
    return list(verdict.faults) if isinstance(verdict, Invalid) else []


def read(body: bytes) -> Event | Invalid:
    """Read one body in any of the three variants, and find every fault. Never raises."""
    if len(body) > BODY_BYTES_MAX:
        return _malformed(f"larger than {BODY_BYTES_MAX} bytes")
    if _is_too_deep(body):
        return _malformed(f"nested more than {DEPTH_MAX} deep")
    try:
        value = _decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _malformed(f"not UTF-8 at byte {error.start}")
    except ValueError as error:
        marked = body.startswith(codecs.BOM_UTF8)
        return _malformed(f"not JSON: {'begins with a byte order mark' if marked else error}")
    if not isinstance(value, dict):
        return _malformed("not a JSON object")
    return _read_object(value)


def _malformed(message: str) -> Invalid:
    return Invalid(reason="malformed", faults=(Fault("", message),))


_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEPS: Final = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def _is_too_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= DEPTH_MAX:
        return False
    depths = accumulate(_STEPS.get(byte, 0) for byte in _STRING.sub(b"", body))
    return max(depths, default=0) > DEPTH_MAX


CAMEL_NAMES: Final = {
    name: name
    for name in (
        "eventId",
        "orgId",
        "modelId",
        "actorId",
        "clientId",
        "occurredAt",
        "latencyMs",
        "status",
        "errorCode",
        "inputTokens",
        "outputTokens",
        "costEstimateCents",
        "cacheReadTokens",
        "cacheWriteTokens",
        "cacheWrite1hTokens",
        "reasoningTokens",
        "serviceTier",
        "provider",
        "modelName",
        "metadata",
    )
}
SNAKE_NAMES: Final = {name: re.sub("[A-Z]|1h", lambda m: "_" + m[0].lower(), name) for name in CAMEL_NAMES}
TOKEN_KINDS: Final = ("cacheReadTokens", "cacheWriteTokens", "cacheWrite1hTokens", "reasoningTokens")
"""The first three are parts of inputTokens, the last is a part of outputTokens."""
SHORT_COST_NAMES: Final = {**SNAKE_NAMES, "costEstimateCents": "cost_estimate"}


def _read_object(value: dict[str, Any]) -> Event | Invalid:
    if "eventId" in value or ("event_id" not in value and "specversion" not in value):
        return _read_fields(value, CAMEL_NAMES)
    if "event_id" in value:
        if "cost_estimate_cents" not in value and "cost_estimate" in value:
            return _read_fields(value, SHORT_COST_NAMES)
        return _read_fields(value, SNAKE_NAMES)
    faults = []
    if value["specversion"] != "1.0" or isinstance(value["specversion"], _Number):
        faults.append(Fault("specversion", "expected CloudEvents 1.0"))
    if value.get("type") != EVENT_TYPE or isinstance(value.get("type"), _Number):
        faults.append(Fault("type", f"expected {EVENT_TYPE}"))
    data = value.get("data")
    if not isinstance(data, dict):
        faults.append(Fault("data", "expected the event as an object"))
    elif "eventId" not in data and "event_id" not in data and "specversion" in data:
        faults.append(Fault("data", "expected an event, not another envelope"))
    else:
        inner = _read_object(data)
        if isinstance(inner, Event) and not faults:
            return inner
        if isinstance(inner, Invalid):
            faults.extend(Fault(f"data.{fault.field}", fault.message) for fault in inner.faults)
    return Invalid(reason="invalid", faults=tuple(faults))


def _read_fields(value: Mapping[str, Any], names: Mapping[str, str]) -> Event | Invalid:
    faults: list[Fault] = []

    def parsed(name: str, parse: Any, *, required: bool = True, default: Any = None) -> Any:
        spelled = names[name]
        given = value.get(spelled)
        if given is None and not required:
            return default
        if spelled not in value:
            faults.append(Fault(spelled, "is missing"))
            return default
        try:
            return parse(given)
        except ValueError as error:
            faults.append(Fault(spelled, str(error)))
            return default

    event_id = parsed("eventId", _uuid)
    org_id = parsed("orgId", _uuid)
    model_id = parsed("modelId", _model)
    actor_id = parsed("actorId", _uuid, required=False)
    client_id = parsed("clientId", lambda v: _text(v, CLIENT_ID_CHARS_MAX), required=False, default="")
    occurred_us = parsed("occurredAt", _time_us)
    latency_ms = parsed("latencyMs", lambda v: _integer(v, LATENCY_MS_MAX))
    status = parsed("status", _status)
    error_code = parsed("errorCode", lambda v: _text(v, ERROR_CODE_CHARS_MAX), required=False, default="")
    input_tokens = parsed("inputTokens", lambda v: _integer(v, TOKENS_MAX))
    output_tokens = parsed("outputTokens", lambda v: _integer(v, TOKENS_MAX))
    cost_microcents = parsed("costEstimateCents", _cost_microcents, required=False)
    cache_read, cache_write, cache_write_1h, reasoning = (
        parsed(name, lambda v: _integer(v, TOKENS_MAX), required=False, default=0) for name in TOKEN_KINDS
    )
    service_tier = parsed("serviceTier", _service_tier, required=False, default=0)
    provider = parsed("provider", lambda v: _text(v, PROVIDER_CHARS_MAX), required=False, default="")
    model_name = parsed("modelName", lambda v: _text(v, MODEL_NAME_CHARS_MAX), required=False, default="")
    metadata = parsed("metadata", _metadata, required=False, default={})
    if input_tokens is not None and cache_read + cache_write + cache_write_1h > input_tokens:
        cached = ", ".join(names[name] for name in TOKEN_KINDS[:3])
        faults.append(Fault(names["inputTokens"], f"is less than its parts together ({cached})"))
    if output_tokens is not None and reasoning > output_tokens:
        faults.append(Fault(names["outputTokens"], f"is less than its part {names['reasoningTokens']}"))
    if faults:
        return Invalid(reason="invalid", faults=tuple(faults))
    return Event(
        event_id=event_id,
        org_id=org_id,
        model_id=model_id,
        client_id=client_id,
        occurred_us=occurred_us,
        latency_ms=latency_ms,
        status=status,
        error_code=error_code,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_microcents=cost_microcents,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        cache_write_1h_tokens=cache_write_1h,
        reasoning_tokens=reasoning,
        service_tier=service_tier,
        provider=provider,
        model_name=model_name,
        actor_id="" if actor_id is None else str(actor_id),
        metadata=metadata,
    )


# --- the rule of each field: returns the value, or raises ValueError with the expectation ---------

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, _Number)


def _uuid(value: Any) -> UUID:
    if not _is_text(value) or not _UUID.fullmatch(value):
        raise ValueError("expected a UUID such as 0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69")
    return UUID(value)


def _model(value: Any) -> UUID:
    model_id = _uuid(value)
    if model_id == OVERFLOW_MODEL:
        raise ValueError("is reserved: models beyond MODELS_PER_ORG_HOUR_MAX are counted under this id")
    return model_id


def _text(value: Any, chars_max: int) -> str:
    if not _is_text(value):
        raise ValueError("expected a string")
    if len(value) > chars_max:
        raise ValueError(f"longer than {chars_max} characters")
    if not is_storable(value):
        raise ValueError("holds a character that cannot be stored (U+0000 or half of a surrogate pair)")
    return str(value)


def is_storable(text: str) -> bool:
    """Can the database hold the text? It cannot hold U+0000, nor half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


_NUMBER: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)0*([0-9]+))?")


def _integer(value: Any, maximum: int) -> int:
    """An integer in any spelling of a number: 812, 812.0 and 8.12e2 are the same integer.

    The digits decide, and no float is made. A power of ten is computed only when its size is known, because a
    sender may write 1e999999999.
    """
    match = _NUMBER.fullmatch(value) if isinstance(value, _Number) else None
    if not match:
        raise ValueError("expected an integer")
    sign, whole, fraction, exponent_sign, exponent = (part or "" for part in match.groups())
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return 0
    # A body is far shorter than an exponent of seven digits, so its digits cannot make up for the exponent.
    power = int(exponent_sign + (exponent if len(exponent) < 7 else "9999999")) if exponent else 0
    power += len(digits) - len(significant) - len(fraction)  # the value is significant * 10**power
    if power < 0:
        raise ValueError("expected an integer")
    if sign or len(significant) + power > 18 or int(significant) * 10**power > maximum:
        raise ValueError(f"must lie between 0 and {maximum}")
    return int(significant) * int(10**power)


def _status(value: Any) -> int:
    if not _is_text(value) or value not in STATUSES:
        raise ValueError(f"expected one of {', '.join(STATUSES)}")
    return STATUSES.index(value)


def _service_tier(value: Any) -> int:
    if not _is_text(value) or value not in SERVICE_TIERS:
        raise ValueError(f"expected one of {', '.join(SERVICE_TIERS)}")
    return SERVICE_TIERS.index(value)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(map(_is_text, value.values())):
        raise ValueError("expected an object whose values are strings")
    return value


NEGATIVE_COST: Final = (
    "must not be negative; a credit, refund or correction is an adjustment of the org"
    " (`spendstream adjustments add`, or POST /orgs/{orgId}/adjustments)"
)
_DECIMAL: Final = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")


def _cost_microcents(value: Any) -> int:
    """Microcents (10^-6 cents), rounded half-even from the exact decimal."""
    if not isinstance(value, str):
        raise ValueError("expected a number or a decimal string")
    match = _DECIMAL.fullmatch(value) if len(value) <= NUMBER_CHARS_MAX else None
    if not match:
        raise ValueError(f"expected a decimal of at most {NUMBER_CHARS_MAX} characters, such as 0.0425")
    sign, whole, fraction, exponent = match[1], match[2], match[3] or "", int(match[4] or 0)
    digits = int(whole + fraction)
    if digits == 0:
        return 0
    if sign:
        raise ValueError(NEGATIVE_COST)
    power = exponent - len(fraction) + 6  # the cost in microcents is digits * 10**power
    if power > 14 or (power >= 0 and digits * 10**power > COST_MICROCENTS_MAX):
        raise ValueError("must not be above 100000000")
    if power >= 0:
        scale: int = 10**power
        return digits * scale
    if -power > NUMBER_CHARS_MAX + 1:
        return 0
    unit = 10**-power
    if digits > COST_MICROCENTS_MAX * unit:
        raise ValueError("must not be above 100000000")
    quotient, rest = divmod(digits, unit)
    rounds_up = 2 * rest > unit or (2 * rest == unit and quotient % 2 == 1)
    return int(quotient + rounds_up)


_RFC3339: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date of the Gregorian calendar (after Howard Hinnant's algorithm)."""
    year -= month <= 2
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def days_in_month(year: int, month: int) -> int:
    """28 to 31; ``month`` from 1 to 12."""
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 29 if leap else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _time_us(value: Any) -> int:
    """UTC microseconds since 1970; digits beyond the microsecond are cut off."""
    match = _RFC3339.fullmatch(value) if _is_text(value) and len(value) <= NUMBER_CHARS_MAX else None
    if not match:
        raise ValueError("expected an RFC 3339 date-time with an offset, such as 2026-11-23T10:00:00.250Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    offset_hours, offset_minutes = int(match[9] or 0), int(match[10] or 0)
    if not (1 <= month <= 12 and 1 <= day <= days_in_month(year, month)):
        raise ValueError("no such date")
    if hour > 23 or minute > 59 or second > 59 or offset_hours > 23 or offset_minutes > 59:
        raise ValueError("no such time of day")
    offset_s = (offset_hours * 3600 + offset_minutes * 60) * (-1 if match[8] == "-" else 1)
    seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s
    if not 0 <= seconds < 253_402_300_800:
        raise ValueError("must lie between the years 1970 and 9999")
    return seconds * 1_000_000 + int((match[7] or "")[:6].ljust(6, "0"))
