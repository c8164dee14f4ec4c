"""Usage whose rows are the points of the answer as they stand: all of it in one round trip.

Where each row of one table is a bucket of its own and the series is split by all of the table's key, nothing
need be grouped: rows come in the order of the answer, and only those of several partitions are added up here.
The cut buckets at the edges of a range, one at each, are grouped from finer rows. With the totals and how far
the org has come all is read in one snapshot. What cannot be read so is read by `api.reading.rollups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.asking.buckets import Branch, Grain, Span, series_plan, to_datetime, totals_plan
from api.asking.questions import FiguresQuestion
from api.reading.database import Statement
from api.reading.rollups import UsageRow

STANDINGS: Final = """
SELECT o.partition, p.watermark, o.last_event_at, o.last_rollup_at
FROM analytics.orgs_seen AS o LEFT JOIN analytics.partition_watermarks AS p ON p.partition = o.partition
WHERE o.org_id = %(org_id)s
"""

_BEFORE: Final = "before"
_AFTER: Final = "after"
_SUMS: Final = "invocations, input_tokens, output_tokens, cost_microcents"

# A point has at most one row in each partition that the org was ever seen in.
_POINTS: Final = """
SELECT date_part('epoch', bucket_start)::bigint / 60, model_id::text, {client}, {sums}
FROM analytics.{table}
WHERE {where}
ORDER BY bucket_start, model_id{order}
LIMIT (SELECT %(points)s * greatest(count(*), 1) FROM analytics.orgs_seen WHERE org_id = %(org_id)s)
"""

_EDGE: Final = """
SELECT date_part('epoch', %(bucket_{name})s::timestamptz)::bigint / 60, model_id::text, {client},
    sum(invocations)::text, sum(input_tokens)::text, sum(output_tokens)::text, sum(cost_microcents)::text
