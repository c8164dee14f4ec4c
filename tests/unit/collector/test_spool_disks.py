"""A spool on disks that are full or fail: what is answered, said, and there afterwards."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from pathlib import Path

import pytest

from pipeline.collector.spool import Spool, SpoolFailed, SpoolFull
from tests.support.failing_disk import FailingDisk
from tests.support.spools import (
    ORG,
    abandoned,
    bytes_in,
    drained,
    killed,
    numbered,
    offered,
    opened,
    segments,
    settled,
    take,
)

# --- disks that fail ------------------------------------------------------------------------------


async def test_short_writes_are_completed(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    disk.write_bytes_max = 7
    async with opened(tmp_path, files=disk) as spool:
        await spool.append(numbered(0, 30))
        assert await drained(spool) == [body for _, body in numbered(0, 30)]


FAILURES = [
    ("write", errno.ENOSPC),
    ("write", errno.EIO),
    ("sync", errno.EIO),
    ("sync", errno.ENOSPC),
    ("sync", errno.EDQUOT),
]


@pytest.mark.parametrize(("operation", "error"), FAILURES)
@pytest.mark.parametrize("before", [0, 3])
async def test_after_a_failure_nothing_of_the_append_counts_and_all_before_and_after_is_there(
    tmp_path: Path, operation: str, error: int, before: int
) -> None:
    folder, later = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    later.mkdir()
    disk = FailingDisk(folder)
    spool = await Spool.open(folder, bytes_max=2**20, files=disk)
    for n in range(before):
        await spool.append(numbered(n, n + 1))
    disk.fail(operation, error)
    outcomes = await asyncio.gather(
        spool.append(numbered(10, 20)), spool.append(numbered(20, 30)), return_exceptions=True
    )
    assert [type(each) for each in outcomes] == [SpoolFailed, SpoolFailed]
    assert os.strerror(error) in str(outcomes[0])
    assert spool.failure is not None
    assert spool.records == before
    assert spool.bytes == bytes_in(folder)
    await spool.append(numbered(30, 33))
    assert spool.failure is None
    assert len(segments(folder)) == (2 if before else 1), "a new segment, and the old one if it has records"
    disk.lose_power(later, random.Random(1))
    wanted = [body for _, body in numbered(0, before) + numbered(30, 33)]
    assert await drained(spool) == wanted
    await spool.close()
    async with opened(later) as spool:
        assert await drained(spool) == wanted, "and it is so on the disk"


async def test_records_in_the_page_that_a_failed_sync_spoiled_are_written_again(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        await spool.append(numbered(0, 100))
        [segment] = segments(tmp_path)
        good = segment.read_bytes()
        disk.fail("sync", errno.EIO, errno.EIO)  # the second is that of the repair
        with pytest.raises(SpoolFailed):
            await spool.append(numbered(100, 101))
        assert disk.durable(segment) != good, "the fake is as bad as a disk can be"
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        await spool.append(numbered(0, 100))
        segment = segments(tmp_path)[-1]
        good = segment.read_bytes()
        disk.fail("sync", errno.EIO)
        with pytest.raises(SpoolFailed):
            await spool.append(numbered(100, 101))
        assert disk.durable(segment) == good


async def test_a_file_that_can_be_neither_synced_nor_deleted_is_left_empty(tmp_path: Path) -> None:
    """Else its bytes would be garbage after a power failure, and nobody could tell that it is ours."""
    folder, later = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    later.mkdir()
    disk = FailingDisk(folder)
    spool = await Spool.open(folder, bytes_max=2**20, files=disk)
    disk.fail("sync", errno.EIO)
    disk.fail("delete", *[errno.EIO] * 9)
    with pytest.raises(SpoolFailed):
        await spool.append(numbered(0, 3))
    await spool.append(numbered(3, 6))  # whose sync of the folder writes the names of both files
    await settled(spool)
    assert sorted(path.stat().st_size > 0 for path in segments(folder)) == [False, True]
    disk.lose_power(later, random.Random(0))
    assert len(segments(later)) == 2
    disk.works_again()
    await abandoned(spool)
    async with opened(later) as spool:
        assert (spool.files_set_aside, spool.records_lost) == (0, 0)
        assert await drained(spool) == [body for _, body in numbered(3, 6)]


@pytest.mark.parametrize("operation", ["create", "sync_folder"])
async def test_a_segment_that_cannot_be_made_fails_the_append_and_leaves_no_file(
    tmp_path: Path, operation: str
) -> None:
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        disk.fail(operation, errno.EMFILE)
        with pytest.raises(SpoolFailed):
            await spool.append(offered(b"one"))
        assert segments(tmp_path) == []
        assert (spool.bytes, spool.records) == (0, 0)
        await spool.append(offered(b"two"))
        assert await drained(spool) == [b"two"]


async def test_a_full_disk_is_said_once_and_its_end_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        await spool.append(numbered(0, 10))
        disk.room_bytes = 100
        for _ in range(5):
            with pytest.raises(SpoolFailed, match="No space left"):
                await spool.append(numbered(10, 20))
        disk.works_again()
        await spool.append(numbered(20, 30))
        assert [record.message for record in caplog.records] == ["spool_append_failed", "spool_appends_again"]
        assert await drained(spool) == [body for _, body in numbered(0, 10) + numbered(20, 30)]


async def test_a_disk_that_fails_at_the_repair_too_is_said_with_the_file_and_what_can_be_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FailingDisk(tmp_path)
    spool = await Spool.open(tmp_path, bytes_max=2**20, files=disk)
    await spool.append(numbered(0, 10))
    [segment] = segments(tmp_path)
    disk.fail("sync", errno.EIO)
    disk.fail("truncate", errno.EIO)
    with pytest.raises(SpoolFailed):
        await spool.append(numbered(10, 20))
    [said] = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert said.message == "spool_segment_not_cut"
    assert said.__dict__["file"] == str(segment)
    assert "10 records" in said.__dict__["effect"]
    assert spool.bytes == bytes_in(tmp_path)
    await spool.append(numbered(20, 30))
    wanted = [body for _, body in numbered(0, 10) + numbered(20, 30)]
    taken = [await take(spool), await take(spool)]
    assert [*taken[0].bodies, *taken[1].bodies] == wanted, "the torn records are not given"
    await abandoned(spool)
    async with opened(tmp_path) as spool:
        found = await drained(spool)
        assert [body for body in found if body in wanted] == wanted


async def test_an_append_of_several_writes_is_durable_whole_or_not_at_all(tmp_path: Path) -> None:
    large = [(ORG, b"%d" % n + bytes(900_000)) for n in range(12)]
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        await spool.append(numbered(0, 1))
        disk.fail("sync", None, errno.EIO)
        with pytest.raises(SpoolFailed):
            await spool.append(large)
        assert disk.calls["sync"] == 4, "one, then two, then the repair"
        assert spool.records == 1
        await spool.append(large)
        assert disk.calls["sync"] == 4 + 3
        assert await drained(spool) == [body for _, body in numbered(0, 1) + large]


async def test_a_programmers_fault_in_the_thread_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(FailingDisk):
        def write(self, fd: int, data: memoryview, position: int) -> int:
            raise ZeroDivisionError

    async with opened(tmp_path, files=Broken(tmp_path)) as spool:
        with pytest.raises(ZeroDivisionError):
            await spool.append(offered(b"one"))
        assert segments(tmp_path) == []


async def test_a_disk_that_cannot_be_read_for_now_loses_nothing(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        await spool.append(numbered(0, 10))
        disk.fail("open", errno.EMFILE)
        with pytest.raises(SpoolFailed, match="cannot read"):
            await take(spool)
        assert await drained(spool) == [body for _, body in numbered(0, 10)]


# --- what readiness asks --------------------------------------------------------------------------


async def test_a_spool_that_refused_an_event_has_no_room_until_there_is_room_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=100_000, segment_bytes=20_000) as spool:
        await spool.append(numbered(0, 9, body_bytes=10_000))
        assert spool.has_room
        for _ in range(3):
            with pytest.raises(SpoolFull):
                await spool.append(offered(bytes(10_000)))
            assert not spool.has_room
        await spool.append(offered(bytes(3_000)))
        assert spool.has_room, "smaller events are taken"
        with pytest.raises(SpoolFull):
            await spool.append(offered(bytes(10_000)))
        await drained(spool)
        await settled(spool)
        assert spool.has_room


async def test_a_full_spool_is_known_to_be_full_after_a_restart(tmp_path: Path) -> None:
    await killed(tmp_path, offered(bytes(99_500)), bytes_max=100_000)
    async with opened(tmp_path, bytes_max=100_000) as spool:
        assert not spool.has_room
        assert spool.failure is None


async def test_a_disk_that_is_full_at_the_start_is_known_and_tried_again(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    disk.room_bytes = 1000
    async with opened(tmp_path, files=disk) as spool:
        assert spool.failure is not None
        assert "No space left" in spool.failure
        disk.works_again()
        await spool.try_disk()
        assert spool.failure is None
        assert [path.name for path in segments(tmp_path)] == []


async def test_the_trial_of_a_real_disk_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.try_disk()
        assert spool.failure is None
        assert os.listdir(tmp_path) == ["lock"]
