"""The compiled loops of the core: plain functions over NumPy arrays, one idea each.

Everything here is a loop that NumPy cannot say at speed: open addressing, adding into rows, sketch bins.
State belongs to the callers (`events`, `dedupe`, `windows`), which also grow the arrays: no kernel
allocates state or raises. Compiled once per machine and cached on disk by numba. In a loop over events no
array is sliced and none is passed on, because numba counts references to every array it hands over.

Hash tables are open addressing with linear probing over a power of two; ``slots`` holds a row number
or -1. Callers keep them at most half full.

Senders choose what goes into these tables. So every hash of a table takes the process's ``secret``
(`pipeline.core.secret`), uint64[130], without which nobody can choose values that meet in one slot: the
values' halves of 32 bits, each times a number of the secret, are added up (Lemire and Kaser, "Strongly
universal string hashing is fast", 2014) and mixed. The secret is an argument, so that what is compiled
serves every process. `payload_checks` has none, because the database keeps them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core.machine import byte, compiled, prefetch, word

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
def _pair_sum(high: Any, low: Any, k1: Any, k2: Any, k3: Any, k4: Any) -> Any:
    """What the secret makes of 128 bits, before it is mixed."""
    upper = k1 * (high >> np.uint64(32)) + k2 * (high & np.uint64(0xFFFFFFFF))
    return upper + k3 * (low >> np.uint64(32)) + k4 * (low & np.uint64(0xFFFFFFFF))


@compiled
def intern_pairs(secret: Any, slots: Any, keys: Any, numbers: Any, used: int, wanted: Any, out: Any) -> int:
    """Number 128-bit values: ``wanted`` uint64[n, 2] to ``out`` int32[n], the place in ``keys``.

    ``numbers`` int32[...]: the first ``used`` are taken, new values get the next ones. Returns how many are
    taken then.
    """
    mask = np.uint64(len(slots) - 1)
    k0, k1, k2, k3, k4 = secret[0], secret[1], secret[2], secret[3], secret[4]
    for i in range(len(wanted)):
        high, low = wanted[i, 0], wanted[i, 1]
        slot = _mix(k0 + _pair_sum(high, low, k1, k2, k3, k4)) & mask
        while True:
            row = slots[slot]
            if row < 0:
                row = numbers[used]
                keys[row, 0] = high
                keys[row, 1] = low
                slots[slot] = row
                out[i] = row
                used += 1
                break
            if keys[row, 0] == high and keys[row, 1] == low:
                out[i] = row
                break
            slot = (slot + np.uint64(1)) & mask
    return used


@compiled
def _masked_word(text: Any, at: int, length: int) -> Any:
    """The eight bytes at a place, with zeros for those from ``length`` (at least 1) on."""
    whole = word(text, at)
    return whole if length >= 8 else whole & ((np.uint64(1) << np.uint64(8 * length)) - np.uint64(1))


@compiled
def intern_texts(
    secret: Any,
    slots: Any,
    pool: Any,
    pool_text: Any,
    edges: Any,
    used: int,
    text: Any,
    ranges: Any,
    out: Any,
    begin: int,
) -> Any:
    """Number the names ``text[ranges[i, 0] : ranges[i, 1]]`` for i from ``begin``: ``out`` int32[n].

    ``text`` is a `machine.handle`, and ``pool_text`` that of ``pool`` uint8[...]; of both, seven bytes behind
    a name are read. Name ``k`` is ``pool[edges[k] : edges[k + 1]]``; name 0 is the empty one. Returns how
    many names there are then and where it stopped: short of n only when ``pool`` is full.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(begin, len(ranges)):
        first = ranges[i, 0]
        length = ranges[i, 1] - first
        if length == 0:
            out[i] = 0
            continue
        h = secret[0] + secret[1] * np.uint64(length)
        for j in range(0, length, 8):
            part = _masked_word(text, first + j, length - j)
            k = 2 + ((j >> 2) & 127)  # a name has at most 512 bytes, as 128 characters
            h += secret[k] * (part >> np.uint64(32)) + secret[k + 1] * (part & np.uint64(0xFFFFFFFF))
        slot = _mix(h) & mask
        while True:
            name = slots[slot]
            if name < 0:
                at = edges[used]
                if at + length + 7 > len(pool):
                    return used, i
                for j in range(length):
                    pool[at + j] = byte(text, first + j)
                slots[slot] = used
                out[i] = used
                used += 1
                edges[used] = at + length
                break
            at = edges[name]
            same = edges[name + 1] - at == length
            if same:
                for j in range(0, length, 8):
                    left = length - j
                    if _masked_word(pool_text, at + j, left) != _masked_word(text, first + j, left):
                        same = False
                        break
            if same:
                out[i] = name
                break
            slot = (slot + np.uint64(1)) & mask
    return used, len(ranges)


