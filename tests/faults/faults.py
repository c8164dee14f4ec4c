"""Every kind of fault: its target, the damage, how long the damage lasts, and the healing.

A fault is a coroutine that takes the world, a worker's slot (if it hurts a worker) and some luck. At its end
everything is healed. It returns whether it has struck. For example, a fault that waits to cut a connection at
a COMMIT has not struck if no COMMIT came.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.faults import clock
from tests.faults.world import Slot, World
from tests.support.tcp_proxy import Moment

TAKEOVER_S = 45.0
COMMIT_S = 10.0
NOTICE_S = 15.0
SQLSTATES = {
    "disk_full": "53100",
    "deadlock": "40P01",
    "statement_timeout": "57014",
    "out_of_memory": "53200",
    "io_error": "58030",
    "serialization_failure": "40001",
}
"""The errors with which a trigger refuses a flush, in place of the database itself."""
JUMPS_S = (-2 * 86_400, -3600, -90, 90, 3600, 2 * 86_400, 500 * 86_400)

OnWorker = Callable[[World, Slot, random.Random], Awaitable[bool]]
OnServer = Callable[[World, random.Random], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault.

    ``target`` is ``worker``, or the server that the fault keeps busy. ``weight`` says how often the kind
    comes in one round of all kinds. ``needs`` names the ability that the world must have for it.
    """

    name: str
    target: str
    weight: int
    needs: str | None = None
    on_worker: OnWorker | None = None
    on_server: OnServer | None = None


FAULTS: dict[str, Fault] = {}


def _worker(weight: int = 1) -> Callable[[OnWorker], OnWorker]:
    def add(run: OnWorker) -> OnWorker:
        name = run.__name__
        FAULTS[name] = Fault(name=name, target="worker", weight=weight, on_worker=run)
        return run

    return add


def _server(target: str, weight: int = 1, needs: str | None = None) -> Callable[[OnServer], OnServer]:
    def add(run: OnServer) -> OnServer:
        name = run.__name__
        FAULTS[name] = Fault(name=name, target=target, weight=weight, needs=needs, on_server=run)
        return run

    return add


# --- a worker ---------------------------------------------------------------------------------------------


@_worker(3)
async def worker_killed(world: World, slot: Slot, luck: random.Random) -> bool:
    await asyncio.sleep(luck.uniform(0, 0.3))
    await asyncio.to_thread(slot.process.kill)
    await asyncio.sleep(luck.uniform(0, 2))
    world.start(slot)
    return True


@_worker(2)
async def worker_terminated(world: World, slot: Slot, luck: random.Random) -> bool:
    code = await world.stop(slot)
    if code not in (0, -signal.SIGTERM):  # -SIGTERM: it was still being started
        slot.crashes.append(f"worker {slot.number}: SIGTERM was answered with exit code {code}")
    await asyncio.sleep(luck.uniform(0, 2))
    world.start(slot)
    return True


@_worker(2)
async def worker_stopped_past_a_takeover(world: World, slot: Slot, luck: random.Random) -> bool:
    """A zombie: when the worker wakes up, it believes that it still owns its partitions."""
    owned = await asyncio.to_thread(slot.owned)
    before = await asyncio.to_thread(world.standing)
    slot.signal(signal.SIGSTOP)
    try:
        if luck.random() < 0.75:
            slot.broker.cut()  # the broker notices at once, not after two heartbeats
        until = time.monotonic() + (TAKEOVER_S if owned and before else 1)
        while time.monotonic() < until:
            await asyncio.sleep(0.2)
            now = await asyncio.to_thread(world.standing)
            if now and owned and all(now[stream][1] > before[stream][1] for stream in owned & set(before)):
                await asyncio.sleep(luck.uniform(0, 1.5))
                break
    finally:
        slot.signal(signal.SIGCONT)
    return True


@_worker()
async def worker_paused(world: World, slot: Slot, luck: random.Random) -> bool:
    slot.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(luck.uniform(0.2, 3))
    finally:
        slot.signal(signal.SIGCONT)
    return True


@_worker(2)
async def worker_leaves_and_another_joins(world: World, slot: Slot, luck: random.Random) -> bool:
    """For a while there are fewer workers. Sometimes the worker is killed instead of asked to leave."""
    if luck.random() < 0.3:
        slot.wanted = False
        await asyncio.to_thread(slot.process.kill)
    else:
        await world.stop(slot)
    await asyncio.sleep(luck.uniform(2, 8))
    world.start(slot)
    return True


