"""The books of one partition: chunks in, one batch for the database out.

The `Ledger` is everything between the transport and the transaction, without either: it reads bodies,
judges time, deduplicates, adds to the windows and says what a flush must write. Its state is always
"exactly the events below `next_offset`"; a `Batch` moves the database from the last committed state to that
one, whole. It never sees a connection, a clock or a task; the caller brings ``now``.

The cycle (`pipeline.worker.agents` drives it)::

    ingest(chunk) ...            as chunks come
    open(letters) -> replay(..)  dead letters that an operator wants counted: `pipeline.core.replay`
    missing() -> adopt(rows)     before a drain: late events may touch rows that are not in memory
    drain(now) -> Batch          freeze what is dirty
    (commit the batch, retrying the very same one until its outcome is known)

A ledger whose batch is lost, or fenced, is thrown away: recovery builds a new one from the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import dedupe, kernels, replay, room, watermark
from pipeline.core.accepted import AcceptedEvents, AcceptedLog
from pipeline.core.bodies import KEPT_BYTES_MAX, Bodies, Kept, Unreadable, offsets_of
from pipeline.core.cells import (
    CLIENT,
    CODE,
    FIRST_US,
    LAST_US,
    LATE,
    MINUTE,
    MODEL,
    ORG,
    Cells,
    Gathering,
    buckets,
)
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Columns, Names, Reader
from pipeline.core.replay import CountedIds, Letter, Opened, Settled
from pipeline.core.room import SUMS, Room
from pipeline.core.rules import FUTURE_US, REASONS, Rules
from pipeline.core.watermark import DAY_US, HOUR_US, NEVER
from pipeline.core.windows import ERRORS, GRAINS, MEASURES, Grain, NameCap, Spans, Table, TableRows
from pipeline.core.wire import Fault

IntArray = npt.NDArray[Any]

FOLD_EVENTS: Final = 8192
"""Buffered events that are folded at once: large enough for columns to pay, small enough for the loop."""

ERROR_CODES_PER_ORG_HOUR_MAX: Final = 100
FOLD_BYTES: Final = 16 * 2**20
"""Buffered bytes that are folded at once, however few events they are: once folded, a body is gone."""

LETTER_BYTES: Final = 512
"""About what a dead letter takes in memory beside its body."""

LOADED_BLOCKS_MAX: Final = 20_000
NAMES_MAX: Final = 200_000
"""More orgs, models, clients or error codes are looked through after a batch for those that no row has."""

_NO_HOUR: Final = np.iinfo(np.int64).min

IDS_KEPT_US: Final = DAY_US
"""How much longer than for the dedupe window the database keeps ids (`pipeline.worker.maintenance`)."""

REPLAY_SEGMENTS: Final = 2**62
"""Where the numbers of id segments begin that came with no offset: no stream gets that far."""

_CELL_ROWS: Final = len(GRAINS) + 3
"""Rows that one cell of events can make: one in each table, and one each of orgs, models and clients seen."""

_DAY: Final = next(grain for grain in GRAINS if grain.name == "usage_day")
_CONFLICT: Final = Fault("eventId", "was counted before with another payload")


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a partition stands: the part of its state that is one row of ``partitions``."""

    next_offset: int = 0
    newest_us: int = NEVER
    """Newest accepted event time, no later than its chunk's broker time; `watermark.NEVER` at first."""
    broker_us: int = 0
    """Broker timestamp of the last chunk."""
    newest_broker_us: int = 0
    """Newest broker timestamp of any chunk so far: the broker's clock may have gone back since."""
    ids_from_hour: int = 0
    """Ids of earlier hours may have been dropped, under another window. Maintenance writes it, no flush."""
    watermark_us: int | None = None
    offered: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    replays: int = 0
    """Replays of dead letters that were settled, one way or another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One refused record, with all that is needed to look at it and to replay it; or a whole batch."""

    offset: int
    position: int
    broker_us: int
    """The broker's time of its chunk."""
    reason: str
    faults: tuple[Fault, ...]
    body: bytes | None
    """The original bytes, or the first `KEPT_BYTES_MAX`; None in a flood, when only the offset is kept."""
    body_bytes: int | None = None
    body_sha256: bytes | None = None
    """Of a body that was cut: length and digest of the whole."""
    records: int = 1
    """How many from ``offset`` on: more than one where a batch cannot be undone; ``body`` is the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """All rows of one org and one bucket of a table, by their real names."""

    grain: Grain
    org: tuple[int, int]
    """(high, low) 64 bits of the org id."""
    bucket: int
    """Bucket start divided by the bucket's length."""


@dataclass(slots=True, kw_only=True)
class StoredRows:
    """Rows with real ids instead of numbers: what the sink writes and reads. Arrays of one length n."""

    grain: Grain
    org: IntArray
    model: IntArray
    """uint64[n, 2] each, (high, low)."""
    bucket: IntArray
    """int64[n]: bucket start divided by the bucket's length."""
    measures: IntArray
    """int64[n, 11] (`windows.MEASURES`), or int64[n, 1] for counts."""
    sketches: Sequence[bytes] = ()
    client: Sequence[str] = ()
    status: IntArray | None = None
    error_code: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fold:
    """Valid events of some chunks on their way into the books, and their records by `Columns.source`."""

    columns: Columns
    offsets: IntArray
    broker_us: IntArray
    floor_us: IntArray
    bodies: Bodies


@dataclass(slots=True, kw_only=True)
class SeenRows:
    """First and last event times of orgs, of models or of clients: arrays of one length."""

    org: IntArray
    span_us: IntArray
    """int64[n, 2]: first, last."""
    model: IntArray | None = None
    client: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.org)


