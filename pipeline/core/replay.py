"""Judging dead letters that an operator wants counted: the one way into the books beside the stream.

A letter is judged like an event of the stream, by its own place in it, but it may be older than the dedupe
window. That rule protects exactness, so something else must: an event counts only where it can be shown that
it has not been counted before. What shows it, the first that can tell:

1. an earlier replay of the same event (kept for as long as rollups are),
2. the archive, as far as the command that asked for the replay has looked it up,
3. the ids of the window, in memory,
4. the ids of older hours that the database still stores.

Where none can tell, the letter stays what it is, unless the operator takes the risk (``accept``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter to replay."""

    offset: int
    position: int
    broker_us: int
    """The broker's time of its chunk."""
    evidence: str
    """One of `EVIDENCE`."""
    body: bytes | None


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
    """uint32[n]: see `kernels.payload_checks`."""

    @staticmethod
    def of_settled(settled: Sequence[Settled]) -> CountedIds:
        """What replays have counted."""
        mine = [one for one in settled if one.outcome == "accepted"]
        return CountedIds(
            org=np.array([one.org for one in mine], np.uint64).reshape(-1, 2),
            event=np.array([one.event for one in mine], np.uint64).reshape(-1, 2),
            hour=np.full(len(mine), ANY_HOUR, np.int64),
            check=np.array([one.check for one in mine], np.uint32),
        )

    @staticmethod
    def join(parts: Sequence[CountedIds]) -> CountedIds:
        return CountedIds(
            org=np.concatenate([np.empty((0, 2), np.uint64), *(part.org for part in parts)]),
            event=np.concatenate([np.empty((0, 2), np.uint64), *(part.event for part in parts)]),
            hour=np.concatenate([np.empty(0, np.int64), *(part.hour for part in parts)]),
            check=np.concatenate([np.empty(0, np.uint32), *(part.check for part in parts)]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Letters with what their bodies say. ``columns.source`` is the place of the letter."""

    letters: Sequence[Letter]
    columns: Columns
    refused: Sequence[Refused]
    orgs: IntArray
    """uint64[n, 2]: the columns' orgs by their ids."""
    live_from: int
    """First hour whose ids are all in memory."""
    stored_from: int
    """First hour whose ids are all in the database."""

    @property
    def keys(self) -> list[Key]:
        """Of each event."""
        return _keys(self.orgs, self.columns.event)

    def of_stored_hours(self) -> dict[int, set[Key]]:
        """The events to look up in the database, by their hour."""
        wanted: dict[int, set[Key]] = {}
        for key, hour in zip(self.keys, (self.columns.occurred_us // HOUR_US).tolist(), strict=True):
            if self.stored_from <= hour < self.live_from:
                wanted.setdefault(hour, set()).add(key)
        return wanted


def open_letters(letters: Sequence[Letter], reader: Reader, *, live_from: int, stored_from: int) -> Opened:
    """Read the letters' bodies."""
    held = [place for place, letter in enumerate(letters) if letter.body is not None]
    columns, refused = reader.read([letters[place].body or b"" for place in held])
    places = np.array(held, np.int64)
    columns.source = places[columns.source]
    return Opened(
        letters=letters,
        columns=columns,
        refused=[Refused(held[bad.source], bad.reason, bad.faults) for bad in refused],
        orgs=reader.orgs.keys[columns.org],
        live_from=live_from,
        stored_from=stored_from,
    )


def judge(opened: Opened, counted: CountedIds, seen: SeenIds, *, future_us: int) -> list[str]:
    """The outcome of each event of ``opened.columns``, remembering those that are accepted.

    ``counted`` has what earlier replays and the stored hours say of these events. ``future_us`` is how far
    after its broker time an event may lie.
    """
    columns = opened.columns
    hours = columns.occurred_us // HOUR_US
    live = hours >= opened.live_from
    keys = opened.keys
    checks: list[int] = columns.check.tolist()
    found_in = zip(_keys(counted.org, counted.event), counted.hour.tolist(), strict=True)
    known = dict(zip(found_in, counted.check.tolist(), strict=True))
    outcomes = ["unknown"] * len(columns)
    asked: list[int] = []
    # Those of the window first: an older one with the same id finds them in memory then, not the reverse.
    for i in np.argsort(~live, kind="stable").tolist():
        letter = opened.letters[int(columns.source[i])]
        if columns.occurred_us[i] > letter.broker_us + future_us:
            outcomes[i] = "future"
        elif (first := _known(known, keys[i], int(hours[i]))) is not None:
            outcomes[i] = _repeat(first, checks[i])
        elif letter.evidence == "counted":
            outcomes[i] = "duplicate"
        elif hours[i] >= opened.stored_from or letter.evidence in ("absent", "accept"):
            asked.append(i)
    if not asked:
        return outcomes
    which = np.array(asked, np.int64)
    found = seen.add(
        columns.event[which],
        columns.org[which],
        hours[which].astype(np.int32),
        columns.check[which],
        np.full(len(which), opened.live_from, np.int32),
    )
    for i, how in zip(asked, found.tolist(), strict=True):
        if how == kernels.DUPLICATE:
            outcomes[i] = "duplicate"
        elif how == kernels.CONFLICT:
            outcomes[i] = "conflict"
        elif (first := known.get((keys[i], ANY_HOUR))) is not None:  # memory forgets those before the window
            outcomes[i] = _repeat(first, checks[i])
        else:
            known[keys[i], ANY_HOUR] = checks[i]
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


def _known(known: dict[tuple[Key, int], int], key: Key, hour: int) -> int | None:
    """The payload's check of the event that was counted before; None if none is known."""
    return known.get((key, ANY_HOUR), known.get((key, hour)))


def _repeat(counted_check: int, check: int) -> str:
    return "duplicate" if counted_check == check else "conflict"
