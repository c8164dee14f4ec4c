"""A stream in memory for publishers: it confirms, hangs, fails or is away as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pipeline.transports import TransportError
from tests.support.memory_transport import PartialTransport


class MemoryStream(PartialTransport):
    """See `pipeline.transports.Transport`. Its publishers append to ``stored``."""

    stream = "s"

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.keys: list[str] = []
        self.batches: list[int] = []
        """How many bodies each `publish` brought."""
        self.away = False
        self.confirms = asyncio.Event()
        """While it is not set, what is published is stored and not confirmed."""
        self.confirms.set()
        self.takes_bytes = 2**20
        """A larger body is refused."""
        self.publishers = 0
        self._cut = asyncio.Event()

    async def open(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise TransportError("the broker is away")

    async def ping(self) -> None:
        await self.open()

    async def publisher(self) -> MemoryPublisher:
        await self.open()
        self.publishers += 1
        self._cut = asyncio.Event()
        return MemoryPublisher(self, self._cut)

    def cut(self, *, away: bool = False) -> None:
        """End the publisher. With ``away`` there is no new one until `come_back`."""
        self.away = away
        self._cut.set()

    def come_back(self) -> None:
        self.away = False

    async def close(self) -> None:
        self._cut.set()


class MemoryPublisher:
    def __init__(self, stream: MemoryStream, cut: asyncio.Event) -> None:
        self._stream = stream
        self._cut = cut

    @property
    def body_bytes_max(self) -> int:
        return self._stream.takes_bytes

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        stream = self._stream
        if max(map(len, bodies)) > stream.takes_bytes:
            raise ValueError(f"a body of more than {stream.takes_bytes} bytes")
        await asyncio.sleep(0)
        if self._cut.is_set():
            raise TransportError("the connection was cut")
        assert keys is not None
        stream.stored += bodies
        stream.keys += keys
        stream.batches.append(len(bodies))
        waits = [asyncio.ensure_future(one.wait()) for one in (stream.confirms, self._cut)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._cut.is_set():
            raise TransportError("the connection was cut")

    async def close(self) -> None:
        self._cut.set()
