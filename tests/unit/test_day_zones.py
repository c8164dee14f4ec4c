"""DAY_ZONES: which hours of the day the midnights of time zones split."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.asking.buckets import Calendar, Granularity, Quarters, Span, to_minute
from api.asking.limits import Limits
from api.config import RangeConfig
from pipeline.common import day_zones, settings
from pipeline.common.settings import ConfigError
from pipeline.config import rules


@pytest.mark.parametrize(
    ("zones", "hours"),
    [
        ((), ()),
        (("UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Kiritimati"), ()),
        (("Asia/Kolkata",), (18,)),
        (("Asia/Kolkata", "Asia/Kathmandu"), (18,)),
        (("Australia/Lord_Howe",), (13,)),
        (("America/St_Johns", "Australia/Adelaide"), (2, 3, 13, 14)),
    ],
)
def test_a_zone_splits_the_hours_in_which_its_days_begin(
    zones: tuple[str, ...], hours: tuple[int, ...]
) -> None:
    assert day_zones.split_hours(zones) == hours


@given(
    name=st.sampled_from(sorted(day_zones.zone_names())),
    start=st.datetimes(datetime(2020, 2, 1), datetime(2044, 10, 1)),
)
def test_every_day_that_begins_off_the_hour_begins_in_a_split_hour(name: str, start: datetime) -> None:
    at = to_minute(start.replace(tzinfo=UTC))
    days = Calendar(Granularity.DAY, ZoneInfo(name)).edges(Span(at, at + 40 * 1440))
    hours = day_zones.split_hours((name,))
    assert all(day // 60 % 24 in hours for day in days if day % 60)
    assert all(b - a <= 26 * 60 for a, b in pairwise(days))


def test_the_setting_becomes_a_rule_of_the_core() -> None:
    environment = {"DAY_ZONES": " Asia/Kolkata, Australia/Lord_Howe"}
    assert rules(settings.read(environment)).split_hours == (13, 18)
    assert rules(settings.read({})).split_hours == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Mars/Olympus", "entry 1: expected an IANA time zone"),
        ("Asia/Kolkata,localtime", "entry 2: expected an IANA time zone"),
        (",".join(["Asia/Kolkata"] * 5), "at most 4 time zones"),
    ],
)
def test_a_faulty_entry_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.read({"DAY_ZONES": text})
    (fault,) = (fault for fault in caught.value.faults if fault.startswith("DAY_ZONES="))
    assert said in fault


def test_a_midnight_off_the_quarter_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = frozenset((datetime(2000, 1, 1, 18, 20, tzinfo=UTC) + timedelta(seconds=0),))
    monkeypatch.setattr(day_zones, "_midnights", lambda name: odd)
    with pytest.raises(ValueError, match="do not begin on quarters of an hour"):
        day_zones.parse("Asia/Kolkata")


@pytest.mark.parametrize(
    ("zone", "split_by", "since"),
    [
        ("Asia/Kolkata", "", "2026-02-01T10:00Z"),
        ("America/St_Johns", "", "2026-10-01T00:00Z"),
        ("Australia/Lord_Howe", "", ""),
        ("Asia/Kolkata", "client", ""),
    ],
)
def test_a_fault_says_from_when_the_days_of_its_own_zone_are_kept(
    zone: str, split_by: str, since: str
) -> None:
    def at(month: int, day: int, hour: int = 0) -> int:
        return to_minute(datetime(2026, month, day, hour, tzinfo=UTC))

    limits = Limits(ranges=RangeConfig(day_zones=("Asia/Kolkata", "America/St_Johns")), now=at(11, 10))
    quarters = Quarters({18: at(2, 1, 10), 2: at(10, 1), 3: at(9, 1)})
    days = Calendar(Granularity.DAY, ZoneInfo(zone))
    edges = days.edges(Span(at(1, 10), at(3, 10)) if zone.startswith("Asia") else Span(at(8, 1), at(10, 9)))
    whole = Span(edges[0], edges[-1])
    (fault,) = limits.lacking(whole, days, split_by=split_by, quarters=quarters)
    said = fault.message.partition("; rows of DAY_ZONES are kept since ")[2]
    assert (fault.field, said) == ("timeZone", since)
