"""Two backups are restored in every run of the tests. `python -m tests.faults --restore 10` has more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from deploy.local import Stack
from tests.conftest import missing
from tests.faults.restore import KINDS, restore, restored
from tests.faults.world import World, oracle_of
from tests.support import books, streams

pytestmark = pytest.mark.timeout(900)


def one_too_far(connection: psycopg.Connection) -> None:
    """Let partition 0 count from a record too late. Without the broker's time no worker can notice that."""
    moved = connection.execute(
        "UPDATE analytics.partitions SET committed_offset = committed_offset + 1, broker_time = NULL"
        " WHERE partition = 0 AND committed_offset > 0"
    )
    assert moved.rowcount == 1


async def test_a_backup_of_any_moment_and_the_stream_make_every_figure_exact(
    servers: Stack, second: Stack, tmp_path: Path
) -> None:
    async with World(
        servers,
        tmp_path,
        seed=26,
        workers=2,
        partitions=2,
        second=second,
        archive=True,
        rate=150,
        archive_interval="10s",  # a shorter one makes more files, and reading them takes longer
        clocks=False,
        say=print,
    ) as world:
        if "second" not in world.able:
            missing("the servers run in containers, where no data folder can be exchanged")
        done = await restored(
            world,
            moments=2,
            seed=26,
            workers=lambda number: ("stopped", "killed")[number],
            before_s=(0.1, 0.5),
        )
        assert done.report is not None
        print(done.closing_line())
        assert done.report.mismatches == []
        assert done.report.crashes == []
        assert set(done.kinds) == set(KINDS)
        assert done.lost_offsets > 0
        assert done.report.archived == done.report.accepted > 0
        assert min(done.report.late, done.report.duplicate, done.report.reasons["malformed"]) > 0

        # The comparison is tested: a backup whose offset is one record ahead of its rows must be found.
        assert done.last_dump is not None
        await asyncio.to_thread(restore, world, done.last_dump, plant=one_too_far)
        (slot, *_) = world.slots
        world.start(slot)
        await world.drained()
        assert await world.stop(slot) == 0
        ((stream, committed),) = [
            (stream, committed)
            for stream, (partition, _, committed) in world.standing().items()
            if partition == 0
        ]
        records = await streams.read_all(servers.rabbitmq.url, stream, upto=committed)
        counted, _ = await asyncio.to_thread(oracle_of, records)
        stored = await asyncio.to_thread(books.stored_in_database, world.database_url, 0)
        found = books.difference(stored, books.expected(counted))
        assert any("counters" in line for line in found), found
