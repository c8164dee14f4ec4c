"""From sums to what is shown: pages of points, totals, rates and percentiles, and which buckets are final."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt

from api.answering import answers
from api.answering.answers import Cost, Errors, Estimate, Latency, Unpriced
from api.answering.money import MICROCENT_DECIMALS, cents_half_even, dollars
from api.asking.buckets import Calendar, to_datetime
from api.asking.questions import FiguresQuestion
from api.reading import adjustments, names, points, prices, rollups, seen
from api.reading.adjustments import Adjusted
from api.reading.database import Ask, Database
from api.reading.freshness import Standing, slowest_time
from api.reading.names import Names
from api.reading.prices import Book, Books
from api.reading.rollups import Point, UsageRow, Values
from api.reading.seen import Label
from pipeline.common.connect import AsyncConnection
from pipeline.core import sketches

SKETCH: Final = "latency_sketch"
_QUANTILES: Final = (0.5, 0.95, 0.99)
_POINTS_AT_ONCE: Final = 512
"""How many points are merged at once: each takes 8 KB while its sketches are merged."""
_SKETCHES_IN_ONE_THREAD: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of the series, the totals of the whole range, and how far the org has come, of one snapshot.

    Where the page is the whole series, the totals have no sketch: it is the sum of the points' sketches.
    """

    points: Sequence[Point]
    more: bool
    totals: Mapping[str, Any]
    standings: Sequence[Standing]
    labels: Mapping[str, Label]
    """By the model's id as text."""
    names: Names


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePage:
    """A `Page` of usage, as plain rows. ``totals`` is None where the rows are the whole series."""

    rows: Sequence[UsageRow]
    more: bool
    totals: Mapping[str, Any] | None
    standings: Sequence[Standing]
    labels: Mapping[str, Label]
    """By the model's id as text."""
    names: Names
    price_version: int
    adjusted: Adjusted | None
    """None: a filter leaves out some usage of the org."""


async def read_usage_page(database: Database, books: Books, question: FiguresQuestion) -> UsagePage:
    """The page of usage that the question asks for, priced by the book.

    Raises:
        Problem: 400, the book has no such version.
        Unavailable: as `Database.snapshot`.
    """
    return await database.snapshot(lambda ask: _read_usage(ask, books, question))


async def _read_usage(ask: Ask, books: Books, question: FiguresQuestion) -> UsagePage:
    """The page, in one round trip if the kept book is still good and the page is the whole series."""
    org_id, pricing, limit = question.org_id, question.pricing, question.limit
    book = books.last(org_id, pricing)
    texts = [seen.SQL["standings"], seen.SQL["labels"], names.OF_ORG, prices.SQL["version"]]
    texts += [adjustments.TOTAL] * question.of_whole_org
    values = {"org_ids": [org_id], "org_id": org_id, "labelled": None, "labels_max": seen.LABELS_AT_ONCE}
    values |= names.asked(org_id, question.named_by, None if question.by_client else ())
    values |= adjustments.values_of(org_id, question.span)
    series = None if book is None else _Series(question, book)
    if series is not None:
        texts += series.texts
        values |= series.values
    found, labelled, named, [[newest]], *parts = await ask(texts, values)
    adjusted = Adjusted(*parts.pop(0)[0]) if question.of_whole_org else None
    standings = [Standing(*standing[1:]) for standing in found]
    models = frozenset((provider, name) for _, provider, name in labelled)
    all_labels = len(labelled) < seen.LABELS_AT_ONCE
    if book is None or not (all_labels and books.is_good(org_id, pricing, newest=newest, names=models)):
        [[row]] = await ask([prices.SQL["book"]], prices.values_of(pricing, [org_id]))
        book = prices.book_of(row, pricing, [org_id])
        books.keep(org_id, pricing, models, book)
        series = _Series(question, book)
        parts = await ask(series.texts, series.values)
    assert series is not None
    labels = seen.labels_of(labelled) if all_labels else await _labels(ask, org_id, series.models(parts))
    rows = series.rows(parts, partitions=len(standings), labels=labels)
    if rows is None:
        series = _Series(question, book, grouped=True)
        parts = await ask(series.texts, series.values)
        labels = labels if all_labels else await _labels(ask, org_id, series.models(parts))
        rows = series.rows(parts, partitions=len(standings), labels=labels) or []
    more = len(rows) > limit
    rows = rows[:limit]
    totals = None
    if more or question.after is not None:  # the rows are not the whole series
        of_all = _values(question, book)
        [[sums]] = await ask([rollups.usage_totals(question, book, of_all)], of_all)
        totals = {name: value or 0 for name, value in zip(rollups.USAGE, sums, strict=True)}
    if len(named) >= names.AT_ONCE:
        of_page = names.asked(org_id, question.named_by, (row[2] for row in rows))
        [named] = await ask([names.OF_ORG], of_page)
    return UsagePage(
        rows=rows,
        more=more,
        totals=totals,
        standings=standings,
        labels=labels,
        names=names.names_of(named),
        price_version=book.version,
        adjusted=adjusted,
    )


