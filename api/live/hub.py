"""Live figures: one subscription to the database for all listeners of this process.

A flush of the worker sends a notification in its own transaction, so the new figures can be read when the
notification arrives. The hub then reads how far each followed org has come, and the figures of the orgs that
moved; it reads this once for all listeners. Notifications that arrive meanwhile cause one more round, not a
queue of rounds. Where there are no notifications (a pooler, a lost connection) the hub looks every few
seconds all the same.

A message holds the whole state of the buckets that the watermark is in, so a listener that missed messages
has lost nothing. A new connection gets the current state, unless its Last-Event-ID says that it has that
state. Nothing is buffered without a bound: a listener that does not keep up is told so, and its connection
ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from api.answering import answers
from api.asking.buckets import UTC_ZONE, Calendar, Granularity, Span, to_datetime, to_minute
from api.asking.questions import Pricing
from api.config import LiveConfig
from api.reading import names, prices, rollups, seen
from api.reading.database import NO_NOTIFICATIONS, Database
from api.reading.figures import spend_fields
from api.reading.freshness import Standing, slowest_time
from api.reading.rollups import KINDS
from pipeline.common import problems
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable

log = logging.getLogger(__name__)

CHANNEL: Final = "spendstream_flush"
LOOK_S: Final = 3.0
"""The longest time between two looks at the database. With the read it stays well under 5 s, which clients
take for a stall."""
_LISTEN_AGAIN_S: Final = 1.0
_PENDING_MAX: Final = 8
_NAMES: Final = ("minute", "hour", "day", "month")
_CALENDARS: Final = {name: Calendar(Granularity(name), UTC_ZONE) for name in _NAMES}
_SHOWN: Final = ("invocations", "input_tokens", "output_tokens", *KINDS)

Place = Mapping[int, int]
"""How far an org has come: by partition, the microsecond of its last rollup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """An org at one committed instant. ``usage`` is None until the org has a watermark."""

    place: Place
    standings: Sequence[Standing]
    usage: answers.LiveUsage | None
    org_name: str | None = None

    @property
    def event_id(self) -> str:
        return ",".join(f"{partition}-{us}" for partition, us in sorted(self.place.items()))

    def is_after(self, other: State | None) -> bool:
        """Has this state a rollup that the other lacks?"""
        return other is None or any(
            us > other.place.get(partition, -1) for partition, us in self.place.items()
        )


class Listener:
    """One connection's messages, at most a few of them. ``alive`` tells whether its client is still there."""

    def __init__(self, org_id: UUID, alive: Callable[[], bool] = lambda: True) -> None:
        self.org_id = org_id
        self.alive = alive
        self.ended: str | None = None
        """Why no more messages come; None while they do."""
        self._pending: deque[State] = deque()
        self._wake = asyncio.Event()

    def offer(self, state: State) -> None:
        if self.ended is None and len(self._pending) >= _PENDING_MAX:
            self.end("slow")
            return
        self._pending.append(state)
        self._wake.set()

    def end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self._pending.clear()
        self._wake.set()

    async def take(self, timeout_s: float) -> State | None:
        """The next state. None: no state came in time, or the listener has ended."""
        if not self._pending and self.ended is None:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        return self._pending.popleft() if self._pending else None


