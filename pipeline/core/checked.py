"""Which of many bodies are valid events, and of which orgs: the rules of the worker, without its books.

The collector asks before it publishes. `scan` reads the bodies that are plainly right, and `wire.read` has
the last word on all others, as in `pipeline.core.events`. Nothing is numbered here and nothing is remembered,
so no sender can make the memory grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from pipeline.core import scan, wire
from pipeline.core.bodies import PADDING
from pipeline.core.events import DETAILS, Names
from pipeline.core.kernels.compile import handle
from pipeline.core.wire import Invalid

IntArray = npt.NDArray[Any]

_PART: Final = 512
"""The most bodies of one scan."""
_RESERVED: Final = np.array([wire.OVERFLOW_MODEL.int >> 64, wire.OVERFLOW_MODEL.int & (2**64 - 1)], np.uint64)

TIME: Final = "occurredAt"
Verdict = bytes | Invalid
"""Of a valid event, the 16 bytes of its orgId; else every fault. The reason of an event that is ahead of time
is ``future``, and its one fault has `TIME` for a field, however the body spells it."""


class Checker:
    """Checks bodies, and reuses its arrays. Not for several threads at once."""

    def __init__(self) -> None:
        n = _PART
        self._guesses = scan.new_guesses()
        self._ids = [np.empty((n, 2), np.uint64) for _ in range(4)]
        """eventId, orgId, modelId and actorId."""
        self._figures = [np.empty(n, np.int64) for _ in range(6)]
        self._details: IntArray = np.empty((n, len(DETAILS) + 1), np.int64)
        self._ranges = [np.empty((n, 2), np.int64) for _ in range(4)]
        self._names = Names()
        """No name has a number here."""
        self._numbers: IntArray = np.empty((n, 4), np.int32)
        self._dimensions = (np.frombuffer(PADDING, np.uint8), np.zeros(1, np.int64), scan.NO_ACTOR)
        """There are no dimensions: their keys, the edges of the keys, and which one the actors are."""
        self._values: IntArray = np.empty((0, n, 2), np.int64)
        self._places = [np.empty(n, np.int64) for _ in range(2)]

    def check(self, bodies: Sequence[bytes], *, latest_us: int = 2**63 - 1) -> list[Verdict]:
        """A verdict for each body, in their order. Events after ``latest_us`` are ahead of time.

        A call takes about 15 µs, and 1 µs for each body that is plainly right. Any other body takes 50 µs.
        """
        verdicts: list[Verdict] = []
        for first in range(0, len(bodies), _PART):
            verdicts += self._check_part(bodies[first : first + _PART], latest_us)
        return verdicts

    def _check_part(self, bodies: Sequence[bytes], latest_us: int) -> list[Verdict]:
        edges = np.zeros(len(bodies) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, bodies), np.int64, count=len(bodies)), out=edges[1:])
        text: IntArray = np.frombuffer(b"".join((*bodies, PADDING)), np.uint8)
        event, org, model, actor = self._ids
        source, doubtful = self._places
        arguments: list[Any] = [handle(text), edges[:-1], edges[1:], self._guesses, event, org, model]
        arguments += [*self._figures, self._details, *self._ranges]
        arguments += [
            *[self._names.memo] * 3,
            self._numbers,
            *self._dimensions,
            actor,
            self._values,
            source,
            doubtful,
        ]
        good = scan.scan(*arguments)
        unsure = doubtful[: len(bodies) - good].tolist()
        reserved = (model[:good] == _RESERVED).all(axis=1)
        if reserved.any():
            unsure += source[:good][reserved].tolist()
        verdicts: list[Verdict] = [b""] * len(bodies)
        ids = org[:good].astype(">u8").tobytes()
        for at, place in enumerate(source[:good].tolist()):
            verdicts[place] = ids[16 * at : 16 * at + 16]
        for place in source[:good][self._figures[0][:good] > latest_us].tolist():
            verdicts[place] = _AHEAD
        for place in unsure:
            verdicts[place] = _read(bodies[place], latest_us)
        return verdicts


def org_of(verdict: bytes) -> UUID:
    """The org of a valid event."""
    return UUID(bytes=verdict)


_AHEAD: Final = Invalid(reason="future", faults=(wire.Fault(TIME, "is ahead of time"),))


def _read(body: bytes, latest_us: int) -> Verdict:
    found = wire.read(body)
    if isinstance(found, Invalid):
        return found
    return found.org_id.bytes if found.occurred_us <= latest_us else _AHEAD


def warm_up() -> None:
    """Compile the scan, or load it if this machine has compiled it before."""
    Checker().check([b"{}"])
