"""Budgets and alerts as the database keeps them, and how answers show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from api.answering import budgets as answers
from api.answering.money import UNIT_DECIMALS, dollars_of
from api.asking.buckets import Span, to_datetime
from api.budgets.periods import Period
from api.budgets.rules import (
    Basis,
    Budget,
    Metric,
    Plan,
    Scope,
    Spent,
    State,
    Threshold,
    crossed,
    forecast,
    plain,
    threshold_of,
    units,
    worst,
)
from api.reading.database import rows
from pipeline.common.connect import AsyncConnection
from sql import queries

COLUMNS: Final = (
    "budget_id, org_id, version, definition, name, model_id, dimension, value, metric, period, time_zone,"
    " amount, thresholds, created_at, updated_at, judged_from, closed_to"
)
ALERT_COLUMNS: Final = (
    "a.alert_id, a.budget_id, a.definition, a.model_id, a.dimension, a.value, a.metric, a.period,"
    " a.time_zone, a.period_start, a.period_end, a.basis, a.level, a.state, a.budget_version,"
    " a.price_version, a.threshold, a.amount AS budget_amount, a.spent, a.forecast, a.unpriced, a.watermark,"
    " a.final, a.crossed_at, a.judged_at, a.resolved_at, a.resolved_because, a.resolved_spent,"
    " a.resolved_watermark"
)
SQL: Final = {
    name: text.replace("{columns}", COLUMNS).replace("{alert_columns}", ALERT_COLUMNS)
    for name, text in queries.load("budgets").items()
}


_KEPT: Final = (
    "budget_id",
    "org_id",
    "version",
    "definition",
    "created_at",
    "updated_at",
    "judged_from",
    "closed_to",
)
"""The columns of a budget that are no part of its plan."""


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that was committed. ``row`` has its columns."""

    alert_id: UUID
    state: State
    row: Mapping[str, Any]


AlertKey = tuple[UUID, int, datetime, Basis, int]
"""Budget, its definition, start of the period, basis, and level in units."""


def values_of(plan: Plan) -> dict[str, Any]:
    """A plan as the values of the queries ``create`` and ``change``."""
    thresholds = Jsonb([one.shown() for one in plan.thresholds])
    return {**plan.counted, "name": plan.name, "amount": plan.amount, "thresholds": thresholds}


def budget_of(row: Mapping[str, Any]) -> Budget:
    """The budget of a row of ``analytics.budgets``."""
    plan = Plan(
        name=row["name"],
        scope=scope_of(row),
        metric=Metric(row["metric"]),
        period=Period(row["period"]),
        zone=ZoneInfo(row["time_zone"]),
        amount=row["amount"],
        thresholds=tuple(map(threshold_of, row["thresholds"])),
    )
    return Budget(plan=plan, **{name: row[name] for name in _KEPT})


def scope_of(row: Mapping[str, Any]) -> Scope:
    """The scope of a budget, or of an alert as it was judged."""
    return Scope(model_id=row["model_id"], dimension=row["dimension"], value=row["value"])


