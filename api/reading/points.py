"""Usage whose rows are the points of the answer as they stand.

Nothing need be grouped where each row of one table is a bucket of its own and the series is split by all of
the table's key but partition and rate class. The rows then come in the order of the answer, and only the rows
of several partitions and rate classes are added up here.

A few buckets may be *cut*: the first and the last by the range, and days by a price that changes inside.
Those are grouped from finer rows, by a statement of their own. Example: of 30 days, in which a price changes
on the 12th at 07:00, 29 are read as day rows, and one is added up from 24 hour rows.

Series of any other shape are read by `api.reading.rollups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any, Final

from api.asking.buckets import Calendar, Grain, Granularity, Span, series_pieces, to_datetime
from api.asking.questions import FiguresQuestion
from api.reading import prices, rates
from api.reading.prices import Book
from api.reading.rollups import (
    KEY,
    STORED,
    UsageRow,
    Values,
    condition,
    table_of,
    union,
    usage_sums,
)
from api.reading.seen import Label

_OWN: Final = {
    Granularity.MINUTE: Grain.MINUTE,
    Granularity.HOUR: Grain.HOUR,
    Granularity.DAY: Grain.DAY,
}
"""The grain whose rows can be the buckets."""
_CUT_MAX: Final = 16
"""The most cut buckets beside plain rows, because each one makes the statement longer."""

_ROWS_OF_POINT: Final = 2
"""How many rows of each partition are read for a point. A point has a row for each rate class, mostly one.
If a page needs more rows, it is read by `api.reading.rollups`."""

_POINTS: Final = """
SELECT date_part('epoch', bucket_start)::bigint / 60, model_id::text, {client}, rate_class, {stored}
FROM {table}
WHERE {where}
ORDER BY bucket_start, model_id{order}
LIMIT (SELECT %(rows)s * greatest(count(*), 1) FROM analytics.orgs_seen WHERE org_id = %(org_id)s)
"""

_CUT: Final = """
SELECT date_part('epoch', figures.bucket)::bigint / 60, figures.model_id::text, {client}, {sums}
FROM ({branches}) AS figures{join}
WHERE {where}
GROUP BY figures.bucket, figures.model_id{group}
ORDER BY figures.bucket, figures.model_id{order}
LIMIT %(points)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSeries:
    """A question that plain rows answer.

    The rows of ``grain`` in the spans ``plain`` are buckets of their own. Each of the buckets ``cut`` is made
    of the rows of some pieces.
    """

    question: FiguresQuestion
    book: Book
    grain: Grain
    plain: tuple[Span, ...]
    cut: Mapping[int, Sequence[tuple[Grain, Span]]]

    def statements(self, values: Values) -> list[str]:
        """The statements of the rate classes, of the plain rows, and of the cut buckets if there are any."""
        values |= {"points": self.question.limit + 1, "rows": self._rows_of_partition}
        return [prices.SQL["rate_classes"], self._points(values)] + [self._cut(values)] * bool(self.cut)

    @staticmethod
    def rows_of(parts: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """What the statements of plain rows and of cut buckets answered."""
        return list(parts[1:])

    def rows(
        self, parts: Sequence[Sequence[Any]], *, partitions: int, labels: Mapping[str, Label]
    ) -> list[UsageRow] | None:
        """The series from what its statements answered, one point more than the limit at most.

        ``partitions``: in how many the org was ever seen. ``labels``: of all models in the answers. None: the
        statements read too few rows for a page, because its points have many rate classes.
        """
        classes, plain, *others = parts
        cut, limit, book = others[0] if others else (), self.question.limit, self.book
        found = _joined(
            rates.priced(plain, sheets=book.by_model, basis=book.basis, labels=labels, classes=classes)
        )
        if len(plain) < self._rows_of_partition * max(partitions, 1):
            return sorted([*found, *cut], key=_bucket_of)[: limit + 1] if cut else found[: limit + 1]
        last = found.pop()  # there may be more rows of this point, and more points before the next cut bucket
        found += [row for row in cut if row[0] < last[0]]
        return sorted(found, key=_bucket_of)[: limit + 1] if len(found) > limit else None

    @property
    def _rows_of_partition(self) -> int:
        """How many rows of a partition are read at most. One point more than the page may be incomplete."""
        return _ROWS_OF_POINT * (self.question.limit + 2)

    def _cut(self, values: Values) -> str:
        branches = union(
            f"SELECT {values.bind(to_datetime(bucket), 'timestamptz')} AS bucket, {self._columns}"
            f" FROM {table_of(self.question, grain)} WHERE {condition(self.question, (span,), values)}"
            for bucket, pieces in self.cut.items()
            for grain, span in pieces
        )
        return _CUT.format(
            client=self._client,
            sums=", ".join(usage_sums(self.book)),
            branches=branches,
            join=self.book.join(),
            where=self._passed("figures.bucket, figures.model_id", values) or "true",
            group=", client_id" * self.question.by_client,
            order=self._order,
        )

    def _points(self, values: Values) -> str:
        question = self.question
        where = condition(question, self.plain, values)
        if passed := self._passed("bucket_start, model_id", values):
            where += f" AND {passed}"
        return _POINTS.format(
            table=table_of(question, self.grain),
            where=where,
            client=self._client,
            order=self._order,
            stored=", ".join(STORED),
        )

    def _passed(self, columns: str, values: Values) -> str:
        """Rows of ``columns`` behind the question's cursor; '' if there is none."""
        after = self.question.after
        if after is None:
            return ""
        passed = [
            values.bind(to_datetime(after.bucket), "timestamptz"),
            values.bind(after.model_id, "uuid"),
        ]
        passed += [values.bind(after.client_id, "text")] * self.question.by_client
        return f"({columns}{self._order}) > ({', '.join(passed)})"

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


def plain_series(question: FiguresQuestion, book: Book) -> PlainSeries | None:
    """The plain series of a question; None where its rows must be grouped."""
    own = _OWN.get(question.calendar.granularity)
    if own is None or not question.by_model or question.by_client != question.needs_clients:
        return None
    span, calendar = question.span, question.calendar
    if question.after is not None:  # nothing before the cursor's bucket is read again
        span = Span(max(span.start, question.after.bucket), span.end)
    if calendar.end_of(calendar.start_of(span.start)) % own.minutes:
        return None  # the days of a zone off UTC's midnight
    plain: list[Span] = []
    cut: dict[int, list[tuple[Grain, Span]]] = {}
    for grain, piece in series_pieces(span, calendar, book.moments, question.quarters):
        bucket = calendar.start_of(piece.start)
        if grain is own and _rows_are_buckets(piece, grain, calendar):
            touches = plain and plain[-1].end == piece.start
            plain[-1:] = [Span(plain[-1].start, piece.end)] if touches else [*plain[-1:], piece]
        elif piece.end <= calendar.end_of(bucket) and len(cut) <= _CUT_MAX:
            cut.setdefault(bucket, []).append((grain, piece))
        else:
            return None
    if not plain or len(cut) > _CUT_MAX:
        return None
    return PlainSeries(question=question, book=book, grain=own, plain=tuple(plain), cut=cut)


def _rows_are_buckets(piece: Span, grain: Grain, calendar: Calendar) -> bool:
    first = calendar.start_of(piece.start)
    whole = first == piece.start and calendar.start_of(piece.end) == piece.end
    return whole and calendar.end_of(first) == first + grain.minutes


def _bucket_of(row: UsageRow) -> int:
    """Rows of one bucket come in order from one statement, and a sort by this keeps their order."""
    return row[0]


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
