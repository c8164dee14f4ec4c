"""Calendar: which buckets a range falls into, and which rollup rows cover it exactly.

Everything here is whole minutes since 1970 UTC, ranges are [start, end), and there is no clock and no SQL.
Minute and hour buckets are those of UTC, whatever the time zone. Days, weeks and months are local: a day may
have 23 or 25 hours, and in a zone that is off the whole hour the edges of a day need minute rows. A week
begins on Monday.

A *piece* is a run of rows of one grain. The pieces of a range never overlap and leave nothing out, so sums
over them are exact. For example, the range from 22:30 on Monday to 02:00 on Wednesday, in UTC: minute rows to
23:00, an hour row to midnight, the day row of Tuesday, and hour rows to 02:00. Some hours have rows by the
quarter, for zones that are off the hour (DAY_ZONES): there, two quarters can take the place of 30 minutes. If
a price changes at 07:00 on Tuesday, then the hour rows of Tuesday stand in the place of its day row, so that
each row has one price.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

QUARTER: Final = 15
HOUR: Final = 60
DAY: Final = 1440

UTC_ZONE: Final = ZoneInfo("UTC")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE: Final = timedelta(minutes=1)


class Granularity(StrEnum):
    """The length of a bucket in an answer."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Last(StrEnum):
    """A range that ends now."""

    HOUR = "1h"
    DAY = "24h"
    WEEK = "7d"
    DAYS_30 = "30d"
    MONTH_TO_DATE = "mtd"

    def span(self, now: int, zone: ZoneInfo, *, whole_hours: bool) -> Span:
        """The range at the minute ``now``, which is its last minute.

        Ranges of more than a day begin on the whole hour before, because old minutes are not kept. With
        ``whole_hours`` a range also ends on a whole hour. At 12:34, ``1h`` is 11:35 to 12:35, and with whole
        hours 11:00 to 13:00; ``7d`` is 12:00 seven days ago to 12:35. A month begins at its midnight.
        """
        end = now + 1
        minutes = {Last.HOUR: HOUR, Last.DAY: DAY, Last.WEEK: 7 * DAY, Last.DAYS_30: 30 * DAY}.get(self)
        if minutes is None:
            start = Calendar(Granularity.MONTH, zone).start_of(now)
        else:
            start = end - minutes
            if whole_hours or minutes > DAY:
                start -= start % HOUR
        return Span(start, end + -end % HOUR if whole_hours else end)


class Grain(StrEnum):
    """The length of a bucket in the database."""

    MINUTE = "minute"
    QUARTER = "quarter"
    HOUR = "hour"
    DAY = "day"

    @property
    def minutes(self) -> int:
        return {"minute": 1, "quarter": QUARTER, "hour": HOUR, "day": DAY}[self.value]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """[start, end) in minutes since 1970 UTC."""

    start: int
    end: int


def to_datetime(minute: int) -> datetime:
    return _EPOCH + minute * _MINUTE


def to_minute(at: datetime) -> int:
    """The minute that ``at`` lies in."""
    return (at - _EPOCH) // _MINUTE


