"""Rollup rows in memory: tables of buckets keyed by small integers, with counts and latency sketches.

A `Table` owns its rows. It knows which rows are dirty and which blocks are resident. A *block* is all rows of
one org and one bucket. A block is either wholly in memory or wholly not. Every block that begins at or after
the table's ``horizon`` is in memory, and an earlier block only if it has been loaded. A block outside memory
is *cold*: `pipeline.core.rollups` holds events for it back until the block has been loaded. For example, the
horizon of the hours is 09:00. The block of 10:00 is resident even if it has no row yet. The block of 08:00
must be loaded before an event is added to it. Tables know nothing of partitions or of the database.

Keys are int32 columns (org, bucket, model, rate class[, client[, status, error code]]). `events.Reader` gives
out the numbers in them, except that ``bucket`` is the bucket's start divided by the bucket's length, and that
the database numbers the rate classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels, sketches
from pipeline.core.events import DETAILS
from pipeline.core.secret import SECRET
from pipeline.core.watermark import DAY_US, HOUR_US, MINUTE_US, QUARTER_US

IntArray = npt.NDArray[Any]

MEASURES: Final = (
    "invocations",
    "successes",
    "errors",
    "timeouts",
    "throttles",
    "input_tokens",
    "output_tokens",
    "cost_microcents",
    "latency_sum_ms",
    "latency_max_ms",
    "revision",
    *DETAILS,
)
"""Columns of a rollup row's measures, int64 each."""

COUNT: Final = ("count",)
"""The one measure of a table that only counts."""

LATE_MINUTE, LATE_HOUR, LATE_DAY = 10, 11, 12
"""Columns of the totals of cells (`cells.TOTALS`): events that were late for their minute, hour or day."""

ORG, BUCKET, MODEL, RATE, CLIENT, STATUS, CODE = range(7)
"""Columns of a row's key. The keys of cells have the same columns, with the minute as their bucket.

In the rows and cells of a dimension, the column `CLIENT` has the value of the dimension.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grain:
    """One rollup table: its name in the database, its bucket length, its key and its measures."""

    name: str
    length_us: int
    key: tuple[int, ...]
    """Columns of the key: the first ones, from `ORG` on."""
    measures: tuple[str, ...] = MEASURES
    """`MEASURES`, with a sketch for each row, or `COUNT` without."""
    late: int | None = None
    """The column of the cells' totals that becomes the measure ``revision``; None without that measure."""
    capped: tuple[int, ...] = ()
    """Key columns under a `NameCap` of the hour. The rows of this grain show which names the cap let in."""
    resident_us: int
    """How far behind the watermark a block's end must lie before the block leaves memory."""
    texts: tuple[str, ...] = ()
    """The columns of the key in the database that hold a text."""
    dimension: str = ""
    """The dimension that the rows belong to. '' for the tables of models, clients and error codes."""
    split_only: bool = False
    """Only the split hours (`rules.Rules.split_hours`) have rows."""

    @property
    def counts_only(self) -> bool:
        return self.measures == COUNT

    def of(self, dimension: str) -> Grain:
        """The rows of one dimension in this table."""
        return replace(self, dimension=dimension)