WIDE: Final = np.uint64(1 << 63)
"""Set in every payload check, but in those of 32 bits that version 0.1.0 made and stored."""


@compiled
def payload_checks(
    model: Any,
    client: Any,
    client_digests: Any,
    error_code: Any,
    error_digests: Any,
    occurred: Any,
    latency: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    out: Any,
) -> None:
    """64 bits of each payload (everything that counts but the two ids) to tell a repeat from a conflict.

    ``model`` uint64[n, 2]; ``client`` and ``error_code`` are places in their digests; ``out`` uint64[n], with
    `WIDE` set. The bits are stored: a change of them makes every stored id a conflict.
    """
    for i in range(len(out)):
        h = _hash_pair(model[i, 0], model[i, 1])
        h = _mix(h ^ client_digests[client[i]])
        h = _mix(h ^ error_digests[error_code[i]])
        h = _mix(h ^ np.uint64(occurred[i]))
        h = _mix(h ^ np.uint64(latency[i]))
        h = _mix(h ^ np.uint64(status[i]))
        h = _mix(h ^ np.uint64(tokens_in[i]))
        h = _mix(h ^ np.uint64(tokens_out[i]))
        h = _mix(h ^ np.uint64(cost[i]))
        out[i] = h | WIDE


@compiled
def narrow_checks(
    model: Any,
    client_crcs: Any,
    error_crcs: Any,
    occurred: Any,
    latency: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    out: Any,
) -> None:
    """The checks of version 0.1.0, for events that meet an id which it stored: ``out`` uint64[n], below 2^32.

    ``client_crcs`` and ``error_crcs`` uint32[n] are of the events' texts.
    """
    for i in range(len(out)):
        h = _hash_pair(model[i, 0], model[i, 1])
        h = _mix(h ^ (np.uint64(client_crcs[i]) << np.uint64(32)) ^ np.uint64(error_crcs[i]))
        h = _mix(h ^ np.uint64(occurred[i]))
        h = _mix(h ^ np.uint64(latency[i]))
        h = _mix(h ^ np.uint64(status[i]))
        h = _mix(h ^ np.uint64(tokens_in[i]))
        h = _mix(h ^ np.uint64(tokens_out[i]))
        h = _mix(h ^ np.uint64(cost[i]))
        out[i] = h >> np.uint64(32)


# --- exact dedupe ---------------------------------------------------------------------------------

_LOW: Final = np.uint64(0xFFFFFFFF)
_HIGH: Final = np.uint64(0xFFFFFFFF00000000)

_AHEAD: Final = 8
"""Look-ups between the prefetch of a slot and its use: an index is larger than any cache."""

NEW: Final = 0
DUPLICATE: Final = 1
CONFLICT: Final = 2
NARROW: Final = 3
"""The id is known by a check of version 0.1.0, which the caller must compare."""


@compiled
def _first_slot(h: Any, slots: int) -> Any:
    """The slot where a hash belongs among any number of slots: its low 32 bits as a fraction of them."""
    return np.int64(((h & _LOW) * np.uint64(slots)) >> np.uint64(32))


