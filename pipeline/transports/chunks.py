"""Cutting a chunk in two, and taking skipped records out of a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.core.bodies import Kept, Unreadable
from pipeline.transports import Chunk


def split(chunk: Chunk, offset: int) -> tuple[Chunk, Chunk | None]:
    """Cut a chunk before ``offset``; the records before, and the rest if there is any.

    An unreadable batch stays whole, and goes with the records before if it begins before ``offset``.
    """
    offsets = chunk.offsets()
    cut = int(offsets.searchsorted(offset))
    starts = [*offsets[cut : cut + 1].tolist()]
    starts += [run.first_offset for run in chunk.unreadable if run.first_offset >= offset]
    if not starts:
        return chunk, None
    end = min(starts)
    before = replace(
        chunk,
        next_offset=end,
        bodies=chunk.bodies[:cut],
        unreadable=[run for run in chunk.unreadable if run.first_offset < end],
    )
    after = replace(
        chunk,
        first_offset=end,
        bodies=chunk.bodies[cut:],
        unreadable=[run for run in chunk.unreadable if run.first_offset >= end],
    )
    return before, after


def without(chunk: Chunk, skips: Mapping[int, str]) -> Chunk:
    """The chunk with each skipped record as an unreadable one; ``skips`` has the reasons by offset."""
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
