"""Reading the bytes of dead letters back from the stream, where a flood left them out of the table."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from typing import Final

from pipeline.config import StreamConfig
from pipeline.core.bodies import KEPT_BYTES_MAX
from pipeline.transports import Extent, OffsetGone, Transport, TransportError
from pipeline.transports.factory import open_transport

SKIPPED_MAX: Final = 50_000
"""The most offsets to read over up to the next wanted offset; beyond, a new subscription is cheaper."""
_PATIENCE_S: Final = 30.0

Found = dict[tuple[str, int], tuple[bytes, int]]
"""Body and broker time (microseconds) by stream and offset."""


async def read_back(config: StreamConfig, wanted: Mapping[str, Set[int]]) -> Found:
    """Read the records at the wanted offsets, by stream. Records that are gone are left out.

    Raises:
        TransportError: the stream cannot be read now.
        ValueError: the URL is not of a stream.
    """
    transport = open_transport(config)
    found: Found = {}
    try:
        for number, extent in enumerate(await transport.extents()):
            held = range(extent.first_offset, extent.end_offset)
            offsets = sorted(offset for offset in wanted.get(extent.stream, ()) if offset in held)
            while offsets:
                try:
                    offsets = await _read_run(transport, number, extent, offsets, found)
                except OffsetGone as gone:  # retention has just deleted the offset
                    offsets = [
                        offset for offset in offsets if offset >= max(gone.first_offset, offsets[0] + 1)
                    ]
    finally:
        await transport.close()
    return found


async def _read_run(
    transport: Transport, number: int, extent: Extent, offsets: list[int], found: Found
) -> list[int]:
    """Read on from the first offset while the next wanted offset is near; the offsets that are left."""
    subscription = await transport.subscribe(partition=number, offset=offsets[0])
    wanted, last = set(offsets), offsets[-1]
    at = offsets[0]
    try:
        while at <= last and min(wanted) - at <= SKIPPED_MAX:
            async with asyncio.timeout(_PATIENCE_S):
                chunk = await subscription.receive()
            subscription.grant()
            for offset, body in zip(chunk.offsets().tolist(), chunk.bodies, strict=True):
                if offset in wanted:
                    found[extent.stream, offset] = bytes(body[:KEPT_BYTES_MAX]), chunk.timestamp_us
            for run in chunk.unreadable:
                if run.first_offset in wanted:
                    found[extent.stream, run.first_offset] = run.stored.body, chunk.timestamp_us
            at = chunk.next_offset
            wanted = {offset for offset in wanted if offset >= at}
            if not wanted:
                break
    except TimeoutError:
        if await subscription.offset_lag(at):
            raise TransportError(f"stream {extent.stream!r} sent nothing for {_PATIENCE_S:g} s") from None
        return []  # the offsets hold no records of a publisher, but chunks of the broker's own
    finally:
        await subscription.close()
    return sorted(wanted)