async def _labels(ask: Ask, org_id: UUID, models: Iterable[str]) -> dict[str, Label]:
    return seen.labels_of(*await ask([seen.SQL["labels"]], seen.labels_values(org_id, models)))


class _Series:
    """The statements of a series: of its plain rows if they answer the question, else of groups."""

    def __init__(self, question: FiguresQuestion, book: Book, *, grouped: bool = False) -> None:
        self.values = _values(question, book)
        self._plain = None if grouped else points.plain_series(question, book)
        if self._plain is not None:
            texts = self._plain.statements(self.values)
        else:
            text = rollups.usage_series(question, book, question.limit + 1, self.values)
            texts = [] if text is None else [text]
        self.texts = [prices.SQL["no_loops"], *texts]

    def models(self, parts: Sequence[Sequence[Any]]) -> set[str]:
        """The models in what the statements answered, as text."""
        _, *found = parts
        if self._plain is not None:
            found = self._plain.rows_of(found)
        return {row[1] for rows in found for row in rows if row[1] is not None}

    def rows(
        self, parts: Sequence[Sequence[Any]], *, partitions: int, labels: Mapping[str, Label]
    ) -> Sequence[UsageRow] | None:
        """The points of the page, and one point more; None: see `PlainSeries.rows`."""
        _, *found = parts
        if self._plain is not None:
            return self._plain.rows(found, partitions=partitions, labels=labels)
        return found[0] if found else []


def _values(question: FiguresQuestion, book: Book) -> Values:
    values = Values(question)
    values |= book.values
    return values


async def read_page(connection: AsyncConnection, question: FiguresQuestion, measures: Sequence[str]) -> Page:
    """The page of any measures that the question asks for."""
    standings = await seen.org_standings(connection, question.org_id)
    points = await rollups.series(connection, question, measures, question.limit + 1)
    more = len(points) > question.limit
    if more or question.after is not None:
        totals = await rollups.totals(connection, question, measures)
    else:  # the page is the whole series
        totals = summed([point.measures for point in points], measures)
    points = points[: question.limit]
    models = {point.position.model_id for point in points if point.position.model_id is not None}
    labels = await seen.labels(connection, question.org_id, models)
    values = (point.position.client_id for point in points)
    named = await names.read(connection, question.org_id, question.named_by, values)
    return Page(points=points, more=more, totals=totals, standings=standings, labels=labels, names=named)


def summed(parts: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, Any]:
    """The measures of all parts together, without the sketch."""
    totals: dict[str, Any] = {}
    for name in measures:
        if name == SKETCH:
            continue
        values = [part[name] for part in parts]
        totals[name] = max(values, default=0) if name == "latency_max_ms" else sum(values)
    return totals


