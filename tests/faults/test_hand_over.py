"""Workers come and go under load: nothing is lost, and no partition stands still for long."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from deploy.local import Stack
from tests.faults.world import World

pytestmark = pytest.mark.timeout(1800)

STALL_S = 5.0
"""The bound where a worker starts at once. The time of a start is added: it tells how slow the machine is."""
STEP_S = 3.0


class Progress:
    """For each partition, the longest time for which its committed offset stood still while events came."""

    def __init__(self, world: World) -> None:
        self.longest_s = dict.fromkeys(world.streams, 0.0)
        self.longest_at = dict.fromkeys(world.streams, 0.0)
        self._world = world
        self._began = time.monotonic()

    async def watch(self) -> None:
        offsets = dict.fromkeys(self._world.streams, -1)
        moved = dict.fromkeys(self._world.streams, time.monotonic())
        while True:
            standing = await asyncio.to_thread(self._world.standing)
            now = time.monotonic()
            for stream, (_, _, offset) in standing.items():
                stood_s = now - moved[stream]
                if stood_s > self.longest_s[stream]:
                    self.longest_s[stream], self.longest_at[stream] = stood_s, moved[stream] - self._began
                if offset != offsets[stream]:
                    offsets[stream], moved[stream] = offset, now
            await asyncio.sleep(0.1)


async def test_adding_and_removing_workers_loses_nothing_and_stalls_no_partition(
    servers: Stack, tmp_path: Path
) -> None:
    said: list[str] = []
    async with World(servers, tmp_path, seed=3, workers=4, partitions=4, rate=300, say=said.append) as world:
        first, second, third, fourth = world.slots
        began = time.monotonic()
        world.start(first)
        await world.ready()
        stall_s_max = STALL_S + time.monotonic() - began
        world.start_load()
        await asyncio.sleep(STEP_S)
        progress = Progress(world)
        watching = asyncio.create_task(progress.watch())
        for slot in (second, third, fourth):  # 1 to 4 workers
            world.say(f"worker {slot.number} joins")
            world.start(slot)
            await world.ready()
            await asyncio.sleep(STEP_S)
        for slot in (first, third):  # each makes its last flush, then the next owner takes over
            world.say(f"worker {slot.number} leaves")
            assert await world.stop(slot) == 0
            await asyncio.sleep(STEP_S)
        world.say("worker 1 is killed, worker 0 joins")
        second.wanted = False
        second.signal(signal.SIGKILL)
        world.start(first)
        await world.ready()
        await asyncio.sleep(STEP_S)
        watching.cancel()
        report = await world.settle()
        shown = {
            stream.rpartition("-")[
                2
            ]: f"{progress.longest_s[stream]:.1f} s at {progress.longest_at[stream]:.0f} s"
            for stream in world.streams
        }
        print(
            "\n".join(said),
            f"longest stalls: {shown} of {stall_s_max:.1f} s, events: {report.events}",
            sep="\n",
        )
        assert report.mismatches == []
        assert report.crashes == []
        assert max(progress.longest_s.values()) < stall_s_max, (shown, said)
