"""The views of spend: every row costs what a naive count says, by hour and by day, on both databases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from sql import roles, schema
from tests.support.naive_prices import Call, Row, cost, rates_of
from tests.support.price_books import write
from tests.support.spend_rows import CLASSES, DAY, FIGURES, MODELS, fill, pair, rows


@pytest.fixture(params=["migrated_url", "migrated_timescale"])
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    url = request.getfixturevalue(request.param)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection


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


def test_the_views_have_the_columns_that_the_code_describes(connection: psycopg.Connection[Any]) -> None:
    for view in schema.views.sorted_tables:
        columns = connection.execute(f"SELECT * FROM analytics.{view.name} LIMIT 0").description or ()
        assert [column.name for column in columns] == [column.name for column in view.columns]
    assert len(schema.views.tables) == 3


def test_a_bi_tool_reads_figures_of_all_orgs_and_writes_nothing(connection: psycopg.Connection[Any]) -> None:
    """The API's role would let it order exports, and see the digests of keys."""
    fill(connection)
    may: dict[str, set[str]] = {}
    for role in (roles.BI, roles.READER):
        rights = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
        found = connection.execute(
            "SELECT c.relname, r FROM pg_catalog.pg_class AS c, unnest(%s::text[]) AS r"
            " WHERE c.relnamespace = 'analytics'::regnamespace AND c.relkind IN ('r', 'v', 'p')"
            " AND has_table_privilege(%s, c.oid, r)",
            (list(rights), role),
        ).fetchall()
        may |= {f"{role} {right}": {name for name, of in found if of == right} for right in rights}
    assert may[f"{roles.BI} SELECT"] == {*roles.READABLE, "names"}
    assert not any(may[f"{roles.BI} {right}"] for right in rights[1:])
    assert "export_jobs" in may[f"{roles.READER} INSERT"]
    connection.execute("SET ROLE spendstream_bi")
    for view in ("spend_hour", "spend_day"):
        [row] = rows(connection, f"SELECT count(DISTINCT org_id) AS n FROM analytics.{view} WHERE cost > 0")
        assert row["n"] == 2
    connection.execute("SELECT * FROM analytics.effective_adjustments")


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