def usage_fields(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `answers.UsageFigures`."""
    spent = spend_fields(measures)
    return {
        **{name: measures[name] for name in ("invocations", "input_tokens", "output_tokens", *rollups.KINDS)},
        "cost_estimate_cents": None if spent["cost"].amount is None else cents_half_even(measures["amount"]),
        **spent,
    }


def adjusted_fields(measures: Mapping[str, Any], adjusted: Adjusted | None) -> dict[str, Any]:
    """Fields that `answers.UsageTotals` has beside those of its usage."""
    if adjusted is None:
        return {"adjustments": None, "net": None}
    known = spend_fields(measures)["cost"].amount is not None
    net = dollars(measures["amount"] + adjusted.amount) if known else None
    return {
        "adjustments": answers.Adjusted(amount=dollars(adjusted.amount), count=adjusted.count),
        "net": answers.Net(amount=net, currency="USD"),
    }


def spend_fields(measures: Mapping[str, Any]) -> dict[str, Any]:
    """What some calls cost: their ``cost``, ``estimate`` and ``unpriced``. No calls cost nothing."""
    calls = measures["invocations"]
    basis = cost_basis(calls, measures["booked"], measures["unpriced"])
    estimated = calls == 0 or measures["unestimated"] < calls
    estimate = dollars(measures["cost_microcents"], MICROCENT_DECIMALS) if estimated else None
    amount = None if basis == "none" else dollars(measures["amount"])
    return {
        "cost": Cost(amount=amount, currency="USD", basis=basis),
        "estimate": Estimate(amount=estimate),
        "unpriced": Unpriced(invocations=measures["unpriced"]),
    }


Basis = Literal["book", "estimate", "mixed", "none"]


def cost_basis(invocations: int, booked: int, unpriced: int) -> Basis:
    """Where the cost of calls comes from. ``booked`` of them have a price, ``unpriced`` no known cost."""
    if booked:
        return "mixed" if booked + unpriced < invocations else "book"
    return "none" if unpriced == invocations > 0 else "estimate"


def sketch_count(page: Page) -> int:
    """How many sketches `reliability` must merge for this page."""
    totals = page.totals.get(SKETCH, ())
    return sum(len(point.measures[SKETCH]) for point in page.points) + len(totals)


def reliability(page: Page) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Fields of `answers.ReliabilityFigures`, for each point of the page and for its totals."""
    of_points = []
    all_counts = np.zeros(sketches.BINS, np.int64)
    for begin in range(0, len(page.points), _POINTS_AT_ONCE):
        some = [point.measures for point in page.points[begin : begin + _POINTS_AT_ONCE]]
        counts = _merged([measures[SKETCH] for measures in some])
        of_points += [_reliability(*one) for one in zip(some, counts, strict=True)]
        all_counts += counts.sum(axis=0)
    if SKETCH in page.totals:
        all_counts = _merged(page.totals[SKETCH].halves()).sum(axis=0)
    return of_points, _reliability(page.totals, all_counts)


def _merged(groups: Sequence[sketches.Packed]) -> npt.NDArray[np.int64]:
    """`sketches.merge_each` in two threads: 380,000 sketches take two thirds of one thread's time."""
    half = len(groups) // 2
    if not half or sum(map(len, groups)) < _SKETCHES_IN_ONE_THREAD:
        return sketches.merge_each(groups)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(sketches.merge_each, groups[:half])
        second = sketches.merge_each(groups[half:])
        return np.concatenate((first.result(), second))


def _reliability(measures: Mapping[str, Any], counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Percentiles come from the ``counts`` (int64[BINS]) of merged sketches; they are never averaged.

    A percentile stands for its bin, 0.5 % wide. It is never shown above the highest latency.
    """
    invocations = measures["invocations"]
    p50, p95, p99 = (
        None if value is None else min(value, measures["latency_max_ms"])
        for value in sketches.quantiles(counts, _QUANTILES)
    )
    return {
        "invocations": invocations,
        "error_rate": error_rate(measures),
        "errors": Errors(
            error=measures["errors"], timeout=measures["timeouts"], throttled=measures["throttles"]
        ),
        "latency_ms": Latency(
            p50=p50,
            p95=p95,
            p99=p99,
            mean=measures["latency_sum_ms"] / invocations if invocations else None,
            max=measures["latency_max_ms"] if invocations else None,
        ),
    }


def error_rate(measures: Mapping[str, Any]) -> float | None:
    invocations = measures["invocations"]
    return rollups.failures(measures) / invocations if invocations else None


class Finality:
    """Says whether the bucket that starts at a minute is final: only a backfill can still change it.

    A bucket is final when the watermark of the org's slowest partition has passed the bucket's end by the
    dedupe window.
    """

    def __init__(self, calendar: Calendar, standings: Sequence[Standing], dedupe_window_s: float) -> None:
        watermark = slowest_time(standing.watermark for standing in standings)
        self._settled = watermark - timedelta(seconds=dedupe_window_s) if watermark else None
        self._calendar = calendar
        self._known: dict[int, bool] = {}

    def __call__(self, bucket: int) -> bool:
        if bucket not in self._known:
            settled = self._settled
            self._known[bucket] = (
                settled is not None and to_datetime(self._calendar.end_of(bucket)) <= settled
            )
        return self._known[bucket]
