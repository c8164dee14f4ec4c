"""Usage whose rows are the points of the answer as they stand: all of it in one statement's time.

Where each row of one table is a bucket of its own and the series is split by all of the table's key, nothing
need be grouped: rows come in the order of the answer, and only those of several partitions are added up here.
With the totals and how far the org has come they are read in one snapshot and one round trip. What cannot be
read so is read by `api.rollups`, and is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.buckets import Branch, Grain, Span, series_plan, to_datetime, totals_plan
from api.database import Statement
from api.questions import FiguresQuestion
from api.rollups import UsageRow

STANDINGS: Final = """
SELECT o.partition, p.watermark, o.last_event_at, o.last_rollup_at
FROM analytics.orgs_seen AS o LEFT JOIN analytics.partitions AS p ON p.partition = o.partition
WHERE o.org_id = %(org_id)s
"""

_SUMS: Final = "invocations, input_tokens, output_tokens, cost_microcents"

# A point has at most one row in each partition that the org was ever seen in.
_POINTS: Final = """
SELECT date_part('epoch', bucket_start)::bigint / 60, model_id::text, {client}, {sums}
FROM analytics.{table}
WHERE {where}
ORDER BY bucket_start, model_id{order}
LIMIT (SELECT %(points)s * greatest(count(*), 1) FROM analytics.orgs_seen WHERE org_id = %(org_id)s)
"""

_TOTALS: Final = """
SELECT sum(invocations)::text, sum(input_tokens)::text, sum(output_tokens)::text, sum(cost_microcents)::text
FROM ({branches}) AS figures
"""


@dataclass(frozen=True, slots=True)
class PlainSeries:
    """A question that plain rows answer, and the branch of its plan that they are read from."""

    question: FiguresQuestion
    branch: Branch

    def statements(self, *, with_totals: bool) -> list[Statement]:
        """How far the org has come, the points (one more than the limit) and the totals if wanted."""
        found = [Statement(STANDINGS, {"org_id": self.question.org_id}), self._points()]
        return [*found, self._totals()] if with_totals else found

    def _points(self) -> Statement:
        question = self.question
        where, parameters = _where(question, self.branch.spans[0])
        # Byte order, whatever the database's own is; see `api.rollups`.
        key = 'client_id COLLATE "C"'
        after = question.after
        if after is not None:
            names = ["bucket_start", "model_id"] + [key] * question.by_client
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
            order=f", {key}" if question.by_client else "",
            sums=_SUMS,
        )
        return Statement(text, {**parameters, "points": question.limit + 1})

    def _totals(self) -> Statement:
        branches: list[str] = []
        parameters: dict[str, Any] = {}
        for number, branch in enumerate(totals_plan(self.question.span)):
            for part, span in enumerate(branch.spans):
                where, values = _where(self.question, span, suffix=f"_{number}_{part}")
                branches.append(
                    f"SELECT {_SUMS} FROM analytics.{_table(self.question, branch.grain)} WHERE {where}"
                )
                parameters |= values
        return Statement(_TOTALS.format(branches=" UNION ALL ".join(branches)), parameters)


def plain_series(question: FiguresQuestion) -> PlainSeries | None:
    """None where rows must be grouped."""
    if not question.by_model or question.by_client != question.needs_clients:
        return None
    span = question.span
    if question.after is not None:  # nothing before the cursor's bucket is read again
        span = Span(max(span.start, question.after.bucket), span.end)
    plan = series_plan(span, question.calendar)
    if len(plan) != 1 or plan[0].buckets is not None or len(plan[0].spans) != 1:
        return None
    return PlainSeries(question, plan[0])


def joined(rows: Sequence[UsageRow]) -> list[UsageRow]:
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
