"""What a dead letter is worth today: may it be replayed, on which evidence, and if not, why.

It judges what needs no memory of the partition (the wire contract, time, the archive); whether an event was
counted within the window, only the worker that owns the partition knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from pipeline.archive.lookup import Key, Lookup
from pipeline.archive.reconcile import us_of
from pipeline.core import wire
from pipeline.core.ledger import FUTURE_US
from pipeline.core.watermark import HOUR_US
from pipeline.core.wire import Event, Invalid
from pipeline.dead_letters.stream import Found
from pipeline.dead_letters.table import RefusedRecord

REPLAY: Final = "replay"
"""The verdict on a letter that a worker may take in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A letter and the verdict on it."""

    record: RefusedRecord
    body: bytes | None
    broker_us: int
    """The broker's time of its chunk."""
    event: Event | None = None
    verdict: str
    """`REPLAY`, or why not: malformed, invalid, future, gone, expired, conflict or unknown."""
    why: str = ""
    """What the verdict rests on, for people."""
    evidence: str = "none"
    """With `REPLAY`: one of `pipeline.core.replay.EVIDENCE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What letters are held to."""

    rollups_from_us: int
    """Buckets that end before are not kept."""
    ids_from: Mapping[int, int]
    """Of each partition, the first hour of which the database has all ids."""
    lookup: Lookup | None
    """None: there is no archive."""
    accept: bool = False
    """Replay also what nothing can tell."""


def examine(records: Sequence[RefusedRecord], read_back: Found, terms: Terms) -> list[Examined]:
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


def _alone(record: RefusedRecord, read_back: Found, terms: Terms) -> Examined:
    body, broker_us = record.body, us_of(record.broker_time)
    if body is None:
        body, broker_us = read_back.get((record.stream, record.offset), (None, broker_us))
    evidence = "accept" if terms.accept else "none"
    letter = Examined(record=record, body=body, broker_us=broker_us, verdict=REPLAY, evidence=evidence)
    if body is None:
        return replace(
            letter, verdict="gone", why="its bytes were left out in a flood and cannot be read back"
        )
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
    """Does the database still have all ids of the event's hour?"""
    assert letter.event is not None
    return letter.event.occurred_us // HOUR_US >= terms.ids_from.get(letter.record.partition, 0)


def _by_archive(letters: Sequence[Examined], partition: int, terms: Terms) -> list[Examined]:
    """The verdicts on letters of one partition whose hours have lost their ids."""
    missing = {_hour(letter): _why_not(partition, _hour(letter), terms.lookup) for letter in letters}
    wanted: dict[int, set[UUID]] = {}
    for letter in letters:
        if missing[_hour(letter)] is None and letter.event is not None:
            wanted.setdefault(_hour(letter), set()).add(letter.event.event_id)
    archived: dict[Key, Event] = {}
    if wanted and terms.lookup is not None:
        archived, damaged = terms.lookup.find(partition, wanted)
        missing.update((hour, f"the archive cannot tell: {damage}") for hour, damage in damaged.items())
    return [_told(letter, missing[_hour(letter)], archived, accept=terms.accept) for letter in letters]


def _why_not(partition: int, hour: int, lookup: Lookup | None) -> str | None:
    """Why the archive cannot tell about an hour; None: it can."""
    if lookup is None:
        return "the ids of its hour are gone, and there is no archive to ask (ARCHIVE_URL)"
    if not lookup.has_all(partition, hour):
        return "the ids of its hour are gone, and the archive does not have all events of that hour"
    return None


def _told(letter: Examined, missing: str | None, archived: Mapping[Key, Event], *, accept: bool) -> Examined:
    event = letter.event
    assert event is not None
    if missing is not None:
        if accept:
            return replace(letter, why=missing)
        return replace(letter, verdict="unknown", why=f"{missing}: --accept counts it all the same")
    counted = archived.get((event.org_id, event.event_id))
    if counted is None:
        return replace(letter, evidence="absent", why="the archive has all of its hour, and not this event")
    if counted == event:
        return replace(letter, evidence="counted", why="the archive has it: it was counted")
    return replace(letter, verdict="conflict", why="the archive has this id with another payload")


def _hour(letter: Examined) -> int:
    assert letter.event is not None
    return letter.event.occurred_us // HOUR_US
