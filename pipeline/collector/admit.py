"""From what a sender offers to what is published: valid by the worker's own rules, of orgs that the caller
may write.

This is the one place that decides about tenancy, for every dialect. An admitted body is an event in the
contract's own JSON with the contract's fields only, and its routing key is its orgId. An event that is not
admitted has a fault, and nothing of it is kept.

Age is not judged here: it depends on the broker's time. The worker makes an event that is too old a dead
letter, and replay takes it from there. An event that is ahead of time would be a dead letter that no replay
takes. So an event that is ahead of this host's clock by more than the clock may be wrong (`AHEAD_S`) is
rejected here, where its sender hears of it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final
from uuid import UUID

import msgspec

from pipeline.collector.config import BodyBounds
from pipeline.collector.dialects import Offered, contract
from pipeline.collector.in_work import Share
from pipeline.common.access.caller import Caller
from pipeline.common.problems import Problem
from pipeline.core import checked, wire
from pipeline.core.checked import Checker
from pipeline.core.wire import Fault, Invalid

AHEAD_S: Final = 3600.0
"""An event may lie so far ahead of this host's clock. The worker takes 5 minutes, by the broker's clock. The
rest is for a clock of ours that is behind, because a sender may drop what is rejected."""
EXPLAINED_MAX: Final = 100
"""An answer names every rejected item, but all faults of the first so many alone. Of others it names one."""
FAULTS_MAX: Final = 50
FUTILE: Final = 1000
"""If so many items of a body are faulty and none was right before, the rest is not read."""
NOT_YOURS: Final = Fault("orgId", "not an org of this caller")
_NOT_TEXT: Final = Fault("", "holds a number or a text that cannot be kept (half a surrogate pair)")
_OTHER_VARIANTS: Final = (b'{"event_id":', b'{"specversion":')
"""How an event of ours begins in snake_case or in an envelope. All others are in camelCase already."""
_PART: Final = 256
_PART_S: Final = 0.004
"""So many items, or so long, are taken in between two looks of the event loop at its other work."""
LARGE_BYTES: Final = 2**18
LARGE_WAIT_S: Final = 5.0
"""How long a body of more than `LARGE_BYTES` waits for its turn."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item that was not admitted: its place in the body, and every fault."""

    index: int
    faults: Sequence[Fault]


@dataclass(slots=True)
class Admitted:
    """What became of the items of one body."""

    bodies: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """The routing key of each body: its orgId in canonical lower-case text."""
    rejected: list[Rejected] = field(default_factory=list)
    passed_over: int = 0
    org_names: dict[UUID, str] = field(default_factory=dict)
    """Names that orgIds were derived from, of admitted events."""
    items: int = 0
    body_bytes: int = 0
    event_bytes_max: int = sys.maxsize
    """A larger event is not admitted."""

    @property
    def is_futile(self) -> bool:
        return not self.bodies and len(self.rejected) >= FUTILE

    def reject(self, index: int, faults: Sequence[Fault]) -> None:
        """Keep the faults of an item, or the first one alone where there are many such items already."""
        kept = FAULTS_MAX if len(self.rejected) < EXPLAINED_MAX else 1
        self.rejected.append(Rejected(index, faults[:kept] or (Fault("", "is no event"),)))


