"""A bounded pool of the database's connections.

The pool knows connections, not what is asked on them. It is our own because of what it does not do: it opens
no connection in the background, so the error of a failed connect reaches the request that needed the
connection, and the request can say why it has no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from psycopg.pq import TransactionStatus

from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable


class Pool:
    """At most ``size`` connections, each made by ``connect`` when it is first needed."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection]], *, size: int, timeout_s: float
    ) -> None:
        self.size = size
        self.in_use = 0
        """How many connections the blocks have now."""
        self.waiting = 0
        """How many blocks wait for a connection."""
        self._connect = connect
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(size)
        self._idle: list[AsyncConnection] = []
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """One connection for the block alone. A connection whose transaction the block leaves open is closed.

        Raises:
            Unavailable: no connection came free within ``timeout_s``.
            Exception: whatever ``connect`` raises.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise Unavailable("No database connection came free in time.") from None
        finally:
            self.waiting -= 1
        self.in_use += 1
        try:
            connection = self._last_used() or await self._connect()
            try:
                yield connection
            finally:
                if self._closed or connection.info.transaction_status is not TransactionStatus.IDLE:
                    await connection.close()
                else:
                    self._idle.append(connection)
        finally:
            self.in_use -= 1
            self._free.release()

    async def close(self) -> None:
        """Close every idle connection. Those in use are closed when they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    def _last_used(self) -> AsyncConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None
