"""Backfill: decides which of the dead letters that an operator wants counted may count.

A backfill is the only way into the books beside the stream. The code calls it a replay, as the command does.

A letter is judged like an event of the stream, at the letter's own place in the stream. One rule of the
stream does not apply: the letter may be older than the dedupe window. So the window alone cannot show that
the event is new. An event counts only if every hour in which its id could be has been checked (`Hours`), and
the id is in none of them. Four sources can tell about an hour:

1. An earlier backfill of the same event. It is kept as long as the rollups, and found under any hour.
2. The archive, as far as the command that asked for the backfill has looked the event up.
3. The ids of the dedupe window, in memory.
4. The ids of older hours that the database still stores.

If no source tells about one of the hours, the letter stays a dead letter. A letter with the reason
``conflict`` does not count either, because it is itself the proof that its id was counted. The exception: an
operator can take the risk and ask for these letters to be counted (``accept``). Even then a letter does not
count if one of the sources finds its id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import dedupe, kernels
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Columns, Reader, Rejected
from pipeline.core.watermark import HOUR_US

IntArray = npt.NDArray[Any]
Key = tuple[int, ...]
"""(org high, org low, event high, event low)"""

EVIDENCE: Final = ("none", "absent", "counted", "accept")
"""The evidence that the command brings for a letter.

``none``: the command found nothing. ``absent``: by the archive, the event was not counted. ``counted``: by
the archive, the event was counted with this payload. ``accept``: the operator wants the event counted even if
no source tells about an hour.
"""

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
"""The outcomes of a backfilled letter.