async def budgets(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> list[Budget]:
    """The budgets that a query of `SQL` finds or writes."""
    return [budget_of(row) for row in await rows(connection, SQL[name], values, dict_row)]


async def alerts_of(
    connection: AsyncConnection, wanted: Iterable[Budget], ends_after: datetime
) -> dict[AlertKey, Alert]:
    """The alerts of some budgets in the periods that end after an instant, of all their definitions."""
    values = {"budget_ids": sorted({budget.budget_id for budget in wanted}), "ends_after": ends_after}
    found = {}
    for row in await rows(connection, SQL["alerts_of_budgets"], values, dict_row):
        level = units(Metric(row["metric"]), row["level"])
        key = row["budget_id"], row["definition"], row["period_start"], Basis(row["basis"]), level
        found[key] = Alert(row["alert_id"], State(row["state"]), row)
    return found


# --- answers ---


def shown(metric: Metric, number: Decimal) -> str:
    """A number of dollars, tokens or requests as answers have it."""
    return dollars_of(number) if metric is Metric.COST else plain(number)


def number_of(metric: Metric, units: int) -> Decimal:
    """Units as an exact number of dollars, tokens or requests."""
    if metric is not Metric.COST:
        return Decimal(units)
    return Decimal((0, tuple(map(int, str(units))), -UNIT_DECIMALS))


def _shown_units(metric: Metric, units: int | None) -> str | None:
    return None if units is None else shown(metric, number_of(metric, units))


def _threshold(metric: Metric, threshold: Threshold) -> dict[str, str | None]:
    return {
        "percent": None if threshold.percent is None else plain(threshold.percent),
        "amount": None if threshold.amount is None else shown(metric, threshold.amount),
        "on": threshold.basis.value,
    }


def _scope_shown(scope: Scope) -> answers.BudgetScope:
    return answers.BudgetScope(model_id=scope.model_id, dimension=scope.dimension, value=scope.value)


def budget_shown(budget: Budget, current: answers.BudgetCurrent) -> answers.Budget:
    plan = budget.plan
    return answers.Budget(
        budget_id=budget.budget_id,
        org_id=budget.org_id,
        version=budget.version,
        name=plan.name,
        scope=_scope_shown(plan.scope),
        metric=plan.metric.value,
        period=plan.period.value,
        time_zone=plan.zone.key,
        amount=shown(plan.metric, plan.amount),
        thresholds=[
            answers.BudgetThreshold(**_threshold(plan.metric, one))  # type: ignore[arg-type]
            for one in plan.thresholds
        ],
        created_at=budget.created_at,
        updated_at=budget.updated_at,
        current=current,
    )


def current_shown(
    budget: Budget, span: Span, spent: Spent | None, fault: str | None, alerts: Mapping[AlertKey, Alert]
) -> answers.BudgetCurrent:
    """The period of ``span`` with the states of its thresholds, by the figures of the same snapshot."""
    plan, start = budget.plan, to_datetime(span.start)
    expected = forecast(spent.units, span, spent.watermark) if spent else None
    due = set(crossed(plan, spent.units, expected)) if spent else set()
    states = []
    for (basis, level), threshold in plan.levels().items():
        alert = alerts.get((budget.budget_id, budget.definition, start, basis, level))
        below = State.OK if alert is None else State.RESOLVED
        states.append(
            answers.ThresholdState(
                **_threshold(plan.metric, threshold),  # type: ignore[arg-type]
                level=shown(plan.metric, number_of(plan.metric, level)),
                state=(State.ALARM if (basis, level) in due else below).value,
                alert_id=alert.alert_id if alert else None,
            )
        )
    left = plan.units(plan.amount) - spent.units if spent else -1
    return answers.BudgetCurrent(
        spent=_shown_units(plan.metric, spent.units if spent else None),
        forecast=_shown_units(plan.metric, expected),
        remaining=_shown_units(plan.metric, left if left > 0 else None),
        unpriced=spent.unpriced if spent else None,
        period_start=start,
        period_end=to_datetime(span.end),
        watermark=spent.watermark if spent else None,
        final=spent.final if spent else False,
        state=_worst(due) if spent else None,
        thresholds=states,
        price_version=spent.price_version if spent else None,
        fault=fault,
    )


def period_shown(
    budget: Budget, span: Span, spent: Spent | None, fault: str | None
) -> answers.BudgetHistoryItem:
    due = set(crossed(budget.plan, spent.units, spent.units)) if spent else set()
    return answers.BudgetHistoryItem(
        period_start=to_datetime(span.start),
        period_end=to_datetime(span.end),
        spent=_shown_units(budget.plan.metric, spent.units if spent else None),
        unpriced=spent.unpriced if spent else None,
        final=spent.final if spent else False,
        state=_worst(due) if spent else None,
        fault=fault,
    )


def _worst(due: Iterable[Any]) -> Any:
    return worst(State.ALARM for _ in due).value


_SAME: Final = (
    "alert_id",
    "budget_id",
    "budget_name",
    "budget_version",
    "metric",
    "period",
    "time_zone",
    "period_start",
    "period_end",
    "unpriced",
    "state",
    "watermark",
    "final",
    "price_version",
    "crossed_at",
    "judged_at",
    "resolved_at",
    "resolved_because",
    "resolved_watermark",
)
"""The columns of an alert that its answer has as they are."""


def alert_shown(row: Mapping[str, Any]) -> answers.BudgetAlert:
    """An alert from a row of the query ``alerts_page``."""
    metric = Metric(row["metric"])
    numbers = ("level", "budget_amount", "spent", "forecast", "resolved_spent")
    return answers.BudgetAlert(
        **{name: row[name] for name in _SAME},
        **{name: None if row[name] is None else shown(metric, row[name]) for name in numbers},  # type: ignore[arg-type]
        **_threshold(metric, threshold_of(row["threshold"])),  # type: ignore[arg-type]
        scope=_scope_shown(scope_of(row)),
    )
