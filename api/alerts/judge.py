"""One transaction that judges the budgets of some orgs, and commits what has changed.

Everything is of one snapshot: the budgets, the rows of usage, the watermarks and the price book. So an alert
says by which version of the book and of the budget it was judged, and at which watermark. Three things could
make it wrong, and this is what holds:

1. The process dies, at any statement. Nothing is committed, and whoever looks next finds the same.
2. A budget is changed meanwhile. Before the first write, the transaction takes a lock on the budgets it says
   something about. A budget that was changed since the snapshot fails the transaction (SQLSTATE 40001), and
   the transaction is done again in a new snapshot.
3. Another process judges the same. The key of the alert is unique, so one of the two fails, too.

What is to be sent goes into the outbox in the same transaction. So there is no alert without its messages,
and no message without its alert.

A price that is appended meanwhile is not in the snapshot. The next look judges with it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import Jsonb

from api.alerts import screen
from api.alerts.screen import Note, note
from api.asking.buckets import Span, to_datetime, to_minute
from api.asking.limits import Limits
from api.budgets import kept, spending
from api.budgets.kept import Alert, AlertKey
from api.budgets.periods import spans_between
from api.budgets.rules import Basis, Budget, Spent, State, Step, forecast, is_final, steps
from api.budgets.spending import Spending, Wanted
from api.reading.database import rows
from api.webhooks import kept as webhooks
from api.webhooks import messages
from pipeline.common.connect import AsyncConnection
from sql import queries

SQL: Final = {
    name: text.replace("{columns}", kept.COLUMNS).replace("{alert_columns}", kept.ALERT_COLUMNS)
    for name, text in queries.load("alerts").items()
}


@dataclass(slots=True)
class Judged:
    """What was found: how many budgets were judged, for how many of them all rows were read, how many periods
    that were, what was raised and resolved, and how many periods have no figure."""

    budgets: int = 0
    read: int = 0
    periods: int = 0
    raised: int = 0
    resolved: int = 0
    faults: int = 0

    def add(self, other: Judged) -> None:
        """Count what another transaction found."""
        for name in Judged.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a transaction has found, and by which figures. ``notes`` are for the next looks, by org."""

    judged: Judged
    notes: Mapping[UUID, Note] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Change:
    """A step of a threshold, with all that is said of it. ``spent`` None: the period is judged no more."""

    budget: Budget
    span: Span
    step: Step
    spent: Spent | None
    expected: int | None
    alert: Alert | None = field(default=None)


async def judge(connection: AsyncConnection, org_ids: Sequence[UUID], limits: Limits) -> Judgement:
    """Judge all budgets of the orgs. The transaction must be REPEATABLE READ, and the caller commits it.

    Raises:
        psycopg.errors.SerializationFailure: a budget or an alert was changed meanwhile; try again.
    """
    found = [kept.budget_of(row) for row in await rows(connection, SQL["budgets"], _of(org_ids), dict_row)]
    watermarks, newest = await spending.watermarks_of(connection, org_ids)
    seen = [budget for budget in found if budget.org_id in newest]
    wanted = [one for budget in seen for one in _open_periods(budget, newest[budget.org_id])]
    if not wanted:
        return Judgement(Judged())
    figures = await spending.read(connection, wanted, limits, watermarks)
    alerts = await kept.alerts_of(connection, seen, to_datetime(min(one.span.start for one in wanted)))
    changes = [*_steps(wanted, figures, alerts), *_gone(seen, wanted, alerts)]
    judged = Judged(budgets=len(seen), read=len(seen), periods=len(wanted), faults=len(figures.faults))
    if changes:
        held = sorted({change.budget.budget_id for change in changes})
        await connection.execute(SQL["hold"], {"budget_ids": held})
        told = await _told(connection, sorted({change.budget.org_id for change in changes}))
        for change in changes:
            await _commit(connection, change, figures, told, judged)
    window_s = limits.ranges.dedupe_window_s
    await _close(connection, wanted, watermarks, window_s)
    by_org: dict[UUID, list[Wanted]] = {}
    for one in wanted:
        by_org.setdefault(one.budget.org_id, []).append(one)
    notes = [note(org, of_org, figures, watermarks.get(org), window_s) for org, of_org in by_org.items()]
    noted = [one for one in notes if one is not None]
    recent = await screen.read(connection, noted, to_minute(max(newest.values())))
    for kept_note, now in zip(noted, recent, strict=True):
        kept_note.recent = now
    return Judgement(judged, {one.org_id: one for one in noted})


def _of(org_ids: Sequence[UUID]) -> dict[str, Any]:
    return {"org_ids": list(org_ids)}


def _open_periods(budget: Budget, newest: datetime) -> Iterable[Wanted]:
    """The periods that are not closed, up to the one of the org's newest event.

    A later period has no events, so no threshold of it is reached.
    """
    plan, first = budget.plan, budget.open_from
    last = max(first, to_minute(newest))
    return [Wanted(budget, span) for span in spans_between(plan.period, plan.zone, first, last)]


def _steps(
    wanted: Iterable[Wanted], figures: Spending, alerts: Mapping[AlertKey, Alert]
) -> Iterable[_Change]:
    by_period: dict[tuple[UUID, int, datetime], dict[tuple[Basis, int], Alert]] = {}
    for (budget_id, definition, start, basis, level), alert in alerts.items():
        by_period.setdefault((budget_id, definition, start), {})[basis, level] = alert
    for one in wanted:
        spent, _ = figures.of(one)
        if spent is None:
            continue
        budget, plan = one.budget, one.budget.plan
        known = by_period.get((budget.budget_id, budget.definition, to_datetime(one.span.start)), {})
        expected = forecast(spent.units, one.span, spent.watermark)
        states = {key: alert.state for key, alert in known.items()}
        for step in steps(plan, spent.units, expected, states):
            before = known.get((step.basis, step.level))
            yield _Change(budget, one.span, step, spent, expected, before)


