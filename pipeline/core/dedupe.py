"""Exact dedupe: the index that finds every (org, event id) of the dedupe window, and the stored form of ids.

This module decides whether an id has been seen. It knows nothing of partitions, offsets or the database:
`pipeline.core.remembered` hands it numbered orgs and tells it from which hour on an id still counts.

An id is remembered under an hour: the UTC hour of the event time of its first occurrence. Hours are numbered
since 1970. For example, an event of 09:59 UTC puts its id into the hour from 09:00. A copy with the event
time 10:01 finds the id there. When the dedupe window begins at 10:00, the id has *lapsed* and counts no more.

Ids are kept whole in logs, in the order of their arrival. An index of eight bytes a slot finds them. A log is
written at its end. It is read again only when an id repeats and when lapsed ids are dropped. So a log may lie
in a file that the system pages out (``new_log``). The index must stay in memory: it takes 11 to 16 bytes an
id. A log takes 32 bytes an id, and up to half as much again for ids that have lapsed.
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
"""Bytes of one id in a segment (in version 0.1.0: 20). Each org of the segment takes 20 bytes more."""
_ENTRIES_MIN: Final = 768
_GROWTH: Final = 1.5
_GAIN_MIN: Final = 1.125
"""When a full table keeps its lapsed ids, its new index must have at least this much more room.

With less room the table would soon be full again. For example, 1000 entries are used, and 800 of them are
live. The new index has room for 800 * 1.5 = 1200 entries. That is more than 1125, so the 200 lapsed entries
stay. With 700 live entries the room would be 1050, so the 300 lapsed entries are dropped.
"""
_LOG_GROWTH: Final = 2
"""A new log is twice as long as its index has room. The unused end takes no memory, because the system gives
a page only when somebody writes to the page."""
_LOAD_MAX: Final = 0.75

IntArray = npt.NDArray[Any]

NewLog = Callable[[int], IntArray]
"""Makes a log for a number of entries: uint32[entries, 8]. Its first values may be anything."""


OlderChecks = Callable[[IntArray], IntArray]
"""Computes the payload checks that earlier versions stored of the pairs at some places (int64[m]).

