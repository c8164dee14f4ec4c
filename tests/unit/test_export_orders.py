"""Orders of exports: a range that REST refuses is refused, for the same reason, and no other range is."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from api.asking.buckets import add_days, to_datetime, to_minute
from api.asking.cursors import Cursors
from api.asking.limits import Limits
from api.asking.params import zone
from api.asking.questions import Parser
from api.config import RangeConfig
from api.exports import jobs
from pipeline.common.day_zones import zone_names
from pipeline.common.problems import Problem

NOW = datetime(2026, 11, 10, 12, 34, tzinfo=UTC)
ORG = UUID("aaaaaaaa-0000-4000-8000-000000000001")
PARSER = Parser(ranges=RangeConfig(), cursors=Cursors(b"secret of these tests"), clock=lambda: NOW)
ZONES = ("UTC", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Havana", "Africa/Cairo")


def refused(order: Any) -> dict[str, str]:
    """The faults that somebody finds, by field."""
    try:
        order()
    except Problem as problem:
        return {fault.field.removeprefix("timeRange."): fault.message for fault in problem.errors}
    return {}


@given(
    name=st.sampled_from(ZONES) | st.sampled_from(sorted(zone_names())),
    granularity=st.sampled_from(
        [("daily", "day"), ("weekly", "week"), ("monthly", "month"), ("hourly", "hour")]
    ),
    group_by=st.sampled_from(
        ("model", "model,client", "client", "none", "team", "team,model", "Team", "a,b")
    ),
    values=st.lists(st.sampled_from(("team:search", "team:", "client:a", "user:x", "x")), max_size=2),
    ends_before=st.integers(0, 500 * 24),
    minutes=st.sampled_from((0, 0, 15, 30)),
    hours=st.integers(1, 24 * 30) | st.integers(1, 24 * 400),
)
def test_an_order_and_a_question_are_refused_for_the_same_reasons(
    name: str,
    granularity: tuple[str, str],
    group_by: str,
    values: list[str],
    ends_before: int,
    minutes: int,
    hours: int,
) -> None:
    end = NOW.replace(minute=minutes) - timedelta(hours=ends_before)
    span = {"start": (end - timedelta(hours=hours)).isoformat(), "end": end.isoformat()}
    body = {"timeRange": span, "granularity": granularity[0], "timeZone": name, "groupBy": group_by}
    query = MultiDict({**span, "granularity": granularity[1], "timeZone": name, "groupBy": group_by})
    query.extend(("dimension", value) for value in values)
    by_order = refused(lambda: jobs.order(json.dumps(body | {"dimensions": values}).encode(), PARSER.limits))
    by_order = {
        re.sub(r"^dimensions(\[\d\])?$", "dimension", field): said for field, said in by_order.items()
    }
    by_rest = refused(lambda: PARSER.figures("usage", ORG, query))
    if by_order.get("end", "").endswith("for hourly"):
        assert granularity[0] == "hourly"
        assert hours > 30 * 24
        del by_order["end"]
        by_rest.pop("end", None)
    assert by_order == by_rest


def test_each_parameter_is_named_once_however_many_days_lack_minute_rows() -> None:
    query = {"start": "2026-01-01T00:00:00Z", "end": "2026-10-01T00:00:00Z", "timeZone": "Asia/Kolkata"}
    with pytest.raises(Problem) as caught:
        PARSER.figures("usage", ORG, MultiDict(query))
    assert [fault.field for fault in caught.value.errors] == ["timeZone"]


@pytest.mark.parametrize("days", [14, 33, 34, 60])
def test_a_schedule_off_the_hour_needs_minute_rows_for_a_whole_month(days: int) -> None:
    limits = Limits(ranges=RangeConfig(retention_minute_s=days * 86_400.0), now=to_minute(NOW))
    body = {"timeZone": "Asia/Kolkata", "format": "focus-1.2"}
    faults = refused(lambda: jobs.schedule(json.dumps(body).encode(), limits))
    assert bool(faults) == (days < 34)
    assert all(f"kept for {days} days" in message for message in faults.values())
    assert all("or name this one in DAY_ZONES" in message for message in faults.values())
    body["format"] = "csv"
    by_client = refused(lambda: jobs.schedule(json.dumps(body).encode(), limits))["timeZone"]
    assert "by client" in by_client
    assert by_client.endswith("take figures that are not by client (for an export groupBy=model)")
    body["timeZone"] = "Europe/Berlin"
    assert refused(lambda: jobs.schedule(json.dumps(body).encode(), limits)) == {}


def test_a_range_at_the_end_of_the_calendar_is_a_fault() -> None:
    for start, end in (
        ("9998-11-30", "9999-12-15"),
        ("9999-11-01", "9999-12-31"),
        ("0001-01-01", "0001-01-02"),
    ):
        span = {"start": f"{start}T00:00:00Z", "end": f"{end}T00:00:00Z"}
        query = {**span, "granularity": "month", "timeZone": "Pacific/Kiritimati"}
        assert refused(lambda query=query: PARSER.figures("usage", ORG, MultiDict(query)))
        body = json.dumps({"timeRange": span, "granularity": "monthly"}).encode()
        assert refused(lambda body=body: jobs.order(body, PARSER.limits))


@given(name=st.sampled_from(ZONES), hours=st.integers(0, 400 * 24), days=st.integers(0, 40))
def test_days_later_is_the_same_local_time(name: str, hours: int, days: int) -> None:
    start = to_minute(NOW - timedelta(hours=hours))
    local = to_datetime(start).astimezone(zone(name)).replace(tzinfo=None)
    later = to_datetime(add_days(start, days, zone(name))).astimezone(zone(name)).replace(tzinfo=None)
    assert abs(later - local - timedelta(days=days)) <= timedelta(hours=1)  # one may not exist, or twice


def ordered(**body: Any) -> jobs.Shape:
    return jobs.schedule(json.dumps(body).encode(), PARSER.limits)


@pytest.mark.parametrize(
    ("body", "group_by", "by", "dimension"),
    [
        ({}, "model,client", "client", ""),
        ({"groupBy": "client,model"}, "model,client", "client", ""),
        ({"groupBy": "model"}, "model", "", ""),
        ({"groupBy": "none"}, "none", "", ""),
        ({"groupBy": "team"}, "team", "team", "team"),
        ({"groupBy": "team,model"}, "model,team", "team", "team"),
        ({"dimensions": ["team:search"]}, "model,team", "team", "team"),
        ({"dimensions": ["client:a", "client:"]}, "model,client", "client", ""),
        ({"dimensions": ["team:search"], "groupBy": "none"}, "none", "", "team"),
        ({"format": "focus-1.2"}, "model,client", "", ""),
        ({"format": "focus-1.2", "dimensions": ["client:a"]}, "model,client", "", ""),
        ({"format": "focus-1.2", "groupBy": "model,team"}, "model,team", "team", "team"),
    ],
)
def test_what_the_rows_of_a_file_are_by(body: dict[str, Any], group_by: str, by: str, dimension: str) -> None:
    shape = ordered(**body)
    assert (shape.group_by, shape.by, shape.dimension) == (group_by, by, dimension)
    assert shape.dimensions == sorted(body.get("dimensions", []))
    assert bool(shape.split_by) == bool(by or shape.chosen)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"groupBy": "Team"}, ["groupBy"]),
        ({"groupBy": 5}, ["groupBy"]),
        ({"groupBy": None}, ["groupBy"]),
        ({"groupBy": "none,team"}, ["groupBy"]),
        ({"groupBy": "client,team"}, ["groupBy"]),
        ({"dimensions": "team:a"}, ["dimensions"]),
        ({"dimensions": ["team:a"] * 101}, ["dimensions"]),
        (
            {"dimensions": ["team:a", "team", 5, ":b", "team:" + "x" * 129]},
            [f"dimensions[{i}]" for i in (1, 2, 3, 4)],
        ),
        ({"dimensions": ["team:a", "user:b"]}, ["dimensions"]),
        ({"groupBy": "user", "dimensions": ["team:a"]}, ["dimensions"]),
        ({"groupBy": "model,client", "dimensions": ["team:a"]}, ["dimensions"]),
        ({"format": "focus-1.2", "groupBy": "team"}, ["groupBy"]),
        ({"format": "focus-1.2", "groupBy": "none"}, ["groupBy"]),
        (
            {
                "groupBy": "A",
                "dimensions": ["b"],
                "format": "xls",
                "timeZone": "Mars",
                "models": [1],
                "more": 1,
            },
            ["dimensions[0]", "format", "groupBy", "models", "more", "timeZone"],
        ),
    ],
)
def test_every_fault_of_what_rows_are_by_is_named(body: dict[str, Any], fields: list[str]) -> None:
    assert sorted(refused(lambda: ordered(**body))) == fields


# --- what the seed's own callers send --------------------------------------------------------------

TODAY = {"start": "2026-11-09T00:00:00Z", "end": "2026-11-09T23:59:59Z"}


def order_of(*, bucket: str | None = None, **fields: Any) -> jobs.Order:
    return jobs.order(json.dumps({"timeRange": TODAY, **fields}).encode(), PARSER.limits, bucket=bucket)


@pytest.mark.parametrize("end", ["23:59:59Z", "23:59:59.999999Z", "23:59:00.001Z"])
def test_an_end_of_the_last_second_is_the_next_full_hour(end: str) -> None:
    span = order_of(timeRange={**TODAY, "end": f"2026-11-09T{end}"}).span
    assert [to_datetime(edge).isoformat()[:16] for edge in (span.start, span.end)] == [
        "2026-11-09T00:00",
        "2026-11-10T00:00",
    ]


def test_a_range_of_no_time_is_refused_before_it_is_widened() -> None:
    for end in ("2026-11-09T12:00:30Z", "2026-11-09T12:00:10Z"):
        span = {"start": "2026-11-09T12:00:30Z", "end": end}
        assert refused(lambda span=span: order_of(timeRange=span)) == {"end": "must be after start"}


@pytest.mark.parametrize(
    ("delivery", "bucket", "faulty"),
    [
        (None, None, ""),
        ({"type": "download"}, None, ""),
        ({"type": "download"}, "ours", ""),
        ({"type": "download", "bucket": None}, None, ""),
        ({"type": "download", "bucket": "ours"}, "ours", ""),
        ({"type": "s3"}, "ours", ""),
        ({"type": "s3", "bucket": "ours"}, "ours", ""),
        ({"type": "s3", "bucket": "theirs"}, "ours", "delivery.bucket"),
        ({"type": "download", "bucket": "theirs"}, None, "delivery.bucket"),
        ({"type": "s3", "bucket": 7}, "ours", "delivery.bucket"),
        ({"type": "s3"}, None, "delivery.type"),
        ({"type": "ftp"}, "ours", "delivery.type"),
        ({"type": ["s3"]}, "ours", "delivery.type"),
        ({"bucket": "ours"}, "ours", "delivery"),
        ({"type": "s3", "prefix": "a"}, "ours", "delivery"),
        ("s3", "ours", "delivery"),
    ],
)
def test_files_are_delivered_to_our_own_bucket_and_no_other(
    delivery: Any, bucket: str | None, faulty: str
) -> None:
    faults = refused(lambda: order_of(delivery=delivery, bucket=bucket))
    assert list(faults) == [faulty] * bool(faulty)
    if faulty == "delivery.bucket" and bucket:
        assert "ours" in faults[faulty]


def test_an_order_may_name_its_initiator() -> None:
    assert order_of().initiated_by is None
    assert order_of(initiatedBy=None).initiated_by is None
    assert order_of(initiatedBy="Zoë (finance)").initiated_by == "Zoë (finance)"
    for faulty in ("", "a" * 201, "a\nb", "a\0", 7, ["ana"]):
        assert list(refused(lambda faulty=faulty: order_of(initiatedBy=faulty))) == ["initiatedBy"]
