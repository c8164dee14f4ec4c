"""What was spent in periods of budgets: many budgets of many orgs in one statement.

The figures are those of ``/usage``: the same rows, priced by the same book (`api.reading.prices`), in the
snapshot of the caller's transaction. So an alert, a budget's answer and the usage of the same range agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import tuple_row

from api.asking.buckets import (
    HOUR,
    NO_QUARTERS,
    UTC_ZONE,
    Calendar,
    Grain,
    Granularity,
    Quarters,
    Span,
    to_datetime,
    totals_plan,
)
from api.asking.limits import Limits, shown
from api.asking.params import CLIENT, CostBasis
from api.asking.questions import FiguresQuestion, Pricing
from api.budgets.rules import Budget, Metric, Plan, Spent, is_final
from api.reading import prices, rollups, seen
from api.reading.database import rows
from api.reading.freshness import slowest_time
from api.reading.prices import Book
from api.reading.rollups import KEY, STORED, USAGE, Values
from pipeline.common.connect import AsyncConnection

_SUMS: Final = ("amount", "unpriced", "invocations", "input_tokens", "output_tokens")
_HOURS_MAX: Final = 400 * 24


@dataclass(frozen=True, slots=True)
class Wanted:
    """A budget and one of its periods."""

    budget: Budget
    span: Span


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent, by budget and start of the period. ``faults`` say which figures cannot be told, and
    why: rows that they need are kept no more."""

    spent: Mapping[tuple[UUID, int], Spent]
    faults: Mapping[tuple[UUID, int], str]
    book: Book
    quarters: Mapping[UUID, Quarters]

    def of(self, one: Wanted) -> tuple[Spent | None, str | None]:
        """What was spent, or why nobody can tell."""
        key = one.budget.budget_id, one.span.start
        return self.spent.get(key), self.faults.get(key)


async def read(
    connection: AsyncConnection,
    wanted: Sequence[Wanted],
    limits: Limits,
    watermarks: Mapping[UUID, datetime | None],
) -> Spending:
    """The figures of all budgets in one snapshot, which must be that of ``watermarks``."""
    org_ids = sorted({one.budget.org_id for one in wanted})
    quarters = await _quarters(connection, wanted)
    book = await _book(connection, wanted, org_ids)
    faults: dict[tuple[UUID, int], str] = {}
    groups: dict[_Group, set[_Place]] = defaultdict(set)
    keys: dict[tuple[UUID, int], tuple[_Group, Budget]] = {}
    for one in wanted:
        budget, span = one.budget, one.span
        own = quarters.get(budget.org_id, NO_QUARTERS)
        key = budget.budget_id, span.start
        scope = budget.plan.scope
        if fault := lacking(span, limits, split_by=scope.dimension or "", quarters=own):
            faults[key] = fault
            continue
        group = _Group(span, scope.dimension, tuple(sorted(own.since.items())))
        groups[group].add((budget.org_id, scope.value))
        keys[key] = group, budget
    found = await _sums(connection, book, groups)
    spent = {}
    for key, (group, budget) in keys.items():
        watermark = watermarks.get(budget.org_id)
        sums = _of_budget(found.get((group, budget.org_id), ()), budget.plan)
        spent[key] = Spent(
            units=_figure(budget.plan.metric, sums),
            unpriced=sums["unpriced"] if budget.plan.metric is Metric.COST else 0,
            watermark=watermark,
            final=is_final(group.span, watermark, limits.ranges.dedupe_window_s),
            price_version=book.version,
        )
    return Spending(spent, faults, book, quarters)


async def watermarks_of(
    connection: AsyncConnection, org_ids: Iterable[UUID]
) -> tuple[dict[UUID, datetime | None], dict[UUID, datetime]]:
    """The watermark of each org's slowest partition, and the time of its newest event."""
    standings = await seen.orgs_standings(connection, org_ids)
    return (
        {org: slowest_time(one.watermark for one in of_org) for org, of_org in standings.items()},
        {org: max(one.last_event_at for one in of_org) for org, of_org in standings.items()},
    )


