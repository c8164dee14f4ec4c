"""A sender's values to an event of the contract, by the contract's own rules.

A dialect puts each value in a `Draft` under the contract's name, and says how the sender spells the field.
`offered` has `pipeline.core.wire` judge the result, and translates the faults: the sender reads
``prompt_tokens``, not ``inputTokens``. So there is one set of rules for all doors. Labels are cut to the
contract's bounds here; ids and numbers are not touched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from pipeline.collector import ids
from pipeline.collector.dialects import Offered, framing
from pipeline.core import wire
from pipeline.core.wire import Fault

ORG_CHARS_MAX: Final = 128
BACK_US: Final = 10_000_000
"""By so much a clock may be set back during a call."""
NO_ORG: Final = "is missing, and the caller's credential is for more than one org: name the org here"
ORG_RULE: Final = f"expected an org: a UUID, or a name of 1 to {ORG_CHARS_MAX} characters"
UNCLEAR: Final = "has U+0000, U+FFFD or half a surrogate pair, so no id can be made of it"
SERVICE_TIERS: Final = {
    **{tier: tier for tier in wire.SERVICE_TIERS},
    "default": "standard",
    "auto": "standard",
    "on_demand": "standard",
    "batches": "batch",
}
"""What providers call the tiers. A tier that is not here is charged as `standard`."""


class Number(str):
    """The text of a number, as the sender wrote it."""


class Other:
    """A value that is neither text nor number: true, false, an object, an array."""


Value = str | Number | Other | None
"""A leaf of the sender's data. None: it is absent or null."""
OTHER: Final = Other()
_TEXT: Final = msgspec.json.Decoder(str)
_ENCODER: Final = msgspec.json.Encoder()
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE]([+-]?[0-9]+))?")
_TOKENS: Final = re.compile(rf"\b(?:{'|'.join(wire.TOKEN_KINDS)})\b")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS_MAX: Final = 40
_EXACT: Final = Context(prec=2 * wire.NUMBER_CHARS_MAX, rounding=ROUND_HALF_EVEN)
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_UNCLEAR: Final = re.compile("[\0\ud800-\udfff\ufffd]")
"""What cannot be kept, and what stands for it. Two names that differ in such a character would have one
id."""


def value_of(json_text: bytes | msgspec.Raw) -> Value:
    """The leaf that a JSON text is. An absent one is b''."""
    text = bytes(json_text)
    first = text[:1]
    if first == b'"':
        return str(framing.decoded(text, _TEXT))
    if first in b"-0123456789" and first:
        return Number(text.decode("ascii"))
    return None if text in (b"", b"null") else OTHER


def number_of(text: str) -> Value:
    """The number that a text is, such as the 64-bit integers of OTLP's JSON."""
    return Number(text) if len(text) <= wire.NUMBER_CHARS_MAX and _NUMBER.fullmatch(text) else OTHER


def is_true(json_text: bytes | msgspec.Raw) -> bool:
    return bytes(json_text) == b"true"


def _decimal(value: Value) -> Decimal | None:
    """The number that a value is, exactly. None: it is none, or its text or its exponent is absurd."""
    match = (
        _NUMBER.fullmatch(value) if isinstance(value, str) and len(value) <= wire.NUMBER_CHARS_MAX else None
    )
    return Decimal(match[0]) if match and len(match[1] or "") <= 6 else None


def count_of(value: Value) -> int | None:
    """A count of tokens. None: it is absent, or no whole number, or far beyond what the contract allows."""
    if not isinstance(value, Number):
        return None
    if len(value) <= 18 and value.isdecimal():
        return int(value)
    number = _decimal(value)
    if number is None or number < 0 or number.adjusted() > 18 or number != number.to_integral_value():
        return None
    return int(number)


def whole(value: Value) -> int:
    """The same, with 0 for what is no count."""
    return count_of(value) or 0


def text_of(value: Value, chars_max: int) -> str | None:
    """A label: not blank, cut to its bound, and with U+FFFD for what cannot be stored. None: it is absent."""
    if not isinstance(value, str) or isinstance(value, Number) or not value.strip():
        return None
    return _UNSTORABLE.sub("\ufffd", value[:chars_max])


def first_text(*values: Value, chars_max: int) -> str | None:
    """The first of the labels that is there."""
    return next((text for value in values if (text := text_of(value, chars_max))), None)


