"""The naive oracle: decides every event of a stream alone, in order, in plain Python.

The oracle is the second opinion on `pipeline.core` and shares no code with it. It uses json, decimal, uuid,
datetime and dicts only. It is slow, and close to the words of the wire contract. One `Oracle` sees one
partition.

    oracle = Oracle(Rules(dedupe_window_us=24 * HOUR_US))
    for offset, broker_us, body in stream:
        oracle.feed(offset, broker_us, body)      # Accepted | Duplicate | Rejected
    oracle.usage_hour[org, hour, model].cost_microcents
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any, NoReturn
from uuid import UUID

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
BODY_BYTES_MAX = 64 * 1024
FUTURE_US = 5 * MINUTE_US
STATUSES = ("success", "error", "timeout", "throttled")
SERVICE_TIERS = ("standard", "batch", "flex", "priority", "fast")
"""The place of a status in this tuple is its number in `usage_errors_hour.status`."""
OVERFLOW_CLIENT = (
    "other clients: the events of all clients of this hour beyond the first CLIENTS_PER_ORG_HOUR_MAX,"
    " which are counted under their own names"
)
OVERFLOW_VALUE = (
    "other values: the events of all values of this hour beyond the first VALUES_PER_ORG_HOUR_MAX, which are"
    " counted under their own names, and of values that are too long to be kept"
)
OVERFLOW_MODEL = UUID(int=2**128 - 1)
OVERFLOW_ERROR_CODE = "other error codes: all of this hour beyond the first 100, which are counted by name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings that decide the figures."""

    dedupe_window_us: int = 24 * HOUR_US
    lateness_us: int = 10 * SECOND_US
    clients_max: int = 1000
    models_max: int = 1000
    dimensions: tuple[tuple[str, str], ...] = ()
    """Names and sources: ``actorId``, or ``metadata.`` and a key."""
    values_max: int = 1000
    split_hours: tuple[int, ...] = ()
    """Hours of the day that are counted by the quarter, too."""
    error_codes_max: int = 100
    sum_max: int = 2**63 - 1
    context_tiers: tuple[int, ...] = (128_000, 200_000, 272_000)

    def rate_class(self, event: Event) -> int:
        """The class of an event in a database whose first worker had these boundaries."""
        place = 0
        for boundary in self.context_tiers:
            place += (event.input_tokens >= boundary) + (event.input_tokens > boundary)
        per_tier = 2 * len(self.context_tiers) + 1
        return event.service_tier * per_tier + place + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A valid event. An absent ``client_id`` or ``error_code`` is ''. The cost is in 10^-6 cents."""

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
    """None: not estimated."""
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    service_tier: int = 0
    provider: str = ""
    model_name: str = ""
    actor_id: UUID | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def payload(self) -> Event:
        """The event without its labels, actor and metadata, which a copy may lack."""
        return replace(self, provider="", model_name="", actor_id=None, metadata=())

    def value(self, source: str) -> str:
        """The value of the dimension with this source."""
        if source == "actorId":
            return str(self.actor_id or "")
        text = dict(self.metadata).get(source.removeprefix("metadata."), "")
        kept = len(text) <= 128 and not re.search("[\0\ud800-\udfff]", text)
        return text if kept else OVERFLOW_VALUE

    @property
    def without_details(self) -> Event:
        """What versions up to 0.2.0 saw of the event."""
        return replace(
            self.payload,
            cache_read_tokens=0,
            cache_write_tokens=0,
            cache_write_1h_tokens=0,
            reasoning_tokens=0,
            service_tier=0,
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    event: Event


@dataclass(frozen=True, slots=True)
class Duplicate:
    event: Event


@dataclass(frozen=True, slots=True)
class Rejected:
    reason: str
    """malformed, invalid, future, too_late or conflict."""
    fields: tuple[str, ...] = ()
    """With `invalid`: the faulty fields by their camelCase names, or `specversion`, `type`, `data`."""


Outcome = Accepted | Duplicate | Rejected


@dataclass(frozen=True, slots=True)
class DeadLetter:
    offset: int
    reason: str
    fields: tuple[str, ...]
    body: bytes


@dataclass(slots=True)
class Row:
    """One rollup row. It keeps every latency instead of a sketch."""

    invocations: int = 0
    successes: int = 0
    errors: int = 0
    timeouts: int = 0
    throttles: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_microcents: int = 0
    revision: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    unestimated: int = 0
    latencies_ms: list[int] = field(default_factory=list)

    @property
    def latency_sum_ms(self) -> int:
        return sum(self.latencies_ms)

    @property
    def latency_max_ms(self) -> int:
        return max(self.latencies_ms, default=0)

    def percentile_ms(self, percent: int) -> int:
        """The smallest latency L such that at least ``percent`` % of all are at most L (nearest rank)."""
        rank = max(1, -(-percent * len(self.latencies_ms) // 100))
        return sorted(self.latencies_ms)[rank - 1]

    def add(self, event: Event, *, late: bool) -> None:
        self.invocations += 1
        if event.status == 0:
            self.successes += 1
        elif event.status == 1:
            self.errors += 1
        elif event.status == 2:
            self.timeouts += 1
        else:
            self.throttles += 1
        self.input_tokens += event.input_tokens
        self.output_tokens += event.output_tokens
        self.cost_microcents += event.cost_microcents or 0
        self.unestimated += event.cost_microcents is None
        self.cache_read_tokens += event.cache_read_tokens
        self.cache_write_tokens += event.cache_write_tokens
        self.cache_write_1h_tokens += event.cache_write_1h_tokens
        self.reasoning_tokens += event.reasoning_tokens
        self.latencies_ms.append(event.latency_ms)
        self.revision += late

    @property
    def measures(self) -> tuple[int, ...]:
        """The measures in the order of the database's columns, without the sketch."""
        return (
            self.invocations,
            self.successes,
            self.errors,
            self.timeouts,
            self.throttles,
            self.input_tokens,
            self.output_tokens,
            self.cost_microcents,
            self.latency_sum_ms,
            self.latency_max_ms,
            self.revision,
            self.cache_read_tokens,
            self.cache_write_tokens,
            self.cache_write_1h_tokens,
            self.reasoning_tokens,
            self.unestimated,
        )


