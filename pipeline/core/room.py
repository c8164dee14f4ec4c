"""Room in the sums: an event is rejected when a sum of its day would pass 2^63 - 1.

The sums of an org's day are judged: the sums over all events that a partition has counted for one org in one
UTC day. Every row of that org and day is a part of these sums, at every grain, and under every model and
client. So an event that fits into the day fits into every row. For example, the input tokens of a day sum up
to 2^63 - 11. An event with 10 input tokens is the last one to fit, and an event with 11 is rejected. The
answer depends on the stream alone, not on chunks, flushes or restarts.

Most of the time no event is looked at alone. `Room` keeps a bound: no sum of any day is higher. Each time
that the ledger folds buffered events into columns, it adds their sums to the bound. When the bound passes
half the limit, the sums of each day in memory are reckoned again, and the highest of them becomes the bound.
If that bound passes half the limit too, events are judged one by one.

The days outside memory are of two kinds. `Room.high` names those that may have a sum above
`Room.stored_most`, a quarter of the limit; while there is one, events are judged one by one. All other days
have at most a quarter. For example, waiting events bring 5 % of the limit to such a day. The day then has at
most 25 % + 5 % = 30 %, so the events fit and the day need not be loaded. A day is loaded if it is in
`Room.high`, or if its sums could pass 99 % of the limit. The missing 1 % is for the rounding of the estimate,
which is in floating point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels
from pipeline.core.events import Columns
from pipeline.core.watermark import DAY_US
from pipeline.core.windows import Rows
from pipeline.core.wire import Fault

IntArray = npt.NDArray[Any]
Day = tuple[int, int]
"""(org's number, day)"""

SUMS: Final = slice(5, 9)
"""The columns of `windows.MEASURES` that are judged. The totals of cells have the same columns."""

_FIELDS: Final = ("inputTokens", "outputTokens", "costEstimateCents", "latencyMs")
_LATENCY_MAX: Final = 2**31
_EXACT_EVENTS: Final = 90_000
"""Up to this many events at the highest cost (10^14) can be added up in int64."""


class Room:
    """Knows how full the days of one partition are. Not thread-safe."""

    def __init__(self, sum_max: int) -> None:
        self._sum_max = sum_max
        self.stored_most = sum_max // 4
        """A day that leaves memory with a higher sum than this goes into `high`."""
        self.high: set[Day] = set()
        """Days outside memory that may have a sum above `stored_most`."""
        self._most = float(self.stored_most)
        """The bound: no sum of any day is higher, except in the days of `high`."""
        self._days: Rows | None = None
        """The sums of the days, once they have been added up; None before.

        Of a day outside memory only the events that wait for it are in here.
        """

    def suffices(self, columns: Columns) -> bool:
        """Is there surely room for all the events together? If so, the bound grows by their sums."""
        most = self._most + _total(columns)
        if self.high or most > self._sum_max // 2:
            return False
        self._days, self._most = None, most
        return True

    @property
    def looked(self) -> bool:
        return self._days is not None

    def look(self, parts: Iterable[tuple[IntArray, IntArray]]) -> None:
        """Add up the days, and set the bound anew.

        The parts are (org, day) int32[n, 2] and sums int64[n, 4]. All parts together are all that was
        counted.
        """
        days = self._days = Rows(2, 4)
        for keys, sums in parts:
            rows = days.locate(np.ascontiguousarray(keys, np.int32))
            kernels.rows.add_sums(days.measures, rows, np.ascontiguousarray(sums), self._sum_max)
        self._most = float(self.stored_most) + float(days.measures.max())

    def forget(self) -> None:
        """Give up the sums of the days after a batch: the next fold adds them up again if it must."""
        if self._days is not None:
            self.doubt()

    def doubt(self) -> None:
        """Give up the bound: the days must be added up before the next event is counted."""
        self._days, self._most = None, np.inf

    def undecided(self, columns: Columns, cold: IntArray) -> set[Day]:
        """The days that must be loaded before any of the events is judged.

        ``cold`` bool[n] marks the events whose day is outside memory.
        """
        assert self._days is not None
        if not cold.any():
            return set()
        places = np.flatnonzero(cold)
        keys, sums = _days_of(columns)[places], _sums_of(columns)[places]
        rows = self._days.locate(keys)
        brought = np.zeros((len(self._days), 4))
        np.add.at(brought, rows, sums)
        reached = (self.stored_most + self._days.measures[: len(brought)].astype(np.float64) + brought).max(
            axis=1
        )
        wanted = set()
        for row in np.unique(rows).tolist():
            day = (int(self._days.keys[row, 0]), int(self._days.keys[row, 1]))
            if day in self.high or reached[row] > 0.99 * self._sum_max:
                wanted.add(day)
        return wanted

    def judge(self, columns: Columns, known: IntArray, live_from: IntArray) -> IntArray:
        """Judge n events in order. Each event that will count takes its room in the sums.

        ``known`` bool[n] marks the events whose ids are remembered. They will not count and take no room.
        When two of the n events have the same id and the first counts, the second takes no room either. The
        exception: the first lies before ``live_from`` (int32[n]), the first hour that counts for the second.
        Then the id of the first has lapsed, and both events count.

        Returns uint8[n]: 0 for an event that fits, else a bit for each sum without room (see `faults`).
        """
        assert self._days is not None
        rows = self._days.locate(_days_of(columns))
        ids = np.column_stack((columns.event.view(np.int32), columns.org)).astype(np.int32)
        groups = Rows(5, 1)
        group = groups.locate(ids)
        counted_in = np.full(len(groups), np.iinfo(np.int64).min, np.int64)
        short = np.zeros(len(columns), np.uint8)
        hours = columns.occurred_us // (DAY_US // 24)
        kernels.rows.take_room(
            self._days.measures,
            rows,
            _sums_of(columns),
            known,
            group,
            counted_in,
            hours,
            live_from,
            self._sum_max,
            short,
        )
        self._most += _total(columns)
        return short

    def let_go(self, keys: IntArray, sums: IntArray, *, days_from: int) -> None:
        """Note that the days ``keys`` leave memory with these sums. A day may have several rows.

        Days before ``days_from`` are forgotten, because no event is accepted for them any more.
        """
        left = Rows(2, 4)
        rows = left.locate(np.ascontiguousarray(keys, np.int32))
        kernels.rows.add_sums(left.measures, rows, np.ascontiguousarray(sums), self._sum_max)
        high = left.measures[: len(left)].max(axis=1, initial=0) > self.stored_most
        self.high.update((int(org), int(day)) for org, day in left.keys[: len(left)][high].tolist())
        self.high = {day for day in self.high if day[1] >= days_from}

    def came(self, days: Sequence[Day], sums: IntArray) -> None:
        """Note that these days have come into memory, with rows of these sums (int64[n, 4])."""
        highest = sums.sum(axis=0, dtype=np.float64).max()
        if self._days is not None or highest > self.stored_most or not self.high.isdisjoint(days):
            self.high.difference_update(days)
            self.doubt()


def faults(short: int) -> tuple[Fault, ...]:
    """The faults of a dead letter: one for each bit that `Room.judge` set."""
    return tuple(
        Fault(field, "no room in the bucket's sum") for bit, field in enumerate(_FIELDS) if short >> bit & 1
    )


def _days_of(columns: Columns) -> IntArray:
    return np.stack((columns.org, columns.occurred_us // DAY_US), axis=1).astype(np.int32)


def _sums_of(columns: Columns) -> IntArray:
    c = columns
    return np.stack((c.input_tokens, c.output_tokens, c.cost_microcents, c.latency_ms), axis=1)


def _total(columns: Columns) -> float:
    """A bound on the four sums over the events: none of them is higher."""
    n = len(columns)
    kind = np.int64 if n < _EXACT_EVENTS else np.float64
    sums = (columns.input_tokens, columns.output_tokens, columns.cost_microcents)
    return max(float(n * _LATENCY_MAX), *(float(column.sum(dtype=kind)) for column in sums))