@_worker(3)
async def worker_clock_jumps(world: World, slot: Slot, luck: random.Random) -> bool:
    """Somebody sets a worker's clock wrong, and mostly right again. Sometimes the worker starts meanwhile."""
    if luck.random() < 0.3:
        await asyncio.to_thread(slot.process.kill)
    slot.clock.set(luck.choice(JUMPS_S))
    world.start(slot)
    await asyncio.sleep(clock.NOTICED_S + luck.choice((0.5, 2, 6)))
    if luck.random() < 0.7:
        slot.clock.set(0)
    return True


# --- a worker's network -------------------------------------------------------------------------------------


@_worker(2)
async def broker_connection_cut(world: World, slot: Slot, luck: random.Random) -> bool:
    for _ in range(luck.choice((1, 1, 3))):
        slot.broker.cut()
        await asyncio.sleep(luck.uniform(0, 1))
    return True


@_worker()
async def broker_connection_half_open(world: World, slot: Slot, luck: random.Random) -> bool:
    slot.broker.freeze()
    await asyncio.sleep(luck.choice((1, 5, 30)))
    if luck.random() < 0.5:
        slot.broker.cut()
    slot.broker.thaw()
    return True


@_worker(2)
async def database_connection_cut(world: World, slot: Slot, luck: random.Random) -> bool:
    for _ in range(luck.choice((1, 1, 5))):
        slot.database.cut()
        await asyncio.sleep(luck.uniform(0, 0.5))
    return True


@_worker()
async def database_connection_half_open(world: World, slot: Slot, luck: random.Random) -> bool:
    database = slot.database
    database.freeze()
    await asyncio.sleep(luck.choice((1, 4, 12)))
    if luck.random() < 0.7:
        database.cut()
    database.thaw()
    return True


async def _cut_at_commit(slot: Slot, moment: Moment) -> bool:
    database = slot.database
    database.cut_at = (b"COMMIT\0", moment)
    until = time.monotonic() + COMMIT_S
    while database.cut_at is not None and time.monotonic() < until:  # noqa: ASYNC110 - a proxy has no events
        await asyncio.sleep(0.05)
    struck, database.cut_at = database.cut_at is None, None
    return struck


@_worker(3)
async def database_connection_cut_before_commit(world: World, slot: Slot, luck: random.Random) -> bool:
    return await _cut_at_commit(slot, "before")


@_worker(3)
async def database_connection_cut_in_commit(world: World, slot: Slot, luck: random.Random) -> bool:
    return await _cut_at_commit(slot, "in")


@_worker(3)
async def database_connection_cut_after_commit(world: World, slot: Slot, luck: random.Random) -> bool:
    return await _cut_at_commit(slot, "after")


# --- the broker -------------------------------------------------------------------------------------------


@_server("broker")
async def broker_restarted(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.stack.rabbitmq.restart)
    world.aim()
    return True


@_server("broker")
async def broker_killed(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.stack.rabbitmq.kill)
    await asyncio.to_thread(world.stack.rabbitmq.start)
    world.aim()
    return True


@_server("broker")
async def broker_paused(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.stack.rabbitmq.pause)
    await asyncio.sleep(luck.choice((0.5, 2, 6)))
    await asyncio.to_thread(world.stack.rabbitmq.resume)
    return True


@_server("publisher")
async def publisher_connection_cut(world: World, luck: random.Random) -> bool:
    """The publisher loses its connection, and publishes all unconfirmed events again."""
    world.publisher_proxy.cut()
    return True


# --- the database -----------------------------------------------------------------------------------------


@_server("database")
async def database_restarted(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.postgres.restart)
    world.aim()
    return True


@_server("database", 2)
async def database_killed(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.postgres.kill)
    await asyncio.sleep(luck.uniform(0, 2))
    await asyncio.to_thread(world.postgres.start)
    world.aim()
    return True


@_server("database")
async def database_paused(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.postgres.pause)
    await asyncio.sleep(luck.choice((0.5, 3, 8)))
    await asyncio.to_thread(world.postgres.resume)
    return True


@_server("database", 2)
async def database_locks_held(world: World, luck: random.Random) -> bool:
    """Somebody else's transaction holds locks, for less than the lock timeout or for longer."""
    what = luck.choice(
        (
            "LOCK TABLE analytics.usage_hour IN EXCLUSIVE MODE",
            "LOCK TABLE analytics.dedupe_ids IN SHARE MODE",
            "SELECT 1 FROM analytics.partitions FOR UPDATE",
        )
    )

    def hold(seconds: float) -> bool:
        with suppress(psycopg.Error):
            with psycopg.connect(world.database_url, connect_timeout=5) as connection:
                connection.execute("SET lock_timeout = '5s'")
                connection.execute(what.encode())
                time.sleep(seconds)
            return True
        return False

    return await asyncio.to_thread(hold, luck.choice((0.5, 3, 6)))


