"""Comparing the rollups with the archive: every row of every grain, at one moment of the database.

A partition's listed files and its outbox together hold every event that its rollups count, and one snapshot
shows both. So buckets that are still open are compared like closed ones, while the service runs.

A bucket is left out if some of its events may never have been archived. These are the buckets from before the
archive began, and from the time when the outbox was full. The report names the times that it left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
import pyarrow.compute as pc

from pipeline.archive import files, recount
from pipeline.archive.files import EPOCH, Damaged
from pipeline.archive.recount import Key, Partial, Row, Rows
from pipeline.archive.store import Store
from pipeline.core.watermark import DAY_US, HOUR_US
from pipeline.core.windows import ALL_GRAINS, ERRORS, MEASURES, Grain
from pipeline.sink import event_columns
from sql import queries

Connection = psycopg.Connection[Any]

_SUMMED: Final = tuple(grain for grain in ALL_GRAINS if not grain.counts_only)
_HOURLY: Final = tuple(grain for grain in _SUMMED if grain.length_us <= HOUR_US)
_DAILY: Final = tuple(grain for grain in _SUMMED if grain.length_us == DAY_US)
_FOREVER_US: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which buckets to compare: buckets wholly between two times whose rows are not past their retention.

    Times are UTC microseconds since 1970. ``org`` narrows the comparison to one org.
    """

    start_us: int
    end_us: int
    minutes_from_us: int = 0
    """Minute rows before this time may have expired; ``rollups_from_us`` says the same of all other rows."""
    rollups_from_us: int = 0
    org: UUID | None = None

    def start_of(self, grain: Grain) -> int:
        kept = self.minutes_from_us if grain.name == "usage_minute" else self.rollups_from_us
        return max(self.start_us, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One rollup row that differs from the archive."""

    grain: Grain
    partition: int
    key: Key
    stored: Row | None
    """None: the row is missing."""
    counted: Row | None
    """None: no archived event belongs to the row."""

    def __str__(self) -> str:
        org, at_us, model, *rest = self.key
        names = f"org {UUID(bytes=org)} model {UUID(bytes=model)}"
        parts = ("class", *(name.removesuffix("_id") for name in names_of(self.grain)))
        names += "".join(f" {what} {part!r}" for what, part in zip(parts, rest, strict=True))
        where = f"{self.grain.name} {time_of(at_us):%Y-%m-%dT%H:%MZ} {names} partition {self.partition}"
        if self.stored is None:
            return f"{where}: missing in the database"
        if self.counted is None:
            return f"{where}: no archived event accounts for it"
        figures = ("count",) if self.grain is ERRORS else (*MEASURES, "latency_sketch")
        wrong = [
            f"{name} {_shown(stored)} instead of {_shown(counted)}"
            for name, stored, counted in zip(figures, self.stored, self.counted, strict=True)
            if stored != counted
        ]
        return f"{where}: {', '.join(wrong)}"


def names_of(grain: Grain) -> tuple[str, ...]:
    """The columns of a grain's key after the rate class, in the order of `recount.Key`."""
    return ("client_id", "status", "error_code") if grain is ERRORS else grain.texts


def _unknown(connection: Connection, scope: Scope, partitions: Sequence[tuple[Any, ...]]) -> list[int]:
    """Partition numbers in rollup rows that no partition has: no event belongs to these rows."""
    wanted = {
        "known": [number for number, *_ in partitions],
        "start": time_of(scope.start_us // DAY_US * DAY_US),
        "end": time_of(scope.end_us),
    }
    found: set[int] = set()
    for grain in ALL_GRAINS:
        query = _ARCHIVE["unknown_partitions"].format(table=grain.name)
        found.update(number for (number,) in connection.execute(query, wanted))
    return sorted(found)


def _shown(figure: Any) -> str:
    return f"{len(figure)} bytes" if isinstance(figure, bytes) else str(figure)


@dataclass(slots=True)
class Report:
    """The result of a reconciliation."""

    compared: dict[str, int] = field(default_factory=dict)
    """The number of compared rows, by table."""
    events: int = 0
    differences: list[Difference] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Files that could not be read. No row of their hours and days was compared."""
    notes: list[str] = field(default_factory=list)
    """The parts of the range that were not compared, and why."""
    complete: bool = False
    """Does the archive have all events of any part of the range?"""


@dataclass(frozen=True, slots=True)
class Span:
    """The archive has all events of each bucket that begins after ``after_us`` and ends by ``until_us``.

    The outbox counts as archive. Example: with ``after_us`` at 10:07 and ``until_us`` at 13:30, the hours
    from 11:00 and from 12:00 are complete. The hour from 10:00 begins too early, and the hour from 13:00 ends
    too late.
    """

    after_us: int
    until_us: int


def reconcile(connection: Connection, store: Store, scope: Scope) -> Report:
    """Compare all rows in scope with the archive.

    The connection must be in a transaction with one snapshot (REPEATABLE READ).

    Raises:
        psycopg.Error, StoreError: the database or the store is away.
    """
    report = Report()
    for grain in ALL_GRAINS[:2]:
        if scope.start_us < scope.start_of(grain):
            what = "minutes" if grain.name == "usage_minute" else "hours and days"
            before = time_of(scope.start_of(grain))
            report.notes.append(
                f"not compared are {what} before {before:%FT%TZ}: their rows may have expired"
            )
    for partition in _Partition.all(connection, store, scope):
        partition.compare(report)
    return report


class _Partition:
    """One partition in the snapshot of a connection."""

    def __init__(
        self,
        connection: Connection,
        store: Store,
        scope: Scope,
        number: int,
        spans: Sequence[Span],
        floor_us: int,
    ) -> None:
        self._connection = connection
        self._store = store
        self._scope = scope
        self._number = number
        self._spans = spans
        self._floor_us = floor_us
        self._waiting = self._outbox()

    @classmethod
    def all(cls, connection: Connection, store: Store, scope: Scope) -> Iterator[_Partition]:
        partitions = connection.execute(_ARCHIVE["partitions"]).fetchall()
        partitions += [(number, 0, None) for number in _unknown(connection, scope, partitions)]
        pieces = connection.execute(_ARCHIVE["spans"]).fetchall()
        for number, accepted, floor_us in partitions:
            mine = [piece[1:] for piece in pieces if piece[0] == number]
            spans = spans_of(mine, accepted, floor_us)
            yield cls(connection, store, scope, number, spans, floor_us or 0)

    def compare(self, report: Report) -> None:
        scope = self._scope
        spans = [(span.after_us + 1, span.until_us) for span in self._spans]
        clipped = [(max(start, scope.start_us), min(end, scope.end_us)) for start, end in spans]
        covered = [(start, end) for start, end in clipped if start < end]
        report.complete |= bool(covered)
        report.notes.extend(self._notes(covered))
        for day in self._days():
            if any(start < (day + 1) * DAY_US and end > day * DAY_US for start, end in covered):
                self._compare_day(report, day)

    def _days(self) -> list[int]:
        """The days of the range (since 1970) for which the database or the archive has rows or events."""
        scope = self._scope
        start, end = time_of(scope.start_us // DAY_US * DAY_US), time_of(scope.end_us)
        wanted = {"partition": self._number, "start": start, "end": end}
        days = {hour // 24 for hour in self._waiting}
        for table in (*(grain.name for grain in ALL_GRAINS), "archive_files"):
            time = "hour" if table == "archive_files" else "bucket_start"
            query = _ARCHIVE["days"].format(table=table, time=time)
            days.update(day for (day,) in self._connection.execute(query, wanted))
        return sorted(d for d in days if scope.start_us < (d + 1) * DAY_US and scope.end_us > d * DAY_US)

    def _notes(self, covered: Sequence[tuple[int, int]]) -> Iterator[str]:
        at = self._scope.start_us
        for start, end in [*covered, (self._scope.end_us, self._scope.end_us)]:
            if start > at:
                yield (
                    f"partition {self._number}: not compared are buckets that reach into {time_of(at):%FT%TZ}"
                    f" to {time_of(start):%FT%TZ}: the archive does not have all of their events"
                )
            at = max(at, end)

    def _compare_day(self, report: Report, day: int) -> None:
        partials: list[Partial] = []
        whole = True
        for hour in range(day * 24, day * 24 + 24):
            at = hour * HOUR_US
            if at + HOUR_US <= self._scope.start_us or at >= self._scope.end_us:
                continue
            if at < self._floor_us:
                continue  # the hour's files may be gone, and no bucket with this hour is compared
            try:
                partial = self._partial(hour)
            except Damaged as error:
                report.damaged.append(str(error))
                whole = False
                continue
            mine = [] if partial is None else [partial]
            partials += mine
            report.events += sum(map(_events_in, mine))
            for grain in _HOURLY:
                self._compare_rows(report, grain, recount.rows_of(mine, grain), at, at + HOUR_US)
            self._compare_rows(report, ERRORS, recount.failures_of(mine, hour), at, at + HOUR_US)
        if whole:
            for grain in _DAILY:
                counted = recount.rows_of(partials, grain)
                self._compare_rows(report, grain, counted, day * DAY_US, (day + 1) * DAY_US)

    def _partial(self, hour: int) -> Partial | None:
        """The sums of an hour, over its files and the outbox; None without events. Raises `Damaged`."""
        start = time_of(hour * HOUR_US)
        listed = self._connection.execute(
            _ARCHIVE["files"], {"partition": self._number, "start": start, "end": start + timedelta(hours=1)}
        ).fetchall()
        partials = list(self._waiting.get(hour, ()))
        for path, _, row_count, sha256 in listed:
            events = files.read(self._store, path, row_count=row_count, sha256=sha256)
            partials.extend(recount.reduce(events, org=self._org).values())
        return recount.merge(partials) if partials else None

    def _outbox(self) -> dict[int, list[Partial]]:
        found: dict[int, list[Partial]] = {}
        with self._connection.cursor(binary=True) as cursor:
            for (events,) in cursor.stream(_ARCHIVE["outbox_events"], {"partition": self._number}):
                for hour, partial in recount.reduce(event_columns.decode(events), org=self._org).items():
                    found.setdefault(hour, []).append(partial)
                    if len(found[hour]) > 64:
                        found[hour] = [recount.merge(found[hour])]
        return found

    @property
    def _org(self) -> bytes | None:
        return None if self._scope.org is None else self._scope.org.bytes

    def _compare_rows(self, report: Report, grain: Grain, counted: Rows, start_us: int, end_us: int) -> None:
        start_us, end_us = max(start_us, self._scope.start_of(grain)), min(end_us, self._scope.end_us)
        if start_us >= end_us:
            return
        compared = {at for at in _buckets(grain, start_us, end_us) if self._has_all(at, at + grain.length_us)}
        if not compared:
            return
        stored = self._stored(grain, start_us, end_us)
        # No row of ours begins inside a bucket. A row that does is compared with its bucket, and found wrong.
        keys = {key for key in (*stored, *counted) if key[1] - key[1] % grain.length_us in compared}
        if keys:
            report.compared[grain.name] = report.compared.get(grain.name, 0) + len(keys)
        for key in sorted(keys):
            mine, true = stored.get(key), counted.get(key)
            if mine != true:
                report.differences.append(
                    Difference(grain=grain, partition=self._number, key=key, stored=mine, counted=true)
                )

    def _has_all(self, start_us: int, end_us: int) -> bool:
        return any(start_us > span.after_us and end_us <= span.until_us for span in self._spans)

    def _stored(self, grain: Grain, start_us: int, end_us: int) -> Rows:
        measures = ("count",) if grain is ERRORS else (*MEASURES, "latency_sketch")
        columns = (*names_of(grain), *measures)
        query = _ARCHIVE["rollup_rows"].format(table=grain.name, columns=", ".join(columns))
        wanted = {
            "start": time_of(start_us),
            "end": time_of(end_us),
            "partition": self._number,
            "org": self._scope.org,
        }
        split = 4 + len(columns) - len(measures)
        with self._connection.cursor(binary=True) as cursor:
            return {row[:split]: row[split:] for row in cursor.execute(query, wanted)}


def spans_of(pieces: Sequence[tuple[Any, ...]], accepted: int, floor_us: int | None = None) -> list[Span]:
    """Join pieces of the archive into spans without holes.

    A piece is (accepted from, accepted to, complete from, complete to), and the pieces come in order. Two
    pieces touch if the first ends with the number at which the second begins. Example: the pieces [0, 100),
    [100, 250) and [300, 400) become two spans. The 50 events from 250 on were left out of the archive. So the
    first span vouches for buckets up to its last "complete to", and the second span for buckets after its
    first "complete from". If the partition has accepted 400 events, nothing is missing at the end, and the
    second span has no end.

    ``accepted``: how many events the partition has accepted. ``floor_us``: the files of the hours before are
    past their retention, so no span begins earlier.
    """
    after_us = -1 if floor_us is None else floor_us - 1
    joined: list[list[Any]] = []
    for accepted_from, accepted_to, complete_from, complete_to in pieces:
        if joined and joined[-1][0] == accepted_from:
            joined[-1][0], joined[-1][2] = accepted_to, complete_to
        else:
            joined.append([accepted_to, complete_from, complete_to])
    if accepted == 0:
        return [Span(after_us, _FOREVER_US)]
    return [
        Span(
            after_us if complete_from is None else max(after_us, us_of(complete_from)),
            _FOREVER_US if accepted_to == accepted else us_of(complete_to),
        )
        for accepted_to, complete_from, complete_to in joined
    ]


def _buckets(grain: Grain, start_us: int, end_us: int) -> range:
    """The starts of the buckets that lie wholly between two times, in microseconds."""
    length = grain.length_us
    return range(-(-start_us // length) * length, end_us - length + 1, length)


def _events_in(partial: Partial) -> int:
    by_client = pc.equal(partial.cells.column("dimension"), "")
    return int(partial.cells.filter(by_client).column("invocations").to_numpy().sum())


def time_of(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def us_of(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


_ARCHIVE: Final = queries.load("archive")
