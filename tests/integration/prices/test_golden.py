"""Real prices, and costs worked out by hand: every surface must say them to the last digit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
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
VERSION = len(golden_prices.BOOK.read_text().splitlines()) - 1
"""The version of the book: each of its prices is one row more."""
DAYS = sorted({payload.at.date() for payload in golden_prices.payloads()})


@pytest.fixture(params=["embedded_postgres_url", "timescale"])
async def golden_url(request: pytest.FixtureRequest) -> str:
    """A database with the golden book and all payloads."""
    url: str = request.getfixturevalue(request.param)
    assert await golden_prices.load(url) == VERSION
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
        found: dict[Cell, Expected] = {}
        for org in ORGS:
            cells = asked(golden_api, org, granularity)
            assert {version for _, version in cells.values()} == {VERSION}
            found |= {cell: one for cell, (one, _) in cells.items()}
        assert found == expected


def asked(server: Api, org: str, granularity: str, **query: Any) -> dict[Cell, tuple[Expected, int]]:
    """What `/usage` says of each bucket and model, with the version of the book that priced the answer."""
    parameters = WHOLE | {"granularity": granularity, "groupBy": "model", "limit": 10_000} | query
    answer = server.ok(f"{BASE}/orgs/{org}/usage", parameters)
    assert answer["nextCursor"] is None
    cells = {
        (org, datetime.fromisoformat(point["bucketStart"]), point["modelId"]): said(point)
        for point in answer["series"]
    }
    assert said(answer["totals"]) == together(cells.values())
    return {cell: (one, answer["priceVersion"]) for cell, one in cells.items()}


def together(parts: Iterable[Expected]) -> Expected:
    """What some cells cost in all."""
    at = datetime.min
    return golden_prices.totals((("", at, ""), part) for part in parts)["", at, ""]


def test_live_figures_of_every_hour_say_what_was_worked_out_by_hand(golden_api: Api, golden_url: str) -> None:
    """The watermark is put into each hour with payloads, one after another."""
    hours, days = golden_prices.hours(), golden_prices.days()
    said_of = set()
    for hour in sorted({payload.hour for payload in golden_prices.payloads()}):
        with psycopg.connect(golden_url) as connection:
            connection.execute(
                "UPDATE analytics.partitions SET watermark = %s", (hour + timedelta(minutes=59),)
            )
        for org in sorted({of for of, at, _ in hours if at == hour}):
            with closing(Events(golden_api, org)) as events:
                _, data = events.until("usage")
            if hour.date() == DAYS[-1]:  # REST still has the minutes of that day
                check_equals_rest(golden_api, org, data)
            assert data["priceVersion"] == VERSION
            for name, by_hand in (("hour", hours), ("day", days)):
                start = datetime.fromisoformat(data[name]["bucketStart"])
                cells = {cell: one for cell, one in by_hand.items() if cell[:2] == (org, start)}
                assert said(data[name]) == together(cells.values())
                said_of |= {*cells}
    assert said_of == {*hours, *days}


@pytest.mark.parametrize("group_by", ["model", "model,client", "model,team"])
def test_files_say_of_every_hour_what_was_worked_out_by_hand(
    golden_api: Api, golden_url: str, group_by: str
) -> None:
    """The sums of the lines of all clients, and those of all values of a dimension."""
    if group_by == "model,team":
        load_teams(golden_url)
    found: dict[str, list[tuple[Cell, Expected]]] = {"csv": [], "parquet": []}
    by_focus: dict[str, dict[Cell, tuple[Decimal, str]]] = {"focus-1.2": {}, "focus-1.3": {}}
    for org in ORGS:
        for day in DAYS:
            lines = csv.DictReader(
                io.StringIO(exported(golden_api, org, "csv", group_by, day).decode(), newline="")
            )
            found["csv"] += [of_line(org, row) for row in lines]
            table = pq.read_table(io.BytesIO(exported(golden_api, org, "parquet", group_by, day)))
            found["parquet"] += [of_line(org, row) for row in table.to_pylist()]
            for form, cells in by_focus.items():
                skus = focus.rows_of(exported(golden_api, org, form, group_by, day))
                assert {row["x_PriceVersion"] for row in skus} <= {str(VERSION)}
                for (start, model), lines_of_cell in focus.by_bucket(skus).items():
                    bases = {row["x_CostBasis"] for row in lines_of_cell} - {"none"}
                    basis = "mixed" if len(bases) > 1 else min(bases, default="none")
                    cost = focus.total(lines_of_cell)
                    cells[org, datetime.fromisoformat(start), model] = cost, basis
    for form, parts in found.items():
        assert golden_prices.totals(parts) == golden_prices.hours(), form
    # FOCUS allows no empty cost.
    in_focus = {cell: (one.cost or 0, one.basis) for cell, one in golden_prices.hours().items()}
    assert by_focus == dict.fromkeys(by_focus, in_focus)


def of_line(org: str, row: Mapping[str, Any]) -> tuple[Cell, Expected]:
    """The cell of a line of CSV or Parquet, and what the line says of it."""
    assert int(row["priceVersion"]) == VERSION
    start, cost = row["bucketStart"], row["costAmount"]
    return (
        (org, datetime.fromisoformat(start) if isinstance(start, str) else start, row["modelId"]),
        Expected(
            cost=None if cost in ("", None) else Decimal(cost),
            basis=row["costBasis"],
            invocations=int(row["invocations"]),
            unpriced=int(row["unpricedInvocations"]),
        ),
    )


def exported(server: Api, org: str, form: str, group_by: str, day: date) -> bytes:
    """The hourly file of a day."""
    path = f"{BASE}/orgs/{org}/exports"
    start = datetime.combine(day, time(tzinfo=UTC))
    end = min(start + timedelta(days=1), golden_prices.now())
    span = {"start": rfc3339(start), "end": rfc3339(end)}
    body = {"timeRange": span, "granularity": "hourly", "format": form, "groupBy": group_by}
    job = made(server, body, path)
    assert job["status"] == "succeeded", job
    assert job["priceVersion"] == VERSION
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


def test_a_later_version_leaves_the_golden_version_as_it_was(golden_api: Api, golden_url: str) -> None:
    with book.connected(golden_url) as connection:
        before = book.sheets(connection, VERSION)
        write(connection, [[price(provider="openai", model_name="gpt-4o", rate=Decimal(99))]])
        assert book.sheets(connection, VERSION) == before
        assert book.sheets(connection, VERSION + 1) != before
    by_hand = golden_prices.hours()
    found: dict[Cell, tuple[Expected, int]] = {}
    newest: dict[Cell, tuple[Expected, int]] = {}
    for org in ORGS:
        found |= asked(golden_api, org, "hour", priceVersion=VERSION)
        newest |= asked(golden_api, org, "hour")
    assert found == {cell: (one, VERSION) for cell, one in by_hand.items()}
    gpt_4o = {
        (one.org_id, one.hour, one.model_id)
        for one in golden_prices.payloads()
        if (one.provider, one.model_name) == ("openai", "gpt-4o")
    }
    changed = {cell for cell, one in by_hand.items() if newest[cell] != (one, VERSION + 1)}
    assert changed
    assert changed <= gpt_4o


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
