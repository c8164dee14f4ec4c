"""SQL on the rollups: figures of one org by bucket, and of many orgs by org.

Each query is a union of at most a few branches (see `api.asking.buckets`), each with bounds on ``org_id`` and
``bucket_start``, the first two columns of every key; sums are made in SQL and few columns come back. Rows
of different partitions are summed, so the figures are right whichever partition an event came through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    LargeBinary,
    Row,
    Select,
    SmallInteger,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import Grouping

from api.asking.buckets import HOUR, Branch, Grain, Span, series_plan, to_datetime, to_minute, totals_plan
from api.asking.questions import FiguresQuestion, Position
from pipeline.core.sketches import Packed
from sql import schema

_TABLES: Final = {
    Grain.MINUTE: schema.usage_minute,
    Grain.HOUR: schema.usage_hour,
    Grain.DAY: schema.usage_day,
}
_CLIENT_TABLES: Final = {Grain.HOUR: schema.client_hour, Grain.DAY: schema.client_day}
_TIMESTAMPTZ: Final = DateTime(timezone=True)
ERROR_CODES_MAX: Final = 1000

USAGE: Final = ("invocations", "input_tokens", "output_tokens", "cost_microcents")
RELIABILITY: Final = (
    "invocations",
    "errors",
    "timeouts",
    "throttles",
    "latency_sum_ms",
    "latency_max_ms",
    "latency_sketch",
)
_ORG: Final = (
    "invocations",
    "errors",
    "timeouts",
    "throttles",
    "input_tokens",
    "output_tokens",
    "cost_microcents",
)

ORG_NOTHING: Final[Mapping[str, int]] = dict.fromkeys(_ORG, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """The measures of one bucket and group, by name; the sketches of a group come as `sketches.Packed`."""

    position: Position
    measures: Mapping[str, Any]


UsageRow = tuple[int, str | None, str | None, int, int, int, int]
"""(bucket, model, client, invocations, input tokens, output tokens, microcents)."""


async def usage_series(
    connection: AsyncConnection, question: FiguresQuestion, limit: int
) -> Sequence[UsageRow]:
    """Up to ``limit`` points of usage after the question's cursor."""
    found = _series_source(question, USAGE)
    if found is None:
        return []
    source, columns, after = found
    bucket = cast(func.extract("epoch", source["bucket"]), BigInteger).op("/")(60)
    keys = [
        cast(source[key], Text) if wanted else null()
        for key, wanted in (("model_id", question.by_model), ("client_id", question.by_client))
    ]
    sums = [cast(sum_, Text) for sum_ in _aggregates(source, USAGE)]
    query = select(bucket, *keys, *sums).group_by(*columns).order_by(*columns).limit(limit)
    if after is not None:
        query = query.where(after)
    result = await connection.execute(query)
    assert result.cursor is not None
    rows = result.cursor.fetchall()  # plain tuples: half the time of SQLAlchemy's rows
    result.close()
    return [(b, m, c, int(i), int(into), int(out), int(cost)) for b, m, c, i, into, out, cost in rows]


async def series(
    connection: AsyncConnection, question: FiguresQuestion, measures: Sequence[str], limit: int
) -> list[Point]:
    """Up to ``limit`` points after the question's cursor, by bucket, model and client."""
    found = _series_source(question, measures)
    if found is None:
        return []
    source, columns, after = found
    query = (
        select(*columns, *_aggregates(source, measures)).group_by(*columns).order_by(*columns).limit(limit)
    )
    if after is not None:
        query = query.where(after)
    return [
        Point(
            Position(
                to_minute(row[0]),
                row[1] if question.by_model else None,
                row[len(columns) - 1] if question.by_client else None,
            ),
            _measures(row[len(columns) :], measures),
        )
        for row in await _binary_rows(connection, query)
    ]


