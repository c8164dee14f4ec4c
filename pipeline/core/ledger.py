"""The books of one partition: chunks in, one batch for the database out.

The `Ledger` stands between the transport and the transaction. It reads bodies, judges times, finds
duplicates, adds up the accepted events and says which rows a flush must write. Its state is always "exactly
the events below `next_offset`". A `Batch` takes the database from the last committed state to this state,
wholly or not at all. The ledger never sees a connection, a clock or a task. The caller brings ``now``.

The cycle (`pipeline.worker.agents` drives it)::

    ingest(chunk) ...            as chunks come
    open(letters) -> replay(..)  backfill of dead letters: `pipeline.core.replay`
    missing() -> adopt(rows)     before a drain: late events may touch rows that are not in memory
    drain(now) -> Batch          take out all changes since the last drain
    (commit the batch; retry the very same batch until its outcome is known)

If a batch is lost, or fails because another worker has a newer epoch, the ledger is thrown away. Recovery
builds a new ledger from the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import dedupe, intake, watermark
from pipeline.core.accepted import AcceptedEvents, AcceptedLog
from pipeline.core.batch import Batch, Block, Position, StoredRows, Tally
from pipeline.core.bodies import Bodies, Unreadable
from pipeline.core.events import Columns, Reader, Scanned
from pipeline.core.intake import Chunk, Intake, Records
from pipeline.core.judge import Judge, Undecided
from pipeline.core.rate_classes import RateClasses, in_order
from pipeline.core.replay import CountedIds, Letter, Opened
from pipeline.core.rollups import Rollups
from pipeline.core.room import Day
from pipeline.core.rules import FUTURE_US, Rules
from pipeline.core.watermark import NEVER
from pipeline.core.windows import Grain

IntArray = npt.NDArray[Any]

SLOW_EVENTS_MAX: Final = 512
"""A fold takes long if more events than this need work of their own, 6 to 45 µs each.