def add_months(minute: int, months: int, zone: ZoneInfo) -> int:
    """The same local time ``months`` later, on the month's last day where that day does not exist."""
    local = to_datetime(minute).astimezone(zone).replace(tzinfo=None)
    index = local.year * 12 + local.month - 1 + months
    first = date(index // 12, index % 12 + 1, 1)
    days = (_next_month(first) - first).days
    later = datetime.combine(first.replace(day=min(local.day, days)), local.time())
    return to_minute(later.replace(tzinfo=zone).astimezone(UTC))


def add_days(minute: int, days: int, zone: ZoneInfo) -> int:
    """The same local time ``days`` later."""
    local = to_datetime(minute).astimezone(zone).replace(tzinfo=None) + timedelta(days=days)
    return to_minute(local.replace(tzinfo=zone).astimezone(UTC))


def _next_month(day: date) -> date:
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


# --- buckets -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calendar:
    """The buckets of one granularity in one time zone."""

    granularity: Granularity
    zone: ZoneInfo

    def start_of(self, minute: int) -> int:
        """Start of the bucket that holds this minute."""
        if self._fixed_minutes:
            return minute - minute % self._fixed_minutes
        return self._local_midnight(self._first_day(minute))

    def end_of(self, bucket_start: int) -> int:
        """End of the bucket that starts here."""
        if self._fixed_minutes:
            return bucket_start + self._fixed_minutes
        day = self._after(self._first_day(bucket_start))
        while (end := self._local_midnight(day)) <= bucket_start:  # a day that its zone skipped (Apia, 2011)
            day = self._after(day)
        return end

    def edges(self, span: Span) -> list[int]:
        """The starts of all buckets that the span touches, and the end of the last bucket."""
        edges = [self.start_of(span.start)]
        if size := self._fixed_minutes:
            last = edges[0] - (edges[0] - span.end) // size * size
            return list(range(edges[0], last + 1, size))
        while edges[-1] < span.end:
            edges.append(self.end_of(edges[-1]))
        return edges

    @property
    def _fixed_minutes(self) -> int:
        if self.granularity is Granularity.DAY and self.zone.key == "UTC":
            return DAY
        return {Granularity.MINUTE: 1, Granularity.HOUR: HOUR}.get(self.granularity, 0)

    def _first_day(self, minute: int) -> date:
        day = to_datetime(minute).astimezone(self.zone).date()
        if self.granularity is Granularity.MONTH:
            return day.replace(day=1)
        return day - timedelta(days=day.weekday()) if self.granularity is Granularity.WEEK else day

    def _after(self, day: date) -> date:
        if self.granularity is Granularity.MONTH:
            return _next_month(day)
        return day + timedelta(days=7 if self.granularity is Granularity.WEEK else 1)

    def _local_midnight(self, day: date) -> int:
        # fold=0: the first of two midnights; of a midnight that the clock skips, the instant of the skip.
        return to_minute(datetime(day.year, day.month, day.day, tzinfo=self.zone).astimezone(UTC))


# --- pieces ------------------------------------------------------------------------------------

_FINER: Final = {Grain.DAY: Grain.HOUR, Grain.HOUR: Grain.MINUTE}


@dataclass(frozen=True, slots=True)
class Quarters:
    """Which hours have rows by the quarter: for some hours of the day of UTC, those since a minute."""

    since: Mapping[int, int]

    def cover(self, span: Span) -> bool:
        """Are there rows for the span, and do they begin and end where the span does?"""
        since = self.kept_since(span)
        return since is not None and since <= span.start - span.start % HOUR

    def kept_since(self, span: Span) -> int | None:
        """From which minute on spans at these times of the day have rows that begin and end where they do.

        None: there are no such rows.
        """
        hours = {hour % 24 for hour in range(span.start // HOUR, -(-span.end // HOUR))}
        if span.start % QUARTER or span.end % QUARTER or not hours <= self.since.keys():
            return None
        return max(self.since[hour] for hour in hours)


NO_QUARTERS: Final = Quarters({})


def cover(
    span: Span,
    coarsest: Grain = Grain.DAY,
    moments: Collection[int] = (),
    quarters: Quarters = NO_QUARTERS,
) -> list[tuple[Grain, Span]]:
    """The pieces of a span in order of time, each of the coarsest grain that fits.

    ``moments`` are the whole hours at which prices change: no day row has one inside. ``quarters`` says where
    rows of quarters can take the place of minute rows.
    """
    if span.start >= span.end:
        return []
    if coarsest is Grain.MINUTE:
        return [(Grain.QUARTER if quarters.cover(span) else Grain.MINUTE, span)]
    size, finer = coarsest.minutes, _FINER[coarsest]
    first, last = -(-span.start // size) * size, span.end // size * size
    if first >= last:
        return cover(span, finer, quarters=quarters)
    whole = Span(first, last)
    return [
        *cover(Span(span.start, first), finer, quarters=quarters),
        *(_days(whole, moments) if coarsest is Grain.DAY else [(coarsest, whole)]),
        *cover(Span(last, span.end), finer, quarters=quarters),
    ]


def _days(whole: Span, moments: Collection[int]) -> Iterator[tuple[Grain, Span]]:
    """The day rows of some whole days, and the hour rows of those days that have a moment inside."""
    at = whole.start
    for day in sorted({moment - moment % DAY for moment in moments if moment % DAY}):
        if not at <= day < whole.end:
            continue
        if at < day:
            yield Grain.DAY, Span(at, day)
        at = day + DAY
        yield Grain.HOUR, Span(day, at)
    if at < whole.end:
        yield Grain.DAY, Span(at, whole.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Rows of one grain to read, and how they fall into buckets.

    ``buckets`` are the starts of the buckets that the spans touch; None when each row is a bucket of its own,
    as in ``usage_day`` for the days of UTC.
    """

    grain: Grain
    spans: tuple[Span, ...]
    buckets: tuple[int, ...] | None


def series_pieces(
    span: Span, calendar: Calendar, moments: Collection[int] = (), quarters: Quarters = NO_QUARTERS
) -> list[tuple[Grain, Span]]:
    """The pieces of a span in order of time, if prices change at these moments (see `cover`).

    A piece lies in one bucket, or its rows are buckets of their own. The edges of a short span are the
    exception: the minutes from 10:30 to 11:15 lie in two hours.
    """
    if calendar.granularity is Granularity.MINUTE:
        return [(Grain.MINUTE, span)]
    if calendar.granularity is Granularity.HOUR:
        return cover(span, Grain.HOUR, quarters=quarters)
    if calendar.granularity is Granularity.DAY and calendar.zone.key == "UTC":
        return cover(span, moments=moments, quarters=quarters)
    edges = calendar.edges(span)
    return [
        piece
        for a, b in pairwise(edges)
        for piece in cover(_clip(Span(a, b), span), moments=moments, quarters=quarters)
    ]


def series_plan(
    span: Span, calendar: Calendar, moments: Collection[int] = (), quarters: Quarters = NO_QUARTERS
) -> list[Branch]:
    """What to read for the buckets of a span, if prices change at these moments (see `cover`)."""
    if calendar.granularity is Granularity.MINUTE:
        return [Branch(grain=Grain.MINUTE, spans=(span,), buckets=None)]
    edges = None if calendar.granularity is Granularity.HOUR else calendar.edges(span)
    return [
        Branch(grain=grain, spans=spans, buckets=_buckets(grain, spans, calendar, edges))
        for grain, spans in _grouped(series_pieces(span, calendar, moments, quarters))
    ]


def totals_plan(span: Span, moments: Collection[int] = (), quarters: Quarters = NO_QUARTERS) -> list[Branch]:
    """The branches to read for one figure over the whole span, with the fewest rows."""
    found = _grouped(cover(span, moments=moments, quarters=quarters))
    return [Branch(grain=grain, spans=spans, buckets=(span.start,)) for grain, spans in found]


def minute_edges(
    span: Span, calendar: Calendar, quarters: Quarters = NO_QUARTERS
) -> Iterator[tuple[str, Span]]:
    """The spans of minute rows that a span needs, each with the parameter that makes them necessary."""
    if calendar.granularity is Granularity.MINUTE:
        yield "granularity", span
        return
    edges = set() if calendar.granularity is Granularity.HOUR else set(calendar.edges(span))
    odd_zone = any(edge % HOUR for edge in edges)
    for branch in series_plan(span, calendar, quarters=quarters):
        for part in branch.spans if branch.grain is Grain.MINUTE else ():
            if part.start == span.start and span.start % HOUR and span.start not in edges:
                yield "start", part
            if part.end == span.end and span.end % HOUR and span.end not in edges:
                yield "end", part
            if odd_zone:
                yield "timeZone", part


def _clip(span: Span, to: Span) -> Span:
    return Span(max(span.start, to.start), min(span.end, to.end))


def _grouped(found: Sequence[tuple[Grain, Span]]) -> Iterator[tuple[Grain, tuple[Span, ...]]]:
    """The pieces of each grain, as the spans of branches. Pieces that touch are joined into one span.

    Two spans, which are the edges of a range, become two branches: a query over both would read what lies
    between them. More than two spans become one branch, to keep the number of branches small.
    """
    for grain in Grain:
        runs: list[Span] = []
        for found_grain, span in found:
            if found_grain is not grain:
                continue
            if runs and runs[-1].end == span.start:
                runs[-1] = Span(runs[-1].start, span.end)
            else:
                runs.append(span)
        if len(runs) <= 2:
            yield from ((grain, (run,)) for run in runs)
        else:
            yield grain, tuple(runs)


def _buckets(
    grain: Grain, spans: tuple[Span, ...], calendar: Calendar, edges: Sequence[int] | None
) -> tuple[int, ...] | None:
    first, end = spans[0].start, spans[-1].end
    if edges is None:  # hours: a row of an hour is its bucket; the minutes of an edge touch two hours at most
        return None if grain is Grain.HOUR else tuple(range(calendar.start_of(first), end, HOUR))
    touched = tuple(edges[bisect_right(edges, first) - 1 : bisect_right(edges, end - 1)])
    own = calendar.granularity is Granularity.DAY and grain is Grain.DAY
    return None if own and touched == tuple(range(first, end, DAY)) else touched