The checks are uint64[m, versions]."""


class TooManyIds(Exception):
    """The dedupe window of a partition holds more ids than DEDUPE_IDS_MAX."""


def _log_in_memory(entries: int) -> IntArray:
    return np.empty((entries, 8), np.uint32)


class SeenIds:
    """Remembers the ids of the dedupe window.

    The ids are spread over sixteen tables by their hash. A table is copied when it grows, so sixteen small
    tables take a sixteenth of the memory and of the time at each growth. Their sizes differ from the start,
    so that the tables grow one after another.
    """

    def __init__(self, *, new_log: NewLog | None = None, ids_max: int = 2**32) -> None:
        """``new_log`` makes the logs; None: they are in memory. For ``ids_max`` see `add`."""
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
        """Memory of the index, and of the logs if they are in memory."""
        logs = len(self) * _ENTRY_BYTES if self._logs_in_memory else 0
        return sum(index.nbytes for index in self._indexes) + logs

    def reserve(self, count: int) -> None:
        """Make room for about ``count`` ids in all, before they come. Raises OSError: no room for a log."""
        count = min(count, self._ids_max)
        for number in range(TABLES):
            # By chance some tables get more ids than others, so each gets some room more than its share. The
            # rooms differ, because the tables must not all grow at once afterwards.
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
        older_checks: OlderChecks | None = None,
    ) -> IntArray:
        """Look up n (org, id) pairs in order, and remember the new ones.

        Returns an outcome for each pair, uint8[n]: `kernels.ids.NEW`, ``DUPLICATE`` or ``CONFLICT``.

        Shapes: ``ids`` uint64[n, 2], ``orgs`` int32[n], ``hours`` int32[n], ``checks`` uint64[n] (of the
        payloads), ``live_from`` int32[n]. ``live_from`` is the first hour that counts for each pair: the pair
        does not see an entry of an earlier hour. ``live_from`` must never go back.

        Entries of hours before ``kept_from`` may be dropped for good. None: the least of ``live_from``.

        A pair may meet an id that an earlier version stored with another check of the same payload.
        ``older_checks`` then decides between duplicate and conflict. Without it the pair is a conflict.

        Raises:
            TooManyIds: more than ``ids_max`` ids are live. This is found out when a table has to grow.
            OSError: there is no room for a larger log.
        """
        n = len(ids)
        outcomes, met = np.empty(n, np.uint8), np.empty(n, np.uint64)
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
                    met,
                )
                if done == len(mine):
                    break
                mine = mine[done:]
                least = int(live_from.min()) if kept_from is None else kept_from
                self.renew(number, live_from=least)
        differ = np.flatnonzero(outcomes == kernels.ids.CONFLICT)
        if len(differ) and older_checks is not None:
            same = (older_checks(differ) == met[differ, None]).any(axis=1)
            outcomes[differ[same]] = kernels.ids.DUPLICATE
        return outcomes

    def known(self, ids: IntArray, orgs: IntArray, live_from: IntArray) -> IntArray:
        """Mask (bool[n]) of the pairs that `add` would find. Nothing is remembered. Shapes as in `add`."""
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
        """Make room in a table: drop its ids of hours before ``live_from``, or grow if they are few.

        Raises TooManyIds: the live ids are more than ``ids_max``.
        """
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
        """How many entries a table can have before it must be renewed."""
        return min(int(len(self._indexes[number]) * _LOAD_MAX), len(self._logs[number]))

    def _renew(self, number: int, room: int, *, drop_before: int | None) -> None:
        """Give a table an index for ``room`` entries, and a new log if the old one does not do.

        The old log does not do if it is too short, or if entries of hours before ``drop_before`` must go.
        """
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
    """Encode the ids of one hour as a segment: `BYTES_AT_REST` bytes an id and 20 an org.

    ``org_uuids`` uint64[orgs, 2] has the id of each org by its number. ``orgs``, ``ids`` uint64[n, 2] and
    ``checks`` uint64[n] belong together. Layout (little endian; an id is its 16 bytes in their order)::

        u32 2^32 - 1, u32 version of the layout: 1
        u32 number of orgs, then for each org: 16 bytes org id, u32 number of its ids
        all ids, 16 bytes each
        all checks, u64 each

    A segment of version 0.1.0 began with the number of orgs, and its checks were u32 each.
    """
    counts = np.bincount(orgs)
    numbers = np.flatnonzero(counts)
    head = np.zeros(len(numbers), [("org", ">u8", 2), ("count", "<u4")])
    head["org"] = org_uuids[numbers]
    head["count"] = counts[numbers]
    ordered_ids, ordered_checks = np.empty_like(ids), np.empty_like(checks)
    kernels.ids.order_by_org(orgs, ids, checks, np.cumsum(counts) - counts, ordered_ids, ordered_checks)
    parts = head, ordered_ids.astype(">u8"), ordered_checks.astype("<u8", copy=False)
    return b"".join((_VERSIONED, len(numbers).to_bytes(4, "little"), *(part.data for part in parts)))


def decode_segment(segment: bytes) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Decode a segment that `encode_segment` or version 0.1.0 made.

    Returns the org ids uint64[k, 2], how many ids each org has int64[k], then all ids uint64[n, 2] and their
    checks uint64[n], org by org. The checks of version 0.1.0 are below 2^32.

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
    """Make one segment of several, with all ids in their order. An id that is in two segments stays twice."""
    parts = [decode_segment(segment) for segment in segments]
    uuids = Uuids()
    orgs = np.concatenate([np.repeat(uuids.number(orgs), counts) for orgs, counts, _, _ in parts])
    ids, checks = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    return encode_segment(uuids.keys, orgs, ids, checks)


_VERSIONED: Final = (2**32 - 1).to_bytes(4, "little") + (1).to_bytes(4, "little")
