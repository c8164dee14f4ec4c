"""The table of dead letters: choosing, listing, counting and purging. Nothing here parses an event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from pipeline.common.actor import actor
from pipeline.common.connect import Session, connect
from pipeline.dead_letters.life import State
from sql import queries

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The filters that choose letters: a letter is chosen if every given filter lets it through."""

    stream: str | None = None
    partition: int | None = None
    reason: str | None = None
    offset: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    """When the letters were rejected: [start, end)."""

    @property
    def everything(self) -> bool:
        return all(value is None for value in asdict(self).values())

    def named(self) -> dict[str, Any]:
        """The given filters by name, for people and for the audit log."""
        return {name: str(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDeadLetter:
    """One dead letter, and the outcome of its last replay."""

    stream: str
    partition: int
    offset: int
    position: int
    reason: str
    faults: list[dict[str, str]]
    body: bytes | None
    """The original bytes; None when a flood left only the offset."""
    rejected_at: datetime
    records: int = 1
    """More than 1 for a batch that could not be unpacked: the records that it claims, from ``offset`` on."""
    body_bytes: int | None = None
    body_sha256: bytes | None = None
    """Length and digest of the whole body, if only its beginning was kept."""
    broker_time: datetime
    """The broker time of the letter's chunk. If that was not kept: of the last chunk of its flush."""
    requested_at: datetime | None
    """When a replay was last asked for."""
    settled_at: datetime | None
    outcome: str | None
    """The outcome of the last replay: one of `pipeline.core.replay.OUTCOMES`."""

    @property
    def state(self) -> State:
        """The state of the letter; see `pipeline.dead_letters.life`."""
        return State.of(requested_at=self.requested_at, settled_at=self.settled_at, outcome=self.outcome)

    @property
    def offsets(self) -> str:
        """The offset of the letter, or its offsets, for people."""
        if self.records == 1:
            return f"offset {self.offset}"
        return f"offsets {self.offset} to {self.offset + self.records - 1} ({self.records} records)"


def newest(database_url: str, chosen: Chosen, *, limit: int = 20) -> Iterator[StoredDeadLetter]:
    """The chosen letters, newest first. Raises `psycopg.Error`."""
    with connected(database_url) as connection:
        yield from _records(connection, "newest", {**asdict(chosen), "limit": limit})


def uncounted(connection: Connection, chosen: Chosen) -> Iterator[StoredDeadLetter]:
    """The chosen letters that may be replayed, in the order of their streams. Raises `psycopg.Error`."""
    yield from _records(connection, "uncounted", asdict(chosen))


def count_waiting(connection: Connection, chosen: Chosen) -> int:
    """The number of chosen letters that already wait for a replay. Raises `psycopg.Error`."""
    return _count(connection, "waiting", asdict(chosen))


def count_by_reason(database_url: str, chosen: Chosen) -> dict[str, int]:
    """The number of rejected records, by reason. Raises `psycopg.Error`."""
    with connected(database_url) as connection:
        return dict(connection.execute(_query("count_by_reason"), asdict(chosen)).fetchall())


def count_to_purge(database_url: str, chosen: Chosen, *, replayed: bool) -> int:
    """The number of letters that `purge` would delete. Raises `psycopg.Error`."""
    with connected(database_url) as connection:
        return _count(connection, "count_to_purge", {**asdict(chosen), "replayed": replayed})


def purge(database_url: str, chosen: Chosen, *, replayed: bool) -> int:
    """Delete the chosen letters, and say so in the audit log; the number of deleted letters.

    ``replayed`` deletes only the letters that a replay has counted. Letters that wait for a replay always
    stay. The ids of the events that replays have counted stay too.

    Raises:
        psycopg.Error: nothing was deleted.
    """
    with connected(database_url) as connection:
        deleted = connection.execute(_query("purge"), {**asdict(chosen), "replayed": replayed}).rowcount
        if deleted:
            detail = {**chosen.named(), "replayed": replayed, "letters": deleted}
            audit(connection, "dead_letters.purge", detail)
    return deleted


def audit(connection: Connection, action: str, detail: Mapping[str, Any], *, org: UUID | None = None) -> None:
    """Record who did an action on dead letters. Raises `psycopg.Error`."""
    row = {"actor": actor(), "action": action, "org": org, "detail": Jsonb(dict(detail))}
    connection.execute(_DEAD_LETTERS["audit"], row)


def connected(database_url: str) -> Connection:
    """A connection whose statements are one transaction. Raises `psycopg.Error`."""
    return connect(database_url, Session(application_name="spendstream-dead-letters"))


def _records(connection: Connection, name: str, values: Mapping[str, Any]) -> Iterator[StoredDeadLetter]:
    names = StoredDeadLetter.__slots__
    with connection.cursor(name="letters") as cursor:
        cursor.execute(_query(name), values)
        for row in cursor:
            yield StoredDeadLetter(**dict(zip(names, row, strict=True)))


def _count(connection: Connection, name: str, values: Mapping[str, Any]) -> int:
    row = connection.execute(_query(name), values).fetchone()
    assert row is not None
    return int(row[0])


def _query(name: str) -> str:
    blocks = {part: _DEAD_LETTERS[part] for part in ("chosen", "columns", "purged")}
    return _DEAD_LETTERS[name].format(**blocks)


_DEAD_LETTERS: Final = queries.load("dead_letters")