class Hub:
    """Follows the database for all listeners of this process, and rests while there are none."""

    def __init__(self, database: Database, config: LiveConfig) -> None:
        self._database = database
        self._config = config
        self._listeners: dict[UUID, set[Listener]] = {}
        self._states: dict[UUID, State] = {}
        self._moved = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def count(self) -> int:
        return sum(map(len, self._listeners.values()))

    def join(self, org_id: UUID, alive: Callable[[], bool]) -> Listener:
        """A listener to the org, to be given back with `leave`.

        Raises:
            Problem: 429, the org or this server has as many live connections as it may have.
        """
        if sum(other.alive() for other in self._listeners.get(org_id, ())) >= self._config.per_org_max:
            raise problems.too_many(
                f"This org has {self._config.per_org_max} live connections already (LIVE_PER_ORG_MAX).",
                retry_after_s=10,
            )
        if self.count >= self._config.listeners_max:
            raise problems.too_many(
                "This server has as many live connections as it takes (LIVE_MAX).", retry_after_s=10
            )
        listener = Listener(org_id, alive)
        self._listeners.setdefault(org_id, set()).add(listener)
        if self._closed:
            listener.end("shutdown")
        elif not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._publish())]
        return listener

    def leave(self, listener: Listener) -> None:
        those = self._listeners.get(listener.org_id, set())
        those.discard(listener)
        if not those:
            self._listeners.pop(listener.org_id, None)
            self._states.pop(listener.org_id, None)
        if not self._listeners:
            self._rest()

    async def current(self, org_id: UUID) -> State:
        """The org's state now. Raises `Unavailable`."""
        return (await self._database.read(lambda c: _states(c, [org_id], {})))[org_id]

    def last(self, org_id: UUID) -> State | None:
        """The last state that is known; while the database is away it grows old."""
        return self._states.get(org_id)

    async def close(self) -> None:
        """End every listener with the reason ``shutdown``."""
        self._closed = True
        for those in self._listeners.values():
            for listener in those:
                listener.end("shutdown")
        tasks = self._tasks
        self._rest()
        if tasks:
            await asyncio.wait(tasks, timeout=2)

    def _rest(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _listen(self) -> None:
        while True:
            try:
                await self._database.listen(CHANNEL, self._moved.set)
            except Unavailable as error:
                log.warning("live_not_notified", extra={"error": str(error)})
                if str(error) == NO_NOTIFICATIONS:
                    return  # `_publish` looks every few seconds all the same
            await asyncio.sleep(_LISTEN_AGAIN_S)

    async def _publish(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._moved.wait()
            self._moved.clear()
            try:
                await self._look()
            except Unavailable as error:
                log.warning("live_without_database", extra={"error": str(error)})
                await asyncio.sleep(_LISTEN_AGAIN_S)
            except Exception:
                log.exception("live_look_failed")
                await asyncio.sleep(_LISTEN_AGAIN_S)

    async def _look(self) -> None:
        followed = list(self._listeners)
        before = {org_id: self._states[org_id] for org_id in followed if org_id in self._states}
        for org_id, state in (await self._database.read(lambda c: _states(c, followed, before))).items():
            those = self._listeners.get(org_id)
            if those is None:
                continue
            self._states[org_id] = state
            if state.usage is not None and state.is_after(before.get(org_id)):
                for listener in those:
                    listener.offer(state)


async def _states(
    connection: AsyncConnection, org_ids: Iterable[UUID], before: Mapping[UUID, State]
) -> dict[UUID, State]:
    """The state of each org in this snapshot, with figures where the org has moved on from ``before``."""
    org_ids = list(org_ids)
    standings = await seen.orgs_standings(connection, org_ids)
    named = await names.of_orgs(connection, org_ids)
    states = {}
    moved: dict[UUID, datetime] = {}
    for org_id in org_ids:
        of_org = standings.get(org_id, [])
        place = {s.partition: _microseconds(s.last_rollup_at) for s in of_org}
        states[org_id] = State(place=place, standings=of_org, usage=None, org_name=named.get(org_id))
        watermark = slowest_time(s.watermark for s in of_org)
        if watermark is not None and states[org_id].is_after(before.get(org_id)):
            moved[org_id] = watermark
    if moved:
        version, figures = await _figures(connection, moved)
        for org_id, watermark in moved.items():
            state = states[org_id]
            states[org_id] = replace(
                state,
                usage=answers.LiveUsage(
                    org_id=org_id,
                    org_name=state.org_name,
                    watermark=watermark,
                    counted_through=slowest_time(s.counted_through for s in state.standings),
                    last_rollup_at=max(s.last_rollup_at for s in state.standings),
                    **figures[org_id],
                    price_version=version,
                ),
            )
    return states


async def _figures(
    connection: AsyncConnection, watermarks: Mapping[UUID, datetime]
) -> tuple[int, dict[UUID, dict[str, answers.LiveBucket]]]:
    """The newest version of the price book, and the figures of the buckets that hold each org's watermark."""
    spans = {
        (org_id, name): _span(calendar, to_minute(watermark))
        for org_id, watermark in watermarks.items()
        for name, calendar in _CALENDARS.items()
    }
    # An org's watermark is that of one of its partitions, so few spans are the spans of many orgs.
    orgs: dict[tuple[str, Span], list[UUID]] = {}
    for (org_id, name), span in spans.items():
        orgs.setdefault((name, span), []).append(org_id)
    whole = Span(min(span.start for span in spans.values()), max(span.end for span in spans.values()))
    book = await prices.read(connection, Pricing(), list(watermarks), whole)
    found = await rollups.org_totals(connection, book, [(*named, org_ids) for named, org_ids in orgs.items()])
    figures: dict[UUID, dict[str, answers.LiveBucket]] = {org_id: {} for org_id in watermarks}
    for (org_id, name), span in spans.items():
        figures[org_id][name] = _bucket(span, found.get((org_id, name), rollups.ORG_NOTHING))
    return book.version, figures


def _span(calendar: Calendar, minute: int) -> Span:
    start = calendar.start_of(minute)
    return Span(start, calendar.end_of(start))


def _bucket(span: Span, measures: Mapping[str, Any]) -> answers.LiveBucket:
    return answers.LiveBucket(
        bucket_start=to_datetime(span.start),
        errors=rollups.failures(measures),
        **{name: measures[name] for name in _SHOWN},
        **spend_fields(measures),
    )


def _microseconds(at: datetime) -> int:
    return (at - to_datetime(0)) // timedelta(microseconds=1)
