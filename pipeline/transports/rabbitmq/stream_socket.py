"""The socket below a stream connection: it sends and receives frames, and counts its reads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import numpy as np
from rstream.connection import Connection, ConnectionClosed

BUFFER_BYTES = 64 * 2**10
CHUNK_BYTES_MAX = 512 * 2**20
CONNECT_TIMEOUT_S = 10.0

_LENGTH_BYTES = 4


_AMQP = b"AMQP"
"""The first bytes that an AMQP 0.9.1 or 1.0 listener sends to a client of another protocol."""


class NotAStream(ValueError):
    """Another protocol's listener answered: the URL needs the stream port. The message names both ports."""


class StreamSocket(Connection):  # type: ignore[misc]
    """rstream's connection, but it reads a large frame into memory of its own, and counts its reads."""

    async def open(self) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, self._writer = await asyncio.open_connection(self.host, self.port, ssl=self._ssl_context)
        transport = self._writer.transport
        self._frames = _Frames(transport.get_protocol())
        transport.set_protocol(self._frames)  # the broker does not speak first, so nothing was read yet

    @property
    def reads(self) -> int:
        return self._frames.reads

    async def read_frame_bytes(self) -> bytes | memoryview:
        """The next frame without its length.

        Raises:
            ConnectionClosed, OSError: the connection has ended.
            ValueError: the length of a frame cannot be right; no later byte can be read as a frame.
        """
        return await self._frames.next()

    def write_soon(self, frames: bytes) -> None:
        """Send without waiting; for small frames."""
        self._writer.write(frames)

    async def write_all(self, frames: bytes) -> None:
        self._writer.write(frames)
        await self._writer.drain()

    def abort(self) -> None:
        """Drop the socket at once, with everything that its buffers still hold."""
        if self._writer is not None:
            self._writer.transport.abort()


class _Frames(asyncio.BufferedProtocol):
    """Cuts the incoming bytes into frames: a frame is a 4-byte length and that number of bytes.

    A frame that fits into the common buffer is copied out of the buffer. A larger frame gets memory of its
    own, and the rest of the frame is read into that memory. Chunks are larger when a reader is behind.

    Two bounds limit the frames that wait for `next`: the credit limits the chunks, and one buffer of small
    frames can come each time the task that calls `next` wakes.
    """

    def __init__(self, writing: Any) -> None:
        """``writing`` is the protocol before this one. It still decides when the writer must wait."""
        self.reads = 0
        self._writing = writing
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0
        self._large: memoryview | None = None
        self._filled = 0
        self._complete: deque[bytes | memoryview] = deque()
        self._ended: Exception | None = None
        self._news = asyncio.Event()

    async def next(self) -> bytes | memoryview:
        while not self._complete:
            if self._ended is not None:
                raise self._ended
            self._news.clear()
            await self._news.wait()
        return self._complete.popleft()

    # --- called by the event loop ------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is not None:
            return self._large[self._filled :]
        return self._buffer[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self.reads += 1
        if self._ended is not None:
            return  # after a wrong length nobody knows where the next frame begins
        if self._large is not None:
            self._filled += nbytes
            if self._filled == len(self._large):
                self._complete.append(self._large.toreadonly())
                self._large = None
                self._news.set()
            return
        self._end += nbytes
        try:
            self._cut()
        except ValueError as error:
            self._end_with(error)
            self._begin = self._end = 0

    def eof_received(self) -> bool:
        self._end_with(ConnectionClosed("end of stream"))
        return bool(self._writing.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_with(exc or ConnectionClosed("end of stream"))
        self._writing.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writing.pause_writing()

    def resume_writing(self) -> None:
        self._writing.resume_writing()

    def _end_with(self, error: Exception) -> None:
        self._ended = self._ended or error
        self._news.set()

    def _cut(self) -> None:
        """Take the whole frames out of the buffer, and make room for the rest of a frame that has begun."""
        while self._end - self._begin >= _LENGTH_BYTES:
            body = self._begin + _LENGTH_BYTES
            length = int.from_bytes(self._buffer[self._begin : body], "big")
            if length > CHUNK_BYTES_MAX:
                if self._buffer[self._begin : body] == _AMQP:
                    raise NotAStream(
                        "it speaks AMQP: an AMQP port (5672) where the stream port (5552) belongs"
                    )
                raise ValueError(f"a frame of {length} bytes")
            if body + length <= self._end:
                self._complete.append(bytes(self._buffer[body : body + length]))
                self._begin = body + length
                self._news.set()
            elif length > BUFFER_BYTES - _LENGTH_BYTES:
                self._large = np.empty(length, np.uint8).data  # a bytearray would be filled with zeros first
                self._filled = self._end - body
                self._large[: self._filled] = self._buffer[body : self._end]
                self._begin = self._end
            else:
                break
        left = self._end - self._begin
        if self._begin:
            self._buffer[:left] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, left
