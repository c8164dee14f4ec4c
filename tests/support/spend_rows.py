"""Writes rollup rows and labels straight into the database, for tests that price them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import psycopg

FIGURES: Final = (
    "invocations",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "unestimated",
    "cost_microcents",
)
CLASSES: Final = {
    0: ("standard", 0, None),
    1: ("standard", 0, 199_999),
    2: ("standard", 200_000, 200_000),
    3: ("standard", 200_001, None),
    4: ("batch", 0, 199_999),
}


def add_classes(connection: psycopg.Connection[Any]) -> None:
    for number, meaning in CLASSES.items():
        connection.execute(
            "INSERT INTO analytics.rate_classes VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (number, *meaning),
        )


def add_label(
    connection: psycopg.Connection[Any],
    org: str,
    model: str,
    provider: str,
    name: str,
    *,
    at: datetime,
    partition: int = 0,
) -> None:
    connection.execute(
        "INSERT INTO analytics.models_seen (org_id, model_id, partition, first_event_at, last_event_at,"
        " last_rollup_at, labelled_at, provider, model_name) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (org, model, partition, at, at, at, at, provider, name),
    )


def add_usage(
    connection: psycopg.Connection[Any],
    org: str,
    model: str,
    hour: datetime,
    figures: dict[str, int],
    *,
    rate_class: int = 0,
    partition: int = 0,
) -> None:
    """Add calls of one hour to the rows of the hour and of its day."""
    zeros = ("successes", "errors", "timeouts", "throttles", "latency_sum_ms", "latency_max_ms", "revision")
    names = [*FIGURES, *zeros]
    values = [figures.get(name, 0) for name in names]
    day = hour.replace(hour=0)
    for table, start in (("usage_hour", hour), ("usage_day", day)):
        sums = ", ".join(f"{name} = {table}.{name} + EXCLUDED.{name}" for name in names)
        connection.execute(
            f"INSERT INTO analytics.{table} (org_id, bucket_start, model_id, rate_class, partition,"
            f" latency_sketch, updated_at, {', '.join(names)}) VALUES"
            f" (%s, %s, %s, %s, %s, '', now(){', %s' * len(names)})"
            f" ON CONFLICT (org_id, bucket_start, model_id, rate_class, partition) DO UPDATE SET {sums}",
            (org, start, model, rate_class, partition, *values),
        )


def rows(connection: psycopg.Connection[Any], query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """The rows of a query by column."""
    cursor = connection.execute(query, values)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
