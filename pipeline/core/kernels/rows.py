"""Finding rows by their key and adding to them: the loops of `windows`, `cells` and `room`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core.kernels.compile import compiled
from pipeline.core.kernels.hashing import mix


@compiled
def locate(secret: Any, slots: Any, keys: Any, used: int, wanted: Any, rows: Any) -> int:
    """Find the row of each key, or append one; returns how many rows are used afterwards.

    ``rows`` int64[n] gets the row of each key of ``wanted`` int32[n, k].
    """
    mask = np.uint64(len(slots) - 1)
    width = wanted.shape[1]
    for i in range(len(wanted)):
        h = secret[0]
        for j in range(width):
            h += secret[j + 1] * np.uint64(np.uint32(wanted[i, j]))
        slot = mix(h) & mask
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
    """Admit names in order, until their group has ``cap`` names; returns how many names are known afterwards.

    ``out`` bool[n] says which names are in. A name that is in stays in, and counts once. ``wanted`` int32[n,
    k] are keys of group and name. ``groups`` int64[n] has the place of the group in ``counts``.
    """
    mask = np.uint64(len(slots) - 1)
    width = wanted.shape[1]
    for i in range(len(wanted)):
        h = secret[0]
        for j in range(width):
            h += secret[j + 1] * np.uint64(np.uint32(wanted[i, j]))
        slot = mix(h) & mask
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


@compiled
def rate_classes(starts: Any, numbers: Any, tiers: Any, tokens_in: Any, out: Any) -> None:
    """The class of each event: ``out`` int32[n] gets ``numbers[tier, range]`` (int32[tiers, ranges]).

    ``starts`` int64[ranges] has the first token count of each range, in ascending order. It begins with 0.
    """
    for i in range(len(out)):
        place = 0
        while place + 1 < len(starts) and starts[place + 1] <= tokens_in[i]:
            place += 1
        out[i] = numbers[tiers[i], place]


_MINUTE_US: Final = 60_000_000
_HOUR_US: Final = 60 * _MINUTE_US
_DAY_US: Final = 24 * _HOUR_US
_INT_MAX: Final = 2**63 - 1


@compiled
def _is_greater(pool: Any, edges: Any, name: int, other: int) -> bool:
    """Is a name greater than another, byte by byte? ``pool`` and ``edges``: see `names.intern_texts`."""
    length = min(edges[name + 1] - edges[name], edges[other + 1] - edges[other])
    for j in range(length):
        byte, other_byte = pool[edges[name] + j], pool[edges[other] + j]
        if byte != other_byte:
            return bool(byte > other_byte)
    return bool(edges[name + 1] - edges[name] > edges[other + 1] - edges[other])


@compiled
def _is_greater_label(
    pool: Any, edges: Any, provider: int, name: int, other_provider: int, other_name: int
) -> bool:
    """Is a label greater than another? The provider decides, then the name of the model."""
    if provider != other_provider:
        return _is_greater(pool, edges, provider, other_provider)
    return name != other_name and _is_greater(pool, edges, name, other_name)


@compiled
def put_labels(measures: Any, rows: Any, labels: Any, pool: Any, edges: Any) -> None:
    """Put labels int64[n, 3] (time, provider, model name) into rows of ``measures`` int64[rows, 3].

    The newest label of a row stays. Of two labels at the same time, the greater one stays. So the order in
    which they come does not matter.
    """
    for i in range(len(rows)):
        row, at, provider, name = rows[i], labels[i, 0], labels[i, 1], labels[i, 2]
        if at > measures[row, 0] or (
            at == measures[row, 0]
            and _is_greater_label(pool, edges, provider, name, measures[row, 1], measures[row, 2])
        ):
            measures[row, 0], measures[row, 1], measures[row, 2] = at, provider, name


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
    details: Any,
    labels: Any,
    pool: Any,
    edges: Any,
) -> bool:
    """Add events to cells of ``totals`` int64[cells, 23] (columns as `cells.TOTALS`).

    An event is late for a bucket if the watermark ``met_us`` that it met has reached the end of the bucket.
    For example, an event of 12:00:59 that meets the watermark 12:01:05 is late for its minute, but not for
    its hour.

    Returns False at the first event that would take a sum beyond 2^63 - 1. Nothing of that event is added.
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
        some = np.int64(0)
        for j in range(5):
            some |= details[i, j]
        if some:  # most events have none
            for j in range(5):
                totals[row, 15 + j] += details[i, j]
        provider, name = labels[i, 0], labels[i, 1]
        if provider | name and (
            at > totals[row, 20]
            or (
                at == totals[row, 20]
                and _is_greater_label(pool, edges, provider, name, totals[row, 21], totals[row, 22])
            )
        ):
            totals[row, 20], totals[row, 21], totals[row, 22] = at, provider, name
    return True


@compiled
def add_totals(measures: Any, rows: Any, totals: Any, late: int) -> bool:
    """Add cells to rows of ``measures`` int64[rows, 16].

    ``late`` is the column of the cells' ``totals`` that counts the late events of this grain. Returns False
    at the first cell that would take a sum beyond 2^63 - 1. Nothing of that cell is added.
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
        for j in range(11, measures.shape[1]):
            measures[row, j] += totals[i, 4 + j]
    return True


@compiled
def add_sums(days: Any, rows: Any, sums: Any, sum_max: int) -> None:
    """Add ``sums`` int64[n, 4] to rows of ``days`` int64[rows, 4]. No sum passes ``sum_max``."""
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
    """The loop of `room.Room.judge`.

    ``counted_in`` int64[groups] has, for each id, the hour of the event with this id that counts. The least
    int64 means that no event with this id counts yet.
    """
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
    """Add ``counts[i]`` to column 0 of row ``rows[i]``."""
    for i in range(len(rows)):
        measures[rows[i], 0] += counts[i]


@compiled
def span(measures: Any, rows: Any, first: Any, last: Any) -> None:
    """Widen the spans in ``measures`` int64[rows, 2]: (first, last). In a fresh row the first is 0."""
    for i in range(len(rows)):
        row = rows[i]
        if measures[row, 0] == 0 or first[i] < measures[row, 0]:
            measures[row, 0] = first[i]
        measures[row, 1] = max(measures[row, 1], last[i])
