"""Local days, weeks and months, and the rollups that cover them, against walks over every minute."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.asking.buckets import (
    DAY,
    Branch,
    Calendar,
    Grain,
    Granularity,
    Quarters,
    Span,
    add_months,
    cover,
    minute_edges,
    series_plan,
    to_datetime,
    to_minute,
    totals_plan,
)
from pipeline.common.day_zones import split_hours, zone_names

ZONES = (
    "UTC",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "America/Los_Angeles",
    "Europe/London",
    "America/Havana",  # its clock changes at midnight
    "Africa/Cairo",
    "Australia/Lord_Howe",  # its clock changes by half an hour
    "America/Nuuk",
    "Pacific/Kiritimati",
)


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return to_minute(datetime(year, month, day, hour, minute, tzinfo=UTC))


def days(zone: str, *span: tuple[int, ...]) -> list[float]:
    """Hours of each local day between two instants of UTC."""
    calendar = Calendar(Granularity.DAY, ZoneInfo(zone))
    edges = calendar.edges(Span(utc(*span[0]), utc(*span[1])))
    return [(b - a) / 60 for a, b in pairwise(edges)]


def test_a_day_has_23_hours_when_the_clock_goes_forward_and_25_when_it_goes_back() -> None:
    assert days("America/Los_Angeles", (2026, 3, 7, 8), (2026, 3, 10, 7)) == [24, 23, 24]
    assert days("America/Los_Angeles", (2026, 10, 31, 7), (2026, 11, 3, 8)) == [24, 25, 24]
    assert days("Australia/Lord_Howe", (2026, 10, 3, 12), (2026, 10, 4, 12)) == [24, 23.5]


@pytest.mark.parametrize(
    ("zone", "midnight"), [("Asia/Kolkata", (2026, 11, 9, 18, 30)), ("Asia/Kathmandu", (2026, 11, 9, 18, 15))]
)
def test_days_off_the_whole_hour_begin_where_their_midnight_is(zone: str, midnight: tuple[int, ...]) -> None:
    calendar = Calendar(Granularity.DAY, ZoneInfo(zone))
    assert calendar.start_of(utc(2026, 11, 10, 12)) == utc(*midnight)
    assert calendar.end_of(utc(*midnight)) == utc(*midnight) + 1440


def test_a_day_whose_midnight_is_skipped_begins_when_the_clock_jumps() -> None:
    calendar = Calendar(Granularity.DAY, ZoneInfo("America/Havana"))
    start = calendar.start_of(utc(2026, 3, 8, 16))
    assert (
        to_datetime(start).astimezone(ZoneInfo("America/Havana")).isoformat() == "2026-03-08T01:00:00-04:00"
    )


def test_minutes_and_hours_are_those_of_utc_in_every_zone() -> None:
    calendar = Calendar(Granularity.HOUR, ZoneInfo("Asia/Kolkata"))
    assert calendar.start_of(utc(2026, 11, 10, 12, 34)) == utc(2026, 11, 10, 12)


@settings(max_examples=60)
@given(
    zone=st.sampled_from(ZONES),
    granularity=st.sampled_from((Granularity.DAY, Granularity.WEEK, Granularity.MONTH)),
    start=st.integers(utc(2025, 10, 1), utc(2026, 12, 1)),
)
def test_buckets_are_the_runs_of_minutes_with_one_local_date(
    zone: str, granularity: Granularity, start: int
) -> None:
    span = Span(start, start + 9 * 1440)
    calendar = Calendar(granularity, ZoneInfo(zone))

    def date(minute: int) -> tuple[int, ...]:
        local = to_datetime(minute).astimezone(ZoneInfo(zone))
        if granularity is Granularity.WEEK:
            return local.isocalendar()[:2]
        return (local.year, local.month, local.day)[: 2 if granularity is Granularity.MONTH else 3]

    walked = [next(run) for _, run in groupby(range(span.start, span.end), date)]
    edges = calendar.edges(span)
    assert edges[1:-1] == walked[1:]
    assert edges[0] <= span.start < edges[1]
    assert date(edges[0]) == date(span.start) != date(edges[0] - 1)
    assert edges[-2] < span.end <= edges[-1]
    assert all(calendar.start_of(minute) == edges[0] for minute in (span.start, edges[1] - 1))


spans = st.builds(
    lambda start, length: Span(start, start + length),
    st.integers(utc(2026, 10, 20), utc(2026, 11, 10)),
    st.integers(1, 4 * 1440),
)


@given(span=spans, coarsest=st.sampled_from((Grain.MINUTE, Grain.HOUR, Grain.DAY)))
def test_pieces_cover_a_span_once_and_are_whole_rows(span: Span, coarsest: Grain) -> None:
    pieces = cover(span, coarsest)
    assert [minute for _, piece in pieces for minute in (piece.start, piece.end)] == sorted(
        minute for _, piece in pieces for minute in (piece.start, piece.end)
    )
    assert sum(piece.end - piece.start for _, piece in pieces) == span.end - span.start
    assert (pieces[0][1].start, pieces[-1][1].end) == (span.start, span.end)
    assert all(piece.start % grain.minutes == 0 == piece.end % grain.minutes for grain, piece in pieces)


MOMENTS = st.lists(st.integers(-50, 24 * 60).map(lambda hour: utc(2026, 10, 20) + 60 * hour), max_size=5)


@given(span=spans, moments=MOMENTS)
def test_no_row_spans_a_moment_at_which_a_price_changes(span: Span, moments: list[int]) -> None:
    pieces = cover(span, moments=moments)
    assert [part.start for _, part in pieces] == [span.start, *(part.end for _, part in pieces[:-1])]
    assert pieces[-1][1].end == span.end
    for grain, part in pieces:
        assert part.start % grain.minutes == part.end % grain.minutes == 0
        for moment in moments:
            if part.start < moment < part.end:
                assert moment % grain.minutes == 0
    inside = {moment // DAY for moment in moments if moment % DAY}
    rows = [(grain, part) for grain, part in cover(span) if grain is Grain.DAY]
    whole = {day for _, part in rows for day in range(part.start // DAY, part.end // DAY)}
    by_day = {
        day
        for grain, part in pieces
        if grain is Grain.DAY
        for day in range(part.start // DAY, part.end // DAY)
    }
    assert by_day == whole - inside, "all other days are read from day rows"


QUARTERS = st.dictionaries(
    st.sampled_from((13, 14, 18, 19)), st.integers(utc(2026, 10, 18), utc(2026, 11, 12)) | st.just(0)
).map(Quarters)


@settings(max_examples=300)
@given(span=spans, zone=st.sampled_from(ZONES), granularity=st.sampled_from(Granularity), quarters=QUARTERS)
def test_a_plan_puts_every_minute_into_its_bucket_once(
    span: Span, zone: str, granularity: Granularity, quarters: Quarters
) -> None:
    calendar = Calendar(granularity, ZoneInfo(zone))
    plan = series_plan(span, calendar, quarters=quarters)
    assert _minutes(plan) == list(range(span.start, span.end))
    for branch in plan:
        for row in _rows(branch):
            bucket = row if branch.buckets is None else max(b for b in branch.buckets if b <= row)
            assert bucket == calendar.start_of(row) == calendar.start_of(row + branch.grain.minutes - 1)
    totals = totals_plan(span, quarters=quarters)
    assert _minutes(totals) == list(range(span.start, span.end))
    edges = [*minute_edges(span, calendar, quarters)]
    assert {name for name, _ in edges} <= {"granularity", "start", "end", "timeZone"}
    assert any(branch.grain is Grain.MINUTE for branch in plan) == bool(edges)
    if not edges:
        assert all(branch.grain is not Grain.MINUTE for branch in totals)
    for branch in (*plan, *totals):
        if branch.grain is Grain.QUARTER:
            assert all(quarters.since[row // 60 % 24] <= row - row % 60 for row in _rows(branch))


@given(span=spans, zone=st.sampled_from(("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")))
def test_whole_days_off_the_hour_need_no_minute_rows_where_quarters_are(span: Span, zone: str) -> None:
    calendar = Calendar(Granularity.DAY, ZoneInfo(zone))
    edges = calendar.edges(span)
    quarters = Quarters(dict.fromkeys(split_hours((zone,)), 0))
    assert not [*minute_edges(Span(edges[0], edges[-1]), calendar, quarters)]
    assert [*minute_edges(Span(edges[0] + 1, edges[-1]), calendar, quarters)]


def _rows(branch: Branch) -> list[int]:
    return [row for span in branch.spans for row in range(span.start, span.end, branch.grain.minutes)]


def _minutes(plan: Sequence[Branch]) -> list[int]:
    return sorted(
        minute
        for branch in plan
        for row in _rows(branch)
        for minute in range(row, row + branch.grain.minutes)
    )


def test_days_of_utc_are_read_from_day_rows_alone() -> None:
    span = Span(utc(2025, 11, 1), utc(2026, 11, 1))
    assert series_plan(span, Calendar(Granularity.DAY, ZoneInfo("UTC"))) == [
        Branch(grain=Grain.DAY, spans=(span,), buckets=None)
    ]
    months = series_plan(span, Calendar(Granularity.MONTH, ZoneInfo("UTC")))
    assert [(branch.grain, branch.spans) for branch in months] == [(Grain.DAY, (span,))]


def test_a_week_begins_on_monday_also_across_a_change_of_year_and_of_the_clock() -> None:
    calendar = Calendar(Granularity.WEEK, ZoneInfo("Europe/Berlin"))
    new_year = utc(2025, 12, 28, 23)  # Monday 2025-12-29, 00:00 in Berlin
    assert calendar.start_of(utc(2026, 1, 2)) == new_year
    assert calendar.end_of(new_year) == utc(2026, 1, 4, 23)
    clocks_go_back = utc(2026, 10, 18, 22)
    assert calendar.end_of(clocks_go_back) - clocks_go_back == 7 * 1440 + 60


def test_days_of_a_whole_hour_zone_are_read_from_hour_rows_alone() -> None:
    span = Span(utc(2026, 10, 1, 7), utc(2026, 11, 20, 8))
    plan = series_plan(span, Calendar(Granularity.DAY, ZoneInfo("America/Los_Angeles")))
    assert [(branch.grain, branch.spans) for branch in plan] == [(Grain.HOUR, (span,))]


def test_a_plan_has_few_branches_however_long_the_range() -> None:
    span = Span(utc(2026, 10, 1, 7, 3), utc(2026, 11, 20, 8, 1))
    plan = series_plan(span, Calendar(Granularity.DAY, ZoneInfo("Asia/Kolkata")))
    assert [branch.grain for branch in plan] == [Grain.MINUTE, Grain.HOUR]


@pytest.mark.parametrize(
    ("start", "months", "later"),
    [((2026, 1, 31), 1, (2026, 2, 28)), ((2026, 11, 1), 13, (2027, 12, 1)), ((2025, 12, 5), 1, (2026, 1, 5))],
)
def test_months_later_is_the_same_day_or_the_last(
    start: tuple[int, ...], months: int, later: tuple[int, ...]
) -> None:
    assert add_months(utc(*start), months, ZoneInfo("UTC")) == utc(*later)


def test_13_local_months_may_be_an_hour_longer_than_in_utc() -> None:
    zone = ZoneInfo("America/Los_Angeles")
    start = to_minute(datetime(2025, 10, 1, tzinfo=zone).astimezone(UTC))
    assert (
        to_datetime(add_months(start, 13, zone)).astimezone(zone).isoformat() == "2026-11-01T00:00:00-07:00"
    )


def test_no_zone_depends_on_the_machine() -> None:
    assert {"UTC", "Asia/Kolkata", "America/Los_Angeles"} <= zone_names()
    assert "localtime" not in zone_names()


def test_minutes_are_whole_and_exact() -> None:
    at = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)
    assert to_datetime(to_minute(at)) == at.replace(second=0)
    assert to_minute(at + timedelta(seconds=4)) == to_minute(at) + 1
