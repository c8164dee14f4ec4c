"""Usage whose rows are the points of the answer as they stand.

Nothing need be grouped where each row of one table is a bucket of its own and the series is split by all of
the table's key but partition and rate class. The rows then come in the order of the answer, and only the rows
of several partitions and rate classes are added up here. The range may cut the first and the last bucket;
those two are grouped from finer rows.

Series of any other shape are read by `api.reading.rollups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any, Final

from api.asking.buckets import Branch, Span, series_plan, to_datetime
from api.asking.questions import FiguresQuestion
from api.reading.prices import Book
from api.reading.rollups import (
    KEY,
    STORED,
    USAGE,
    UsageRow,
    Values,
    condition,
    table_of,
    union,
    usage_sums,
)

_BEFORE: Final = "before"
_AFTER: Final = "after"

_ROWS_OF_POINT: Final = 2
"""How many rows of each partition are read for a point. A point has a row for each rate class, mostly one.
If a page needs more rows, it is read by `api.reading.rollups`."""

_POINTS: Final = """
SELECT date_part('epoch', figures.bucket_start)::bigint / 60, figures.model_id::text, {client}, {measures}
FROM (
    SELECT {columns}
    FROM {table}
    WHERE {where}
    ORDER BY bucket_start, model_id{order}
    LIMIT (SELECT %(rows)s * greatest(count(*), 1) FROM analytics.orgs_seen WHERE org_id = %(org_id)s)
) AS figures{join}
ORDER BY figures.bucket_start, figures.model_id{order}
"""

_EDGE: Final = """
SELECT date_part('epoch', {bucket})::bigint / 60, figures.model_id::text, {client}, {sums}
FROM ({branches}) AS figures{join}
GROUP BY figures.model_id{group}
ORDER BY figures.model_id{order}
LIMIT %(points)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSeries:
    """A question that plain rows answer.

    ``branch`` is the part of its plan that the rows are read from; ``edges`` are the branches of the cut
    buckets before and after it.
    """

    question: FiguresQuestion
    book: Book
    branch: Branch
    edges: Mapping[str, Sequence[Branch]]

    def statements(self, values: Values) -> list[str]:
        """The parts of the series in order."""
        values |= {"points": self.question.limit + 1, "rows": self._rows_of_partition}
        texts = []
        if self.edges[_BEFORE]:
            texts.append(self._edge(_BEFORE, values))
        texts.append(self._points(values))
        if self.edges[_AFTER]:
            texts.append(self._edge(_AFTER, values))
        return texts

    def rows(self, parts: Sequence[Sequence[Any]], *, partitions: int) -> list[UsageRow] | None:
        """The series from what its statements answered, one point more than the limit at most.

        ``partitions``: in how many the org was ever seen. None: the statements read too few rows for a page,
        because its points have many rate classes.
        """
        parts, limit = list(parts), self.question.limit
        found: list[UsageRow] = []
        if self.edges[_BEFORE]:
            found += parts.pop(0)
        plain = parts.pop(0)
        found += _joined(plain)
        if len(plain) == self._rows_of_partition * max(partitions, 1):
            found.pop()  # there may be more rows of this point
            return found[: limit + 1] if len(found) > limit else None
        if parts:
            found += parts.pop()
        return found[: limit + 1]

    @property
    def _rows_of_partition(self) -> int:
        """How many rows of a partition are read at most. One point more than the page may be incomplete."""
        return _ROWS_OF_POINT * (self.question.limit + 2)

    def _edge(self, name: str, values: Values) -> str:
        question = self.question
        branches = self._union(self.edges[name], values)
        start = question.calendar.start_of(self.edges[name][0].spans[0].start)
        return _EDGE.format(
            bucket=values.bind(to_datetime(start), "timestamptz"),
            client=self._client,
            group=", client_id" * question.by_client,
            order=self._order,
            branches=branches,
            join=self.book.join(),
            sums=", ".join(usage_sums(self.book)),
        )

    def _points(self, values: Values) -> str:
        question, after = self.question, self.question.after
        where = condition(question, self.branch.spans, values)
        if after is not None:
            passed = [
                values.bind(to_datetime(after.bucket), "timestamptz"),
                values.bind(after.model_id, "uuid"),
            ]
            passed += [values.bind(after.client_id, "text")] * question.by_client
            where += f" AND (bucket_start, model_id{self._order}) > ({', '.join(passed)})"
        table = table_of(question, self.branch.grain)
        return _POINTS.format(
            table=table,
            where=where,
            columns=self._columns,
            client=self._client,
            order=self._order,
            measures=", ".join(map(self.book.of_row, USAGE)),
            join=self.book.join(),
        )

    @property
    def _columns(self) -> str:
        return ", ".join((KEY, *("client_id",) * self.question.by_client, *STORED))

    @property
    def _client(self) -> str:
        return "client_id" if self.question.by_client else "NULL"

    @property
    def _order(self) -> str:
        """What the rows of one bucket and model are sorted by: byte order, as in `api.reading.rollups`."""
        return ', client_id COLLATE "C"' * self.question.by_client

    def _union(self, plan: Sequence[Branch], values: Values) -> str:
        """The rows of all branches, span by span."""
        return union(
            f"SELECT {self._columns} FROM {table_of(self.question, branch.grain)}"
            f" WHERE {condition(self.question, (span,), values)}"
            for branch in plan
            for span in branch.spans
        )


def plain_series(question: FiguresQuestion, book: Book) -> PlainSeries | None:
    """The plain series of a question; None where its rows must be grouped."""
    if not question.by_model or question.by_client != question.needs_clients:
        return None
    span = question.span
    if question.after is not None:  # nothing before the cursor's bucket is read again
        span = Span(max(span.start, question.after.bucket), span.end)
    plan = series_plan(span, question.calendar, book.moments, question.quarters)
    plain = [branch for branch in plan if branch.buckets is None and len(branch.spans) == 1]
    if len(plain) != 1:
        return None
    whole = plain[0].spans[0]
    others = [branch for branch in plan if branch is not plain[0]]
    before = [branch for branch in others if branch.spans[-1].end <= whole.start]
    after = [branch for branch in others if branch.spans[0].start >= whole.end]
    cut = question.after is not None and bool(others)
    if cut or len(before) + len(after) < len(others) or not all(map(_is_one_bucket, others)):
        return None
    return PlainSeries(question=question, book=book, branch=plain[0], edges={_BEFORE: before, _AFTER: after})


def _is_one_bucket(branch: Branch) -> bool:
    return branch.buckets is not None and len(branch.buckets) == 1


def _joined(rows: Sequence[UsageRow]) -> list[UsageRow]:
    """One row a point: the rows of its partitions and classes stand next to each other, and are added up."""
    found: list[UsageRow] = []
    for row in rows:
        if found and found[-1][:3] == row[:3]:
            sums = map(add, found[-1][3:], row[3:])
            found[-1] = (*row[:3], *sums)
        else:
            found.append(row)
    return found
