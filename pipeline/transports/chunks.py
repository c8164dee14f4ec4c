"""A chunk cut into smaller ones, and one without the records that an operator has skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from pipeline.core.bodies import Kept, Unreadable
from pipeline.transports import Chunk


def parts(chunk: Chunk, records: int) -> Iterator[Chunk]:
    """The chunk as several of at most so many bodies, in order. An unreadable batch stays whole."""
    offsets = chunk.offsets()
    cuts = [chunk.first_offset, *offsets[records::records].tolist(), chunk.next_offset]
    for number, (first, end) in enumerate(pairwise(cuts)):
        yield replace(
            chunk,
            first_offset=first,
            next_offset=end,
            bodies=chunk.bodies[number * records : (number + 1) * records],
            unreadable=[run for run in chunk.unreadable if first <= run.first_offset < end],
        )


def without(chunk: Chunk, skips: Mapping[int, str]) -> Chunk:
    """The chunk with each skipped record as one that nobody can read; ``skips``: by offset, why."""
    if not any(chunk.first_offset <= offset < chunk.next_offset for offset in skips):
        return chunk
    bodies, unreadable = [], list(chunk.unreadable)
    for offset, body in zip(chunk.offsets().tolist(), chunk.bodies, strict=True):
        if offset in skips:
            run = Unreadable(
                first_offset=offset, records=1, fault=skips[offset], stored=Kept.of(body), reason="skipped"
            )
            unreadable.append(run)
        else:
            bodies.append(bytes(body))
    return replace(chunk, bodies=bodies, unreadable=sorted(unreadable, key=lambda run: run.first_offset))
