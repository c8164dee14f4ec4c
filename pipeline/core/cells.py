"""Accepted events added up by org, minute, model and client, before they reach any table.

Where dimensions are set, each event is added up once more for each dimension, with the value of the dimension
in place of the client.

Every row of every table is a sum of cells: an hour is sixty minutes, and a model's row is the sum over its
clients. So an event costs one look-up and one addition here, with any number of tables. Later the tables
are updated cell by cell. For example, 500 events of one org, minute, model and client are one cell, and each
table then gets one addition instead of 500. Cells keep the order in which their first events came.

`pipeline.core.rollups` decides which cells can be added, because it knows which rows are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels, sketches
from pipeline.core.events import DETAILS, Columns, Reader
from pipeline.core.watermark import MINUTE_US
from pipeline.core.windows import BUCKET, CLIENT, CODE, LATE_DAY, MODEL, ORG, RATE, Grain, Rows

IntArray = npt.NDArray[Any]

MINUTE: Final = BUCKET
"""The column of the minute in the key of a cell. In the key of a row this column is the bucket."""
CELL_KEY: Final = CLIENT + 1
FAILURE_KEY: Final = CODE + 1
"""Widths of the keys of cells and of failures."""

FIRST_US, LAST_US = LATE_DAY + 1, LATE_DAY + 2
LABEL: Final = slice(LAST_US + 1 + len(DETAILS), LAST_US + 4 + len(DETAILS))
TOTALS: Final = LABEL.stop
"""Columns of the totals of a cell.

The first ten of `windows.MEASURES`, then the events that were late for their minute, hour and day, then the
first and the last event time, then the sums of `events.DETAILS`, then the newest label of the model: the time
of its event (0: there is none), provider and model name.
"""

_LOW_BINS: Final = sketches.bin_of(np.arange(1 << 16)).astype(np.uint16)


@dataclass(slots=True, kw_only=True)
class Cells:
    """Sums of events, by cell, and counts of failed events, by failure."""

    keys: IntArray
    """int32[n, 4]"""
    totals: IntArray
    """int64[n, `TOTALS`]"""
    pair_cells: IntArray
    pair_bins: IntArray
    pair_counts: IntArray
    """int64[m] each, sorted by cell and bin: how many events of a cell fell into a bin of the sketch."""
    failure_keys: IntArray
    """int32[f, 6]"""
    failure_counts: IntArray
    """int64[f]"""
    named: bool = False
    """The caps of the hour have already been applied to the models, clients (or values) and error codes."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, cells: IntArray, failures: IntArray) -> Cells:
        """The cells and the failures that two masks select."""
        numbers = np.cumsum(cells) - 1
        pairs = cells[self.pair_cells]
        return Cells(
            keys=self.keys[cells],
            totals=self.totals[cells],
            pair_cells=numbers[self.pair_cells[pairs]],
            pair_bins=self.pair_bins[pairs],
            pair_counts=self.pair_counts[pairs],
            failure_keys=self.failure_keys[failures],
            failure_counts=self.failure_counts[failures],
            named=self.named,
        )


def buckets(keys: IntArray, grain: Grain) -> IntArray:
    """For each key, the bucket of a grain that its minute lies in (int64[n])."""
    return keys[:, MINUTE].astype(np.int64) // (grain.length_us // MINUTE_US)


def row_keys(keys: IntArray, grain: Grain) -> IntArray:
    """For each cell or failure, the key of the row of a grain that it is added to (int32[n, k])."""
    # copy() makes C-ordered arrays, the one kind that the kernels are compiled for.
    rows: IntArray = keys[:, : len(grain.key)].copy()
    rows[:, BUCKET] = buckets(keys, grain)
    return rows


