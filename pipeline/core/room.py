"""Whether a sum has room for another event: a row holds at most 2^63 - 1.

The day of an org is judged: the sums over everything that a partition counted for one org in one UTC day.
Every row of that org and day is a part of these sums, at every grain, and under whatever model and client an
event is counted. So what fits into the day fits everywhere. The answer depends on the stream alone, not on
chunks, flushes or restarts.

In normal life no event is looked at. `Room` keeps a bound that no day passes. Each fold adds all that it
brings to the bound. Only when the bound comes near the limit are the days added up, and events judged one by
one.

A day that is not in memory has at most `Room.stored_most`, unless it is among `Room.high`. Where that does
not decide, the day is loaded first.
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
"""The columns of `windows.MEASURES`, and of the totals of cells, that are judged."""

_FIELDS: Final = ("inputTokens", "outputTokens", "costEstimateCents", "latencyMs")
_LATENCY_MAX: Final = 2**31
_EXACT_EVENTS: Final = 90_000
"""So many events at the highest cost (10^14) can be added up in int64."""


class Room:
    """Knows how full the days of a partition are. Not thread-safe."""

    def __init__(self, sum_max: int) -> None:
        self._sum_max = sum_max
        self.stored_most = sum_max // 4
        """No day that is not in memory has a higher sum when it leaves, or comes into `high`."""
        self.high: set[Day] = set()
        """Days that are not in memory and may be above `stored_most`."""
        self._most = float(self.stored_most)
        """No sum of any day is higher, but for those of `high`."""
        self._days: Rows | None = None
        """While events are judged one by one: the sums of the days; of those not in memory, what waits."""

    def suffices(self, columns: Columns) -> bool:
        """Is there room for all the events, without a look at each? Then they are taken for counted."""
        most = self._most + _total(columns)
        if self.high or most > self._sum_max // 2:
            return False
        self._days, self._most = None, most
        return True

    @property
    def looked(self) -> bool:
        return self._days is not None

    def look(self, parts: Iterable[tuple[IntArray, IntArray]]) -> None:
        """Add the days up: (org, day) int32[n, 2] and sums int64[n, 4], together all that was counted."""
        days = self._days = Rows(2, 4)
        for keys, sums in parts:
            rows = days.locate(np.ascontiguousarray(keys, np.int32))
            kernels.rows.add_sums(days.measures, rows, np.ascontiguousarray(sums), self._sum_max)
        self._most = float(self.stored_most) + float(days.measures.max())

    def forget(self) -> None:
        """After a batch: if events were judged one by one, look again whether they still must be."""
        if self._days is not None:
            self.doubt()

    def doubt(self) -> None:
        """Nothing is known of the days in memory: look before the next event is counted."""
        self._days, self._most = None, np.inf

    def undecided(self, columns: Columns, cold: IntArray) -> set[Day]:
        """The days outside memory (events ``cold`` bool[n]) that must be loaded before anything is judged."""
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
        """Judge n events in order, taking the room of those that are to be counted.

        ``known`` bool[n]: those whose ids are remembered, which take no room. The second of two events of one
        id takes none either, unless the first lies before the hour ``live_from`` (int32[n]) of the second.
        Returns uint8[n]: 0, or a bit for each of the sums without room (see `faults`).
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
        """The days ``keys`` leave memory with these sums; no event comes for days before ``days_from``."""
        left = Rows(2, 4)
        rows = left.locate(np.ascontiguousarray(keys, np.int32))
        kernels.rows.add_sums(left.measures, rows, np.ascontiguousarray(sums), self._sum_max)
        high = left.measures[: len(left)].max(axis=1, initial=0) > self.stored_most
        self.high.update((int(org), int(day)) for org, day in left.keys[: len(left)][high].tolist())
        self.high = {day for day in self.high if day[1] >= days_from}

    def came(self, days: Sequence[Day], sums: IntArray) -> None:
        """These days are in memory now, with rows of these sums int64[n, 4]."""
        highest = sums.sum(axis=0, dtype=np.float64).max()
        if self._days is not None or highest > self.stored_most or not self.high.isdisjoint(days):
            self.high.difference_update(days)
            self.doubt()


def faults(short: int) -> tuple[Fault, ...]:
    """What a dead letter says of an event that `Room.judge` gave these bits."""
    return tuple(
        Fault(field, "no room in the bucket's sum") for bit, field in enumerate(_FIELDS) if short >> bit & 1
    )


def _days_of(columns: Columns) -> IntArray:
    return np.stack((columns.org, columns.occurred_us // DAY_US), axis=1).astype(np.int32)


def _sums_of(columns: Columns) -> IntArray:
    c = columns
    return np.stack((c.input_tokens, c.output_tokens, c.cost_microcents, c.latency_ms), axis=1)


def _total(columns: Columns) -> float:
    """At least the highest of the sums over the events."""
    n = len(columns)
    kind = np.int64 if n < _EXACT_EVENTS else np.float64
    sums = (columns.input_tokens, columns.output_tokens, columns.cost_microcents)
    return max(float(n * _LATENCY_MAX), *(float(column.sum(dtype=kind)) for column in sums))
