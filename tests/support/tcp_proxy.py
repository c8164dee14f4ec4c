"""A TCP proxy that a test can cut, freeze and tamper with, to see a client meet a bad network."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Moment = Literal["before", "in", "after"]


@dataclass(slots=True)
class _Link:
    """The state that the two directions of one connection share."""

    cut_at_answer: bool = False


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and forwards to a target. Use as an async context manager.

    With ``tls`` the proxy ends TLS: clients speak TLS to the proxy, and the proxy speaks plain TCP to the
    target.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        """Connections accepted so far."""
        self.replace: tuple[bytes, bytes] | None = None
        """(old, new): replaces these bytes of the target's answers, if they arrive in one read."""
        self.cut_at: tuple[bytes, Moment] | None = None
        """Cut once, the next connection whose client sends these bytes.

        The moment is before the bytes reach the target, right after, or when the target's answer has come.
        The client then never sees the answer.
        """
        self.target = (host, port)
        """The address to which new connections go."""
        self._tls = tls
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._downstream: set[asyncio.StreamWriter] = set()
        self._upstream: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Reset every connection. New ones are accepted."""
        for writer in (*self._downstream, *self._upstream):
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    def freeze(self) -> None:
        """Keep every connection open and forward nothing more: both ends see a silent peer."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def inject(self, data: bytes) -> None:
        """Send bytes to every client as if the target had."""
        for writer in self._downstream:
            writer.write(data)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            target_reader, target_writer = await asyncio.open_connection(*self.target)
            self._downstream.add(writer)
            self._upstream.add(target_writer)
            link = _Link()
            try:
                async with asyncio.TaskGroup() as both_ways:
                    both_ways.create_task(self._pump(reader, target_writer, link, tamper=False))
                    both_ways.create_task(self._pump(target_reader, writer, link, tamper=True))
            except* OSError:
                pass
            finally:
                for one in (writer, target_writer):
                    one.transport.abort()
                self._downstream.discard(writer)
                self._upstream.discard(target_writer)
        self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, *, tamper: bool
    ) -> None:
        while data := await reader.read(2**16):
            await self._flowing.wait()
            if tamper and link.cut_at_answer:
                raise ConnectionResetError
            if tamper and self.replace is not None:
                data = data.replace(*self.replace)
            moment = None if tamper else self._moment(data)
            if moment == "before":
                raise ConnectionResetError
            link.cut_at_answer = moment == "after"
            writer.write(data)
            await writer.drain()
            if moment == "in":
                raise ConnectionResetError
        # One direction has ended. The other direction must end too, as when a broker or a client closes.
        raise ConnectionResetError

    def _moment(self, data: bytes) -> Moment | None:
        """The moment to cut, if the data hold the bytes of `cut_at`. `cut_at` is None afterwards."""
        if self.cut_at is None or self.cut_at[0] not in data:
            return None
        (_, moment), self.cut_at = self.cut_at, None
        return moment
