"""The metric of calls whose cost nobody knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from pipeline.worker import maintenance
from tests.support import processes
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


def test_a_worker_shows_the_calls_without_price_on_its_metrics_page(
    database_url: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    add_classes(connection)
    write(connection, [[price(valid_from=hour), price(kind="output", valid_from=hour)]])
    for model, unestimated in ((UNNAMED, 3), (KNOWN, 4), (UNKNOWN, 5)):
        if any(MODELS[model]):
            add_label(connection, ORGS[0], model, *MODELS[model], at=hour)
        add_usage(connection, ORGS[0], model, hour, {"invocations": 9, "unestimated": unestimated})
    env = {"DATABASE_URL": database_url, "RABBITMQ_URL": f"embedded://{tmp_path}/stream"}
    wanted = {"unnamed": 3.0, "no_price": 5.0}
    with processes.worker(env, tmp_path) as worker:

        def shown() -> dict[str, float | None]:
            page = processes.metrics(worker)
            return {reason: page.get(f'analytics_unpriced_calls{{reason="{reason}"}}') for reason in wanted}

        processes.wait_for(lambda: None not in shown().values(), 120, worker.log)
        assert shown() == wanted
        assert worker.stop() == 0
