"""`spendstream stream`: creating a stream of several partitions, and listing the partitions' offsets."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import StreamConfig
from pipeline.transports import Extent
from pipeline.transports.factory import open_transport


async def create(config: StreamConfig, *, partitions: int) -> bool:
    """Create the stream with its partitions; False if it already exists with this number of partitions.

    Raises:
        ValueError: no transport takes the URL.
        TransportError: the broker is away or refuses, or the stream exists with another number of partitions.
    """
    transport = open_transport(config)
    try:
        return await transport.create_super_stream(partitions=partitions)
    finally:
        await transport.close()


async def extents(config: StreamConfig) -> Sequence[Extent]:
    """The records that each partition holds now. Raises the same errors as `create`."""
    transport = open_transport(config)
    try:
        return await transport.extents()
    finally:
        await transport.close()
