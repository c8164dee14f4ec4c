"""Query parameters: which there are, and how one value is read.

`api.asking.questions` puts the values together. The tables of `Parameter` are also what the OpenAPI document
is made from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from multidict import MultiMapping

from api.asking.buckets import Granularity, Last
from pipeline.common.day_zones import zone_names
from pipeline.common.problems import Fault, invalid_parameters
from pipeline.core import wire
from pipeline.prices.price import KINDS

LIMIT_DEFAULT: Final = 1000
MODEL: Final = "model"
CLIENT: Final = "client"
VERSION_MAX: Final = 10**18
MINUTE_US: Final = 60_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


class CostBasis(StrEnum):
    """Where costs come from. ``auto``: the book where it knows a rate, else the producers' estimates."""

    AUTO = "auto"
    BOOK = "book"
    ESTIMATE = "estimate"


class Percentile(StrEnum):
    """A percentile of latencies, by its name in an answer."""

    P50 = "p50"
    P95 = "p95"
    P99 = "p99"


EXPORT_STATUSES: Final = ("pending", "running", "succeeded", "failed", "expired")
T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
_DIMENSION = re.compile(r"[a-z][a-z0-9_]{0,31}")
# An offset's + that was not escaped arrives as a space; no other reading of it is possible.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+\- ](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A query parameter as the document shows it.

    ``schema`` is the JSON Schema of one value; if it is one of an array, of all values together.
    """

    name: str
    help: str
    schema: dict[str, Any]
    required: bool = False
    repeatable: bool = False


_MINUTE_SCHEMA: Final = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:00(\.0+)?(Z|[+-]\d\d:\d\d)$",
}
_TIME_SCHEMA: Final = {
    **_MINUTE_SCHEMA,
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d+)?(Z|[+-]\d\d:\d\d)$",
}
_UUID_SCHEMA: Final = {"type": "string", "format": "uuid"}

START = Parameter(
    name="start",
    help="First instant of the range; with seconds, the whole minute before. It need not be the edge of a"
    " bucket: figures cover exactly [start, end), as the answer says them.",
    schema=_TIME_SCHEMA,
)
END = Parameter(
    name="end",
    help="End of the range, not included, at most 13 months after start (24 hours for granularity=minute);"
    " with seconds, the whole minute after: 23:59:59 is midnight.",
    schema=_TIME_SCHEMA,
)
LAST = Parameter(
    name="last",
    help="In the place of start and end: the hour, 24 hours, 7 days or 30 days up to now, or the month to"
    " date in timeZone. The minute that runs is in the range. 7d and 30d begin on the whole hour before; by"
    " client or dimension, all but mtd begin and all end on whole hours. Further pages are of the first"
    " page's range.",
    schema={"type": "string", "enum": [last.value for last in Last]},
)
GRANULARITY = Parameter(
    name="granularity",
    help="Length of a bucket. Minutes and hours are those of UTC; days, weeks (from Monday) and months are"
    " local to timeZone.",
    schema={"type": "string", "enum": [g.value for g in Granularity], "default": "day"},
)
MODEL_ID = Parameter(name="modelId", help="Only these models.", schema=_UUID_SCHEMA, repeatable=True)
CLIENT_ID = Parameter(
    name="clientId",
    help="Only these clients, from the hour grain up. An empty value means events without a client. The one"
    " name of more than 128 characters means what was counted beyond CLIENTS_PER_ORG_HOUR_MAX.",
    schema={"type": "string", "maxLength": len(wire.OVERFLOW_CLIENT)},
    repeatable=True,
)
PERCENTILE = Parameter(
    name="percentile",
    help="Only these percentiles of the latency; without it, all three.",
    schema={"type": "string", "enum": [percentile.value for percentile in Percentile]},
    repeatable=True,
)
STATUS = Parameter(
    name="status",
    help="Only exports of these statuses.",
    schema={"type": "string", "enum": list(EXPORT_STATUSES)},
    repeatable=True,
)
DIMENSION = Parameter(
    name="dimension",
    help="Only these values of one dimension, from the hour grain up: its name, a colon and the value, as in"
    " team:search. An empty value means events without one.",
    schema={"type": "string", "pattern": r"^[a-z][a-z0-9_]{0,31}:"},
    repeatable=True,
)
GROUP_BY = Parameter(
    name="groupBy",
    help="What the series is split by: model, client or a dimension (from the hour grain up), model and one"
    " of these (repeated or with a comma), or none alone.",
    schema={
        "type": "array",
        "items": {"type": "string", "pattern": r"^[a-z][a-z0-9_]{0,31}$"},
        "minItems": 1,
        "maxItems": 2,
        "uniqueItems": True,
        "default": [MODEL],
    },
    repeatable=True,
)
TIME_ZONE = Parameter(
    name="timeZone",
    help="IANA name. In zones off the whole hour the edges of a day take minute rows, or the rows that"
    " DAY_ZONES keeps.",
    schema={"type": "string", "default": "UTC"},
)
LIMIT = Parameter(
    name="limit",
    help="Most items of a page.",
    schema={"type": "integer", "minimum": 1, "maximum": 10_000, "default": LIMIT_DEFAULT},
)
CURSOR = Parameter(
    name="cursor",
    help="nextCursor of the page before, with all other parameters but limit the same.",
    schema={"type": "string"},
)

PRICE_VERSION = Parameter(
    name="priceVersion",
    help="Price as of this version of the price book; without it, the newest.",
    schema={"type": "integer", "minimum": 0, "maximum": VERSION_MAX},
)
COST_BASIS = Parameter(
    name="costBasis",
    help="Where costs come from: the rates of the book, the producers' estimates, or auto: the book where it"
    " knows a rate, else the estimate.",
    schema={"type": "string", "enum": [basis.value for basis in CostBasis], "default": "auto"},
)

PROVIDER = Parameter(
    name="provider", help="Only prices of this provider.", schema={"type": "string", "maxLength": 64}
)
MODEL_NAME = Parameter(
    name="modelName", help="Only prices of this model.", schema={"type": "string", "maxLength": 128}
)
ORG_ID = Parameter(name="orgId", help="Only the prices and discounts of this org.", schema=_UUID_SCHEMA)
KIND = Parameter(
    name="kind", help="Only prices of this kind.", schema={"type": "string", "enum": list(KINDS)}
)
SERVICE_TIER = Parameter(
    name="serviceTier",
    help="Only prices of this service tier.",
    schema={"type": "string", "enum": list(wire.SERVICE_TIERS)},
)
AT = Parameter(name="at", help="Only prices that are valid then; a whole minute.", schema=_MINUTE_SCHEMA)
VERSION = Parameter(
    name="version",
    help="As of this version of the book; without it, the newest.",
    schema={"type": "integer", "minimum": 0, "maximum": VERSION_MAX},
)
RETRACTED = Parameter(
    name="retracted",
    help="Also prices that are retracted, and the rows that retract them.",
    schema={"type": "boolean", "default": False},
)

PERIOD_FROM = Parameter(
    name="start",
    help="Only adjustments whose period begins then or later; a whole minute.",
    schema=_MINUTE_SCHEMA,
)
PERIOD_TO = Parameter(
    name="end",
    help="Only adjustments whose period begins before then; a whole minute.",
    schema=_MINUTE_SCHEMA,
)
WITH_RETRACTED = Parameter(
    name="retracted",
    help="Also adjustments that are retracted, and the rows that retract them.",
    schema={"type": "boolean", "default": False},
)

EXPIRES = Parameter(
    name="expires",
    help="When the link ends, in seconds since 1970.",
    schema={"type": "integer", "minimum": 0, "maximum": 10**11 - 1},
    required=True,
)
SIGNATURE = Parameter(
    name="signature", help="What makes the link ours.", schema={"type": "string"}, required=True
)

PERIODS_MAX: Final = 60
PERIODS = Parameter(
    name="periods",
    help="How many periods before the one that runs now, the newest first.",
    schema={"type": "integer", "minimum": 1, "maximum": PERIODS_MAX, "default": 12},
)

RANGE: Final = (START, END, LAST)
FIGURES: Final = (*RANGE, GRANULARITY, MODEL_ID, CLIENT_ID, DIMENSION, GROUP_BY, TIME_ZONE, LIMIT, CURSOR)
PRICING: Final = (PRICE_VERSION, COST_BASIS)
USAGE: Final = (*FIGURES, *PRICING)
RELIABILITY: Final = (*FIGURES, PERCENTILE)
ORGS: Final = (*RANGE, LIMIT, CURSOR, *PRICING)
LISTING: Final = (LIMIT, CURSOR)
FRESHNESS: Final = (MODEL_ID, *LISTING)
EXPORTS: Final = (STATUS, *LISTING)
PRICES: Final = (
    PROVIDER,
    MODEL_NAME,
    ORG_ID,
    KIND,
    SERVICE_TIER,
    AT,
    VERSION,
    RETRACTED,
    LIMIT,
    CURSOR,
)
ADJUSTMENTS: Final = (PERIOD_FROM, PERIOD_TO, WITH_RETRACTED, LIMIT, CURSOR)
HISTORY: Final = (PERIODS,)
SIGNED: Final = (EXPIRES, SIGNATURE)
NONE: Final = ()
NAMES_SHOWN: Final = frozenset(
    parameter.name for parameter in (*USAGE, *RELIABILITY, *ORGS, *FRESHNESS, *EXPORTS, *PRICES)
)
"""Parameters whose values may be written into the audit log."""


_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)


def idempotency_key(headers: MultiMapping[str]) -> str | None:
    """The key by which the same request is done once, as it is kept; None: the request has none.

    Raises `Problem` 400. The keys of requests begin with ``key:``, so ours can begin with something else.
    """
    given = headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
        message = "expected one value of 1 to 200 visible ASCII characters"
        raise invalid_parameters([Fault("Idempotency-Key", message)])
    return f"key:{given[0]}"


class Reader:
    """Reads one query string. Faults are collected, and raised together by `finish`."""

    def __init__(self, query: MultiMapping[str], known: Sequence[Parameter]) -> None:
        self.faults: list[Fault] = []
        self._query = query
        names = [parameter.name for parameter in known]
        for name in dict.fromkeys(query):
            if name not in names:
                listed = f"the parameters are {', '.join(names)}" if names else "there are none here"
                self.fault(name, f"unknown parameter; {listed}")

    def fault(self, name: str, message: str) -> None:
        fault = Fault(name, message)
        if fault not in self.faults:
            self.faults.append(fault)

    def has(self, parameter: Parameter) -> bool:
        """Is the parameter there, right or wrong?"""
        return parameter.name in self._query

    def one(self, parameter: Parameter, parse: Callable[[str], T]) -> T | None:
        """The value, or None when it is absent or faulty."""
        given = self._query.getall(parameter.name, [])
        if len(given) > 1:
            self.fault(parameter.name, "must be given once")
            return None
        if not given:
            if parameter.required:
                self.fault(parameter.name, "is required")
            return None
        return self._parsed(parameter, parse, given[0])

    def many(self, parameter: Parameter, parse: Callable[[str], T]) -> tuple[T, ...]:
        """The distinct values in order, without the faulty ones."""
        found = (self._parsed(parameter, parse, text) for text in self._query.getall(parameter.name, []))
        return tuple(sorted({value for value in found if value is not None}))  # type: ignore[type-var]

    def all(self, parameter: Parameter, parse: Callable[[list[str]], T]) -> T | None:
        """What all the values mean together."""
        given = self._query.getall(parameter.name, [])
        return self._parsed(parameter, parse, given) if given else None

    def finish(self) -> None:
        """Raises `Problem` 400 with every fault, if there are any."""
        if self.faults:
            raise invalid_parameters(self.faults)

    def _parsed(self, parameter: Parameter, parse: Callable[[Any], T], given: Any) -> T | None:
        try:
            return parse(given)
        except ValueError as error:
            self.fault(parameter.name, str(error))
            return None


# --- parsers of one value: each raises ValueError, whose text says what is expected ---


def instant(text: str) -> int:
    """An RFC 3339 time, as microseconds since 1970 UTC. What is finer counts as a whole microsecond."""
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError("expected an RFC 3339 time with an offset, such as 2026-11-01T00:00:00Z")
    day, hour_minute, seconds, fraction, offset = match.groups()
    offset = "+00:00" if offset in "Zz" else offset.replace(" ", "+")
    try:
        at = datetime.fromisoformat(f"{day}T{hour_minute}:{seconds}{offset}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time in the calendar") from None
    digits = fraction or ""
    finer = bool(digits[6:].strip("0"))
    return (at - _EPOCH) // _SECOND * 1_000_000 + min(int(digits[:6].ljust(6, "0")) + finer, 999_999)


def whole_minute(text: str) -> int:
    """An RFC 3339 time without seconds, as minutes since 1970 UTC."""
    minute, rest = divmod(instant(text), MINUTE_US)
    if rest:
        raise ValueError("must be a whole minute: figures are kept by the minute")
    return minute


def one_of(choices: type[E]) -> Callable[[str], E]:
    """The parser of a word that is one of an enumeration."""

    def choice(text: str) -> E:
        try:
            return choices(text)
        except ValueError:
            raise ValueError(f"expected one of {', '.join(choices)}") from None

    return choice


def word_of(words: Sequence[str]) -> Callable[[str], str]:
    """The parser of one of some words."""

    def word(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return text

    return word


price_kind: Final = word_of(KINDS)
service_tier: Final = word_of(wire.SERVICE_TIERS)
export_status: Final = word_of(EXPORT_STATUSES)


def text_up_to(length_max: int) -> Callable[[str], str]:
    """The parser of a text of at most so many characters."""

    def text(given: str) -> str:
        if len(given) > length_max or not wire.is_storable(given):
            raise ValueError(f"must be at most {length_max} characters of Unicode text, without NUL")
        return given

    return text


def boolean(text: str) -> bool:
    """true or false."""
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def version(text: str) -> int:
    """A version of the price book."""
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or int(text) > VERSION_MAX:
        raise ValueError("expected a version of the price book: a whole number, 0 or more")
    return int(text)


def zone(text: str) -> ZoneInfo:
    """A time zone by its IANA name."""
    if text not in zone_names():
        raise ValueError("expected an IANA time zone such as Europe/Berlin")
    return ZoneInfo(text)


def client_id(text: str) -> str:
    """A client's id; empty for the events without a client."""
    return _text(text, wire.CLIENT_ID_CHARS_MAX, wire.OVERFLOW_CLIENT)


