"""Query parameters: text in, typed questions out, every fault at once.

A question that leaves this module can be answered: its range is whole minutes, within the limits, and the
rows that it needs are still kept. The tables of `Parameter` are also what the OpenAPI document is made from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from multidict import MultiMapping

from api.buckets import (
    DAY,
    Calendar,
    Granularity,
    Span,
    add_months,
    minute_edges,
    to_datetime,
    to_minute,
    zone_names,
)
from api.config import RangeConfig
from api.cursors import CursorError, Cursors
from api.problems import Fault, invalid_parameters

LIMIT_DEFAULT: Final = 1000
LIMIT_MAX: Final = 10_000
MONTHS_MAX: Final = 13
CLIENT_ID_CHARS_MAX: Final = 128
MODEL: Final = "model"
CLIENT: Final = "client"

T = TypeVar("T")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
# An offset's + that was not escaped arrives as a space; no other reading of it is possible.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+\- ](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A query parameter as the document shows it; ``schema`` is JSON Schema of a value, or of all of them."""

    name: str
    help: str
    schema: dict[str, Any]
    required: bool = False
    repeatable: bool = False


_TIME_SCHEMA: Final = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:00(\.0+)?(Z|[+-]\d\d:\d\d)$",
}
_UUID_SCHEMA: Final = {"type": "string", "format": "uuid"}

