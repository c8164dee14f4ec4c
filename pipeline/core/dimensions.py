"""Dimensions: by which values of an event, beside its client, there are rows of their own.

A dimension has a name and a source. The source is a part of the event: its actor, or one key of its metadata.
For example, with ``team=metadata.team`` an event whose metadata has the team "search" is counted once more
under the value "search" of the dimension "team". An event without the key is counted under the value ''. So
the sum over the values of a dimension is always the sum of all events.

No event is rejected because of a value. A value that the database cannot hold, or that is longer than
`wire.VALUE_CHARS_MAX`, is counted under `wire.OVERFLOW_VALUE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.core.wire import OVERFLOW_VALUE, VALUE_CHARS_MAX, Event, is_storable

DIMENSIONS_MAX: Final = 8
ACTOR: Final = "actorId"
_METADATA: Final = "metadata."
CLIENT: Final = "client"
"""The dimension that is always there, and is never set."""
_RESERVED: Final = (CLIENT, "model", "none")
"""Names that the API's ``groupBy`` gives a meaning of its own."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SOURCE: Final = re.compile(r"actorId|metadata\.[^\s,=\"\\\x00-\x1f]{1,64}")


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dimension: its name, and the part of an event that has its values."""

    name: str
    source: str
    """``actorId``, or ``metadata.`` and a key."""

    @property
    def key(self) -> str | None:
        """The key of the metadata. None: the values are the actors."""
        return None if self.source == ACTOR else self.source.removeprefix(_METADATA)

    def value_of(self, event: Event) -> str:
        """The value under which an event is counted; '' if the event has none."""
        value = event.actor_id if self.key is None else event.metadata.get(self.key, "")
        return value if len(value) <= VALUE_CHARS_MAX and is_storable(value) else OVERFLOW_VALUE


def parse(text: str) -> tuple[Dimension, ...]:
    """Read ``user=actorId,team=metadata.team``. Raises ValueError with every fault, by place."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = [Dimension(*map(str.strip, (*part.split("=", 1), "")[:2])) for part in parts]
    faults = list(_faults(found))
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(found)


def _faults(found: Sequence[Dimension]) -> Iterator[str]:
    if len(found) > DIMENSIONS_MAX:
        yield f"expected at most {DIMENSIONS_MAX} dimensions"
    for place, one in enumerate(found, start=1):
        earlier = found[: place - 1]
        if not _NAME.fullmatch(one.name):
            yield f"entry {place}: expected a name of 1 to 32 characters a-z, 0-9 and _, with a letter first"
        elif one.name in _RESERVED:
            yield f"entry {place}: the name is reserved, as {', '.join(_RESERVED)} all are"
        elif any(one.name == other.name for other in earlier):
            yield f"entry {place}: the name has come before"
        if not _SOURCE.fullmatch(one.source):
            yield f"entry {place}: expected actorId or metadata.KEY after the ="
        elif any(one.source == other.source for other in earlier):
            yield f"entry {place}: the source has come before"
