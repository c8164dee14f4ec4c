"""The bodies of requests that set names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from api.asking.bodies import Body
from pipeline.common.names import Naming, faults_of, naming_of_org

ITEMS_MAX: Final = 1000
"""How many names one request may set."""


def of_org(body: bytes, org_id: UUID) -> Naming:
    """The name of the org. Raises `Problem` 400."""
    reader = Body(body, ("name",))
    name = reader.get("name")
    if not reader.has("name"):
        reader.fault("name", "is missing; null removes the name")
    for field, message in faults_of(name):
        reader.fault(field, message)
    reader.finish()
    return naming_of_org(org_id, name)


def of_values(body: bytes, org_id: UUID, dimension: str) -> Naming:
    """The names of values of a dimension. Raises `Problem` 400 with every fault."""
    reader = Body(body, ("items",))
    items = reader.get("items")
    if not isinstance(items, list) or not 1 <= len(items) <= ITEMS_MAX:
        reader.fault("items", f"expected a list of 1 to {ITEMS_MAX} names")
        items = []
    names: dict[str, str | None] = {}
    for place, item in enumerate(items):
        for field, message in _faults_of(item, names, dimension):
            reader.fault(f"items[{place}]{field}", message)
    reader.finish()
    return Naming(org_id=org_id, dimension=dimension, names=names)


def _faults_of(item: Any, names: dict[str, str | None], dimension: str) -> Iterator[tuple[str, str]]:
    """The rules that an item breaks. An item that breaks none is added to ``names``."""
    if not isinstance(item, dict) or sorted(item) != ["name", "value"]:
        yield "", "expected an object with the fields value and name"
        return
    value, name = item["value"], item["name"]
    faults = [(f".{field}", message) for field, message in faults_of(name, value=value, dimension=dimension)]
    if not faults and value in names:
        faults.append((".value", "stands here twice"))
    yield from faults
    if not faults:
        names[value] = name
