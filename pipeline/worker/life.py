"""The life of a partition in one worker: its states, and the table of all steps between the states.

The table is the whole truth: a step that the table lacks raises AssertionError. So the simulation in
`tests/model` finds an order of events that nobody has thought of. The picture in `docs/architecture.md` is
made from the table.

That the worker stops is no state of a partition: a worker that stops refuses every activation, whatever
state its partitions are in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class State(Enum):
    """The state of one partition in this worker. A ledger exists while it owns, or hands over."""

    STANDING_BY = "standing by"
    """The partition is another worker's, or nobody's."""
    RECOVERING = "recovering"
    """The broker gave us the partition, and the worker claims it and builds its ledger from the database."""
    CONTESTED = "contested"
    """As RECOVERING, but another consumer group commits to the partition, so the claim is refused."""
    OWNING = "owning"
    """The ledger is recovered, and the worker reads and flushes."""
    HANDING_OVER = "handing over"
    """The broker wants the partition back: no chunk is taken in, and the last flush is under way."""


class Event(Enum):
    """What can happen to a partition in this worker."""

    RECOVERS = "recovery begins"
    """A recovery begins, perhaps once more, because the last one failed or was cancelled."""
    REFUSED = "claim refused"
    """Another consumer group has committed there a moment ago."""
    ACTIVATED = "activated"
    """The database confirms that the partition is ours, and the broker may send its records."""
    DEACTIVATED = "deactivated"
    """The broker wants to give the partition to another worker."""
    LOST = "lost"
    """The database has a newer epoch or another offset than the worker's own."""
    LET_GO = "let go"
    """The worker gave the partition up on purpose: it has handed over, or it stops."""


STEPS: Final = {
    (State.STANDING_BY, Event.RECOVERS): State.RECOVERING,
    (State.RECOVERING, Event.RECOVERS): State.RECOVERING,
    (State.RECOVERING, Event.REFUSED): State.CONTESTED,
    (State.RECOVERING, Event.ACTIVATED): State.OWNING,
    (State.CONTESTED, Event.RECOVERS): State.CONTESTED,
    (State.CONTESTED, Event.REFUSED): State.CONTESTED,
    (State.CONTESTED, Event.ACTIVATED): State.OWNING,
    (State.OWNING, Event.ACTIVATED): State.OWNING,  # after a lost connection to the broker
    (State.OWNING, Event.DEACTIVATED): State.HANDING_OVER,
    (State.OWNING, Event.LOST): State.STANDING_BY,
    (State.OWNING, Event.LET_GO): State.STANDING_BY,
    (State.HANDING_OVER, Event.ACTIVATED): State.OWNING,  # the connection was lost before the end
    (State.HANDING_OVER, Event.LOST): State.STANDING_BY,
    (State.HANDING_OVER, Event.LET_GO): State.STANDING_BY,
}


@dataclass(slots=True)
class Life:
    """The state of one partition, and the number of its term.

    A *term* is the time from one activation to the next deactivation or loss. A delivery of an earlier term
    is dropped, because the new term reads on from an offset of its own.
    """

    state: State = State.STANDING_BY
    term: int = 0

    def follow(self, event: Event) -> None:
        """Go to the state that follows. Raises AssertionError: the table has no such step."""
        before, after = self.state, STEPS.get((self.state, event))
        assert after is not None, f"no step for a partition that is {before.value}: {event.value}"
        self.state = after
        if State.OWNING in (before, after):
            self.term += 1
