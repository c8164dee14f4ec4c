"""The names of the demo's orgs, so that its page shows companies rather than UUIDs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pipeline.demo import rest
from pipeline.traffic.generator import World

NAMED_MAX: Final = 200
_FIRST: Final = (
    *("Alder", "Birch", "Cedar", "Dune", "Ember", "Fjord", "Granite", "Harbor", "Indigo", "Juniper"),
    *("Kestrel", "Lantern", "Meadow", "Nimbus", "Orchard", "Pebble", "Quartz", "Raven", "Saffron", "Tundra"),
)
_SECOND: Final = (
    *("Health", "Freight", "Games", "Bank", "Energy", "Foods", "Studio", "Robotics", "Travel", "Insurance"),
)


def invented(count: int) -> Iterator[str]:
    """So many names, up to `NAMED_MAX`, no two of them alike: Alder Health, Birch Freight, and so on."""
    for number in range(count):
        turn, place = divmod(number, len(_FIRST))
        yield f"{_FIRST[place]} {_SECOND[(place + turn) % len(_SECOND)]}"


def give(api: str, seen: Iterable[Mapping[str, Any]], orgs: int) -> int:
    """Name the simulator's orgs by REST, if none of those that were ``seen`` has a name; how many were named.

    So a name that somebody has changed stays as it is when the demo is started again.

    Raises OSError: the API does not answer.
    """
    if any(one["orgName"] for one in seen):
        return 0
    org_ids = World(orgs=orgs).org_ids[:NAMED_MAX]  # the first ones spend most
    for org_id, name in zip(org_ids, invented(len(org_ids)), strict=True):
        rest.send("PUT", f"{api}/names/orgs/{org_id}", {"name": name})
    return len(org_ids)