def _gone(
    budgets: Iterable[Budget], wanted: Iterable[Wanted], alerts: Mapping[AlertKey, Alert]
) -> Iterable[_Change]:
    """Alarms of periods that ran when the budget was given another definition."""
    judged = {
        (one.budget.budget_id, one.budget.definition, to_datetime(one.span.start), to_datetime(one.span.end))
        for one in wanted
    }
    by_id = {budget.budget_id: budget for budget in budgets}
    for (budget_id, definition, start, basis, level), alert in alerts.items():
        budget, end = by_id[budget_id], alert.row["period_end"]
        runs = to_minute(end) > budget.open_from
        if alert.state is State.ALARM and runs and (budget_id, definition, start, end) not in judged:
            span = Span(to_minute(start), to_minute(end))
            yield _Change(budget, span, Step(basis, level, State.RESOLVED, "budget"), None, None, alert)


async def _commit(
    connection: AsyncConnection, change: _Change, figures: Spending, told: _Told, judged: Judged
) -> None:
    """Write a change, and put what is to be said of it into the outbox."""
    step, alert = change.step, change.alert
    if step.to is State.RESOLVED:
        assert alert is not None
        if await rows(connection, SQL["resolve"], _resolved(change), tuple_row):
            judged.resolved += 1
            await _queue(connection, messages.RESOLVED, alert.alert_id, told)
    elif alert is not None:
        await connection.execute(SQL["again"], {"alert_id": alert.alert_id})
    else:
        raised = await _raised(connection, change, figures)
        if await rows(connection, SQL["raise"], raised, tuple_row):
            judged.raised += 1
            await _queue(connection, messages.ALERT, raised["alert_id"], told)


@dataclass(frozen=True, slots=True)
class _Told:
    """Who is told: the webhooks of each org, and the names of the orgs."""

    webhooks: Mapping[UUID, Sequence[Mapping[str, Any]]]
    names: Mapping[UUID, str]


async def _told(connection: AsyncConnection, org_ids: Sequence[UUID]) -> _Told:
    by_org: dict[UUID, list[Mapping[str, Any]]] = {}
    for row in await rows(connection, webhooks.SQL["enabled"], _of(org_ids), dict_row):
        by_org.setdefault(row["org_id"], []).append(row)
    return _Told(by_org, dict(await rows(connection, SQL["names"], _of(org_ids), tuple_row)))


async def _queue(connection: AsyncConnection, kind: str, alert_id: UUID, told: _Told) -> None:
    """Put a message about an alert into the outbox, one for each webhook of the org."""
    (row,) = await rows(connection, SQL["shown"], {"alert_id": alert_id}, dict_row)
    org_id, alert = row["org_id"], kept.alert_shown(row)
    at = alert.resolved_at if kind == messages.RESOLVED and alert.resolved_at else alert.judged_at
    for webhook in told.webhooks.get(org_id, ()):
        body = messages.of_alert(webhook["format"], kind, at, org_id, told.names.get(org_id), alert)
        values = webhooks.queued(webhook, kind, body, alert_id)
        await rows(connection, webhooks.SQL["queue"], values, dict_row)


def _resolved(change: _Change) -> dict[str, Any]:
    assert change.alert is not None
    metric, spent = change.budget.plan.metric, change.spent
    return {
        "alert_id": change.alert.alert_id,
        "because": change.step.because,
        "spent": None if spent is None else kept.number_of(metric, spent.units),
        "watermark": None if spent is None else spent.watermark,
    }


async def _raised(connection: AsyncConnection, change: _Change, figures: Spending) -> dict[str, Any]:
    """The columns of a new alert."""
    budget, span, step, spent, expected = (
        change.budget,
        change.span,
        change.step,
        change.spent,
        change.expected,
    )
    assert spent is not None
    metric = budget.plan.metric
    threshold = budget.plan.levels()[step.basis, step.level]
    if step.basis is Basis.ACTUAL:
        crossed_at = await spending.crossed_at(connection, budget, span, step.level, figures)
    else:
        assert spent.watermark is not None  # else there is no forecast
        crossed_at = spent.watermark
    return {
        "alert_id": uuid.uuid4(),
        "org_id": budget.org_id,
        "budget_id": budget.budget_id,
        "definition": budget.definition,
        **budget.plan.counted,
        "period_start": to_datetime(span.start),
        "period_end": to_datetime(span.end),
        "basis": step.basis.value,
        "level": kept.number_of(metric, step.level),
        "budget_version": budget.version,
        "price_version": spent.price_version,
        "threshold": Jsonb(threshold.shown()),
        "amount": budget.plan.amount,
        "spent": kept.number_of(metric, spent.units),
        "forecast": None if expected is None else kept.number_of(metric, expected),
        "unpriced": spent.unpriced,
        "watermark": spent.watermark,
        "final": spent.final,
        "crossed_at": crossed_at,
    }


async def _close(
    connection: AsyncConnection,
    wanted: Iterable[Wanted],
    watermarks: Mapping[UUID, datetime | None],
    dedupe_window_s: float,
) -> None:
    """Remember the periods that were judged for the last time: their figures are final."""
    closed: dict[UUID, tuple[Budget, int]] = {}
    for one in wanted:
        if is_final(one.span, watermarks.get(one.budget.org_id), dedupe_window_s):
            closed[one.budget.budget_id] = one.budget, one.span.end
    for budget_id, (budget, end) in sorted(closed.items()):
        values = {"budget_id": budget_id, "version": budget.version, "closed_to": to_datetime(end)}
        await connection.execute(SQL["close"], values)
