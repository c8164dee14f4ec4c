"""Rows of ``analytics.prices`` for tests, appended by plain INSERTs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg

from tests.support.naive_prices import Row

START = datetime(2026, 1, 1, tzinfo=UTC)

PRICE = (
    "INSERT INTO analytics.prices (provider, model_name, service_tier, context_from, kind, rate, valid_from,"
    " valid_to, org_id, source, basis, recorded_by, retracts) VALUES (%(provider)s, %(model_name)s,"
    " %(service_tier)s, %(context_from)s, %(kind)s, %(rate)s, %(valid_from)s, %(valid_to)s, %(org_id)s,"
    " 'test', '', 'test', %(retracts)s) RETURNING id"
)


def price(**given: Any) -> dict[str, Any]:
    """The columns of one row; the parts that a test does not name are those of a plain price."""
    return {
        "provider": "p",
        "model_name": "m",
        "service_tier": "standard",
        "context_from": 0,
        "kind": "input",
        "rate": Decimal(1),
        "valid_from": START,
        "valid_to": None,
        "org_id": None,
        "retracts": None,
    } | given


def retraction(of: int) -> dict[str, Any]:
    return dict.fromkeys(price(), None) | {"retracts": of}


def write(connection: psycopg.Connection[Any], statements: Sequence[Sequence[Any]]) -> list[Row]:
    """Append the rows, a statement at a time; the rows as the book has them."""
    book: list[Row] = []
    for statement in statements:
        batch: list[dict[str, Any]] = []
        for row in statement:
            if not isinstance(row, int):
                batch.append(row)
                continue
            taken = {old.retracts for old in book} | {new["retracts"] for new in batch}
            free = [old.id for old in book if old.retracts is None and old.id not in taken]
            if free:
                batch.append(retraction(free[row % len(free)]))
        for one in batch:
            (number,) = connection.execute(PRICE, one).fetchone() or (0,)
            book.append(Row(id=number, **one))
    return book
