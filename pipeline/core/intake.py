"""Chunks between their arrival and the fold that works them into the books.

Working in columns pays off from some thousands of events on, and a chunk may have only a few events. So
chunks wait here until together they are worth a fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core.bodies import Bodies, Unreadable, offsets_of

IntArray = npt.NDArray[Any]

FOLD_EVENTS: Final = 8192
"""This many buffered events start a fold: enough for columns to pay off, few enough for the event loop."""

FOLD_BYTES: Final = 16 * 2**20
"""This many buffered bytes start a fold, even with few events, because a fold frees the bodies."""

LARGE_EVENTS: Final = 2 * FOLD_EVENTS
"""A fold of more events than this takes long: 16,384 events take 12 ms, or 75 ms if each is a conflict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The content of one chunk of the stream. `bodies.offsets_of` tells the offset of each body."""

    first_offset: int
    timestamp_us: int
    """The broker's time."""
    bodies: Bodies
    unreadable: Sequence[Unreadable] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The records with a body of some chunks, in stream order: arrays of one length."""

    bodies: Bodies
    offset: IntArray
    broker_us: IntArray
    """The broker's time of the chunk."""
    floor_us: IntArray
    """The floor of the dedupe window when the chunk came (`pipeline.core.judge`). int64 each."""


class Intake:
    """Chunks that wait for a fold, and how many events and bytes they have."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self.events = self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def add(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self.events += len(chunk.bodies) + sum(run.records for run in chunk.unreadable)
        self.bytes += chunk.bodies.size + sum(len(run.stored.body) for run in chunk.unreadable)

    @property
    def is_full(self) -> bool:
        """Are the waiting chunks worth a fold?"""
        return self.events >= FOLD_EVENTS or self.bytes >= FOLD_BYTES

    @property
    def is_large(self) -> bool:
        """Are the waiting chunks so large that even compiled code works on them for long?"""
        return self.events > LARGE_EVENTS or self.bytes >= FOLD_BYTES

    def take(self) -> list[Chunk]:
        """Take out all chunks that wait, in the order of arrival."""
        chunks, self._chunks = self._chunks, []
        self.events = self.bytes = 0
        return chunks


def join(chunks: Sequence[Chunk], *, newest_us: int, window_us: int) -> tuple[Records, int]:
    """Join the records of the chunks; returns them, and the newest broker time of any chunk so far.

    ``newest_us`` is the newest broker time before these chunks. ``window_us`` is the length of the dedupe
    window.
    """
    lengths = [len(chunk.bodies) for chunk in chunks]
    times = np.array([chunk.timestamp_us for chunk in chunks], np.int64)
    newest = np.maximum(np.maximum.accumulate(times), newest_us)
    offsets = [offsets_of(chunk.first_offset, len(chunk.bodies), chunk.unreadable) for chunk in chunks]
    records = Records(
        bodies=Bodies.join([chunk.bodies for chunk in chunks]),
        offset=np.concatenate(offsets),
        broker_us=np.repeat(times, lengths),
        floor_us=np.repeat(newest - window_us, lengths),
    )
    return records, int(newest[-1])