USAGE_MINUTE: Final = Grain(
    name="usage_minute",
    length_us=MINUTE_US,
    key=(ORG, BUCKET, MODEL, RATE),
    late=LATE_MINUTE,
    resident_us=2 * MINUTE_US,
)
USAGE_HOUR: Final = Grain(
    name="usage_hour",
    length_us=HOUR_US,
    key=(ORG, BUCKET, MODEL, RATE),
    late=LATE_HOUR,
    resident_us=10 * MINUTE_US,
)
USAGE_DAY: Final = Grain(
    name="usage_day",
    length_us=DAY_US,
    key=(ORG, BUCKET, MODEL, RATE),
    late=LATE_DAY,
    resident_us=HOUR_US,
)
CLIENT_HOUR: Final = Grain(
    name="client_hour",
    length_us=HOUR_US,
    key=(ORG, BUCKET, MODEL, RATE, CLIENT),
    late=LATE_HOUR,
    capped=(MODEL, CLIENT),
    resident_us=10 * MINUTE_US,
    texts=("client_id",),
)
CLIENT_DAY: Final = Grain(
    name="client_day",
    length_us=DAY_US,
    key=(ORG, BUCKET, MODEL, RATE, CLIENT),
    late=LATE_DAY,
    resident_us=HOUR_US,
    texts=("client_id",),
)
BREAKDOWN_HOUR: Final = replace(
    CLIENT_HOUR, name="breakdown_hour", capped=(CLIENT,), texts=("dimension", "value")
)
BREAKDOWN_DAY: Final = replace(CLIENT_DAY, name="breakdown_day", texts=("dimension", "value"))
ERRORS: Final = Grain(
    name="usage_errors_hour",
    length_us=HOUR_US,
    key=(ORG, BUCKET, MODEL, RATE, CLIENT, STATUS, CODE),
    measures=COUNT,
    capped=(CODE,),
    resident_us=10 * MINUTE_US,
    texts=("client_id", "error_code"),
)
USAGE_QUARTER: Final = Grain(
    name="usage_quarter",
    length_us=QUARTER_US,
    key=(ORG, BUCKET, MODEL, RATE),
    late=LATE_HOUR,
    resident_us=10 * MINUTE_US,
    split_only=True,
)
"""The quarters of the split hours: hours in which a day of some time zone begins off the hour.

Such a day is whole hours and quarters, so it needs no minute rows, and a price that changes inside changes
between its rows. For example, a day from 18:30 to 18:30 has the quarters of 18:30 and 18:45, the hours from
19:00 to 18:00, and the quarters of 18:00 and 18:15. ``revision`` counts the events that were late for the
hour.
"""
GRAINS: Final = (USAGE_MINUTE, USAGE_HOUR, USAGE_DAY, CLIENT_HOUR, CLIENT_DAY)
BREAKDOWNS: Final = (BREAKDOWN_HOUR, BREAKDOWN_DAY)
"""The tables of all dimensions. `Grain.of` picks the rows of one of them."""
ALL_GRAINS: Final = (*GRAINS, USAGE_QUARTER, *BREAKDOWNS, ERRORS)
"""All tables of rollups. The rows of all dimensions are in the same tables."""


class Rows:
    """A growing hash table of int64 measures by a key of int32 columns. All tables here are built on it."""

    def __init__(self, key_width: int, measure_count: int) -> None:
        self.keys: IntArray = np.empty((256, key_width), np.int32)
        self.measures: IntArray = np.zeros((256, measure_count), np.int64)
        self.used = 0
        self._slots: IntArray = np.full(1024, -1, np.int32)

    def __len__(self) -> int:
        return self.used

    @property
    def memory_bytes(self) -> int:
        return self.keys.nbytes + self.measures.nbytes + self._slots.nbytes

    def locate(self, wanted: IntArray) -> IntArray:
        """Find the row (int64[n]) of each key of ``wanted`` int32[n, k]. A new key gets a row of zeros."""
        self.reserve(len(wanted))
        rows = np.empty(len(wanted), np.int64)
        self.used = kernels.rows.locate(SECRET, self._slots, self.keys, self.used, wanted, rows)
        return rows

    def reserve(self, more: int) -> None:
        """Make room for ``more`` keys. Call this before the arrays are passed to a kernel."""
        room = self.used + more
        if room > len(self.keys):
            size = max(room, 2 * len(self.keys))
            self.keys = _grown(self.keys, size)
            self.measures = _grown(self.measures, size)
        if 2 * room > len(self._slots):
            self._index(room)

    def _index(self, room: int) -> None:
        self._slots = np.full(1 << (4 * room).bit_length(), -1, np.int32)
        known = self.keys[: self.used].copy()
        kernels.rows.locate(SECRET, self._slots, self.keys, 0, known, np.empty(len(known), np.int64))

    def keep(self, kept: IntArray) -> None:
        """Keep only the rows ``kept`` (ascending row numbers). They get new numbers in the same order."""
        size = max(256, len(kept))
        self.keys = _grown(self.keys.take(kept, axis=0), size)
        self.measures = _grown(self.measures.take(kept, axis=0), size)
        self.used = len(kept)
        self._index(max(256, self.used))