@compiled
def spread(secret: Any, ids: Any, orgs: Any, hashes: Any, order: Any, begins: Any) -> None:
    """Share n pairs out to 16 tables by their ``hashes`` uint64[n] (made here), each table's in their order.

    Those of table t are ``order[begins[t] : begins[t + 1]]``, int64[n] and int64[17].
    """
    begins[:] = 0
    k0, k1, k2, k3, k4, k5 = secret[0], secret[1], secret[2], secret[3], secret[4], secret[5]
    for i in range(len(ids)):
        h = _mix(k0 + _pair_sum(ids[i, 0], ids[i, 1], k1, k2, k3, k4) + k5 * np.uint64(np.uint32(orgs[i])))
        hashes[i] = h
        begins[np.int64(h >> np.uint64(60)) + 1] += 1
    for table in range(16):
        begins[table + 1] += begins[table]
    place = begins.copy()
    for i in range(len(ids)):
        number = np.int64(hashes[i] >> np.uint64(60))
        order[place[number]] = i
        place[number] += 1


@compiled
def remember(
    index: Any,
    entries: Any,
    used: int,
    used_max: int,
    hashes: Any,
    order: Any,
    ids: Any,
    orgs: Any,
    hours: Any,
    checks: Any,
    live_from: Any,
    outcomes: Any,
    narrow: Any,
) -> Any:
    """Look up and add those (org, id) pairs that ``order`` names; returns (pairs done, entries used).

    It stops short only when ``used_max`` entries are used. ``entries``, the log, uint32[capacity, 8], filled
    from the front: an id in four words, org, hour and the check, its low word first. ``index`` uint64[slots]:
    0, or 32 bits of the hash above the entry's place + 1. An entry counts as forgotten for pair ``i`` when
    its hour is below ``live_from[i]``; then a new entry takes its slot. ``outcomes`` uint8[n], by the number
    of the pair; ``narrow`` uint64[n]: the entry's check where the outcome is `NARROW`.
    """
    slots, address = len(index), index.ctypes.data
    for done in range(len(order)):
        if used == used_max:
            return done, used
        if done + _AHEAD < len(order):
            prefetch(address + 8 * _first_slot(hashes[order[done + _AHEAD]], slots))
        i = order[done]
        high, low, org, h = ids[i, 0], ids[i, 1], np.uint32(orgs[i]), hashes[i]
        word0, word1 = np.uint32(high >> np.uint64(32)), np.uint32(high)
        word2, word3 = np.uint32(low >> np.uint64(32)), np.uint32(low)
        mark = h << np.uint64(32)
        slot = _first_slot(h, slots)
        outcome = 0
        while True:
            found = index[slot]
            if found == 0:
                break
            if found & _HIGH == mark:
                at = np.int64(found & _LOW) - 1
                if (
                    entries[at, 3] == word3
                    and entries[at, 2] == word2
                    and entries[at, 1] == word1
                    and entries[at, 0] == word0
                    and entries[at, 4] == org
                ):
                    if np.int64(entries[at, 5]) >= live_from[i]:
                        stored = np.uint64(entries[at, 6]) | np.uint64(entries[at, 7]) << np.uint64(32)
                        if stored == checks[i]:
                            outcome = 1
                        elif stored & WIDE:
                            outcome = 2
                        else:
                            outcome = 3
                            narrow[i] = stored
                    break
            slot += 1
            if slot == slots:
                slot = 0
        outcomes[i] = outcome
        if outcome == 0:
            entries[used, 0], entries[used, 1], entries[used, 2], entries[used, 3] = (
                word0,
                word1,
                word2,
                word3,
            )
            entries[used, 4], entries[used, 5] = org, np.uint32(hours[i])
            entries[used, 6] = np.uint32(checks[i])
            entries[used, 7] = np.uint32(checks[i] >> np.uint64(32))
            used += 1
            index[slot] = mark | np.uint64(used)
    return len(order), used


