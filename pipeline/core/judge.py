"""The judge: each event is accepted, a duplicate, or rejected with a reason.

The judge owns the dedupe window, the room in the days' sums, the dead letters of the open batch, and the
counters of all outcomes. The judge knows nothing of tables: `CountedDays` tells it the sums so far.

Each event is asked four questions, in this order:

1. Can the event be read (`pipeline.core.events`)?
2. Is its event time good?
3. Is there room for it in the sums of its day?
4. Has its id been counted before?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core import dedupe, kernels, replay, room
from pipeline.core.batch import Block, DeadLetter, Position, Tally
from pipeline.core.bodies import KEPT_BYTES_MAX, Kept, Unreadable
from pipeline.core.events import Columns, Reader
from pipeline.core.intake import Records
from pipeline.core.remembered import RememberedIds
from pipeline.core.replay import CountedIds, Letter, Opened, Settled
from pipeline.core.room import Day, Room
from pipeline.core.rules import FUTURE_US, Rules
from pipeline.core.watermark import DAY_US, HOUR_US
from pipeline.core.wire import Fault

IntArray = npt.NDArray[Any]

LETTER_BYTES: Final = 512
"""A dead letter takes about this much memory besides its body."""

IDS_KEPT_US: Final = DAY_US
"""The database keeps ids for the dedupe window and this much longer (`pipeline.worker.maintenance`)."""

_CONFLICT: Final = Fault("eventId", "was counted before with another payload")


def stored_hours_from(newest_broker_us: int, window_us: int, ids_from_hour: int) -> int:
    """The first hour of which the database still has every id.

    ``newest_broker_us`` and ``ids_from_hour`` are those of `Position`; ``window_us`` is the dedupe window.
    """
    return max(-((window_us + IDS_KEPT_US - newest_broker_us) // HOUR_US), ids_from_hour)


class CountedDays(Protocol):
    """Tells the judge how much each org has summed up on each day; `pipeline.core.rollups` implements it."""

    def cold_days(self, org: IntArray, day: IntArray) -> IntArray:
        """Mask (bool[n]) of the days that are not in memory."""

    def sums_by_day(self) -> list[tuple[IntArray, IntArray]]:
        """The sums of the days in memory, in parts: (org, day) int[n, 2] and sums int64[n, 4].

        A day may be in several parts. Its sums are then those of all its parts together.
        """


@dataclass(frozen=True, slots=True)
class Undecided:
    """No answer yet: the judge needs these days in memory before it can say which events have room."""

    days: frozenset[Day]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """The judge's part of a `Batch`: dead letters, ids to store, and backfilled dead letters."""

    dead_letters: list[DeadLetter]
    id_segments: dict[int, bytes]
    settled: list[Settled]
    replayed_from_us: int | None


