"""The bodies of requests that change the price book or compare two of its versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from api.asking.bodies import Body
from api.asking.buckets import UTC_ZONE, add_months, to_datetime
from pipeline.common.problems import Fault
from pipeline.prices import csv_file
from pipeline.prices.price import MANUAL, Price, faults_of
from pipeline.prices.price import Fault as PriceFault

PRICES_MAX: Final = 100
ORGS_MAX: Final = 100
COLUMNS: Final = {
    "provider": "provider",
    "modelName": "model_name",
    "serviceTier": "service_tier",
    "contextFrom": "context_from",
    "kind": "kind",
    "rate": "rate",
    "currency": "currency",
    "validFrom": "valid_from",
    "validTo": "valid_to",
    "orgId": "org_id",
    "basis": "basis",
}
"""The fields of a price, and the columns of a CSV that they are checked as."""
_FIELDS: Final = {column: field for field, column in COLUMNS.items()}
_COLUMN: Final = re.compile("|".join(rf"\b{column}\b" for column in _FIELDS if "_" in column))


def prices(body: bytes) -> list[Price]:
    """The prices that are to be appended. Raises `Problem` 400 with every fault of every price."""
    reader = Body(body, ("prices",))
    found = _prices(reader, dated=True)
    reader.finish()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two books to compare over a range: two versions, or the newest one before and after some prices.

    ``before`` None: the newest version. ``orgs`` None: all.
    """

    start: datetime
    end: datetime
    orgs: Sequence[UUID] | None
    prices: list[Price] | None
    before: int | None
    after: int | None


def comparison(body: bytes, *, months_max: int) -> Comparison:
    """The comparison that is asked for. Raises `Problem` 400 with every fault."""
    reader = Body(body, ("start", "end", "orgs", "prices", "before", "after"))
    start, end = (reader.hour(name, reader.get(name)) for name in ("start", "end"))
    if start is not None and end is not None:
        if end <= start:
            reader.fault("end", "must be after start")
        elif not _within(start, end, months_max):
            reader.fault("end", f"must be at most {months_max} months after start")
    orgs = reader.uuids("orgs", ORGS_MAX) if reader.has("orgs") else None
    before, after = (reader.version(name) for name in ("before", "after"))
    given = _prices(reader, dated=False) if reader.has("prices") else None
    if reader.has("prices") == reader.has("after"):
        reader.fault("after", "expected either prices or the version after")
    if reader.has("prices") and reader.has("before"):
        reader.fault("before", "prices are compared with the newest version")
    reader.finish()
    assert start is not None
    assert end is not None
    return Comparison(
        start=to_datetime(start),
        end=to_datetime(end),
        orgs=orgs,
        prices=given,
        before=before,
        after=after,
    )


def _within(start: int, end: int, months: int) -> bool:
    try:
        return end <= add_months(start, months, UTC_ZONE)
    except (ValueError, OverflowError):  # beyond the calendar
        return True


def _prices(reader: Body, *, dated: bool) -> list[Price]:
    """The field ``prices``; ``dated``: each price must say from when it holds."""
    given = reader.get("prices")
    if not isinstance(given, list) or not 1 <= len(given) <= PRICES_MAX:
        reader.fault("prices", f"expected a list of 1 to {PRICES_MAX} prices")
        return []
    found: list[Price] = []
    for index, row in enumerate(given):
        where = f"prices[{index}]"
        cells = _cells(reader, row, where)
        if cells is None:
            continue
        if dated and not cells["valid_from"]:
            reader.fault(f"{where}.validFrom", "is missing")
        price, messages = csv_file.price_of(cells, where, "")
        reader.faults += _faults(PriceFault(where, message) for message in messages)
        if price is not None:
            found.append(price)
    reader.faults += _faults(faults_of(found))
    return found


def _cells(reader: Body, row: Any, where: str) -> dict[str, str] | None:
    """The price as the cells of a CSV. An exact rate is a text; all other fields may be texts, too."""
    if not isinstance(row, Mapping):
        reader.fault(where, "expected a JSON object")
        return None
    for name in row.keys() - COLUMNS.keys():
        reader.fault(f"{where}.{name}", f"unknown field; the fields are {', '.join(COLUMNS)}")
    cells = dict.fromkeys(_FIELDS, "") | {"source": MANUAL}
    for name, column in COLUMNS.items():
        value = row.get(name)
        if type(value) is int and name == "contextFrom":
            value = str(value)
        if isinstance(value, str):
            cells[column] = value
        elif value is not None:
            reader.fault(f"{where}.{name}", "expected a text" + ' such as "2.5"' * (name == "rate"))
    return cells


def _faults(faults: Iterable[PriceFault]) -> list[Fault]:
    """The faults with the fields that they are about: most messages begin with the column."""
    found = []
    for fault in faults:
        column, _, rest = fault.message.partition(" ")
        if "'" not in rest:  # what somebody has sent is not touched
            rest = _COLUMN.sub(lambda match: _FIELDS[match[0]], rest)
        if column in _FIELDS:
            found.append(Fault(f"{fault.where}.{_FIELDS[column]}", rest))
        else:
            found.append(Fault(fault.where, fault.message))
    return found
