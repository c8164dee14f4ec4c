"""The rules of budgets: periods in time zones, levels, the forecast with its error, and the states."""

from __future__ import annotations

import csv
import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.asking.buckets import Span, to_datetime, to_minute
from api.asking.limits import Limits
from api.budgets import orders
from api.budgets.kept import number_of, shown
from api.budgets.periods import Period, begins_on_hours, span_of, spans_between
from api.budgets.rules import (
    Basis,
    Metric,
    Plan,
    Scope,
    State,
    Threshold,
    crossed,
    forecast,
    is_final,
    steps,
    threshold_of,
)
from api.config import RangeConfig
from pipeline.common.problems import Problem
from tests.support.traces import NAMES, path

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia")
DOLLAR = 10**20


def minute(text: str) -> int:
    return to_minute(datetime.fromisoformat(text).replace(tzinfo=UTC))


def plan(amount: str = "250", *thresholds: Threshold, metric: Metric = Metric.COST) -> Plan:
    return Plan(
        name="b",
        scope=Scope(),
        metric=metric,
        period=Period.MONTH,
        zone=ZoneInfo("UTC"),
        amount=Decimal(amount),
        thresholds=thresholds or (Threshold(basis=Basis.ACTUAL, percent=Decimal(80)),),
    )


def local_key(at: datetime, period: Period) -> Any:
    """What two instants of one period have in common, by the calendar on the wall."""
    if period is Period.DAY:
        return at.date()
    if period is Period.WEEK:
        return at.isocalendar()[:2]
    return at.year, {Period.MONTH: at.month, Period.QUARTER: (at.month + 2) // 3, Period.YEAR: 0}[period]


@given(
    zone=st.sampled_from(ZONES),
    period=st.sampled_from(list(Period)),
    at=st.integers(minute("2010-01-01"), minute("2030-01-01")),
)
def test_a_period_holds_the_minutes_that_share_its_date_on_the_wall(
    zone: str, period: Period, at: int
) -> None:
    info = ZoneInfo(zone)
    span = span_of(period, info, at)
    assert span.start <= at < span.end

    def key(minute: int) -> Any:
        return local_key(to_datetime(minute).astimezone(info), period)

    assert key(span.start) == key(at) == key(span.end - 1)
    assert key(span.start - 1) != key(at) != key(span.end)
    assert span_of(period, info, span.end).start == span.end


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29T12:00", 23), ("2026-10-25T12:00", 25), ("2026-06-01T12:00", 24)]
)
def test_a_day_in_berlin_has_23_to_25_hours(day: str, hours: int) -> None:
    span = span_of(Period.DAY, ZoneInfo("Europe/Berlin"), minute(day))
    assert span.end - span.start == hours * 60


def test_a_quarter_begins_with_the_local_midnight_of_april() -> None:
    span = span_of(Period.QUARTER, ZoneInfo("America/New_York"), minute("2026-05-05"))
    assert (span.start, span.end) == (minute("2026-04-01T04:00"), minute("2026-07-01T04:00"))


def test_periods_between_two_minutes_follow_one_another() -> None:
    zone = ZoneInfo("America/New_York")
    found = list(spans_between(Period.DAY, zone, minute("2026-10-30T12:00"), minute("2026-11-03T12:00")))
    assert len(found) == 5
    assert all(one.end == other.start for one, other in itertools.pairwise(found))


def test_zones_off_the_hour_are_known() -> None:
    now = minute("2026-11-30")
    assert [begins_on_hours(ZoneInfo(zone), now) for zone in ZONES] == [True, True, True, False, False, True]


def test_a_threshold_is_crossed_at_exactly_its_level() -> None:
    budget = plan()
    assert budget.levels().keys() == {(Basis.ACTUAL, 200 * DOLLAR)}
    assert list(crossed(budget, 200 * DOLLAR, None)) == [(Basis.ACTUAL, 200 * DOLLAR)]
    assert list(crossed(budget, 200 * DOLLAR - 1, 10**30)) == []


