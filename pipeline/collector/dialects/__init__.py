"""Dialects: what senders send as usage becomes events of the wire contract, or faults.

One file reads one dialect. All of them are pure: bytes and arguments in, `Offered` out; no clock, no
network, no memory of earlier bodies. Only the contract's fields leave a dialect. Prompts, answers and all
that the contract does not name are dropped here, and no fault quotes a value.

`framing` cuts a body into items, and `drafts` turns a sender's values into an event by the rules of
`pipeline.core.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.wire import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """One thing that a sender offered as usage: an event in the contract's own field names, or why it is
    none."""

    event: Mapping[str, Any] | bytes | None
    """The event with the contract's fields and no others: JSON that `pipeline.core.wire.read` judges. None:
    the thing was passed over, or is faulty."""
    faults: tuple[Fault, ...] = ()
    """Broken rules, with the fields as the sender spells them. An event without faults here may still break
    the contract's rules: `wire.read` then names them as the sender spells them."""
    passed_over: bool = False
    """No usage, and no fault: a span without tokens, for example."""
    org_name: str | None = None
    """The name that the event's orgId was made of."""
    time_field: str | None = None
    """The field that has the event's time. None: as the contract spells it."""
    org_field: str | None = None
    """The field in which the sender named the org. None: no such field, or the contract's own orgId."""


class Unreadable(ValueError):
    """The body as a whole cannot be read. The message says why, and quotes nothing of the body."""


class TooMuch(Unreadable):
    """The body has more in it than a dialect reads of one body. The message says the bound and the remedy."""