@_server("database", 2)
async def database_sessions_ended(world: World, luck: random.Random) -> bool:
    """An administrator ends the statements, or the connections."""
    end = luck.choice(("pg_terminate_backend", "pg_cancel_backend"))
    query = (
        f"SELECT {end}(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'spendstream'"
    )
    struck = False
    for _ in range(luck.choice((1, 20))):
        with suppress(psycopg.Error):
            struck = bool(await asyncio.to_thread(world.sql, query)) or struck
        await asyncio.sleep(0.02)
    return struck


@_server("database", 3, needs="second")
async def database_failed_over(world: World, luck: random.Random) -> bool:
    """The primary dies, and a standby at another address takes over. Commits that it lacks are lost."""
    lose_s, demote = luck.choice((0, 0.5, 2)), luck.random() < 0.5
    world.say(
        f"  what was committed in the last {lose_s} s is lost; the old one is {'back' if demote else 'gone'}"
    )
    await world.fail_over(lose_s=lose_s, demote=demote)
    return True


@_server("database", 3)
async def database_read_only(world: World, luck: random.Random) -> bool:
    """The database refuses writes (25006), as a demoted primary does, or one that its operator protects."""
    since = world.logged()
    async with _configured(world, "default_transaction_read_only", "on") as done:
        struck = done and await world.has_logged("read-only", since=since, within_s=NOTICE_S)
        await asyncio.sleep(luck.uniform(0, 3))
    return struck


@asynccontextmanager
async def _configured(world: World, name: str, value: str) -> AsyncIterator[bool]:
    """Run the server with a setting, and undo it afterwards; yields whether the setting could be made."""
    reload = "SELECT pg_reload_conf()"
    done = False
    with suppress(psycopg.Error):
        await asyncio.to_thread(world.sql, f"ALTER SYSTEM SET {name} = {value}", reload)
        done = True
    try:
        yield done
    finally:
        await _insist(world, f"ALTER SYSTEM RESET {name}", reload)


async def _insist(world: World, *statements: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            await asyncio.to_thread(world.sql, *statements)
            return
        except psycopg.Error:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(0.2)


@_server("database", 2, needs="disk")
async def database_disk_full(world: World, luck: random.Random) -> bool:
    """No byte is left on the file system of data and log. The server may end because of it."""
    since, server = world.logged(), world.postgres
    filler = server.data / "filler"
    try:
        await asyncio.to_thread(_fill, filler)
        struck = await world.has_logged("No space left", since=since, within_s=NOTICE_S)
        await asyncio.sleep(luck.uniform(0, 3))
        struck = struck or not server.is_running()
    finally:
        filler.unlink(missing_ok=True)
    await asyncio.to_thread(server.start)
    world.aim()
    return struck


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@_server("database", 2)
async def database_refuses_flushes(world: World, luck: random.Random) -> bool:
    """A trigger raises an error as the server would, and every flush fails with its state."""
    name, state = luck.choice(list(SQLSTATES.items()))
    world.say(f"  refused as {name} ({state})")
    try:
        await asyncio.to_thread(
            world.sql,
            "CREATE OR REPLACE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{name}' USING ERRCODE = '{state}'; END $$",
            "CREATE TRIGGER refuse BEFORE UPDATE ON analytics.partitions"
            " FOR EACH ROW EXECUTE FUNCTION public.refuse()",
        )
    except psycopg.Error:
        return False
    await asyncio.sleep(luck.choice((0.5, 2, 4)))
    await _insist(world, "DROP TRIGGER IF EXISTS refuse ON analytics.partitions")
    return True


# --- servers that the figures do not need -----------------------------------------------------------------


@_server("redis")
async def redis_away(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(world.stack.redis.kill)
    await asyncio.sleep(luck.uniform(0.5, 5))
    await asyncio.to_thread(world.stack.redis.start)
    return True


@_server("s3", 2, needs="archive")
async def s3_away(world: World, luck: random.Random) -> bool:
    await asyncio.to_thread(luck.choice((world.stack.s3.kill, world.stack.s3.stop)))
    await asyncio.sleep(luck.uniform(0.5, 20))
    await asyncio.to_thread(world.stack.s3.start)
    world.aim()
    return True


@_server("s3", needs="archive")
async def s3_connection_cut(world: World, luck: random.Random) -> bool:
    world.s3_proxy.freeze()
    await asyncio.sleep(luck.uniform(0.5, 8))
    world.s3_proxy.cut()
    world.s3_proxy.thaw()
    return True
