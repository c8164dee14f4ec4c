"""The database as the collector sees it: API keys are read there, and the names of orgs written.

One connection is enough, because keys are remembered for API_KEY_CACHE. Every wait ends: a database that is
away or hangs is `Unavailable` after API_DATABASE_TIMEOUT, and for a second after that it is not asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg

from pipeline.common.connect import AsyncConnection, Session, connect_async
from pipeline.common.errors import Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

_PAUSE_S: Final = 1.0
_AWAY: Final = "The database is away."


class Database:
    """See `pipeline.common.access.database.Database`."""

    def __init__(self, url: str, *, service_name: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._session = Session(
            application_name=service_name,
            statement_timeout_s=timeout_s,
            lock_timeout_s=timeout_s,
            idle_in_transaction_s=60.0,
            impatient=True,
        )
        self._connection: AsyncConnection | None = None
        self._one_asks = asyncio.Lock()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._away_until = 0.0
        self.connections = 0
        """How many connections have been opened. Behind a new connection there may be another server, which
        a failover has left without the last commits."""
        self.error: str | None = "not connected yet"
        """Why the database could not be used when it was asked last; None: it could."""

    async def read(self, work: Work[T]) -> T:
        """The result of ``work``. Raises `Unavailable`."""
        return await self._do(work)

    async def write(self, work: Work[T]) -> T:
        """The result of ``work`` once it is committed. Raises `Unavailable`."""
        return await self._do(work)

    async def ping(self) -> None:
        """Find out whether the database answers. Raises `Unavailable`."""

        async def ask(connection: AsyncConnection) -> None:
            await connection.execute("SELECT 1")

        await self._do(ask)

    async def close(self) -> None:
        """Close the connection, and wait a moment for one that is stuck."""
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=_PAUSE_S)
        if self._connection is not None:
            await self._connection.close()

    async def _do(self, work: Work[T]) -> T:
        clock = asyncio.get_running_loop().time
        if clock() < self._away_until:
            raise Unavailable(_AWAY)
        try:
            found = await self._in_time(work, deadline=clock() + self._timeout_s)
        except (psycopg.OperationalError, OSError, TimeoutError) as error:
            self._say(_first_line(error) or f"no answer in {self._timeout_s:g} s")
            self._away_until = clock() + _PAUSE_S
            raise Unavailable(_AWAY) from error
        except psycopg.Error as error:  # the database is there: a table or a right is missing
            raise Unavailable(f"The database refuses: {_first_line(error)}") from error
        if self.error is not None:
            log.info("database_connected")
        self.error = None
        return found

    async def _in_time(self, work: Work[T], *, deadline: float) -> T:
        """The result of ``work``. Raises TimeoutError at the deadline (of the loop's clock)."""
        async with asyncio.timeout_at(deadline):
            await self._one_asks.acquire()
        try:
            asking = asyncio.create_task(self._retried(work))
            await asyncio.wait({asking}, timeout=deadline - asyncio.get_running_loop().time())
            if asking.done():
                return asking.result()
            # The driver takes seconds to cancel a query of a database that hangs. Nobody waits for that.
            self._connection = None
            asking.cancel()
            self._abandoned.add(asking)
            asking.add_done_callback(self._abandoned.discard)
            raise TimeoutError
        finally:
            self._one_asks.release()

    async def _retried(self, work: Work[T]) -> T:
        """Try again if the connection has died since it was last used."""
        fresh = self._connection is None or self._connection.closed
        try:
            return await self._attempt(work)
        except psycopg.OperationalError:
            if fresh:
                raise
        return await self._attempt(work)

    async def _attempt(self, work: Work[T]) -> T:
        if self._connection is None or self._connection.closed:
            self._connection = await connect_async(self._url, self._session)
            self.connections += 1
        connection = self._connection
        try:
            found = await work(connection)
            await connection.commit()
        except BaseException:
            # Whatever it was, a new connection knows nothing of it.
            if self._connection is connection:
                self._connection = None
            await connection.close()
            raise
        return found

    def _say(self, error: str) -> None:
        if self.error != error:
            log.warning("database_away", extra={"error": error})
        self.error = error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