class Admission:
    """Admits the items of all requests."""

    def __init__(self, bounds: BodyBounds, *, clock: Callable[[], float] = time.time) -> None:
        self._bounds = bounds
        self._clock = clock
        self._checker = Checker()
        self._checker_of_large = Checker()
        self._large = asyncio.Lock()

    async def admit(
        self,
        offers: Iterator[Offered],
        *,
        body_bytes: int,
        caller: Caller,
        share: Share,
        event_bytes_max: int | None = None,
    ) -> Admitted:
        """Take all items of a body in. ``share`` then holds the bytes of the admitted events too.

        ``event_bytes_max`` is the size of the largest event that the broker takes, if that is known.

        A small body is worked on in parts of some milliseconds, and between them other requests have their
        turns. A large one is worked on in a thread, because a dialect may need long for a single item. One
        large body has its turn at a time, so that others wait little for the interpreter, and no memory is
        needed twice.

        Raises:
            Problem: 413, there are too many items, or their events are too large together; 503, there was no
                turn for a large body; and what `InWork.take` raises.
            Unreadable: the body is none of its dialect from some place on.
        """
        found = Admitted(event_bytes_max=sys.maxsize if event_bytes_max is None else event_bytes_max)
        orgs = _Orgs(caller)
        if body_bytes > LARGE_BYTES:
            await self._take_large(offers, found, orgs)
            await share.grow(found.body_bytes)
        else:
            before = 0
            while self._take_some(offers, found, orgs):
                await share.grow(found.body_bytes - before)
                before = found.body_bytes
                await asyncio.sleep(0)
            await share.grow(found.body_bytes - before)
        found.rejected.sort(key=lambda one: one.index)
        if found.is_futile:  # it was noticed at the end of a part
            del found.rejected[FUTILE:]
            found.items = found.rejected[-1].index + 1
        return found

    async def _take_large(self, offers: Iterator[Offered], found: Admitted, orgs: _Orgs) -> None:
        try:
            async with asyncio.timeout(LARGE_WAIT_S):
                await self._large.acquire()
        except TimeoutError:
            raise _busy() from None
        try:
            await asyncio.to_thread(self._take_all, offers, found, orgs)
        finally:
            self._large.release()

    def _take_all(self, offers: Iterator[Offered], found: Admitted, orgs: _Orgs) -> None:
        while not found.is_futile and (part := list(islice(offers, _PART))):
            self._take_part(part, found, orgs, self._checker_of_large)

    def _take_some(self, offers: Iterator[Offered], found: Admitted, orgs: _Orgs) -> bool:
        """Take in the items of the next milliseconds. Are there more?"""
        part: list[Offered] = []
        until = time.perf_counter() + _PART_S
        for offer in offers:
            part.append(offer)
            if len(part) == _PART or time.perf_counter() > until:
                self._take_part(part, found, orgs, self._checker)
                return not found.is_futile
        self._take_part(part, found, orgs, self._checker)
        return False

    def _take_part(self, part: Sequence[Offered], found: Admitted, orgs: _Orgs, checker: Checker) -> None:
        """Raises `Problem` 413."""
        bodies: list[bytes] = []
        sources: list[tuple[int, Offered]] = []
        for index, offer in enumerate(part, start=found.items):
            event = offer.event
            if offer.passed_over:
                found.passed_over += 1
            elif offer.faults or event is None:
                found.reject(index, offer.faults)
            else:
                body = event if isinstance(event, bytes) else _encoded(event)
                if body is None:
                    found.reject(index, (_NOT_TEXT,))
                else:
                    bodies.append(body)
                    sources.append((index, offer))
        found.items += len(part)
        verdicts = checker.check(bodies, latest_us=round((self._clock() + AHEAD_S) * 1e6))
        for body, verdict, (index, offer) in zip(bodies, verdicts, sources, strict=True):
            if isinstance(verdict, Invalid):
                ahead = verdict.reason == "future"
                found.reject(index, (_ahead(body, offer.time_field),) if ahead else verdict.faults)
                continue
            key = orgs.key(verdict)
            if key is None:
                found.reject(index, (_not_yours(verdict, offer.org_field),))
                continue
            if body.startswith(_OTHER_VARIANTS):
                body = contract.canonical(body)
            if len(body) > found.event_bytes_max:
                found.reject(index, (_too_large_for_the_broker(len(body), found.event_bytes_max),))
                continue
            found.bodies.append(body)
            found.keys.append(key)
            found.body_bytes += len(body)
            if offer.org_name is not None:
                found.org_names[checked.org_of(verdict)] = offer.org_name
        if found.items > self._bounds.events_max:
            raise _too_many(self._bounds.events_max)
        if found.body_bytes > self._bounds.unpacked_bytes_max:
            raise _too_large(self._bounds.unpacked_bytes_max)


class _Orgs:
    """The orgs of one body, each looked at once."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._keys: dict[bytes, str | None] = {}

    def key(self, org: bytes) -> str | None:
        """The routing key of an org's events; None: the caller may not write events of this org."""
        try:
            return self._keys[org]
        except KeyError:
            org_id = checked.org_of(org)
            key = self._keys[org] = str(org_id) if self._caller.reaches(org_id) else None
            return key


def _encoded(event: Mapping[str, Any]) -> bytes | None:
    """The event in the contract's JSON and order of fields; None: it holds what JSON or UTF-8 cannot hold."""
    assert event.keys() <= wire.CAMEL_NAMES.keys(), "a dialect passes a field that the contract does not have"
    try:
        return msgspec.json.encode({name: event[name] for name in wire.CAMEL_NAMES if name in event})
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):
        return None


def _not_yours(org: bytes, field: str | None) -> Fault:
    """The fault of an event whose org the caller may not write; ``field`` named the org, if one did."""
    if field is None:
        return NOT_YOURS
    return Fault(field, f"names the org {checked.org_of(org)}, which is not an org of this caller")


def _ahead(body: bytes, field: str | None) -> Fault:
    """The fault of an event that is ahead of time; ``field`` has its time, where the contract's names are not
    the sender's."""
    message = f"lies more than {AHEAD_S / 60:g} minutes ahead of the collector's clock"
    return Fault(field or contract.spelled(body, checked.TIME), message)


def _too_large_for_the_broker(size: int, most: int) -> Fault:
    return Fault("", f"has {size} bytes, and the broker takes at most {most} (its stream.frame_max)")


def _busy() -> Problem:
    return Problem(
        status=503,
        kind="busy",
        title="Too much in work",
        detail=f"Bodies of more than {LARGE_BYTES} bytes have to wait too long now: send this one again.",
        headers={"Retry-After": "2"},
    )


def _too_many(events_max: int) -> Problem:
    return Problem(
        status=413,
        kind="too-large",
        detail=f"The body has more than {events_max} items (COLLECTOR_EVENTS_MAX): send several requests.",
    )


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        status=413,
        kind="too-large",
        detail=f"The events of the body have more than {bytes_max} bytes (COLLECTOR_UNPACKED_BYTES_MAX):"
        " send several requests.",
    )
