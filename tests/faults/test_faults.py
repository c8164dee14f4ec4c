"""A short storm of faults for every run of the tests. `tox -e faults` runs the long storm."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from deploy.local import Stack
from tests.faults.faults import FAULTS
from tests.faults.schedule import deck, storm
from tests.faults.world import World
from tests.support import mix
from tests.support.tcp_proxy import Moment, TcpProxy

pytestmark = pytest.mark.timeout(1800)

SHORT = (
    "worker_killed",
    "database_connection_cut_after_commit",
    "worker_stopped_past_a_takeover",
    "database_refuses_flushes",
    "broker_connection_cut",
    "worker_terminated",
    "database_connection_cut_in_commit",
    "database_killed",
    "redis_away",
    "worker_clock_jumps",
    "database_failed_over",
    "broker_killed",
    "s3_away",
    "database_connection_cut_before_commit",
    "database_read_only",
    "database_sessions_ended",
)
"""One kind of each sort. The long storm has all kinds."""
_OTHER = "value LIKE 'other values:%'"
_ROWS_OF_DIMENSIONS = (
    f"SELECT dimension, count(*) FILTER (WHERE value = ''), count(*) FILTER (WHERE {_OTHER}),"
    f" count(*) FILTER (WHERE value <> '' AND NOT {_OTHER}) FROM analytics.breakdown_hour GROUP BY dimension"
)
"""By dimension: the rows of events without a value, of the rest beyond the cap, and of the values by name."""


async def test_a_fault_of_each_sort_leaves_every_bucket_of_every_grain_and_the_archive_exact(
    servers: Stack, second: Stack, tmp_path: Path
) -> None:
    async with World(
        servers, tmp_path, seed=1, workers=3, partitions=4, second=second, archive=True, say=print
    ) as world:
        done = await storm(world, faults=len(SHORT), seed=1, kinds=SHORT, workers=2)
        assert done.report is not None
        print(done.closing_line())
        assert done.report.mismatches == []
        assert done.report.crashes == []
        possible = {kind for kind in SHORT if FAULTS[kind].needs in {None, *world.able}}
        assert set(done.injected) == possible
        assert done.report.archived == done.report.accepted > 0
        assert min(done.report.late, done.report.duplicate, done.report.reasons["conflict"]) > 0
        rows = {dimension: counts for dimension, *counts in world.sql(_ROWS_OF_DIMENSIONS)}
        assert rows.keys() == {one.name for one in mix.DIMENSIONS}
        assert min(map(min, rows.values())) > 0, rows

        # The comparison itself is tested: it must find figures altered by hand, and rows deleted.
        world.sql(
            "UPDATE analytics.usage_day SET cost_microcents = cost_microcents + 1 WHERE partition = 0",
            "DELETE FROM analytics.dead_letters WHERE partition = 1",
            "UPDATE analytics.breakdown_day SET input_tokens = input_tokens + 1 WHERE partition = 2",
            "DELETE FROM analytics.values_seen WHERE partition = 3",
            "UPDATE analytics.dimensions SET since = now() WHERE partition = 0",
        )
        found = (await world.settle()).mismatches
        for what in ("usage_day", "dead_letters", "breakdown_day", "values_seen", "since when"):
            assert any(what in line for line in found), what


def test_every_round_has_every_kind_and_a_seed_decides_their_order() -> None:
    a_round = sum(fault.weight for fault in FAULTS.values())
    able = {fault.needs for fault in FAULTS.values() if fault.needs is not None}
    first = deck(a_round, random.Random(1), able=able)
    assert {fault.name for fault in first} == set(FAULTS)
    assert first == deck(a_round, random.Random(1), able=able)
    assert first != deck(a_round, random.Random(2), able=able)
    assert not any(fault.needs for fault in deck(a_round, random.Random(1)))


async def test_a_cut_at_a_pattern_falls_before_in_or_after_it() -> None:
    got: list[bytes] = []
    arrived = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            got.append(data)
            arrived.set()
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, TcpProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:

        async def exchange(sent: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(sent)
            try:
                return await reader.read(100)
            except ConnectionError:
                return b""
            finally:
                writer.close()

        moments: dict[Moment, bool] = {"before": False, "in": True, "after": True}
        for moment, reaches_the_target in moments.items():
            proxy.cut_at = (b"COMMIT\0", moment)
            assert await exchange(b"BEGIN") == b"BEGIN"
            got.clear()
            arrived.clear()
            assert await exchange(b"Q..COMMIT\0") == b""
            if reaches_the_target:
                await asyncio.wait_for(arrived.wait(), 60)
            assert got == [b"Q..COMMIT\0"][: int(reaches_the_target)]
            assert await exchange(b"Q..COMMIT\0") == b"Q..COMMIT\0"