That is an event whose body is doubtful, or whose time is not good.
"""


class Ledger:
    """The state of one partition: exactly the accepted events below ``next_offset``. Not thread-safe.

    It composes three parts that do not know each other. The `Intake` holds chunks, the `Judge` accepts or
    rejects each event, and the `Rollups` add up the accepted events.
    """

    def __init__(
        self,
        rules: Rules,
        position: Position | None = None,
        *,
        keep_accepted: bool = False,
        new_log: dedupe.NewLog | None = None,
        rate_classes: RateClasses | None = None,
        decoding: AbstractContextManager[object] | None = None,
    ) -> None:
        """Begin at ``position``. None: begin with the stream, with nothing counted.

        With ``keep_accepted`` the batches bring the accepted events, for the archive. ``new_log`` makes the
        logs of ids, if they are not in memory: see `pipeline.core.dedupe`. ``rate_classes`` has the numbers
        that the database gave; None: `rate_classes.in_order` gives them. ``decoding`` is entered each time
        that bodies are read. A caller can measure the time with it, since the ledger has no clock.
        """
        self._rules = rules
        self.position = position or Position()
        self.tally = Tally()
        self._reader = Reader(rate_classes or in_order(rules.context_tiers), rules.dimensions)
        self._decoding = decoding or nullcontext()
        self._intake = Intake()
        self._rollups = Rollups(rules, self._reader, self.tally)
        self._judge = Judge(rules, self.position, self.tally, self._reader, self._rollups, new_log=new_log)
        self._accepted_log: AcceptedLog | None = None
        if keep_accepted:
            self._accepted_log = AcceptedLog(
                accepted=self.position.accepted, newest_broker_us=self.position.newest_broker_us
            )
        self._begun: tuple[Records, Scanned] | None = None
        """The fold that has begun: see `fold_if_quick`."""
        self._waiting: tuple[Columns, Records] | None = None
        """Events that wait until the days of ``_waiting_for`` are in memory."""
        self._waiting_for: frozenset[Day] = frozenset()
        self._received_offset = self.position.next_offset
        self._received_us = self.position.broker_us
        self._committed_from = self.position.next_offset
        self._committed_replays = self.position.replays
        self._drained_offered = self.position.offered
        self._let_go()

    # --- recovery ------------------------------------------------------------------------------------

    def resident_from(self) -> list[tuple[Grain, int]]:
        """First resident bucket of every table. Recovery must `adopt` all rows from that bucket on."""
        return self._rollups.resident_from()

    def expect_ids(self, count: int) -> None:
        """Make room for about ``count`` ids that will be recovered."""
        self._judge.ids.seen.reserve(count)

    def recover_ids(self, hour: int, segment: bytes) -> None:
        """Remember the ids of a stored segment. The segments must come in ascending order of the hour."""
        self._judge.ids.recover(hour, segment, live_from=self.live_hours_from())

    @property
    def high_sum_least(self) -> int:
        """`recover_high_days` wants the days with at least this sum."""
        return self._judge.high_sum_least

    def recover_high_days(self, days: Sequence[Block]) -> None:
        """Take in the nearly full days that recovery found in the database.

        ``days`` are all days from `high_days_from` on in which one of the sums is `high_sum_least` or more.
        """
        self._judge.recover_high_days(days)

    def high_days_from(self) -> int:
        """First day in which an event of the stream can still be accepted: see `recover_high_days`."""
        return self._judge.live_days_from()

    def live_hours_from(self) -> int:
        """First hour whose ids still count. Recovery must bring the ids from this hour on."""
        return self._judge.live_hours_from()

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
        """Take in one chunk, in stream order, and fold when the chunks that wait are worth a fold.

        `bodies.offsets_of` tells the offset of each body.

        Raises:
            ValueError: the chunk does not follow the last one.
        """
        self.receive(
            first_offset=first_offset,
            next_offset=next_offset,
            timestamp_us=timestamp_us,
            bodies=bodies,
            unreadable=unreadable,
        )
        if self._intake.is_full:
            self.fold()

    def receive(
        self,
        *,
        first_offset: int,
        next_offset: int,
        timestamp_us: int,
        bodies: Sequence[bytes],
        unreadable: Sequence[Unreadable] = (),
    ) -> None:
        """As `ingest`, but leave the fold to the caller, who calls `fold_if_quick` next."""
        if first_offset < self._received_offset:
            raise ValueError(f"chunk at {first_offset} overlaps what was read up to {self._received_offset}")
        if self._begun is not None:
            self.fold()
        self._received_offset = next_offset
        self._received_us = timestamp_us
        if not isinstance(bodies, Bodies):
            bodies = Bodies.of(bodies)
        self._intake.add(
            Chunk(first_offset=first_offset, timestamp_us=timestamp_us, bodies=bodies, unreadable=unreadable)
        )

    def fold_if_quick(self) -> bool:
        """Fold if the buffered chunks are worth a fold, and the fold takes only about 10 ms.

        Returns False if a fold is due that takes longer, up to 0.4 s for 8,192 bad bodies. The caller then
        calls `fold`, in a thread if other work must go on.
        """
        if not self._intake.is_full or self._waiting is not None:
            return True
        if self._intake.is_large:
            return False
        records, scanned = self._begun = self._begin()
        out_of_time = np.count_nonzero(self._judge.out_of_time(scanned.columns, records))
        if len(scanned.doubtful) + out_of_time > SLOW_EVENTS_MAX:
            return False
        self.fold()
        return True

    def fold(self) -> None:
        """Work the buffered chunks into the books: read, judge, find duplicates, add up.

        While events wait for days, nothing is folded.
        """
        if self._waiting is not None or not (self._begun or self._intake):
            return
        records, scanned = self._begun or self._begin()
        self._begun = None
        columns = scanned.columns
        if len(scanned.doubtful):
            with self._decoding:
                columns, rejected = self._reader.read_doubtful(scanned)
            for one in rejected:
                self._judge.reject(records, one.source, one.reason, one.faults)
        self._count(self._judge.in_time(columns, records), records)

    def _begin(self) -> tuple[Records, Scanned]:
        """Take the buffered chunks, and scan their bodies."""
        position = self.position
        chunks = self._intake.take()
        records, position.newest_broker_us = intake.join(
            chunks, newest_us=position.newest_broker_us, window_us=self._rules.dedupe_window_us
        )
        position.broker_us = chunks[-1].timestamp_us
        position.next_offset = self._received_offset
        position.offered += len(records.bodies)
        for chunk in chunks:
            for run in chunk.unreadable:
                self._judge.reject_unreadable(run, chunk.timestamp_us)
        with self._decoding:
            return records, self._reader.scan(records.bodies)

    def _count(self, columns: Columns, records: Records) -> None:
        """Count the events that have room and are new. If days are missing for that, all of them wait."""
        fitting = self._judge.with_room(columns, records)
        if isinstance(fitting, Undecided):
            self._waiting, self._waiting_for = (columns, records), fitting.days
            return
        self._waiting, self._waiting_for = None, frozenset()
        accepted = self._judge.not_counted_before(fitting, records)
        if not len(accepted):
            return
        # A producer's clock may be minutes ahead. The watermark must not follow that clock, because a bucket
        # that the watermark has passed is final.
        broker_us = records.broker_us[accepted.source]
        reached_us = np.minimum(accepted.occurred_us, broker_us)
        met_us = watermark.arrivals(reached_us, self.position.newest_us, self._rules.allowed_lateness_us)
        self.position.newest_us = max(self.position.newest_us, int(reached_us.max()))
        self._add(accepted, records.offset[accepted.source], broker_us, met_us)

    def _add(self, columns: Columns, offset: IntArray, broker_us: IntArray, met_us: IntArray) -> None:
        """Put accepted events into the books. The arrays are int64[n] each."""
        self._rollups.add(columns, met_us)
        if self._accepted_log is not None:
            self._accepted_log.add(columns, offset, broker_us, met_us)

    # --- dead letters back in -----------------------------------------------------------------------------

    def open(self, letters: Sequence[Letter]) -> Opened:
        """Read dead letters for a backfill, and say which ids must be looked up in which hours.

        Nothing is counted yet. The letters must be given to `replay` before the next chunk is ingested.
        """
        self.fold()
        return self._judge.open(letters)

    def replay(self, opened: Opened, counted: CountedIds) -> None:
        """Count the letters that are good and have not been counted. The next batch has all outcomes.

        ``counted`` has the events that have been counted, by earlier backfills or in the hours of
        `Opened.of_stored_hours`. Neither the offset nor the watermark moves, because the stream brought the
        letters long ago. Before this call, load the blocks of `missing` with ``opened``: nobody knows whether
        a day outside memory is full.
        """
        columns = self._judge.replay(opened, counted)
        if not len(columns):
            return
        mine = [opened.letters[source] for source in columns.source.tolist()]
        offset = np.array([letter.offset for letter in mine], np.int64)
        broker_us = np.array([letter.broker_us for letter in mine], np.int64)
        met_us = np.full(len(columns), self.position.newest_us - self._rules.allowed_lateness_us, np.int64)
        self._add(columns, offset, broker_us, met_us)

    # --- blocks that are not in memory -------------------------------------------------------------------

    def missing(self, opened: Opened | None = None) -> list[Block]:
        """The cold blocks that waiting events need.

        Before `drain`, load these blocks and `adopt` them, and ask again until no block is missing. With
        ``opened`` the blocks that `replay` needs for these letters are among them.
        """
        self.gather()
        days = self._waiting_for
        if opened is not None:
            days |= self._rollups.missing_days(opened.columns)
        return self._rollups.missing(days)

    def adopt(self, stored: Sequence[StoredRows], blocks: Sequence[Block] = ()) -> None:
        """Take in rows from the database, then add the events that waited for these rows.

        ``blocks`` are resident from now on, also a block for which ``stored`` has no row. In recovery
        ``blocks`` is empty, and ``stored`` has the rows of all buckets that `resident_from` names.
        """
        days, sums = self._rollups.adopt(stored, blocks)
        if blocks:
            self._judge.days_came(days, sums)
        else:
            self._judge.days_recovered()
        if self._waiting is not None:
            self._count(*self._waiting)

    @property
    def waits(self) -> bool:
        """Does reading wait for days? `missing` names their blocks, and `adopt` brings them."""
        return self._waiting is not None

    # --- batches out ----------------------------------------------------------------------------------------

    def gather(self) -> None:
        """Fold, and add all events to the tables now instead of at the drain. `dirty_rows` is exact then."""
        self.fold()
        self._rollups.gather()

    def drain(self, *, now_us: int, caught_up: bool) -> Batch:
        """Take out everything that changed since the last drain, as one batch.

        ``caught_up`` is the broker's answer whether the partition has been read to its end, and ``now_us`` is
        the time of that question. The batch must be committed before the blocks of the next `missing` are
        loaded, because the rows in the database must have the batch in them. If the batch cannot be
        committed, the ledger must be thrown away.

        Raises:
            ValueError: events still wait for `missing` blocks.
        """
        self.gather()
        if self._rollups.waits or self.waits:
            raise ValueError("blocks are missing: load and adopt them before draining")
        position = self.position
        position.watermark_us = watermark.advance(
            position.watermark_us,
            newest_us=position.newest_us,
            lateness_us=self._rules.allowed_lateness_us,
            now_us=now_us,
            caught_up=caught_up,
        )
        position.counted_us = watermark.counted(
            position.counted_us,
            broker_us=position.broker_us,
            newest_broker_us=position.newest_broker_us,
            now_us=now_us,
            caught_up=caught_up,
        )
        changes, outcomes = self._rollups.drain(), self._judge.drain()
        batch = Batch(
            from_offset=self._committed_from,
            from_replays=self._committed_replays,
            position=replace(position),
            caught_up=caught_up,
            tables=changes.tables,
            orgs=changes.orgs,
            models=changes.models,
            clients=changes.clients,
            values=changes.values,
            id_segments=outcomes.id_segments,
            dead_letters=outcomes.dead_letters,
            accepted=self._accepted(),
            settled=outcomes.settled,
            replayed_from_us=outcomes.replayed_from_us,
        )
        self._committed_from = position.next_offset
        self._committed_replays = position.replays
        self._drained_offered = position.offered
        self._let_go()
        self._forget_names()
        return batch

    def drain_or_missing(self, *, now_us: int, caught_up: bool) -> Batch | list[Block]:
        """The batch of `drain`, or the blocks that are `missing` for it: adopt them, and ask again."""
        return self.missing() or self.drain(now_us=now_us, caught_up=caught_up)

    def _accepted(self) -> AcceptedEvents | None:
        if self._accepted_log is None:
            return None
        return self._accepted_log.drain(
            self._reader,
            self._rollups.caps,
            self._rollups.value_caps,
            newest_broker_us=self.position.newest_broker_us,
            window_us=self._rules.dedupe_window_us,
            future_us=FUTURE_US,
            split_hours=self._rules.split_hours,
        )

    def _let_go(self) -> None:
        """Drop the blocks from memory that only late events can still touch. Called when no row is dirty."""
        if self.position.newest_us == NEVER:
            return
        days = self._rollups.let_go(self.position.newest_us - self._rules.allowed_lateness_us)
        if days is not None:
            self._judge.days_left(*days)

    def _forget_names(self) -> None:
        """Forget the orgs and names that nothing refers to, each kind when its number has doubled."""
        if self._rollups.has_orgs_to_forget:
            self._rollups.forget_orgs(*self._judge.orgs_in_use())
        self._rollups.forget_names()

    # --- how much there is -------------------------------------------------------------------------------

    @property
    def received_offset(self) -> int:
        """Where the last ingested chunk ended. The next batch moves the partition at least to this offset."""
        return self._received_offset

    @property
    def received_us(self) -> int | None:
        """Broker time of the last ingested chunk. None until the partition has had a chunk."""
        return self._received_us or None

    @property
    def unflushed_events(self) -> int:
        """Events taken in since the last drain. The caller stops reading when they reach a bound."""
        return self.position.offered - self._drained_offered + self._intake.events

    @property
    def unflushed_bytes(self) -> int:
        """Bytes of chunks that wait for a fold, and of dead letters since the last drain.

        The caller stops reading when they reach a bound.
        """
        return self._intake.bytes + self._judge.dead_letters.memory_bytes

    @property
    def dirty_rows(self) -> int:
        """At most how many rows the next drain writes. Exact after `gather`, if no event waits for blocks."""
        return self._rollups.dirty_rows + len(self._judge.dead_letters)

    @property
    def memory_bytes(self) -> int:
        """About how much memory the tables, the ids and the names take."""
        accepted = 0 if self._accepted_log is None else self._accepted_log.memory_bytes
        return (
            self._rollups.memory_bytes + self._judge.ids.memory_bytes + self._reader.memory_bytes + accepted
        )

    @property
    def names_known(self) -> int:
        """How many orgs, models, clients and error codes have a number."""
        return self._reader.names_known

    @property
    def remembered_ids(self) -> int:
        return len(self._judge.ids)