def test_a_level_of_tokens_is_rounded_up_to_a_whole_one() -> None:
    third = Threshold(basis=Basis.ACTUAL, percent=Decimal("33.33"))
    assert plan("10", third, metric=Metric.TOKENS).level(third) == 4


@given(units=st.integers(0, 10**35))
def test_units_of_cost_are_shown_exactly(units: int) -> None:
    text = shown(Metric.COST, number_of(Metric.COST, units))
    assert plan().units(Decimal(text)) == units
    whole, _, decimals = text.partition(".")
    assert int(whole + decimals.ljust(20, "0")) == units
    assert "E" not in text


def test_a_threshold_is_kept_as_it_was_given() -> None:
    for one in (
        Threshold(basis=Basis.FORECAST, percent=Decimal("80.50")),
        Threshold(basis=Basis.ACTUAL, amount=Decimal(1000)),
    ):
        assert threshold_of(one.shown()) == one


def test_the_forecast_goes_on_as_the_period_went() -> None:
    day = Span(minute("2026-11-30"), minute("2026-12-01"))
    at = datetime(2026, 11, 30, 6, tzinfo=UTC)
    assert forecast(30, day, at) == 120
    assert forecast(30, day, at - timedelta(hours=5)) is None  # less than a twentieth
    assert forecast(30, day, datetime(2026, 12, 3, tzinfo=UTC)) == 30
    assert forecast(30, day, None) is None


ERRORS = {  # percent of what the excerpt came to, after a quarter, a half and three quarters of it
    "azure_llm_trace_2023_code.csv": (-2, -26, -7),
    "azure_llm_trace_2023_conv.csv": (-48, -14, -7),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_forecast_errs_on_the_public_traces_as_the_page_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPENDSTREAM_TRACES", raising=False)
    with path(name).open() as file:
        calls = [
            (
                datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC),
                int(row["ContextTokens"]) + int(row["GeneratedTokens"]),
            )
            for row in csv.DictReader(file)
        ]
    span = Span(to_minute(calls[0][0]), to_minute(calls[-1][0]))
    whole = sum(tokens for at, tokens in calls if to_minute(at) < span.end)
    errors = []
    for quarter in (1, 2, 3):
        now = span.start + (span.end - span.start) * quarter // 4
        spent = sum(tokens for at, tokens in calls if to_minute(at) < now)
        expected = forecast(spent, span, to_datetime(now))
        assert expected is not None
        errors.append(round(100 * (expected / whole - 1)))
    assert tuple(errors) == ERRORS[name]


def test_a_period_is_final_once_the_watermark_is_past_it_by_the_dedupe_window() -> None:
    day = Span(minute("2026-11-29"), minute("2026-11-30"))
    assert is_final(day, datetime(2026, 12, 1, tzinfo=UTC), 86_400)
    assert not is_final(day, datetime(2026, 12, 1, tzinfo=UTC) - timedelta(microseconds=1), 86_400)
    assert not is_final(day, None, 86_400)


ACTUAL = (Basis.ACTUAL, 200 * DOLLAR)


def test_the_states_of_a_threshold() -> None:
    budget, high, low = plan(), 200 * DOLLAR, 10 * DOLLAR
    (step,) = steps(budget, high, None, {})
    assert (step.basis, step.level, step.to, step.because) == (*ACTUAL, State.ALARM, None)
    assert not steps(budget, high, None, {ACTUAL: State.ALARM})
    assert not steps(budget, low, None, {})
    (step,) = steps(budget, low, None, {ACTUAL: State.ALARM})
    assert (step.to, step.because) == (State.RESOLVED, "figure")
    assert not steps(budget, low, None, {ACTUAL: State.RESOLVED})
    (step,) = steps(budget, high, None, {ACTUAL: State.RESOLVED})
    assert step.to is State.ALARM


