"""A database that is away for long: memory stays bounded, the reported lag is true, and nothing is lost.

In every run of the tests the outage takes half a minute. ``SPENDSTREAM_OUTAGE_S=600`` makes it ten minutes,
which is the promise.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.local import Stack
from tests.faults.world import Slot, World
from tests.support import processes

RATE = 3000.0
OUTAGE_S = float(os.environ.get("SPENDSTREAM_OUTAGE_S", "30"))
PARTITIONS = 2
BUFFER_EVENTS_MAX = 4_000
CHUNK_EVENTS_MAX = 4_000
"""Events beyond the bound: the credit lets some chunks come, of some hundred events each."""
CAME_MIN = round(RATE * OUTAGE_S * 3 / 4)
"""The outage ends when this many events have come, and not before ``OUTAGE_S``."""
MORE_RSS_MIB = 150
"""The promised bound: the worker takes at most this much more memory than before the outage."""
LATE_S = 10.0
"""A gauge may be this old, by LAG_INTERVAL_S and on a machine that is busy and slow."""

pytestmark = pytest.mark.timeout(1800 + 15 * OUTAGE_S)


def gauges(slot: Slot, name: str) -> list[float]:
    """The values of one metric of the worker, over all partitions."""
    text = processes.get(slot.process.ready_url.replace("readyz", "metrics"))[1]
    return [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)]


def rss_mib(slot: Slot) -> float:
    status = Path(f"/proc/{slot.process.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


async def test_a_long_outage_is_bounded_in_memory_truthful_in_lag_and_lossless(
    servers: Stack, tmp_path: Path
) -> None:
    bounds = {"BUFFER_EVENTS_MAX": str(BUFFER_EVENTS_MAX), "DIRTY_ROWS_MAX": "20000"}
    env = {"REDIS_URL": servers.redis.url, "API_DATABASE_TIMEOUT": "500ms"}
    async with World(
        servers, tmp_path, seed=5, workers=1, partitions=PARTITIONS, rate=RATE, settings=bounds
    ) as world:
        (slot,) = world.slots
        world.start(slot)
        await world.ready()
        world.start_load()
        await asyncio.sleep(8)

        def at_work() -> bool:
            return sum(row[2] for row in world.standing().values()) > RATE * 4

        await asyncio.to_thread(processes.wait_for, at_work, 240, slot.process.log)
        with processes.Api(env | {"DATABASE_URL": world.database_url}, tmp_path) as api:
            assert isinstance(api, processes.Api)
            org = str(world.sql("SELECT org_id FROM analytics.orgs_seen LIMIT 1")[0][0])
            before_mib, published = rss_mib(slot), world.published
            committed_at = {stream: row[2] for stream, row in world.standing().items()}

            began = time.monotonic()
            await asyncio.to_thread(servers.postgres.pause)
            seen: list[tuple[float, int, float, float, float, float, Any]] = []
            deadline = began + 10 * OUTAGE_S
            # A slow machine publishes less in this time, and too little would fit into the worker.
            while (away_s := time.monotonic() - began) < OUTAGE_S or world.published - published < CAME_MIN:
                assert time.monotonic() < deadline, world.published - published
                came = world.published - published
                if away_s > OUTAGE_S / 2 and servers.postgres.is_running():
                    await asyncio.to_thread(servers.postgres.kill)
                lag, fresh, buffered = await asyncio.to_thread(
                    lambda: [
                        gauges(slot, f"analytics_{name}")
                        for name in ("stream_offset_lag", "freshness_lag_seconds", "buffered_events")
                    ]
                )
                answer = await asyncio.to_thread(api.ask, f"/orgs/{org}/freshness")
                seen.append(
                    (
                        away_s,
                        came,
                        sum(lag),
                        max(fresh),
                        max(buffered),
                        await asyncio.to_thread(rss_mib, slot),
                        answer,
                    )
                )
                await asyncio.sleep(1)
            status = await asyncio.to_thread(slot.process.status)
            await asyncio.to_thread(servers.postgres.start)
            world.aim()
            backlog = sum((await world.ends()).values()) - sum(committed_at.values())
            await world.stop_load()
            await world.drained(timeout_s=600 + 2 * away_s)
            drained_s = time.monotonic() - began - away_s

            def current() -> bool:
                code, body = api.ask(f"/orgs/{org}/freshness")
                return code == 200 and float(body["lagSeconds"]) < OUTAGE_S / 2

            processes.wait_for(lambda: slot.process.status() == 200, 120, slot.process.log)
            await asyncio.to_thread(processes.wait_for, current, 120, slot.process.log)
        report = await world.settle()
    for row in seen:
        print(*(f"{value:.1f}" if isinstance(value, float) else value for value in row))
    peak_mib = max(row[5] for row in seen)
    print(
        f"{report.events} events; backlog {backlog} after {away_s:.0f} s; drained in {drained_s:.1f} s;"
        f" RSS {before_mib:.0f} MiB before, {peak_mib:.0f} at most"
    )
    assert report.mismatches == []
    assert report.crashes == []
    assert status == 503

    # Memory is bounded: the worker has stopped reading, so the stream keeps the events.
    assert peak_mib < before_mib + MORE_RSS_MIB
    assert max(row[4] for row in seen) <= BUFFER_EVENTS_MAX + CHUNK_EVENTS_MAX
    assert backlog > CAME_MIN * 2 / 3

    # The lag is true: the unread events grow as events are published, and the age of the figures with time.
    taken_in = PARTITIONS * 2 * (BUFFER_EVENTS_MAX + CHUNK_EVENTS_MAX)  # a batch in flight, and the next
    for away_s, _, unread, age_s, _, _, answer in seen:
        if away_s > LATE_S:
            came = max((row[1] for row in seen if row[0] <= away_s - LATE_S), default=0)
            assert unread >= came - taken_in, (away_s, came, unread)
            assert age_s >= away_s - LATE_S, (away_s, age_s)
            assert answer[0] == 503 or answer[1]["lagSeconds"] >= away_s - LATE_S, answer
    assert seen[-1][2] > seen[0][2] + CAME_MIN / 3
