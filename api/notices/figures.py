"""What notices are judged by: the cost of hours of an org, and the figures of its days by model.

The figures are those of ``/usage``: the same rows, priced by the same book (`api.reading.prices`), in the
snapshot of the caller's transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from psycopg.rows import tuple_row

from api.asking.buckets import NO_QUARTERS, Quarters, Span, totals_plan
from api.reading import prices, rollups
from api.reading.database import rows
from api.reading.prices import Book
from api.reading.rollups import KEY, STORED, USAGE, Values
from pipeline.common.connect import AsyncConnection

FAILURES: Final = ("errors", "timeouts", "throttles")
MEASURES: Final = (*USAGE, *FAILURES)
Measures = Mapping[str, int]
"""The sums of `MEASURES`, by name."""


async def by_hour(
    connection: AsyncConnection, org_id: UUID, book: Book, spans: Sequence[Span]
) -> dict[int, tuple[int, int]]:
    """What each hour of the spans cost, in units, and how many of its calls have no known cost.

    An hour without calls is absent. The spans are whole hours of UTC, and do not overlap.
    """
    values = Values()
    values |= book.values
    org = values.bind(org_id, "uuid")
    source = rollups.union(
        f"SELECT {KEY}, {', '.join(STORED)} FROM analytics.usage_hour"
        f" WHERE org_id = {org} AND {rollups.within((span,), values)}"
        for span in spans
    )
    text = (
        "SELECT extract(epoch FROM figures.bucket_start)::bigint / 60,"
        f" sum({book.of_row('amount')}), sum({book.of_row('unpriced')})"
        f" FROM ({source}) AS figures{book.join()} GROUP BY 1"
    )
    await connection.execute(prices.SQL["no_loops"])
    return {
        hour: (int(amount), int(unpriced))
        for hour, amount, unpriced in await rows(connection, text, values, tuple_row)
    }


async def by_model(
    connection: AsyncConnection,
    org_id: UUID,
    book: Book,
    wanted: Iterable[tuple[str, Span]],
    quarters: Quarters = NO_QUARTERS,
) -> dict[str, dict[UUID, Measures]]:
    """The sums of some spans by model, by the name of the span. A span without calls is absent."""
    values = Values()
    values |= book.values
    org = values.bind(org_id, "uuid")
    columns = ", ".join((KEY, *STORED, *FAILURES))
    source = rollups.union(
        f"SELECT {values.bind(name, 'text')} AS name, {columns} FROM analytics.usage_{branch.grain}"
        f" WHERE org_id = {org} AND {rollups.within(branch.spans, values)}"
        for name, span in wanted
        for branch in totals_plan(span, book.moments, quarters)
    )
    key = "figures.name, figures.model_id"
    sums = ", ".join(f"sum({book.of_row(name)})" for name in MEASURES)
    text = f"SELECT {key}, {sums} FROM ({source}) AS figures{book.join()} GROUP BY {key}"
    await connection.execute(prices.SQL["no_loops"])
    found: dict[str, dict[UUID, Measures]] = defaultdict(dict)
    for name, model_id, *figures in await rows(connection, text, values, tuple_row):
        found[name][model_id] = dict(zip(MEASURES, map(int, figures), strict=True))
    return dict(found)


def total(by_model: Iterable[Measures]) -> Measures:
    """The sums of all models together."""
    sums = dict.fromkeys(MEASURES, 0)
    for measures in by_model:
        for name in MEASURES:
            sums[name] += measures[name]
    return sums
