"""Exact dedupe: every (org, event id) of the window in one compact table, and its bytes at rest.

It owns what "seen" means. It knows nothing of partitions, offsets or the database: the ledger hands it
numbered orgs and tells it from which hour on an id still counts.

An id is remembered under the UTC hour of the event time of its first occurrence. Hour numbers are
hours since 1970. 28 bytes a slot, at most three quarters full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels
from pipeline.core.events import Uuids

_TABLES: Final = 16
_SLOTS_MIN: Final = 1 << 10
_GROWTH: Final = 1.5
_LOAD_MAX: Final = 0.75
"""As in `kernels.remember`."""

IntArray = npt.NDArray[Any]


class SeenIds:
    """The ids of the dedupe window. Size in memory: `memory_bytes`.

    Sixteen tables, by the hash of the id, because a table is copied when it grows: so that growing takes a
    sixteenth of the memory and of the time. Their sizes differ from the start, so that they grow in turn.
    """

    def __init__(self) -> None:
        self._tables = tuple(_table(round(_SLOTS_MIN * _GROWTH ** (i / _TABLES))) for i in range(_TABLES))
        self._used: IntArray = np.zeros(_TABLES, np.int64)

    def __len__(self) -> int:
        return int(self._used.sum())

    @property
    def memory_bytes(self) -> int:
        return sum(table.nbytes for table in self._tables)

    def add(
        self,
        ids: IntArray,
        orgs: IntArray,
        hours: IntArray,
        checks: IntArray,
        live_from: IntArray,
        kept_from: int | None = None,
    ) -> IntArray:
        """Look up and remember n pairs in order; returns `kernels.NEW`, `DUPLICATE` or `CONFLICT` (uint8[n]).

        Shapes: ``ids`` uint64[n, 2], ``orgs`` int32[n], ``hours`` int32[n], ``checks`` uint32[n] (of the
        payload), ``live_from`` int32[n]: entries of earlier hours are forgotten for that event. Those before
        ``kept_from`` (the least of ``live_from``) may be given up for good.
        """
        outcomes = np.empty(len(ids), np.uint8)
        done = 0
        while True:
            done, full = kernels.remember(
                self._tables, self._used, ids, orgs, hours, checks, live_from, outcomes, done
            )
            if done == len(ids):
                return outcomes
            self.renew(full, live_from=int(live_from.min()) if kept_from is None else kept_from)

    def renew(self, number: int, *, live_from: int) -> None:
        """Drop a table's ids of hours before ``live_from``, and make room where that does not suffice."""
        live_from = max(live_from, 0)  # an empty slot must not look like an id of hour -1
        table = self._tables[number]
        live = int(np.count_nonzero(table[:, 5] > live_from))  # stored as hour + 1
        fresh = _table(max(_SLOTS_MIN, round(live * _GROWTH / _LOAD_MAX)))
        kernels.move_ids(table, fresh, live_from)
        self._tables = (*self._tables[:number], fresh, *self._tables[number + 1 :])
        self._used[number] = live


def _table(slots: int) -> IntArray:
    return np.zeros((slots, 7), np.uint32)


def encode_segment(org_uuids: IntArray, orgs: IntArray, ids: IntArray, checks: IntArray) -> bytes:
    """The ids of one hour as bytes: 20 bytes an id and 20 an org.

    ``org_uuids`` uint64[orgs, 2] by org number. Layout (little endian, but ids as 16 bytes in their order)::

        u32 orgs, then for each: 16 bytes org id, u32 ids of it
        all ids, 16 bytes each
        all checks, u32 each
    """
    counts = np.bincount(orgs)
    numbers = np.flatnonzero(counts)
    order = np.argsort(orgs.astype(np.uint16) if len(counts) <= 1 << 16 else orgs, kind="stable")
    counts = counts[numbers]
    head = np.zeros(len(numbers), [("org", ">u8", 2), ("count", "<u4")])
    head["org"] = org_uuids[numbers]
    head["count"] = counts
    return b"".join(
        (
            len(numbers).to_bytes(4, "little"),
            head.tobytes(),
            ids[order].astype(">u8").tobytes(),
            checks[order].astype("<u4").tobytes(),
        )
    )


def decode_segment(segment: bytes) -> tuple[IntArray, IntArray, IntArray]:
    """Org ids uint64[n, 2], ids uint64[n, 2] and checks uint32[n] of `encode_segment`'s bytes."""
    orgs = int.from_bytes(segment[:4], "little")
    head = np.frombuffer(segment, [("org", ">u8", 2), ("count", "<u4")], count=orgs, offset=4)
    n = int(head["count"].sum())
    at = 4 + head.nbytes
    ids = np.frombuffer(segment, ">u8", count=2 * n, offset=at).astype(np.uint64).reshape(n, 2)
    checks = np.frombuffer(segment, "<u4", count=n, offset=at + 16 * n).astype(np.uint32)
    return np.repeat(head["org"].astype(np.uint64), head["count"], axis=0), ids, checks


def merge_segments(segments: Sequence[bytes]) -> bytes:
    """One segment with the ids of all, in their order: an id that is in two stays twice."""
    parts = [decode_segment(segment) for segment in segments]
    uuids = Uuids()
    orgs = uuids.number(np.concatenate([orgs for orgs, _, _ in parts]))
    ids, checks = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    return encode_segment(uuids.keys, orgs, ids, checks)
