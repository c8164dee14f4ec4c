"""The one way to connect to the database, for every process.

A session starts with what the server, the database, the role and our environment say: text encoding, date
format, time limits, isolation. Each of them can bend a figure or stop a flush, so every session is told the
same values of ours (`_PINNED`), and nothing else in the code opens a connection (a test sees to that).

Three databases are refused with `Refused`, whose text says the remedy: one that cannot hold every name (its
encoding is not UTF8), one whose TimescaleDB is being restored, and one behind a pooler that sets another
encoding.

A connection pooler (PgBouncer with ``pool_mode = transaction``) may give each transaction another session of
the server, so settings of a session would be lost, and would reach other people's transactions. The pooler is
known by its process id, which is not the server's. Behind one, each transaction begins with our settings
instead, and they end with it. A statement outside a transaction then has the database's own limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors, generators, pq
from psycopg import sql as psql
from psycopg.abc import PQGen, QueryNoTemplate
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

_URL: Final = "postgresql+psycopg://"
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

_REPORTED: Final = {
    "application_name": "",
    "datestyle": "ISO, MDY",
    "standard_conforming_strings": "on",
    "timezone": "UTC",
}
"""What a server reports when it changes; a pooler then keeps it for each of its clients."""

_PINNED: Final = {
    "bytea_output": "hex",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "extra_float_digits": "1",
    "idle_session_timeout": "0",
    "intervalstyle": "postgres",
    "jit": "off",  # it only costs at the size of our queries
    "row_security": "on",
    "search_path": "public",
    "timescaledb.max_tuples_decompressed_per_dml_transaction": "0",  # late events go into compressed chunks
    "transaction_timeout": "0",
}
"""What every session is told, where the server knows the setting."""


class Refused(psycopg.OperationalError):
    """The database answers, and must not be used as it is. The text says why, and the remedy."""


def session_is_dead(error: BaseException | None) -> bool:
    """Would a new session do what this one cannot? So it is after an update of an extension under us.

    TimescaleDB then ends the session with 42710 ("already loaded with a different version"). Its like: a plan
    or a prepared statement of before (0A000, 26000), a library that is not the one that the catalog means
    (42883, 58P01), and what the server itself calls internal (XX, as "cache lookup failed").
    """
    state = getattr(error, "sqlstate", None) or ""
    if state == "42883":
        return "in file" in str(error)  # else a function is missing, in every session
    return state in ("42710", "0A000", "26000", "58P01") or state.startswith("XX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one kind of connection is told. A limit of 0 is none.

    ``impatient``: a peer that vanished without a word is noticed in about 10 s rather than 25 s, also while
    it owes us an answer. For reads that somebody waits for.
    """

    application_name: str
    statement_timeout_s: float = 0.0
    lock_timeout_s: float = 0.0
    idle_in_transaction_s: float = 0.0
    connect_timeout_s: int = 5
    impatient: bool = False

    def settings(self) -> dict[str, str]:
        """Every setting of the session by name, as the server reads it."""
        limits_s = {
            "statement_timeout": self.statement_timeout_s,
            "lock_timeout": self.lock_timeout_s,
            "idle_in_transaction_session_timeout": self.idle_in_transaction_s,
        }
        return {
            **_REPORTED,
            **_PINNED,
            **{name: str(round(limit_s * 1000)) for name, limit_s in limits_s.items()},
            "application_name": self.application_name,
        }

    def options(self) -> dict[str, Any]:
        """What libpq is told, over anything that the URL or the environment says."""
        return {
            "client_encoding": "UTF8",
            "application_name": self.application_name,
            "connect_timeout": self.connect_timeout_s,
            "keepalives": 1,
            "keepalives_idle": 5 if self.impatient else 10,
            "keepalives_interval": 2 if self.impatient else 5,
            "keepalives_count": 3,
            **({"tcp_user_timeout": 10_000} if self.impatient else {}),
            # The planner always sees the values, which lets TimescaleDB leave out chunks. And what was
            # prepared in one session of a pooler is not there in the next.
            "prepare_threshold": None,
        }


class _Pooled:
    """What both kinds of connection have beyond psycopg's."""

    pooled: bool = False
    """Does a pooler stand between? Then nothing of a session may be relied on beyond a transaction."""
    local: tuple[str, ...] = ()
    """Our settings behind a pooler, to be said in each transaction. They take no snapshot, so that whoever
    must lock first still can."""

    @property
    def begin(self) -> str:
        """How to begin a transaction by a statement of one's own; psycopg's own beginnings do the same.

        Behind a pooler the session may hold a stranger's temporary tables: they go.
        """
        return "; ".join((_BEGIN, "DISCARD TEMP", *self.local)) if self.pooled else "BEGIN"

    def stand_behind_pooler(self, settings: dict[str, str], known: Sequence[str]) -> None:
        """Say those of the settings that the server knows in each transaction from now on."""
        self.pooled = True
        self.local = tuple(
            psql.SQL("SET LOCAL {} = {}").format(psql.Identifier(*name.split(".")), value).as_string(None)
            for name, value in settings.items()
            if name in known and name not in _REPORTED
        )

    def _exec_command(
        self, command: QueryNoTemplate, result_format: pq.Format = pq.Format.TEXT
    ) -> PQGen[Any]:
        """What psycopg sends beside the statements of cursors, its BEGIN among it."""
        if not (self.pooled and isinstance(command, bytes) and command.startswith(b"BEGIN")):
            return (yield from super()._exec_command(command, result_format))  # type: ignore[misc]
        begin = command if b"ISOLATION" in command else _BEGIN.encode() + command.removeprefix(b"BEGIN")
        result = yield from super()._exec_command(begin)  # type: ignore[misc]
        pgconn: pq.abc.PGconn = self.pgconn  # type: ignore[attr-defined]
        pgconn.send_query("; ".join(self.local).encode())
        for told in (yield from generators.execute(pgconn)):
            if told.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(told)
        return result


