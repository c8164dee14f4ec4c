"""The ids that one partition remembers: those of the dedupe window, and those that the next batch stores.

Three things must agree, and this module keeps them together: the index that finds an id
(`pipeline.core.dedupe`), the id segments that the database keeps, and the orgs of the remembered ids. An org
with remembered ids must keep its number.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import dedupe
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Columns, Reader
from pipeline.core.watermark import HOUR_US

IntArray = npt.NDArray[Any]

_NO_HOUR: Final = np.iinfo(np.int64).min


class RememberedIds:
    """The (org, event id) pairs that a partition has counted inside its dedupe window."""

    def __init__(self, reader: Reader, *, new_log: dedupe.NewLog | None = None, ids_max: int = 2**32) -> None:
        """``reader`` numbers the orgs. For the rest see `dedupe.SeenIds`."""
        self._reader = reader
        self.seen = SeenIds(new_log=new_log, ids_max=ids_max)
        self._unstored: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
        self._org_hours: IntArray = np.empty(0, np.int64)
        """By the number of the org: the last hour in which an id of the org may be remembered."""

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def memory_bytes(self) -> int:
        return self.seen.memory_bytes + self._org_hours.nbytes

    def recover(self, hour: int, segment: bytes, *, live_from: int) -> None:
        """Remember the ids of a stored segment. The segments must come in ascending order of the hour."""
        orgs, counts, ids, checks = dedupe.decode_segment(segment)
        org = np.repeat(self._reader.orgs.number(orgs), counts)
        hours = np.full(len(ids), hour, np.int32)
        self.note_orgs(org, hours)
        # An id that lapsed and was accepted again is in two segments. Each id here sees only entries of its
        # own hour or later, so the entry of the later hour replaces the entry of the earlier one.
        self.seen.add(ids, org, hours, checks, hours, live_from)

    def add(self, columns: Columns, live_from: IntArray) -> IntArray:
        """Look up and remember the ids of n events in order; returns the outcomes of `SeenIds.add`.

        ``live_from`` int32[n]: the first hour that counts for each event.
        """
        return self.seen.add(
            columns.event,
            columns.org,
            (columns.occurred_us // HOUR_US).astype(np.int32),
            columns.check,
            live_from,
            older_checks=lambda places: self._reader.older_checks(columns.take(places)),
        )

    def known(self, columns: Columns, live_from: IntArray) -> IntArray:
        """Mask (bool[n]) of the events whose ids are remembered, in hour ``live_from`` int32[n] or later.

        No id is added.
        """
        return self.seen.known(columns.event, columns.org, live_from)

    def store(self, columns: Columns) -> None:
        """Put the ids of these events, which have been counted, into the next segments."""
        hours = columns.occurred_us // HOUR_US
        self._unstored.append((hours, columns.org, columns.event, columns.check))

    def drain(self) -> dict[int, bytes]:
        """Hand out the ids to store since the last drain: by hour, one segment."""
        parts, self._unstored = self._unstored, []
        if not parts:
            return {}
        hours, org, event, check = (np.concatenate(column) for column in zip(*parts, strict=True))
        first, last = int(hours.min()), int(hours.max())
        if first == last:
            return {first: self._segment(first, org, event, check)}
        segments = {}
        for hour in np.unique(hours).tolist():
            mine = hours == hour
            segments[hour] = self._segment(hour, org[mine], event[mine], check[mine])
        return segments

    def _segment(self, hour: int, org: IntArray, event: IntArray, check: IntArray) -> bytes:
        uuids = self._reader.orgs.keys
        is_org = np.zeros(len(uuids), np.bool_)
        is_org[org] = True
        orgs = np.flatnonzero(is_org)
        self.note_orgs(orgs, np.full(len(orgs), hour, np.int64))
        return dedupe.encode_segment(uuids, org, event, check)

    def note_orgs(self, org: IntArray, hour: IntArray) -> None:
        """Note that ids of these orgs are remembered up to these hours (int[n] each)."""
        if not len(org):
            return
        short = int(org.max()) + 1 - len(self._org_hours)
        if short > 0:
            more = np.full(short + len(self._org_hours), _NO_HOUR, np.int64)
            self._org_hours = np.concatenate((self._org_hours, more))
        np.maximum.at(self._org_hours, org, hour)

    def orgs(self, *, live_from: int) -> IntArray:
        """The orgs that may have ids remembered in hour ``live_from`` or later. The others lose their note.

        An entry of the index may still name an org that lost its note. The entry has lapsed for every later
        event.
        """
        lapsed = self._org_hours < live_from
        self._org_hours[lapsed] = _NO_HOUR
        return np.flatnonzero(~lapsed)
