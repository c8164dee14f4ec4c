"""Exact dedupe: the loops of `dedupe.SeenIds`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core.kernels.compile import compiled, prefetch
from pipeline.core.kernels.hashing import mix, pair_sum

_LOW: Final = np.uint64(0xFFFFFFFF)
_HIGH: Final = np.uint64(0xFFFFFFFF00000000)

_AHEAD: Final = 8
"""A slot is prefetched this many look-ups before its use, because an index is larger than any cache."""

NEW: Final = 0
DUPLICATE: Final = 1
CONFLICT: Final = 2


@compiled
def _first_slot(h: Any, slots: int) -> Any:
    """The slot where the search for a hash begins, among any number of slots.

    The low 32 bits of the hash are taken as a fraction of the slots. For example, 2^31 is one half, and among
    1000 slots it belongs into slot 500.
    """
    return np.int64(((h & _LOW) * np.uint64(slots)) >> np.uint64(32))


@compiled
def spread(secret: Any, ids: Any, orgs: Any, hashes: Any, order: Any, begins: Any) -> None:
    """Hash n pairs of id and org, and share the pairs out to 16 tables by their hashes.

    ``hashes`` uint64[n] gets the hash of each pair. The pairs of table t, in their old order, are
    ``order[begins[t] : begins[t + 1]]``. ``order`` is int64[n], and ``begins`` is int64[17].
    """
    begins[:] = 0
    k0, k1, k2, k3, k4, k5 = secret[0], secret[1], secret[2], secret[3], secret[4], secret[5]
    for i in range(len(ids)):
        h = mix(k0 + pair_sum(ids[i, 0], ids[i, 1], k1, k2, k3, k4) + k5 * np.uint64(np.uint32(orgs[i])))
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
    met: Any,
) -> Any:
    """Look up the (org, id) pairs that ``order`` names, and add the new ones.

    Returns (pairs done, entries used). The loop stops short only when ``used_max`` entries are used.

    ``entries`` uint32[capacity, 8] is the log, filled from the front. An entry is an id in four words, the
    org, the hour, and the check with its low word first. A slot of ``index`` uint64[slots] is 0 if it is
    empty. Else its upper 32 bits are the lower 32 bits of the hash, and its lower 32 bits are the place of
    the entry, plus 1.

    An entry has lapsed for pair ``i`` if its hour is below ``live_from[i]``. A new entry then takes its slot.

    ``outcomes`` uint8[n] gets the outcome of each pair. ``met`` uint64[n] gets the check of the entry that a
    pair has met, if the outcome is not `NEW`.
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
                        outcome = 1 if stored == checks[i] else 2
                        met[i] = stored
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
    """Look up the pairs that ``order`` names as `remember` does, and add none.

    ``out`` bool[n] says of each pair whether `remember` would find it.
    """
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
    """Move the slots of an index into the empty and larger ``fresh``, without a look at the entries."""
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
    """Count the entries (uint32[n, 8] as in `remember`) of hour ``live_from`` or later."""
    live = 0
    for i in range(len(entries)):
        if np.int64(entries[i, 5]) >= live_from:
            live += 1
    return live


@compiled
def move_ids(secret: Any, entries: Any, fresh: Any, index: Any, live_from: int) -> int:
    """Copy the entries of hour ``live_from`` or later to the front of ``fresh``; returns how many there are.

    ``index`` is empty before, and then finds the copied entries. An id that lapsed and was accepted again has
    two entries. Both are copied, and ``index`` finds the later one.
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
        h = mix(k0 + pair_sum(high, low, k1, k2, k3, k4) + k5 * np.uint64(org))
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
    """Sort n ids (uint64[n, 2]) and checks by org. The ids of one org stay in the order of their arrival.

    ``places`` int64[orgs] has where the ids of each org begin. The loop moves it to where they end.
    """
    for i in range(len(orgs)):
        place = places[orgs[i]]
        places[orgs[i]] += 1
        ids_out[place, 0], ids_out[place, 1] = ids[i, 0], ids[i, 1]
        checks_out[place] = checks[i]