def metadata_of(labels: Mapping[str, Value]) -> dict[str, str]:
    """Those of the labels that are there, each in at most `wire.VALUE_CHARS_MAX` characters."""
    texts = {name: text_of(value, wire.VALUE_CHARS_MAX) for name, value in labels.items()}
    return {name: text for name, text in texts.items() if text}


def joined(labels: Iterable[Value]) -> str | None:
    """Labels with commas between them: as many whole ones as have room in `wire.VALUE_CHARS_MAX`
    characters."""
    kept = ""
    for label in labels:
        text = text_of(label, wire.VALUE_CHARS_MAX)
        longer = f"{kept},{text}" if kept else text or ""
        if text and len(longer) <= wire.VALUE_CHARS_MAX:
            kept = longer
    return kept or None


def cents_of_dollars(value: Value) -> Value:
    """US dollars to cents, exactly: 6.45e-06 dollars are 0.000645 cents. Something else than a number stays
    as it is."""
    number = _decimal(value)
    if number is None or abs(number.adjusted()) > _DIGITS_MAX:  # the contract's rules say what it is
        return value
    cents = number.scaleb(2, _EXACT)
    text = str(cents) if cents else "0"
    return (
        text if len(text) <= wire.NUMBER_CHARS_MAX else str(cents.quantize(Decimal("1e-6"), context=_EXACT))
    )


def microseconds_of(seconds: Value) -> int | None:
    """Seconds since 1970 to microseconds; digits beyond are cut off. None: it is no number, or too large."""
    number = _decimal(seconds) if isinstance(seconds, Number) else None
    if number is None or number.adjusted() > 12:
        return None
    return int(number.scaleb(6, _EXACT)) if number.adjusted() > -_DIGITS_MAX else 0


def time_of(microseconds: int | None) -> str | None:
    """Microseconds since 1970 to RFC 3339. None: there is no such time."""
    if microseconds is None:
        return None
    try:
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return None


