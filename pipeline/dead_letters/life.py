"""The life of a dead letter: the states that the database knows, and the table of all steps between them.

The SQL of `sql.queries` (``replays``, ``dead_letters``) keeps the table, and an event that the table lacks
changes nothing. For example, a second request for a letter that has counted asks nobody. The test
`tests/integration/test_letter_life.py` tries every event in every state, and the picture in
`docs/howto/dead-letters.md` is made from the table.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Final

COUNTED_OUTCOMES: Final = frozenset({"accepted", "duplicate"})
"""The outcomes of `pipeline.core.replay.OUTCOMES` after which a letter is no longer rejected."""


class State(Enum):
    """The state of one dead letter."""

    REJECTED = "rejected"
    """Nobody has asked to have the letter counted."""
    WAITING = "waiting"
    """A command has asked, and the worker that owns the partition has not answered yet."""
    COUNTED = "counted"
    """The event has counted, in this backfill or before. The letter is no longer rejected."""
    LEFT = "left"
    """The worker has not counted the event, and the outcome says why. The letter stays rejected."""
    DELETED = "deleted"
    """The letter is gone. If a command had asked before, the worker still answers."""

    @classmethod
    def of(cls, *, requested_at: datetime | None, settled_at: datetime | None, outcome: str | None) -> State:
        """The state of a stored letter, by the last request for it."""
        if requested_at is None:
            return cls.REJECTED
        if settled_at is None:
            return cls.WAITING
        return cls.COUNTED if outcome in COUNTED_OUTCOMES else cls.LEFT


class Event(Enum):
    """What can happen to a dead letter."""

    ASKED = "asked for"
    """``spendstream dead-letters replay``"""
    COUNTED = "accepted or duplicate"
    """A flush settles the request, in the transaction that counts the event."""
    LEFT = "another outcome"
    """A flush settles the request, and counts nothing."""
    PURGED = "purged"
    """``spendstream dead-letters purge``"""
    EXPIRED = "expired"
    """``RETENTION_DEAD_LETTERS`` is over."""


STEPS: Final = {
    (State.REJECTED, Event.ASKED): State.WAITING,
    (State.REJECTED, Event.PURGED): State.DELETED,
    (State.REJECTED, Event.EXPIRED): State.DELETED,
    (State.WAITING, Event.COUNTED): State.COUNTED,
    (State.WAITING, Event.LEFT): State.LEFT,
    (State.WAITING, Event.EXPIRED): State.DELETED,
    (State.COUNTED, Event.PURGED): State.DELETED,
    (State.COUNTED, Event.EXPIRED): State.DELETED,
    (State.LEFT, Event.ASKED): State.WAITING,
    (State.LEFT, Event.PURGED): State.DELETED,
    (State.LEFT, Event.EXPIRED): State.DELETED,
}
