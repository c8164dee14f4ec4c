"""SQL on the rollups: figures of one org by bucket, and of many orgs by org.

A question's plan has a few branches (see `api.asking.buckets`), each of which reads one rollup table. A query
is the union of its branches, and each branch has bounds on ``org_id`` and ``bucket_start``, the first two
columns of every key. Sums are made in SQL, so few rows come back. Rows of different partitions are summed,
so the figures are right whichever partition an event came through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np
from psycopg.rows import class_row, tuple_row

from api.asking.buckets import HOUR, Branch, Grain, Span, series_plan, to_datetime, to_minute, totals_plan
from api.asking.questions import FiguresQuestion, Position
from api.reading import prices
from api.reading.database import rows
from api.reading.prices import PRICED, Book
from pipeline.common.connect import AsyncConnection
from pipeline.core.sketches import Packed

ERROR_CODES_MAX: Final = 1000

KINDS: Final = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens")
STORED: Final = (
    "invocations",
    "input_tokens",
    "output_tokens",
    "cost_microcents",
    *KINDS,
    "unestimated",
)
"""The measures of usage that rows have."""
USAGE: Final = (*STORED, *PRICED)
RELIABILITY: Final = (
    "invocations",
    "errors",
    "timeouts",
    "throttles",
    "latency_sum_ms",
    "latency_max_ms",
    "latency_sketch",
)
_FAILURES: Final = ("errors", "timeouts", "throttles")
_ORG: Final = (*USAGE, *_FAILURES)
KEY: Final = "org_id, bucket_start, model_id, rate_class"
"""What decides the price of a row."""

ORG_NOTHING: Final[Mapping[str, int]] = dict.fromkeys(_ORG, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """The measures of one bucket and group, by name; the sketches of a group come as `sketches.Packed`."""

    position: Position
    measures: Mapping[str, Any]


UsageRow = tuple[int, str | None, str | None, *tuple[int, ...]]
"""(bucket, model, client), and the measures of `USAGE`."""


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many events failed with one code. ``status`` is 1 error, 2 timeout, 3 throttled."""

    status: int
    error_code: str
    events: int


def usage_series(question: FiguresQuestion, book: Book, limit: int, values: Values) -> str | None:
    """The statement of up to ``limit`` points of usage after the question's cursor, as `UsageRow`."""
    columns = ["extract(epoch FROM bucket)::bigint / 60"]
    columns += ["figures.model_id::text" if question.by_model else "NULL"]
    columns += ["client_id" if question.by_client else "NULL"]
    columns += usage_sums(book)
    return _series(question, columns, USAGE, limit, values, book)


def usage_totals(question: FiguresQuestion, book: Book, values: Values) -> str:
    """The statement of the sums of `USAGE` over the whole range, from as few rows as cover it."""
    source = union(
        f"SELECT {KEY}, {', '.join(STORED)} FROM {table_of(question, branch.grain)}"
        f" WHERE {condition(question, branch.spans, values)}"
        for branch in totals_plan(question.span, book.moments, question.quarters)
    )
    return f"SELECT {', '.join(usage_sums(book))} FROM ({source}) AS figures{book.join()}"


def usage_sums(book: Book) -> list[str]:
    """The sums of `USAGE` of the rows ``figures``."""
    return [f"sum({book.of_row(name)})" for name in USAGE]


async def series(
    connection: AsyncConnection, question: FiguresQuestion, measures: Sequence[str], limit: int
) -> list[Point]:
    """Up to ``limit`` points after the question's cursor, by bucket, model and client."""
    group = ("bucket", *_keys(question))
    values = Values(question)
    text = _series(question, [*group, *_aggregates(measures)], measures, limit, values)
    if text is None:
        return []
    return [
        Point(
            Position(
                to_minute(row[0]),
                row[1] if question.by_model else None,
                row[len(group) - 1] if question.by_client else None,
            ),
            _measures(row[len(group) :], measures),
        )
        for row in await _binary_rows(connection, text, values)
    ]


