"""What query strings mean, and that every fault is named at once."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from api.asking.buckets import Granularity, Span, to_minute
from api.asking.cursors import Cursors
from api.asking.params import whole_minute
from api.asking.questions import FiguresQuestion, Parser, Position
from api.config import RangeConfig
from pipeline.common.problems import Problem
from pipeline.core import wire

NOW = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)
ORG = UUID("aaaaaaaa-0000-4000-8000-000000000001")
OTHER = UUID("aaaaaaaa-0000-4000-8000-000000000002")
MODEL = "11111111-0000-4000-8000-000000000000"
CURSORS = Cursors(b"secret of these tests")
PARSER = Parser(ranges=RangeConfig(), cursors=CURSORS, clock=lambda: NOW)
RANGE = (("start", "2026-11-01T00:00:00Z"), ("end", "2026-11-10T00:00:00Z"))


def asked(*pairs: tuple[str, str], org: UUID = ORG, route: str = "usage") -> FiguresQuestion:
    return PARSER.figures(route, org, MultiDict(pairs))


def faults(*pairs: tuple[str, str]) -> dict[str, str]:
    with pytest.raises(Problem) as caught:
        asked(*pairs)
    assert caught.value.status == 400
    return {fault.field: fault.message for fault in caught.value.errors}


def test_the_defaults_are_days_of_utc_by_model() -> None:
    question = asked(*RANGE)
    assert question.span == Span(
        to_minute(datetime(2026, 11, 1, tzinfo=UTC)), to_minute(datetime(2026, 11, 10, tzinfo=UTC))
    )
    assert (question.calendar.granularity, question.calendar.zone.key) == (Granularity.DAY, "UTC")
    assert (question.by_model, question.by_client, question.limit, question.after) == (
        True,
        False,
        1000,
        None,
    )


def test_every_fault_is_named_at_once() -> None:
    named = faults(
        ("start", "yesterday"),
        ("granularity", "fortnight"),
        ("modelId", "gpt"),
        ("clientId", "x" * 129),
        ("groupBy", "none,model"),
        ("timeZone", "Mars/Olympus"),
        ("limit", "10001"),
        ("page", "2"),
    )
    assert named.keys() == {
        "start",
        "end",
        "granularity",
        "modelId",
        "clientId",
        "groupBy",
        "timeZone",
        "limit",
        "page",
    }
    assert named["end"] == "is required"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", "2026-11-01"),
        ("start", "2026-11-01T00:00:00"),
        ("start", "2026-11-01T00:00:30Z"),
        ("start", "2026-11-01T00:00:00.5Z"),
        ("start", "2026-02-30T00:00:00Z"),
        ("start", "0001-01-01T00:00:00+14:00"),
        ("start", "9999-12-31T23:59:00-14:00"),
        ("start", "2026-11-01T00:00:60Z"),
        ("end", "2026-11-01T00:00:00Z"),
        ("end", "2027-12-02T00:00:00Z"),
        ("limit", "0"),
        ("limit", "1e3"),
        ("limit", "٣"),
        ("limit", "9" * 5000),
        ("timeZone", "utc"),
        ("timeZone", "../etc/passwd"),
        ("timeZone", ""),
        ("timeZone", "localtime"),
        ("modelId", "{11111111-0000-4000-8000-000000000000}"),
        ("modelId", MODEL.replace("-", "")),
        ("clientId", "a\0b"),
        ("clientId", "\ud800"),
        ("groupBy", ""),
        ("groupBy", "Org"),
        ("groupBy", "team,"),
        ("groupBy", "client,team"),
        ("groupBy", "team,feature"),
        ("dimension", "team"),
        ("dimension", ":search"),
        ("dimension", "Team:search"),
        ("dimension", "team:" + "x" * 129),
        ("dimension", "team:a\0"),
        ("dimension", "team:\ud800"),
        ("cursor", ""),
        ("cursor", "AAAA"),
        ("cursor", "é"),
        ("granularity", "Day"),
    ],
)
def test_a_bad_value_is_a_fault_of_its_parameter_alone(name: str, value: str) -> None:
    pairs = [pair for pair in RANGE if pair[0] != name]
    assert faults(*pairs, (name, value)).keys() == {name}


@pytest.mark.parametrize("name", ["start", "end", "granularity", "timeZone", "limit", "cursor"])
def test_single_parameters_are_given_once(name: str) -> None:
    valid = {**dict(RANGE), "granularity": "day", "timeZone": "UTC", "limit": "5", "cursor": "x"}
    pairs = [pair for pair in RANGE if pair[0] != name]
    assert faults(*pairs, (name, valid[name]), (name, valid[name])) == {name: "must be given once"}


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-01T00:00:00Z",
        "2026-11-01t00:00:00z",
        "2026-11-01T00:00:00.000Z",
        "2026-11-01T05:30:00+05:30",
        "2026-11-01T05:30:00 05:30",
        "2026-10-31T17:00:00-07:00",
    ],
)
def test_a_time_may_be_spelled_in_any_offset(text: str) -> None:
    assert whole_minute(text) == to_minute(datetime(2026, 11, 1, tzinfo=UTC))


@given(st.datetimes(timezones=st.timezones()))
def test_python_and_we_read_the_same_times(at: datetime) -> None:
    at = at.replace(second=0, microsecond=0)
    offset = at.utcoffset()
    assert offset is not None
    if offset.total_seconds() % 60 == 0:
        try:
            expected = to_minute(at.astimezone(UTC))
        except OverflowError:
            return
        assert whole_minute(at.isoformat()) == expected


@given(st.text(max_size=40))
def test_no_text_breaks_the_reader_of_times(text: str) -> None:
    with contextlib.suppress(ValueError):
        whole_minute(text)


@pytest.mark.parametrize(
    ("values", "by_model", "by_client"),
    [
        (["none"], False, False),
        (["model"], True, False),
        (["client"], False, True),
        (["model", "client"], True, True),
        (["client,model"], True, True),
    ],
)
def test_group_by_is_repeated_or_listed(values: list[str], by_model: bool, by_client: bool) -> None:
    question = asked(*RANGE, *(("groupBy", value) for value in values))
    assert (question.by_model, question.by_client) == (by_model, by_client)


def test_a_dimension_stands_in_the_place_of_the_client() -> None:
    question = asked(*RANGE, ("groupBy", "team,model"), ("dimension", "team:a:b"), ("dimension", "team:"))
    assert (question.dimension, question.by_model, question.by_client) == ("team", True, True)
    assert question.client_ids == ("", "a:b")
    question = asked(*RANGE, ("dimension", f"team:{wire.OVERFLOW_VALUE}"))
    assert (question.dimension, question.by_client, question.needs_clients) == ("team", False, True)
    assert asked(*RANGE, ("groupBy", "client")).dimension == ""


def test_filters_are_sets() -> None:
    question = asked(
        *RANGE, ("modelId", MODEL), ("modelId", MODEL.upper()), ("clientId", ""), ("clientId", "a")
    )
    assert question.model_ids == (UUID(MODEL),)
    assert question.client_ids == ("", "a")


MINUTES = (("start", "2026-11-09T00:10:00Z"), ("end", "2026-11-10T00:10:00Z"))


def test_minutes_are_for_a_day_at_most() -> None:
    asked(*MINUTES, ("granularity", "minute"))
    longer = (MINUTES[0], ("end", "2026-11-10T00:11:00Z"))
    assert faults(*longer, ("granularity", "minute")).keys() == {"end"}


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([*MINUTES, ("granularity", "minute"), ("groupBy", "client")], {"groupBy"}),
        ([*MINUTES, ("granularity", "minute"), ("clientId", "a")], {"clientId"}),
        ([*MINUTES, ("granularity", "hour"), ("groupBy", "client")], {"start", "end"}),
        ([*RANGE, ("timeZone", "Asia/Kolkata"), ("groupBy", "client")], {"timeZone"}),
        ([*RANGE, ("granularity", "hour"), ("timeZone", "Asia/Kolkata"), ("groupBy", "client")], set()),
        ([*RANGE, ("timeZone", "America/Los_Angeles"), ("groupBy", "client")], set()),
    ],
)
def test_figures_by_client_need_whole_hours(pairs: list[tuple[str, str]], named: set[str]) -> None:
    if named:
        assert faults(*pairs).keys() == named
    else:
        asked(*pairs)


@pytest.mark.parametrize(
    ("start", "more", "named"),
    [
        ("2026-10-20T00:00:00Z", [], set()),
        ("2026-10-20T00:10:00Z", [], {"start"}),
        ("2026-10-20T18:30:00Z", [("timeZone", "Asia/Kolkata")], {"timeZone"}),
        ("2026-10-27T18:30:00Z", [("timeZone", "Asia/Kolkata")], set()),
        ("2025-10-07T00:00:00Z", [], set()),
        ("2025-10-06T00:00:00Z", [], {"start"}),
    ],
)
def test_what_is_no_longer_kept_is_refused_and_not_counted_as_nothing(
    start: str, more: list[tuple[str, str]], named: set[str]
) -> None:
    pairs = (("start", start), ("end", "2026-10-30T18:30:00Z"), *more)
    if named:
        assert faults(*pairs).keys() == named
    else:
        asked(*pairs)


def test_old_minutes_are_refused() -> None:
    old = (("start", "2026-10-20T00:00:00Z"), ("end", "2026-10-20T01:00:00Z"), ("granularity", "minute"))
    assert faults(*old).keys() == {"granularity"}


# --- cursors ---------------------------------------------------------------------------------------


def sealed(question: FiguresQuestion) -> tuple[str, str]:
    return "cursor", CURSORS.seal((question.span.start, UUID(MODEL), "a"), question.bound_to)


def test_a_cursor_says_where_the_page_ended() -> None:
    cursor = sealed(asked(*RANGE))
    question = asked(*RANGE, ("limit", "7"), cursor)
    assert question.after == Position(question.span.start, UUID(MODEL), "a")


@pytest.mark.parametrize(
    "change",
    [
        {"org": OTHER},
        {"route": "reliability"},
        {"pairs": (RANGE[0], ("end", "2026-11-09T00:00:00Z"))},
        {"pairs": (*RANGE, ("modelId", MODEL))},
        {"pairs": (*RANGE, ("clientId", ""))},
        {"pairs": (*RANGE, ("groupBy", "none"))},
        {"pairs": (*RANGE, ("granularity", "hour"))},
        {"pairs": (*RANGE, ("timeZone", "Europe/London"))},
    ],
)
def test_a_cursor_is_good_for_its_org_and_parameters_only(change: dict[str, Any]) -> None:
    cursor = sealed(asked(*RANGE))
    pairs = change.pop("pairs", RANGE)
    with pytest.raises(Problem) as caught:
        asked(*pairs, cursor, **change)
    assert [fault.field for fault in caught.value.errors] == ["cursor"]


@given(st.data())
def test_a_changed_cursor_is_refused(data: st.DataObject) -> None:
    name, cursor = sealed(asked(*RANGE))
    at = data.draw(st.integers(0, len(cursor) - 1))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_"))
    forged = cursor[:at] + letter + cursor[at + 1 :]
    if forged != cursor:
        assert faults(*RANGE, (name, forged)).keys() == {"cursor"}
    assert faults(*RANGE, (name, cursor[:at])).keys() == {"cursor"}


def test_a_cursor_of_another_secret_is_refused() -> None:
    question = asked(*RANGE)
    foreign = Cursors(b"another secret").seal((question.span.start, None, None), question.bound_to)
    assert faults(*RANGE, ("cursor", foreign)).keys() == {"cursor"}


def test_listings_know_limit_and_cursor_only() -> None:
    question = PARSER.listing("models", ORG, MultiDict(limit="3"), UUID)
    assert (question.limit, question.after) == (3, None)
    with pytest.raises(Problem) as caught:
        PARSER.listing("models", ORG, MultiDict(start="x", limit="x"), UUID)
    assert {fault.field for fault in caught.value.errors} == {"start", "limit"}
    cursor = CURSORS.seal(UUID(MODEL), question.bound_to)
    assert PARSER.listing("models", ORG, MultiDict(cursor=cursor), UUID).after == UUID(MODEL)
    with pytest.raises(Problem):
        PARSER.listing("models", OTHER, MultiDict(cursor=cursor), UUID)


def test_ranges_may_end_in_the_future() -> None:
    asked(("start", "2026-11-10T12:00:00Z"), ("end", "2026-12-10T12:00:00Z"))
    assert datetime(2026, 12, 10, tzinfo=UTC) - timedelta(days=1) > NOW
