"""The views of spend: every row costs what a naive count says, by hour and by day, on both databases."""

from __future__ import annotations

import random
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from sql import migrate
from tests.integration.prices.test_rule import price, write
from tests.support.naive_prices import Call, Row, cost, rates_of
from tests.support.spend_rows import CLASSES, FIGURES, add_classes, add_label, add_usage, rows

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


@pytest.fixture(params=["embedded_postgres_url", "timescale"])
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    url = request.getfixturevalue(request.param)
    migrate.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection


Usage = dict[tuple[str, datetime, str, int], dict[str, int]]


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


def expected(
    book: list[Row], org: str, hour: datetime, model: str, number: int, figures: dict[str, int]
) -> Any:
    """(cost, basis, unpriced) of calls in one hour."""
    tier, context, _ = CLASSES[number]
    provider, name = MODELS[model]
    call = Call(org_id=org, provider=provider, model_name=name, service_tier=tier, context=context, hour=hour)
    rates = rates_of(book, 10**9, call)
    if rates is not None:
        return cost(rates, figures), "book", 0
    if figures["unestimated"] < figures["invocations"]:
        return Decimal(figures["cost_microcents"]) / 10**8, "estimate", figures["unestimated"]
    return None, "none", figures["invocations"]


def test_every_hour_and_every_day_costs_what_a_naive_count_says(
    connection: psycopg.Connection[Any],
) -> None:
    book, usage = fill(connection)
    stored = rows(connection, "SELECT * FROM analytics.spend_hour")
    assert len(stored) == len(usage)
    days: dict[Any, list[Any]] = defaultdict(list)
    bases = set()
    for row in stored:
        key = str(row["org_id"]), row["bucket_start"], str(row["model_id"]), row["rate_class"]
        org, hour, model, number = key
        assert {name: row[name] for name in FIGURES[:8]} == {name: usage[key][name] for name in FIGURES[:8]}
        assert (row["provider"], row["model_name"], row["service_tier"]) == (
            *MODELS[model],
            CLASSES[number][0],
        )
        what = expected(book, org, hour, model, number, usage[key])
        assert (row["cost"], row["basis"], row["unpriced"]) == what, key
        estimated = usage[key]["unestimated"] < usage[key]["invocations"]
        assert row["estimate"] == (Decimal(usage[key]["cost_microcents"]) / 10**8 if estimated else None)
        days[org, hour.replace(hour=0), model, number].append(what)
        bases.add(row["basis"])
    assert bases == {"book", "estimate", "none"}
    found = rows(connection, "SELECT * FROM analytics.spend_day")
    assert len(found) == len(days)
    bases = set()
    for row in found:
        key = str(row["org_id"]), row["bucket_start"], str(row["model_id"]), row["rate_class"]
        costs = [one for one, _, _ in days[key] if one is not None]
        known = {basis for _, basis, _ in days[key]} - {"none"}
        assert row["cost"] == (sum(costs) if costs else None), key
        assert row["unpriced"] == sum(count for _, _, count in days[key]), key
        assert row["basis"] == ("mixed" if len(known) > 1 else [*known, "none"][0]), key
        bases.add(row["basis"])
    assert bases == {"book", "estimate", "none", "mixed"}


def test_prices_change_no_rollup_row(connection: psycopg.Connection[Any]) -> None:
    fill(connection)
    query = "SELECT xmin::text, t::text FROM analytics.{} AS t ORDER BY 2"

    def rollups() -> list[Any]:
        return [rows(connection, query.format(table)) for table in ("usage_hour", "usage_day")]

    before = rollups()
    spent = rows(connection, "SELECT sum(cost) AS cost FROM analytics.spend_day")
    write(connection, [pair(30, valid_from=DAY)])
    assert rollups() == before
    assert rows(connection, "SELECT sum(cost) AS cost FROM analytics.spend_day") != spent


def test_the_reader_reads_the_views(connection: psycopg.Connection[Any]) -> None:
    fill(connection)
    connection.execute("SET ROLE spendstream_reader")
    for view in ("spend_hour", "spend_day", "prices", "price_sheets", "model_labels"):
        assert rows(connection, f"SELECT count(*) AS n FROM analytics.{view}")[0]["n"] > 0
    assert rows(connection, "SELECT count(*) AS n FROM analytics.price_sheets_at(100)")[0]["n"] > 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(
            "INSERT INTO analytics.prices (retracts, source, basis, recorded_by) VALUES (1, 'x', '', 'x')"
        )


def test_a_week_by_hour_is_read_by_the_index(connection: psycopg.Connection[Any]) -> None:
    fill(connection)
    plan = connection.execute(
        "EXPLAIN SELECT sum(cost) FROM analytics.spend_hour WHERE org_id = %s AND bucket_start >= %s"
        " AND bucket_start < %s",
        (uuid.UUID(ORGS[0]), DAY, DAY + timedelta(days=7)),
    ).fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "org_id = " in text, text
