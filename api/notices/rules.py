"""The rules of notices: pure, without a clock and without a database. Times are minutes since 1970 UTC.

An hour is *unusual* if it cost at least the org's minimum, and more than a factor times what is usual. What
is usual is the most that an hour cost at this time of the week, in the four weeks before. An hour counts
with the hours beside it, because a job that begins ten minutes later moves into the next hour, and clocks
change twice a year.

For example, an org's Mondays at 09:00 cost 4, 5, 4 and 6 dollars, and those at 08:00 and 10:00 less. With a
factor of 3 an hour of 18 dollars is not unusual, and one of 18.01 dollars is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from api.asking.buckets import DAY, HOUR, UTC_ZONE, Calendar, Granularity, Span, to_datetime, to_minute

WEEK: Final = 7 * DAY
WEEKS: Final = 4
WEEKS_MIN: Final = 2
"""With fewer weeks of history nobody can tell what is usual."""
BESIDE: Final = HOUR
"""How far the hours beside an hour reach."""
AGAIN: Final = DAY
"""An hour is judged again for so long, because late events and prices change what it cost."""
CATCH_UP_DAYS: Final = 7
"""How far a look goes back after a pause."""
FACTOR_MAX: Final = 1000
FACTOR_DECIMALS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """When an org wants to be told of an hour. ``minimum`` is in US dollars."""

    enabled: bool = False
    factor: Decimal = Decimal(3)
    minimum: Decimal = Decimal(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Whether an org wants a summary of each day, and whose days they are."""

    enabled: bool = False
    zone: ZoneInfo = UTC_ZONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an org asks for."""

    unusual: Unusual
    summary: Summary


NOTHING: Final = Asked(unusual=Unusual(), summary=Summary())


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an org asks for, as it is kept. The times: see ``sql.schema.notices``."""

    org_id: UUID
    version: int
    asked: Asked
    unusual_since: datetime
    unusual_to: datetime | None
    summary_since: datetime
    summary_to: datetime | None
    updated_at: datetime


# --- unusual spend ---


def hours_due(since: datetime, judged_to: datetime | None, watermark: datetime) -> Span:
    """The hours to judge: whole ones that the watermark has passed.

    They are those that were not judged yet, and those of the last day, which are judged again.
    """
    end = _hour_of(to_minute(watermark))
    judged = _hour_of(to_minute(judged_to or since))
    start = max(min(end - AGAIN, judged), end - CATCH_UP_DAYS * DAY, _hour_of(to_minute(since)))
    return Span(min(end, start), end)


def hours_read(due: Span) -> Sequence[Span]:
    """What must be read to judge these hours, in order of time: they, and the same hours of the weeks before
    with those beside them. Spans that touch are one."""
    before = [
        Span(due.start - week * WEEK - BESIDE, due.end - week * WEEK + BESIDE) for week in range(WEEKS, 0, -1)
    ]
    found = before[:1]
    for span in (*before[1:], due):
        if span.start <= found[-1].end:
            found[-1] = Span(found[-1].start, span.end)
        else:
            found.append(span)
    return found


@dataclass(frozen=True, slots=True)
class WeekBefore:
    """The dearest hour about the same time of a week before: when it began, and what it cost in units."""

    hour: int
    units: int


def weeks_before(hour: int, spent: Mapping[int, int], known_from: int) -> Sequence[WeekBefore]:
    """What is to be compared with the hour, the newest week first.

    ``spent`` has the units of hours, and an hour without calls is absent. Hours that begin before
    ``known_from`` say nothing: the org had no events yet, or their rows are kept no more.
    """
    found = []
    for week in range(1, WEEKS + 1):
        middle = hour - week * WEEK
        if middle - BESIDE < known_from:
            break
        hours = range(middle - BESIDE, middle + BESIDE + 1, HOUR)
        dearest = max(hours, key=lambda at: (spent.get(at, 0), -abs(at - middle)))
        found.append(WeekBefore(dearest, spent.get(dearest, 0)))
    return found


def usual(weeks: Sequence[WeekBefore]) -> int | None:
    """What an hour may cost without being unusual, before the factor. None: there is too little history."""
    if len(weeks) < WEEKS_MIN:
        return None
    return max(week.units for week in weeks)


def is_unusual(units: int, weeks: Sequence[WeekBefore], *, factor: Decimal, minimum: int) -> bool:
    """Is an hour far above the same hours of the weeks before? ``minimum`` is in units."""
    most = usual(weeks)
    if most is None or units < minimum:
        return False
    hundredths = int(factor.scaleb(FACTOR_DECIMALS))
    return units * 10**FACTOR_DECIMALS > most * hundredths


def _hour_of(minute: int) -> int:
    return minute - minute % HOUR


# --- daily summaries ---


def days_due(
    zone: ZoneInfo, since: datetime, told_to: datetime | None, watermark: datetime
) -> Sequence[Span]:
    """The days that are complete and have no summary yet, the oldest first; at most `CATCH_UP_DAYS`, the
    newest ones."""
    calendar = Calendar(Granularity.DAY, zone)
    first = calendar.start_of(to_minute(since))
    if told_to is not None:
        first = max(first, to_minute(told_to))
    found: list[Span] = []
    end = calendar.start_of(to_minute(watermark))
    while end > first and len(found) < CATCH_UP_DAYS:
        start = calendar.start_of(end - 1)
        found.append(Span(start, end))
        end = start
    return found[::-1]


def days_compared(zone: ZoneInfo, day: Span) -> Iterator[tuple[str, Span]]:
    """A day, the day before, and the same day of the week before; each by its name."""
    calendar = Calendar(Granularity.DAY, zone)
    yield "day", day
    before = Span(calendar.start_of(day.start - 1), day.start)
    yield "before", before
    earlier = day
    for _ in range(7):
        earlier = Span(calendar.start_of(earlier.start - 1), earlier.start)
    yield "week", earlier


def day_name(zone: ZoneInfo, day: Span) -> str:
    """The date of a day, as the zone has it."""
    return to_datetime(day.start).astimezone(zone).date().isoformat()


def hour_name(hour: int) -> str:
    """An hour of UTC, as the key of its notice has it."""
    return f"{to_datetime(hour):%Y-%m-%dT%H:%MZ}"
