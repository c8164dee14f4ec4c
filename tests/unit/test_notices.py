"""Rules of notices: what is unusual, which hours and days are due, and how often the public traces alarm."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from api.asking.buckets import DAY, HOUR, UTC_ZONE, Span, to_minute
from api.notices import orders, rules
from api.notices.rules import (
    WEEK,
    WEEKS,
    WeekBefore,
    days_compared,
    days_due,
    hours_due,
    hours_read,
    weeks_before,
)
from pipeline.common.problems import Problem
from tests.support.traces import EXCERPTS, NAMES

HERE = Path(__file__)
MONDAY = datetime(2026, 11, 30, tzinfo=UTC)
NINE = to_minute(MONDAY) + 9 * HOUR
FACTOR = rules.Unusual().factor
BERLIN = ZoneInfo("Europe/Berlin")


def history(*mondays: int, hour: int = NINE) -> dict[int, int]:
    """What the same hour of the weeks before cost, the newest week first."""
    return {hour - week * WEEK: units for week, units in enumerate(mondays, 1)}


def unusual(units: int, spent: dict[int, int], *, known_from: int = 0, minimum: int = 1) -> bool:
    weeks = weeks_before(NINE, spent, known_from)
    return rules.is_unusual(units, weeks, factor=FACTOR, minimum=minimum)


def test_an_hour_above_the_factor_times_the_dearest_week_is_unusual() -> None:
    spent = history(4, 5, 4, 6)
    assert not unusual(18, spent)
    assert unusual(19, spent)


def test_a_factor_with_decimals_is_exact() -> None:
    weeks = weeks_before(NINE, history(10**25, 1, 1, 1), 0)
    for more in (0, 1):
        units = 115 * 10**23 + more
        assert rules.is_unusual(units, weeks, factor=Decimal("1.15"), minimum=1) is bool(more)


def test_the_hours_beside_count_too() -> None:
    spent = history(1, 1, 1, 1) | history(9, hour=NINE - HOUR)
    assert not unusual(27, spent)
    assert weeks_before(NINE, spent, 0)[0] == rules.WeekBefore(NINE - HOUR - WEEK, 9)
    assert unusual(27, history(1, 1, 1, 1) | history(9, hour=NINE - 2 * HOUR))


def test_below_the_minimum_nothing_is_unusual() -> None:
    assert not unusual(99, history(1, 1, 1, 1), minimum=100)
    assert unusual(100, history(1, 1, 1, 1), minimum=100)


@pytest.mark.parametrize(("weeks", "said"), [(0, False), (1, False), (2, True), (4, True)])
def test_there_is_no_alarm_without_two_weeks_of_history(weeks: int, said: bool) -> None:
    known_from = NINE - HOUR - weeks * WEEK
    assert unusual(1000, {}, known_from=known_from) is said
    assert len(weeks_before(NINE, {}, known_from)) == weeks
    assert len(weeks_before(NINE, {}, known_from + 1)) == max(0, weeks - 1)


def at(hours: float) -> datetime:
    return MONDAY + timedelta(hours=hours)


@pytest.mark.parametrize(
    ("since", "judged_to", "watermark", "due"),
    [
        (-1000, None, 9.5, (-7 * 24 + 9, 9)),  # as of a week ago
        (-1000, 8, 9.99, (-15, 9)),  # the last day once more
        (-1000, -30, 9, (-30, 9)),  # after a pause
        (-1000, -900, 9, (-7 * 24 + 9, 9)),  # after a long pause
        (7.5, None, 9, (7, 9)),  # since somebody asked for it
        (9.2, None, 9, (9, 9)),
    ],
)
def test_hours_that_are_due(
    since: float, judged_to: float | None, watermark: float, due: tuple[int, int]
) -> None:
    found = hours_due(at(since), None if judged_to is None else at(judged_to), at(watermark))
    assert (found.start, found.end) == (to_minute(at(due[0])), to_minute(at(due[1])))


@pytest.mark.parametrize("hours", [1, 24, 166, 167, 168])
def test_what_is_read_covers_all_that_is_compared_and_nothing_twice(hours: int) -> None:
    due = Span(NINE, NINE + hours * HOUR)
    read = hours_read(due)
    minutes = [hour for span in read for hour in range(span.start, span.end, HOUR)]
    assert len(minutes) == len(set(minutes))
    needed = {
        hour - week * WEEK + beside
        for hour in range(due.start, due.end, HOUR)
        for week in range(1, WEEKS + 1)
        for beside in (-HOUR, 0, HOUR)
    }
    assert set(minutes) >= needed | set(range(due.start, due.end, HOUR))


def test_days_that_are_due_are_those_the_watermark_has_passed() -> None:
    since = at(-26)  # Saturday, 22:00
    assert [rules.day_name(UTC_ZONE, day) for day in days_due(UTC_ZONE, since, None, at(23.9))] == [
        "2026-11-28",
        "2026-11-29",
    ]
    assert [rules.day_name(BERLIN, day) for day in days_due(BERLIN, since, None, at(23.9))] == [
        "2026-11-28",
        "2026-11-29",
        "2026-11-30",
    ]
    assert days_due(UTC_ZONE, since, at(0), at(23.9)) == []
    assert len(days_due(UTC_ZONE, at(-3000), None, at(1))) == rules.CATCH_UP_DAYS
    assert days_due(UTC_ZONE, at(2), None, at(1)) == []


def test_days_of_23_and_25_hours_are_compared_with_those_before() -> None:
    midnight = datetime(2026, 3, 29, tzinfo=BERLIN)
    (day,) = days_due(BERLIN, midnight, None, midnight + timedelta(days=1, minutes=1))
    assert day.end - day.start == 23 * HOUR
    spans = dict(days_compared(BERLIN, day))
    assert spans["day"] == day
    assert spans["before"] == Span(day.start - DAY, day.start)
    assert spans["week"] == Span(day.start - 7 * DAY, day.start - 6 * DAY)
    later = Span(day.start + 7 * DAY - HOUR, day.start + 8 * DAY - HOUR)
    assert dict(days_compared(BERLIN, later))["week"] == day


# --- bodies ---


def faults(given: Any) -> list[str]:
    with pytest.raises(Problem) as caught:
        orders.asked(msgspec.json.encode(given))
    return [fault.field for fault in caught.value.errors]


def test_what_is_absent_is_off() -> None:
    assert orders.asked(b"{}") == rules.NOTHING
    given = {"unusualSpend": {"enabled": True, "factor": 2.5, "minimumAmount": "0.5"}}
    found = orders.asked(msgspec.json.encode(given))
    assert found.unusual == rules.Unusual(enabled=True, factor=Decimal("2.5"), minimum=Decimal("0.5"))
    assert not found.summary.enabled


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"more": 1}, ["more"]),
        ({"unusualSpend": None, "dailySummary": []}, ["unusualSpend", "dailySummary"]),
        ({"unusualSpend": {}, "dailySummary": {}}, ["unusualSpend.enabled", "dailySummary.enabled"]),
        ({"unusualSpend": {"enabled": 1}}, ["unusualSpend.enabled"]),
        ({"unusualSpend": {"enabled": True, "factors": 1}}, ["unusualSpend.factors"]),
        *(
            ({"unusualSpend": {"enabled": True, "factor": factor}}, ["unusualSpend.factor"])
            for factor in (1, "1", 0.5, 1000.01, "2.005", True, None, "NaN", 1e300)
        ),
        *(
            ({"unusualSpend": {"enabled": True, "minimumAmount": amount}}, ["unusualSpend.minimumAmount"])
            for amount in (10, "0", "-1", "1e3", "", None, "9999999999999999")
        ),
        ({"dailySummary": {"enabled": True, "timeZone": "Mars/Olympus"}}, ["dailySummary.timeZone"]),
        (
            {"dailySummary": {"enabled": True, "timeZone": None, "zone": 1}},
            ["dailySummary.zone", "dailySummary.timeZone"],
        ),
    ],
)
def test_every_fault_of_a_body_is_said(given: dict[str, Any], fields: list[str]) -> None:
    assert faults(given) == fields


# --- false alarms on the public traces ---

YEAR = 52 * 168


class Trace:
    """What the calls of a trace cost, at 2.50 and 10 dollars for a million input and output tokens."""

    def __init__(self, name: str) -> None:
        calls = []
        for line in (EXCERPTS / name).read_text().splitlines()[1:]:
            stamp, read, written = line.split(",")
            calls.append((datetime.fromisoformat(stamp[:26]), 5 * int(read) + 20 * int(written)))
        calls.sort()
        self._at = [(at - calls[0][0]).total_seconds() for at, _ in calls]
        self._cost = [0, *accumulate(cost for _, cost in calls)]

    def year(self, stretch_s: int) -> list[int]:
        """A year of hours: random stretches of the trace. Nights and weekends have a quarter of the cost."""
        rng = random.Random(27)
        hours = []
        for hour in range(YEAR):
            start = rng.uniform(0, self._at[-1] - stretch_s)
            first, last = bisect_left(self._at, start), bisect_left(self._at, start + stretch_s)
            works = hour // 24 % 7 < 5 and 8 <= hour % 24 < 20
            hours.append((self._cost[last] - self._cost[first]) * (4 if works else 1))
        return hours


def judged(hours: list[int]) -> list[tuple[int, Sequence[WeekBefore]]]:
    """What each hour cost that has four weeks before it, and those weeks."""
    spent = {number * HOUR: units for number, units in enumerate(hours)}
    weeks = {hour: weeks_before(hour, spent, 0) for hour in spent}
    return [(spent[hour], before) for hour, before in weeks.items() if len(before) == WEEKS]


def alarms(hours: list[tuple[int, Sequence[WeekBefore]]], factor: Decimal, times: int = 1) -> float:
    """The part of the hours that are unusual if each in turn costs so many times as much."""
    return sum(
        rules.is_unusual(times * units, weeks, factor=factor, minimum=1) for units, weeks in hours
    ) / len(hours)


def said() -> Iterable[tuple[str, int, list[str]]]:
    """The rows of the page's table: the trace, the stretch, and what is said of factors 2, 3 and 5."""
    page = (HERE.parents[2] / "docs/howto/notices.md").read_text()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith(("code, ", "conversation, ")):
            name = NAMES[0] if cells[0].startswith("code") else NAMES[1]
            yield name, int(cells[0].split()[1]), cells[1:]


def test_the_false_alarms_on_the_public_traces_are_those_of_the_page() -> None:
    table = list(said())
    assert len(table) == 6
    for name, stretch_s, cells in table:
        hours = judged(Trace(name).year(stretch_s))
        shown = [f"{10_000 * alarms(hours, Decimal(factor)):.0f}" for factor in (2, 3, 5)]
        shown += [f"{100 * alarms(hours, FACTOR, times):.0f} %" for times in (5, 10)]
        assert shown == cells, (name, stretch_s)
