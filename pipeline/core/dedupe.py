"""Exact dedupe: every (org, event id) of the window behind one compact index, and its bytes at rest.

It owns what "seen" means. It knows nothing of partitions, offsets or the database: `pipeline.core.remembered`
hands it numbered orgs and tells it from which hour on an id still counts.

An id is remembered under the UTC hour of the event time of its first occurrence. Hour numbers are
hours since 1970.

Ids are kept whole in logs, in the order of their arrival, and found by an index of eight bytes a slot. A log
is written at its end, and read again only where an id repeats and where lapsed ids are dropped: so it may lie
in a file that the system pages out (``new_log``). What must stay in memory is the index, 11 to 16 bytes an
id; a log takes 32 bytes an id, and up to half as much again for ids that have lapsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels
from pipeline.core.events import Uuids
from pipeline.core.secret import SECRET

TABLES: Final = 16
_ENTRY_BYTES: Final = 32
BYTES_AT_REST: Final = 24
"""An id takes so much in a segment, which has 20 bytes more for each of its orgs (version 0.1.0 took 20)."""
_ENTRIES_MIN: Final = 768
_GROWTH: Final = 1.5
_GAIN_MIN: Final = 1.125
"""A larger index that keeps the lapsed ids must bring so much room: else a table is renewed again at once."""
_LOG_GROWTH: Final = 2
"""The unused end of a log takes no memory: the system gives a page when it is written."""
_LOAD_MAX: Final = 0.75

IntArray = npt.NDArray[Any]

NewLog = Callable[[int], IntArray]
"""Makes room for a number of entries: uint32[entries, 8], whatever it holds."""


NarrowChecks = Callable[[IntArray], IntArray]
"""Gives the `kernels.hashing.narrow_checks`, of version 0.1.0, of the pairs at some places (int64[m])."""


class TooManyIds(Exception):
    """The window holds more ids than it may."""


def _log_in_memory(entries: int) -> IntArray:
    return np.empty((entries, 8), np.uint32)


class SeenIds:
    """The ids of the dedupe window. Size in memory: `memory_bytes`.

    Sixteen tables, by the hash of the id, because a table is copied when it grows: so that growing takes a
    sixteenth of the memory and of the time. Their sizes differ from the start, so that they grow in turn.
    """

    def __init__(self, *, new_log: NewLog | None = None, ids_max: int = 2**32) -> None:
        """``new_log``: where the logs are, if not in memory. ``ids_max``: see `add`."""
        self._new_log = new_log or _log_in_memory
        self._logs_in_memory = new_log is None
        self._ids_max = ids_max
        sizes = [round(_ENTRIES_MIN * _GROWTH ** (i / TABLES)) for i in range(TABLES)]
        self._logs = [self._new_log(_LOG_GROWTH * size) for size in sizes]
        self._indexes = [_index(size) for size in sizes]
        self._used: IntArray = np.zeros(TABLES, np.int64)

    def __len__(self) -> int:
        return int(self._used.sum())

    @property
    def memory_bytes(self) -> int:
        """Of the index, and of the logs if they are in memory."""
        logs = len(self) * _ENTRY_BYTES if self._logs_in_memory else 0
        return sum(index.nbytes for index in self._indexes) + logs

    def reserve(self, count: int) -> None:
        """Make room for about ``count`` ids in all, where that is known before they come. Raises OSError."""
        count = min(count, self._ids_max)
        for number in range(TABLES):
            # Chance gives no table the same share, and they must not all grow at once afterwards.
            room = round((count + 16 * count**0.5) / TABLES * _GROWTH ** (number / TABLES))
            if self._room(number) < room:
                self._renew(number, room, drop_before=None)

    def add(
        self,
        ids: IntArray,
        orgs: IntArray,
        hours: IntArray,
        checks: IntArray,
        live_from: IntArray,
        kept_from: int | None = None,
        narrow_checks: NarrowChecks | None = None,
    ) -> IntArray:
        """Look up and remember n pairs in order; returns outcomes uint8[n]: `kernels.ids.NEW` and the others.

        Shapes: ``ids`` uint64[n, 2], ``orgs`` int32[n], ``hours`` int32[n], ``checks`` uint64[n] (of the
        payload), ``live_from`` int32[n], which never goes back: entries of earlier hours are forgotten for
        that event. Those before ``kept_from`` (the least of ``live_from``) may be given up for good.
        ``narrow_checks`` is asked about those whose id version 0.1.0 stored; without it they are `NARROW`.

        Raises:
            TooManyIds: more than ``ids_max`` ids are live, found when a table has to grow.
            OSError: there is no room for a larger log.
        """
        n = len(ids)
        outcomes, narrow = np.empty(n, np.uint8), np.empty(n, np.uint64)
        hashes, order = np.empty(n, np.uint64), np.empty(n, np.int64)
        begins = np.empty(TABLES + 1, np.int64)
        kernels.ids.spread(SECRET, ids, orgs, hashes, order, begins)
        for number in range(TABLES):
            mine = order[begins[number] : begins[number + 1]]
            while True:
                done, self._used[number] = kernels.ids.remember(
                    self._indexes[number],
                    self._logs[number],
                    self._used[number],
                    self._room(number),
                    hashes,
                    mine,
                    ids,
                    orgs,
                    hours,
                    checks,
                    live_from,
                    outcomes,
                    narrow,
                )
                if done == len(mine):
                    break
                mine = mine[done:]
                least = int(live_from.min()) if kept_from is None else kept_from
                self.renew(number, live_from=least)
        met_narrow = np.flatnonzero(outcomes == kernels.ids.NARROW)
        if len(met_narrow) and narrow_checks is not None:
            same = narrow_checks(met_narrow) == narrow[met_narrow]
            outcomes[met_narrow] = np.where(same, kernels.ids.DUPLICATE, kernels.ids.CONFLICT)
        return outcomes

    def known(self, ids: IntArray, orgs: IntArray, live_from: IntArray) -> IntArray:
        """Which of n pairs `add` would find (bool[n]), remembering none. Shapes as there."""
        n = len(ids)
        found = np.empty(n, np.bool_)
        hashes, order = np.empty(n, np.uint64), np.empty(n, np.int64)
        begins = np.empty(TABLES + 1, np.int64)
        kernels.ids.spread(SECRET, ids, orgs, hashes, order, begins)
        for number in range(TABLES):
            mine = order[begins[number] : begins[number + 1]]
            index, log = self._indexes[number], self._logs[number]
            kernels.ids.known(index, log, hashes, mine, ids, orgs, live_from, found)
        return found

    def renew(self, number: int, *, live_from: int) -> None:
        """Make room in a table: drop its ids of hours before ``live_from``, or grow where they are few."""
        used = int(self._used[number])
        live = kernels.ids.count_live(self._logs[number][:used], live_from)
        if len(self) - used + live > self._ids_max:
            raise TooManyIds(
                f"the dedupe window of a partition holds more than DEDUPE_IDS_MAX={self._ids_max} ids"
            )
        room = max(_ENTRIES_MIN, round(live * _GROWTH))
        grows = used * _GAIN_MIN < room <= len(self._logs[number])
        self._renew(number, room, drop_before=None if grows else live_from)

    def _room(self, number: int) -> int:
        """Entries that a table can have before it is renewed."""
        return min(int(len(self._indexes[number]) * _LOAD_MAX), len(self._logs[number]))

    def _renew(self, number: int, room: int, *, drop_before: int | None) -> None:
        """Make an index for ``room`` entries, and a log where one must be dropped or it is too short."""
        log, index, used = self._logs[number], _index(room), int(self._used[number])
        if drop_before is None and room <= len(log):
            kernels.ids.grow_index(self._indexes[number], index)
        else:
            log = self._new_log(room * _LOG_GROWTH)
            entries = self._logs[number][:used]
            self._used[number] = kernels.ids.move_ids(SECRET, entries, log, index, drop_before or 0)
        self._logs[number], self._indexes[number] = log, index


def _index(entries: int) -> IntArray:
    return np.zeros(round(entries / _LOAD_MAX) + 1, np.uint64)


def encode_segment(org_uuids: IntArray, orgs: IntArray, ids: IntArray, checks: IntArray) -> bytes:
    """The ids of one hour as bytes: `BYTES_AT_REST` an id and 20 an org.

    ``org_uuids`` uint64[orgs, 2] by org number. Layout (little endian, but ids as 16 bytes in their order)::

        u32 2^32 - 1, u32 version of the layout: 1
        u32 orgs, then for each: 16 bytes org id, u32 ids of it
        all ids, 16 bytes each
        all checks, u64 each

    Version 0.1.0 began with the number of orgs, and its checks were u32 each.
    """
    counts = np.bincount(orgs)
    numbers = np.flatnonzero(counts)
    head = np.zeros(len(numbers), [("org", ">u8", 2), ("count", "<u4")])
    head["org"] = org_uuids[numbers]
    head["count"] = counts[numbers]
    ordered_ids, ordered_checks = np.empty_like(ids), np.empty_like(checks)
    kernels.ids.order_by_org(orgs, ids, checks, np.cumsum(counts) - counts, ordered_ids, ordered_checks)
    return b"".join(
        (
            _VERSIONED,
            len(numbers).to_bytes(4, "little"),
            head.tobytes(),
            ordered_ids.astype(">u8").tobytes(),
            ordered_checks.astype("<u8").tobytes(),
        )
    )


def decode_segment(segment: bytes) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """What `encode_segment` was given: org ids uint64[k, 2] and how many ids each has int64[k], by which ids
    uint64[n, 2] and checks uint64[n] are ordered; those of version 0.1.0 too, whose checks are below 2^32.

    Raises:
        ValueError: the segment has a layout of a later version.
    """
    versioned = segment[:4] == _VERSIONED[:4]
    if versioned and segment[4:8] != _VERSIONED[4:]:
        raise ValueError(f"a segment of ids has the layout {int.from_bytes(segment[4:8], 'little')}")
    at = len(_VERSIONED) if versioned else 0
    orgs = int.from_bytes(segment[at : at + 4], "little")
    head = np.frombuffer(segment, [("org", ">u8", 2), ("count", "<u4")], count=orgs, offset=at + 4)
    n = int(head["count"].sum())
    at += 4 + head.nbytes
    ids = np.frombuffer(segment, ">u8", count=2 * n, offset=at).astype(np.uint64).reshape(n, 2)
    width = "<u8" if versioned else "<u4"
    checks = np.frombuffer(segment, width, count=n, offset=at + 16 * n).astype(np.uint64)
    return head["org"].astype(np.uint64), head["count"].astype(np.int64), ids, checks


def merge_segments(segments: Sequence[bytes]) -> bytes:
    """One segment with the ids of all, in their order: an id that is in two stays twice."""
    parts = [decode_segment(segment) for segment in segments]
    uuids = Uuids()
    orgs = np.concatenate([np.repeat(uuids.number(orgs), counts) for orgs, counts, _, _ in parts])
    ids, checks = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    return encode_segment(uuids.keys, orgs, ids, checks)


_VERSIONED: Final = (2**32 - 1).to_bytes(4, "little") + (1).to_bytes(4, "little")
