"""`spendstream stream`: making a stream of several partitions, and looking at what a stream holds."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import StreamConfig
from pipeline.transports import Extent
from pipeline.transports.factory import open_transport


async def create(config: StreamConfig, *, partitions: int) -> bool:
    """Create the stream with its partitions; False if it has them already.

    Raises:
        ValueError: the URL is none of a transport's.
        TransportError: the broker is away or refuses, or the stream exists otherwise.
    """
    transport = open_transport(config)
    try:
        return await transport.create_super_stream(partitions=partitions)
    finally:
        await transport.close()


async def extents(config: StreamConfig) -> Sequence[Extent]:
    """What each partition holds now. Raises as `create` does."""
    transport = open_transport(config)
    try:
        return await transport.extents()
    finally:
        await transport.close()
