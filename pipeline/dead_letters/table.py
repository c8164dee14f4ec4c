"""The table of dead letters: choosing, listing, counting and purging. It knows no event from its bytes."""

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
from sql import queries

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which letters are meant: those that every given filter lets through."""

    stream: str | None = None
    partition: int | None = None
    reason: str | None = None
    offset: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    """When they were refused: [start, end)."""

    @property
    def everything(self) -> bool:
        return all(value is None for value in asdict(self).values())

    def named(self) -> dict[str, Any]:
        """The filters that are given, for people and for the audit log."""
        return {name: str(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRecord:
    """One dead letter, and what has become of it."""

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
    """More than one where a batch could not be undone: it claims so many from ``offset`` on."""
    body_bytes: int | None = None
    body_sha256: bytes | None = None
    """Length and digest of a body of which only the beginning was kept."""
    broker_time: datetime
    """The broker's time of its chunk, or of the last one of its flush, where that was not kept."""
    requested_at: datetime | None
    """When a replay was last asked for."""
    settled_at: datetime | None
    outcome: str | None
    """What became of that replay: one of `pipeline.core.replay.OUTCOMES`."""

    @property
    def counted(self) -> bool:
        """Has a replay taken it out of the refused?"""
        return self.outcome in ("accepted", "duplicate")

    @property
    def waiting(self) -> bool:
        return self.requested_at is not None and self.settled_at is None

    @property
    def offsets(self) -> str:
        """Where it is, for people."""
        if self.records == 1:
            return f"offset {self.offset}"
        return f"offsets {self.offset} to {self.offset + self.records - 1} ({self.records} records)"


def newest(database_url: str, chosen: Chosen, *, limit: int = 20) -> Iterator[RefusedRecord]:
    """Letters, newest first. Raises `psycopg.Error`."""
    with connected(database_url) as connection:
        yield from _records(connection, "newest", {**asdict(chosen), "limit": limit})


def uncounted(connection: Connection, chosen: Chosen) -> Iterator[RefusedRecord]:
    """Letters that may be replayed, in the order of their streams. Raises `psycopg.Error`."""
    yield from _records(connection, "uncounted", asdict(chosen))


def count_waiting(connection: Connection, chosen: Chosen) -> int:
    """How many of the letters wait to be replayed already. Raises `psycopg.Error`."""
    return _count(connection, "waiting", asdict(chosen))


def count_by_reason(database_url: str, chosen: Chosen) -> dict[str, int]:
    """How many records were refused for each reason. Raises `psycopg.Error`."""
    with connected(database_url) as connection:
        return dict(connection.execute(_query("count_by_reason"), asdict(chosen)).fetchall())


def count_to_purge(database_url: str, chosen: Chosen, *, replayed: bool) -> int:
    """How many letters `purge` would delete. Raises `psycopg.Error`."""
    with connected(database_url) as connection:
        return _count(connection, "count_to_purge", {**asdict(chosen), "replayed": replayed})


def purge(database_url: str, chosen: Chosen, *, replayed: bool) -> int:
    """Delete letters, and say so in the audit log; how many that were.

    ``replayed``: only those that a replay has settled. Those that wait for a replay stay in any case, and so
    do the ids of the events that replays have counted.

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
    """Record who does something to dead letters. Raises `psycopg.Error`."""
    row = {"actor": actor(), "action": action, "org": org, "detail": Jsonb(dict(detail))}
    connection.execute(_DEAD_LETTERS["audit"], row)


def connected(database_url: str) -> Connection:
    """A connection; what it does is one transaction. Raises `psycopg.Error`."""
    return connect(database_url, Session(application_name="spendstream-dead-letters"))


def _records(connection: Connection, name: str, values: Mapping[str, Any]) -> Iterator[RefusedRecord]:
    names = RefusedRecord.__slots__
    with connection.cursor(name="letters") as cursor:
        cursor.execute(_query(name), values)
        for row in cursor:
            yield RefusedRecord(**dict(zip(names, row, strict=True)))


def _count(connection: Connection, name: str, values: Mapping[str, Any]) -> int:
    row = connection.execute(_query(name), values).fetchone()
    assert row is not None
    return int(row[0])


def _query(name: str) -> str:
    blocks = {part: _DEAD_LETTERS[part] for part in ("chosen", "columns", "purged")}
    return _DEAD_LETTERS[name].format(**blocks)


_DEAD_LETTERS: Final = queries.load("dead_letters")