class _Sums:
    """Cells of one breakdown while they are gathered: by client, or by the value of one dimension."""

    def __init__(self, room: int) -> None:
        """Begin with no cells, and with room for about ``room`` of them."""
        self.rows = Rows(CELL_KEY, TOTALS)
        self.rows.reserve(room)
        self.cells: list[IntArray] = []
        """For each call of `Gathering.add`: the cell (int64[n]) of each event."""

    def taken(self, bins: IntArray) -> Cells:
        """The cells, without failures. ``bins`` int64[n] has the bins of all events."""
        cells = np.concatenate(self.cells)
        totals = self.rows.measures[: self.rows.used]
        pairs = tuple(np.empty(len(cells), np.int64) for _ in range(3))
        found = kernels.sketches.pair_up(
            cells,
            bins,
            np.cumsum(totals[:, 0]) - totals[:, 0],
            np.empty(len(cells), np.int64),
            np.zeros(sketches.BINS, np.int64),
            *pairs,
        )
        return Cells(
            keys=self.rows.keys[: self.rows.used],
            totals=totals,
            pair_cells=pairs[0][:found],
            pair_bins=pairs[1][:found],
            pair_counts=pairs[2][:found],
            failure_keys=np.empty((0, FAILURE_KEY), np.int32),
            failure_counts=np.empty(0, np.int64),
        )


class Gathering:
    """Adds events to cells until the cells are taken out.

    There are cells by client, and cells by value for each dimension. An event is added once to each of these.
    """

    def __init__(self, reader: Reader) -> None:
        """``reader`` has numbered the labels of the events."""
        self._reader = reader
        self._start([0] * (1 + len(reader.dimensions)))

    def _start(self, rooms: Sequence[int]) -> None:
        """Begin with no cells, and with room for about as many as there were last time."""
        self._sums = [_Sums(room) for room in rooms]
        self._failures = Rows(FAILURE_KEY, 1)
        self._bins: list[IntArray] = []

    def add(self, columns: Columns, met_us: IntArray) -> None:
        """Add events. ``met_us`` int64[n] is the watermark that each event met on arrival."""
        c = columns
        keys = np.empty((len(c), CELL_KEY), np.int32)
        keys[:, ORG], keys[:, MODEL], keys[:, RATE], keys[:, CLIENT] = c.org, c.model, c.rate_class, c.client
        keys[:, MINUTE] = c.occurred_us // MINUTE_US
        bins = np.empty(len(c), np.int64)
        kernels.sketches.bins_of(c.latency_ms, _LOW_BINS, sketches.EDGES, bins)
        self._bins.append(bins)
        by_client, *by_value = self._sums
        self._accumulate(by_client, keys, c, met_us, c.labels)
        failed = np.flatnonzero(c.status)
        if len(failed):
            key = np.column_stack((keys[failed], c.status[failed], c.error_code[failed])).astype(np.int32)
            rows = self._failures.locate(key)  # first: it may move the counts to a larger array
            kernels.rows.count(self._failures.measures, rows, np.ones(len(rows), np.int64))
        no_labels = np.zeros_like(c.labels) if by_value else c.labels
        for place, sums in enumerate(by_value):
            keys[:, CLIENT] = c.values[:, place]
            self._accumulate(sums, keys, c, met_us, no_labels)

    def _accumulate(
        self, sums: _Sums, keys: IntArray, c: Columns, met_us: IntArray, labels: IntArray
    ) -> None:
        cells = sums.rows.locate(keys)
        fits = kernels.rows.accumulate(
            sums.rows.measures,
            cells,
            c.occurred_us,
            met_us,
            c.status,
            c.input_tokens,
            c.output_tokens,
            c.cost_microcents,
            c.latency_ms,
            c.details,
            labels,
            *self._reader.labels.pooled,
        )
        assert fits, "a minute has no room for events that were accepted"
        sums.cells.append(cells)

    @property
    def cell_counts(self) -> list[int]:
        """How many cells have been gathered: by client, and then by each dimension."""
        return [len(sums.rows) for sums in self._sums]

    @property
    def failure_count(self) -> int:
        return len(self._failures)

    def take(self) -> list[Cells] | None:
        """Take out the cells since the last time: by client, and then by each dimension.

        The cells by client have the failures. None if no event has been added.
        """
        if not self._bins:
            return None
        bins, failures = np.concatenate(self._bins), self._failures
        by_client, *by_value = [sums.taken(bins) for sums in self._sums]
        by_client.failure_keys = failures.keys[: failures.used]
        by_client.failure_counts = failures.measures[: failures.used, 0]
        self._start(self.cell_counts)
        return [by_client, *by_value]