class Connection(_Pooled, psycopg.Connection[Any]):
    """A connection with our settings."""


class AsyncConnection(_Pooled, psycopg.AsyncConnection[Any]):
    """The same for asyncio."""


def connect(url: str, session: Session, *, autocommit: bool = False) -> Connection:
    """A connection that says and reads everything in one way, whatever its surroundings say.

    Raises:
        Refused: the database must not be used as it is.
        psycopg.OperationalError: it is away, or does not let us in.
    """
    connection = Connection.connect(url, autocommit=True, **session.options())
    try:
        found = connection.execute(_first_words(connection, session)).fetchone()
        if _is_pooled(found, connection):
            known = connection.execute(_known(session)).fetchall()
            connection.stand_behind_pooler(session.settings(), [name for name, _ in known])
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_async(url: str, session: Session, *, autocommit: bool = False) -> AsyncConnection:
    """`connect` for asyncio; raises the same."""
    connection = await AsyncConnection.connect(url, autocommit=True, **session.options())
    try:
        found = await (await connection.execute(_first_words(connection, session))).fetchone()
        if _is_pooled(found, connection):
            known = await (await connection.execute(_known(session))).fetchall()
            connection.stand_behind_pooler(session.settings(), [name for name, _ in known])
        await connection.set_autocommit(autocommit)
    except BaseException:
        await connection.close()
        raise
    return connection


def engine(url: str, session: Session) -> Engine:
    """SQLAlchemy's view of `connect`, without a pool."""
    # An error's text would have the parameters, and goes into the log.
    return create_engine(
        _URL, creator=lambda: connect(url, session), poolclass=NullPool, hide_parameters=True
    )


# --- the first words on a connection --------------------------------------------------------------------


def _first_words(connection: Connection | AsyncConnection, session: Session) -> psql.Composed:
    """One round trip: set everything, for good unless a pooler stands between, and ask what must be known."""
    ours = psql.SQL("pg_catalog.pg_backend_pid() <> {}").format(connection.info.backend_pid)
    return psql.SQL(
        "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('server_encoding'),"
        " pg_catalog.current_setting('client_encoding'),"
        " pg_catalog.current_setting('timescaledb.restoring', true), (SELECT count(*) FROM ({}) AS told)"
    ).format(_set_config(session.settings(), local=ours))


def _known(session: Session) -> psql.Composed:
    """Behind a pooler: set what it keeps for us, and ask which settings the server knows."""
    kept = psql.SQL("name <> ALL({})").format(list(_REPORTED))
    return _set_config(session.settings(), local=kept)


def _set_config(settings: dict[str, str], *, local: psql.Composed) -> psql.Composed:
    """(name, value) rows; ``local``: an expression that says which hold for this transaction alone."""
    pairs = psql.SQL(", ").join(psql.SQL("({}, {})").format(*pair) for pair in settings.items())
    return psql.SQL(
        "SELECT name, pg_catalog.set_config(name, value, {}) FROM (VALUES {}) AS ours (name, value)"
        " WHERE pg_catalog.current_setting(name, true) IS NOT NULL"
    ).format(local, pairs)


def _is_pooled(found: Sequence[Any] | None, connection: Connection | AsyncConnection) -> bool:
    assert found is not None
    server_pid, server_encoding, client_encoding, restoring, _ = found
    if server_encoding != "UTF8":
        raise Refused(
            f"the database's encoding is {server_encoding}, which cannot hold every name: make one with"
            " CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8' and let DATABASE_URL name it"
        )
    if client_encoding != "UTF8":
        raise Refused(
            f"a pooler between us and the database sets client_encoding to {client_encoding}: let it pass"
            " UTF8 on, or let DATABASE_URL name the database's own host"
        )
    if (restoring or "off").lower() not in ("off", "false", "no", "0"):
        raise Refused(
            "timescaledb.restoring is on, so TimescaleDB loses sight of rows that are written: finish the"
            " restore with SELECT timescaledb_post_restore(), or, where none is under way,"
            " ALTER DATABASE … RESET timescaledb.restoring"
        )
    return bool(server_pid != connection.info.backend_pid)