``accepted`` and ``duplicate`` take the letter out of the count of rejected events. ``unknown``: no source
tells whether the event was counted. ``gone``: the bytes of the event are nowhere any more.
"""

LETTERS_MAX: Final = 1000
"""At most this many letters are backfilled in one flush, because the flush must load all their rows."""


@dataclass(frozen=True, slots=True)
class Hours:
    """The hours in which the id of a letter's event can be, if the id has been counted.

    One is the hour of the event's own time. The others are those of the dedupe window as it lay at the
    letter's broker time: from one hour before the window to 5 minutes after the broker time. The others are
    needed because a copy with another event time may have counted first. For example, an event of 11:30 was
    counted. At 12:00 a copy with the same id and the event time 10:30 became a dead letter. Its own hour
    is the one from 10:00, but its id is in the hour from 11:00.
    """

    window: range
    own: int

    @classmethod
    def of(cls, occurred_us: int, broker_us: int, *, window_us: int, future_us: int) -> Hours:
        """The hours of an event at ``occurred_us`` in a chunk of ``broker_us``; both in microseconds.

        ``window_us`` is the length of the dedupe window. For ``future_us`` see `judge`.
        """
        first = (broker_us - window_us) // HOUR_US - 1
        return cls(range(first, (broker_us + future_us) // HOUR_US + 1), occurred_us // HOUR_US)

    def __contains__(self, hour: int) -> bool:
        return hour == self.own or hour in self.window

    def between(self, first: int, end: int) -> list[int]:
        """The hours from ``first`` on and before ``end``."""
        hours = list(range(max(first, self.window.start), min(end, self.window.stop)))
        if first <= self.own < end and self.own not in self.window:
            hours.append(self.own)
        return hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter to backfill."""

    offset: int
    position: int
    broker_us: int
    """The broker's time of its chunk."""
    evidence: str
    """One of `EVIDENCE`."""
    reason: str
    """Why the event was rejected; empty if the row of the dead letter has been purged."""
    body: bytes | None
    absent_to_hour: int = 0
    """With the evidence ``absent``: the archive tells about all hours before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The outcome of one backfilled letter. An accepted one has its ids as (high, low) and its check."""

    offset: int
    position: int
    outcome: str
    """One of `OUTCOMES`."""
    at_offset: int
    """The offset that the stream had been read to.

    A reader that reads the stream up to this offset and then backfills the letter gets the same rows again.
    """
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
    """int64[n]: the hour in which the id was found. An event of an earlier backfill has `ANY_HOUR`."""
    check: IntArray
    """uint64[n]: see `kernels.hashing.payload_checks`, and `Reader.older_checks` for earlier versions."""

    @staticmethod
    def of_settled(settled: Sequence[Settled]) -> CountedIds:
        """The events that earlier backfills have counted."""
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

    def by_key(self) -> dict[Key, list[tuple[int, int]]]:
        """The (hour, check) of all events with one id."""
        found: dict[Key, list[tuple[int, int]]] = {}
        rows = zip(_keys(self.org, self.event), self.hour.tolist(), self.check.tolist(), strict=True)
        for key, hour, check in rows:
            found.setdefault(key, []).append((hour, check))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Letters whose bodies have been read. ``columns.source`` is the place of each event's letter."""

    letters: Sequence[Letter]
    columns: Columns
    rejected: Sequence[Rejected]
    orgs: IntArray
    """uint64[n, 2]: the id of each event's org."""
    older_checks: IntArray
    """uint64[n, 2]: see `Reader.older_checks`."""
    hours: Sequence[Hours]
    """For each event of the columns, the hours in which its id can be."""
    live_from: int
    """First hour whose ids are all in memory."""
    stored_from: int
    """First hour whose ids are all in the database."""
    looked_up_to: int
    """The ids of this hour and of later ones are not looked up in the database.

    A worker sets ``live_from``, because it has the later ids in memory. A caller without such a memory sets a
    later hour.
    """

    @property
    def keys(self) -> list[Key]:
        """(org high, org low, event high, event low) of each event."""
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
    """Read the bodies of letters. For the hours see `Opened`. ``looked_up_to`` None means ``live_from``."""
    held = [place for place, letter in enumerate(letters) if letter.body is not None]
    columns, rejected = reader.read([letters[place].body or b"" for place in held])
    places = np.array(held, np.int64)
    columns.source = places[columns.source]
    hours = [
        Hours.of(occurred_us, letters[place].broker_us, window_us=window_us, future_us=future_us)
        for occurred_us, place in zip(columns.occurred_us.tolist(), columns.source.tolist(), strict=True)
    ]
    return Opened(
        letters=letters,
        columns=columns,
        rejected=[Rejected(held[one.source], one.reason, one.faults) for one in rejected],
        orgs=reader.orgs.keys[columns.org],
        older_checks=reader.older_checks(columns),
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
    """Decide the outcome of each event of ``opened.columns``, and remember the accepted ones in ``seen``.

    ``counted`` has the events that earlier backfills or the stored hours know. An event may lie ``future_us``
    after its broker time. ``has_room`` gives a mask (bool[n]) of the events for which the sums have room,
    when the events are counted in this order. None: the sums have room for all.
    """
    columns = opened.columns
    hours = columns.occurred_us // HOUR_US
    live = hours >= opened.live_from
    keys = opened.keys
    checks = np.column_stack((columns.check, opened.older_checks)).tolist()
    known = counted.by_key()
    outcomes = ["unknown"] * len(columns)
    asked: list[int] = []
    # Events inside the dedupe window come first. An older event with the same id then finds the id in memory.
    # The other way round, the younger event would not see the older one, whose hour has lapsed.
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
    for i, how in zip(which.tolist(), _remember(opened, which, seen).tolist(), strict=True):
        if how == kernels.ids.DUPLICATE:
            outcomes[i] = "duplicate"
        elif how == kernels.ids.CONFLICT:
            outcomes[i] = "conflict"
        elif firsts := _counted(known.get(keys[i], ()), opened, i):  # another of these letters was accepted
            outcomes[i] = _repeat(firsts, checks[i])
        else:
            known.setdefault(keys[i], []).append((ANY_HOUR, checks[i][0]))
            outcomes[i] = "accepted"
    return outcomes


def _remember(opened: Opened, which: IntArray, seen: SeenIds) -> IntArray:
    """Look up some events of ``opened.columns`` in memory, and remember the new ones; see `SeenIds.add`."""
    columns = opened.columns.take(which)
    return seen.add(
        columns.event,
        columns.org,
        (columns.occurred_us // HOUR_US).astype(np.int32),
        columns.check,
        np.full(len(which), opened.live_from, np.int32),
        older_checks=lambda places: opened.older_checks[which[places]],
    )


def settle(opened: Opened, outcomes: Sequence[str], *, at_offset: int) -> list[Settled]:
    """Put together the outcome of every letter, in the order of the letters."""
    by_place = {one.source: one.reason for one in opened.rejected}
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
    """Find the ``wanted`` keys in the id segment of an hour.

    The wanted keys are few, and a segment may hold millions of ids. So all ids are first compared by their
    lower half, and only the matches become Python objects.
    """
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
    """The checks under which the id of event ``i`` has counted before.

    ``found`` has (hour, check) of all known events with this id. Such an event matters if an earlier backfill
    counted it, if its hour is in memory, or if its hour is one of the `Hours` of event ``i``.
    """
    hours, live_from = opened.hours[i], opened.live_from
    return [check for hour, check in found if hour == ANY_HOUR or hour >= live_from or hour in hours]


def _has_gap(letter: Letter, hours: Hours, stored_from: int) -> bool:
    """Is there an hour that could hold the id, and about which neither database nor archive tells?"""
    told_to = letter.absent_to_hour if letter.evidence == "absent" else 0
    return bool(hours.between(told_to, stored_from))


def _repeat(counted_checks: Collection[int], checks: Sequence[int]) -> str:
    """The outcome of an event whose id has counted: a duplicate if one of the checks is the same.

    ``checks`` are the event's own: that of this version, and those of earlier versions.
    """
    return "conflict" if set(checks).isdisjoint(counted_checks) else "duplicate"
