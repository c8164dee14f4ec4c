"""A load generator that costs next to nothing, so that what is measured is the server.

Raw sockets with keep-alive; a body is counted, not read. `one_at_a_time` asks again when it has its answer;
`at_a_rate` sends when a request is due, whether or not earlier ones were answered, and counts each latency
from when its request was due.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

_LENGTH: Final = b"content-length:"


class Connection(asyncio.BufferedProtocol):
    """One request at a time. Answers must have a Content-Length."""

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._head = b""
        self._left = -1
        self._status = 0
        self._answered: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None
        self.body_bytes = 0

    async def ask(self, request: bytes) -> int:
        """The status. Raises `ConnectionError` when the server hangs up instead."""
        assert self._transport is not None
        self._head, self._left = b"", -1
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._left < 0:
            self._head += self._buffer[:nbytes]
            head, blank, body = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            self._status = int(head[9:12])
            start = head.lower().find(_LENGTH)
            self._left = int(head[start + len(_LENGTH) :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            self.body_bytes = self._left
            self._left -= len(body)
        else:
            self._left -= nbytes
        if self._left == 0 and self._answered and not self._answered.done():
            self._answered.set_result(self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(ConnectionError("the server hung up"))


def get(path: str, *, port: int, gzip: bool = False) -> bytes:
    """A GET request as it goes out."""
    coding = "Accept-Encoding: gzip\r\n" if gzip else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{coding}\r\n".encode()


async def one_at_a_time(port: int, requests: Sequence[bytes]) -> list[float]:
    """Seconds each took, on one connection. Raises `AssertionError` on an answer that is not 200."""
    connection = await connect(port)
    found = []
    for request in requests:
        started = time.perf_counter()
        status = await connection.ask(request)
        found.append(time.perf_counter() - started)
        assert status == 200, status
    connection.close()
    return found


async def at_a_rate(port: int, requests: Sequence[bytes], *, rate: float) -> tuple[list[float], int]:
    """Seconds from when each was due, and how many were not answered with 200."""
    idle: deque[Connection] = deque()
    found: list[float] = []
    refused = 0

    async def ask(request: bytes, due: float) -> None:
        nonlocal refused
        connection = idle.popleft() if idle else await connect(port)
        status = await connection.ask(request)
        refused += status != 200
        found.append(time.perf_counter() - due)
        idle.append(connection)

    tasks = []
    started = time.perf_counter() + 0.05
    for number, request in enumerate(requests):
        due = started + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(request, due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return found, refused


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection
