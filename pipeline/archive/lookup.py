"""Looking events up in the archive by their ids, at one moment of the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.archive import files
from pipeline.archive.files import EPOCH, Damaged
from pipeline.archive.reconcile import Connection, Span, spans_of, time_of
from pipeline.archive.store import Store
from pipeline.core.events import DETAILS
from pipeline.core.watermark import HOUR_US
from pipeline.core.wire import Event
from pipeline.sink import event_columns
from sql import queries

Key = tuple[UUID, UUID]
"""Org and event id."""
Wanted = Mapping[int, Set[UUID]]
"""The event ids to look for, by hour of event time (hours since 1970)."""


class Lookup:
    """The archive's files and its outbox, as the snapshot of one connection shows them (REPEATABLE READ)."""

    def __init__(self, connection: Connection, store: Store) -> None:
        """Raises `psycopg.Error`."""
        self._connection = connection
        self._store = store
        partitions = connection.execute(_ARCHIVE["partitions"]).fetchall()
        pieces = connection.execute(_ARCHIVE["spans"]).fetchall()
        self._spans: dict[int, list[Span]] = {
            number: spans_of([piece[1:] for piece in pieces if piece[0] == number], accepted, floor_us)
            for number, accepted, floor_us in partitions
        }

    def has_all(self, partition: int, hour: int) -> bool:
        """Has every event that the partition counted in an hour been archived?"""
        start_us, end_us = hour * HOUR_US, (hour + 1) * HOUR_US
        spans = self._spans.get(partition, [])
        return any(start_us > span.after_us and end_us <= span.until_us for span in spans)

    def find(self, partition: int, wanted: Wanted) -> tuple[dict[Key, list[Event]], dict[int, str]]:
        """The archived events with the wanted ids, and the damage of each hour that has a damaged file.

        Raises:
            StoreError, psycopg.Error: the archive or the database is away.
        """
        found: dict[Key, list[Event]] = {}
        damaged: dict[int, str] = {}
        for hour, ids in wanted.items():
            hour_of = {"start": time_of(hour * HOUR_US), "end": time_of((hour + 1) * HOUR_US)}
            listed = self._connection.execute(_ARCHIVE["files"], {"partition": partition, **hour_of})
            for path, _, row_count, sha256 in listed.fetchall():
                try:
                    table = files.read(self._store, path, row_count=row_count, sha256=sha256)
                except Damaged as error:
                    damaged[hour] = str(error)
                    break
                for key, event in _among(table, ids):
                    found.setdefault(key, []).append(event)
        every = set().union(*wanted.values())
        with self._connection.cursor(binary=True) as cursor:
            for (events,) in cursor.stream(_ARCHIVE["outbox_events"], {"partition": partition}):
                for key, event in _among(event_columns.decode(events), every):
                    if event.event_id in wanted.get(event.occurred_us // HOUR_US, ()):
                        found.setdefault(key, []).append(event)
        return found, damaged


def _among(table: pa.Table, ids: Set[UUID]) -> Iterable[tuple[Key, Event]]:
    """The events of a table whose ids are among ``ids``."""
    chunks = [chunk.storage for chunk in table.column("event_id").chunks]
    stored = pa.chunked_array(chunks, pa.binary(16))
    mask = pc.is_in(stored, value_set=pa.array([id.bytes for id in ids], pa.binary(16)))
    for row in table.filter(mask).to_pylist():
        yield (row["org_id"], row["event_id"]), _event(row)


def _event(row: Mapping[str, Any]) -> Event:
    names = ("event_id", "org_id", "model_id", "client_id", "latency_ms", "status", "error_code")
    figures = ("input_tokens", "output_tokens", "cost_microcents", *DETAILS[:-1], "service_tier")
    occurred_us = (row["occurred_at"] - EPOCH) // timedelta(microseconds=1)
    return Event(occurred_us=occurred_us, **{name: row[name] for name in (*names, *figures)})


_ARCHIVE: Final = queries.load("archive")
