"""Reading the rows of FOCUS files back: what each bucket and model used and what it cost."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Final

Row = Mapping[str, str]

KINDS: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning", "request")
EXACT: Final = Context(prec=200)


def rows_of(data: bytes) -> list[Row]:
    """The rows of usage of a file, each of which is checked in itself."""
    found = [row for row in _rows(data) if row["ChargeCategory"] == "Usage"]
    for row in found:
        check_row(row)
    return found


def adjusted_rows(data: bytes) -> list[Row]:
    """The rows of adjustments of a file."""
    return [row for row in _rows(data) if row["ChargeCategory"] != "Usage"]


def _rows(data: bytes) -> list[Row]:
    return [*csv.DictReader(io.StringIO(data.decode(), newline=""))]


def check_row(row: Row) -> None:
    """What holds of every row of usage: the products are exact, and the quantities agree."""
    assert row["BilledCost"] == row["ContractedCost"] == row["EffectiveCost"]
    for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
        if row[price]:
            assert EXACT.multiply(Decimal(row[price]), Decimal(row["PricingQuantity"])) == Decimal(row[cost])
    by = Decimal(1 if row["x_Kind"] == "request" else 10**6)
    assert EXACT.multiply(Decimal(row["PricingQuantity"]), by) == Decimal(row["ConsumedQuantity"]) > 0
    assert bool(row["ContractedUnitPrice"]) == (row["x_CostBasis"] == "book")


def by_bucket(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each (start of the charge period, model)."""
    found = defaultdict(list)
    for row in rows:
        found[row["ChargePeriodStart"], row["x_ModelId"]].append(row)
    return dict(found)


def quantities(rows: Iterable[Row]) -> dict[str, int]:
    """How much of each of `KINDS` some rows have."""
    found = dict.fromkeys(KINDS, 0)
    for row in rows:
        found[row["x_Kind"]] += int(row["ConsumedQuantity"])
    return found


def counts(rows: Iterable[Row]) -> tuple[int, ...]:
    """The counts of some rows in the order of `api_facts.Figures`."""
    rows = list(rows)
    of = quantities(rows)
    cached = of["cache_read"], of["cache_write"], of["cache_write_1h"]
    unpriced = sum(int(row["x_UnpricedInvocations"]) for row in rows)
    return (
        of["request"],
        of["input"] + sum(cached),
        of["output"] + of["reasoning"],
        *cached,
        of["reasoning"],
        unpriced,
    )


def total(rows: Iterable[Row], cost: str = "BilledCost") -> Decimal:
    """The sum of a cost over some rows."""
    amount = Decimal(0)
    for row in rows:
        amount = EXACT.add(amount, Decimal(row[cost]))
    return amount