def test_a_raised_budget_resolves_the_alarm_of_its_old_level() -> None:
    (step,) = steps(plan("1000"), 200 * DOLLAR, None, {ACTUAL: State.ALARM})
    assert (step.level, step.to, step.because) == (200 * DOLLAR, State.RESOLVED, "budget")


# --- bodies ---

GOOD = {
    "name": "b",
    "metric": "cost",
    "period": "month",
    "amount": "250",
    "thresholds": [{"percent": 80, "on": "actual"}, {"amount": "99.5", "on": "forecast"}],
}


def limits(**given: Any) -> Limits:
    return Limits(ranges=RangeConfig(**given), now=minute("2026-11-30"))


def faults(given: dict[str, Any], **ranges: Any) -> list[str]:
    with pytest.raises(Problem) as caught:
        orders.plan(msgspec.json.encode(GOOD | given), limits(**ranges))
    return [fault.field for fault in caught.value.errors]


def test_a_body_becomes_a_plan() -> None:
    found = orders.plan(msgspec.json.encode(GOOD), limits())
    assert found.amount == 250
    assert found.zone.key == "UTC"
    assert found.levels().keys() == {ACTUAL, (Basis.FORECAST, 995 * DOLLAR // 10)}


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"name": " "}, ["name"]),
        ({"name": "a\u202eb"}, ["name"]),
        ({"metric": "dollars", "period": "hour"}, ["metric", "period"]),
        ({"scope": {"modelId": "x"}}, ["scope.modelId"]),
        ({"scope": {"dimension": "team"}}, ["scope"]),
        ({"scope": {"dimension": "Team", "value": ""}}, ["scope.dimension"]),
        ({"amount": 250}, ["amount"]),
        ({"amount": "0"}, ["amount"]),
        ({"amount": "1e9"}, ["amount"]),
        ({"amount": "9999999999999999"}, ["amount"]),
        ({"metric": "tokens", "amount": "1.5", "thresholds": [{"percent": 1, "on": "actual"}]}, ["amount"]),
        ({"thresholds": []}, ["thresholds"]),
        ({"thresholds": [{"percent": 80, "on": "actual"}] * 2}, ["thresholds"]),
        (
            {"thresholds": [{"percent": 80, "on": "actual"}, {"amount": "200", "on": "actual"}]},
            ["thresholds"],
        ),
        ({"thresholds": [{"percent": 80.005, "on": "actual"}]}, ["thresholds[0].percent"]),
        ({"thresholds": [{"percent": True, "on": "actual"}]}, ["thresholds[0].percent"]),
        ({"thresholds": [{"percent": 80, "on": "sum"}]}, ["thresholds[0].on"]),
        ({"thresholds": [{"percent": 80, "amount": "1", "on": "actual"}]}, ["thresholds[0]"]),
        ({"timeZone": "Mars/Olympus"}, ["timeZone"]),
        ({"more": 1}, ["more"]),
    ],
)
def test_every_fault_of_a_body_is_said(given: dict[str, Any], fields: list[str]) -> None:
    assert faults(given) == fields


def test_a_zone_off_the_hour_needs_rows_for_its_days() -> None:
    off = {"timeZone": "Asia/Kolkata"}
    assert faults(off) == ["timeZone"]
    assert faults(off | {"scope": {"dimension": "client", "value": "a"}}, day_zones=("Asia/Kolkata",)) == [
        "timeZone"
    ]
    named = limits(day_zones=("Asia/Kolkata",))
    assert orders.plan(msgspec.json.encode(GOOD | off), named).zone.key == "Asia/Kolkata"
    assert orders.plan(msgspec.json.encode(GOOD | off | {"period": "week"}), limits()).period is Period.WEEK


def test_a_period_longer_than_rows_are_kept_is_refused() -> None:
    assert faults({"period": "year"}, retention_rollup_s=300 * 86_400.0) == ["period"]
