"""The verdict on a dead letter today: may it be replayed, on which evidence, and if not, why.

The verdict rests on the wire contract, on time and on the archive. One question stays open here, because only
the worker that owns the partition can answer it: was the event counted within the dedupe window?

Example: a letter has the broker time 12:00 on the 10th, and the dedupe window is 24 hours. If the event was
counted, its id lies in the event's own hour, or in an hour from 11:00 on the 9th to 12:00 on the 10th
(`pipeline.core.replay.Hours`). If the database still has all ids of these hours, the worker can
tell. Otherwise the archive must tell: either it has the event, or it has all events of the hours whose ids
are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from pipeline.archive.lookup import Key, Lookup
from pipeline.archive.reconcile import us_of
from pipeline.core import wire
from pipeline.core.replay import Hours
from pipeline.core.rules import FUTURE_US
from pipeline.core.watermark import HOUR_US
from pipeline.core.wire import Event, Invalid
from pipeline.dead_letters.stream import Found
from pipeline.dead_letters.table import StoredDeadLetter

REPLAY: Final = "replay"
"""The verdict on a letter that a worker may take in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A dead letter and the verdict on it."""

    record: StoredDeadLetter
    body: bytes | None
    broker_us: int
    """The broker time of the letter's chunk, in UTC microseconds."""
    event: Event | None = None
    verdict: str
    """`REPLAY`, or the obstacle: malformed, invalid, future, gone, expired, conflict or unknown."""
    why: str = ""
    """The ground of the verdict, for people."""
    evidence: str = "none"
    """With `REPLAY`: one of `pipeline.core.replay.EVIDENCE`."""
    absent_to_hour: int = 0
    """With the evidence ``absent``: the archive was complete for all hours before this hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The facts by which letters are judged, as they are now."""

    rollups_from_us: int
    """Events before this time (UTC microseconds) have no rollup rows any more."""
    ids_from: Mapping[int, int]
    """By partition, the hour from which on the database has all ids."""
    window_us: int
    """The dedupe window in microseconds."""
    live: Mapping[int, range]
    """By partition, the hours whose ids its worker has in memory."""
    lookup: Lookup | None
    """None: there is no archive."""
    accept: bool = False
    """Replay a letter even if nothing can tell whether its event was counted."""


def examine(records: Sequence[StoredDeadLetter], read_back: Found, terms: Terms) -> list[Examined]:
    """The verdict on each letter.

    Raises:
        StoreError, psycopg.Error: the archive or the database is away.
    """
    found = [_alone(record, read_back, terms) for record in records]
    untold: dict[int, list[int]] = {}
    for i, letter in enumerate(found):
        if letter.event is not None and letter.verdict == REPLAY and not _ids_are_kept(letter, terms):
            untold.setdefault(letter.record.partition, []).append(i)
    for partition, places in untold.items():
        for i, verdict in zip(places, _by_archive([found[i] for i in places], partition, terms), strict=True):
            found[i] = verdict
    return found


def _alone(record: StoredDeadLetter, read_back: Found, terms: Terms) -> Examined:
    body, broker_us = record.body, us_of(record.broker_time)
    if body is None:
        body, broker_us = read_back.get((record.stream, record.offset), (None, broker_us))
    evidence = "accept" if terms.accept else "none"
    letter = Examined(record=record, body=body, broker_us=broker_us, verdict=REPLAY, evidence=evidence)
    if body is None:
        return replace(
            letter, verdict="gone", why="its bytes were left out in a flood and cannot be read back"
        )
    if record.records > 1:
        faults = "; ".join(fault["message"] for fault in record.faults)
        return replace(letter, verdict="malformed", why=faults)
    event = wire.read(body)
    if isinstance(event, Invalid):
        faults = "; ".join(f"{f.field}: {f.message}" if f.field else f.message for f in event.faults)
        return replace(letter, verdict=event.reason, why=faults)
    letter = replace(letter, event=event)
    if event.occurred_us > broker_us + FUTURE_US:
        return replace(letter, verdict="future", why="more than 5 minutes after the broker received it")
    if event.occurred_us < terms.rollups_from_us:
        return replace(letter, verdict="expired", why="rows of its time are kept no more (RETENTION_ROLLUP)")
    return letter


def _ids_are_kept(letter: Examined, terms: Terms) -> bool:
    """Has the database still all ids of every hour that could hold the event's id?"""
    return not _lost_hours(letter, terms)


def _lost_hours(letter: Examined, terms: Terms) -> list[int]:
    """The hours that could hold the event's id and whose ids the database has dropped."""
    assert letter.event is not None
    hours = Hours.of(
        letter.event.occurred_us, letter.broker_us, window_us=terms.window_us, future_us=FUTURE_US
    )
    return hours.between(0, terms.ids_from.get(letter.record.partition, 0))


def _by_archive(letters: Sequence[Examined], partition: int, terms: Terms) -> list[Examined]:
    """The verdicts on letters of one partition for which the database has dropped ids of some hours."""
    lost = [_lost_hours(letter, terms) for letter in letters]
    missing = {hour: _why_not(partition, hour, terms.lookup) for hour in set().union(*lost)}
    wanted: dict[int, set[UUID]] = {}
    for letter, hours in zip(letters, lost, strict=True):
        assert letter.event is not None
        for hour in hours:
            if missing[hour] is None:
                wanted.setdefault(hour, set()).add(letter.event.event_id)
    archived: dict[Key, list[Event]] = {}
    if wanted and terms.lookup is not None:
        archived, damaged = terms.lookup.find(partition, wanted)
        missing.update((hour, f"the archive cannot tell: {damage}") for hour, damage in damaged.items())
    verdicts = []
    for letter, hours in zip(letters, lost, strict=True):
        assert letter.event is not None
        same_id = archived.get((letter.event.org_id, letter.event.event_id), [])
        counted = [event for event in same_id if event.occurred_us // HOUR_US in hours]
        gap = next((why for hour in hours if (why := missing[hour]) is not None), None)
        verdicts.append(_told(letter, gap, counted, terms))
    return verdicts


def _why_not(partition: int, hour: int, lookup: Lookup | None) -> str | None:
    """Why the archive cannot answer for an hour; None: it can."""
    if lookup is None:
        return f"{_GONE}, and there is no archive to ask (ARCHIVE_URL)"
    if not lookup.has_all(partition, hour):
        return f"{_GONE}, and the archive does not have all events of that hour"
    return None


def _told(letter: Examined, missing: str | None, counted: Sequence[Event], terms: Terms) -> Examined:
    """The verdict on a letter, from the archived events with its id.

    ``missing`` is why the archive cannot answer for one of the hours; None: it can answer for all.
    """
    assert letter.event is not None
    if any(map(letter.event.is_copy_of, counted)):
        return replace(letter, evidence="counted", why="the archive has it: it was counted")
    if counted:
        return replace(letter, verdict="conflict", why="the archive has this id with another payload")
    if missing is not None:
        if terms.accept:
            return replace(letter, why=missing)
        return replace(letter, verdict="unknown", why=f"{missing}: --accept counts it all the same")
    if terms.accept:
        return letter
    return replace(
        letter,
        evidence="absent",
        absent_to_hour=terms.ids_from.get(letter.record.partition, 0),
        why="the archive has all events of the hours that could hold its id, and not this event",
    )


_GONE: Final = "the ids of an hour that could hold its id are gone"
