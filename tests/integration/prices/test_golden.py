"""Real prices, and costs worked out by hand: every surface must say them to the last digit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from pipeline.prices import book
from tests.support import focus, golden_prices
from tests.support.api_facts import rfc3339
from tests.support.api_server import BASE, Api, served
from tests.support.exports import downloaded, made
from tests.support.golden_prices import Cell, Expected
from tests.support.live import Events, check_equals_rest
from tests.support.price_books import price, write
from tests.support.spend_rows import rows
from tests.support.teams import load_teams

ORGS = sorted({payload.org_id for payload in golden_prices.payloads()})
WHOLE = {
    "start": rfc3339(golden_prices.now() - timedelta(days=365)),
    "end": rfc3339(golden_prices.now()),
}
"""A range that holds all payloads."""


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


@pytest.fixture
def golden_api(golden_url: str, tmp_path: Path) -> Iterator[Api]:
    """An API of the golden database, at a time at which all payloads lie within its range."""
    environment = {
        "DATABASE_URL": golden_url,
        "API_ALLOW_PRIVILEGED": "true",
        "EXPORT_DIR": str(tmp_path / "exports"),
    }
    with served(environment, golden_prices.now()) as server:
        yield server


def test_rest_says_what_was_worked_out_by_hand(golden_api: Api) -> None:
    for granularity, expected in (("hour", golden_prices.hours()), ("day", golden_prices.days())):
        asked = WHOLE | {"granularity": granularity, "groupBy": "model", "limit": 10_000}
        found: dict[Cell, Expected] = {}
        for org in ORGS:
            answer = golden_api.ok(f"{BASE}/orgs/{org}/usage", asked)
            assert answer["nextCursor"] is None
            cells = {
                (org, datetime.fromisoformat(point["bucketStart"]), point["modelId"]): said(point)
                for point in answer["series"]
            }
            assert said(answer["totals"]).cost == sum((one.cost or 0 for one in cells.values()), Decimal(0))
            found |= cells
        assert found == expected


def test_live_figures_say_what_was_worked_out_by_hand(golden_api: Api) -> None:
    for org in ORGS:
        with closing(Events(golden_api, org)) as events:
            _, data = events.until("usage")
        check_equals_rest(golden_api, org, data)
        for name, by_hand in (("hour", golden_prices.hours()), ("day", golden_prices.days())):
            start = datetime.fromisoformat(data[name]["bucketStart"])
            costs = [one.cost for (of, at, _), one in by_hand.items() if (of, at) == (org, start)]
            assert Decimal(data[name]["cost"]["amount"] or 0) == sum(
                (cost or 0 for cost in costs), Decimal(0)
            )


@pytest.mark.parametrize("by", ["client", "team"])
def test_files_say_what_was_worked_out_by_hand(golden_api: Api, golden_url: str, by: str) -> None:
    """The sums of the lines of all clients, and those of all values of a dimension."""
    if by == "team":
        load_teams(golden_url)
    group_by = f"model,{by}"
    csv_file: dict[Cell, Expected] = {}
    parquet: dict[Cell, Expected] = {}
    by_focus: dict[Cell, Decimal] = {}
    for org in ORGS:
        rows = list(
            csv.DictReader(io.StringIO(exported(golden_api, org, "csv", group_by).decode(), newline=""))
        )
        csv_file |= golden_prices.totals(
            (
                (org, datetime.fromisoformat(row["bucketStart"]), row["modelId"]),
                Expected(
                    cost=Decimal(row["costAmount"]) if row["costAmount"] else None,
                    basis=row["costBasis"],
                    invocations=int(row["invocations"]),
                    unpriced=int(row["unpricedInvocations"]),
                ),
            )
            for row in rows
        )
        parquet |= golden_prices.totals(
            (
                (org, row["bucketStart"], row["modelId"]),
                Expected(
                    cost=row["costAmount"],
                    basis=row["costBasis"],
                    invocations=row["invocations"],
                    unpriced=row["unpricedInvocations"],
                ),
            )
            for row in pq.read_table(io.BytesIO(exported(golden_api, org, "parquet", group_by))).to_pylist()
        )
        skus = focus.rows_of(exported(golden_api, org, "focus-1.3", group_by))
        by_focus |= {
            (org, datetime.fromisoformat(start), model): focus.total(rows)
            for (start, model), rows in focus.by_bucket(skus).items()
        }
    assert csv_file == parquet == golden_prices.days()
    # FOCUS allows no empty cost.
    assert by_focus == {cell: one.cost or 0 for cell, one in golden_prices.days().items()}


def exported(server: Api, org: str, form: str, group_by: str) -> bytes:
    path = f"{BASE}/orgs/{org}/exports"
    body = {"timeRange": WHOLE, "granularity": "daily", "format": form, "groupBy": group_by}
    job = made(server, body, path)
    assert job["status"] == "succeeded", job
    return downloaded(server, job, path)


def said(point: Mapping[str, Any]) -> Expected:
    """What a point or the totals of an answer say."""
    amount = point["cost"]["amount"]
    return Expected(
        cost=None if amount is None else Decimal(amount),
        basis=point["cost"]["basis"],
        invocations=point["invocations"],
        unpriced=point["unpriced"]["invocations"],
    )


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