def _series(
    question: FiguresQuestion,
    columns: Sequence[str],
    measures: Sequence[str],
    limit: int,
    values: Values,
    book: Book | None = None,
) -> str | None:
    """The statement of a page: ``columns`` of each group after the cursor. None: there can be no group."""
    calendar, after, span = question.calendar, question.after, question.span
    keys = _keys(question)
    if after is not None:  # nothing before the cursor's bucket is read again
        span = Span(max(span.start, after.bucket if keys else calendar.end_of(after.bucket)), span.end)
    plan = series_plan(span, calendar, book.moments if book else (), question.quarters)
    if not plan:
        return None
    group = ", ".join(_grouping(keys))
    text = f"SELECT {', '.join(columns)} FROM {_source(question, plan, keys, measures, values, book)}"
    if after is not None and keys:
        passed = [values.bind(to_datetime(after.bucket), "timestamptz")]
        passed += [values.bind(getattr(after, key), _KEY_TYPES[key]) for key in keys]
        text += f" WHERE ({group}) > ({', '.join(passed)})"
    text += f" GROUP BY {group} ORDER BY {group} LIMIT {values.bind(limit, 'bigint')}"
    return text


def figures(question: FiguresQuestion, book: Book) -> tuple[str, Values]:
    """A statement for the sums of `USAGE` by bucket, model and client over the whole range, for an export.

    Where the question is not by model or client, the column is null.
    """
    values = Values(question)
    plan = series_plan(question.span, question.calendar, book.moments, question.quarters)
    keys = _keys(question)
    group = ", ".join(_grouping(keys))
    sums = ", ".join(f"sum({book.of_row(name)}) AS {name}" for name in USAGE)
    source = _source(question, plan, keys, USAGE, values, book)
    values |= book.values
    absent = "".join(f", NULL::{type_} AS {key}" for key, type_ in _KEY_TYPES.items() if key not in keys)
    return f"SELECT {group}{absent}, {sums} FROM {source} GROUP BY {group} ORDER BY {group}", values


def sku_groups(question: FiguresQuestion, book: Book) -> tuple[str, Values]:
    """A statement for the sums of `STORED` by bucket, model, rate class and price over the whole range.

    They are by client, too, if the question is. ``prices`` are those of `prices.SKUS` for the org, and
    ``list_prices`` those for everyone.
    """
    values = Values(question)
    plan = series_plan(question.span, question.calendar, book.moments, question.quarters)
    sums = ", ".join(f"sum(figures.{name}) AS {name}" for name in STORED)
    keys = _keys(question)
    source = _source(question, plan, keys, STORED, values, book)
    values |= book.values
    by_client = ", figures.client_id" * question.by_client
    return (
        f"SELECT bucket, figures.model_id, figures.rate_class, {book.unit_prices('rates')} AS prices,"
        f" {book.unit_prices('list_rates')} AS list_prices{by_client}, {sums}"
        f" FROM {source}{book.join('list_rates')} GROUP BY 1, 2, 3, 4, 5{', 6' * question.by_client}",
        values,
    )


async def totals(
    connection: AsyncConnection, question: FiguresQuestion, measures: Sequence[str]
) -> Mapping[str, Any]:
    """The measures over the whole range, whatever the page; read from as few rows as cover it."""
    values = Values(question)
    source = union(
        f"SELECT {', '.join(measures)} FROM {table_of(question, branch.grain)}"
        f" WHERE {condition(question, branch.spans, values)}"
        for branch in totals_plan(question.span, quarters=question.quarters)
    )
    text = f"SELECT {', '.join(_aggregates(measures))} FROM ({source}) AS figures"
    (row,) = await _binary_rows(connection, text, values)
    return _measures(row, measures)


