"""The sink's connection: opened when it is needed, one transaction at a time, errors translated once.

This module sets up the session and its deadlines, and turns the driver's errors into `SinkError`. Tables and
queries are left to others.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import psycopg

from pipeline.common import traces
from pipeline.common.connect import AsyncConnection, Refused, Session, connect_async, session_is_dead
from pipeline.sink import Fenced, SchemaMissing, SinkError, SinkUnavailable, Trouble

_DEADLINE_MAX_S: Final = 3600.0


class Database:
    """One connection to one database. Not shared between tasks."""

    def __init__(self, url: str, *, application_name: str, timeout_s: float, silent_s: float) -> None:
        """``timeout_s`` bounds each transaction at first; `Transaction` tells when it grows.

        ``silent_s`` is how long the server waits for our next statement in a transaction. After that the
        server ends the transaction, so a worker that freezes in a flush does not block the rows of the next
        owner.
        """
        self._url = url
        self._application_name = application_name
        self._timeout_s = timeout_s
        self._silent_s = silent_s
        self._connection: AsyncConnection | None = None
        self._longer_s: dict[str, float] = {}
        """By kind of work, the longer deadline after the database was late with this work."""

    def transaction(self, work: str = "") -> Transaction:
        """For ``async with``: the open connection in a transaction, which is committed at the end."""
        return Transaction(self, work)

    async def connection(self) -> AsyncConnection:
        """The open connection; opens one if there is none."""
        if self._connection is None or self._connection.closed:
            session = Session(
                application_name=self._application_name,
                statement_timeout_s=self._timeout_s,
                idle_in_transaction_s=self._silent_s,
            )
            self._connection = await connect_async(self._url, session, autocommit=True)
        return self._connection

    async def close(self) -> None:
        """Close the connection; a transaction in flight is rolled back. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()


class Transaction:
    """A transaction: at its end everything is committed, or nothing.

    `Fenced` rolls back and passes through. After any other error the connection is closed, because its state
    is unknown, and the error is translated for the caller:

    - `SinkUnavailable`: the database is away, late, full, busy with conflicting work, refuses for now, or has
      keys of a later version.
    - `SchemaMissing`: a schema, table or column is not there.
    - Any other error is a fault of ours, and is raised as it is.
    """

    def __init__(self, database: Database, work: str) -> None:
        """``work`` names a kind of work that is repeated until it is done, for instance a flush.

        The deadline of this kind of work doubles each time that the database was still working when the
        deadline came: 60 s, 120 s, up to `_DEADLINE_MAX_S`. With the same deadline, the work could be cut off
        for ever. A commit sets the deadline back.
        """
        self._database = database
        self._work = work
        self._begun = False
        self._timeout_s = database._longer_s.get(work, database._timeout_s)
        self._deadline = asyncio.timeout(self._timeout_s)

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        await self._deadline.__aenter__()
        try:
            connection = await self._database.connection()
            await connection.execute(connection.begin.encode())
            if self._timeout_s > self._database._timeout_s:
                await connection.execute(
                    f"SET LOCAL statement_timeout = {round(self._timeout_s * 1000)}".encode()
                )
            self._begun = True
        except BaseException as error:
            await self._leave(error)
            raise AssertionError("unreachable") from error
        self._connection = connection
        return connection

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            try:
                with traces.child("COMMIT", "client"):
                    await self._connection.execute("COMMIT")
            except BaseException as failure:
                await self._leave(failure)
            self._database._longer_s.pop(self._work, None)
            await self._deadline.__aexit__(None, None, None)
        elif isinstance(error, Fenced):
            with suppress(psycopg.Error):
                await self._connection.execute("ROLLBACK")
            await self._deadline.__aexit__(None, None, None)
        else:
            await self._leave(error)

    async def _leave(self, error: BaseException) -> None:
        """Close the connection and raise the error, translated for the caller."""
        await self._database.close()
        try:
            await self._deadline.__aexit__(type(error), error, error.__traceback__)
        except TimeoutError as late:
            self._was_late()
            raise SinkUnavailable(
                f"the database did not answer within {self._timeout_s:g} s", Trouble.TIMEOUT
            ) from late
        if _trouble(error) is Trouble.TIMEOUT:
            self._was_late()
        meaning = _meaning(error)
        if meaning is None:
            raise error
        raise meaning from error

    def _was_late(self) -> None:
        if self._work and self._begun:
            self._database._longer_s[self._work] = min(2 * self._timeout_s, _DEADLINE_MAX_S)


_ABSENT: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
)
_LATER_KEYS: Final = (psycopg.errors.InvalidColumnReference,)
"""An upsert names columns that are no key: a later version has migrated, and its migration changed a key."""
_AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
_FOR_NOW: Final = (
    psycopg.errors.ReadOnlySqlTransaction,  # a failover demoted this server, and the address follows soon
    psycopg.errors.IdleInTransactionSessionTimeout,  # this worker was frozen in a transaction
    psycopg.errors.InsufficientPrivilege,  # an operator can grant the privilege
)


def _meaning(error: BaseException) -> SinkError | None:
    """The sink's error for an error of the driver; None if only a programmer can act on it."""
    if isinstance(error, _ABSENT):
        return SchemaMissing(f"run `spendstream migrate`: {str(error).strip()}")
    if isinstance(error, _LATER_KEYS):
        return SinkUnavailable(
            "the tables have keys that this version cannot write, as after the migration of a later version:"
            f" stop this worker and start that version ({str(error).strip()})",
            Trouble.REFUSED,
        )
    if isinstance(error, (*_AWAY, *_FOR_NOW)) or session_is_dead(error):
        return SinkUnavailable(str(error).strip() or type(error).__name__, _trouble(error))
    return None


def _trouble(error: BaseException) -> Trouble:
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, Refused) or state in ("25006", "42501"):
        return Trouble.REFUSED
    if state == "57014":
        return Trouble.TIMEOUT
    if state == "55P03":
        return Trouble.CONFLICT
    by_class = {"53": Trouble.LIMIT, "40": Trouble.CONFLICT, "": Trouble.CONNECTION}
    connection = ("08", "25", "28", "57")
    return Trouble.CONNECTION if state[:2] in connection else by_class.get(state[:2], Trouble.OTHER)
