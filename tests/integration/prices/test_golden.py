"""Real prices, and costs worked out by hand: every surface must say them to the last digit."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pipeline.prices import book
from tests.support import golden_prices
from tests.support.golden_prices import Cell, Expected
from tests.support.price_books import price, write
from tests.support.spend_rows import rows


@pytest.fixture(params=["embedded_postgres_url", "timescale"])
async def golden_url(request: pytest.FixtureRequest) -> str:
    """A database with the golden book and all payloads."""
    url: str = request.getfixturevalue(request.param)
    assert await golden_prices.load(url) == len(golden_prices.BOOK.read_text().splitlines()) - 1
    return url


async def test_every_payload_costs_what_was_worked_out_by_hand(golden_url: str) -> None:
    with psycopg.connect(golden_url) as connection:
        connection.execute("SET timezone = 'UTC'")
        assert rows(connection, "SELECT count(*) AS n FROM analytics.dead_letters") == [{"n": 0}]
        by_hour = spent(rows(connection, "SELECT * FROM analytics.spend_hour"))
        by_day = spent(rows(connection, "SELECT * FROM analytics.spend_day"))
    assert by_hour == golden_prices.hours()
    assert by_day == golden_prices.days()
    for cell, (_, expected) in golden_prices.said_days().items():
        assert by_day[cell] == expected


async def test_a_later_version_leaves_the_golden_version_as_it_was(golden_url: str) -> None:
    with book.connected(golden_url) as connection:
        version = book.version(connection)
        before = book.sheets(connection, version)
        write(connection, [[price(provider="openai", model_name="gpt-4o", rate=Decimal(99))]])
        assert book.sheets(connection, version) == before
        assert book.sheets(connection, book.version(connection)) != before


def spent(found: Iterable[dict[str, Any]]) -> dict[Cell, Expected]:
    """The rows of a view, which has a row for each rate class, by org, time and model."""
    return golden_prices.totals(
        (
            (str(row["org_id"]), row["bucket_start"], str(row["model_id"])),
            Expected(
                cost=row["cost"],
                basis=row["basis"],
                invocations=int(row["invocations"]),
                unpriced=int(row["unpriced"]),
            ),
        )
        for row in found
    )
