"""What query strings mean, and that every fault is named at once."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from api.asking import params
from api.asking.buckets import Granularity, Span, to_datetime, to_minute
from api.asking.cursors import Cursors
from api.asking.params import Percentile, instant, whole_minute
from api.asking.questions import FiguresQuestion, ListingQuestion, Parser, Position
from api.asking.questions import sealed as position_sealed
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


@given(st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)), st.sampled_from(["", "0", "1", "9999"]))
def test_an_instant_is_what_python_reads_and_what_is_finer_never_reaches_the_next_second(
    at: datetime, finer: str
) -> None:
    us = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    found = instant(f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond:06}{finer}Z")
    assert found == us + (finer not in ("", "0") and at.microsecond < 999_999)


def test_a_minute_has_no_seconds() -> None:
    for text in ("2026-11-01T00:00:30Z", "2026-11-01T00:00:00.5Z", "2026-11-01T00:00:00.0000001Z"):
        with pytest.raises(ValueError, match="whole minute"):
            whole_minute(text)


# --- ranges ----------------------------------------------------------------------------------------


def span(*pairs: tuple[str, str]) -> tuple[str, str]:
    """The range of a question."""
    found = asked(*pairs).span
    first, end = (to_datetime(edge).isoformat()[:16] for edge in (found.start, found.end))
    return first, end


@pytest.mark.parametrize(
    ("start", "end", "covered"),
    [
        ("2026-11-09T00:00:00Z", "2026-11-09T23:59:59Z", ("2026-11-09T00:00", "2026-11-10T00:00")),
        ("2026-11-09T00:00:00Z", "2026-11-09T23:59:59.999Z", ("2026-11-09T00:00", "2026-11-10T00:00")),
        ("2026-11-09T12:34:56Z", "2026-11-09T12:35:00.000001Z", ("2026-11-09T12:34", "2026-11-09T12:36")),
        ("2026-11-09T12:34:59.9999999Z", "2026-11-09T12:35:00Z", ("2026-11-09T12:34", "2026-11-09T12:35")),
        ("2026-11-09T12:34:10Z", "2026-11-09T12:34:20Z", ("2026-11-09T12:34", "2026-11-09T12:35")),
        ("2026-11-09T12:34:00Z", "2026-11-09T12:34:00.1Z", ("2026-11-09T12:34", "2026-11-09T12:35")),
    ],
)
def test_a_range_off_the_minute_is_widened_to_whole_minutes(
    start: str, end: str, covered: tuple[str, str]
) -> None:
    assert span(("start", start), ("end", end)) == covered


def test_a_range_within_one_minute_still_ends_after_its_start() -> None:
    for end in ("2026-11-09T12:34:10Z", "2026-11-09T12:34:09Z"):
        assert faults(("start", "2026-11-09T12:34:10Z"), ("end", end)) == {"end": "must be after start"}


BY_CLIENT = ("groupBy", "client")
MTD_KOLKATA = (("last", "mtd"), ("timeZone", "Asia/Kolkata"))


@pytest.mark.parametrize(
    ("pairs", "covered"),
    [
        # It is 12:34:56 on 10 November.
        ((("last", "1h"),), ("2026-11-10T11:35", "2026-11-10T12:35")),
        ((("last", "24h"), ("granularity", "minute")), ("2026-11-09T12:35", "2026-11-10T12:35")),
        ((("last", "7d"),), ("2026-11-03T12:00", "2026-11-10T12:35")),
        ((("last", "30d"),), ("2026-10-11T12:00", "2026-11-10T12:35")),
        ((("last", "mtd"),), ("2026-11-01T00:00", "2026-11-10T12:35")),
        (MTD_KOLKATA, ("2026-10-31T18:30", "2026-11-10T12:35")),
        ((("last", "1h"), BY_CLIENT), ("2026-11-10T11:00", "2026-11-10T13:00")),
        ((("last", "30d"), BY_CLIENT), ("2026-10-11T12:00", "2026-11-10T13:00")),
        ((("last", "mtd"), BY_CLIENT), ("2026-11-01T00:00", "2026-11-10T13:00")),
    ],
)
def test_last_is_a_range_up_to_the_end_of_this_minute(
    pairs: tuple[tuple[str, str], ...], covered: tuple[str, str]
) -> None:
    assert span(*pairs) == covered


def test_last_of_a_whole_hour_is_no_hour_longer() -> None:
    parser = Parser(ranges=RangeConfig(), cursors=CURSORS, clock=lambda: NOW.replace(minute=59))
    found = parser.figures("usage", ORG, MultiDict([("last", "1h"), BY_CLIENT])).span
    assert found.end - found.start == 60


@pytest.mark.parametrize("edges", [RANGE, RANGE[:1], RANGE[1:]])
def test_last_stands_in_the_place_of_start_and_end(edges: tuple[tuple[str, str], ...]) -> None:
    assert faults(("last", "7d"), *edges).keys() == {"last"}
    assert faults(("last", "2h")).keys() == {"last"}


def test_a_month_to_date_by_client_needs_a_zone_on_the_whole_hour() -> None:
    assert faults(*MTD_KOLKATA, BY_CLIENT).keys() == {"timeZone"}


def test_pages_of_last_are_all_of_the_first_ones_range() -> None:
    first = asked(("last", "1h"))
    ended = (first.span.start, UUID(MODEL), "a")
    cursor = CURSORS.seal(position_sealed(first, ended), first.bound_to)
    later = Parser(ranges=RangeConfig(), cursors=CURSORS, clock=lambda: NOW + timedelta(minutes=30))
    second = later.figures("usage", ORG, MultiDict([("last", "1h"), ("cursor", cursor)]))
    assert (second.span, second.after) == (first.span, Position(*ended))
    assert later.figures("usage", ORG, MultiDict(last="1h")).span != first.span
    for other in ((("last", "24h"),), RANGE):
        assert faults(*other, ("cursor", cursor)).keys() == {"cursor"}
    assert faults(("last", "1h"), sealed(asked(*RANGE))).keys() == {"cursor"}


def test_all_orgs_are_asked_for_by_the_same_ranges() -> None:
    first = PARSER.orgs(MultiDict(last="24h"))
    assert first.span == asked(("last", "24h")).span
    cursor = CURSORS.seal(position_sealed(first, ORG), first.bound_to)
    later = Parser(ranges=RangeConfig(), cursors=CURSORS, clock=lambda: NOW + timedelta(minutes=30))
    second = later.orgs(MultiDict(last="24h", cursor=cursor))
    assert (second.span, second.after) == (first.span, ORG)
    widened = PARSER.orgs(MultiDict(start="2026-11-09T00:00:01Z", end="2026-11-09T23:59:59Z"))
    assert widened.span == Span(*(to_minute(datetime(2026, 11, day, tzinfo=UTC)) for day in (9, 10)))


def test_percentiles_are_asked_of_reliability_alone() -> None:
    pairs = (*RANGE, ("percentile", "p99"), ("percentile", "p50"), ("percentile", "p99"))
    assert asked(*pairs, route="reliability").percentiles == (Percentile.P50, Percentile.P99)
    assert asked(*RANGE, route="reliability").percentiles == ()
    assert faults(*pairs).keys() == {"percentile"}
    with pytest.raises(Problem) as caught:
        asked(*RANGE, ("percentile", "p90"), route="reliability")
    assert [fault.field for fault in caught.value.errors] == ["percentile"]


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


def test_a_filter_of_a_listing_is_in_its_cursor() -> None:
    chosen_by = (params.STATUS, params.export_status)

    def listed(*pairs: tuple[str, str]) -> ListingQuestion:
        return PARSER.listing("exports", ORG, MultiDict(pairs), UUID, chosen_by=chosen_by)

    failed = listed(("status", "failed"), ("status", "expired"), ("status", "failed"))
    assert failed.chosen == ("expired", "failed")
    cursor = ("cursor", CURSORS.seal(UUID(MODEL), failed.bound_to))
    assert listed(("status", "expired"), ("status", "failed"), cursor).after == UUID(MODEL)
    for other in ((), (("status", "failed"),)):
        with pytest.raises(Problem):
            listed(*other, cursor)
    with pytest.raises(Problem) as caught:
        listed(("status", "done"))
    assert [fault.field for fault in caught.value.errors] == ["status"]


def test_ranges_may_end_in_the_future() -> None:
    asked(("start", "2026-11-10T12:00:00Z"), ("end", "2026-12-10T12:00:00Z"))
    assert datetime(2026, 12, 10, tzinfo=UTC) - timedelta(days=1) > NOW
