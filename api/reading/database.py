"""The database as the API sees it: read-only snapshots, and an answer within a second when there is none.

`Database.read` runs one piece of work in one REPEATABLE READ, READ ONLY transaction, so everything an
answer says is of one instant. `Database.snapshot` does the same for work that asks several statements in one
round trip.

Two things can keep a read waiting, and the caller is told which. A database that is away or hangs gives no
connection, or no sign of life beside the query: `Unavailable` within a second. A query that is merely slow
ends with the server's own statement timeout: `TooSlow`.

All SQL of the API is text with ``%(name)s`` for each value, run by psycopg. Fixed statements have a name in
``sql/queries``; statements that follow the range of a question are written by `api.reading.rollups` and
`api.reading.points`. SQL text is the one idiom because nothing else can say all that we need: several
statements in one round trip, COPY, sums of whole columns in the binary format, and plain tuples, which cost
half the time of an ORM's rows.

Statements are never prepared by name. The planner then always sees the bounds of a range, which lets
TimescaleDB leave out the chunks beyond it. And a connection pooler may stand between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import psycopg
import psycopg.sql
from psycopg import IsolationLevel
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.rows import AsyncRowFactory

from api.config import DatabaseConfig
from api.reading.pool import Pool
from pipeline.common import traces
from pipeline.common.connect import AsyncConnection, Refused, Session, connect_async, session_is_dead
from pipeline.common.errors import ServiceError, TooSlow, Unavailable
from sql import roles

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]
Ask = Callable[[Sequence[str], Mapping[str, Any]], Awaitable[list[list[tuple[Any, ...]]]]]
"""Asks several statements, which share their values, in one round trip: the rows of each statement."""

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_PATIENCE_S: Final = 0.25
_CONNECT_TIMEOUT_S: Final = 5
_IDLE_IN_TRANSACTION_S: Final = 60.0
_SCHEMA_STATES: Final = ("42P01", "42703", "42883", "3F000", "42P10")
_AWAY_CLASSES: Final = ("08", "53", "57", "58", "XX", "28", "3D")

SCHEMA_REMEDY: Final = "The database schema is missing or too old: run `spendstream migrate`."


NO_NOTIFICATIONS: Final = "A connection pooler passes no notifications on."

PRIVILEGED_REMEDY: Final = (
    "The API's database role may write rollups, and it must not: log in as a role that is"
    f" IN ROLE {roles.READER}, or set API_ALLOW_PRIVILEGED=true."
)


async def rows(
    connection: AsyncConnection, text: str, values: Mapping[str, Any], kind: AsyncRowFactory[T]
) -> list[T]:
    """All rows of a statement, each made by the row factory ``kind``."""
    async with connection.cursor(row_factory=kind) as cursor:
        await cursor.execute(text, values)
        return await cursor.fetchall()


class Database:
    """Reads and writes on a bounded pool of connections. Every wait in here ends."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._session = Session(
            application_name=config.service_name,
            statement_timeout_s=config.statement_timeout_s,
            lock_timeout_s=config.timeout_s,  # a lock we wait for (a migration) is a database that hangs
            idle_in_transaction_s=_IDLE_IN_TRANSACTION_S,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            impatient=True,
        )
        self.pool: Final = Pool(self._open, size=config.pool_size, timeout_s=config.timeout_s)
        self.privileged = False
        """Has the database given our role rights that we refuse? Such a connection reads nothing."""
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._probe: asyncio.Task[bool] | None = None

    async def read(self, work: Work[T]) -> T:
        """The result of ``work`` in a read-only snapshot.

        Raises:
            Unavailable: the database is away, hangs, is too slow or has no schema of ours.
        """
        with traces.child("database read", "client"):
            return await self._supervised(self._retried(lambda: self._attempt(work, writes=False)))

    async def snapshot(self, work: Callable[[Ask], Awaitable[T]]) -> T:
        """The result of ``work``, all of whose statements see one read-only snapshot.

        Raises:
            Unavailable: as `read`.
        """
        with traces.child("database snapshot", "client"):
            return await self._supervised(self._retried(lambda: self._asked(work)))

    async def write(self, work: Work[T], *, no_right: str | None = None, snapshot: bool = False) -> T:
        """The result of ``work`` once it is committed. With ``snapshot``, all of it sees one instant.

        Raises:
            Unavailable: as `read`. ``no_right``, if given, is the text where the API's role lacks a right.
            psycopg.errors.SerializationFailure: others changed what ``work`` has seen in its snapshot.
        """
        try:
            with traces.child("database write", "client"):
                return await self._supervised(self._attempt(work, writes=True, snapshot=snapshot))
        except Unavailable as error:
            if no_right is not None and isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
                raise Unavailable(no_right) from None
            raise

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call ``heard`` once when listening and then for each notification, until cancelled.

        Raises:
            Unavailable: there is no connection, the connection was lost, or a pooler stands between.
        """
        try:
            async with await self._connect() as connection:
                if connection.pooled:  # we would hear nothing, and another client's session would listen
                    raise Unavailable(NO_NOTIFICATIONS)
                await connection.set_autocommit(True)
                await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
                heard()
                async for _ in connection.notifies():
                    heard()
        except (psycopg.Error, OSError) as error:
            raise Unavailable(f"The database cannot be listened to: {_first_line(error)}") from error
        except _Privileged:
            raise Unavailable(PRIVILEGED_REMEDY) from None

    async def close(self) -> None:
        """Drop every connection, waiting a moment for those that are stuck."""
        tasks = self._abandoned | ({self._probe} if self._probe else set())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        await self.pool.close()

    # --- one try ---

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again for each connection that died in the pool: a restart leaves the pool full of them."""
        for _ in range(self._config.pool_size):
            try:
                return await attempt()
            except _Stale:
                continue
        return await attempt()

    async def _attempt(self, work: Work[T], *, writes: bool, snapshot: bool = True) -> T:
        async with self.pool.connection() as connection:
            await connection.set_autocommit(False)
            await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ if snapshot else None)
            await connection.set_read_only(None if writes else True)
            try:
                found = await work(connection)
                await connection.commit()
            except psycopg.Error as error:
                lost = connection.closed
                if session_is_dead(error):
                    await connection.close()
                await _undo(connection)
                raise translated(error, lost=lost) from error
            except Exception:
                await _undo(connection)
                raise
        return found

    async def _asked(self, work: Callable[[Ask], Awaitable[T]]) -> T:
        """What the work finds between BEGIN and COMMIT. Numeric values are sums of whole numbers: int."""
        async with self.pool.connection() as connection:
            await connection.set_autocommit(True)  # the text has its own BEGIN
            try:
                async with psycopg.AsyncClientCursor(connection) as cursor:
                    cursor.adapters.register_loader("numeric", _WholeNumber)
                    snapshot = _Snapshot(cursor, (_BEGIN, *connection.local))
                    try:
                        found = await work(snapshot.ask)
                    except ServiceError:  # the question cannot be answered, and nothing is wrong here
                        await cursor.execute("ROLLBACK")
                        raise
                    await cursor.execute("COMMIT")
            except ServiceError:
                raise
            except BaseException as error:
                lost = connection.closed
                await connection.close()  # a transaction may be open on it, or answers on their way
                if isinstance(error, psycopg.Error):
                    raise translated(error, lost=lost) from error
                raise
        return found

    async def _open(self) -> AsyncConnection:
        """A new connection for the pool. Raises `Unavailable`, with what is wrong."""
        try:
            return await self._connect()
        except _Privileged:
            raise Unavailable(PRIVILEGED_REMEDY) from None
        except Refused as error:
            raise _refused(error) from error
        except (psycopg.Error, OSError) as error:
            log.warning("database_connect_failed", extra={"error": _first_line(error)})
            raise Unavailable("The database cannot be reached.") from error

    async def _connect(self) -> AsyncConnection:
        connection = await connect_async(self._config.url, self._session)
        try:
            if not self._config.allow_privileged:
                await self._refuse_privileges(connection)
            await connection.commit()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _refuse_privileges(self, connection: AsyncConnection) -> None:
        row = await (await connection.execute(roles.WRITES_ROLLUPS)).fetchone()
        assert row is not None
        if row[0]:
            self.privileged = True
            raise _Privileged

    # --- the watch over it ---

    async def _supervised(self, attempt: Awaitable[T]) -> T:
        task = asyncio.ensure_future(attempt)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._config.statement_timeout_s + 1
        try:
            while not (await asyncio.wait({task}, timeout=_PATIENCE_S))[0]:
                probe = self._probing()
                await asyncio.wait(
                    {task, probe}, timeout=self._config.timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                alive = probe.done() and probe.result()
                if not task.done() and (not alive or loop.time() > give_up_at):
                    break
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if task.done():
            return task.result()
        self._abandon(task)
        log.warning("database_hangs")
        raise Unavailable("The database does not answer.")

    def _abandon(self, task: asyncio.Future[Any]) -> None:
        """Cancel without waiting: on a server that hangs, psycopg's cancellation itself takes seconds."""
        task.cancel()
        if isinstance(task, asyncio.Task):
            self._abandoned.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for its result any more

    def _probing(self) -> asyncio.Task[bool]:
        """Does the server answer a new connection? All waiting requests share one attempt."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ping())
        return self._probe

    async def _ping(self) -> bool:
        try:
            async with await self._connect() as connection:
                await connection.execute("SELECT 1")
        except (_Privileged, Refused):
            return True
        except (psycopg.Error, OSError):
            return False
        return True


class _Privileged(ServiceError):
    """The role may write rollups: `PRIVILEGED_REMEDY`."""


class _Snapshot:
    """A transaction on a cursor. The statements of ``begin`` go before the first ones that are asked."""

    def __init__(self, cursor: psycopg.AsyncClientCursor[tuple[Any, ...]], begin: Sequence[str]) -> None:
        self._cursor = cursor
        self._begin = begin

    async def ask(self, texts: Sequence[str], values: Mapping[str, Any]) -> list[list[tuple[Any, ...]]]:
        """The rows of each statement, in one round trip.

        The values are written into the text by psycopg: the protocol takes several statements at once only
        without parameters.
        """
        begin, self._begin = self._begin, ()
        with traces.child("question", "client", statements=len(texts)) as span:
            await self._cursor.execute(";".join((*begin, *texts)).encode(), values)
            for _ in begin:
                self._cursor.nextset()
            found = []
            for _ in texts:
                found.append(await self._cursor.fetchall() if self._cursor.description else [])
                self._cursor.nextset()
            if span:
                span.set(rows=sum(map(len, found)))
        return found


class _WholeNumber(Loader):
    """Reads numeric as int, in half the time of Decimal."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class _Stale(Unavailable):
    """The connection was dead before we used it: try another connection."""


async def _undo(connection: AsyncConnection) -> None:
    """End the transaction. If that fails, the pool closes the connection."""
    with suppress(psycopg.Error):
        await connection.rollback()


def no_right(action: str, role: str) -> str:
    """What to say where the API's login lacks a right that ``role`` has."""
    return (
        f"The API's database role may not {action}: an operator can GRANT {role} TO the role that the API"
        " logs in as."
    )


def translated(error: psycopg.Error, *, lost: bool) -> Exception:
    """A statement's error as the one who must act is told it. A programmer's error stays as it is."""
    state = error.sqlstate
    cause = _first_line(error)
    lost = lost or session_is_dead(error)
    if state in _SCHEMA_STATES and not lost:
        log.error("schema_too_old", extra={"error": cause})
        return Unavailable(SCHEMA_REMEDY)
    if state == "42501":
        log.error("database_permission_denied", extra={"error": cause})
        return Unavailable("The API's database role may not read what it needs.")
    if state == "57014":
        log.warning("query_too_slow", extra={"error": cause})
        return TooSlow("The query took too long; ask for a shorter range or a coarser granularity.")
    if state == "55P03":
        log.warning("database_locked", extra={"error": cause})
        return Unavailable("The database is locked by other work, a migration perhaps.")
    if lost:
        log.warning("database_connection_lost", extra={"error": cause})
        return _Stale("The database connection was lost.")
    if state is None or state[:2] in _AWAY_CLASSES:
        log.warning("database_unavailable", extra={"error": cause})
        return Unavailable("The database cannot be reached.")
    return error


def _refused(refusal: Refused) -> Unavailable:
    text = str(refusal)
    log.error("database_refused", extra={"error": text})
    return Unavailable(f"{text[0].upper()}{text[1:]}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