class DeadLetters:
    """The dead letters of the open batch.

    A letter keeps its body while the bodies of the batch stay within ``dead_letter_bodies_max`` and
    ``dead_letter_bytes_max`` of the `Rules`. Otherwise the letter has no body.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._letters: list[DeadLetter] = []
        self._bodies = self._body_bytes = 0

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def memory_bytes(self) -> int:
        """About how much memory the letters and their bodies take."""
        return self._body_bytes + LETTER_BYTES * len(self._letters)

    def add(
        self,
        offset: int,
        broker_us: int,
        reason: str,
        faults: tuple[Fault, ...],
        body: bytes | memoryview | Kept,
        *,
        records: int = 1,
    ) -> None:
        size = len(body.body) if isinstance(body, Kept) else min(len(body), KEPT_BYTES_MAX)
        kept = None
        if self._has_room_for(size):
            kept = body if isinstance(body, Kept) else Kept.of(body)
            self._bodies += 1
            self._body_bytes += size
        self._letters.append(
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

    def _has_room_for(self, size: int) -> bool:
        rules = self._rules
        return (
            self._bodies < rules.dead_letter_bodies_max
            and self._body_bytes + size <= rules.dead_letter_bytes_max
        )

    def drain(self) -> list[DeadLetter]:
        """Take out the letters that were added since the last drain."""
        letters, self._letters = self._letters, []
        self._bodies = self._body_bytes = 0
        return letters


class Judge:
    """Accepts or rejects each event of one partition, and counts the outcomes. Not thread-safe.

    The dedupe window begins at its *floor*: the newest broker time of all chunks up to now, less the length
    of the window. Ids of before the floor are not looked up any more, so an event of before the floor is
    rejected as ``too_late``. The database keeps such ids for `IDS_KEPT_US` more, for backfills. An event of
    an hour whose ids were dropped under another window (`Position.ids_from_hour`) is ``too_late`` as well.

    The floor depends on the stream alone. The floor stays where it is when the broker's clock goes back,
    because a floor that went back would let an event count twice. For example, the window is 24 h. At 12:00
    the broker's clock is wrong, and a chunk carries the broker time 16:00. The floor is then 16:00 of the day
    before, and it stays there until the broker's clock has passed 16:00. If the clock is wrong by three days
    for one chunk, the floor is two days ahead of now: every event is ``too_late`` for two days. An operator
    can count the dead letters of these events later, by a backfill.

    An event is ``future`` by the broker time of its own chunk, because a clock that was ahead once says
    nothing about later chunks.
    """

    def __init__(
        self,
        rules: Rules,
        position: Position,
        tally: Tally,
        reader: Reader,
        days: CountedDays,
        *,
        new_log: dedupe.NewLog | None = None,
    ) -> None:
        """Judge from ``position`` on. The judge counts the outcomes in ``position`` and in ``tally``.

        ``reader`` numbers the orgs, and ``days`` tells the sums of their days. ``new_log`` makes the logs of
        ids: see `pipeline.core.dedupe`.
        """
        self._rules = rules
        self._position = position
        self._tally = tally
        self._reader = reader
        self._days = days
        self.ids = RememberedIds(reader, new_log=new_log, ids_max=rules.dedupe_ids_max)
        self.dead_letters = DeadLetters(rules)
        self._room = Room(rules.sum_max)
        self._settled: list[Settled] = []
        self._replayed_from_us: int | None = None

    # --- the window ----------------------------------------------------------------------------------

    @property
    def floor_us(self) -> int:
        return self._position.newest_broker_us - self._rules.dedupe_window_us

    def live_hours_from(self) -> int:
        """First hour whose ids still count: the hour of the floor, unless older ids have been dropped."""
        return max(self.floor_us // HOUR_US, self._position.ids_from_hour)

    def live_days_from(self) -> int:
        """First day in which an event of the stream can still be accepted: the day of the floor."""
        return self.floor_us // DAY_US

    # --- events of the stream --------------------------------------------------------------------------

    def reject(self, records: Records, source: int, reason: str, faults: tuple[Fault, ...]) -> None:
        """Make a dead letter of the record at place ``source``."""
        self._count_rejected(reason, 1)
        offset, broker_us = records.offset.item(source), records.broker_us.item(source)
        self.dead_letters.add(offset, broker_us, reason, faults, records.bodies.view(source))

    def reject_unreadable(self, run: Unreadable, broker_us: int) -> None:
        """Make one dead letter for all records of a batch that nobody can unpack.

        Every record of the batch counts as offered and as rejected.
        """
        self._position.offered += run.records
        self._count_rejected(run.reason, run.records)
        faults = (Fault("", run.fault),)
        self.dead_letters.add(
            run.first_offset, broker_us, run.reason, faults, run.stored, records=run.records
        )

    def _count_rejected(self, reason: str, records: int) -> None:
        self._position.rejected += records
        self._tally.rejected[reason] += records

    def out_of_time(self, columns: Columns, records: Records) -> IntArray:
        """Mask (bool[n]) of the events that `in_time` rejects."""
        occurred_us, source = columns.occurred_us, columns.source
        ids_from_us = self._position.ids_from_hour * HOUR_US
        # Most of the time no event is rejected, and the bounds of all records together show that.
        if not len(columns) or (
            occurred_us.max() <= records.broker_us.min() + FUTURE_US
            and occurred_us.min() >= max(records.floor_us.max(), ids_from_us)
        ):
            return np.zeros(len(columns), np.bool_)
        counts_from_us = np.maximum(records.floor_us[source], ids_from_us)
        return (occurred_us < counts_from_us) | (occurred_us > records.broker_us[source] + FUTURE_US)

    def in_time(self, columns: Columns, records: Records) -> Columns:
        """Keep the events whose time is good; reject the others as ``future`` or ``too_late``."""
        rejected = self.out_of_time(columns, records)
        if not rejected.any():
            return columns
        window_h = self._rules.dedupe_window_us / HOUR_US
        for i in np.flatnonzero(rejected).tolist():
            occurred_us, source = columns.occurred_us[i], columns.source[i]
            broker_us = records.broker_us[source]
            if occurred_us > broker_us + FUTURE_US:
                reason, message = "future", "more than 5 minutes after the broker received it"
            elif occurred_us < records.floor_us[source]:
                message = f"more than {window_h:g} h before the broker received it"
                if occurred_us >= broker_us - self._rules.dedupe_window_us:
                    message = (
                        f"more than {window_h:g} h before a time that the broker's clock has shown before"
                    )
                reason = "too_late"
            else:
                reason, message = "too_late", "its ids were dropped, under a shorter DEDUPE_WINDOW"
            self.reject(records, int(source), reason, (Fault("occurredAt", message),))
        return columns.take(~rejected)

    def with_room(self, columns: Columns, records: Records) -> Columns | Undecided:
        """Keep the events for which the sums of their day have room; reject the others as ``invalid``.

        When the answer is `Undecided`, nothing has been rejected or counted yet. The caller loads the days
        and asks again with the same events.
        """
        if self._suffices(columns):
            return columns
        cold = self._days.cold_days(columns.org, columns.occurred_us // DAY_US)
        if days := self._room.undecided(columns, cold):
            return Undecided(frozenset(days))
        live_from = _live_from(columns, records)
        short = self._room.judge(columns, self.ids.known(columns, live_from), live_from)
        for i in np.flatnonzero(short).tolist():
            self.reject(records, int(columns.source[i]), "invalid", room.faults(int(short[i])))
        return columns.take(short == 0)

    def _suffices(self, columns: Columns) -> bool:
        """Is there room for all these events together? If not, each event is judged alone."""
        if self._room.suffices(columns):
            return True
        if not self._room.looked:
            self._room.look(self._days.sums_by_day())
        return self._room.suffices(columns)

    def not_counted_before(self, columns: Columns, records: Records) -> Columns:
        """Keep the events whose id is new, and remember their ids.

        An event whose id is known counts as a duplicate. An event whose id is known with another payload is
        rejected as ``conflict``.
        """
        outcomes = self.ids.add(columns, _live_from(columns, records))
        fresh = outcomes == kernels.ids.NEW
        accepted = int(np.count_nonzero(fresh))
        self._position.accepted += accepted
        self._tally.accepted += accepted
        if accepted < len(columns):
            duplicate = int(np.count_nonzero(outcomes == kernels.ids.DUPLICATE))
            self._position.duplicate += duplicate
            self._tally.duplicate += duplicate
            for source in columns.source[outcomes == kernels.ids.CONFLICT].tolist():
                self.reject(records, source, "conflict", (_CONFLICT,))
            columns = columns.take(fresh)
        if len(columns):
            self.ids.store(columns)
        return columns

    # --- dead letters back in ----------------------------------------------------------------------------

    def open(self, letters: Sequence[Letter]) -> Opened:
        """Read dead letters for a backfill; see `pipeline.core.replay`."""
        stored_from = stored_hours_from(
            self._position.newest_broker_us, self._rules.dedupe_window_us, self._position.ids_from_hour
        )
        return replay.open_letters(
            letters,
            self._reader,
            live_from=self.live_hours_from(),
            stored_from=stored_from,
            window_us=self._rules.dedupe_window_us,
            future_us=FUTURE_US,
        )

    def replay(self, opened: Opened, counted: CountedIds) -> Columns:
        """Judge the opened dead letters, and return the events that now count; see `Ledger.replay`."""
        outcomes = replay.judge(
            opened, counted, self.ids.seen, future_us=FUTURE_US, has_room=self._has_room_again
        )
        self.ids.note_orgs(opened.columns.org, opened.columns.occurred_us // HOUR_US)
        settled = replay.settle(opened, outcomes, at_offset=self._position.next_offset)
        for one in settled:
            self._tally.replayed[one.outcome] += 1
        self._position.replays += len(settled)
        self._settled += settled
        columns = opened.columns.take(np.array([outcome == "accepted" for outcome in outcomes], np.bool_))
        duplicate = outcomes.count("duplicate")
        self._position.accepted += len(columns)
        self._position.duplicate += duplicate
        self._position.rejected -= len(columns) + duplicate
        if len(columns):
            self.ids.store(columns)
            oldest_us = int(columns.occurred_us.min())
            self._replayed_from_us = min(oldest_us, self._replayed_from_us or oldest_us)
        return columns

    def _has_room_again(self, columns: Columns) -> IntArray:
        """Mask (bool[n]) of the backfilled events for which the sums of their day have room."""
        if self._suffices(columns):
            return np.ones(len(columns), np.bool_)
        live_from = np.full(len(columns), self.live_hours_from(), np.int32)
        always = np.full(len(columns), np.iinfo(np.int32).min, np.int32)
        short = self._room.judge(columns, self.ids.known(columns, live_from), always)
        return np.equal(short, 0)

    # --- days that come into memory and leave it -----------------------------------------------------------

    @property
    def high_sum_least(self) -> int:
        """`recover_high_days` wants the days with at least this sum."""
        return self._room.stored_most

    def recover_high_days(self, days: Sequence[Block]) -> None:
        """Take in the nearly full days that recovery found in the database.

        ``days`` are all days from `live_days_from` on in which one of the sums is `high_sum_least` or more.
        """
        orgs = self._reader.orgs.number(np.array([block.org for block in days], np.uint64).reshape(-1, 2))
        day = np.array([block.bucket for block in days], np.int64)
        cold = self._days.cold_days(orgs, day)
        self._room.high.update(zip(orgs[cold].tolist(), day[cold].tolist(), strict=True))

    def days_recovered(self) -> None:
        """Hear that recovery has brought days into memory, and that their sums may be of any size."""
        self._room.doubt()

    def days_came(self, days: Sequence[Day], sums: IntArray) -> None:
        """Hear that days have come into memory, with rows of these sums (int64[n, 4])."""
        self._room.came(days, sums)

    def days_left(self, keys: IntArray, sums: IntArray) -> None:
        """Hear that days have left memory: rows of org and day int[n, 2], with sums int64[n, 4]."""
        self._room.let_go(keys, sums, days_from=self.live_days_from())

    # --- batches out -----------------------------------------------------------------------------------

    def drain(self) -> Outcomes:
        """Hand out the outcomes of the open batch, and begin the next batch."""
        outcomes = Outcomes(
            dead_letters=self.dead_letters.drain(),
            id_segments=self.ids.drain(),
            settled=self._settled,
            replayed_from_us=self._replayed_from_us,
        )
        self._settled, self._replayed_from_us = [], None
        self._room.forget()
        return outcomes

    def orgs_in_use(self) -> list[IntArray]:
        """The orgs (int[n] each) that must keep their numbers. Call it after `drain`."""
        high = np.array([org for org, _ in self._room.high], np.int64)
        return [self.ids.orgs(live_from=self.floor_us // HOUR_US), high]


def _live_from(columns: Columns, records: Records) -> IntArray:
    """For each event, the first hour whose ids still count (int32[n])."""
    return (records.floor_us[columns.source] // HOUR_US).astype(np.int32)