def total(rows: Iterable[Row]) -> Row:
    """The sum of rows. The API sums rows up like this for a range, a group or a month."""
    result = Row()
    for row in rows:
        result.invocations += row.invocations
        result.successes += row.successes
        result.errors += row.errors
        result.timeouts += row.timeouts
        result.throttles += row.throttles
        result.input_tokens += row.input_tokens
        result.output_tokens += row.output_tokens
        result.cost_microcents += row.cost_microcents
        result.revision += row.revision
        result.cache_read_tokens += row.cache_read_tokens
        result.cache_write_tokens += row.cache_write_tokens
        result.cache_write_1h_tokens += row.cache_write_1h_tokens
        result.reasoning_tokens += row.reasoning_tokens
        result.unestimated += row.unestimated
        result.latencies_ms.extend(row.latencies_ms)
    return result


@dataclass(slots=True)
class Seen:
    """The first and the last event time. The order of arrival does not matter."""

    first: datetime
    last: datetime


class Oracle:
    """The contents that the database must have after the part of the stream that has been fed.

    The keys of the rollups are ``(org, bucket_start, model)`` and ``(org, bucket_start, model, client)``. The
    keys of ``usage_errors_hour`` are ``(org, hour, model, client, status, error_code)``. ``by_class`` has the
    same rows by table, apart for each rate class, which ends their keys. ``labels`` has the newest (time,
    provider, model name) of an (org, model). Clients and codes appear under the names by which they are
    counted, so the names of the overflow and '' are among them. Only the codes of failed events take one of
    the slots of an hour.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.offered = self.accepted = self.duplicate = self.rejected = 0
        self.next_offset = 0
        self.max_event_us: int | None = None
        self.newest_broker_us = 0
        self.usage_minute: dict[tuple[UUID, datetime, UUID], Row] = defaultdict(Row)
        self.usage_hour: dict[tuple[UUID, datetime, UUID], Row] = defaultdict(Row)
        self.usage_quarter: dict[tuple[UUID, datetime, UUID], Row] = defaultdict(Row)
        self.usage_day: dict[tuple[UUID, datetime, UUID], Row] = defaultdict(Row)
        self.client_hour: dict[tuple[UUID, datetime, UUID, str], Row] = defaultdict(Row)
        self.client_day: dict[tuple[UUID, datetime, UUID, str], Row] = defaultdict(Row)
        self.breakdown_hour: dict[tuple[UUID, datetime, UUID, str, str], Row] = defaultdict(Row)
        self.breakdown_day: dict[tuple[UUID, datetime, UUID, str, str], Row] = defaultdict(Row)
        self.usage_errors_hour: dict[tuple[UUID, datetime, UUID, str, int, str], int] = defaultdict(int)
        self.by_class: dict[str, dict[tuple[Any, ...], Row]] = defaultdict(lambda: defaultdict(Row))
        self.errors_by_class: dict[tuple[Any, ...], int] = defaultdict(int)
        self.labels: dict[tuple[UUID, UUID], tuple[int, bytes, bytes]] = {}
        self.orgs_seen: dict[UUID, Seen] = {}
        self.models_seen: dict[tuple[UUID, UUID], Seen] = {}
        self.clients_seen: dict[tuple[UUID, str], Seen] = {}
        self.values_seen: dict[tuple[UUID, str, str], Seen] = {}
        self.dead_letters: list[DeadLetter] = []
        self._hour_of_id: dict[tuple[UUID, UUID], int] = {}
        self._event_of_id: dict[tuple[UUID, UUID], Event] = {}
        self._clients_of_hour: dict[tuple[UUID, int], set[str]] = defaultdict(set)
        self._values_of_hour: dict[tuple[UUID, int, str], set[str]] = defaultdict(set)
        self._models_of_hour: dict[tuple[UUID, int], set[UUID]] = defaultdict(set)
        self._sums_of_day: dict[tuple[UUID, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._codes_of_hour: dict[tuple[UUID, int], set[str]] = defaultdict(set)

    def feed(self, offset: int, broker_us: int, body: bytes) -> Outcome:
        """Decide the event at ``offset``, stored by the broker at ``broker_us``, and count it."""
        self.newest_broker_us = max(self.newest_broker_us, broker_us)
        outcome = self._decide(broker_us, body)
        self.offered += 1
        self.next_offset = offset + 1
        if isinstance(outcome, Rejected):
            self.rejected += 1
            self.dead_letters.append(DeadLetter(offset, outcome.reason, outcome.fields, body))
        elif isinstance(outcome, Duplicate):
            self.duplicate += 1
        else:
            self.accepted += 1
            self._count(outcome.event, broker_us)
        return outcome

    def feed_unreadable(self, offset: int, records: int, broker_us: int, stored: bytes) -> None:
        """Feed the records of a batch that nobody can unpack. Together they make one dead letter."""
        self.newest_broker_us = max(self.newest_broker_us, broker_us)
        self.offered += records
        self.rejected += records
        self.next_offset = offset + records
        self.dead_letters.append(DeadLetter(offset, "malformed", ("",), stored))

    def feed_all(self, stream: Iterable[tuple[int, int, bytes]]) -> list[Outcome]:
        return [self.feed(*record) for record in stream]

    @property
    def watermark_us(self) -> int | None:
        return None if self.max_event_us is None else self.max_event_us - self.rules.lateness_us

    @property
    def floor_us(self) -> int:
        """The beginning of the dedupe window. It never goes back, even if the broker's clock does."""
        return self.newest_broker_us - self.rules.dedupe_window_us

    def _decide(self, broker_us: int, body: bytes) -> Outcome:
        event = decode(body)
        if isinstance(event, Rejected):
            return event
        if event.occurred_us > broker_us + FUTURE_US:
            return Rejected("future")
        if event.occurred_us < self.floor_us:
            return Rejected("too_late")
        key = (event.org_id, event.event_id)
        hour_us = self._hour_of_id.get(key)
        if hour_us is not None and hour_us + HOUR_US > self.floor_us:
            # Earlier versions looked at none of the details, and counted an event without them.
            same = self._event_of_id[key].payload in (event.payload, event.without_details)
            return Duplicate(event) if same else Rejected("conflict", ("eventId",))
        if lacking := self._lacking(event):
            return Rejected("invalid", lacking)
        self._hour_of_id[key] = _floor(event.occurred_us, HOUR_US)
        self._event_of_id[key] = event
        return Accepted(event)

    def _lacking(self, event: Event) -> tuple[str, ...]:
        """The fields of the event for which the sums of the org's day have no room."""
        sums = self._sums_of_day[event.org_id, event.occurred_us // DAY_US]
        return tuple(
            field for field, value in _summed(event).items() if sums[field] + value > self.rules.sum_max
        )

    def _count(self, event: Event, broker_us: int) -> None:
        org = event.org_id
        for name, value in _summed(event).items():
            self._sums_of_day[org, event.occurred_us // DAY_US][name] += value
        hour_us = _floor(event.occurred_us, HOUR_US)
        model = event.model_id
        known = self._models_of_hour[org, hour_us]
        if model not in known:
            if len(known) < self.rules.models_max:
                known.add(model)
            else:
                model = OVERFLOW_MODEL
        named = self._clients_of_hour[org, hour_us]
        client = _name(named, event.client_id, self.rules.clients_max, OVERFLOW_CLIENT)
        watermark_us = self.watermark_us
        minute, hour, day = (_bucket(event.occurred_us, size) for size in (MINUTE_US, HOUR_US, DAY_US))
        rate_class = self.rules.rate_class(event)
        tables: list[tuple[str, dict[Any, Row], tuple[Any, ...], int]] = [
            ("usage_minute", self.usage_minute, (org, minute, model), MINUTE_US),
            ("usage_hour", self.usage_hour, (org, hour, model), HOUR_US),
            ("usage_day", self.usage_day, (org, day, model), DAY_US),
            ("client_hour", self.client_hour, (org, hour, model, client), HOUR_US),
            ("client_day", self.client_day, (org, day, model, client), DAY_US),
        ]
        at = EPOCH + timedelta(microseconds=event.occurred_us)
        for dimension, source in self.rules.dimensions:
            named = self._values_of_hour[org, hour_us, dimension]
            text = event.value(source)
            if text != OVERFLOW_VALUE:
                text = _name(named, text, self.rules.values_max, OVERFLOW_VALUE)
            by_value = (model, dimension, text)
            tables.append(("breakdown_hour", self.breakdown_hour, (org, hour, *by_value), HOUR_US))
            tables.append(("breakdown_day", self.breakdown_day, (org, day, *by_value), DAY_US))
            _see(self.values_seen, (org, dimension, text), at)
        if hour.hour in self.rules.split_hours:
            quarter = _bucket(event.occurred_us, HOUR_US // 4)
            tables.append(("usage_quarter", self.usage_quarter, (org, quarter, model), HOUR_US))
        for name, table, key, size_us in tables:
            late = watermark_us is not None and watermark_us >= _floor(_us(key[1]), size_us) + size_us
            table[key].add(event, late=late)
            self.by_class[name][*key, rate_class].add(event, late=late)
        if event.status:
            codes = self._codes_of_hour[org, hour_us]
            code = _name(codes, event.error_code, self.rules.error_codes_max, OVERFLOW_ERROR_CODE)
            self.usage_errors_hour[org, hour, model, client, event.status, code] += 1
            self.errors_by_class[org, hour, model, client, event.status, code, rate_class] += 1
        if (event.provider or event.model_name) and model != OVERFLOW_MODEL:
            label = (event.occurred_us, event.provider.encode(), event.model_name.encode())
            self.labels[org, model] = max(label, self.labels.get((org, model), label))
        _see(self.orgs_seen, org, at)
        _see(self.models_seen, (org, model), at)
        _see(self.clients_seen, (org, client), at)
        # An event from the future moves the watermark no further than the broker's clock.
        self.max_event_us = max(self.max_event_us or 0, min(event.occurred_us, broker_us))


def _summed(event: Event) -> dict[str, int]:
    """The values of an event that are added up, by field."""
    return {
        "inputTokens": event.input_tokens,
        "outputTokens": event.output_tokens,
        "costEstimateCents": event.cost_microcents or 0,
        "latencyMs": event.latency_ms,
    }


def _floor(at_us: int, size_us: int) -> int:
    return at_us - at_us % size_us


def _bucket(at_us: int, size_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=_floor(at_us, size_us))


def _us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _name(named: set[str], wanted: str, most: int, overflow: str) -> str:
    """``wanted`` if it is one of the first ``most`` names, else ``overflow``. '' takes no slot."""
    if not wanted or wanted in named:
        return wanted
    if len(named) >= most:
        return overflow
    named.add(wanted)
    return wanted


def _see(seen: dict[Any, Seen], key: Any, at: datetime) -> None:
    entry = seen.setdefault(key, Seen(at, at))
    entry.first = min(entry.first, at)
    entry.last = max(entry.last, at)


# --- decoding: from bytes to an Event, or to a rejection ----------------------------------------


class _Number(str):
    """A JSON number, kept as its text, so that no float and no limit on digits changes it."""

    __slots__ = ()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_no_constant)
# Written down again, and not taken from pipeline.core.wire: the oracle also finds a name that is wrong there.
_CAMEL = {
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
_SNAKE = {name: re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name) for name in _CAMEL}
_SNAKE["cacheWrite1hTokens"] = "cache_write_1h_tokens"


def decode(body: bytes) -> Event | Rejected:
    """Decode one body by the rules that need no clock and no memory."""
    if len(body) > BODY_BYTES_MAX:
        return Rejected("malformed")
    if _depth(body) > 200:
        return Rejected("malformed")
    try:
        # Unlike json.loads(body), this guesses no UTF-16 and refuses a byte order mark.
        value = _DECODER.decode(body.decode("utf-8"))
    except ValueError:
        return Rejected("malformed")
    if not isinstance(value, dict):
        return Rejected("malformed")
    faults: list[str] = []
    if "eventId" not in value and "event_id" not in value and "specversion" in value:
        if not _is_text(value["specversion"]) or value["specversion"] != "1.0":
            faults.append("specversion")
        if not _is_text(value.get("type")) or value["type"] != "analytics.usage.v1":
            faults.append("type")
        value = value.get("data")
        if not isinstance(value, dict):
            return Rejected("invalid", (*faults, "data"))
        if "eventId" not in value and "event_id" not in value and "specversion" in value:
            return Rejected("invalid", (*faults, "data"))
    snake = "eventId" not in value and "event_id" in value
    wire_names = _SNAKE if snake else _CAMEL
    if snake and "cost_estimate_cents" not in value:
        wire_names = {**wire_names, "costEstimateCents": "cost_estimate"}
    fields = {name: value.get(wire) for name, wire in wire_names.items()}
    parsed: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        try:
            parsed[name] = parse(fields[name])
        except _Invalid:
            faults.append(name)
    cached = sum(parsed.get(f"cache{kind}Tokens", 0) for kind in ("Read", "Write", "Write1h"))
    if cached > parsed.get("inputTokens", cached):
        faults.append("inputTokens")
    if parsed.get("reasoningTokens", 0) > parsed.get("outputTokens", 10**12):
        faults.append("outputTokens")
    if faults:
        return Rejected("invalid", tuple(faults))
    return Event(
        event_id=parsed["eventId"],
        org_id=parsed["orgId"],
        model_id=parsed["modelId"],
        client_id=parsed["clientId"],
        occurred_us=parsed["occurredAt"],
        latency_ms=parsed["latencyMs"],
        status=parsed["status"],
        error_code=parsed["errorCode"],
        input_tokens=parsed["inputTokens"],
        output_tokens=parsed["outputTokens"],
        cost_microcents=parsed["costEstimateCents"],
        cache_read_tokens=parsed["cacheReadTokens"],
        cache_write_tokens=parsed["cacheWriteTokens"],
        cache_write_1h_tokens=parsed["cacheWrite1hTokens"],
        reasoning_tokens=parsed["reasoningTokens"],
        service_tier=parsed["serviceTier"],
        provider=parsed["provider"],
        model_name=parsed["modelName"],
        actor_id=parsed["actorId"],
        metadata=parsed["metadata"],
    )


def _depth(body: bytes) -> int:
    """How deep a body nests, counted byte by byte."""
    depth = deepest = 0
    is_string = is_escaped = False
    for byte in body if body.count(b"[") + body.count(b"{") > 200 else b"":
        if is_string:
            is_string = byte != ord('"') or is_escaped
            is_escaped = byte == ord("\\") and not is_escaped
        elif byte == ord('"'):
            is_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


class _Invalid(Exception):
    pass


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, _Number)


def _text(value: Any) -> str:
    if not _is_text(value):
        raise _Invalid
    return str(value)


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _uuid(value: Any) -> UUID:
    text = _text(value)
    if not _UUID.fullmatch(text):
        raise _Invalid
    return UUID(text)


def _model(value: Any) -> UUID:
    model = _uuid(value)
    if model == OVERFLOW_MODEL:
        raise _Invalid
    return model


def _optional_uuid(value: Any) -> UUID | None:
    return None if value is None else _uuid(value)


class _Label:
    """Optional text that PostgreSQL can hold; absent is ''."""

    def __init__(self, characters_max: int) -> None:
        self._characters_max = characters_max

    def __call__(self, value: Any) -> str:
        if value is None:
            return ""
        text = _text(value)
        if len(text) > self._characters_max or "\0" in text or re.search("[\ud800-\udfff]", text):
            raise _Invalid
        return text


class _Count:
    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, value: Any) -> int:
        if not isinstance(value, _Number):
            raise _Invalid
        if not re.search("[1-9]", re.split("[eE]", value)[0]):
            return 0
        try:
            number = Decimal(value)
        except InvalidOperation:  # an exponent beyond 10**18
            raise _Invalid from None
        if number < 0 or not 0 <= number.adjusted() < 19 or number != number.to_integral_value():
            raise _Invalid
        if number > self._most:
            raise _Invalid
        return int(number)


