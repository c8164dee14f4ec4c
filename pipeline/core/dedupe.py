"""Exact dedupe: every (org, event id) of the window in one compact table, and its bytes at rest.

It owns what "seen" means. It knows nothing of partitions, offsets or the database: the ledger hands it
numbered orgs and tells it from which hour on an id still counts.

An id is remembered under the UTC hour of the event time of its first occurrence. Hour numbers are
hours since 1970. 28 bytes a slot, at most 70 % full.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels

_SLOTS_MIN: Final = 1 << 12
_LOAD_MAX: Final = 0.7

IntArray = npt.NDArray[Any]


class SeenIds:
    """The ids of the dedupe window. Size in memory: `memory_bytes`."""

    def __init__(self) -> None:
        self._used = 0
        self._allocate(_SLOTS_MIN)

    def _allocate(self, slots: int) -> None:
        self._ids = np.empty((slots, 2), np.uint64)
        self._orgs = np.empty(slots, np.int32)
        self._hours = np.zeros(slots, np.int32)
        self._checks = np.empty(slots, np.uint32)

    def __len__(self) -> int:
        return self._used

    @property
    def memory_bytes(self) -> int:
        return self._ids.nbytes + self._orgs.nbytes + self._hours.nbytes + self._checks.nbytes

    def add(
        self, ids: IntArray, orgs: IntArray, hours: IntArray, checks: IntArray, live_from: IntArray
    ) -> IntArray:
        """Look up and remember n pairs in order; returns `kernels.NEW`, `DUPLICATE` or `CONFLICT` (uint8[n]).

        Shapes: ``ids`` uint64[n, 2], ``orgs`` int32[n], ``hours`` int32[n], ``checks`` uint32[n] (of the
        payload), ``live_from`` int32[n]: entries of earlier hours are forgotten for that event.
        """
        if self._used + len(ids) > _LOAD_MAX * len(self._hours):
            self._rehash(room_for=len(ids), live_from=int(live_from.min()) if len(ids) else 0)
        outcomes = np.empty(len(ids), np.uint8)
        self._used += kernels.remember(
            self._ids,
            self._orgs,
            self._hours,
            self._checks,
            ids,
            orgs,
            hours,
            checks,
            live_from,
            outcomes,
        )
        return outcomes

    def _rehash(self, *, room_for: int, live_from: int) -> None:
        """Drop ids of hours before ``live_from`` and make room; the only place where memory is given back."""
        kept = self._hours > live_from  # stored as hour + 1
        ids, orgs, hours, checks = (
            self._ids[kept],
            self._orgs[kept],
            self._hours[kept] - 1,
            self._checks[kept],
        )
        slots = _SLOTS_MIN
        while len(ids) + room_for > _LOAD_MAX * slots * 0.9:
            slots *= 2
        self._allocate(slots)
        outcomes = np.empty(len(ids), np.uint8)
        self._used = kernels.remember(
            self._ids,
            self._orgs,
            self._hours,
            self._checks,
            ids,
            orgs,
            hours,
            checks,
            np.zeros(len(ids), np.int32),
            outcomes,
        )


def encode_segment(org_uuids: IntArray, orgs: IntArray, ids: IntArray, checks: IntArray) -> bytes:
    """The ids of one hour as bytes: 20 bytes an id and 20 an org.

    ``org_uuids`` uint64[orgs, 2] by org number. Layout (little endian, but ids as 16 bytes in their order)::

        u32 orgs, then for each: 16 bytes org id, u32 ids of it
        all ids, 16 bytes each
        all checks, u32 each
    """
    order = np.argsort(orgs, kind="stable")
    numbers, counts = np.unique(orgs, return_counts=True)
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
