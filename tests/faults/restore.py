"""Backups that are taken at random moments under load, and restored after the database is lost.

    done = await restored(world, moments=10, seed=26)

A moment has these steps. A backup is taken while workers flush: by turns with ``pg_basebackup`` and with
``pg_dump``. The workers go on for some seconds, and until every partition has committed more. Then the
database is lost. The workers are stopped, killed, or left running, by luck. The backup is restored, and the
workers go on from the offset in it. The stream still has everything, so at the end every figure must be the
recount's. Each moment says how far each partition was set back.

A base backup is restored in the place that does not hold the primary, as on a new host. A dump is restored
beside the database, under another name, and the names are exchanged at the end. So no worker sees a database
that is half restored.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import psycopg

from deploy.local import Stack
from deploy.local.ways.binaries import Processes
from tests.faults.world import READY_S, Report, World

Kind = Literal["pg_basebackup", "pg_dump"]
KINDS: Final[tuple[Kind, ...]] = ("pg_basebackup", "pg_dump")
ENDS: Final = ("stopped", "killed", "left running")
"""How the workers take the loss of the database."""
BEFORE_S: Final = (0.5, 4.0)
_NEVER: Final = (0, 0, 0)
_AWAY = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that lies in the data folder of a server's stack, under ``name``."""

    kind: Kind
    stack: Stack
    name: str


