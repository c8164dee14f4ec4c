"""The screen before judging: it lets pass only what cannot have reached a level."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from api.alerts.screen import Mark, Note, Recent, Sums, note
from api.asking.buckets import DAY, to_minute
from api.asking.params import CostBasis
from api.budgets.periods import Period, span_of
from api.budgets.rules import Basis, Budget, Metric, Plan, Scope, Spent, Threshold
from api.budgets.spending import Spending, Wanted
from api.reading.prices import Book

ORG = uuid.UUID(int=1)
WINDOW_S = 86_400.0
WATERMARK = datetime(2026, 11, 20, 12, tzinfo=UTC)
AT = to_minute(WATERMARK)
MARK = Mark(changes=1, price_version=0, places="0=1", basis="0=1/0", budgets=1, newest=AT, watermark=AT)

BOOK = Book(version=0, basis=CostBasis.AUTO, org_ids=[ORG], sheets=None, moments=())


def noted(
    spent: int, *thresholds: tuple[str, str], sums: Sums = (0.0, 0.0, 500.0), period: str = "month"
) -> Note:
    """The note of an org with a budget of 1,000 requests, of which so many are spent."""
    plan = Plan(
        name="b",
        scope=Scope(),
        metric=Metric.REQUESTS,
        period=Period(period),
        zone=ZoneInfo("UTC"),
        amount=Decimal(1000),
        thresholds=tuple(Threshold(basis=Basis(on), percent=Decimal(percent)) for on, percent in thresholds),
    )
    budget = Budget(
        budget_id=uuid.UUID(int=2),
        org_id=ORG,
        version=1,
        definition=1,
        plan=plan,
        created_at=WATERMARK,
        updated_at=WATERMARK,
        judged_from=WATERMARK,
        closed_to=None,
    )
    span = span_of(plan.period, plan.zone, AT)
    found = Spent(units=spent, unpriced=0, watermark=WATERMARK, final=False, price_version=0)
    figures = Spending({(budget.budget_id, span.start): found}, {}, BOOK, {})
    made = note(ORG, [Wanted(budget, span)], figures, WATERMARK, WINDOW_S)
    assert made is not None
    made.recent = Recent([sums] * len(made.scopes), "")
    return made


@pytest.mark.parametrize(("requests", "still"), [(500, True), (799, True), (800, False), (499, False)])
def test_a_sum_that_grew_by_its_room_or_fell_is_judged(requests: int, still: bool) -> None:
    one = noted(500, ("actual", "80"))
    assert one.still(MARK, Recent([(0.0, 0.0, float(requests))], "")) is still


def test_the_nearest_level_that_is_not_reached_decides() -> None:
    one = noted(500, ("actual", "50"), ("actual", "100"), ("actual", "60"))
    assert one.still(MARK, Recent([(0.0, 0.0, 599.0)], ""))
    assert not one.still(MARK, Recent([(0.0, 0.0, 600.0)], ""))


def test_a_forecast_is_judged_when_it_may_reach_a_level_or_fall_below_one() -> None:
    # 19.5 of 30 days have passed: 650 requests make 1,000, and 640 make 984.6.
    below = noted(640, ("forecast", "100"))
    assert below.still(MARK, Recent([(0.0, 0.0, 509.0)], ""))
    assert not below.still(MARK, Recent([(0.0, 0.0, 510.0)], ""))
    above = noted(660, ("forecast", "100"))
    assert above.still(MARK, Recent([(0.0, 0.0, 500.0)], ""))
    later = replace(MARK, watermark=AT + 12 * 60)  # 660 requests in 20 days make 990
    assert not above.still(later, Recent([(0.0, 0.0, 500.0)], ""))


def test_times_and_names_have_an_org_judged() -> None:
    one = noted(500, ("actual", "80"))
    same = Recent([(0.0, 0.0, 500.0)], "")
    december = to_minute(datetime(2026, 12, 1, tzinfo=UTC))
    assert one.still(replace(MARK, newest=december - 1), same)
    assert not one.still(replace(MARK, newest=december), same)
    assert not one.still(replace(MARK, watermark=december + DAY), same)
    assert not one.still(MARK, Recent(same.sums, "1"))
    assert not one.still(replace(MARK, watermark=None), same)


def test_recent_are_the_days_in_which_events_still_count() -> None:
    """Events of a day before the watermark are counted, and an hour more for clocks that differ."""
    assert noted(0, ("actual", "80")).cut == to_minute(datetime(2026, 11, 19, tzinfo=UTC))
    at = datetime(2026, 11, 20, 0, 59, tzinfo=UTC)
    nothing = Spending({}, {}, BOOK, {})
    made = note(ORG, [], nothing, at, WINDOW_S)
    assert made is not None
    assert made.cut == to_minute(at - timedelta(days=1, hours=1)) // DAY * DAY
    assert note(ORG, [], nothing, None, WINDOW_S) is None


def test_a_budget_of_which_all_is_reached_needs_no_sums() -> None:
    assert noted(900, ("actual", "80")).scopes == ()
