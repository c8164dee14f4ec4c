"""The compiled loops of the core: plain functions over NumPy arrays, one idea each.

Everything here is a loop that NumPy cannot say at speed: open addressing, adding into rows, sketch bins.
State belongs to the callers (`events`, `dedupe`, `windows`), which also grow the arrays: no kernel
allocates state or raises. Compiled once per machine and cached on disk by numba.

Hash tables are open addressing with linear probing over a power of two; ``slots`` holds a row number
or -1. Callers keep them at most half full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile a loop for machine arrays; it runs without the interpreter's lock."""
    made: _Function = numba.njit(cache=True, nogil=True)(function)
    return made


# --- hashing ------------------------------------------------------------------------------------


@compiled
def _mix(h: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    h = np.uint64(h)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@compiled
def _hash_pair(high: Any, low: Any) -> Any:
    return _mix(np.uint64(high) * np.uint64(0x9E3779B97F4A7C15) + _mix(low))


@compiled
def _hash_ints(row: Any) -> Any:
    h = np.uint64(0x9E3779B97F4A7C15)
    for value in row:
        h = _mix(h ^ np.uint64(np.uint32(value)))
    return h


@compiled
def intern_pairs(slots: Any, keys: Any, used: int, wanted: Any, out: Any) -> int:
    """Number 128-bit values: ``wanted`` uint64[n, 2] to ``out`` int32[n], the place in ``keys``.

    New values are appended to ``keys``; returns how many there are then.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(len(wanted)):
        high, low = wanted[i, 0], wanted[i, 1]
        slot = _hash_pair(high, low) & mask
        while True:
            row = slots[slot]
            if row < 0:
                keys[used, 0] = high
                keys[used, 1] = low
                slots[slot] = used
                out[i] = used
                used += 1
                break
            if keys[row, 0] == high and keys[row, 1] == low:
                out[i] = row
                break
            slot = (slot + np.uint64(1)) & mask
    return used


@compiled
def intern_texts(
    slots: Any, pool: Any, edges: Any, used: int, text: Any, ranges: Any, out: Any, begin: int
) -> Any:
    """Number the names ``text[ranges[i, 0] : ranges[i, 1]]`` for i from ``begin``: ``out`` int32[n].

    Name ``k`` is ``pool[edges[k] : edges[k + 1]]``; name 0 is the empty one. Returns how many names there are
    then and where it stopped: short of n only when ``pool`` is full.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(begin, len(ranges)):
        first = ranges[i, 0]
        length = ranges[i, 1] - first
        if length == 0:
            out[i] = 0
            continue
        h = np.uint64(length)
        for j in range(first, first + length):
            h = (h ^ np.uint64(text[j])) * np.uint64(0x100000001B3)
        slot = _mix(h) & mask
        while True:
            name = slots[slot]
            if name < 0:
                at = edges[used]
                if at + length > len(pool):
                    return used, i
                for j in range(length):
                    pool[at + j] = text[first + j]
                slots[slot] = used
                out[i] = used
                used += 1
                edges[used] = at + length
                break
            at = edges[name]
            same = edges[name + 1] - at == length
            if same:
                for j in range(length):
                    if pool[at + j] != text[first + j]:
                        same = False
                        break
            if same:
                out[i] = name
                break
            slot = (slot + np.uint64(1)) & mask
    return used, len(ranges)


@compiled
def payload_checks(
    model: Any,
    client: Any,
    client_crcs: Any,
    error_code: Any,
    error_crcs: Any,
    occurred: Any,
    latency: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    out: Any,
) -> None:
    """32 bits of each payload (everything that counts but the two ids) to tell a repeat from a conflict.

    ``model`` uint64[n, 2]; ``client`` and ``error_code`` are places in their CRCs. The bits are stored: a
    change of them makes every stored id a conflict.
    """
    for i in range(len(out)):
        h = _hash_pair(model[i, 0], model[i, 1])
        h = _mix(
            h ^ (np.uint64(client_crcs[client[i]]) << np.uint64(32)) ^ np.uint64(error_crcs[error_code[i]])
        )
        h = _mix(h ^ np.uint64(occurred[i]))
        h = _mix(h ^ np.uint64(latency[i]))
        h = _mix(h ^ np.uint64(status[i]))
        h = _mix(h ^ np.uint64(tokens_in[i]))
        h = _mix(h ^ np.uint64(tokens_out[i]))
        h = _mix(h ^ np.uint64(cost[i]))
        out[i] = np.uint32(h >> np.uint64(32))


# --- exact dedupe ---------------------------------------------------------------------------------

NEW: Final = 0
DUPLICATE: Final = 1
CONFLICT: Final = 2


@compiled
def remember(
    table_ids: Any,
    table_orgs: Any,
    table_hours: Any,
    table_checks: Any,
    ids: Any,
    orgs: Any,
    hours: Any,
    checks: Any,
    live_from: Any,
    outcomes: Any,
) -> int:
    """Look up and add (org, id) pairs in order; returns how many slots were taken.

    ``table_hours`` is hour + 1, 0 for an empty slot. An entry counts as forgotten for event ``i`` when its
    hour is below ``live_from[i]``; then the event takes the entry over. ``outcomes`` uint8[n].
    """
    mask = np.uint64(len(table_hours) - 1)
    taken = 0
    for i in range(len(ids)):
        high, low, org = ids[i, 0], ids[i, 1], orgs[i]
        slot = _hash_pair(high ^ _mix(np.uint64(org)), low) & mask
        while True:
            hour = table_hours[slot]
            if hour == 0:
                taken += 1
                outcomes[i] = 0
            elif table_ids[slot, 0] == high and table_ids[slot, 1] == low and table_orgs[slot] == org:
                if hour - 1 >= live_from[i]:
                    outcomes[i] = 1 if table_checks[slot] == checks[i] else 2
                    break
                outcomes[i] = 0
            else:
                slot = (slot + np.uint64(1)) & mask
                continue
            table_ids[slot, 0] = high
            table_ids[slot, 1] = low
            table_orgs[slot] = org
            table_hours[slot] = hours[i] + 1
            table_checks[slot] = checks[i]
            break
    return taken


# --- rows -----------------------------------------------------------------------------------------


@compiled
def locate(slots: Any, keys: Any, used: int, wanted: Any, rows: Any) -> int:
    """Find or append the row of each key: ``wanted`` int32[n, k] to ``rows`` int64[n]; returns rows used."""
    mask = np.uint64(len(slots) - 1)
    width = wanted.shape[1]
    for i in range(len(wanted)):
        slot = _hash_ints(wanted[i]) & mask
        while True:
            row = slots[slot]
            if row < 0:
                keys[used] = wanted[i]
                slots[slot] = used
                rows[i] = used
                used += 1
                break
            same = True
            for j in range(width):
                if keys[row, j] != wanted[i, j]:
                    same = False
                    break
            if same:
                rows[i] = row
                break
            slot = (slot + np.uint64(1)) & mask
    return used


@compiled
def admit(slots: Any, keys: Any, used: int, counts: Any, groups: Any, wanted: Any, cap: int, out: Any) -> int:
    """Give names a place of their own, in order, until a group has ``cap``; the rest gets ``out`` False.

    ``wanted`` int32[n, k] are (group, name) keys, ``groups`` int64[n] the place of the group in ``counts``.
    """
    mask = np.uint64(len(slots) - 1)
    width = wanted.shape[1]
    for i in range(len(wanted)):
        slot = _hash_ints(wanted[i]) & mask
        while True:
            row = slots[slot]
            if row < 0:
                out[i] = counts[groups[i]] < cap
                if out[i]:
                    counts[groups[i]] += 1
                    keys[used] = wanted[i]
                    slots[slot] = used
                    used += 1
                break
            same = True
            for j in range(width):
                if keys[row, j] != wanted[i, j]:
                    same = False
                    break
            if same:
                out[i] = True
                break
            slot = (slot + np.uint64(1)) & mask
    return used


@compiled
def accumulate(
    measures: Any, rows: Any, status: Any, tokens_in: Any, tokens_out: Any, cost: Any, latency: Any, late: Any
) -> bool:
    """Add events to rows of ``measures`` int64[rows, 11] (columns as `windows.MEASURES`).

    Returns False, with nothing of that event added, if a sum would pass 2^63 - 1.
    """
    top = np.int64(2**63 - 1)
    for i in range(len(rows)):
        m = measures[rows[i]]
        if m[7] > top - cost[i] or m[5] > top - tokens_in[i] or m[6] > top - tokens_out[i]:
            return False
        m[0] += 1
        m[1 + status[i]] += 1
        m[5] += tokens_in[i]
        m[6] += tokens_out[i]
        m[7] += cost[i]
        m[8] += latency[i]
        if latency[i] > m[9]:
            m[9] = latency[i]
        if late[i]:
            m[10] += 1
    return True


@compiled
def count(measures: Any, rows: Any) -> None:
    """Add one to column 0 of each row."""
    for row in rows:
        measures[row, 0] += 1


@compiled
def span(measures: Any, rows: Any, times: Any) -> None:
    """Widen rows of ``measures`` int64[rows, 2] (first, last; first 0 when fresh) to hold ``times``."""
    for i in range(len(rows)):
        m = measures[rows[i]]
        if m[0] == 0 or times[i] < m[0]:
            m[0] = times[i]
        if times[i] > m[1]:
            m[1] = times[i]


# --- sketches in a pool: each row has one block of a power of two of (bin, count) pairs -------------


@compiled
def sketch_add(
    pool_bins: Any, pool_counts: Any, state: Any, place: Any, rows: Any, bins: Any, counts: Any, begin: int
) -> int:
    """Add ``counts[i]`` to bin ``bins[i]`` of row ``rows[i]`` for i from ``begin``; returns where it stopped.

    It stops short of n only when the pool is full: grow it and call again. ``place`` int64[rows, 3]: start,
    length, size class (capacity 2**class, 0 when there is no block). ``state`` int64[16]: [0] the
    first unused pair, [c] the head of the list of free blocks of class c, or -1.
    """
    for i in range(begin, len(rows)):
        row, wanted = rows[i], bins[i]
        start, length, size = place[row, 0], place[row, 1], place[row, 2]
        low, high = start, start + length
        while low < high:
            middle = (low + high) >> 1
            if pool_bins[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        if low < start + length and pool_bins[low] == wanted:
            pool_counts[low] += counts[i]
            continue
        if size == 0 or length == 1 << size:
            larger = max(size + 1, 2)
            fresh = state[larger]
            if fresh >= 0:
                state[larger] = pool_counts[fresh]
            else:
                fresh = state[0]
                if fresh + (1 << larger) > len(pool_bins):
                    return i
                state[0] = fresh + (1 << larger)
            for j in range(length):
                pool_bins[fresh + j] = pool_bins[start + j]
                pool_counts[fresh + j] = pool_counts[start + j]
            if size > 0:
                pool_counts[start] = state[size]
                state[size] = start
            low += fresh - start
            start = fresh
            place[row, 0] = start
            place[row, 2] = larger
        for j in range(start + length, low, -1):
            pool_bins[j] = pool_bins[j - 1]
            pool_counts[j] = pool_counts[j - 1]
        pool_bins[low] = wanted
        pool_counts[low] = counts[i]
        place[row, 1] = length + 1
    return len(rows)


@compiled
def sketch_encode(pool_bins: Any, pool_counts: Any, place: Any, rows: Any, out: Any, ends: Any) -> None:
    """The bytes of `sketches.encode` for each row, one after another in ``out``; ``ends`` int64[n].

    ``out`` must have room for 3 + 10 bytes a pair and row.
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
                for k in range(gap_width):
                    out[at] = (gap >> (8 * k)) & 0xFF
                    at += 1
            for j in range(start, start + length):
                value = pool_counts[j]
                for k in range(count_width):
                    out[at] = (value >> (8 * k)) & 0xFF
                    at += 1
        ends[i] = at
