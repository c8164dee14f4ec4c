"""Judging dead letters that an operator wants counted: the one way into the books beside the stream.

A letter is judged like an event of the stream, by its own place in it, but it may be older than the dedupe
window. That rule protects exactness, so something else must: an event counts only where it can be shown that
its id has not been counted before. An id may have been counted under the hour of another event time than the
letter's own, so every hour of `Hours` is looked at. These can tell of an hour:

1. an earlier replay of the same event (kept for as long as rollups are, and found whatever the hour),
2. the archive, as far as the command that asked for the replay has looked it up,
3. the ids of the window, in memory,
4. the ids of older hours that the database still stores.

Where one of the hours is told by none of them, the letter stays what it is, and so does every ``conflict``:
that letter is itself the proof that its id was counted. Only an operator who takes the risk (``accept``) has
such letters counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import dedupe, kernels
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Columns, Reader, Refused
from pipeline.core.watermark import HOUR_US

IntArray = npt.NDArray[Any]
Key = tuple[int, ...]
"""(org high, org low, event high, event low)"""

EVIDENCE: Final = ("none", "absent", "counted", "accept")
"""What the command found out: nothing; by the archive, that the event was not counted, or that it was, with
this payload; or that the operator wants it counted where nothing tells."""

OUTCOMES: Final = (
    "accepted",
    "duplicate",
    "conflict",
    "unknown",
    "future",
    "malformed",
    "invalid",
    "gone",
)
"""What becomes of a replay. The first two take the letter out of ``rejected``; ``unknown``: nothing tells
whether the event was counted; ``gone``: its bytes are nowhere any more."""

LETTERS_MAX: Final = 1000
"""Letters replayed in one flush: bounds the rows that must be loaded for them."""


@dataclass(frozen=True, slots=True)
class Hours:
    """The hours that could hold the id of a letter's event, if that id has been counted.

    These are the event's own hour, and all of the dedupe window as it lay at the letter's broker time: from
    an hour before the window to 5 minutes after the broker time. For example, X was counted at 11:30, and a
    copy with the same id and the event time 10:30 became a letter at 12:00: the id is in the hour from 11:00.
    """

    window: range
    own: int

    @classmethod
    def of(cls, occurred_us: int, broker_us: int, *, window_us: int, future_us: int) -> Hours:
        """Of an event at ``occurred_us`` in a chunk of ``broker_us``; ``future_us``: see `judge`."""
        first = (broker_us - window_us) // HOUR_US - 1
        return cls(range(first, (broker_us + future_us) // HOUR_US + 1), occurred_us // HOUR_US)

    def __contains__(self, hour: int) -> bool:
        return hour == self.own or hour in self.window

    def between(self, first: int, end: int) -> list[int]:
        """Those from ``first`` on and before ``end``."""
        hours = list(range(max(first, self.window.start), min(end, self.window.stop)))
        if first <= self.own < end and self.own not in self.window:
            hours.append(self.own)
        return hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter to replay."""

    offset: int
    position: int
    broker_us: int
    """The broker's time of its chunk."""
    evidence: str
    """One of `EVIDENCE`."""
    reason: str
    """Why it was refused; empty where its row has been purged."""
    body: bytes | None
    absent_to_hour: int = 0
    """With the evidence ``absent``: the archive told of all hours before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of one letter; where it was accepted, its ids as (high, low) and its payload's check."""

    offset: int
    position: int
    outcome: str
    """One of `OUTCOMES`."""
    at_offset: int
    """How far the stream had been read: reading it so far and then replaying gives the same rows again."""
    org: tuple[int, int] | None = None
    event: tuple[int, int] | None = None
    check: int | None = None