@compiled
def known(
    index: Any, entries: Any, hashes: Any, order: Any, ids: Any, orgs: Any, live_from: Any, out: Any
) -> None:
    """Which of the pairs that ``order`` names `remember` would find; ``out`` bool[n] by the pair's number."""
    slots = len(index)
    for i in order:
        high, low, h = ids[i, 0], ids[i, 1], hashes[i]
        mark = h << np.uint64(32)
        slot = _first_slot(h, slots)
        out[i] = False
        while index[slot] != 0:
            if index[slot] & _HIGH == mark:
                at = np.int64(index[slot] & _LOW) - 1
                if (
                    entries[at, 3] == np.uint32(low)
                    and entries[at, 2] == np.uint32(low >> np.uint64(32))
                    and entries[at, 1] == np.uint32(high)
                    and entries[at, 0] == np.uint32(high >> np.uint64(32))
                    and entries[at, 4] == np.uint32(orgs[i])
                ):
                    out[i] = np.int64(entries[at, 5]) >= live_from[i]
                    break
            slot += 1
            if slot == slots:
                slot = 0


@compiled
def grow_index(index: Any, fresh: Any) -> None:
    """Put what is in an index of `remember` into the empty and larger ``fresh``; the entries are not read."""
    for i in range(len(index)):
        if index[i] != 0:
            slot = _first_slot(index[i] >> np.uint64(32), len(fresh))
            while fresh[slot] != 0:
                slot += 1
                if slot == len(fresh):
                    slot = 0
            fresh[slot] = index[i]


@compiled
def count_live(entries: Any, live_from: int) -> int:
    """Entries (uint32[n, 8] as in `remember`) of hour ``live_from`` or later."""
    live = 0
    for i in range(len(entries)):
        if np.int64(entries[i, 5]) >= live_from:
            live += 1
    return live


@compiled
def move_ids(secret: Any, entries: Any, fresh: Any, index: Any, live_from: int) -> int:
    """Copy the entries from hour ``live_from`` on to the front of ``fresh``, in order; returns how many.

    ``index`` (empty) becomes theirs. Of two entries of one id, one that had lapsed and was accepted anew, the
    later counts and both are kept.
    """
    count = 0
    k0, k1, k2, k3, k4, k5 = secret[0], secret[1], secret[2], secret[3], secret[4], secret[5]
    for i in range(len(entries)):
        if np.int64(entries[i, 5]) < live_from:
            continue
        word0, word1, word2, word3, org = (
            entries[i, 0],
            entries[i, 1],
            entries[i, 2],
            entries[i, 3],
            entries[i, 4],
        )
        high = np.uint64(word0) << np.uint64(32) | np.uint64(word1)
        low = np.uint64(word2) << np.uint64(32) | np.uint64(word3)
        h = _mix(k0 + _pair_sum(high, low, k1, k2, k3, k4) + k5 * np.uint64(org))
        mark = h << np.uint64(32)
        slot = _first_slot(h, len(index))
        while index[slot] != 0:
            at = np.int64(index[slot] & _LOW) - 1
            if (
                index[slot] & _HIGH == mark
                and fresh[at, 3] == word3
                and fresh[at, 2] == word2
                and fresh[at, 1] == word1
                and fresh[at, 0] == word0
                and fresh[at, 4] == org
            ):
                break
            slot += 1
            if slot == len(index):
                slot = 0
        for j in range(8):
            fresh[count, j] = entries[i, j]
        count += 1
        index[slot] = mark | np.uint64(count)
    return count


@compiled
def order_by_org(orgs: Any, ids: Any, checks: Any, places: Any, ids_out: Any, checks_out: Any) -> None:
    """Put n ids (uint64[n, 2]) and checks in the order of their orgs, and of their arrival in each.

    ``places`` int64[orgs]: where those of an org begin; it ends as where they end.
    """
    for i in range(len(orgs)):
        place = places[orgs[i]]
        places[orgs[i]] += 1
        ids_out[place, 0], ids_out[place, 1] = ids[i, 0], ids[i, 1]
        checks_out[place] = checks[i]


