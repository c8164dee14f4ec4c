"""The one way to connect to the database, for every process.

A new session has settings of the server, the database, the role and our environment: text encoding, date
format, time limits, isolation. Each of these settings can change a figure or stop a flush. So every session
gets the same values of ours (`_PINNED`), and only this module opens connections (a test sees to that).

Three kinds of databases are refused with `Refused`, whose text says the remedy:

- The encoding of the database is not UTF8, so it cannot hold every name.
- The TimescaleDB of the database is being restored.
- A pooler in front of the database sets another encoding.

A connection pooler (PgBouncer with ``pool_mode = transaction``) may give each transaction another session of
the server. Settings of a session would then be lost, and they would reach other people's transactions. A
pooler is recognised by its process id, which differs from the server's. Behind a pooler, each transaction
begins with our settings, and the settings end with the transaction. A statement outside a transaction has the
database's own limits there.
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
"""Settings whose changes a server reports. A pooler keeps these settings for each of its clients."""

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
"""Settings that every session gets, if the server knows the setting."""


class Refused(psycopg.OperationalError):
    """The database answers but must not be used as it is. The text says why, and the remedy."""


def session_is_dead(error: BaseException | None) -> bool:
    """Is the session lost, so that a new session would work? This happens when an extension is updated.

    After an update TimescaleDB ends the session with 42710 ("already loaded with a different version"). Other
    signs are a plan or a prepared statement from before the update (0A000, 26000), a library that does not
    match the catalog (42883, 58P01), and an internal error of the server (XX, for example "cache lookup
    failed").
    """
    state = getattr(error, "sqlstate", None) or ""
    if state == "42883":
        return "in file" in str(error)  # otherwise a function is missing, and in a new session too
    return state in ("42710", "0A000", "26000", "58P01") or state.startswith("XX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The settings of one kind of connection. 0 means that there is no limit.

    An ``impatient`` connection notices in about 10 s instead of 25 s that its peer has vanished, also while
    the peer owes an answer. Use it for reads that somebody waits for.
    """

    application_name: str
    statement_timeout_s: float = 0.0
    lock_timeout_s: float = 0.0
    idle_in_transaction_s: float = 0.0
    connect_timeout_s: int = 5
    impatient: bool = False

    def settings(self) -> dict[str, str]:
        """All settings of the session by name, with values as the server reads them."""
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
        """The options for libpq. They override the URL and the environment."""
        return {
            "client_encoding": "UTF8",
            "application_name": self.application_name,
            "connect_timeout": self.connect_timeout_s,
            "keepalives": 1,
            "keepalives_idle": 5 if self.impatient else 10,
            "keepalives_interval": 2 if self.impatient else 5,
            "keepalives_count": 3,
            **({"tcp_user_timeout": 10_000} if self.impatient else {}),
            # Without prepared statements the planner always sees the values, and TimescaleDB can leave out
            # chunks. Also, a statement prepared in one session of a pooler is missing in the next session.
            "prepare_threshold": None,
        }


class _Pooled:
    """The part that both kinds of connection have in addition to psycopg's."""

    pooled: bool = False
    """Is there a pooler between us and the server? Then a session lasts for one transaction only."""
    local: tuple[str, ...] = ()
    """Behind a pooler: the statements that set our settings in each transaction.

    These statements take no snapshot, so a transaction that must lock first still can.
    """

    @property
    def begin(self) -> str:
        """The statement with which our code begins a transaction. psycopg's own transactions begin alike.

        Behind a pooler the session may hold a stranger's temporary tables. The statement drops them.
        """
        return "; ".join((_BEGIN, "DISCARD TEMP", *self.local)) if self.pooled else "BEGIN"

    def stand_behind_pooler(self, settings: dict[str, str], known: Sequence[str]) -> None:
        """From now on, begin each transaction with the settings that the server knows."""
        self.pooled = True
        self.local = tuple(
            psql.SQL("SET LOCAL {} = {}").format(psql.Identifier(*name.split(".")), value).as_string(None)
            for name, value in settings.items()
            if name in known and name not in _REPORTED
        )

    def _exec_command(
        self, command: QueryNoTemplate, result_format: pq.Format = pq.Format.TEXT
    ) -> PQGen[Any]:
        """Send a command of psycopg's own, such as BEGIN. Behind a pooler our settings follow the BEGIN."""
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
    """Open a connection that has the same settings in all surroundings.

    Raises:
        Refused: the database must not be used as it is.
        psycopg.OperationalError: the database is away, or does not let us in.
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
    """An SQLAlchemy engine that connects by `connect`, without a pool."""
    # The text of an error goes into the log, and the text must not have the parameters.
    return create_engine(
        _URL, creator=lambda: connect(url, session), poolclass=NullPool, hide_parameters=True
    )


# --- the first words on a connection --------------------------------------------------------------------


def _first_words(connection: Connection | AsyncConnection, session: Session) -> psql.Composed:
    """The first statement: sets all settings and asks about the server, in one round trip.

    The settings last for the session. Behind a pooler they last for this transaction only.
    """
    ours = psql.SQL("pg_catalog.pg_backend_pid() <> {}").format(connection.info.backend_pid)
    return psql.SQL(
        "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('server_encoding'),"
        " pg_catalog.current_setting('client_encoding'),"
        " pg_catalog.current_setting('timescaledb.restoring', true), (SELECT count(*) FROM ({}) AS told)"
    ).format(_set_config(session.settings(), local=ours))


def _known(session: Session) -> psql.Composed:
    """The second statement behind a pooler: asks which settings the server knows.

    It also sets the settings that the pooler keeps for us.
    """
    kept = psql.SQL("name <> ALL({})").format(list(_REPORTED))
    return _set_config(session.settings(), local=kept)


def _set_config(settings: dict[str, str], *, local: psql.Composed) -> psql.Composed:
    """A query that sets the settings and returns (name, value) rows.

    ``local`` is an SQL expression: where it is true, a setting holds for this transaction only.
    """
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