async def error_codes(connection: AsyncConnection, question: FiguresQuestion) -> list[ErrorCount]:
    """Failed events by status and code over the whole hours that the range touches, most frequent first."""
    values = Values(question)
    text = f"""
        SELECT status, error_code COLLATE "C" AS error_code, sum(count)::bigint AS events
        FROM analytics.usage_errors_hour
        WHERE {condition(question, (error_codes_span(question.span),), values)}
        GROUP BY status, error_code COLLATE "C"
        ORDER BY sum(count) DESC, status, error_code COLLATE "C"
        LIMIT {ERROR_CODES_MAX}
    """
    return await rows(connection, text, values, class_row(ErrorCount))


def failures(measures: Mapping[str, Any]) -> int:
    """How many calls did not succeed."""
    return sum(measures[name] for name in _FAILURES)


def error_codes_span(span: Span) -> Span:
    """Error codes are kept by the hour: the hours that the range touches."""
    return Span(span.start - span.start % HOUR, -(-span.end // HOUR) * HOUR)


async def org_totals(
    connection: AsyncConnection, book: Book, wanted: Iterable[tuple[str, Span, Sequence[UUID]]]
) -> dict[tuple[UUID, str], Mapping[str, Any]]:
    """The measures of orgs over spans, by org and the span's name. Where an org has no events, it is absent.

    ``wanted`` are the names and spans, each with its orgs, all of which the book covers.
    """
    values = Values()
    values |= book.values
    columns = ", ".join((KEY, *STORED, *_FAILURES))
    source = union(
        f"SELECT {values.bind(name, 'text')} AS name, {columns} FROM analytics.usage_{branch.grain}"
        f" WHERE org_id = ANY({values.bind(list(org_ids), 'uuid[]')}) AND {within(branch.spans, values)}"
        for name, span, org_ids in wanted
        for branch in totals_plan(span, book.moments)
    )
    key = "figures.org_id, figures.name"
    sums = ", ".join(f"sum({book.of_row(name)})" for name in _ORG)
    text = f"SELECT {key}, {sums} FROM ({source}) AS figures{book.join()} GROUP BY {key}"
    await connection.execute(prices.SQL["no_loops"])
    found = await rows(connection, text, values, tuple_row)
    return {(org_id, name): _measures(sums, _ORG) for org_id, name, *sums in found}


# --- parts of the statements, also for `api.reading.points` ---

_SPANS_MAX: Final = 64
"""More spans than this are found by their edges: the first edge begins a span, the second ends it, and so on.

So many spans are the days of a zone off the hour, with few rows between them. With a condition on each span,
PostgreSQL takes up to seconds to plan the query, and then tries hundreds of conditions on each row.
"""
_KEY_TYPES: Final = {"model_id": "uuid", "client_id": "text"}
_KEY_COLUMNS: Final = {
    "model_id": "model_id",
    # Byte order is the same in every database and lets a cursor compare as the sort does.
    "client_id": 'client_id COLLATE "C"',
}


class Values(dict[str, Any]):
    """The values of a statement by name, beginning with the org, models and clients of a question."""

    def __init__(self, question: FiguresQuestion | None = None) -> None:
        super().__init__()
        if question is not None:
            self["org_id"] = question.org_id
            self["model_ids"] = list(question.model_ids)
            self["client_ids"] = list(question.client_ids)
            self["dimension"] = question.dimension

    def bind(self, value: Any, type_: str) -> str:
        """Keep the value; the placeholder that stands for it, as SQL of that type."""
        name = f"value_{len(self)}"
        self[name] = value
        return f"%({name})s::{type_}"


def table_of(question: FiguresQuestion, grain: Grain) -> str:
    """The rollups of that grain with the columns that the question needs.

    The values of a dimension have the column name of the clients, so that all else is the same for both.
    """
    if question.dimension:
        table = f"analytics.breakdown_{grain}"
        return f"(SELECT *, value AS client_id FROM {table} WHERE dimension = %(dimension)s) AS by_value"
    return f"analytics.{'client' if question.needs_clients else 'usage'}_{grain}"


def condition(question: FiguresQuestion, spans: Sequence[Span], values: Values) -> str:
    """Rows of the question's org, models and clients in any of the spans."""
    return (
        f"org_id = %(org_id)s AND {within(spans, values)}"
        + " AND model_id = ANY(%(model_ids)s::uuid[])" * bool(question.model_ids)
        + " AND client_id = ANY(%(client_ids)s::text[])" * bool(question.client_ids)
    )


def within(spans: Sequence[Span], values: Values) -> str:
    """Rows in any of the spans. The outer bounds stand first, for the exclusion of chunks."""

    def between(span: Span) -> str:
        start = values.bind(to_datetime(span.start), "timestamptz")
        end = values.bind(to_datetime(span.end), "timestamptz")
        return f"bucket_start >= {start} AND bucket_start < {end}"

    outer = between(Span(spans[0].start, spans[-1].end))
    if len(spans) == 1:
        return outer
    if len(spans) > _SPANS_MAX:
        edges = values.bind(
            [to_datetime(at) for span in spans for at in (span.start, span.end)], "timestamptz[]"
        )
        return f"{outer} AND mod(width_bucket(bucket_start, {edges}), 2) <> 0"
    return f"{outer} AND ({' OR '.join(between(span) for span in spans)})"


def union(branches: Iterable[str]) -> str:
    """The rows of all branches. PostgreSQL folds a single one into the query around it."""
    return " UNION ALL ".join(branches)


def _keys(question: FiguresQuestion) -> tuple[str, ...]:
    return ("model_id",) * question.by_model + ("client_id",) * question.by_client


def _grouping(keys: Sequence[str]) -> tuple[str, ...]:
    return ("bucket", *(f"figures.{key}" for key in keys))


def _source(
    question: FiguresQuestion,
    plan: Sequence[Branch],
    keys: Sequence[str],
    measures: Sequence[str],
    values: Values,
    book: Book | None = None,
) -> str:
    """The rows ``figures`` that a series is made of, with the bucket that each falls into, and its rates."""
    columns = [f"{_KEY_COLUMNS[key]} AS {key}" for key in keys if book is None or key != "model_id"]
    columns += [KEY] * (book is not None) + [name for name in measures if name not in PRICED]
    rows = union(
        f"SELECT {_bucket(branch, values)} AS bucket, {', '.join(columns)}"
        f" FROM {table_of(question, branch.grain)} WHERE {condition(question, branch.spans, values)}"
        for branch in plan
    )
    return f"({rows}) AS figures{book.join() if book else ''}"


def _bucket(branch: Branch, values: Values) -> str:
    """The start of the bucket a row falls into: the calendar is ours, not the server's."""
    if branch.buckets is None:
        return "bucket_start"
    starts = [to_datetime(start) for start in branch.buckets]
    if len(starts) == 1:
        return values.bind(starts[0], "timestamptz")
    array = values.bind(starts, "timestamptz[]")
    return f"({array})[width_bucket(bucket_start, {array})]"


async def _binary_rows(connection: AsyncConnection, text: str, values: Values) -> Sequence[tuple[Any, ...]]:
    """Rows in PostgreSQL's binary format: sketches are read in half the time of their text."""
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(text, values)
        return await cursor.fetchall()


_SKETCH: Final = "latency_sketch"


def _aggregates(measures: Sequence[str]) -> list[str]:
    """One column a measure, and two for the sketch: all sketches end to end, and the length of each.

    Both columns are made from the same rows in the same order.
    """
    columns = []
    for name in measures:
        if name == _SKETCH:
            columns += [
                f"string_agg({name}, ''::bytea)",
                f"string_agg(int2send(length({name})::smallint), ''::bytea)",
            ]
        else:
            columns.append(f"{'max' if name == 'latency_max_ms' else 'sum'}({name})")
    return columns


def _measures(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Sums of bigint are numeric in PostgreSQL: back to exact integers. Sums of no rows are null."""
    left = iter(values)
    return {
        name: _packed(next(left), next(left)) if name == _SKETCH else int(next(left) or 0) for name in names
    }


def _packed(data: bytes | None, lengths: bytes | None) -> Packed:
    return Packed(data or b"", np.frombuffer(lengths or b"", ">i2"))
