"""DAY_ZONES: which hours of the day the midnights of time zones split."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.asking.buckets import Calendar, Granularity, Span, to_minute
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
