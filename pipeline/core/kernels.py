"""The compiled loops of the core: plain functions over NumPy arrays, one idea each.

Everything here is a loop that NumPy cannot say at speed: parsing fixed text, open addressing, adding
into rows, sketch bins. State belongs to the callers (`events`, `dedupe`, `windows`), which also grow the
arrays: no kernel allocates state or raises. Compiled once per machine and cached on disk by numba.

Hash tables are open addressing with linear probing over a power of two; ``slots`` holds a row number
or -1. Callers keep them at most half full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
import numpy as np

from pipeline.core import wire

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    compiled: _Function = numba.njit(cache=True, nogil=True, boundscheck=False)(function)
    return compiled


_days_from_civil = _compiled(wire.days_from_civil)
_days_in_month = _compiled(wire.days_in_month)
_COST_MAX: Final = wire.COST_MICROCENTS_MAX
_NUMBER_CHARS_MAX: Final = wire.NUMBER_CHARS_MAX
_POWERS_OF_TEN: Final = np.array([10**power for power in range(19)], np.int64)


# --- text to numbers: what is not plainly right is left to `wire.read` (ok = False) ---------------


@_compiled
def parse_uuids(text: Any, out: Any, ok: Any) -> None:
    """``text`` uint8[n*36] to ``out`` uint64[n, 2] (high, low); clears ``ok`` bool[n] where it is no UUID."""
    for i in range(len(out)):
        at = i * 36
        high = np.uint64(0)
        low = np.uint64(0)
        digits = 0
        for j in range(36):
            c = text[at + j]
            if j == 8 or j == 13 or j == 18 or j == 23:
                if c != 45:
                    ok[i] = False
                continue
            if 48 <= c <= 57:
                value = np.uint64(c - 48)
            elif 97 <= c <= 102:
                value = np.uint64(c - 87)
            elif 65 <= c <= 70:
                value = np.uint64(c - 55)
            else:
                value = np.uint64(0)
                ok[i] = False
            if digits < 16:
                high = (high << np.uint64(4)) | value
            else:
                low = (low << np.uint64(4)) | value
            digits += 1
        out[i, 0] = high
        out[i, 1] = low


@_compiled
def _digits(text: Any, at: int, count: int) -> int:
    """The number in ``count`` digits at ``at``, or -1."""
    value = 0
    for j in range(at, at + count):
        c = text[j]
        if c < 48 or c > 57:
            return -1
        value = value * 10 + (c - 48)
    return value


@_compiled
def parse_times(text: Any, ends: Any, out: Any, ok: Any) -> None:
    """RFC 3339 texts, ``text`` uint8[...] cut at ``ends`` int64[n], to UTC microseconds ``out`` int64[n]."""
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        at = start
        start = end
        if end - at < 20 or end - at > _NUMBER_CHARS_MAX:
            ok[i] = False
            continue
        year, month, day = _digits(text, at, 4), _digits(text, at + 5, 2), _digits(text, at + 8, 2)
        hour, minute, second = _digits(text, at + 11, 2), _digits(text, at + 14, 2), _digits(text, at + 17, 2)
        good = (
            text[at + 4] == 45
            and text[at + 7] == 45
            and (text[at + 10] == 84 or text[at + 10] == 116 or text[at + 10] == 32)
            and text[at + 13] == 58
            and text[at + 16] == 58
            and year >= 1970
            and 1 <= month <= 12
            and 1 <= day <= 31
            and 0 <= hour <= 23
            and 0 <= minute <= 59
            and 0 <= second <= 59
        )
        if not good or day > _days_in_month(year, month):
            ok[i] = False
            continue
        at += 19
        micros = 0
        if text[at] == 46:
            at += 1
            first = at
            scale = 100_000
            while at < end and 48 <= text[at] <= 57:
                micros += (text[at] - 48) * scale
                scale //= 10
                at += 1
            if at == first:
                ok[i] = False
                continue
        offset_s = 0
        if at + 1 == end and (text[at] == 90 or text[at] == 122):
            pass
        elif at + 6 == end and (text[at] == 43 or text[at] == 45) and text[at + 3] == 58:
            hours, minutes = _digits(text, at + 1, 2), _digits(text, at + 4, 2)
            if not (0 <= hours <= 23 and 0 <= minutes <= 59):
                ok[i] = False
                continue
            offset_s = hours * 3600 + minutes * 60
            if text[at] == 45:
                offset_s = -offset_s
        else:
            ok[i] = False
            continue
        seconds = _days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s
        if seconds < 0 or seconds >= 253_402_300_800:
            ok[i] = False
        out[i] = seconds * 1_000_000 + micros


@_compiled
def parse_costs(text: Any, ends: Any, out: Any, ok: Any) -> None:
    """Raw JSON decimals (a number, or a string of one) to microcents ``out`` int64[n], half-even.

    More than 18 digits, a sign, escapes and anything near the bound are left to the slow path.
    """
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        at = start
        start = end
        if end - at >= 2 and text[at] == 34 and text[end - 1] == 34:
            at += 1
            end -= 1
        ok_here = 0 < end - at <= _NUMBER_CHARS_MAX
        mantissa = 0
        digits = 0
        first = at
        while at < end and 48 <= text[at] <= 57 and digits < 19:
            mantissa = mantissa * 10 + (text[at] - 48)
            digits += 1
            at += 1
        if digits == 0 or (digits > 1 and text[first] == 48):
            ok_here = False
        power = 6
        if at < end and text[at] == 46:
            at += 1
            fraction = at
            while at < end and 48 <= text[at] <= 57 and digits < 19:
                mantissa = mantissa * 10 + (text[at] - 48)
                digits += 1
                at += 1
            power -= at - fraction
            if at == fraction:
                ok_here = False
        if digits > 18:
            ok_here = False
        if ok_here and at < end and (text[at] == 101 or text[at] == 69):
            at += 1
            sign = 1
            if at < end and (text[at] == 43 or text[at] == 45):
                sign = -1 if text[at] == 45 else 1
                at += 1
            count = end - at
            exponent = _digits(text, at, count) if 1 <= count <= 3 else -1
            if exponent < 0:
                ok_here = False
            else:
                power += sign * exponent
                at = end
        if not ok_here or at != end:
            ok[i] = False
            continue
        if mantissa == 0:
            out[i] = 0
        elif power >= 0:
            if power > 14 or mantissa > _COST_MAX // _POWERS_OF_TEN[power]:
                ok[i] = False
            else:
                out[i] = mantissa * _POWERS_OF_TEN[power]
        elif power < -18:
            ok[i] = False
        else:
            unit = _POWERS_OF_TEN[-power]
            quotient = mantissa // unit
            rest = mantissa - quotient * unit
            if quotient >= _COST_MAX:
                ok[i] = False
            elif rest > unit - rest or (rest == unit - rest and quotient % 2 == 1):
                out[i] = quotient + 1
            else:
                out[i] = quotient


# --- hashing ------------------------------------------------------------------------------------


@_compiled
def _mix(h: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    h = np.uint64(h)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@_compiled
def _hash_pair(high: Any, low: Any) -> Any:
    return _mix(np.uint64(high) * np.uint64(0x9E3779B97F4A7C15) + _mix(low))


@_compiled
def _hash_ints(row: Any) -> Any:
    h = np.uint64(0x9E3779B97F4A7C15)
    for value in row:
        h = _mix(h ^ np.uint64(np.uint32(value)))
    return h


@_compiled
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


@_compiled
def payload_checks(
    model: Any, client_crc: Any, error_crc: Any, occurred: Any, numbers: Any, out: Any
) -> None:
    """32 bits of each payload (everything that counts but the two ids) to tell a repeat from a conflict.

    ``model`` uint64[n, 2]; ``numbers`` int64[n, 5]: latency, status, tokens in and out, cost.
    """
    for i in range(len(out)):
        h = _hash_pair(model[i, 0], model[i, 1])
        h = _mix(h ^ (np.uint64(client_crc[i]) << np.uint64(32)) ^ np.uint64(error_crc[i]))
        h = _mix(h ^ np.uint64(occurred[i]))
        for j in range(numbers.shape[1]):
            h = _mix(h ^ np.uint64(numbers[i, j]))
        out[i] = np.uint32(h >> np.uint64(32))


# --- exact dedupe ---------------------------------------------------------------------------------

NEW: Final = 0
DUPLICATE: Final = 1
CONFLICT: Final = 2


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def count(measures: Any, rows: Any) -> None:
    """Add one to column 0 of each row."""
    for row in rows:
        measures[row, 0] += 1


@_compiled
def span(measures: Any, rows: Any, times: Any) -> None:
    """Widen rows of ``measures`` int64[rows, 2] (first, last; first 0 when fresh) to hold ``times``."""
    for i in range(len(rows)):
        m = measures[rows[i]]
        if m[0] == 0 or times[i] < m[0]:
            m[0] = times[i]
        if times[i] > m[1]:
            m[1] = times[i]


# --- sketches in a pool: each row has one block of a power of two of (bin, count) pairs -------------


@_compiled
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


@_compiled
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