# --- rows -----------------------------------------------------------------------------------------


@compiled
def locate(secret: Any, slots: Any, keys: Any, used: int, wanted: Any, rows: Any) -> int:
    """Find or append the row of each key: ``wanted`` int32[n, k] to ``rows`` int64[n]; returns rows used."""
    mask = np.uint64(len(slots) - 1)
    width = wanted.shape[1]
    for i in range(len(wanted)):
        h = secret[0]
        for j in range(width):
            h += secret[j + 1] * np.uint64(np.uint32(wanted[i, j]))
        slot = _mix(h) & mask
        while True:
            row = slots[slot]
            if row < 0:
                for j in range(width):
                    keys[used, j] = wanted[i, j]
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
def admit(
    secret: Any,
    slots: Any,
    keys: Any,
    used: int,
    counts: Any,
    groups: Any,
    wanted: Any,
    cap: int,
    out: Any,
) -> int:
    """Give names a place of their own, in order, until a group has ``cap``; the rest gets ``out`` False.

    ``wanted`` int32[n, k] are (group, name) keys, ``groups`` int64[n] the place of the group in ``counts``.
    """
    mask = np.uint64(len(slots) - 1)
    width = wanted.shape[1]
    for i in range(len(wanted)):
        h = secret[0]
        for j in range(width):
            h += secret[j + 1] * np.uint64(np.uint32(wanted[i, j]))
        slot = _mix(h) & mask
        while True:
            row = slots[slot]
            if row < 0:
                out[i] = counts[groups[i]] < cap
                if out[i]:
                    counts[groups[i]] += 1
                    for j in range(width):
                        keys[used, j] = wanted[i, j]
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


_MINUTE_US: Final = 60_000_000
_HOUR_US: Final = 60 * _MINUTE_US
_DAY_US: Final = 24 * _HOUR_US
_INT_MAX: Final = 2**63 - 1


