"""Looking for a gap from outside, as a worker would find it."""

from __future__ import annotations

from pipeline.transports import Extent, OffsetGone, ReadFrom, Transport


async def look(transport: Transport, partition: int, held: Extent, place: ReadFrom) -> OffsetGone | None:
    """The gap at which a worker would stop that reads on from ``place``; None: no gap.

    Raises TransportError.
    """
    replaced = False
    if held.first_offset <= place.offset <= held.end_offset:
        if place.before_us is not None and place.offset > held.first_offset:
            stored_us = await transport.stored_us(partition=partition, offset=place.offset - 1)
            replaced = stored_us is not None and stored_us != place.before_us
        if not replaced:
            return None
    return OffsetGone(
        stream=held.stream,
        wanted_offset=place.offset,
        first_offset=held.first_offset,
        end_offset=held.end_offset,
        replaced=replaced,
    )
