"""Periods of budgets: days, weeks, months, quarters and years of a time zone, in minutes since 1970 UTC.

There is no clock here. Days, weeks and months are those of `api.asking.buckets`. A quarter begins with
January, April, July or October, and a year with January. For example, the day of 29 March 2026 in Berlin has
23 hours, so its quarter has an hour less than the same days in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

from api.asking.buckets import Calendar, Granularity, Span, to_datetime, to_minute

LIST_MAX: Final = 400
"""The most periods that are looked at together: a year of days, and some more."""


class Period(StrEnum):
    """How long a budget lasts before it begins anew."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


_MONTHS: Final = {Period.QUARTER: 3, Period.YEAR: 12}


def span_of(period: Period, zone: ZoneInfo, minute: int) -> Span:
    """The period that holds a minute."""
    months = _MONTHS.get(period)
    if months is None:
        calendar = Calendar(Granularity(period.value), zone)
        start = calendar.start_of(minute)
        return Span(start, calendar.end_of(start))
    local = to_datetime(minute).astimezone(zone).date()
    first = date(local.year, local.month - (local.month - 1) % months, 1)
    return Span(_midnight(first, zone), _midnight(_later(first, months), zone))


def spans_between(period: Period, zone: ZoneInfo, first: int, last: int) -> Iterator[Span]:
    """The periods from the one that holds the minute ``first`` to the one that holds ``last``, in order.

    Of more than `LIST_MAX` periods, the last ones.
    """
    found = [span_of(period, zone, last)]
    while found[-1].start > first and len(found) < LIST_MAX:
        found.append(span_of(period, zone, found[-1].start - 1))
    return reversed(found)


def begins_on_hours(zone: ZoneInfo, now: int) -> bool:
    """Do the days of the zone begin on whole hours of UTC, for the year around the minute ``now``?"""
    first, last = to_datetime(now - 370 * 1440), to_datetime(now + 370 * 1440)
    day = first.date()
    while day <= last.date():
        if _midnight(day, zone) % 60:
            return False
        day += timedelta(days=1)
    return True


def _later(first: date, months: int) -> date:
    month = first.month - 1 + months
    return date(first.year + month // 12, month % 12 + 1, 1)


def _midnight(day: date, zone: ZoneInfo) -> int:
    """The first of two midnights; of a midnight that the clock skips, the instant of the skip."""
    return to_minute(datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC))