FROM ({branches}) AS figures
GROUP BY model_id{group}
ORDER BY model_id{order}
LIMIT %(points)s
"""

_TOTALS: Final = """
SELECT sum(invocations)::text, sum(input_tokens)::text, sum(output_tokens)::text, sum(cost_microcents)::text
FROM ({branches}) AS figures
"""


# Byte order, whatever the database's own is; see `api.reading.rollups`.
_CLIENT: Final = 'client_id COLLATE "C"'


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSeries:
    """A question that plain rows answer: the branch of its plan that they are read from, and those of the cut
    buckets before and after it."""

    question: FiguresQuestion
    branch: Branch
    edges: Mapping[str, Sequence[Branch]]

    def statements(self, *, with_totals: bool) -> list[Statement]:
        """How far the org has come, the parts of the series in order, and the totals if wanted."""
        found = [Statement(STANDINGS, {"org_id": self.question.org_id})]
        if self.edges[_BEFORE]:
            found.append(self._edge(_BEFORE))
        found.append(self._points())
        if self.edges[_AFTER]:
            found.append(self._edge(_AFTER))
        return [*found, self._totals()] if with_totals else found

    def rows(self, parts: Sequence[Sequence[Any]], *, partitions: int) -> list[UsageRow]:
        """The series from what its statements answered, one more than the limit at most. ``partitions``: in
        how many the org was ever seen."""
        parts = list(parts)
        found: list[UsageRow] = []
        if self.edges[_BEFORE]:
            found += _exact(parts.pop(0))
        plain = parts.pop(0)
        found += _joined(plain) if partitions > 1 else plain
        if parts:
            found += _exact(parts.pop())
        return found[: self.question.limit + 1]

    def _edge(self, name: str) -> Statement:
        question = self.question
        branches, parameters = self._union(self.edges[name], name)
        first = self.edges[name][0].spans[0]
        text = _EDGE.format(
            name=name,
            client="client_id" if question.by_client else "NULL",
            group=", client_id" * question.by_client,
            order=f", {_CLIENT}" if question.by_client else "",
            branches=branches,
        )
        bucket = to_datetime(question.calendar.start_of(first.start))
        return Statement(text, {**parameters, f"bucket_{name}": bucket, "points": question.limit + 1})

    def _points(self) -> Statement:
        question = self.question
        where, parameters = _where(question, self.branch.spans[0])
        after = question.after
        if after is not None:
            names = ["bucket_start", "model_id"] + [_CLIENT] * question.by_client
            where += f" AND ({', '.join(names)}) > (%(after_bucket)s, %(after_model)s"
            where += ", %(after_client)s)" if question.by_client else ")"
            parameters |= {
                "after_bucket": to_datetime(after.bucket),
                "after_model": after.model_id,
                "after_client": after.client_id,
            }
        text = _POINTS.format(
            table=_table(question, self.branch.grain),
            where=where,
            client="client_id" if question.by_client else "NULL",
            order=f", {_CLIENT}" if question.by_client else "",
            sums=_SUMS,
        )
        return Statement(text, {**parameters, "points": question.limit + 1})

    def _totals(self) -> Statement:
        branches, parameters = self._union(totals_plan(self.question.span), "total")
        return Statement(_TOTALS.format(branches=branches), parameters)

    def _union(self, plan: Sequence[Branch], name: str) -> tuple[str, dict[str, Any]]:
        """The rows of all branches, as text and its parameters."""
        branches: list[str] = []
        parameters: dict[str, Any] = {}
        keys = "model_id, client_id, " if self.question.by_client else "model_id, "
        for number, branch in enumerate(plan):
            for part, span in enumerate(branch.spans):
                where, values = _where(self.question, span, suffix=f"_{name}_{number}_{part}")
                table = _table(self.question, branch.grain)
                branches.append(f"SELECT {keys}{_SUMS} FROM analytics.{table} WHERE {where}")
                parameters |= values
        return " UNION ALL ".join(branches), parameters


def plain_series(question: FiguresQuestion) -> PlainSeries | None:
    """None where rows must be grouped."""
    if not question.by_model or question.by_client != question.needs_clients:
        return None
    span = question.span
    if question.after is not None:  # nothing before the cursor's bucket is read again
        span = Span(max(span.start, question.after.bucket), span.end)
    plan = series_plan(span, question.calendar)
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
    return PlainSeries(question=question, branch=plain[0], edges={_BEFORE: before, _AFTER: after})


def _is_one_bucket(branch: Branch) -> bool:
    return branch.buckets is not None and len(branch.buckets) == 1


def _exact(rows: Sequence[Sequence[Any]]) -> list[UsageRow]:
    """PostgreSQL's sums are numeric, which came as text."""
    return [(b, m, c, int(i), int(into), int(out), int(cost)) for b, m, c, i, into, out, cost in rows]


def _joined(rows: Sequence[UsageRow]) -> list[UsageRow]:
    """One row a point: those of a point's partitions, which lie together, added up."""
    found: list[UsageRow] = []
    for row in rows:
        if found and found[-1][:3] == row[:3]:
            last = found[-1]
            found[-1] = (*row[:3], last[3] + row[3], last[4] + row[4], last[5] + row[5], last[6] + row[6])
        else:
            found.append(row)
    return found


def _table(question: FiguresQuestion, grain: Grain) -> str:
    return f"{'client' if question.needs_clients else 'usage'}_{grain}"


def _where(question: FiguresQuestion, span: Span, *, suffix: str = "") -> tuple[str, dict[str, Any]]:
    text = (
        f"org_id = %(org_id)s AND bucket_start >= %(start{suffix})s AND bucket_start < %(end{suffix})s"
        + " AND model_id = ANY(%(model_ids)s::uuid[])" * bool(question.model_ids)
        + " AND client_id = ANY(%(client_ids)s::text[])" * bool(question.client_ids)
    )
    return text, {
        "org_id": question.org_id,
        f"start{suffix}": to_datetime(span.start),
        f"end{suffix}": to_datetime(span.end),
        "model_ids": list(question.model_ids),
        "client_ids": list(question.client_ids),
    }
