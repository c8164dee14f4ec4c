"""Which changed orgs need not be judged: their figures cannot have crossed a level since they were judged.

To judge an org, all rows of its open periods are read. That is dear, and nearly every look finds nothing. So
whenever an org is judged, two things are noted in the same snapshot. The first are the *recent* sums of each
scope of its budgets: those of the days that the worker still counts events in. The second is the *room* of
each scope: how much its sum may grow before a level is reached. The next look reads the recent sums of all
changed orgs, in one statement, and judges those whose sums have grown by their room.

For example, a budget of 250 dollars a month has a threshold at 80 %, and 150 dollars are spent. The room is
50 dollars. The sum of today and yesterday was 20 dollars then, and is 45 dollars now: at most 175 dollars are
spent, and the org is not judged.

The screen errs on one side only: it may have an org judged in vain. So floats are good enough here. What an
alert says is always read by `api.alerts.judge`, exactly. The rules hold because

- events fall into recent days only: older ones are too late (DEDUPE_WINDOW). Where events can come by another
  way, the org is judged: `Mark.basis` changes when dead letters are replayed, and when rows are rebuilt;
- a price, a name of a model, or a budget that changes has the org judged, too;
- a new period, and one that becomes final, is seen by the times of the org alone;
- a sum that falls has the org judged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.rows import tuple_row

from api.asking.buckets import DAY, HOUR, Span, to_minute, totals_plan
from api.asking.params import CLIENT, CostBasis
from api.asking.questions import Pricing
from api.budgets.rules import FORECAST_FROM, Basis, Metric, Scope, forecast, reached
from api.budgets.spending import Spending, Wanted
from api.reading import prices, rollups
from api.reading.database import rows
from api.reading.prices import Book
from api.reading.rollups import KEY, STORED, Values
from pipeline.common.connect import AsyncConnection
from sql import queries

SQL: Final = queries.load("alerts")
_SLACK: Final = 1e-9
"""How much a sum of floats may err, as a part of it, and far more."""
_METRICS: Final = {Metric.COST: 0, Metric.TOKENS: 1, Metric.REQUESTS: 2}
_CLOCKS_MINUTES: Final = HOUR
"""How far the watermark may be ahead of the broker's clock, which decides what is too late."""