@dataclass(slots=True, kw_only=True)
class Batch:
    """Everything that one transaction writes, and what it must find (``from_offset``, ``from_replays``)."""

    from_offset: int
    from_replays: int
    position: Position
    caught_up: bool
    tables: list[StoredRows]
    orgs: SeenRows
    models: SeenRows
    clients: SeenRows
    id_segments: Mapping[int, bytes]
    """Hour number to the ids accepted in it since the last batch."""
    dead_letters: list[DeadLetter]
    accepted: AcceptedEvents | None = None
    """For the archive; None without one, or without events."""
    settled: Sequence[Settled] = ()
    """What became of replayed dead letters."""
    replayed_from_us: int | None = None
    """Time of the oldest event that a replay has counted in this batch."""

    @property
    def row_count(self) -> int:
        return sum(map(len, self.tables))

    @property
    def segment(self) -> int:
        """Tells the ids of this batch from those of all others of the partition."""
        moved = self.position.next_offset > self.from_offset
        return self.position.next_offset if moved else REPLAY_SEGMENTS + self.position.replays


@dataclass(slots=True)
class Tally:
    """Counts since the start of this process, for the metrics."""

    accepted: int = 0
    duplicate: int = 0
    late: int = 0
    capped_clients: int = 0
    capped_models: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    replayed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(replay.OUTCOMES, 0))

    def copy(self) -> Tally:
        return replace(self, rejected=dict(self.rejected), replayed=dict(self.replayed))


