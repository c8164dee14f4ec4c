"""The metric of calls whose cost nobody knows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg

from pipeline.worker import maintenance
from tests.support.price_books import price, write
from tests.support.spend_rows import DAY, MODELS, ORGS, add_classes, add_label, add_usage

UNNAMED, KNOWN, UNKNOWN = (
    next(model for model, name in MODELS.items() if name == wanted)
    for wanted in (("", ""), ("p", "m"), ("q", "m"))
)


async def test_calls_without_price_and_estimate_are_counted_by_reason_for_a_day(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    add_classes(connection)
    write(connection, [[price(), price(kind="output")]])
    for model in (KNOWN, UNKNOWN):
        add_label(connection, ORGS[0], model, *MODELS[model], at=DAY)
    for hours, calls in ((-25, 1000), (-24, 1), (-1, 2), (0, 4000)):
        for model in (UNNAMED, KNOWN, UNKNOWN):
            for org in ORGS[: 1 + (model == UNNAMED)]:
                figures = {"invocations": calls + 5, "unestimated": calls, "cost_microcents": 7}
                add_usage(connection, org, model, DAY + timedelta(hours=hours), figures)
    found = await maintenance.unpriced(database_url, DAY + timedelta(minutes=59))
    assert found == {"unnamed": 2 * 3, "no_price": 3}