START = Parameter(
    name="start",
    help="First instant of the range, a whole minute. It need not be the edge of a bucket: figures cover"
    " exactly [start, end).",
    schema=_TIME_SCHEMA,
    required=True,
)
END = Parameter(
    name="end",
    help=f"End of the range, not included; a whole minute, at most {MONTHS_MAX} months after start (24 hours"
    " for granularity=minute).",
    schema=_TIME_SCHEMA,
    required=True,
)
GRANULARITY = Parameter(
    name="granularity",
    help="Length of a bucket. Minutes and hours are those of UTC; days and months are local to timeZone.",
    schema={"type": "string", "enum": [g.value for g in Granularity], "default": "day"},
)
MODEL_ID = Parameter(name="modelId", help="Only these models.", schema=_UUID_SCHEMA, repeatable=True)
CLIENT_ID = Parameter(
    name="clientId",
    help="Only these clients, from the hour grain up; an empty value means events without a client.",
    schema={"type": "string", "maxLength": CLIENT_ID_CHARS_MAX},
    repeatable=True,
)
GROUP_BY = Parameter(
    name="groupBy",
    help="What the series is split by: model, client (from the hour grain up), both (repeated or with a"
    " comma), or none.",
    schema={
        "anyOf": [
            {"type": "array", "items": {"enum": [MODEL, CLIENT]}, "minItems": 1, "uniqueItems": True},
            {"const": ["none"]},
        ],
        "default": [MODEL],
    },
    repeatable=True,
)
TIME_ZONE = Parameter(
    name="timeZone",
    help="IANA name. In zones off the whole hour the edges of a day take minute rows.",
    schema={"type": "string", "default": "UTC"},
)
LIMIT = Parameter(
    name="limit",
    help="Most items of a page.",
    schema={"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
)
CURSOR = Parameter(
    name="cursor",
    help="nextCursor of the page before, with all other parameters but limit the same.",
    schema={"type": "string"},
)

FIGURES: Final = (START, END, GRANULARITY, MODEL_ID, CLIENT_ID, GROUP_BY, TIME_ZONE, LIMIT, CURSOR)
ORGS: Final = (START, END, LIMIT, CURSOR)
LISTING: Final = (LIMIT, CURSOR)
NONE: Final = ()


@dataclass(frozen=True, slots=True)
class Position:
    """The last point of a page: what the next page comes after. Ungrouped keys are None."""

    bucket: int
    model_id: UUID | None
    client_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FiguresQuestion:
    """Usage or reliability of one org. ``client_ids`` may hold '' for events without a client."""

    org_id: UUID
    span: Span
    calendar: Calendar
    model_ids: tuple[UUID, ...]
    client_ids: tuple[str, ...]
    by_model: bool
    by_client: bool
    limit: int
    after: Position | None
    bound_to: str

    @property
    def needs_clients(self) -> bool:
        return self.by_client or bool(self.client_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgsQuestion:
    span: Span
    limit: int
    after: UUID | None
    bound_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingQuestion:
    """A page of what an org has; ``after`` is a model's id or a client's."""

    limit: int
    after: Any
    bound_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """Makes questions of query strings. ``clock`` decides which rows are still kept."""

    ranges: RangeConfig
    cursors: Cursors
    clock: Callable[[], datetime]

    def figures(self, route: str, org_id: UUID, query: MultiMapping[str]) -> FiguresQuestion:
        """Raises `Problem` 400 with every fault, like all of these."""
        reader = _Reader(query, FIGURES)
        start, end = reader.one(START, whole_minute), reader.one(END, whole_minute)
        granularity = reader.one(GRANULARITY, _granularity) or Granularity.DAY
        zone = reader.one(TIME_ZONE, _zone) or ZoneInfo("UTC")
        model_ids = reader.many(MODEL_ID, uuid)
        client_ids = reader.many(CLIENT_ID, _client_id)
        group_by = reader.all(GROUP_BY, _group_by)
        groups = frozenset((MODEL,)) if group_by is None else group_by
        limit = reader.one(LIMIT, _limit) or LIMIT_DEFAULT
        calendar = Calendar(granularity, zone)
        by_client = CLIENT in groups or bool(client_ids)
        span = self._span(reader, start, end, zone)
        if by_client and granularity is Granularity.MINUTE:
            for parameter in (GROUP_BY,) * (CLIENT in groups) + (CLIENT_ID,) * bool(client_ids):
                reader.fault(parameter.name, "figures by client exist from the hour grain up, not by minute")
        elif span:
            self._check_rows_exist(reader, span, calendar, by_client=by_client)
        bound_to = "|".join(
            (
                route,
                str(org_id),
                repr((start, end, granularity.value, zone.key, sorted(groups))),
                repr((model_ids, client_ids)),
            )
        )
        position = self._after(reader, bound_to, tuple[int, UUID | None, str | None])
        reader.finish()
        assert span is not None
        return FiguresQuestion(
            org_id=org_id,
            span=span,
            calendar=calendar,
            model_ids=model_ids,
            client_ids=client_ids,
            by_model=MODEL in groups,
            by_client=CLIENT in groups,
            limit=limit,
            after=Position(*position) if position else None,
            bound_to=bound_to,
        )

    def orgs(self, query: MultiMapping[str]) -> OrgsQuestion:
        reader = _Reader(query, ORGS)
        start, end = reader.one(START, whole_minute), reader.one(END, whole_minute)
        limit = reader.one(LIMIT, _limit) or LIMIT_DEFAULT
        zone = ZoneInfo("UTC")
        span = self._span(reader, start, end, zone)
        if span:
            self._check_rows_exist(reader, span, Calendar(Granularity.DAY, zone), by_client=False)
        bound_to = f"orgs|{start}|{end}"
        after = self._after(reader, bound_to, UUID)
        reader.finish()
        assert span is not None
        return OrgsQuestion(span=span, limit=limit, after=after, bound_to=bound_to)

    def listing(self, route: str, org_id: UUID, query: MultiMapping[str], key: type) -> ListingQuestion:
        reader = _Reader(query, LISTING)
        limit = reader.one(LIMIT, _limit) or LIMIT_DEFAULT
        bound_to = f"{route}|{org_id}"
        after = self._after(reader, bound_to, key)
        reader.finish()
        return ListingQuestion(limit=limit, after=after, bound_to=bound_to)

    def nothing(self, query: MultiMapping[str]) -> None:
        """For routes without parameters: all are unknown."""
        _Reader(query, NONE).finish()

    def _span(self, reader: _Reader, start: int | None, end: int | None, zone: ZoneInfo) -> Span | None:
        if start is None or end is None:
            return None
        if end <= start:
            reader.fault("end", "must be after start")
            return None
        try:
            latest = add_months(start, MONTHS_MAX, zone)
        except (ValueError, OverflowError):
            reader.fault("start", "is beyond the calendar")
            return None
        if end > latest:
            reader.fault("end", f"must be at most {MONTHS_MAX} months after start")
            return None
        oldest = to_minute(self.clock()) - int(self.ranges.retention_rollup_s // 60)
        if start < oldest:
            reader.fault(
                "start",
                f"hour and day rows go back to {_shown(oldest)} only (RETENTION_ROLLUP)",
            )
            return None
        return Span(start, end)

    def _check_rows_exist(self, reader: _Reader, span: Span, calendar: Calendar, *, by_client: bool) -> None:
        """Minute rows are kept for a shorter time than the others, and not by client at all."""
        if calendar.granularity is Granularity.MINUTE and span.end - span.start > DAY:
            reader.fault("end", "must be at most 24 hours after start for granularity=minute")
            return
        oldest = to_minute(self.clock()) - int(self.ranges.retention_minute_s // 60)
        for name, part in minute_edges(span, calendar):
            if by_client:
                reader.fault(name, _NO_CLIENT_MINUTES[name])
            elif part.start < oldest:
                reader.fault(name, _TOO_OLD[name].format(oldest=_shown(oldest)))

    def _after(self, reader: _Reader, bound_to: str, form: type[T]) -> T | None:
        if reader.faults:  # the cursor is bound to parameters that are not known now
            reader.one(CURSOR, str)
            return None

        def opened(text: str) -> T:
            try:
                return self.cursors.open(text, bound_to, form)
            except CursorError:
                raise ValueError(
                    "was not given out for this org and these parameters, or is no longer valid; start over"
                    " without it"
                ) from None

        return reader.one(CURSOR, opened)


_NO_CLIENT_MINUTES: Final = {
    "start": "must be a whole hour, since figures by client exist from the hour grain up",
    "end": "must be a whole hour, since figures by client exist from the hour grain up",
    "timeZone": "its days do not begin on whole hours of UTC, and figures by client exist from the hour grain"
    " up",
}
_TOO_OLD: Final = {
    "granularity": "minute rows go back to {oldest} only; start later or take granularity=hour",
    "start": "minute rows go back to {oldest} only; before that it must be a whole hour of UTC",
    "end": "minute rows go back to {oldest} only; before that it must be a whole hour of UTC",
    "timeZone": "its days do not begin on whole hours of UTC, which takes minute rows, and those go back to"
    " {oldest} only; start later or take another zone",
}


def _shown(minute: int) -> str:
    return to_datetime(minute).strftime("%Y-%m-%dT%H:%MZ")


class _Reader:
    """One query string. Faults gather here and are raised together, each once."""

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
        if self.faults:
            raise invalid_parameters(self.faults)

    def _parsed(self, parameter: Parameter, parse: Callable[[Any], T], given: Any) -> T | None:
        try:
            return parse(given)
        except ValueError as error:
            self.fault(parameter.name, str(error))
            return None


# --- parsers: ValueError says what is expected ---


def uuid(text: str) -> UUID:
    """The canonical form only: one org has one spelling in logs, caches and signatures."""
    if not _UUID.fullmatch(text):
        raise ValueError("expected a UUID such as 123e4567-e89b-42d3-a456-426614174000")
    return UUID(text)


def whole_minute(text: str) -> int:
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError("expected an RFC 3339 time with an offset, such as 2026-11-01T00:00:00Z")
    day, hour_minute, seconds, fraction, offset = match.groups()
    offset = "+00:00" if offset in "Zz" else offset.replace(" ", "+")
    try:
        at = datetime.fromisoformat(f"{day}T{hour_minute}:{seconds}{offset}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time in the calendar") from None
    if at.second or (fraction and fraction.strip("0")):
        raise ValueError("must be a whole minute: figures are kept by the minute")
    return to_minute(at)


def _granularity(text: str) -> Granularity:
    try:
        return Granularity(text)
    except ValueError:
        raise ValueError(f"expected one of {', '.join(Granularity)}") from None


def _zone(text: str) -> ZoneInfo:
    if text not in zone_names():
        raise ValueError("expected an IANA time zone such as Europe/Berlin")
    return ZoneInfo(text)


def _client_id(text: str) -> str:
    if len(text) > CLIENT_ID_CHARS_MAX:
        raise ValueError(f"must be at most {CLIENT_ID_CHARS_MAX} characters")
    if not _is_text(text):
        raise ValueError("must be Unicode text without the character NUL")
    return text


def _is_text(text: str) -> bool:
    """Can PostgreSQL hold it?"""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _group_by(values: list[str]) -> frozenset[str]:
    words = [word for value in values for word in value.split(",")]
    groups = frozenset(words)
    if not groups <= {MODEL, CLIENT, "none"} or ("none" in groups and len(groups) > 1):
        raise ValueError("expected model, client, both, or none alone")
    return groups - {"none"}


def _limit(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 1 <= int(text) <= LIMIT_MAX:
        raise ValueError(f"expected a whole number from 1 to {LIMIT_MAX}")
    return int(text)
