"""Time zones whose days begin off the whole hour of UTC: which hours of the day their midnights split.

For example, the days of Asia/Kolkata begin at 18:30, and those of Asia/Kathmandu at 18:15. Both split the
hour from 18:00. The days of Australia/Lord_Howe begin at 13:00 or 13:30, by the season, so they split the
hour from 13:00. Zones on the whole hour split none.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

ZONES_MAX: Final = 4
_FIRST: Final = date(2020, 1, 1)
_LAST: Final = date(2045, 1, 1)
"""The days that are looked at. Rows are kept for months, so no older day can be asked for."""
_QUARTER_MINUTES: Final = 15


@cache
def zone_names() -> frozenset[str]:
    """The IANA names that we take. ``localtime`` and its like are left out: they differ by machine."""
    return frozenset(zoneinfo.available_timezones() - {"localtime", "posixrules", "Factory"})


def parse(text: str) -> tuple[str, ...]:
    """Read ``Asia/Kolkata,Asia/Kathmandu``. Raises ValueError with every fault, by place."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    faults = list(_faults(names))
    if faults:
        raise ValueError("; ".join(faults))
    return names


def _faults(names: tuple[str, ...]) -> Iterator[str]:
    if len(names) > ZONES_MAX:
        yield f"expected at most {ZONES_MAX} time zones"
        return
    for place, name in enumerate(names, start=1):
        if name not in zone_names():
            yield f"entry {place}: expected an IANA time zone such as Asia/Kolkata"
        elif any(at.second or at.minute % _QUARTER_MINUTES for at in _midnights(name)):
            yield f"entry {place}: its days do not begin on quarters of an hour"


@cache
def split_hours(names: Iterable[str]) -> tuple[int, ...]:
    """The hours of the day of UTC (0 to 23, ascending) in which a day of the zones begins off the hour."""
    return tuple(sorted({at.hour for name in names for at in _midnights(name) if at.minute}))


@cache
def _midnights(name: str) -> frozenset[datetime]:
    """The first instants of all local days, in UTC, reduced to their time of day."""
    zone = ZoneInfo(name)
    days = (_FIRST + timedelta(days=n) for n in range((_LAST - _FIRST).days))
    starts = (datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC) for day in days)
    return frozenset(start.replace(year=2000, month=1, day=1) for start in starts)
