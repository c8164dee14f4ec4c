"""The pool gives a connection to one block at a time, and never more connections than its size."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from psycopg.pq import TransactionStatus

from api.reading.pool import Pool
from pipeline.common.errors import Unavailable


@dataclass(slots=True)
class Connection:
    """As much of a connection as the pool sees."""

    info: Any = field(default_factory=lambda: SimpleNamespace(transaction_status=TransactionStatus.IDLE))
    closed: bool = False

    async def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class Server:
    made: list[Connection] = field(default_factory=list)
    away: bool = False

    async def connect(self) -> Any:
        if self.away:
            raise Unavailable("away")
        self.made.append(Connection())
        return self.made[-1]


@pytest.fixture
def server() -> Server:
    return Server()


def pool_of(server: Server, size: int = 2) -> Pool:
    return Pool(server.connect, size=size, timeout_s=0.01)


async def test_a_connection_is_used_again(server: Server) -> None:
    pool = pool_of(server)
    for _ in range(3):
        async with pool.connection() as connection:
            assert cast(object, connection) is server.made[0]
    assert len(server.made) == 1


async def test_there_are_never_more_connections_than_the_size(server: Server) -> None:
    pool = pool_of(server)
    async with pool.connection() as one, pool.connection() as other:
        assert one is not other
        with pytest.raises(Unavailable, match="came free"):
            async with pool.connection():
                pass
    async with pool.connection(), pool.connection():
        assert len(server.made) == 2


async def test_who_waits_gets_the_connection_that_comes_back(server: Server) -> None:
    pool = Pool(server.connect, size=1, timeout_s=10)

    async def wait() -> Any:
        async with pool.connection() as connection:
            return connection

    async with pool.connection():
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting is server.made[0]


@pytest.mark.parametrize(
    "status", [TransactionStatus.INTRANS, TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN]
)
async def test_a_connection_with_an_open_transaction_is_closed(
    server: Server, status: TransactionStatus
) -> None:
    pool = pool_of(server, size=1)
    async with pool.connection() as connection:
        connection.info.transaction_status = status  # type: ignore[misc]
    assert server.made[0].closed
    async with pool.connection() as connection:
        assert cast(object, connection) is server.made[1]


async def test_a_connection_that_died_while_idle_is_not_given_out(server: Server) -> None:
    pool = pool_of(server)
    async with pool.connection():
        pass
    server.made[0].closed = True
    async with pool.connection() as connection:
        assert cast(object, connection) is server.made[1]


async def test_a_connect_that_fails_reaches_who_asked_and_takes_no_place(server: Server) -> None:
    pool = pool_of(server, size=1)
    server.away = True
    for _ in range(3):
        with pytest.raises(Unavailable, match="away"):
            async with pool.connection():
                pass
    server.away = False
    async with pool.connection():
        pass


async def test_closing_closes_the_idle_at_once_and_the_others_when_they_come_back(server: Server) -> None:
    pool = pool_of(server)
    async with pool.connection() as used:
        async with pool.connection():
            pass
        await pool.close()
        assert server.made[1].closed
        assert not used.closed
    assert server.made[0].closed


async def test_the_pool_says_how_many_are_in_use_and_how_many_wait(server: Server) -> None:
    pool = Pool(server.connect, size=1, timeout_s=10)

    async def hold(until: asyncio.Event) -> None:
        async with pool.connection():
            await until.wait()

    assert (pool.size, pool.in_use, pool.waiting) == (1, 0, 0)
    done = asyncio.Event()
    holding = [asyncio.create_task(hold(done)) for _ in range(3)]
    await asyncio.sleep(0)
    assert (pool.in_use, pool.waiting) == (1, 2)
    holding[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding[2]
    assert (pool.in_use, pool.waiting) == (1, 1)
    done.set()
    await asyncio.gather(*holding[:2])
    assert (pool.in_use, pool.waiting) == (0, 0)
    server.away = True
    await pool.close()
    with pytest.raises(Unavailable, match="away"):
        async with pool.connection():
            pass
    assert (pool.in_use, pool.waiting) == (0, 0)