def dimension(text: str) -> tuple[str, str]:
    """The name of a dimension, and one of its values; empty for the events without a value."""
    name, colon, value = text.partition(":")
    if not colon or not _DIMENSION.fullmatch(name):
        raise ValueError("expected the name of a dimension, a colon and a value, such as team:search")
    return name, _text(value, wire.VALUE_CHARS_MAX, wire.OVERFLOW_VALUE)


def _text(text: str, chars_max: int, overflow: str) -> str:
    """A text that rows can hold: of at most ``chars_max`` characters, or the name of the overflow."""
    if len(text) > chars_max and text != overflow:
        raise ValueError(f"must be at most {chars_max} characters")
    if not wire.is_storable(text):
        raise ValueError("must be Unicode text without the character NUL")
    return text


def group_by(values: list[str]) -> frozenset[str]:
    """What a series is split by: `MODEL`, `CLIENT` or a dimension, `MODEL` and one of these, or nothing."""
    words = [word for value in values for word in value.split(",")]
    groups = frozenset(words)
    if not all(map(_DIMENSION.fullmatch, groups)) or ("none" in groups and len(groups) > 1):
        raise ValueError("expected model, client or a dimension, model and one of these, or none alone")
    if len(groups - {MODEL}) > 1:
        raise ValueError(ONE_DIMENSION)
    return groups - {"none"}


ONE_DIMENSION: Final = (
    "client and each dimension are counted apart, so figures can be asked for one of them at a time"
)


def limit_up_to(maximum: int) -> Callable[[str], int]:
    """The parser of a page's length from 1 to ``maximum``."""

    def limit(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 1 <= int(text) <= maximum:
            raise ValueError(f"expected a whole number from 1 to {maximum}")
        return int(text)

    return limit


def number(text: str) -> int:
    """A time in whole seconds since 1970."""
    if not re.fullmatch(r"\d{1,11}", text, re.ASCII):
        raise ValueError("expected a whole number of seconds since 1970")
    return int(text)
