"""Prices in a CSV file: reading one, and writing one that reads back unchanged.

The first line names the columns. ``provider``, ``model_name``, ``kind`` and ``rate`` are needed. A time
without a zone is UTC. An empty cell is the same as a missing column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TextIO
from uuid import UUID

from pipeline.core.wire import SERVICE_TIERS
from pipeline.prices.price import Fault, Faulty, Price, faults_of

COLUMNS: Final = (
    "provider",
    "model_name",
    "service_tier",
    "context_from",
    "kind",
    "rate",
    "currency",
    "valid_from",
    "valid_to",
    "org_id",
    "source",
    "basis",
)
_NEEDED: Final = ("provider", "model_name", "kind", "rate")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def read(path: Path) -> list[Price]:
    """The prices of a file. ``source`` is ``csv`` and ``basis`` the file's name unless the file says another.

    Raises:
        Faulty: lines cannot be read as prices. `price.faults_of` looks at what was read.
        OSError: the file cannot be read.
    """
    faults: list[Fault] = []
    prices: list[Price] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            faults += [
                Fault("line 1", f"column {name!r} is unknown: expected {', '.join(COLUMNS)}")
                for name in names
                if name not in COLUMNS
            ]
            faults += [
                Fault("line 1", f"column {name!r} is missing") for name in _NEEDED if name not in names
            ]
            faults += [
                Fault("line 1", f"column {name!r} is there twice")
                for name in sorted(set(names))
                if names.count(name) > 1
            ]
            if not faults:
                for row in reader:
                    where = f"line {reader.line_num}"
                    price, messages = _price(row, where, path.name)
                    faults += [Fault(where, message) for message in messages]
                    if price is not None:
                        prices.append(price)
        except (csv.Error, UnicodeDecodeError) as error:
            faults.append(Fault(f"line {reader.line_num + 1}", f"is no CSV in UTF-8: {error}"))
    if faults:
        # Lines that can be read may break other rules. The operator gets all faults at once.
        every = sorted([*faults, *faults_of(prices)], key=lambda fault: _line(fault.where))
        raise Faulty(str(path), every)
    return prices


def _line(where: str) -> int:
    return int(where.rpartition(" ")[2])


def _price(row: dict[str | Any, Any], where: str, name: str) -> tuple[Price | None, list[str]]:
    """The price of a line, or None with messages."""
    messages: list[str] = []
    if None in row or None in row.values():
        return None, [f"has {'more' if None in row else 'fewer'} cells than the first line"]
    cells = {column: str(cell).strip() for column, cell in row.items()}
    given: dict[str, Any] = {
        "provider": cells["provider"],
        "model_name": cells["model_name"],
        "kind": cells["kind"],
        "source": cells.get("source") or "csv",
        "basis": cells.get("basis") or name,
        "where": where,
    }
    given["service_tier"] = cells.get("service_tier") or (
        "" if cells["kind"] == "discount" else SERVICE_TIERS[0]
    )
    if cells.get("currency") not in (None, "", "USD"):
        messages.append(f"currency {cells['currency']!r} is not USD: convert the rates first")
    for column, read_cell, expected in (
        ("rate", _number, "a decimal number such as 2.5"),
        ("context_from", int, "a whole number of input tokens"),
        ("valid_from", _time, "a time such as 2026-11-23T10:00:00Z"),
        ("valid_to", _time, "a time such as 2026-11-23T10:00:00Z"),
        ("org_id", UUID, "a UUID"),
    ):
        cell = cells.get(column)
        if not cell:
            if column == "rate":
                messages.append("rate is missing")
            continue
        try:
            given[column] = read_cell(cell)
        except (ValueError, OverflowError):
            messages.append(f"{column} {cell!r} is not {expected}")
    return (None if messages else Price(**given)), messages


def _number(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return Decimal(text)


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def write(file: TextIO, prices: Iterable[Price]) -> int:
    """Write prices to an open file, and return their number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for price in prices:
        count += 1
        writer.writerow(
            (
                price.provider,
                price.model_name,
                price.service_tier,
                price.context_from or "",
                price.kind,
                f"{price.rate:f}",
                "" if price.kind == "discount" else "USD",
                "" if price.valid_from is None else _text(price.valid_from),
                "" if price.valid_to is None else _text(price.valid_to),
                price.org_id or "",
                price.source,
                price.basis,
            )
        )
    return count


def _text(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
