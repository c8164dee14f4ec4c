"""The names that administrators give to orgs, to their clients, and to the values of their dimensions.

The clients are the values of the dimension ``client``, which is always there.

A name is a label. It decides nothing, so it is not versioned: the newest name is shown everywhere, also for
the past, and the audit log has the earlier ones. A name belongs to one org, and only who may read the org
sees it. The command (`pipeline.admin.names`) and the API (`api.names`) share this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pipeline.common import ids
from pipeline.common.texts import is_line, is_visible
from pipeline.core.dimensions import CLIENT
from pipeline.core.wire import VALUE_CHARS_MAX, is_storable
from sql import queries

SQL: Final = queries.load("names")
NAME_CHARS_MAX: Final = 128
NAMES_MAX: Final = 10_000
"""How many values of one dimension of an org may have names."""
NAME_RULE: Final = (
    f"expected a text of 1 to {NAME_CHARS_MAX} characters, not blank or invisible, without characters"
    " that control a terminal, the line or the direction of the text"
)
VALUE_RULE: Final = f"expected a value of the dimension: a text of 1 to {VALUE_CHARS_MAX} characters"
ORG: Final = ""
"""The dimension, and the value, under which the name of an org itself is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A row of ``analytics.names``."""

    org_id: UUID
    dimension: str
    value: str
    name: str
    set_by: str
    set_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Names that are to be set, by value. None: the value is to have no name any more."""

    org_id: UUID
    dimension: str
    names: Mapping[str, str | None]

    @property
    def needs_dimension(self) -> bool:
        """Must `DIMENSIONS` have the dimension? A name can also be removed once it has not."""
        return self.dimension not in (ORG, CLIENT) and any(self.names.values())

    def values(self, *, set_by: str) -> dict[str, Any]:
        """The values of the queries ``turn`` and ``set``."""
        return {
            "org_id": self.org_id,
            "dimension": self.dimension,
            "values": list(self.names),
            "names": list(self.names.values()),
            "names_max": NAMES_MAX,
            "set_by": set_by,
        }


def of_actors(naming: Naming) -> Naming:
    """The same names, of a dimension whose values are ids of actors: events have those in lower case.

    A name that goes is also taken from the spelling that was given.
    """
    names: dict[str, str | None] = {}
    for value, name in naming.names.items():
        if name is None:
            names.setdefault(value, None)
        names[ids.folded(value)] = name
    return replace(naming, names=names)


def naming_of_org(org_id: UUID, name: str | None) -> Naming:
    """The name of an org itself."""
    return Naming(org_id=org_id, dimension=ORG, names={ORG: name})


def faults_of(name: Any, *, value: Any = ORG, dimension: str = ORG) -> Iterator[tuple[str, str]]:
    """The rules that a name breaks: ``value`` or ``name``, and what is wrong. No name breaks no rule."""
    if dimension != ORG and not is_value(value):
        yield "value", VALUE_RULE
    if name is not None and not is_name(name):
        yield "name", NAME_RULE


def is_name(given: Any) -> bool:
    """Can it be the name of an org or of a value?"""
    return is_line(given, NAME_CHARS_MAX) and is_visible(given)


def is_value(given: Any) -> bool:
    """Can it be the value of a dimension? The value of events without one, and of `other`, have no names."""
    return isinstance(given, str) and 1 <= len(given) <= VALUE_CHARS_MAX and is_storable(given)


def no_dimension(known: Iterable[str]) -> str:
    """What to tell somebody who has asked for a dimension that is not set."""
    return f"the dimensions are {', '.join((CLIENT, *known))} (DIMENSIONS)"


NO_ROOM: Final = f"at most {NAMES_MAX} values of a dimension of an org may have names"
