"""Prices in a CSV file: reading one, and writing one that reads back unchanged.

The first line names the columns. ``provider``, ``model_name``, ``kind`` and ``rate`` are needed. A time
without a zone is UTC. An empty cell is the same as a missing column. Names and the basis are kept to the
letter, with blanks at their edges, because an event can have such names; other cells are trimmed.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO
from uuid import UUID

from pipeline.common.texts import cut
from pipeline.core.wire import SERVICE_TIERS
from pipeline.prices.price import FILE, Fault, Faulty, Price, faults_of, number
from pipeline.prices.source import content

if TYPE_CHECKING:
    from _csv import Reader  # the class has no public name


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
_TO_THE_LETTER: Final = ("provider", "model_name", "basis")
_NEEDED: Final = ("provider", "model_name", "kind", "rate")
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: Path) -> list[Price]:
    """The prices of a file. ``source`` is ``csv`` and ``basis`` the file's name unless the file says another.

    Raises:
        Faulty: the file breaks rules. Every line with a fault is named.
        OSError: the file cannot be read.
    """
    data = content(path)
    if data.startswith(_UTF_16):
        raise Faulty(str(path), [Fault("line 1", "is UTF-16: save the file as CSV in UTF-8")])
    # A byte that is no UTF-8 becomes half of a surrogate pair, so that reading goes on behind it.
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline=""), strict=True)
    faults: list[Fault] = []
    prices: list[Price] = []
    rows = _rows(lines, faults)
    _, names = next(rows, (1, []))
    faults += [Fault("line 1", message) for message in _faults_of_header(names)]
    for line, cells in rows if not faults else ():
        where = f"line {line}"
        price, messages = _price(names, cells, where, path.name)
        faults += [Fault(where, message) for message in messages]
        if price is not None:
            prices.append(price)
    faults += faults_of(prices)
    if faults:
        raise Faulty(str(path), sorted(faults, key=lambda fault: _line(fault.where)))
    return prices


def notes(prices: Iterable[Price]) -> Iterator[str]:
    """For people: names that begin or end with a blank, which is rarely meant."""
    for price in prices:
        for column in ("provider", "model_name"):
            name = getattr(price, column)
            if name != name.strip():
                yield f"{price.where}: {column} {name!r} has a blank at an edge, and is kept so"


def _rows(lines: Reader, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line. The others become faults."""
    while True:
        line = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            faults.append(Fault(f"line {line}", f"is no CSV: {error}"))
            continue
        if cells:
            yield line, cells


def _faults_of_header(names: list[str]) -> Iterator[str]:
    if not set(names).intersection(COLUMNS):
        yield f"the first line must name the columns: {', '.join(_NEEDED)}, and perhaps others"
        return
    for name in names:
        if name not in COLUMNS:
            yield f"column {name!r} is unknown: expected {', '.join(COLUMNS)}"
    for name in _NEEDED:
        if name not in names:
            yield f"column {name!r} is missing"
    for name in sorted(set(names)):
        if names.count(name) > 1:
            yield f"column {name!r} is there twice"


def _line(where: str) -> int:
    return int(where.rpartition(" ")[2])


def _price(names: list[str], row: list[str], where: str, file: str) -> tuple[Price | None, list[str]]:
    """The price of a line, or None with messages."""
    if len(row) != len(names):
        return None, [f"has {'more' if len(row) > len(names) else 'fewer'} cells than the first line"]
    if any("\udc80" <= character <= "\udcff" for cell in row for character in cell):
        return None, ["is not UTF-8"]
    return price_of(dict(zip(names, row, strict=True)), where, file)


def price_of(row: Mapping[str, str], where: str, name: str) -> tuple[Price | None, list[str]]:
    """The price of the cells of a line by column, or None with messages. ``name`` is that of the file."""
    messages: list[str] = []
    cells = {column: cell if column in _TO_THE_LETTER else cell.strip() for column, cell in row.items()}
    given: dict[str, Any] = {
        "provider": cells["provider"],
        "model_name": cells["model_name"],
        "kind": cells["kind"],
        "source": cells.get("source") or FILE,
        "basis": cells.get("basis") or name,
        "where": where,
    }
    given["service_tier"] = cells.get("service_tier") or (
        "" if cells["kind"] == "discount" else SERVICE_TIERS[0]
    )
    if cells.get("currency") not in (None, "", "USD"):
        messages.append(f"currency {cut(cells['currency'])!r} is not USD: convert the rates first")
    for column, read_cell, expected in (
        ("rate", number, "a decimal number such as 2.5"),
        ("context_from", _tokens, "a whole number of input tokens"),
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
            messages.append(f"{column} {cut(cell)!r} is not {expected}")
    return (None if messages else Price(**given)), messages


def _tokens(text: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit()):  # `faults_of` says what is too small
        raise ValueError(text)
    return int(text)


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def write(file: TextIO, prices: Iterable[Price]) -> int:
    """Write prices to an open file, and return their number."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    count = 0
    for price in prices:
        count += 1
        # The plain writer leaves a lone CR without quotes, and no reader takes that.
        texts = (price.provider, price.model_name, price.source, price.basis)
        writer = quoted if any("\r" in text for text in texts) else plain
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
