"""Writes rollup rows and labels straight into the database, for tests that price them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import psycopg

from tests.support.naive_prices import Row
from tests.support.price_books import price, write

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


DAY = datetime(2026, 3, 10, tzinfo=UTC)
ORGS = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
MODELS = {
    "10000000-0000-4000-8000-000000000001": ("p", "m"),
    "10000000-0000-4000-8000-000000000002": ("p", "m-mini"),
    "10000000-0000-4000-8000-000000000003": ("p", "free"),
    "10000000-0000-4000-8000-000000000004": ("q", "m"),  # not in the book
    "10000000-0000-4000-8000-000000000005": ("", ""),
}


def pair(dollars: int | str, **given: Any) -> list[dict[str, Any]]:
    rate = Decimal(dollars)
    return [price(kind="input", rate=rate, **given), price(kind="output", rate=rate * 4, **given)]


BOOK = [
    *pair(3, valid_from=DAY - timedelta(days=9)),
    *pair("2.5", valid_from=DAY + timedelta(hours=7)),  # in the first day
    *pair(6, context_from=200_001, valid_from=DAY - timedelta(days=9)),
    *pair("1.5", service_tier="batch", valid_from=DAY - timedelta(days=9)),
    price(kind="cache_read", rate=Decimal("0.3"), valid_from=DAY - timedelta(days=9)),
    price(kind="cache_write_1h", rate=Decimal(6), valid_from=DAY - timedelta(days=9)),
    price(kind="reasoning", rate=Decimal(20), valid_from=DAY - timedelta(days=9)),
    price(kind="request", rate=Decimal("0.0001"), valid_from=DAY - timedelta(days=9)),
    *pair("0.15", model_name="m-mini", valid_from=DAY + timedelta(hours=30)),  # the first hours have no price
    *pair(0, model_name="free", valid_from=DAY - timedelta(days=9)),
    # The other org has a contract for m, in two parts, and a discount on all the rest.
    price(org_id=ORGS[1], rate=Decimal(2), valid_from=DAY - timedelta(days=9)),
    price(org_id=ORGS[1], rate=Decimal("1.75"), valid_from=DAY + timedelta(hours=40)),
    price(
        org_id=ORGS[1], kind="discount", service_tier="", provider="", model_name="", rate=Decimal("12.5"),
        valid_from=DAY - timedelta(days=9),
    ),
]  # fmt: skip

Usage = dict[tuple[str, datetime, str, int], dict[str, int]]


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


def fill(connection: psycopg.Connection[Any]) -> tuple[list[Row], Usage]:
    """A book, labels, and three days of calls of two orgs; the figures by (org, hour, model, class)."""
    draw = random.Random(24)
    add_classes(connection)
    book = write(connection, [BOOK])
    for org in ORGS:
        for model, (provider, name) in MODELS.items():
            # Another partition has an older name, or the same time and a lesser name.
            add_label(connection, org, model, provider, name, at=DAY, partition=1)
            if provider:
                add_label(connection, org, model, "zzz", "old", at=DAY - timedelta(hours=1), partition=0)
                add_label(connection, org, model, "p", "a", at=DAY, partition=2)
    usage: Usage = defaultdict(lambda: dict.fromkeys(FIGURES, 0))
    for org in ORGS:
        for model in MODELS:
            for hour in range(0, 72, 5):
                for rate_class in CLASSES:
                    for partition in (0, 1):
                        calls = draw.randrange(1, 5)
                        tokens = draw.randrange(10_000)
                        figures = {
                            "invocations": calls,
                            "input_tokens": tokens + 300,
                            "output_tokens": draw.randrange(50, 9_000),
                            "cache_read_tokens": draw.randrange(tokens + 1),
                            "cache_write_tokens": draw.randrange(200),
                            "cache_write_1h_tokens": draw.randrange(100),
                            "reasoning_tokens": draw.randrange(50),
                            "unestimated": draw.choice((0, 1, calls)) if hour < 48 else calls,
                            "cost_microcents": 0,
                        }
                        if figures["unestimated"] < calls:
                            figures["cost_microcents"] = draw.randrange(10**9)
                        at = DAY + timedelta(hours=hour)
                        add_usage(
                            connection, org, model, at, figures, rate_class=rate_class, partition=partition
                        )
                        total = usage[org, at, model, rate_class]
                        for name in FIGURES:
                            total[name] += figures[name]
    return book, usage