@dataclass(slots=True)
class Restores:
    """How many backups of each kind were restored, how far they went back, and the report at the end."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    lost_offsets: int = 0
    """The offsets that were committed when a database was lost, and not in its backup; of all moments."""
    last_dump: Backup | None = None
    report: Report | None = None

    def closing_line(self) -> str:
        assert self.report is not None
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        return (
            f"backups restored: {self.kinds.total()} ({kinds}), offsets read again: {self.lost_offsets},"
            f" events: {self.report.events}, archived: {self.report.archived},"
            f" mismatches: {len(self.report.mismatches)}"
        )


async def run(folder: Path, options: Namespace, *, say: Callable[[str], None]) -> Restores:
    """Restore ``options.restore`` backups on servers of our own, in ``folder``."""
    with (
        Stack(folder / "stack", temporary=True) as stack,
        Stack(folder / "second", temporary=True) as second,
    ):
        async with World(
            stack,
            folder,
            seed=options.seed,
            workers=options.workers,
            partitions=options.partitions,
            rate=options.rate,
            second=second,
            archive=True,
            say=say,
        ) as world:
            return await restored(world, moments=options.restore, seed=options.seed)


async def restored(
    world: World,
    *,
    moments: int,
    seed: int,
    workers: Callable[[int], str] | None = None,
    before_s: tuple[float, float] = BEFORE_S,
) -> Restores:
    """Take and restore ``moments`` backups under load, drain, and compare the books.

    ``workers`` says how the workers take the loss of a moment: one of `ENDS`. Without it luck decides.
    ``before_s`` has the least and the most time of load before a backup, and again before the loss.
    """
    luck = random.Random(seed)
    done = Restores()
    for slot in world.slots:
        world.start(slot)
    await world.ready()
    world.start_load()
    await asyncio.sleep(luck.uniform(*before_s))
    for number in range(moments):
        kind = KINDS[number % len(KINDS)]
        end = luck.choice(ENDS) if workers is None else workers(number)
        await asyncio.sleep(luck.uniform(*before_s))
        await _every_partition_moves(world)
        backup = await asyncio.to_thread(take, world, kind, f"backup-{number}")
        world.say(f"{kind} taken")
        await asyncio.sleep(luck.uniform(*before_s))
        await _every_partition_moves(world)
        done.lost_offsets += await _lose_and_restore(world, backup, end)
        done.kinds[kind] += 1
        if kind == "pg_dump":
            done.last_dump = backup
    await world.heal()
    world.say("draining")
    done.report = await world.settle()
    return done


async def _every_partition_moves(world: World) -> None:
    """Wait until every partition has committed more than now, so that no backup is like the one before."""
    before = await asyncio.to_thread(world.standing)
    async with asyncio.timeout(READY_S):
        while True:
            now = await asyncio.to_thread(world.standing)
            if all(now.get(s, _NEVER)[2] > before.get(s, _NEVER)[2] for s in world.streams):
                return
            await asyncio.sleep(0.1)


async def _lose_and_restore(world: World, backup: Backup, end: str) -> int:
    """Lose the database and restore the backup; how many committed offsets are not in the backup."""
    stopped = [slot for slot in world.slots if end != "left running" and slot.running()]
    for slot in stopped:
        slot.wanted = False
        if end == "stopped":
            assert await world.stop(slot) == 0, slot.process.log()
        else:
            await asyncio.to_thread(slot.process.kill)
    before = await asyncio.to_thread(world.standing)
    assert len(before) == len(world.streams), before
    after = await asyncio.to_thread(restore, world, backup)
    behind = {before[stream][0]: before[stream][2] - offset for stream, offset in after.items()}
    said = ", ".join(f"{partition}: {offsets}" for partition, offsets in sorted(behind.items()))
    world.say(f"{backup.kind} restored, workers {end}; offsets from backup to loss, by partition: {said}")
    assert len(behind) == len(world.streams), behind
    assert all(offsets > 0 for offsets in behind.values()), behind
    for slot in stopped:
        world.start(slot)
    await world.ready()
    return sum(behind.values())


def take(world: World, kind: Kind, name: str) -> Backup:
    """Take a backup of the world's database, while workers flush."""
    stack = world.spare if kind == "pg_basebackup" else world.primary
    way = _way(stack)
    seen = way.data_seen(stack.postgres) / name
    if kind == "pg_basebackup":
        options: tuple[str, ...] = (
            f"--pgdata={seen}",
            f"--dbname={world.postgres.database_url('postgres')}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        )
    else:
        options = ("--format=custom", f"--file={seen}", f"--dbname={world.database_url}")
    way.run(stack.postgres, str(way.binaries.pg_bin / kind), *options)
    return Backup(kind=kind, stack=stack, name=name)


def restore(
    world: World, backup: Backup, *, plant: Callable[[psycopg.Connection], object] = lambda connection: None
) -> dict[str, int]:
    """Restore the backup in place of the database; the offset of each stream in it.

    ``plant`` may alter the restored database before any worker can reach it.
    """
    if backup.kind == "pg_dump":
        return _restore_dump(world, backup, plant)
    return _restore_base(world, backup, plant)


def _restore_base(
    world: World, backup: Backup, plant: Callable[[psycopg.Connection], object]
) -> dict[str, int]:
    """The primary's host is lost, and the backup becomes the data folder of the spare one."""
    assert backup.stack is world.spare
    server = backup.stack.postgres
    world.postgres.kill()
    server.kill()
    shutil.rmtree(server.data / "pg")
    (server.data / backup.name).rename(server.data / "pg")
    server.start()
    with psycopg.connect(server.database_url(world.database), connect_timeout=30) as connection:
        plant(connection)
        offsets = _offsets(connection)
    world.move_to_spare()
    return offsets


def _restore_dump(
    world: World, backup: Backup, plant: Callable[[psycopg.Connection], object]
) -> dict[str, int]:
    assert backup.stack is world.primary
    server, way = backup.stack.postgres, _way(backup.stack)
    lost, new = world.database, f"{world.database}_restored"
    url = server.create_database(new)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT timescaledb_pre_restore()")
    seen = way.data_seen(server) / backup.name
    way.run(server, str(way.binaries.pg_bin / "pg_restore"), "--exit-on-error", f"--dbname={url}", str(seen))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT timescaledb_post_restore()")
    with psycopg.connect(url) as connection:
        plant(connection)
        offsets = _offsets(connection)
    # Nobody can come back between the end of the sessions and the new name, not even TimescaleDB's scheduler.
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        for database in (lost, new):
            connection.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false'.encode())
            connection.execute(_AWAY.format(database=database).encode())
        connection.execute(f'DROP DATABASE "{lost}" WITH (FORCE)'.encode())
        connection.execute(f'ALTER DATABASE "{new}" RENAME TO "{lost}"'.encode())
        connection.execute(f'ALTER DATABASE "{lost}" ALLOW_CONNECTIONS true'.encode())
    return offsets


def _offsets(connection: psycopg.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT stream, committed_offset FROM analytics.partitions").fetchall())


def _way(stack: Stack) -> Processes:
    """The way that runs the servers as processes; inside Docker's containers no backup could be moved."""
    assert isinstance(stack.way, Processes)
    return stack.way