class Draft:
    """An event in the making, and how its sender spells each field of the contract."""

    def __init__(self, dialect: str) -> None:
        self.faults: list[Fault] = []
        self._dialect = dialect
        self._fields: dict[str, Any] = {}
        self._spelled: dict[str, str] = {}
        self._org: UUID | None = None
        self._org_name: str | None = None
        self._org_field: str | None = None

    def put(self, name: str, value: Any, spelled: str) -> None:
        """Put a field under the contract's name. None: the sender has no value."""
        self._spelled[name] = spelled
        if value is OTHER:
            value = {}
        elif isinstance(value, Number):
            value = msgspec.Raw(value.encode())
        elif isinstance(value, str):
            value = _UNSTORABLE.sub("\ufffd", value)
        if value is not None:
            self._fields[name] = value

    def put_times(self, start_us: int | None, end_us: int | None, *, start: str, end: str) -> None:
        """Put when the call ended, which is the event's time, and how long it took.

        A clock that was set back during the call may have it end before its start: up to `BACK_US` that is a
        latency of 0, and more is a fault.

        Args:
            start_us: Microseconds since 1970. None: it is missing. So is end_us.
            start: How the sender spells it. So is end.
        """
        time = time_of(end_us)
        self.put("occurredAt", time, end)
        if end_us is not None and time is None:
            self.faults.append(Fault(end, "lies after the year 9999"))
        if start_us is None or end_us is None or time is None:
            self.put("latencyMs", None if start_us is None else 0, start)
            return
        latency_ms = (end_us - start_us + 500) // 1000
        if end_us < start_us - BACK_US:
            self.faults.append(Fault(start, f"lies more than {BACK_US // 1_000_000} s after {end}"))
        elif latency_ms > wire.LATENCY_MS_MAX:
            self.faults.append(Fault(end, f"lies more than {wire.LATENCY_MS_MAX} ms after {start}"))
        self.put("latencyMs", min(max(0, latency_ms), wire.LATENCY_MS_MAX), start)

    def put_org(self, *candidates: tuple[str, Value], default: UUID | None) -> None:
        """Put the first value of the candidates, a UUID or a name, as the org; else the default.

        Each candidate is the sender's name of a field, and its value.
        """
        spelled, given = next(
            (one for one in candidates if one[1] not in (None, "")), (candidates[0][0], None)
        )
        if given is None:
            self._org = default
            if default is None:
                self.faults.append(Fault(spelled, NO_ORG))
        elif not isinstance(given, str) or not 0 < len(given.strip()) <= len(given) <= ORG_CHARS_MAX:
            self.faults.append(Fault(spelled, ORG_RULE))
        elif _UNCLEAR.search(given):
            self.faults.append(Fault(spelled, UNCLEAR))
        else:
            self._org = ids.org_id(given)
            self._org_name = None if ids.uuid_of(given) else given
            self._org_field = spelled
        self.put("orgId", str(self._org), spelled)

    def put_event_id(self, source_id: str | None, spelled: str) -> None:
        """Put the event's id, which needs the org. None: the source has no id."""
        if self._org is None:
            self._spelled["eventId"] = spelled
        elif source_id is not None and _UNCLEAR.search(source_id):
            self.faults.append(Fault(spelled, UNCLEAR))
            self.put("eventId", None, spelled)
        elif source_id is not None:
            self.put("eventId", str(ids.event_id(self._org, self._dialect, source_id)), spelled)
        else:
            self.put("eventId", None, spelled)

    def put_model(self, provider: Value, name: Value, spelled: str, model_id: UUID | None = None) -> None:
        """Put the model's labels, and its id. The id is made of the whole names, and the labels are cut."""
        whole_provider, whole_name = (text_of(value, wire.BODY_BYTES_MAX) for value in (provider, name))
        self.put("provider", text_of(whole_provider, wire.PROVIDER_CHARS_MAX), spelled)
        self.put("modelName", text_of(whole_name, wire.MODEL_NAME_CHARS_MAX), spelled)
        if model_id is None and whole_name is not None:
            model_id = ids.model_id(whole_provider or "", whole_name)
        self.put("modelId", None if model_id is None else str(model_id), spelled)

    def put_tokens(
        self, given: Mapping[str, Value], spelled: Mapping[str, str], *, is_cache_outside: bool
    ) -> None:
        """Put the tokens of all kinds, with the parts inside their whole, as the contract counts them.

        Args:
            given: By the contract's names. ``cacheWriteTokens`` are all that were written, also those for
                an hour. spelled: How the sender spells them. is_cache_outside: Do the input tokens leave
                out the cached ones? Parts that are larger than their whole are outside in any case.
        """
        counts = {name: whole(value) for name, value in given.items()}
        read, written, reasoning = (
            counts[name] for name in ("cacheReadTokens", "cacheWriteTokens", "reasoningTokens")
        )
        long = min(counts["cacheWrite1hTokens"], written)
        added = {
            "inputTokens": read + written
            if is_cache_outside or read + written > counts["inputTokens"]
            else 0,
            "outputTokens": reasoning if reasoning > counts["outputTokens"] else 0,
        }
        for name, outside in added.items():
            value = given[name]
            is_count = value is None or count_of(value) is not None
            self.put(name, counts[name] + outside if is_count else value, spelled[name])
        parts = {
            "cacheReadTokens": read,
            "cacheWriteTokens": written - long,
            "cacheWrite1hTokens": long,
            "reasoningTokens": reasoning,
        }
        for name, count in parts.items():
            self.put(name, count or None, spelled[name])

    def put_actor(self, value: Value, spelled: str) -> bool:
        """Put the actor if the value is a UUID. Returns whether it is."""
        actor = ids.uuid_of(value) if isinstance(value, str) else None
        if actor is not None:
            self.put("actorId", str(actor), spelled)
        return actor is not None

    def offered(self) -> Offered:
        """The event, if no rule of the contract is broken."""
        event = _ENCODER.encode(self._fields)
        verdict = wire.read(event)
        if isinstance(verdict, wire.Invalid):
            known = {fault.field for fault in self.faults}
            self.faults += [
                fault for fault in map(self._translated, verdict.faults) if fault.field not in known
            ]
            if self._org is None:  # the event's id is made of the org: one fault, not two
                self.faults = [fault for fault in self.faults if fault.field != self._spelled.get("eventId")]
        if self.faults:
            return Offered(event=None, faults=tuple(self.faults))
        return Offered(
            event=event,
            org_name=self._org_name,
            org_field=self._org_field,
            time_field=self._spelled["occurredAt"],
        )

    def _translated(self, fault: Fault) -> Fault:
        """The fault in the sender's words. The contract's messages name other fields only among tokens."""
        message = _TOKENS.sub(lambda name: self._spelled.get(name[0], name[0]), fault.message)
        return Fault(self._spelled.get(fault.field, fault.field), message)
