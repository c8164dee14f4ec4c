"""The rules of the FOCUS specification, as its validator has them, held against the rows of a file.

``tests/data/focus-1.2.0.1-rules.json`` has the rules that a file can break (see the README there). Each has
a requirement and the conditions on which it holds. In a CSV, an empty cell is null.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.support.focus import EXACT, Row

Check = Mapping[str, Any]
RULES: Final = Path(__file__).parents[1] / "data" / "focus-1.2.0.1-rules.json"

_COUNTED: Final = r"[A-Za-z][A-Za-z0-9]*(\s+[A-Za-z][A-Za-z0-9]*)*"
_FORMS: Final = {
    "TypeString": r".*\S.*",
    "FormatString": r".*\S.*",
    "TypeDecimal": r"-?[0-9]+(\.[0-9]+)?",
    "FormatNumeric": r"-?[0-9]+(\.[0-9]+)?",
    "CheckDecimalValue": r"-?[0-9]+(\.[0-9]+)?",
    "TypeDateTime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "FormatDateTime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "FormatUnit": rf"([0-9]+ )?{_COUNTED}",
    "FormatCurrency": "USD",
    "CheckNationalCurrency": "USD",
}
"""What a cell that is not null must look like. We write a part of what the specification allows."""


@cache
def rules() -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = json.loads(RULES.read_text())
    return found


def broken(rows: Sequence[Row]) -> dict[str, str]:
    """The rules that some rows break: by the id, what the rule says."""
    return {rule["id"]: rule["says"] for rule in rules() if not _holds(rule, rows)}


def _holds(rule: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    requirement = rule["requirement"]
    if requirement["CheckFunction"] == "ColumnPresent":
        return all(requirement["ColumnName"] in row for row in rows)
    meant = [row for row in rows if all(_passes(check, row) for check in rule["conditions"])]
    if requirement["CheckFunction"] == "CheckDistinctCount":
        return _distinct(requirement, meant)
    return all(_passes(requirement, row) for row in meant)


def _distinct(check: Check, rows: Iterable[Row]) -> bool:
    """Does each value of one column have the expected number of values of the other?"""
    values = defaultdict(set)
    for row in rows:
        if _cell(check, row, "ColumnAName"):
            values[_cell(check, row, "ColumnAName")].add(_cell(check, row, "ColumnBName"))
    return all(len(found) == check["ExpectedCount"] for found in values.values())


def _passes(check: Check, row: Row) -> bool:
    name = check["CheckFunction"]
    if name in _FORMS:
        cell = _cell(check, row)
        return not cell or bool(re.fullmatch(_FORMS[name], cell, re.DOTALL))
    return _CHECKS[name](check, row)


def _cell(check: Check, row: Row, column: str = "ColumnName") -> str:
    """The cell that a check is about; empty if the file has no such column."""
    return row.get(check[column], "")


def _is_value(check: Check, row: Row) -> bool:
    cell, value = _cell(check, row), check["Value"]
    if value is None:
        return not cell
    if isinstance(value, str):
        return cell == value
    return bool(cell) and Decimal(cell) == value


def _at_least(check: Check, row: Row) -> bool:
    cell = _cell(check, row)
    return not cell or Decimal(cell) >= check["Value"]


def _is_product(check: Check, row: Row) -> bool:
    try:
        of = [Decimal(_cell(check, row, name)) for name in ("ColumnAName", "ColumnBName", "ResultColumnName")]
    except InvalidOperation:
        return False
    return EXACT.multiply(of[0], of[1]) == of[2]


def _is_object(check: Check, row: Row) -> bool:
    cell = _cell(check, row)
    if not cell:
        return True
    found = json.loads(cell)
    return isinstance(found, dict) and not any(isinstance(value, (dict, list)) for value in found.values())


_CHECKS: Final[Mapping[str, Callable[[Check, Row], bool]]] = {
    "AND": lambda check, row: all(_passes(item, row) for item in check["Items"]),
    "OR": lambda check, row: any(_passes(item, row) for item in check["Items"]),
    "CheckValue": _is_value,
    "CheckNotValue": lambda check, row: not _is_value(check, row),
    "CheckNotSameValue": lambda check, row: (
        _cell(check, row, "ColumnAName") != _cell(check, row, "ColumnBName")
    ),
    "CheckGreaterOrEqualThanValue": _at_least,
    "ColumnByColumnEqualsColumnValue": _is_product,
    "FormatKeyValue": _is_object,
}