def lacking(span: Span, limits: Limits, *, split_by: str, quarters: Quarters) -> str | None:
    """Why the rows of a period do not suffice for its figure; None if they do."""
    if split_by:
        quarters = NO_QUARTERS
    oldest = limits.now - int(limits.ranges.retention_rollup_s // 60)
    if span.start < oldest:
        return f"hour and day rows go back to {shown(oldest)} only (RETENTION_ROLLUP)"
    oldest = limits.now - int(limits.ranges.retention_minute_s // 60)
    for branch in totals_plan(span, quarters=quarters):
        if branch.grain is Grain.MINUTE and (split_by or branch.spans[0].start < oldest):
            return (
                "the period does not begin and end on whole hours of UTC, which takes minute rows, and those"
                + (f" are not kept by {split_by}" if split_by else f" go back to {shown(oldest)} only")
            )
    return None


async def crossed_at(
    connection: AsyncConnection, budget: Budget, span: Span, level: int, spending: Spending
) -> datetime:
    """When the figure of a period reached a level, by the time of the events: the start of that minute.

    Where rows of minutes are not kept, or not for this scope, it is the start of the hour.
    """
    quarters = spending.quarters.get(budget.org_id, NO_QUARTERS)
    hour, before = await _reaches(
        connection, budget, span, level, spending.book, Granularity.HOUR, quarters, before=0
    )
    if hour is None:
        return to_datetime(span.start)
    within = Span(max(span.start, hour), min(span.end, hour + HOUR))
    if budget.plan.scope.dimension is None:
        minute, _ = await _reaches(
            connection, budget, within, level, spending.book, Granularity.MINUTE, NO_QUARTERS, before=before
        )
        if minute is not None:
            return to_datetime(minute)
    return to_datetime(within.start)


async def _reaches(
    connection: AsyncConnection,
    budget: Budget,
    span: Span,
    level: int,
    book: Book,
    granularity: Granularity,
    quarters: Quarters,
    *,
    before: int,
) -> tuple[int | None, int]:
    """The start of the bucket in which the sum reaches the level, and the sum before that bucket."""
    scope = budget.plan.scope
    question = FiguresQuestion(
        org_id=budget.org_id,
        span=span,
        calendar=Calendar(granularity, UTC_ZONE),
        model_ids=() if scope.model_id is None else (scope.model_id,),
        client_ids=() if scope.value is None else (scope.value,),
        by_model=False,
        by_client=False,
        limit=_HOURS_MAX,
        after=None,
        bound_to="",
        pricing=Pricing(),
        dimension="" if scope.dimension in (None, CLIENT) else str(scope.dimension),
        quarters=quarters,
    )
    values = Values(question)
    values |= book.values
    text = rollups.usage_series(question, book, _HOURS_MAX, values)
    assert text is not None
    total = before
    for bucket, _, _, *sums in await rows(connection, text, values, tuple_row):
        figures = dict(zip(USAGE, map(int, sums), strict=True))
        now = total + _figure(budget.plan.metric, figures)
        if now >= level:
            return int(bucket), total
        total = now
    return None, total


# --- the statement ---

_Place = tuple[UUID, str | None]
"""An org and the value of a dimension, or None for all of the org."""


@dataclass(frozen=True, slots=True)
class _Group:
    """What one branch of the statement reads: a range, a dimension or None, and the rows of quarters."""

    span: Span
    dimension: str | None
    quarters: tuple[tuple[int, int], ...]


_Row = tuple[str | None, UUID, Mapping[str, int]]
"""The value, the model, and the sums of both."""


async def _sums(
    connection: AsyncConnection, book: Book, groups: Mapping[_Group, set[_Place]]
) -> dict[tuple[_Group, UUID], list[_Row]]:
    """The sums by group and org, split by value and model."""
    if not groups:
        return {}
    values = Values()
    values |= book.values
    numbered = list(groups)
    branches: list[str] = []
    for number, group in enumerate(numbered):
        branches += _branches(number, group, groups[group], book, values)
    if not branches:
        return {}
    key = "figures.number, figures.org_id, figures.value, figures.model_id"
    sums = ", ".join(f"sum({book.of_row(name)})" for name in _SUMS)
    text = f"SELECT {key}, {sums} FROM ({rollups.union(branches)}) AS figures{book.join()} GROUP BY {key}"
    await connection.execute(prices.SQL["no_loops"])
    found: dict[tuple[_Group, UUID], list[_Row]] = defaultdict(list)
    for number, org_id, value, model_id, *figures in await rows(connection, text, values, tuple_row):
        measures = dict(zip(_SUMS, map(int, figures), strict=True))
        found[numbered[number], org_id].append((value, model_id, measures))
    return found


def _branches(
    number: int, group: _Group, places: Iterable[_Place], book: Book, values: Values
) -> Iterable[str]:
    """The SELECTs of a group, one a branch of its plan."""
    columns = ", ".join((KEY, *STORED))
    org_ids = values.bind(sorted({org_id for org_id, _ in places}), "uuid[]")
    value, also, table = "NULL::text", "", "analytics.usage_{grain}"
    if group.dimension is not None:
        chosen = values.bind(sorted({str(value) for _, value in places}), "text[]")
        if group.dimension == CLIENT:
            value, table = "client_id", "analytics.client_{grain}"
        else:
            value, table = "value", "analytics.breakdown_{grain}"
            also = f" AND dimension = {values.bind(group.dimension, 'text')}"
        also += f" AND {value} = ANY({chosen})"
    for branch in totals_plan(group.span, book.moments, Quarters(dict(group.quarters))):
        yield (
            f"SELECT {values.bind(number, 'int')} AS number, {value} AS value, {columns}"
            f" FROM {table.format(grain=branch.grain)}"
            f" WHERE org_id = ANY({org_ids}) AND {rollups.within(branch.spans, values)}{also}"
        )


def _of_budget(found: Iterable[_Row], plan: Plan) -> dict[str, int]:
    """The sums of a budget's scope."""
    sums = dict.fromkeys(_SUMS, 0)
    scope = plan.scope
    for value, model_id, measures in found:
        if (scope.model_id is None or model_id == scope.model_id) and value == scope.value:
            for name in _SUMS:
                sums[name] += measures[name]
    return sums


def _figure(metric: Metric, sums: Mapping[str, int]) -> int:
    if metric is Metric.COST:
        return sums["amount"]
    if metric is Metric.TOKENS:
        return sums["input_tokens"] + sums["output_tokens"]
    return sums["invocations"]


async def _book(connection: AsyncConnection, wanted: Sequence[Wanted], org_ids: Sequence[UUID]) -> Book:
    """The book of the orgs whose budgets are of cost. Others need its version alone."""
    priced = [one for one in wanted if one.budget.plan.metric is Metric.COST]
    if not priced:
        version = await prices.version(connection, None)
        return Book(version=version, basis=CostBasis.AUTO, org_ids=org_ids, sheets=None, moments=())
    whole = Span(min(one.span.start for one in priced), max(one.span.end for one in priced))
    return await prices.read(connection, Pricing(), org_ids, whole)


async def _quarters(connection: AsyncConnection, wanted: Iterable[Wanted]) -> dict[UUID, Quarters]:
    """The rows of quarters of the orgs that have periods off the whole hour."""
    off = {one.budget.org_id for one in wanted if one.span.start % HOUR or one.span.end % HOUR}
    return {org_id: await seen.quarters(connection, org_id) for org_id in sorted(off)}