@compiled
def accumulate(
    totals: Any,
    cells: Any,
    occurred_us: Any,
    met_us: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    latency: Any,
) -> bool:
    """Add events to cells of ``totals`` int64[cells, 15] (columns as `cells.TOTALS`).

    Returns False, with nothing of that event added, if a sum would pass 2^63 - 1.
    """
    for i in range(len(cells)):
        row = cells[i]
        if (
            totals[row, 7] > _INT_MAX - cost[i]
            or totals[row, 5] > _INT_MAX - tokens_in[i]
            or totals[row, 6] > _INT_MAX - tokens_out[i]
        ):
            return False
        totals[row, 0] += 1
        totals[row, 1 + status[i]] += 1
        totals[row, 5] += tokens_in[i]
        totals[row, 6] += tokens_out[i]
        totals[row, 7] += cost[i]
        totals[row, 8] += latency[i]
        totals[row, 9] = max(totals[row, 9], latency[i])
        at, met = occurred_us[i], met_us[i]
        if (at // _MINUTE_US + 1) * _MINUTE_US <= met:
            totals[row, 10] += 1
            if (at // _HOUR_US + 1) * _HOUR_US <= met:
                totals[row, 11] += 1
                if (at // _DAY_US + 1) * _DAY_US <= met:
                    totals[row, 12] += 1
        if totals[row, 13] == 0 or at < totals[row, 13]:
            totals[row, 13] = at
        totals[row, 14] = max(totals[row, 14], at)
    return True


@compiled
def add_totals(measures: Any, rows: Any, totals: Any, late: int) -> bool:
    """Add cells to rows of ``measures`` int64[rows, 11]; ``late``: the cells' column of late events.

    Returns False, with nothing of that cell added, if a sum would pass 2^63 - 1.
    """
    for i in range(len(rows)):
        row = rows[i]
        if (
            measures[row, 7] > _INT_MAX - totals[i, 7]
            or measures[row, 5] > _INT_MAX - totals[i, 5]
            or measures[row, 6] > _INT_MAX - totals[i, 6]
        ):
            return False
        for j in range(9):
            measures[row, j] += totals[i, j]
        measures[row, 9] = max(measures[row, 9], totals[i, 9])
        measures[row, 10] += totals[i, late]
    return True


@compiled
def add_sums(days: Any, rows: Any, sums: Any, sum_max: int) -> None:
    """Add ``sums`` int64[n, 4] to rows of ``days`` int64[rows, 4], up to ``sum_max``."""
    for i in range(len(rows)):
        for j in range(4):
            days[rows[i], j] += min(sums[i, j], sum_max - days[rows[i], j])


@compiled
def take_room(
    days: Any,
    rows: Any,
    sums: Any,
    known: Any,
    groups: Any,
    counted_in: Any,
    hours: Any,
    live_from: Any,
    sum_max: int,
    short: Any,
) -> None:
    """The loop of `room.Room.judge`; ``counted_in`` int64[groups]: the hour of an id's event, or least."""
    for i in range(len(rows)):
        group = groups[i]
        if known[i] or counted_in[group] >= live_from[i]:
            continue
        for j in range(4):
            if sums[i, j] > sum_max - days[rows[i], j]:
                short[i] |= np.uint8(1 << j)
        if short[i] == 0:
            counted_in[group] = hours[i]
            for j in range(4):
                days[rows[i], j] += sums[i, j]


@compiled
def count(measures: Any, rows: Any, counts: Any) -> None:
    """Add to column 0 of each row."""
    for i in range(len(rows)):
        measures[rows[i], 0] += counts[i]


@compiled
def span(measures: Any, rows: Any, first: Any, last: Any) -> None:
    """Widen rows of ``measures`` int64[rows, 2] (first, last; first 0 when fresh)."""
    for i in range(len(rows)):
        row = rows[i]
        if measures[row, 0] == 0 or first[i] < measures[row, 0]:
            measures[row, 0] = first[i]
        measures[row, 1] = max(measures[row, 1], last[i])


# --- sketch bins of events ------------------------------------------------------------------------


@compiled
def bins_of(latency_ms: Any, low_bins: Any, edges: Any, out: Any) -> None:
    """`sketches.bin_of`, by ``low_bins`` (of 0 to 65535 ms) where that goes: ``out`` int64[n]."""
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
    """Count events by cell and bin, in this order; returns how many pairs there are.

    ``cells``, ``bins`` int64[n]; ``places``: where each cell's events begin among all; ``by_cell`` int64[n]
    and ``dense`` int64[bins], all 0, are working space. Out: int64[n] each, filled from the front.
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


# --- sketches in a pool: each row has one block of a power of two of (bin, count) pairs -------------


@compiled
def sketch_add(
    pool_bins: Any, pool_counts: Any, state: Any, place: Any, rows: Any, bins: Any, counts: Any, begin: int
) -> int:
    """Add ``counts[i]`` to bin ``bins[i]`` of row ``rows[i]`` for i from ``begin``; returns where it stopped.

    It stops short of n only when the pool is full: grow it and call again. ``place`` int64[rows, 3]: start,
    length, size class (capacity 2**class, 0 when there is no block). ``state`` int64[16]: [0] the
    first unused pair, [c] the head of the list of free blocks of class c, or -1.

    Ascending bins of one row are merged with its own, which are in order too, in one go.
    """
    while begin < len(rows):
        row = rows[begin]
        end = begin + 1
        while end < len(rows) and rows[end] == row and bins[end] > bins[end - 1]:
            end += 1
        start, length, size = place[row, 0], place[row, 1], place[row, 2]
        first, high = start, start + length  # first: of the row's own bins, not below the first to add
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
        while i >= begin:  # from the last one on, so that none is written over before it was moved
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