def _grown(array: IntArray, size: int) -> IntArray:
    grown = np.zeros((size, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


class Blobs(Sequence[bytes]):
    """A sequence of n byte strings in one array: number i is ``text[edges[i]:edges[i + 1]]``.

    ``text`` is uint8[...], and ``edges`` is int64[n + 1].
    """

    def __init__(self, text: IntArray, edges: IntArray) -> None:
        self.text, self.edges = text, edges

    def __len__(self) -> int:
        return len(self.edges) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.text[self.edges[place] : self.edges[place + 1]].tobytes()


@dataclass(slots=True)
class TableRows:
    """Rows on their way to or from the database: arrays of one length, in the order of the key."""

    grain: Grain
    keys: IntArray
    """int32[n, k], the same numbers as in the table."""
    measures: IntArray
    """int64[n, m]"""
    sketches: Sequence[bytes]
    """One sketch a row; empty for a table that only counts."""
    known: IntArray | None = None
    """bool[n], of rows on their way to the database: is the row there already?"""

    def __len__(self) -> int:
        return len(self.keys)


class Table:
    """The resident rows of one grain. Each row has a sketch, unless the grain only counts."""

    def __init__(self, grain: Grain) -> None:
        self.grain = grain
        self.horizon = -(2**31)
        """Every block from this bucket on is resident."""
        self._rows = Rows(len(grain.key), len(grain.measures))
        self._dirty: IntArray = np.zeros(256, np.bool_)
        self._known: IntArray = np.zeros(256, np.bool_)
        """Is the row in the database?"""
        self._loaded: set[tuple[int, int]] = set()
        self._place: IntArray = np.zeros((256, 3), np.int64)
        self._reset_pool()

    def _reset_pool(self) -> None:
        self._pool_bins: IntArray = np.empty(4096, np.uint16)
        self._pool_counts: IntArray = np.empty(4096, np.int64)
        self._pool_state: IntArray = np.full(16, -1, np.int64)
        self._pool_state[0] = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def loaded_count(self) -> int:
        """How many blocks before the horizon have been loaded and are resident."""
        return len(self._loaded)

    @property
    def dirty_count(self) -> int:
        return int(np.count_nonzero(self._dirty[: len(self._rows)]))

    @property
    def memory_bytes(self) -> int:
        pool = self._pool_bins.nbytes + self._pool_counts.nbytes + self._place.nbytes
        return self._rows.memory_bytes + pool

    # --- adding events ---------------------------------------------------------------------------

    def cold(self, org: IntArray, bucket: IntArray) -> IntArray:
        """Mask (bool[n]) of the events whose block is not resident."""
        below = bucket < self.horizon
        if below.any() and self._loaded:
            for i in np.flatnonzero(below).tolist():
                if (int(org[i]), int(bucket[i])) in self._loaded:
                    below[i] = False
        return below

    def add(self, keys: IntArray, totals: IntArray, pairs: tuple[IntArray, IntArray, IntArray]) -> None:
        """Add n cells of resident blocks to their rows.

        ``keys`` is int32[n, k], and ``totals`` is int64[n, 23] (`cells.TOTALS`). ``pairs`` has the bins of
        the sketches: (cell, bin, count), int64[m] each, sorted by cell and bin.
        """
        assert self.grain.late is not None, f"{self.grain.name} only counts"
        rows = self._touch(keys)
        fits = kernels.rows.add_totals(self._rows.measures, rows, totals, self.grain.late)
        assert fits, f"a bucket of {self.grain.name} has no room for events that were accepted"
        cells, bins, counts = pairs
        self._add_bins(rows[cells], bins, counts)

    def count(self, keys: IntArray, counts: IntArray) -> None:
        """Add a count to the row of each key, in a table that only counts."""
        rows = self._touch(keys)  # first: it may move the measures to a larger array
        kernels.rows.count(self._rows.measures, rows, counts)

    def _touch(self, keys: IntArray) -> IntArray:
        rows = self._rows.locate(keys)
        size = len(self._rows.keys)
        if size > len(self._dirty):
            self._dirty = _grown(self._dirty, size)
            self._known = _grown(self._known, size)
            self._place = _grown(self._place, size)
        self._dirty[rows] = True
        return rows

    def _add_bins(self, rows: IntArray, bins: IntArray, counts: IntArray) -> None:
        done = 0
        while True:
            done = kernels.sketches.add(
                self._pool_bins,
                self._pool_counts,
                self._pool_state,
                self._place,
                rows,
                bins,
                counts,
                done,
            )
            if done == len(rows):
                return
            size = 2 * len(self._pool_bins)
            self._pool_bins = _grown(self._pool_bins, size)
            self._pool_counts = _grown(self._pool_counts, size)

    # --- to and from the database -------------------------------------------------------------------

    def adopt(self, rows: TableRows, blocks: Sequence[tuple[int, int]] = ()) -> None:
        """Take in rows from the database. ``blocks`` are resident from now on, also a block without rows.

        The blocks must be cold. In a resident block the rows from the database would replace rows that have
        counted since, and these counts would be lost.
        """
        self._loaded.update(blocks)
        if not len(rows):
            return
        places = self._touch(rows.keys)
        self._rows.measures[places] = rows.measures
        self._dirty[places] = False
        self._known[places] = True
        if not self.grain.counts_only:
            parts = [sketches.decode(sketch) for sketch in rows.sketches]
            bins = np.concatenate([bins for bins, _ in parts])
            counts = np.concatenate([counts for _, counts in parts])
            self._add_bins(np.repeat(places, [len(b) for b, _ in parts]), bins, counts)

    def drain(self, order: Callable[[IntArray], IntArray]) -> TableRows:
        """Hand out the dirty rows in full, and mark them clean.

        The rows must then be committed. If they cannot be committed, the ledger must be thrown away.

        ``order`` takes keys int32[n, k] and returns the order in which to hand the rows out (int64[n]).
        """
        rows = np.flatnonzero(self._dirty[: len(self._rows)])
        self._dirty[rows] = False
        keys, measures = self._rows.keys, self._rows.measures
        rows = rows[order(keys.take(rows, axis=0))]
        known = self._known.take(rows)
        self._known[rows] = True
        return TableRows(
            self.grain,
            keys.take(rows, axis=0),
            measures.take(rows, axis=0),
            self._encode_sketches(rows),
            known=known,
        )

    def _encode_sketches(self, rows: IntArray) -> Sequence[bytes]:
        if self.grain.counts_only:
            return ()
        out = np.empty(int((3 + 10 * self._place[rows, 1]).sum()), np.uint8)
        edges = np.zeros(len(rows) + 1, np.int64)
        kernels.sketches.encode(self._pool_bins, self._pool_counts, self._place, rows, out, edges[1:])
        return Blobs(out[: edges[-1]], edges)

    def measures_before(self, bucket: int) -> tuple[IntArray, IntArray]:
        """Keys int32[n, k] and measures int64[n, m] of the resident rows before ``bucket``."""
        mine = self._rows.keys[: len(self._rows), 1] < bucket
        return self._rows.keys[: len(self._rows)][mine], self._rows.measures[: len(self._rows)][mine]

    def evict(self, horizon: int) -> None:
        """Drop the blocks before ``horizon`` from memory. Every row must be clean."""
        rows = self._rows
        self._loaded.clear()
        self.horizon = max(self.horizon, horizon)
        kept = np.flatnonzero(rows.keys[: rows.used, 1] >= self.horizon)
        if len(kept) == rows.used:
            return
        place = self._place[kept]
        pairs = np.repeat(place[:, 0] - np.cumsum(place[:, 1]) + place[:, 1], place[:, 1])
        pairs += np.arange(len(pairs))
        bins, counts = self._pool_bins[pairs].astype(np.int64), self._pool_counts[pairs]
        rows.keep(kept)
        self._dirty = np.zeros(len(rows.keys), np.bool_)
        self._known = np.zeros(len(rows.keys), np.bool_)
        self._known[: len(kept)] = True  # every row is clean, so it has been committed
        self._place = np.zeros((len(rows.keys), 3), np.int64)
        self._reset_pool()
        if not self.grain.counts_only:
            self._add_bins(np.repeat(np.arange(len(kept)), place[:, 1]), bins, counts)

    def renumber(self, column: int, numbers: IntArray) -> None:
        """Replace the numbers of a key column by ``numbers[old]``."""
        self._rows.keys[: len(self._rows), column] = numbers[self._rows.keys[: len(self._rows), column]]
        self._rows.keep(np.arange(len(self._rows)))

    def column(self, column: int) -> IntArray:
        """One key column of all resident rows, int32[rows]."""
        return self._rows.keys[: len(self._rows), column]

    def orgs(self) -> IntArray:
        """The orgs (int64[n]) of all resident rows and blocks. An org may appear more than once."""
        loaded = np.array([org for org, _ in self._loaded], np.int64)
        return np.concatenate((self.column(0), loaded))


class Spans:
    """The first and the last event time of each key, since the last `drain`."""

    def __init__(self, key_width: int) -> None:
        self._key_width = key_width
        self._rows = Rows(key_width, 2)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, keys: IntArray, first_us: IntArray, last_us: IntArray) -> None:
        rows = self._rows.locate(keys)  # first: it may move the spans to a larger array
        kernels.rows.span(self._rows.measures, rows, first_us, last_us)

    def drain(self) -> tuple[IntArray, IntArray]:
        """Hand out keys int32[n, k] and (first, last) int64[n, 2] in microseconds, and start anew."""
        rows, self._rows = self._rows, Rows(self._key_width, 2)
        return rows.keys[: rows.used], rows.measures[: rows.used]


class Labels:
    """The newest labels of each (org, model), since the last `drain`."""

    def __init__(self) -> None:
        self._rows = Rows(2, 3)

    def add(self, keys: IntArray, labels: IntArray, pooled: tuple[IntArray, IntArray]) -> None:
        """Take in n labels int64[n, 3] (time in microseconds, provider, model name).

        ``pooled`` has the texts: see `events.Names.pooled`.
        """
        rows = self._rows.locate(keys)  # first: it may move the measures to a larger array
        kernels.rows.put_labels(self._rows.measures, rows, labels, *pooled)

    def drain(self, keys: IntArray) -> IntArray:
        """Hand out (time in microseconds, provider, model name) int64[n, 3] of ``keys``, and start anew.

        The time is 0 for a key without labels.
        """
        rows, self._rows = self._rows, Rows(2, 3)
        places = rows.locate(keys)
        return rows.measures[places]

    @property
    def memory_bytes(self) -> int:
        return self._rows.memory_bytes


class NameCap:
    """Lets the first ``cap`` names of an org's hour have rows of their own.

    A name is a model, a client or an error code: one cap is for one of the three. All other names of the hour
    are counted under one name, the *overflow*. For example, the cap is 1000, and an org calls 1003 models
    between 09:00 and 10:00. The 1000 models that came first have rows of their own. The other three share the
    row of the overflow.

    The number ``overflow`` and the numbers below it are under no cap.
    """

    def __init__(self, cap: int, *, overflow: int) -> None:
        self.overflow = overflow
        self._cap = cap
        self._names = Rows(3, 1)
        self._groups = Rows(2, 1)

    def apply(self, org: IntArray, hour: IntArray, name: IntArray) -> IntArray:
        """Apply the cap to names int32[n] in their order: a name over the cap becomes the overflow, in place.

        A name that the cap has let in stays in for the org's hour. For example, the cap is 2, and the names
        5, 7, 5, 9 come. 5 and 7 are let in, the second 5 stays, and 9 becomes the overflow. Returns the
        places (int64[m]) of the names that became the overflow: here the last place.
        """
        named = np.flatnonzero(name > self.overflow)
        over = named[~self._admit(org[named], hour[named], name[named], self._cap)]
        name[over] = self.overflow
        return over

    def restore(self, org: IntArray, hour: IntArray, name: IntArray) -> None:
        """Let in names that have rows in the database. The cap let them in before, and may be lower now."""
        named = np.flatnonzero(name > self.overflow)
        self._admit(org[named], hour[named], name[named], 2**62)

    def counted(self, org: IntArray, hour: IntArray, name: IntArray) -> IntArray:
        """The name under which `apply` had each name counted (int32[n]): its own, or the overflow."""
        counted = name.astype(np.int32)
        named = np.flatnonzero(counted > self.overflow)
        known = self._admit(org[named], hour[named], counted[named], 0)
        counted[named[~known]] = self.overflow
        return counted

    def _admit(self, org: IntArray, hour: IntArray, name: IntArray, cap: int) -> IntArray:
        """Mask (bool[n]) of the names that have a row of their own. New names get one up to ``cap``."""
        groups = self._groups.locate(np.stack((org, hour), axis=1).astype(np.int32))
        counts = self._groups.measures[:, 0]
        names = self._names
        names.reserve(len(org))
        out = np.empty(len(org), np.bool_)
        names.used = kernels.rows.admit(
            SECRET,
            names._slots,
            names.keys,
            names.used,
            counts,
            groups,
            np.stack((org, hour, name), axis=1).astype(np.int32),
            cap,
            out,
        )
        return out

    def evict(self, hour: int) -> None:
        """Forget the hours before ``hour``."""
        for rows in (self._names, self._groups):
            rows.keep(np.flatnonzero(rows.keys[: rows.used, 1] >= hour))

    def renumber(self, numbers: IntArray) -> None:
        """Replace each name by ``numbers[name]``."""
        names = self._names
        names.keys[: names.used, 2] = numbers[names.keys[: names.used, 2]]
        names.keep(np.arange(names.used))

    def names(self) -> IntArray:
        return self._names.keys[: self._names.used, 2]

    def orgs(self) -> IntArray:
        return self._groups.keys[: self._groups.used, 0]

    @property
    def memory_bytes(self) -> int:
        return self._names.memory_bytes + self._groups.memory_bytes