def stored_hours_from(newest_broker_us: int, window_us: int, ids_from_hour: int) -> int:
    """The first hour of which the database has all ids; see `Position` for the arguments."""
    return max(-((window_us + IDS_KEPT_US - newest_broker_us) // HOUR_US), ids_from_hour)


class Ledger:
    """The state of one partition: exactly the accepted events below ``next_offset``. Not thread-safe.

    The dedupe window has one *floor*: the newest broker time of any chunk so far, less the window. Ids of
    hours before the floor are forgotten, in memory and in the database, and an event before the floor is
    ``too_late``. The floor depends on the stream alone and never goes back, whatever the broker's clock does.
    For example, the window is 24 h and one chunk at 12:00 says 16:00: from then on, an event from before
    16:00 of the day before is ``too_late``, until the clock has passed 16:00 and the window moves again. A
    clock that jumps days ahead for one chunk makes all events ``too_late`` for so many days: to let the
    floor go back would count events twice, and a dead letter can still be counted. ``future`` is judged by
    the time of an event's own chunk, because a clock that was ahead once says nothing about later chunks.
    """

    def __init__(
        self,
        rules: Rules,
        position: Position | None = None,
        *,
        keep_accepted: bool = False,
        new_log: dedupe.NewLog | None = None,
        decoding: AbstractContextManager[object] | None = None,
    ) -> None:
        """``keep_accepted``: batches bring the accepted events, for the archive.

        ``new_log``: where the ids of the window are kept, if not in memory; see `pipeline.core.dedupe`.
        ``decoding`` is entered again and again, each time that bodies are read: a timer's place, since there
        is no clock here.
        """
        self._rules = rules
        self.position = position or Position()
        self._accepted_log: AcceptedLog | None = None
        if keep_accepted:
            self._accepted_log = AcceptedLog(
                accepted=self.position.accepted, newest_broker_us=self.position.newest_broker_us
            )
        self.tally = Tally()
        self._committed_from = self.position.next_offset
        self._committed_replays = self.position.replays
        self._drained_offered = self.position.offered
        self._buffered: list[tuple[int, int, Sequence[bytes], Sequence[Unreadable]]] = []
        self._buffered_events = self._buffered_bytes = 0
        self._received_offset = self.position.next_offset
        self._received_us = self.position.broker_us
        self._reader = Reader()
        self._decoding = decoding or nullcontext()
        self._seen_ids = SeenIds(new_log=new_log, ids_max=rules.dedupe_ids_max)
        self._tables = [Table(grain, key_width=4 if grain.by_client else 3) for grain in GRAINS]
        self._errors = Table(ERRORS, key_width=6, counts_only=True)
        self._model_cap = NameCap(rules.models_per_org_hour_max)
        self._client_cap = NameCap(rules.clients_per_org_hour_max)
        self._code_cap = NameCap(ERROR_CODES_PER_ORG_HOUR_MAX)
        self._gathering = Gathering()
        self._cold: list[Cells] = []
        self._orgs, self._models, self._clients = Spans(1), Spans(2), Spans(2)
        self._new_ids: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
        self._dead_letters: list[DeadLetter] = []
        self._bodies_kept = self._body_bytes_kept = 0
        self._settled: list[Settled] = []
        self._org_hours: IntArray = np.empty(0, np.int64)
        """By the org's number, the last hour of which an id of the org may be remembered."""
        self._sweep_at = dict.fromkeys(("orgs", "models", "clients", "error_codes"), NAMES_MAX)
        self._replayed_from_us: int | None = None
        self._room = Room(rules.sum_max)
        self._waiting: _Fold | None = None
        self._waiting_for: set[tuple[int, int]] = set()
        self._set_horizons()

    # --- recovery ------------------------------------------------------------------------------------

    def resident_from(self) -> list[tuple[Grain, int]]:
        """First resident bucket of every table: what recovery must `recover`."""
        return [(table.grain, table.horizon) for table in (*self._tables, self._errors)]

    def expect_ids(self, count: int) -> None:
        """Make room for about ``count`` ids that will be recovered."""
        self._seen_ids.reserve(count)

    def recover_ids(self, hour: int, segment: bytes) -> None:
        """Remember the ids of a stored segment. The segments must come in ascending order of the hour."""
        orgs, counts, ids, checks = dedupe.decode_segment(segment)
        org = np.repeat(self._reader.orgs.number(orgs), counts)
        hours = np.full(len(ids), hour, np.int32)
        self._note_ids(org, hours)
        # An id that lapsed and was accepted anew has two entries: the later hour takes over the earlier.
        self._seen_ids.add(ids, org, hours, checks, hours, self.live_hours_from())

    @property
    def high_sum_least(self) -> int:
        """See `recover_high_days`."""
        return self._room.stored_most

    def recover_high_days(self, days: Sequence[Block]) -> None:
        """The days from `high_days_from` on of which a sum is `high_sum_least` or more."""
        orgs = self._reader.orgs.number(np.array([block.org for block in days], np.uint64).reshape(-1, 2))
        day = np.array([block.bucket for block in days], np.int64)
        cold = self._by_name(_DAY).cold(orgs, day)
        self._room.high.update(zip(orgs[cold].tolist(), day[cold].tolist(), strict=True))

    def high_days_from(self) -> int:
        """First day for which an event of the stream may still be counted: see `recover_high_days`."""
        return (self.position.newest_broker_us - self._rules.dedupe_window_us) // DAY_US

    def live_hours_from(self) -> int:
        """First hour whose ids still count, which is the hour of the floor: what recovery must bring."""
        floor_us = self.position.newest_broker_us - self._rules.dedupe_window_us
        return max(floor_us // HOUR_US, self.position.ids_from_hour)

    # --- chunks in -------------------------------------------------------------------------------------

    def ingest(
        self,
        *,
        first_offset: int,
        next_offset: int,
        timestamp_us: int,
        bodies: Sequence[bytes],
        unreadable: Sequence[Unreadable] = (),
    ) -> None:
        """Take in one chunk, in stream order; `offsets_of` tells the offset of each body.

        Raises:
            ValueError: the chunk does not follow the last one.
        """
        if first_offset < self._received_offset:
            raise ValueError(f"chunk at {first_offset} overlaps what was read up to {self._received_offset}")
        is_full = self.is_filled_by(bodies, unreadable)
        self._received_offset = next_offset
        self._received_us = timestamp_us
        self._buffered.append((first_offset, timestamp_us, bodies, unreadable))
        events, size = _extent(bodies, unreadable)
        self._buffered_events += events
        self._buffered_bytes += size
        if is_full:
            self.fold()

    def is_filled_by(self, bodies: Sequence[bytes], unreadable: Sequence[Unreadable] = ()) -> bool:
        """Would `ingest` fold now, with these bodies? That takes some 10 ms, and long where many are bad."""
        events, size = _extent(bodies, unreadable)
        return self._buffered_events + events >= FOLD_EVENTS or self._buffered_bytes + size >= FOLD_BYTES

    def fold(self) -> None:
        """Work the buffered chunks into the books: read, judge, deduplicate, add."""
        if not self._buffered or self._waiting is not None:
            return
        chunks, self._buffered = self._buffered, []
        self._buffered_events = self._buffered_bytes = 0
        bodies = Bodies.join([chunk for _, _, chunk, _ in chunks])
        lengths = [len(chunk) for _, _, chunk, _ in chunks]
        offsets = np.concatenate([offsets_of(first, len(chunk), runs) for first, _, chunk, runs in chunks])
        times = np.array([timestamp for _, timestamp, _, _ in chunks], np.int64)
        newest = np.maximum(np.maximum.accumulate(times), self.position.newest_broker_us)
        broker_us = np.repeat(times, lengths)
        floor_us = np.repeat(newest - self._rules.dedupe_window_us, lengths)
        self.position.broker_us = chunks[-1][1]
        self.position.newest_broker_us = int(newest[-1])
        self.position.next_offset = self._received_offset
        self.position.offered += len(bodies)

        for _, timestamp_us, _, unreadable in chunks:
            for run in unreadable:
                self._refuse_run(run, timestamp_us)
        with self._decoding:
            columns, refused = self._reader.read(bodies)
        fold = _Fold(columns=columns, offsets=offsets, broker_us=broker_us, floor_us=floor_us, bodies=bodies)
        for bad in refused:
            self._refuse_record(fold, bad.source, bad.reason, bad.faults)
        self._count(replace(fold, columns=self._refuse_by_time(fold)))

    def _count(self, fold: _Fold) -> None:
        """Count what has room and was not counted before, or let it wait for `missing` days."""
        columns = fold.columns
        self._waiting_for = set()
        if not self._suffices(columns):
            self._waiting_for = self._days_to_load(columns)
            if self._waiting_for:
                self._waiting = fold
                return
            short = self._room.judge(columns, *self._known(columns, fold.floor_us))
            for i in np.flatnonzero(short).tolist():
                self._refuse_record(fold, int(columns.source[i]), "invalid", room.faults(int(short[i])))
            columns = columns.take(short == 0)
        columns = self._drop_duplicates(replace(fold, columns=columns))
        self._accept(columns, fold.offsets, fold.broker_us)

    def _suffices(self, columns: Columns) -> bool:
        """Is there room for all these events, whatever they are? If not, each must be judged."""
        if self._room.suffices(columns):
            return True
        if not self._room.looked:
            self._gather_folded()
            keys, measures = self._by_name(_DAY).measures_before(2**31)
            held = [(self._days_of(cells), cells.totals[:, SUMS]) for cells in self._cold]
            self._room.look([(keys[:, :2], measures[:, SUMS]), *held])
        return self._room.suffices(columns)

    def _days_to_load(self, columns: Columns) -> set[tuple[int, int]]:
        """The days that must be in memory before the room for these events can be judged."""
        cold = self._by_name(_DAY).cold(columns.org, columns.occurred_us // DAY_US)
        return self._room.undecided(columns, cold)

    @staticmethod
    def _days_of(cells: Cells) -> IntArray:
        return np.stack((cells.keys[:, ORG], buckets(cells.keys, _DAY)), axis=1)

    def _known(self, columns: Columns, floor_us: IntArray) -> tuple[IntArray, IntArray]:
        """Whose ids are remembered (bool[n]), and from which hour on they count (int32[n])."""
        live_from = self._live_from(columns, floor_us)
        return self._seen_ids.known(columns.event, columns.org, live_from), live_from

    @staticmethod
    def _live_from(columns: Columns, floor_us: IntArray) -> IntArray:
        return (floor_us[columns.source] // HOUR_US).astype(np.int32)

    def _refuse(
        self,
        offset: int,
        broker_us: int,
        body: bytes | memoryview,
        reason: str,
        faults: tuple[Fault, ...],
    ) -> None:
        kept = Kept.of(body) if self._keeps(min(len(body), KEPT_BYTES_MAX)) else None
        self._add_letter(offset, 1, broker_us, reason, faults, kept)

    def _refuse_run(self, run: Unreadable, broker_us: int) -> None:
        """One letter for all records of a batch; each of them was offered, and is rejected."""
        self.position.offered += run.records
        kept = run.stored if self._keeps(len(run.stored.body)) else None
        self._add_letter(run.first_offset, run.records, broker_us, run.reason, (Fault("", run.fault),), kept)

    def _keeps(self, size: int) -> bool:
        """Is there room for one more body of the open batch?"""
        rules = self._rules
        fits = self._body_bytes_kept + size <= rules.dead_letter_bytes_max
        if not fits or self._bodies_kept >= rules.dead_letter_bodies_max:
            return False
        self._bodies_kept += 1
        self._body_bytes_kept += size
        return True

    def _add_letter(
        self,
        offset: int,
        records: int,
        broker_us: int,
        reason: str,
        faults: tuple[Fault, ...],
        kept: Kept | None,
    ) -> None:
        self.position.rejected += records
        self.tally.rejected[reason] += records
        self._dead_letters.append(
            DeadLetter(
                offset=offset,
                position=0,
                broker_us=broker_us,
                reason=reason,
                faults=faults,
                body=None if kept is None else kept.body,
                body_bytes=None if kept is None else kept.whole_bytes,
                body_sha256=None if kept is None else kept.sha256,
                records=records,
            )
        )

    def _refuse_record(self, fold: _Fold, source: int, reason: str, faults: tuple[Fault, ...]) -> None:
        offset, broker_us = int(fold.offsets[source]), int(fold.broker_us[source])
        self._refuse(offset, broker_us, fold.bodies.view(source), reason, faults)

    def _refuse_by_time(self, fold: _Fold) -> Columns:
        """The events that are neither too old nor ahead of time."""
        columns = fold.columns
        broker = fold.broker_us[columns.source]
        future = columns.occurred_us > broker + FUTURE_US
        too_late = columns.occurred_us < fold.floor_us[columns.source]
        unknown = columns.occurred_us < self.position.ids_from_hour * HOUR_US
        refused = future | too_late | unknown
        if not refused.any():
            return columns
        for i in np.flatnonzero(refused).tolist():
            if future[i]:
                reason, message = "future", "more than 5 minutes after the broker received it"
            elif too_late[i]:
                window_h = self._rules.dedupe_window_us / HOUR_US
                message = f"more than {window_h:g} h before the broker received it"
                if columns.occurred_us[i] >= broker[i] - self._rules.dedupe_window_us:
                    message = (
                        f"more than {window_h:g} h before a time that the broker's clock has shown before"
                    )
                reason = "too_late"
            else:
                reason, message = "too_late", "its ids were dropped, under a shorter DEDUPE_WINDOW"
            self._refuse_record(fold, int(columns.source[i]), reason, (Fault("occurredAt", message),))
        return columns.take(~refused)

    def _drop_duplicates(self, fold: _Fold) -> Columns:
        """The events that were not counted before; from now on their ids are remembered."""
        columns = fold.columns
        hours = (columns.occurred_us // HOUR_US).astype(np.int32)
        live_from = self._live_from(columns, fold.floor_us)
        outcomes = self._seen_ids.add(
            columns.event,
            columns.org,
            hours,
            columns.check,
            live_from,
            narrow_checks=lambda places: self._reader.narrow_checks(columns.take(places)),
        )
        fresh = outcomes == kernels.NEW
        accepted = int(np.count_nonzero(fresh))
        self.position.accepted += accepted
        self.tally.accepted += accepted
        if accepted < len(columns):
            duplicate = int(np.count_nonzero(outcomes == kernels.DUPLICATE))
            self.position.duplicate += duplicate
            self.tally.duplicate += duplicate
            for source in columns.source[outcomes == kernels.CONFLICT].tolist():
                self._refuse_record(fold, source, "conflict", (_CONFLICT,))
            columns = columns.take(fresh)
        if len(columns):
            self._new_ids.append((columns.occurred_us // HOUR_US, columns.org, columns.event, columns.check))
        return columns

    def _accept(self, columns: Columns, offsets: IntArray, broker_us: IntArray) -> None:
        if not len(columns):
            return
        # A producer's clock may be minutes ahead. The watermark must not follow it: what it passed is final.
        broker_us = broker_us[columns.source]
        reached_us = np.minimum(columns.occurred_us, broker_us)
        met_us = watermark.arrivals(reached_us, self.position.newest_us, self._rules.allowed_lateness_us)
        self.position.newest_us = max(self.position.newest_us, int(reached_us.max()))
        self._gathering.add(columns, met_us)
        if self._accepted_log is not None:
            self._accepted_log.add(columns, offsets[columns.source], broker_us, met_us)

    # --- dead letters back in -----------------------------------------------------------------------------

    def open(self, letters: Sequence[Letter]) -> Opened:
        """Read dead letters that are to be replayed: whose ids must be looked up, and for which hours.

        Nothing is counted yet. No chunk may be ingested before they are given to `replay`.
        """
        self.fold()
        stored_from = stored_hours_from(
            self.position.newest_broker_us, self._rules.dedupe_window_us, self.position.ids_from_hour
        )
        return replay.open_letters(
            letters,
            self._reader,
            live_from=self.live_hours_from(),
            stored_from=stored_from,
            window_us=self._rules.dedupe_window_us,
            future_us=FUTURE_US,
        )

    def replay(self, opened: Opened, counted: CountedIds) -> None:
        """Count the letters that are good and not counted yet; the next batch says what became of them.

        ``counted``: which of the events were counted, by earlier replays or in `Opened.of_stored_hours`.
        Neither the offset nor the watermark moves: for both the letters were read long ago. Load `missing`
        before, with ``opened``: of a day that is not in memory nobody knows whether it is full.
        """
        outcomes = replay.judge(
            opened, counted, self._seen_ids, future_us=FUTURE_US, has_room=self._has_room_again
        )
        self._note_ids(opened.columns.org, opened.columns.occurred_us // HOUR_US)
        settled = replay.settle(opened, outcomes, at_offset=self.position.next_offset)
        for one in settled:
            self.tally.replayed[one.outcome] += 1
        self.position.replays += len(settled)
        self._settled += settled
        columns = opened.columns.take(np.array([outcome == "accepted" for outcome in outcomes], np.bool_))
        duplicate = outcomes.count("duplicate")
        self.position.accepted += len(columns)
        self.position.duplicate += duplicate
        self.position.rejected -= len(columns) + duplicate
        if not len(columns):
            return
        self._new_ids.append((columns.occurred_us // HOUR_US, columns.org, columns.event, columns.check))
        oldest_us = int(columns.occurred_us.min())
        self._replayed_from_us = min(oldest_us, self._replayed_from_us or oldest_us)
        met_us = np.full(len(columns), self.position.newest_us - self._rules.allowed_lateness_us, np.int64)
        self._gathering.add(columns, met_us)
        if self._accepted_log is not None:
            mine = [opened.letters[source] for source in columns.source.tolist()]
            offsets = np.array([letter.offset for letter in mine], np.int64)
            broker_us = np.array([letter.broker_us for letter in mine], np.int64)
            self._accepted_log.add(columns, offsets, broker_us, met_us)

    def _has_room_again(self, columns: Columns) -> IntArray:
        """For which replayed events (bool[n]) the sums have room."""
        if self._suffices(columns):
            return np.ones(len(columns), np.bool_)
        live_from = np.full(len(columns), self.live_hours_from(), np.int32)
        known = self._seen_ids.known(columns.event, columns.org, live_from)
        always = np.full(len(columns), np.iinfo(np.int32).min, np.int32)
        short = self._room.judge(columns, known, always)
        return np.equal(short, 0)

    def _gather(self) -> None:
        """Add what was read to the tables, or hold it back until its blocks have been loaded."""
        self.fold()
        self._gather_folded()

    def _gather_folded(self) -> None:
        cells = self._gathering.take()
        if cells is None:
            return
        # Names are settled in stream order wherever the hour is in memory, even for events that wait below
        # for other rows: who comes first must not depend on when a flush happens.
        unsettled, failures_unsettled = (
            self._is_cold(keys, (self._by_name(GRAINS[3]), self._errors))
            for keys in (cells.keys, cells.failure_keys)
        )
        settled = cells
        if unsettled.any():
            self._cold.append(cells.take(unsettled, failures_unsettled))
            settled = cells.take(~unsettled, ~failures_unsettled)
        self._settle_names(settled)
        cold, failures_cold = (
            self._is_cold(keys, self._tables) for keys in (settled.keys, settled.failure_keys)
        )
        if cold.any():
            self._cold.append(settled.take(cold, failures_cold))
            settled = settled.take(~cold, ~failures_cold)
        self._add(settled)

    @staticmethod
    def _is_cold(keys: IntArray, tables: Sequence[Table]) -> IntArray:
        """Mask (bool[n]) of the cells or failures with a block outside memory."""
        cold = np.zeros(len(keys), np.bool_)
        for table in tables:
            cold |= table.cold(keys[:, ORG], buckets(keys, table.grain))
        return cold

    def _by_name(self, grain: Grain) -> Table:
        return next(table for table in self._tables if table.grain is grain)

    def _settle_names(self, cells: Cells) -> None:
        """Put models, clients and error codes of cells under the caps of their org and hour, in order."""
        if cells.named:
            return
        cells.named = True
        keys, failures = cells.keys, cells.failure_keys
        refused = self._refuse_names(self._model_cap, keys, MODEL, Reader.OVERFLOW_MODEL)
        self.tally.capped_models += int(cells.totals[refused, 0].sum())
        self._refuse_names(self._model_cap, failures, MODEL, Reader.OVERFLOW_MODEL)
        refused = self._refuse_names(self._client_cap, keys, CLIENT)
        self.tally.capped_clients += int(cells.totals[refused, 0].sum())
        self._refuse_names(self._client_cap, failures, CLIENT)
        self._refuse_names(self._code_cap, failures, CODE)

    @staticmethod
    def _refuse_names(cap: NameCap, keys: IntArray, column: int, overflow: int = Names.OVERFLOW) -> IntArray:
        """Give those beyond the cap the overflow's number; which those were."""
        named = np.flatnonzero(keys[:, column] > overflow)
        hour = keys[named, MINUTE] // 60
        refused = named[~cap.admit(keys[named, ORG], hour, keys[named, column])]
        keys[refused, column] = overflow
        return refused

    def _add(self, cells: Cells) -> None:
        """Add cells of resident blocks, with settled names, to every table."""
        if not len(cells):
            return
        keys, totals = cells.keys, cells.totals
        org, model, client = (keys[:, column] for column in (ORG, MODEL, CLIENT))
        pairs = cells.pair_cells, cells.pair_bins, cells.pair_counts
        for table in self._tables:
            parts = [org, buckets(keys, table.grain), model, *([client] if table.grain.by_client else [])]
            late = LATE[table.grain.name.rpartition("_")[2]]
            table.add(np.stack(parts, axis=1).astype(np.int32), totals, late, pairs)
        self.tally.late += int(totals[:, LATE["minute"]].sum())
        # take() and copy() make C-ordered arrays, the one kind that the kernels are compiled for.
        first_us, last_us = totals[:, FIRST_US].copy(), totals[:, LAST_US].copy()
        self._orgs.add(keys.take([ORG], axis=1), first_us, last_us)
        self._models.add(keys.take([ORG, MODEL], axis=1), first_us, last_us)
        self._clients.add(keys.take([ORG, CLIENT], axis=1), first_us, last_us)
        if len(cells.failure_keys):
            failures = cells.failure_keys.copy()
            failures[:, MINUTE] = buckets(failures, ERRORS)
            self._errors.count(failures, cells.failure_counts)

    # --- blocks that are not in memory -------------------------------------------------------------------

    def missing(self, opened: Opened | None = None) -> list[Block]:
        """The blocks that held-back events need; load and `adopt` them, until there are none, before `drain`.

        With ``opened`` also those that must be in memory before these letters are given to `replay`.
        """
        self._gather()
        wanted: list[Block] = []
        for table in (*self._tables, self._errors):
            blocks: set[tuple[int, int]] = set()
            for held in self._cold:
                org, bucket = held.keys[:, ORG], buckets(held.keys, table.grain)
                cold = table.cold(org, bucket)
                blocks.update(zip(org[cold].tolist(), bucket[cold].tolist(), strict=True))
            if table.grain is _DAY:
                blocks.update(self._waiting_for)
                if opened is not None:
                    org, bucket = opened.columns.org, opened.columns.occurred_us // DAY_US
                    cold = table.cold(org, bucket)
                    blocks.update(zip(org[cold].tolist(), bucket[cold].tolist(), strict=True))
            orgs = self._reader.orgs.keys
            wanted.extend(
                Block(grain=table.grain, org=(int(orgs[org, 0]), int(orgs[org, 1])), bucket=bucket)
                for org, bucket in sorted(blocks)
            )
        return wanted

    def adopt(self, stored: Sequence[StoredRows], blocks: Sequence[Block] = ()) -> None:
        """Take in rows as the database has them and the blocks they make whole, and add what waited.

        With ``blocks`` empty this is recovery: the rows of all buckets of `resident_from`.
        """
        by_grain: dict[str, list[tuple[int, int]]] = {}
        if blocks:
            orgs = self._reader.orgs.number(np.array([block.org for block in blocks], np.uint64))
            for org, block in zip(orgs.tolist(), blocks, strict=True):
                by_grain.setdefault(block.grain.name, []).append((org, block.bucket))
        rows_by_grain = {rows.grain.name: rows for rows in stored}
        for table in (*self._tables, self._errors):
            name = table.grain.name
            if name in rows_by_grain:
                numbered = self._numbered(rows_by_grain[name])
                if table.grain is GRAINS[3]:
                    self._restore_names(self._model_cap, numbered.keys[:, [0, 1, 2]], Reader.OVERFLOW_MODEL)
                    self._restore_names(self._client_cap, numbered.keys[:, [0, 1, 3]])
                elif table is self._errors:
                    self._restore_names(self._code_cap, numbered.keys[:, [0, 1, 5]])
                table.adopt(numbered, by_grain.get(name, ()))
            elif name in by_grain:
                table.adopt(_no_rows(table.grain), by_grain[name])
        if blocks:
            days = rows_by_grain.get(_DAY.name, _no_rows(_DAY))
            self._room.came(by_grain.get(_DAY.name, ()), days.measures[:, SUMS])
        else:
            self._room.doubt()
        held, self._cold = self._cold, []
        for cells in held:
            self._settle_names(cells)
            self._add(cells)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._count(waiting)

    @staticmethod
    def _restore_names(cap: NameCap, keys: IntArray, overflow: int = Names.OVERFLOW) -> None:
        """Names that have rows have been admitted before, whatever the cap is now."""
        keys = keys[keys[:, 2] > overflow]
        cap.admit(keys[:, 0], keys[:, 1], keys[:, 2], cap=2**62)

    def _numbered(self, rows: StoredRows) -> TableRows:
        parts = [self._reader.orgs.number(rows.org), rows.bucket, self._reader.models.number(rows.model)]
        if rows.grain.by_client:
            parts.append(self._reader.clients.numbers(rows.client))
        if rows.status is not None:
            parts.append(rows.status)
            parts.append(self._reader.error_codes.numbers(rows.error_code))
        return TableRows(rows.grain, np.stack(parts, axis=1).astype(np.int32), rows.measures, rows.sketches)

    # --- batches out ----------------------------------------------------------------------------------------

    @property
    def dirty_rows(self) -> int:
        """Rows the next drain would write, at most; exact after `gather` if no event waits for blocks."""
        tables = sum(table.dirty_count for table in (*self._tables, self._errors))
        seen = len(self._orgs) + len(self._models) + len(self._clients)
        cells, failures = self._gathering.cell_count, self._gathering.failure_count
        for held in self._cold:
            cells += len(held)
            failures += len(held.failure_keys)
        return tables + seen + _CELL_ROWS * cells + failures + len(self._dead_letters)

    def gather(self) -> None:
        """Add what was read to the tables now rather than at the next drain: then `dirty_rows` is exact."""
        self._gather()

    @property
    def waits(self) -> bool:
        """Does reading wait for days that only `missing` and `adopt` bring?"""
        return self._waiting is not None

    @property
    def received_offset(self) -> int:
        """Where the last ingested chunk ended; the next drain comes at least this far."""
        return self._received_offset

    @property
    def received_us(self) -> int | None:
        """Broker time of the last ingested chunk; None before the first one of the partition."""
        return self._received_us or None

    @property
    def unflushed_events(self) -> int:
        """Events taken in since the last drain: bound it, and stop reading at the bound."""
        return self.position.offered - self._drained_offered + self._buffered_events

    @property
    def unflushed_bytes(self) -> int:
        """Bytes of what waits to be folded, and of dead letters since the last drain: bound it likewise."""
        return self._buffered_bytes + self._body_bytes_kept + LETTER_BYTES * len(self._dead_letters)

    @property
    def memory_bytes(self) -> int:
        """What the tables, the ids and the names hold, about."""
        tables = sum(table.memory_bytes for table in (*self._tables, self._errors))
        accepted = 0 if self._accepted_log is None else self._accepted_log.memory_bytes
        caps = sum(c.memory_bytes for c in (self._model_cap, self._client_cap, self._code_cap))
        names = self._reader.memory_bytes + self._org_hours.nbytes
        return tables + self._seen_ids.memory_bytes + accepted + caps + names

    @property
    def names_known(self) -> int:
        """Orgs, models, clients and error codes that have a number."""
        reader = self._reader
        texts = len(reader.clients.texts) + len(reader.error_codes.texts)
        return len(reader.orgs) + len(reader.models) + texts

    @property
    def remembered_ids(self) -> int:
        return len(self._seen_ids)

    def drain(self, *, now_us: int, caught_up: bool) -> Batch:
        """Freeze everything that happened since the last drain as one batch.

        ``now_us`` is when the broker was asked whether the partition had ``caught_up``. The batch must be
        committed before the next `missing` is answered, or the ledger be thrown away.

        Raises:
            ValueError: held-back events still wait for `missing` blocks.
        """
        self._gather()
        if self._cold or self._waiting is not None:
            raise ValueError("blocks are missing: load and adopt them before draining")
        position = self.position
        position.watermark_us = watermark.advance(
            position.watermark_us,
            newest_us=position.newest_us,
            lateness_us=self._rules.allowed_lateness_us,
            now_us=now_us,
            caught_up=caught_up,
        )
        batch = Batch(
            from_offset=self._committed_from,
            from_replays=self._committed_replays,
            position=replace(position),
            caught_up=caught_up,
            tables=[self._stored(table.drain(self._key_order)) for table in (*self._tables, self._errors)],
            orgs=self._seen_orgs(),
            models=self._seen(self._models, by_model=True),
            clients=self._seen(self._clients, by_client=True),
            id_segments=self._id_segments(),
            dead_letters=self._dead_letters,
            accepted=self._accepted(),
            settled=self._settled,
            replayed_from_us=self._replayed_from_us,
        )
        self._committed_from = position.next_offset
        self._committed_replays = position.replays
        self._drained_offered = position.offered
        self._dead_letters = []
        self._bodies_kept = self._body_bytes_kept = 0
        self._settled, self._replayed_from_us = [], None
        self._set_horizons()
        self._forget_names()
        return batch

    def _accepted(self) -> AcceptedEvents | None:
        if self._accepted_log is None:
            return None
        return self._accepted_log.drain(
            self._reader,
            self._model_cap,
            self._client_cap,
            self._code_cap,
            newest_broker_us=self.position.newest_broker_us,
            window_us=self._rules.dedupe_window_us,
            future_us=FUTURE_US,
        )

    def _id_segments(self) -> dict[int, bytes]:
        parts, self._new_ids = self._new_ids, []
        if not parts:
            return {}
        hours, org, event, check = (np.concatenate(column) for column in zip(*parts, strict=True))
        first, last = int(hours.min()), int(hours.max())
        orgs = self._reader.orgs.keys
        if first == last:
            return {first: dedupe.encode_segment(orgs, org, event, check)}
        segments = {}
        for hour in np.unique(hours).tolist():
            mine = hours == hour
            segments[hour] = dedupe.encode_segment(orgs, org[mine], event[mine], check[mine])
        return segments

    def _key_order(self, keys: IntArray) -> IntArray:
        """The order of the tables' primary keys, as far as it is cheap: the database writes faster in it."""
        if not len(keys):
            return np.empty(0, np.int64)
        org, model = self._reader.orgs.ranks()[keys[:, 0]], self._reader.models.ranks()[keys[:, 2]]
        bucket = keys[:, 1].astype(np.int64)
        bucket -= bucket.min()
        return np.argsort((org * (bucket.max() + 1) + bucket) * len(self._reader.models) + model)

    def _stored(self, rows: TableRows) -> StoredRows:
        """Real ids for numbers."""
        reader, keys = self._reader, rows.keys
        clients, codes = reader.clients.texts, reader.error_codes.texts
        with_codes = rows.grain is ERRORS
        return StoredRows(
            grain=rows.grain,
            org=reader.orgs.keys[keys[:, 0]],
            model=reader.models.keys[keys[:, 2]],
            bucket=keys[:, 1].astype(np.int64),
            measures=rows.measures,
            sketches=rows.sketches,
            client=[clients[client] for client in keys[:, 3].tolist()] if rows.grain.by_client else (),
            status=keys[:, 4] if with_codes else None,
            error_code=[codes[code] for code in keys[:, 5].tolist()] if with_codes else (),
        )

    def _seen_orgs(self) -> SeenRows:
        keys, span_us = self._orgs.drain()
        self._note_ids(keys[:, 0], span_us[:, 1] // HOUR_US)
        return SeenRows(org=self._reader.orgs.keys[keys[:, 0]], span_us=span_us)

    def _note_ids(self, org: IntArray, hour: IntArray) -> None:
        """Ids of these orgs, up to these hours, are remembered."""
        if not len(org):
            return
        short = int(org.max()) + 1 - len(self._org_hours)
        if short > 0:
            more = np.full(short + len(self._org_hours), _NO_HOUR, np.int64)
            self._org_hours = np.concatenate((self._org_hours, more))
        np.maximum.at(self._org_hours, org, hour)

    def _seen(self, spans: Spans, *, by_model: bool = False, by_client: bool = False) -> SeenRows:
        keys, span_us = spans.drain()
        return SeenRows(
            org=self._reader.orgs.keys[keys[:, 0]],
            span_us=span_us,
            model=self._reader.models.keys[keys[:, 1]] if by_model else None,
            client=[self._reader.clients.texts[c] for c in keys[:, 1].tolist()] if by_client else (),
        )

    def _set_horizons(self) -> None:
        """Let go of blocks that only late events can still touch. Called when nothing is dirty."""
        if self.position.newest_us == NEVER:
            return
        mark = self.position.newest_us - self._rules.allowed_lateness_us
        self._room.forget()
        for table in (*self._tables, self._errors):
            horizon = (mark - table.grain.resident_us) // table.grain.length_us
            if horizon > table.horizon or table.loaded_count > LOADED_BLOCKS_MAX:
                if table.grain is _DAY:
                    keys, measures = table.measures_before(max(horizon, table.horizon))
                    self._room.let_go(keys[:, :2], measures[:, SUMS], days_from=self.high_days_from())
                table.evict(horizon)
                if table.grain is GRAINS[3]:
                    self._model_cap.evict(table.horizon)
                    self._client_cap.evict(table.horizon)
                elif table is self._errors:
                    self._code_cap.evict(table.horizon)

    def _forget_names(self) -> None:
        """Forget orgs, models, clients and error codes that nothing refers to, once they have doubled.

        Called when nothing is on its way to a row. The number of a model or org is free for the next one
        then: the entry of an id may still name the org, but the entry has lapsed for every later event.
        """
        reader, tables = self._reader, (*self._tables, self._errors)
        if self._must_sweep("orgs", len(reader.orgs)):
            self._room.forget()
            floor = (self.position.newest_broker_us - self._rules.dedupe_window_us) // HOUR_US
            reader.orgs.keep(
                np.flatnonzero(self._org_hours >= floor),
                *(table.orgs() for table in tables),
                self._model_cap.orgs(),
                self._client_cap.orgs(),
                self._code_cap.orgs(),
                np.array([org for org, _ in self._room.high], np.int64),
            )
            self._org_hours[self._org_hours < floor] = _NO_HOUR
            self._swept("orgs", len(reader.orgs))
        if self._must_sweep("models", len(reader.models)):
            overflow = np.array([Reader.OVERFLOW_MODEL])
            reader.models.keep(overflow, self._model_cap.names(), *(table.column(2) for table in tables))
            self._swept("models", len(reader.models))
        if self._must_sweep("clients", len(reader.clients.texts)):
            by_client = [(table, 3) for table in tables if table.grain.by_client]
            reader.clients = _renumbered(reader.clients, by_client, self._client_cap)
            self._swept("clients", len(reader.clients.texts))
        if self._must_sweep("error_codes", len(reader.error_codes.texts)):
            reader.error_codes = _renumbered(reader.error_codes, [(self._errors, 5)], self._code_cap)
            self._swept("error_codes", len(reader.error_codes.texts))

    def _must_sweep(self, kind: str, count: int) -> bool:
        return count > self._sweep_at[kind]

    def _swept(self, kind: str, left: int) -> None:
        self._sweep_at[kind] = max(NAMES_MAX, 2 * left)


def _extent(bodies: Sequence[bytes], unreadable: Sequence[Unreadable]) -> tuple[int, int]:
    """How many records there are, and their bytes."""
    size = len(bodies.text) if isinstance(bodies, Bodies) else sum(map(len, bodies))
    if not unreadable:
        return len(bodies), size
    records = sum(run.records for run in unreadable)
    return len(bodies) + records, size + sum(len(run.stored.body) for run in unreadable)


def warm_up() -> None:
    """Run every kernel once, so that compiling (once a machine) or loading them delays no event."""
    event = (
        b'{"eventId":"00000000-0000-4000-8000-00000000000%d","orgId":"00000000-0000-4000-8000-000000000000",'
        b'"modelId":"00000000-0000-4000-8000-000000000000","clientId":"c","occurredAt":"2026-01-01T00:00:00Z",'
        b'"latencyMs":1,"status":"error","errorCode":"e","inputTokens":1,"outputTokens":1,'
        b'"costEstimateCents":"0.1"}'
    )
    for rules in (Rules(), Rules(sum_max=1)):
        ledger = Ledger(rules)
        ledger.ingest(
            first_offset=0,
            next_offset=3,
            timestamp_us=1_767_225_600_000_000,
            bodies=[event % 1, event % 1, event % 2],
        )
        ledger.drain(now_us=0, caught_up=False)
    columns, _ = ledger._reader.read([event % 1])
    ledger._reader.narrow_checks(columns)
    _warm_up_ids()


def _warm_up_ids() -> None:
    seen, one = SeenIds(), np.ones(1, np.int32)
    seen.add(np.ones((1, 2), np.uint64), one, one, one.astype(np.uint64), one)
    for number in range(dedupe.TABLES):
        seen.renew(number, live_from=0)
    seen.reserve(2**16)  # more than the logs hold: the ids move to longer ones


def _renumbered(names: Names, tables: Sequence[tuple[Table, int]], cap: NameCap) -> Names:
    used = np.unique(np.concatenate([cap.names(), *(table.column(column) for table, column in tables)]))
    kept = Names(names.texts[Names.OVERFLOW])
    numbers = np.zeros(len(names.texts), np.int32)
    numbers[used] = kept.numbers([names.texts[old] for old in used.tolist()])
    for table, column in tables:
        table.renumber(column, numbers)
    cap.renumber(numbers)
    return kept


def _no_rows(grain: Grain) -> TableRows:
    return TableRows(grain, np.empty((0, 0), np.int32), np.empty((0, len(MEASURES)), np.int64), ())
