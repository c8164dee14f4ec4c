"""The spool in processes of its own: killed while they append and publish, and two in one folder."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.collector.spool import Spool
from pipeline.collector.spool_recovery import SpoolUnusable
from pipeline.processes import child as children
from tests.support.spool_child import BYTES_MAX, SEGMENT_BYTES, number_of, record

KILLS = 24


def started(folder: Path, first: int, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        children.command_line("tests.support.spool_child", str(folder), str(first), *options),
        env=children.environment(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def killed(process: subprocess.Popen[bytes], after_s: float) -> list[str]:
    """Kill the process (kill -9) some time after it has opened the spool; what it has said before."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    os.set_blocking(process.stdout.fileno(), False)
    said, end = b"", time.monotonic() + after_s
    while time.monotonic() < end:
        said += process.stdout.read() or b""
        time.sleep(0.001)
    process.kill()
    os.set_blocking(process.stdout.fileno(), True)
    said += process.communicate()[0]
    return said.decode().splitlines()


async def stored(folder: Path, publish: int) -> tuple[list[int], set[int]]:
    """The numbers of all records in a spool, and those that are now published: some of the first batches."""
    spool = await Spool.open(folder, bytes_max=BYTES_MAX, segment_bytes=SEGMENT_BYTES)
    numbers: list[int] = []
    published: set[int] = set()
    while len(numbers) < spool.records + len(published):
        taken = await spool.oldest(bytes_max=100_000, records_max=300)
        here = [number_of(body) for body in taken.bodies]
        torn = [
            number
            for number, key, body in zip(here, taken.keys, taken.bodies, strict=True)
            if (key, body) != record(number)
        ]
        assert torn == []
        numbers += here
        if publish > 0:
            publish -= 1
            spool.published(taken)
            published.update(here)
    assert (spool.records_lost, spool.files_set_aside) == (0, 0)
    await spool.close()
    return numbers, published


async def test_what_was_answered_survives_kill_9_in_order_and_whole(tmp_path: Path) -> None:
    chance = random.Random()
    owed: set[int] = set()
    """Answered, and not published."""
    answered = published = 0
    for life in range(KILLS):
        first = life * 1_000_000
        process = started(tmp_path, first, *(["--drain"] if life % 3 == 2 else []))
        lines = killed(process, chance.uniform(0.02, 0.5))
        for line in lines:
            kind, *numbers = line.split()
            if kind == "a":
                owed.update(range(int(numbers[0]), int(numbers[1])))
                answered += int(numbers[1]) - int(numbers[0])
            else:
                assert kind == "p"
                published += len(numbers)
        gone = {int(number) for line in lines if line.startswith("p") for number in line.split()[1:]}
        owed -= gone
        found, now_published = await stored(tmp_path, publish=chance.randint(0, 20))
        assert found == sorted(set(found)), "in order, and none twice"
        missing = owed.difference(found)
        assert not missing, f"life {life}: {len(missing)} records are lost, from {min(missing)} on"
        owed -= now_published
    assert answered > KILLS * 100
    assert published > 0


async def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path: Path) -> None:
    first = started(tmp_path, 0)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(SpoolUnusable, match=f"process {first.pid} on "):
            await Spool.open(tmp_path, bytes_max=BYTES_MAX)
        second = started(tmp_path, 1_000_000)
        _, said = second.communicate(timeout=60)
        assert second.returncode == 1
        assert str(tmp_path) in said.decode()
        assert f"process {first.pid} on " in said.decode()
        (tmp_path / "lock").unlink()
        with pytest.raises(SpoolUnusable, match="another collector has the spool"):
            await Spool.open(tmp_path, bytes_max=BYTES_MAX)
    finally:
        killed_first = first.poll() is None
        first.kill()
        first.communicate()
    assert killed_first, "the first one goes on"
    spool = await Spool.open(tmp_path, bytes_max=BYTES_MAX)
    assert spool.records > 0
    await spool.close()