def _series_source(
    question: FiguresQuestion, measures: Sequence[str]
) -> tuple[Mapping[str, ColumnElement[Any]], list[ColumnElement[Any]], ColumnElement[bool] | None] | None:
    """What a page is read from, what groups and sorts it, and what is after the cursor; None: nothing."""
    calendar, after = question.calendar, question.after
    span = question.span
    if after is not None:  # nothing before the cursor's bucket is read again
        whole = not (question.by_model or question.by_client)
        span = Span(max(span.start, calendar.end_of(after.bucket) if whole else after.bucket), span.end)
    keys = _keys(question)
    plan = series_plan(span, calendar)
    if not plan:
        return None
    source = _source(question, plan, keys, measures, bucketed=True)
    columns = [source["bucket"], *(source[key] for key in keys)]
    if after is None or not keys:
        return source, columns, None
    passed = [literal(to_datetime(after.bucket), _TIMESTAMPTZ)]
    passed += [literal(getattr(after, key), source[key].type) for key in keys]
    return source, columns, tuple_(*columns) > tuple_(*passed)


def figures_query(question: FiguresQuestion) -> Select[Any]:
    """The sums of `USAGE` by bucket, model and client over the whole range, for whoever streams them."""
    keys = _keys(question)
    source = _source(question, series_plan(question.span, question.calendar), keys, USAGE, bucketed=True)
    columns = [source["bucket"], *(source[key] for key in keys)]
    return select(*columns, *_aggregates(source, USAGE)).group_by(*columns).order_by(*columns)


async def totals(
    connection: AsyncConnection, question: FiguresQuestion, measures: Sequence[str]
) -> Mapping[str, Any]:
    """The measures over the whole range, whatever the page; read from as few rows as cover it."""
    source = _source(question, totals_plan(question.span), (), measures, bucketed=False)
    (row,) = await _binary_rows(connection, select(*_aggregates(source, measures)))
    return _measures(row, measures)


async def error_codes(connection: AsyncConnection, question: FiguresQuestion) -> Sequence[Row[Any]]:
    """Failed events by status and code over the whole hours that the range touches, most frequent first."""
    table = schema.usage_errors_hour
    code = table.c.error_code.collate("C")
    count = func.sum(table.c.count)
    query = (
        select(table.c.status, code.label("error_code"), count.label("events"))
        .where(_within(table, (error_codes_span(question.span),)), *_filters(table, question))
        .group_by(table.c.status, code)
        .order_by(count.desc(), table.c.status, code)
        .limit(ERROR_CODES_MAX)
    )
    return (await connection.execute(query)).all()


