"""The answers about budgets and alerts. `api.answering.answers` has those of all else."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta

from api.answering.answers import Answer, Count, Time

Number = Annotated[str, Meta(pattern=r"^\d+(\.\d+)?$")]
"""An exact number as text: dollars with two decimals or more, tokens or requests as whole numbers."""
Metric = Literal["cost", "tokens", "requests"]
PeriodName = Literal["day", "week", "month", "quarter", "year"]
Basis = Literal["actual", "forecast"]


class BudgetScope(Answer):
    """All null: the whole org. ``dimension`` may be ``client``. An empty ``value``: events without one."""

    model_id: UUID | None
    dimension: str | None
    value: str | None


class BudgetThreshold(Answer):
    """Either ``percent`` of the budget's amount, or an ``amount``; exact, as text."""

    percent: Number | None
    amount: Number | None
    on: Basis


class ThresholdState(Answer):
    """``level`` is what the threshold comes to. ``alarm``: the figure has reached it. ``resolved``: an alert
    was sent in this period, and the figure is below the level now. ``alertId``: the alert of this period."""

    percent: Number | None
    amount: Number | None
    on: Basis
    level: Number
    state: Literal["ok", "alarm", "resolved"]
    alert_id: UUID | None


class BudgetCurrent(Answer):
    """The period that runs now. ``spent`` is the usage of the period as ``/usage`` has it, without
    adjustments. ``forecast`` is what the period comes to if it goes on as it went up to the watermark; null
    while less than a twentieth of it has passed. ``remaining`` is null once the amount is reached.
    ``unpriced`` counts the calls whose cost nobody knows: they are not in ``spent``. ``state`` is alarm if a
    threshold is. ``fault`` says why there is no figure; null if there is one."""

    spent: Number | None
    forecast: Number | None
    remaining: Number | None
    unpriced: Count | None
    period_start: Time
    period_end: Time
    watermark: Time | None
    final: bool
    state: Literal["ok", "alarm"] | None
    thresholds: list[ThresholdState]
    price_version: Count | None
    fault: str | None


class Budget(Answer):
    """``amount`` is in US dollars, tokens or requests. Every change raises ``version``."""

    budget_id: UUID
    org_id: UUID
    version: Count
    name: str
    scope: BudgetScope
    metric: Metric
    period: PeriodName
    time_zone: str
    amount: Number
    thresholds: list[BudgetThreshold]
    created_at: Time
    updated_at: Time
    current: BudgetCurrent


class Budgets(Answer):
    """By name, whatever its case, and those of one name by id."""

    org_id: UUID
    org_name: str | None
    items: list[Budget]
    next_cursor: str | None


class BudgetHistoryItem(Answer):
    """A period before, judged by the budget as it is now. ``state`` is alarm if a threshold was reached.
    ``fault`` says why there is no figure."""

    period_start: Time
    period_end: Time
    spent: Number | None
    unpriced: Count | None
    final: bool
    state: Literal["ok", "alarm"] | None
    fault: str | None


class BudgetHistory(Answer):
    """The newest period first. The period that runs now is not among them."""

    org_id: UUID
    budget_id: UUID
    metric: Metric
    amount: Number
    items: list[BudgetHistoryItem]


class BudgetAlert(Answer):
    """A threshold that was reached, once a period. The figures are those that were judged: at ``watermark``,
    by ``priceVersion`` and by the budget's ``budgetVersion``. ``final``: only a backfill can change them.
    ``scope``, ``metric``, ``period`` and ``timeZone`` are what the budget counted then, whatever it counts
    now. ``crossedAt`` is when the level was reached, by the time of the events; of a forecast it is the
    watermark. ``resolvedBecause``: the ``figure`` fell below the level, or the ``budget`` was changed."""

    alert_id: UUID
    budget_id: UUID
    budget_name: str
    budget_version: Count
    scope: BudgetScope
    metric: Metric
    period: PeriodName
    time_zone: str
    period_start: Time
    period_end: Time
    percent: Number | None
    amount: Number | None
    on: Basis
    level: Number
    budget_amount: Number
    spent: Number
    forecast: Number | None
    unpriced: Count
    state: Literal["alarm", "resolved"]
    watermark: Time | None
    final: bool
    price_version: Count
    crossed_at: Time
    judged_at: Time
    resolved_at: Time | None
    resolved_because: Literal["figure", "budget"] | None
    resolved_spent: Number | None
    resolved_watermark: Time | None