Sums = tuple[float, float, float]
"""Cost, tokens and requests, in units."""
_NOTHING: Final[Sums] = (0.0, 0.0, 0.0)
_NEVER: Final = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How an org stands. It is judged when one of ``changes``, ``price_version`` or ``places`` changes.

    ``changes`` counts the changes of its budgets. ``places`` says how far each partition has come, and its
    epoch, which a repair by the archive raises.
    ``basis`` changes where events may have been counted in days that are not recent. ``newest`` and
    ``watermark`` are the minutes of its newest event and of its slowest partition.
    """

    changes: int
    price_version: int
    places: str
    basis: str
    budgets: int
    newest: int | None
    watermark: int | None

    @property
    def judged_by(self) -> tuple[int, int, str]:
        return self.changes, self.price_version, self.places

    @property
    def screened_by(self) -> tuple[int, int, str]:
        """What must be the same for a screen."""
        return self.changes, self.price_version, self.basis


@dataclass(frozen=True, slots=True)
class _Room:
    """How much a sum of the scope with this number may grow before it reaches a level of the metric."""

    scope: int
    metric: int
    room: float


@dataclass(frozen=True, slots=True)
class _Expected:
    """The thresholds of one period on the forecast: their levels, and which of them were reached."""

    scope: int
    metric: int
    span: Span
    spent: int
    levels: tuple[tuple[int, bool], ...]


@dataclass(slots=True)
class Note:
    """What is noted of an org that was judged."""

    org_id: UUID
    cut: int
    """The minute from which on days are recent."""
    priced: bool
    scopes: tuple[Scope, ...]
    rooms: Sequence[_Room]
    expected: Sequence[_Expected]
    next_period: int
    """Another period begins once an event is of this minute."""
    next_final: int
    """A period is final once the watermark is at this minute."""
    recent: Recent | None = None

    def still(self, now: Mark, recent: Recent) -> bool:
        """Is nothing new to be said of the org?"""
        before = self.recent
        if before is None or before.labels != recent.labels or now.newest is None or now.watermark is None:
            return False
        if now.newest >= self.next_period or now.watermark >= self.next_final:
            return False
        for old, new in zip(before.sums, recent.sums, strict=True):
            for metric in range(3):
                if new[metric] < old[metric] * (1 - _SLACK):
                    return False
        for one in self.rooms:
            if _grown(one, before, recent) >= one.room:
                return False
        return all(_as_before(one, now.watermark, _grown(one, before, recent)) for one in self.expected)


@dataclass(frozen=True, slots=True)
class Recent:
    """The recent sums of an org, by the number of the scope, and what says how its models are called."""

    sums: Sequence[Sums]
    labels: str


def _grown(one: _Room | _Expected, before: Recent, now: Recent) -> float:
    """By how much a sum has grown, at most."""
    return now.sums[one.scope][one.metric] * (1 + _SLACK) - before.sums[one.scope][one.metric]


def _as_before(one: _Expected, watermark: int, grown: float) -> bool:
    """Does the forecast reach the levels that it reached, and no other one?"""
    passed, length = watermark - one.span.start, one.span.end - one.span.start
    if passed * FORECAST_FROM < length:
        return not any(reached for _, reached in one.levels)
    factor = length / min(passed, length)
    least, most = one.spent * factor * (1 - _SLACK), (one.spent + grown) * factor * (1 + _SLACK)
    return all(least >= level if reached else most < level for level, reached in one.levels)


def note(
    org_id: UUID,
    wanted: Iterable[Wanted],
    figures: Spending,
    watermark: datetime | None,
    dedupe_window_s: float,
) -> Note | None:
    """What is noted of an org that was just judged, but for what `read` finds; None: it cannot be screened.

    ``wanted`` are the open periods of its budgets, and ``watermark`` is that of the figures.
    """
    if watermark is None:
        return None
    at, window = to_minute(watermark), math.ceil(dedupe_window_s / 60)
    scopes: dict[Scope, int] = {}
    rooms: dict[tuple[int, int], float] = {}
    expected = []
    ends: dict[UUID, int] = {}
    next_final = _NEVER
    priced = False
    for one in wanted:
        plan, span = one.budget.plan, one.span
        ends[one.budget.budget_id] = span.end
        if span.end + window > at:
            next_final = min(next_final, span.end + window)
        spent, _ = figures.of(one)
        if spent is None:
            continue
        priced |= plan.metric is Metric.COST
        levels = plan.levels()
        rest = [
            level - spent.units for basis, level in levels if basis is Basis.ACTUAL and level > spent.units
        ]
        ahead = forecast(spent.units, span, watermark)
        of_forecast = [(level, reached(ahead, level)) for basis, level in levels if basis is Basis.FORECAST]
        if not rest and not of_forecast:
            continue  # all levels are reached, and only a price or a budget that changes can resolve them
        key = scopes.setdefault(plan.scope, len(scopes)), _METRICS[plan.metric]
        rooms[key] = min([*map(float, rest), rooms.get(key, math.inf)])
        if of_forecast:
            expected.append(_Expected(*key, span, spent.units, tuple(of_forecast)))
    recent = at - window - _CLOCKS_MINUTES
    return Note(
        org_id=org_id,
        cut=recent - recent % DAY,
        priced=priced,
        scopes=tuple(scopes),
        rooms=[_Room(*key, room) for key, room in rooms.items()],
        expected=expected,
        next_period=min(ends.values(), default=_NEVER),
        next_final=next_final,
    )


async def read(connection: AsyncConnection, notes: Sequence[Note], newest: int) -> list[Recent]:
    """What is recent of the orgs of the notes, up to the day of the minute ``newest``, in one snapshot."""
    if not notes:
        return []
    priced = sorted(one.org_id for one in notes if one.priced)
    end = newest - newest % DAY + DAY
    book = Book(version=0, basis=CostBasis.AUTO, org_ids=priced, sheets=None, moments=())
    labels: dict[UUID, str] = {}
    if priced:
        book = await prices.read(connection, Pricing(), priced, Span(min(one.cut for one in notes), end))
    if book.version:
        labels = dict(await rows(connection, SQL["labels"], {"org_ids": priced}, tuple_row))
    values = Values()
    values |= book.values
    sums = [[_NOTHING] * len(one.scopes) for one in notes]
    places: list[_Place] = []
    by_cut: dict[int, list[tuple[Note, list[Sums]]]] = defaultdict(list)
    for one, of_note in zip(notes, sums, strict=True):
        by_cut[one.cut].append((one, of_note))
    branches: list[str] = []
    for cut, some in by_cut.items():
        for branch in totals_plan(Span(cut, end), book.moments):
            within = rollups.within(branch.spans, values)
            branches += _branches(some, branch.grain, within, places, values)
    if branches:
        added = ", ".join(f"sum({one})::float8" for one in _sums(book))
        text = (
            f"SELECT figures.number, figures.of_model, {added} FROM ({rollups.union(branches)}) AS figures"
            f"{book.join()} GROUP BY figures.number, figures.of_model"
        )
        await connection.execute(prices.SQL["no_loops"])
        await connection.execute(SQL["alone"])
        for number, of_model, *more in await rows(connection, text, values, tuple_row):
            for place in (number, of_model):
                if place is not None:
                    of_note, scope = places[place]
                    cost, tokens, requests = of_note[scope]
                    of_note[scope] = cost + more[0], tokens + more[1], requests + more[2]
    return [Recent(of_note, labels.get(one.org_id, "")) for one, of_note in zip(notes, sums, strict=True)]


_Place = tuple[list[Sums], int]
"""The sums that rows add to, and the number of their scope."""


def _sums(book: Book) -> Iterable[str]:
    """The SQL of `Sums` of a row."""
    yield book.of_row("amount")
    yield f"{book.of_row('input_tokens')} + {book.of_row('output_tokens')}"
    yield book.of_row("invocations")


def _branches(
    notes: Iterable[tuple[Note, list[Sums]]], grain: str, within: str, places: list[_Place], values: Values
) -> Iterable[str]:
    """The SELECTs of some days: ``number`` and ``of_model`` are places in ``places``, which they add to.

    A row counts for the place of its org, and, if a budget is of its model, for the place of that, too.
    """
    orgs: list[tuple[UUID, int]] = []
    models: list[tuple[UUID, UUID, int]] = []
    by_dimension: dict[str, list[tuple[UUID, str, int]]] = defaultdict(list)
    for one, sums in notes:
        whole: _Place | None = None
        for number, scope in enumerate(one.scopes):
            if scope.dimension is not None:
                by_dimension[scope.dimension].append((one.org_id, scope.value or "", len(places)))
                places.append((sums, number))
            elif scope.model_id is not None:
                models.append((one.org_id, scope.model_id, len(places)))
                places.append((sums, number))
                whole = whole or ([_NOTHING], 0)  # nobody asks for this sum
            else:
                whole = sums, number
        if whole is not None:
            orgs.append((one.org_id, len(places)))
            places.append(whole)
    columns = ", ".join(f"u.{name}" for name in (*KEY.split(", "), *STORED))
    if orgs:
        yield (
            f"SELECT o.number, m.number AS of_model, {columns} FROM analytics.usage_{grain} AS u"
            f" JOIN {_table(orgs, ('org_id uuid', 'number int'), values)} AS o USING (org_id)"
            f" LEFT JOIN {_table(models, ('org_id uuid', 'model_id uuid', 'number int'), values)} AS m"
            f" ON m.org_id = u.org_id AND m.model_id = u.model_id WHERE {within}"
        )
    for dimension, wanted in sorted(by_dimension.items()):
        table, value = f"analytics.breakdown_{grain}", "u.value"
        also = f" AND u.dimension = {values.bind(dimension, 'text')}"
        if dimension == CLIENT:
            table, value, also = f"analytics.client_{grain}", "u.client_id", ""
        yield (
            f"SELECT d.number, NULL::int AS of_model, {columns} FROM {table} AS u"
            f" JOIN {_table(wanted, ('org_id uuid', 'value text', 'number int'), values)} AS d"
            f" ON d.org_id = u.org_id AND d.value = {value} WHERE {within}{also}"
        )


def _table(found: Sequence[tuple[Any, ...]], columns: Sequence[str], values: Values) -> str:
    """Some tuples as a table with these columns, each given with its type."""
    names, types = zip(*(column.split(" ") for column in columns), strict=True)
    by_column = list(zip(*found, strict=True)) or [()] * len(columns)
    arrays = (values.bind(list(of), f"{type_}[]") for of, type_ in zip(by_column, types, strict=True))
    return f"(SELECT * FROM unnest({', '.join(arrays)}) AS given ({', '.join(names)}))"