class _Part:
    """An optional count of tokens; absent is 0."""

    def __call__(self, value: Any) -> int:
        return 0 if value is None else _Count(10**12)(value)


def _status(value: Any) -> int:
    text = _text(value)
    if text not in STATUSES:
        raise _Invalid
    return STATUSES.index(text)


def _service_tier(value: Any) -> int:
    text = "standard" if value is None else _text(value)
    if text not in SERVICE_TIERS:
        raise _Invalid
    return SERVICE_TIERS.index(text)


_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def _time_us(value: Any) -> int:
    text = _text(value)
    match = _TIME.fullmatch(text)
    if match is None or len(text) > 64:
        raise _Invalid
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    microsecond = int((match[7] or "0")[:6].ljust(6, "0"))
    offset_hours, offset_minutes = int(match[9] or 0), int(match[10] or 0)
    if offset_hours > 23 or offset_minutes > 59:
        raise _Invalid
    offset = timedelta(hours=offset_hours, minutes=offset_minutes) * (-1 if match[8] == "-" else 1)
    try:
        at = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=UTC) - offset
    except (ValueError, OverflowError):  # no such date, or beyond the years 1 to 9999 in UTC
        raise _Invalid from None
    if at < EPOCH:
        raise _Invalid
    return _us(at)


_DECIMAL = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_EXACT = Context(prec=200, rounding=ROUND_HALF_EVEN)