ANY_HOUR: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedIds:
    """Events that are known to have been counted: arrays of one length."""

    org: IntArray
    event: IntArray
    """uint64[n, 2] each, (high, low)"""
    hour: IntArray
    """int64[n]: the hour in which it was found, `ANY_HOUR` for those of earlier replays."""
    check: IntArray
    """uint64[n]: see `kernels.hashing.payload_checks`, or ``narrow_checks`` if version 0.1.0 counted it."""

    @staticmethod
    def of_settled(settled: Sequence[Settled]) -> CountedIds:
        """What replays have counted."""
        mine = [one for one in settled if one.outcome == "accepted"]
        return CountedIds(
            org=np.array([one.org for one in mine], np.uint64).reshape(-1, 2),
            event=np.array([one.event for one in mine], np.uint64).reshape(-1, 2),
            hour=np.full(len(mine), ANY_HOUR, np.int64),
            check=np.array([one.check for one in mine], np.uint64),
        )

    @staticmethod
    def join(parts: Sequence[CountedIds]) -> CountedIds:
        return CountedIds(
            org=np.concatenate([np.empty((0, 2), np.uint64), *(part.org for part in parts)]),
            event=np.concatenate([np.empty((0, 2), np.uint64), *(part.event for part in parts)]),
            hour=np.concatenate([np.empty(0, np.int64), *(part.hour for part in parts)]),
            check=np.concatenate([np.empty(0, np.uint64), *(part.check for part in parts)]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Letters with what their bodies say. ``columns.source`` is the place of the letter."""

    letters: Sequence[Letter]
    columns: Columns
    refused: Sequence[Refused]
    orgs: IntArray
    """uint64[n, 2]: the columns' orgs by their ids."""
    narrow_checks: IntArray
    """uint64[n]: see `kernels.hashing.narrow_checks`."""
    hours: Sequence[Hours]
    """Of each of the columns' events."""
    live_from: int
    """First hour whose ids are all in memory."""
    stored_from: int
    """First hour whose ids are all in the database."""
    looked_up_to: int
    """First hour whose ids are not looked up in the database: ``live_from``, or later without a memory."""

    @property
    def keys(self) -> list[Key]:
        """Of each event."""
        return _keys(self.orgs, self.columns.event)

    def of_stored_hours(self) -> dict[int, set[Key]]:
        """The events to look up in the database, by hour."""
        wanted: dict[int, set[Key]] = {}
        keys = self.keys
        for key, hours in zip(keys, self.hours, strict=True):
            for hour in hours.between(self.stored_from, self.live_from):
                wanted.setdefault(hour, set()).add(key)
        every = set(keys)
        wanted.update((hour, every) for hour in range(self.live_from, self.looked_up_to))
        return wanted


def open_letters(
    letters: Sequence[Letter],
    reader: Reader,
    *,
    live_from: int,
    stored_from: int,
    window_us: int,
    future_us: int,
    looked_up_to: int | None = None,
) -> Opened:
    """Read the letters' bodies. For the hours see `Opened`; ``looked_up_to`` None: as ``live_from``."""
    held = [place for place, letter in enumerate(letters) if letter.body is not None]
    columns, refused = reader.read([letters[place].body or b"" for place in held])
    places = np.array(held, np.int64)
    columns.source = places[columns.source]
    hours = [
        Hours.of(occurred_us, letters[place].broker_us, window_us=window_us, future_us=future_us)
        for occurred_us, place in zip(columns.occurred_us.tolist(), columns.source.tolist(), strict=True)
    ]
    return Opened(
        letters=letters,
        columns=columns,
        refused=[Refused(held[bad.source], bad.reason, bad.faults) for bad in refused],
        orgs=reader.orgs.keys[columns.org],
        narrow_checks=reader.narrow_checks(columns),
        hours=hours,
        live_from=live_from,
        stored_from=stored_from,
        looked_up_to=live_from if looked_up_to is None else looked_up_to,
    )


def judge(
    opened: Opened,
    counted: CountedIds,
    seen: SeenIds,
    *,
    future_us: int,
    has_room: Callable[[Columns], IntArray] | None = None,
) -> list[str]:
    """The outcome of each event of ``opened.columns``, remembering those that are accepted.

    ``counted`` has what earlier replays and the stored hours say of these events. ``future_us`` is how far
    after its broker time an event may lie. ``has_room`` says for which events (bool[n]) the sums
    have room, if they are counted in this order; None: for all.
    """
    columns = opened.columns
    hours = columns.occurred_us // HOUR_US
    live = hours >= opened.live_from
    keys = opened.keys
    checks = list(zip(columns.check.tolist(), opened.narrow_checks.tolist(), strict=True))
    known: dict[Key, list[tuple[int, int]]] = {}
    found_in = zip(
        _keys(counted.org, counted.event), counted.hour.tolist(), counted.check.tolist(), strict=True
    )
    for key, hour, check in found_in:
        known.setdefault(key, []).append((hour, check))
    outcomes = ["unknown"] * len(columns)
    asked: list[int] = []
    # Those of the window first: an older one with the same id finds them in memory then, not the reverse.
    for i in np.argsort(~live, kind="stable").tolist():
        letter = opened.letters[int(columns.source[i])]
        if columns.occurred_us[i] > letter.broker_us + future_us:
            outcomes[i] = "future"
        elif firsts := _counted(known.get(keys[i], ()), opened, i):
            outcomes[i] = _repeat(firsts, checks[i])
        elif letter.evidence == "counted":
            outcomes[i] = "duplicate"
        elif letter.evidence == "accept":
            asked.append(i)
        elif not _has_gap(letter, opened.hours[i], opened.stored_from):
            if letter.reason == "conflict":
                outcomes[i] = "conflict"
            elif letter.reason:
                asked.append(i)
    if not asked:
        return outcomes
    which = np.array(asked, np.int64)
    if has_room is not None:
        fits = has_room(columns.take(which))
        for i in which[~fits].tolist():
            outcomes[i] = "invalid"
        which = which[fits]
    in_memory = seen.add(
        columns.event[which],
        columns.org[which],
        hours[which].astype(np.int32),
        columns.check[which],
        np.full(len(which), opened.live_from, np.int32),
        narrow_checks=lambda places: opened.narrow_checks[which[places]],
    )
    for i, how in zip(which.tolist(), in_memory.tolist(), strict=True):
        if how == kernels.ids.DUPLICATE:
            outcomes[i] = "duplicate"
        elif how == kernels.ids.CONFLICT:
            outcomes[i] = "conflict"
        elif firsts := _counted(known.get(keys[i], ()), opened, i):  # another letter of these
            outcomes[i] = _repeat(firsts, checks[i])
        else:
            known.setdefault(keys[i], []).append((ANY_HOUR, checks[i][0]))
            outcomes[i] = "accepted"
    return outcomes


def settle(opened: Opened, outcomes: Sequence[str], *, at_offset: int) -> list[Settled]:
    """What became of every letter, in their order."""
    by_place = {bad.source: bad.reason for bad in opened.refused}
    events: dict[int, dict[str, Any]] = {}
    columns = opened.columns
    for i, (source, outcome) in enumerate(zip(columns.source.tolist(), outcomes, strict=True)):
        by_place[source] = outcome
        if outcome == "accepted":
            (org_high, org_low), (high, low) = opened.orgs[i].tolist(), columns.event[i].tolist()
            events[source] = {
                "org": (org_high, org_low),
                "event": (high, low),
                "check": int(columns.check[i]),
            }
    return [
        Settled(
            offset=letter.offset,
            position=letter.position,
            outcome=by_place.get(place, "gone"),
            at_offset=at_offset,
            **events.get(place, {}),
        )
        for place, letter in enumerate(opened.letters)
    ]


def among(wanted: Collection[Key], hour: int, segment: bytes) -> CountedIds:
    """Which of the wanted are in a segment of an hour's ids: they are few, its ids may be millions."""
    orgs, counts, event, check = dedupe.decode_segment(segment)
    org = np.repeat(orgs, counts, axis=0)
    lows = np.array(sorted({key[3] for key in wanted}), np.uint64)
    near = np.flatnonzero(np.isin(event[:, 1], lows))
    keys = _keys(org[near], event[near])
    hits = near[[key in wanted for key in keys]] if keys else near
    return CountedIds(
        org=org[hits], event=event[hits], hour=np.full(len(hits), hour, np.int64), check=check[hits]
    )


def _keys(org: IntArray, event: IntArray) -> list[Key]:
    return list(map(tuple, np.concatenate((org, event), axis=1).tolist()))


def _counted(found: Sequence[tuple[int, int]], opened: Opened, i: int) -> list[int]:
    """The checks of those that were counted before event ``i``, among (hour, check) with its id."""
    hours, live_from = opened.hours[i], opened.live_from
    return [check for hour, check in found if hour == ANY_HOUR or hour >= live_from or hour in hours]


def _has_gap(letter: Letter, hours: Hours, stored_from: int) -> bool:
    """Is there an hour that could hold the id, and of which neither the database nor the archive tells?"""
    told_to = letter.absent_to_hour if letter.evidence == "absent" else 0
    return bool(hours.between(told_to, stored_from))


def _repeat(counted_checks: Collection[int], checks: tuple[int, int]) -> str:
    """Of an event whose id was counted with some checks; its own are the wide one and the narrow one."""
    return "conflict" if set(checks).isdisjoint(counted_checks) else "duplicate"
