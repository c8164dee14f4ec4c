"""The socket below a stream connection: frames in and out, and whether anything was heard at all."""

from __future__ import annotations

import asyncio

from rstream.connection import Connection, ConnectionClosed

READ_BYTES = 256 * 2**10
CHUNK_BYTES_MAX = 512 * 2**20
CONNECT_TIMEOUT_S = 10.0


class StreamSocket(Connection):  # type: ignore[misc]
    """rstream's connection with large reads (its own are of 256 bytes) and a count of them."""

    reads = 0

    async def open(self) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self._reader, self._writer = await asyncio.open_connection(
                self.host, self.port, ssl=self._ssl_context, limit=2 * READ_BYTES
            )

    async def read_frame_bytes(self) -> bytes:
        length = int.from_bytes(await self._read(4), "big")
        if length > CHUNK_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes")
        return await self._read(length)

    async def _read(self, n: int) -> bytes:
        buffer = self._buffer
        while len(buffer) < n:
            read = await self._reader.read(READ_BYTES)
            if not read:
                raise ConnectionClosed("end of stream")
            self.reads += 1
            buffer += read
        with memoryview(buffer) as view:
            wanted = bytes(view[:n])
        del buffer[:n]
        return wanted

    def write_soon(self, frames: bytes) -> None:
        """Send without waiting; for small frames."""
        self._writer.write(frames)

    async def write_all(self, frames: bytes) -> None:
        self._writer.write(frames)
        await self._writer.drain()

    def abort(self) -> None:
        """Drop the socket at once, whatever is still in its buffers."""
        if self._writer is not None:
            self._writer.transport.abort()