def error_codes_span(span: Span) -> Span:
    """Error codes are kept by the hour: the hours that the range touches."""
    return Span(span.start - span.start % HOUR, -(-span.end // HOUR) * HOUR)


async def org_totals(
    connection: AsyncConnection, org_ids: Iterable[UUID], span: Span
) -> dict[UUID, Mapping[str, Any]]:
    """The measures of each org over the range; an org without events in it is absent."""
    wanted = list(org_ids)
    source = _union(
        [
            select(table.c.org_id, *(table.c[name] for name in _ORG)).where(
                table.c.org_id.in_(wanted), _within(table, branch.spans)
            )
            for branch in totals_plan(span)
            for table in (_TABLES[branch.grain],)
        ]
    )
    query = select(source["org_id"], *_aggregates(source, _ORG)).group_by(source["org_id"])
    return {row.org_id: _measures(row[1:], _ORG) for row in await connection.execute(query)}


# --- parts of the queries ---


def _keys(question: FiguresQuestion) -> tuple[str, ...]:
    return ("model_id",) * question.by_model + ("client_id",) * question.by_client


def _source(
    question: FiguresQuestion,
    plan: Sequence[Branch],
    keys: Sequence[str],
    measures: Sequence[str],
    *,
    bucketed: bool,
) -> Mapping[str, ColumnElement[Any]]:
    tables = _CLIENT_TABLES if question.needs_clients else _TABLES
    branches = []
    for branch in plan:
        table = tables[branch.grain]
        columns: list[ColumnElement[Any]] = [_bucket(table, branch).label("bucket")] if bucketed else []
        columns += [_key(table, key).label(key) for key in keys]
        columns += [table.c[name] for name in measures]
        branches.append(select(*columns).where(_within(table, branch.spans), *_filters(table, question)))
    return _union(branches)


def _union(branches: Sequence[Select[Any]]) -> Mapping[str, ColumnElement[Any]]:
    """The columns of all branches together. PostgreSQL folds a single one into the query around it."""
    joined = branches[0] if len(branches) == 1 else union_all(*branches)
    return dict(joined.subquery("figures").c.items())


def _key(table: Table, key: str) -> ColumnElement[Any]:
    # Byte order is the same in every database and lets a cursor compare as the sort does.
    return table.c[key].collate("C") if key == "client_id" else table.c[key]


def _bucket(table: Table, branch: Branch) -> ColumnElement[Any]:
    """The start of the bucket a row falls into: the calendar is ours, not the server's."""
    if branch.buckets is None:
        return table.c.bucket_start
    starts = [to_datetime(start) for start in branch.buckets]
    if len(starts) == 1:
        return literal(starts[0], _TIMESTAMPTZ)
    # Grouping: PostgreSQL takes a subscript of a cast in parentheses only.
    array = Grouping(bindparam(None, starts, type_=ARRAY(_TIMESTAMPTZ)))
    return array[func.width_bucket(table.c.bucket_start, array)]


def _within(table: Table, spans: Sequence[Span]) -> ColumnElement[bool]:
    """Rows in any of the spans. The outer bounds stand first, for the exclusion of chunks."""
    at = table.c.bucket_start
    outer = and_(at >= to_datetime(spans[0].start), at < to_datetime(spans[-1].end))
    if len(spans) == 1:
        return outer
    inner = (and_(at >= to_datetime(span.start), at < to_datetime(span.end)) for span in spans)
    return and_(outer, or_(*inner))


def _filters(table: Table, question: FiguresQuestion) -> list[ColumnElement[bool]]:
    filters: list[ColumnElement[bool]] = [table.c.org_id == question.org_id]
    if question.model_ids:
        filters.append(table.c.model_id.in_(question.model_ids))
    if question.client_ids:
        filters.append(table.c.client_id.in_(question.client_ids))
    return filters


async def _binary_rows(connection: AsyncConnection, query: Select[Any]) -> Sequence[tuple[Any, ...]]:
    """The query's rows in PostgreSQL's binary format: sketches are read in half the time of their text."""
    compiled = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    try:
        async with raw.cursor(binary=True) as cursor:
            await cursor.execute(str(compiled), compiled.params)
            found: Sequence[tuple[Any, ...]] = await cursor.fetchall()
    except psycopg.Error as error:  # as SQLAlchemy would raise it
        raise DBAPIError(None, None, error, connection_invalidated=raw.closed) from error
    return found


_SKETCH: Final = "latency_sketch"
_NO_BYTES: Final = literal(b"", LargeBinary)


def _aggregates(
    source: Mapping[str, ColumnElement[Any]], measures: Sequence[str]
) -> list[ColumnElement[Any]]:
    """One column a measure, but the sketch's two: all sketches end to end, and the length of each. Both are
    made from the same rows in the same order."""
    columns: list[ColumnElement[Any]] = []
    for name in measures:
        column = source[name]
        if name == _SKETCH:
            length = func.int2send(cast(func.length(column), SmallInteger))
            columns += [func.string_agg(column, _NO_BYTES), func.string_agg(length, _NO_BYTES)]
        else:
            columns.append((func.max if name == "latency_max_ms" else func.sum)(column).label(name))
    return columns


def _measures(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Sums of bigint are numeric in PostgreSQL: back to exact integers. Sums of no rows are null."""
    left = iter(values)
    return {
        name: _packed(next(left), next(left)) if name == _SKETCH else int(next(left) or 0) for name in names
    }


def _packed(data: bytes | None, lengths: bytes | None) -> Packed:
    return Packed(data or b"", np.frombuffer(lengths or b"", ">i2"))
