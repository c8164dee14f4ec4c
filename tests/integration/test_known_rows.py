"""A flush updates the rows that it knows to be in the database, and finds out when one of them is gone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pipeline.core.dimensions import Dimension
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.windows import ALL_GRAINS, USAGE_QUARTER
from pipeline.sink import Claim
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, migrated
from tests.support import oracle as naive

NOW_US = 1_790_000_000_000_000
HOUR_US = 3_600_000_000
RULES = Rules(dedupe_window_us=48 * HOUR_US, dimensions=(Dimension("team", "metadata.team"),))
TABLES = [
    sql.Identifier("analytics", grain.name)
    for grain in dict.fromkeys(ALL_GRAINS)
    if grain is not USAGE_QUARTER
]


@pytest.fixture(params=["timescale", "embedded_postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database: hypertables, or plain tables."""
    found: str = request.getfixturevalue(request.param)
    migrated.upgrade(found)
    return found


def events(*, late: bool = False) -> list[bytes]:
    """Two events of each of four orgs, one of them failed. Each call makes new ids for the same rows."""
    at_us = NOW_US - 30 * HOUR_US if late else NOW_US
    return [
        json.dumps(
            {
                "eventId": str(uuid.uuid4()),
                "orgId": str(uuid.UUID(int=org + 1)),
                "modelId": str(uuid.UUID(int=9)),
                "clientId": "a client",
                "occurredAt": (naive.EPOCH + timedelta(microseconds=at_us)).isoformat(),
                "latencyMs": 10 * org,
                "status": status,
                "inputTokens": 3,
                "outputTokens": 4,
                "errorCode": "overloaded" if status == "error" else None,
                "costEstimateCents": "0.5",
                "metadata": {"team": "blue"},
            }
        ).encode()
        for org in range(4)
        for status in ("success", "error")
    ]


async def count(sink: TimescaleSink, claim: Claim, ledger: Ledger, bodies: Sequence[bytes]) -> None:
    for chunk in books.chunks_of(bodies, size=50, broker_us=NOW_US, first_offset=ledger.received_offset):
        ledger.ingest(**chunk)
    await books.flush(sink, claim, ledger, now_us=NOW_US)
    assert ledger.position.rejected == 0


def difference(url: str, bodies: Sequence[bytes]) -> Any:
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(bodies))
    return books.difference(books.stored_in_database(url), books.expected(oracle))


async def test_known_rows_are_updated_and_no_insert_is_tried(url: str) -> None:
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    first, second = events(), events()
    await count(sink, claim, ledger, first)
    with psycopg.connect(url, autocommit=True) as operator:
        operator.execute(
            "CREATE FUNCTION no_insert() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'an insert into %', TG_TABLE_NAME; END $$"
        )
        for table in TABLES:
            operator.execute(
                sql.SQL(
                    "CREATE TRIGGER no_insert BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION no_insert()"
                ).format(table)
            )
    await count(sink, claim, ledger, second)
    await sink.close()
    assert not difference(url, [*first, *second])


async def test_deleted_rows_come_back_with_their_whole_counts(url: str) -> None:
    """A row in memory has absolute values, so nothing is lost with the row in the database."""
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    first, second = events(), events()
    await count(sink, claim, ledger, first)
    with psycopg.connect(url, autocommit=True) as operator:
        for table in TABLES:
            deleted = operator.execute(
                sql.SQL("DELETE FROM {} WHERE org_id = %s").format(table), (uuid.UUID(int=2),)
            )
            assert deleted.rowcount > 0, table
    await count(sink, claim, ledger, second)
    await sink.close()
    assert not difference(url, [*first, *second])


async def test_rows_far_behind_the_newest_one_are_upserted(url: str) -> None:
    """An update joins all chunks between its first and its last row, so these must be near each other."""
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    parts = [events(), events(late=True), [*events(), *events(late=True)]]
    for part in parts:
        await count(sink, claim, ledger, part)
    await sink.close()
    assert not difference(url, [body for part in parts for body in part])
