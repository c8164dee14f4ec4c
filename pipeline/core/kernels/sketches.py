"""Latency sketches: the bins of events, and the sketches of rows in a pool (`windows.Table`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.core.kernels.compile import compiled


@compiled
def bins_of(latency_ms: Any, low_bins: Any, edges: Any, out: Any) -> None:
    """The bin of each latency, as `sketches.bin_of` gives it: ``out`` int64[n].

    ``low_bins`` has the bins of 0 to 65535 ms, so that most latencies need no search.
    """
    for i in range(len(out)):
        value = latency_ms[i]
        if value < len(low_bins):
            out[i] = low_bins[value]
            continue
        low, high = 0, len(edges)
        while low < high:
            middle = (low + high) >> 1
            if edges[middle] <= value:
                low = middle + 1
            else:
                high = middle
        out[i] = low - 1


@compiled
def pair_up(
    cells: Any,
    bins: Any,
    places: Any,
    by_cell: Any,
    dense: Any,
    pair_cells: Any,
    pair_bins: Any,
    pair_counts: Any,
) -> int:
    """Count events by cell and bin; returns how many pairs of a cell and a bin there are.

    ``cells`` and ``bins``, int64[n] each, are those of the events. ``places`` has, for each cell, where its
    events begin when the events are sorted by cell. ``by_cell`` int64[n], and ``dense`` int64[bins], all 0,
    are working space. The pairs go into ``pair_cells``, ``pair_bins`` and ``pair_counts``, int64[n] each,
    from the front, sorted by cell and bin. For example, a cell with latencies in the bins 7, 9, 7 gives the
    pairs (cell, 7, 2) and (cell, 9, 1).

    The bins of a cell with few events are sorted. The bins of a cell with more than 12 events are counted in
    ``dense``.
    """
    for i in range(len(cells)):
        by_cell[places[cells[i]]] = bins[i]
        places[cells[i]] += 1  # ends as the place after the cell
    found = 0
    begin = 0
    for cell in range(len(places)):
        end = places[cell]
        if end - begin <= 12:
            for i in range(begin + 1, end):
                value = by_cell[i]
                j = i
                while j > begin and by_cell[j - 1] > value:
                    by_cell[j] = by_cell[j - 1]
                    j -= 1
                by_cell[j] = value
            for i in range(begin, end):
                if i > begin and by_cell[i] == by_cell[i - 1]:
                    pair_counts[found - 1] += 1
                    continue
                pair_cells[found] = cell
                pair_bins[found] = by_cell[i]
                pair_counts[found] = 1
                found += 1
        else:
            lowest = highest = by_cell[begin]
            for i in range(begin, end):
                value = by_cell[i]
                lowest, highest = min(lowest, value), max(highest, value)
                dense[value] += 1
            for value in range(lowest, highest + 1):
                if dense[value]:
                    pair_cells[found] = cell
                    pair_bins[found] = value
                    pair_counts[found] = dense[value]
                    dense[value] = 0
                    found += 1
        begin = end
    return found


# --- sketches in a pool: the pairs (bin, count) of a row lie in one block of 4, 8, 16 … pairs ------


@compiled
def add(
    pool_bins: Any, pool_counts: Any, state: Any, place: Any, rows: Any, bins: Any, counts: Any, begin: int
) -> int:
    """Add ``counts[i]`` to bin ``bins[i]`` of row ``rows[i]`` for i from ``begin``; returns where it stopped.

    The loop stops short of n only when the pool is full. The caller then grows the pool and calls again.

    ``place`` int64[rows, 3] has the block of each row: its start, its length, and its size class. A block of
    class c has room for 2**c pairs; class 0 means that the row has no block. ``state`` int64[16] has in [0]
    the first pair that was never used, and in [c] the first free block of class c, or -1. A free block has
    the next free block of its class in its first count.

    When ascending bins of one row follow each other, they are merged with the row's own bins in one go. For
    example, a row has the bins 3 and 8, and the bins 5, 8 and 9 come. The row then has 3, 5, 8 and 9, and the
    counts of the two 8 are added up.
    """
    while begin < len(rows):
        row = rows[begin]
        end = begin + 1
        while end < len(rows) and rows[end] == row and bins[end] > bins[end - 1]:
            end += 1
        start, length, size = place[row, 0], place[row, 1], place[row, 2]
        first, high = start, start + length  # first: the first own bin not below the first to add
        while first < high:
            middle = (first + high) >> 1
            if pool_bins[middle] < bins[begin]:
                first = middle + 1
            else:
                high = middle
        own_end = start + length
        own, more = first, 0
        for i in range(begin, end):
            while own < own_end and pool_bins[own] < bins[i]:
                own += 1
            if own == own_end or pool_bins[own] > bins[i]:
                more += 1
        if size == 0 or length + more > 1 << size:
            larger = max(size, 2)
            while length + more > 1 << larger:
                larger += 1
            fresh = state[larger]
            if fresh >= 0:
                state[larger] = pool_counts[fresh]
            else:
                fresh = state[0]
                if fresh + (1 << larger) > len(pool_bins):
                    return begin
                state[0] = fresh + (1 << larger)
            for j in range(length):
                pool_bins[fresh + j] = pool_bins[start + j]
                pool_counts[fresh + j] = pool_counts[start + j]
            if size > 0:
                pool_counts[start] = state[size]
                state[size] = start
            own_end += fresh - start
            first += fresh - start
            place[row, 0] = fresh
            place[row, 2] = larger
        place[row, 1] = length + more
        own, i = own_end - 1, end - 1
        while i >= begin:  # from the last to the first, so that no pair is overwritten before it moves
            if own >= first and pool_bins[own] > bins[i]:
                pool_bins[own + more] = pool_bins[own]
                pool_counts[own + more] = pool_counts[own]
                own -= 1
            elif own >= first and pool_bins[own] == bins[i]:
                pool_bins[own + more] = pool_bins[own]
                pool_counts[own + more] = pool_counts[own] + counts[i]
                own -= 1
                i -= 1
            else:
                pool_bins[own + more] = bins[i]
                pool_counts[own + more] = counts[i]
                more -= 1
                i -= 1
        begin = end
    return begin


@compiled
def encode(pool_bins: Any, pool_counts: Any, place: Any, rows: Any, out: Any, ends: Any) -> None:
    """Encode the sketch of each row as `sketches.encode` does, one after another in ``out``.

    ``ends`` int64[n] gets the end of each sketch. ``out`` must have room for 3 bytes a row and 10 bytes a
    pair.
    """
    at = 0
    for i in range(len(rows)):
        start, length = place[rows[i], 0], place[rows[i], 1]
        if length > 0:
            gap_width = 1
            top = np.int64(0)
            for j in range(start, start + length):
                top = max(top, pool_counts[j])
                if j > start and np.int64(pool_bins[j]) - np.int64(pool_bins[j - 1]) > 0xFF:
                    gap_width = 2
            count_width = 1 if top <= 0xFF else 2 if top <= 0xFFFF else 4 if top <= 0xFFFFFFFF else 8
            out[at] = gap_width | count_width << 4
            out[at + 1] = pool_bins[start] & 0xFF
            out[at + 2] = pool_bins[start] >> 8
            at += 3
            for j in range(start + 1, start + length):
                gap = np.int64(pool_bins[j]) - np.int64(pool_bins[j - 1])
                out[at] = gap & 0xFF
                if gap_width == 2:
                    out[at + 1] = gap >> 8
                at += gap_width
            for j in range(start, start + length):
                value = pool_counts[j]
                out[at] = value & 0xFF
                for k in range(1, count_width):
                    out[at + k] = (value >> (8 * k)) & 0xFF
                at += count_width
        ends[i] = at