def _microcents(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str):  # numbers and strings alike
        raise _Invalid
    match = _DECIMAL.fullmatch(value)
    if match is None or len(value) > 64:
        raise _Invalid
    sign, whole, fraction, exponent = match[1], match[2], match[3] or "", int(match[4] or 0)
    digits = int(whole + fraction)
    if digits == 0:
        return 0
    exponent -= len(fraction)
    magnitude = len(str(digits)) + exponent  # 10^(magnitude - 1) <= value < 10^magnitude
    if sign or magnitude > 9:
        raise _Invalid
    if magnitude < -6:
        return 0  # below half a microcent
    cents = Decimal(digits).scaleb(exponent, _EXACT)
    if cents > 10**8:
        raise _Invalid
    return int(_EXACT.quantize(cents.scaleb(6, _EXACT), Decimal(1)))


def _metadata(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(_is_text(each) for each in value.values()):
        raise _Invalid
    return tuple(value.items())


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "eventId": _uuid,
    "orgId": _uuid,
    "modelId": _model,
    "actorId": _optional_uuid,
    "clientId": _Label(128),
    "occurredAt": _time_us,
    "latencyMs": _Count(2**31 - 1),
    "status": _status,
    "errorCode": _Label(64),
    "inputTokens": _Count(10**12),
    "outputTokens": _Count(10**12),
    "costEstimateCents": _microcents,
    "cacheReadTokens": _Part(),
    "cacheWriteTokens": _Part(),
    "cacheWrite1hTokens": _Part(),
    "reasoningTokens": _Part(),
    "serviceTier": _service_tier,
    "provider": _Label(64),
    "modelName": _Label(128),
    "metadata": _metadata,
}


def records(chunks: Iterable[Any]) -> Iterator[tuple[int, int, bytes]]:
    """(offset, broker time, body) for `Oracle.feed`, from objects like `pipeline.transports.Chunk`."""
    for chunk in chunks:
        for offset, body in zip(chunk.offsets().tolist(), chunk.bodies, strict=True):
            yield offset, chunk.timestamp_us, bytes(body)
