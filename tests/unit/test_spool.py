"""The spool: durable before the answer, in order, bounded; full disks, failing syncs, torn tails, damage."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import stat
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from isal import isal_zlib

from pipeline.collector import spool_files
from pipeline.collector.spool import Spool, SpoolFailed, SpoolFull, Taken
from pipeline.collector.spool_files import FutureFormat
from pipeline.collector.spool_recovery import SpoolUnusable
from pipeline.common.operator import OperatorError
from tests.support.failing_disk import FailingDisk

ORG = "5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e"
MANY = 1000
FRAME_BYTES = spool_files.RECORD_HEAD_BYTES + len(ORG)
HEADER_BYTES, SEAL_BYTES = spool_files.HEADER_BYTES, spool_files.SEAL_BYTES


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[Spool]:
    spool = await Spool.open(folder, **{"bytes_max": 2**30, **settings})
    try:
        yield spool
    finally:
        await spool.close()


def offered(*bodies: bytes) -> list[tuple[str, bytes]]:
    return [(ORG, body) for body in bodies]


def numbered(first: int, last: int, *, body_bytes: int = 20) -> list[tuple[str, bytes]]:
    return offered(*(b"%d" % n + b" " * (body_bytes - len(b"%d" % n)) for n in range(first, last)))


async def take(spool: Spool, records_max: int = MANY, bytes_max: int = 2**30) -> Taken:
    async with asyncio.timeout(20):
        return await spool.oldest(bytes_max=bytes_max, records_max=records_max)


async def drained(spool: Spool, records_max: int = MANY) -> list[bytes]:
    """All bodies, each batch published."""
    bodies: list[bytes] = []
    while spool.records:
        taking = asyncio.create_task(take(spool, records_max))
        while spool.records and not taking.done():
            await asyncio.wait([taking], timeout=0.01)
        if spool.records == 0:
            taking.cancel()  # all that was left is too damaged to be read
            break
        taken = await taking
        assert 0 < len(taken.bodies) == len(taken.keys) <= records_max
        bodies += taken.bodies
        spool.published(taken)
    return bodies


async def abandoned(spool: Spool) -> None:
    """End a spool as kill -9 does: nothing is sealed, and the lock is free."""
    spool._write_thread.shutdown()
    spool._read_thread.shutdown()
    os.close(spool._lock_fd)


async def killed(folder: Path, *appends: list[tuple[str, bytes]], **settings: Any) -> None:
    """A process that appends and is killed."""
    spool = await Spool.open(folder, **{"bytes_max": 2**30, **settings})
    for records in appends:
        await spool.append(records)
    await abandoned(spool)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


async def settled(spool: Spool) -> None:
    """Wait until files of published segments are gone."""
    while spool._removing is not None:
        await asyncio.wait([spool._removing])


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.spool*"))


# --- in and out -----------------------------------------------------------------------------------


async def test_records_come_back_in_order_with_their_keys(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append([("org a", b"one"), ("ö" * 300, b"")])
        await spool.append([("", b"\xff\x00three")])
        taken = await take(spool)
        assert list(zip(taken.keys, taken.bodies, strict=True)) == [
            ("org a", b"one"),
            ("ö" * 300, b""),
            ("", b"\xff\x00three"),
        ]


async def test_records_of_a_killed_process_come_before_those_of_the_next(tmp_path: Path) -> None:
    await killed(tmp_path, offered(b"one"), offered(b"two"))
    await killed(tmp_path, offered(b"three"))
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"four"))
        assert spool.records == 4
        assert await drained(spool) == [b"one", b"two", b"three", b"four"]


async def test_records_of_a_closed_spool_are_there_after_it_is_opened_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(numbered(0, 100))
        first = await take(spool, 30)
        spool.published(first)
        await take(spool, 30)
    async with opened(tmp_path) as spool:
        assert spool.records == 100
        assert await drained(spool) == [body for _, body in numbered(0, 100)]


async def test_a_batch_is_bounded_in_records_and_bytes_and_a_larger_body_comes_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"1" * 10, b"2" * 10, b"3" * 50, b"4" * 10, b"5" * 10, b"6" * 10))
        sizes = [[len(body) for body in (await take(spool, 2, 25)).bodies] for _ in range(4)]
        assert sizes == [[10, 10], [50], [10, 10], [10]]


async def test_oldest_waits_for_the_next_append(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        waiting = asyncio.create_task(take(spool))
        await asyncio.sleep(0)
        await spool.append(offered(b"one"))
        assert (await waiting).bodies == [b"one"]
        waiting = asyncio.create_task(take(spool))
        await asyncio.sleep(0)
        assert not waiting.done(), "what was taken is not given again"
        await spool.append(offered(b"two"))
        assert (await waiting).bodies == [b"two"]


async def test_a_cancelled_call_of_oldest_has_taken_nothing(tmp_path: Path) -> None:
    reading, goes_on = threading.Event(), threading.Event()

    class Slow(FailingDisk):
        def read(self, fd: int, size: int, position: int) -> bytes:
            reading.set()
            assert goes_on.wait(20)
            return super().read(fd, size, position)

    async with opened(tmp_path, files=Slow(tmp_path)) as spool:
        waiting = asyncio.create_task(take(spool))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await spool.append(offered(b"one"))
        reads = asyncio.create_task(take(spool))
        await asyncio.to_thread(reading.wait, 20)
        reads.cancel()
        await asyncio.wait([reads])
        assert reads.cancelled()
        goes_on.set()
        assert (await take(spool)).bodies == [b"one"]


async def test_batches_that_are_put_back_come_again_before_later_records(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=400) as spool:
        for n in range(6):
            await spool.append(numbered(3 * n, 3 * n + 3))
        taken = [await take(spool, 2) for _ in range(6)]
        spool.published(taken[1])
        for each in (taken[4], taken[0], taken[2]):
            spool.put_back(each)
        assert spool.records == 18 - len(taken[1].bodies)
        wanted = [*taken[0].bodies, *taken[2].bodies, *taken[4].bodies]
        again = [await take(spool, 1) for _ in wanted]
        assert [each.bodies[0] for each in again] == wanted
        assert int((await take(spool)).bodies[0]) == int(taken[5].bodies[-1]) + 1


async def test_what_is_not_in_hand_can_be_neither_published_nor_put_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(numbered(0, 10))
        taken = await take(spool, 5)
        spool.published(taken)
        for again in (spool.published, spool.put_back):
            with pytest.raises(ValueError, match="not in hand"):
                again(taken)
        assert spool.records == 5


async def test_a_record_that_is_too_large_is_the_callers_fault_and_writes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        with pytest.raises(ValueError, match="too large"):
            await spool.append(offered(b"fine", bytes(spool_files.BODY_BYTES_MAX + 1)))
        with pytest.raises(ValueError, match="too large"):
            await spool.append([("k" * (spool_files.KEY_BYTES_MAX + 1), b"")])
        await spool.append([])
        assert segments(tmp_path) == []
        largest = [("k" * spool_files.KEY_BYTES_MAX, bytes(spool_files.BODY_BYTES_MAX))]
        await spool.append(largest)
        taken = await take(spool)
        assert [*zip(taken.keys, taken.bodies, strict=True)] == largest


async def test_a_closed_spool_takes_and_gives_nothing_and_finishes_what_waits(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, bytes_max=2**20)
    appends = [asyncio.create_task(spool.append(numbered(n, n + 1))) for n in range(20)]
    await asyncio.sleep(0)
    await spool.close()
    await spool.close()
    await asyncio.gather(*appends)
    with pytest.raises(SpoolFailed, match="closed"):
        await spool.append(offered(b"late"))
    with pytest.raises(SpoolFailed, match="closed"):
        await take(spool)
    async with opened(tmp_path) as spool:
        assert await drained(spool) == [body for _, body in numbered(0, 20)]


async def test_who_waits_for_records_hears_that_the_spool_was_closed(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, bytes_max=2**20)
    waiting = asyncio.create_task(take(spool))
    await asyncio.sleep(0)
    await spool.close()
    with pytest.raises(SpoolFailed, match="closed"):
        await waiting


# --- durable before the answer --------------------------------------------------------------------


async def test_an_append_returns_only_when_its_records_and_the_name_of_their_file_are_on_the_disk(
    tmp_path: Path,
) -> None:
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        for n in range(5):
            await spool.append(numbered(n, n + 1))
            [segment] = segments(tmp_path)
            assert disk.durable(segment) == segment.read_bytes()


async def test_a_new_folder_is_on_the_disk_before_the_first_record(tmp_path: Path) -> None:
    synced: list[Path] = []

    class Noting(FailingDisk):
        def sync_folder(self, folder: Path) -> None:
            synced.append(folder)
            super().sync_folder(folder)

    folder = tmp_path / "above" / "spool"
    async with opened(folder, files=Noting(folder)) as spool:
        assert {tmp_path, tmp_path / "above"} == set(synced)
        await spool.append(offered(b"one"))
        assert folder in synced


async def test_appends_that_come_together_share_a_sync(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        await asyncio.gather(*(spool.append(numbered(n, n + 1)) for n in range(200)))
        assert disk.calls["sync"] <= 2
        assert await drained(spool) == [body for _, body in numbered(0, 200)]


async def test_the_event_loop_goes_on_while_the_disk_syncs(tmp_path: Path) -> None:
    goes_on = threading.Event()

    class Slow(FailingDisk):
        def sync(self, fd: int) -> None:
            assert goes_on.wait(20)
            super().sync(fd)

    async with opened(tmp_path, files=Slow(tmp_path)) as spool:
        append = asyncio.create_task(spool.append(offered(b"one")))
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert not append.done()
        assert spool.records == 0, "nobody can take what is not durable"
        goes_on.set()
        await append
        assert (await take(spool)).bodies == [b"one"]


async def test_a_cancelled_append_harms_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        appends = [asyncio.create_task(spool.append(numbered(n, n + 1))) for n in range(9)]
        await asyncio.sleep(0)
        for cancelled in appends[::2]:
            cancelled.cancel()
        await asyncio.wait(appends)
        found = await drained(spool)
        assert [body for _, body in numbered(0, 9)][1::2] == [body for body in found if int(body) % 2]
        await spool.append(offered(b"more"))
        assert await drained(spool) == [b"more"]
        await settled(spool)
        assert spool.bytes == 0
        assert spool._reserved_bytes == 0


# --- segments -------------------------------------------------------------------------------------


async def test_a_segment_is_deleted_once_all_its_records_are_published_in_any_order(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=1000) as spool:
        for n in range(4):
            await spool.append(numbered(20 * n, 20 * n + 20))
        first, second, _, fourth = segments(tmp_path)
        taken = [await take(spool) for _ in range(4)]
        spool.published(taken[2])
        await settled(spool)
        assert segments(tmp_path) == [first, second, fourth]
        spool.published(taken[0])
        await settled(spool)
        assert segments(tmp_path) == [second, fourth]
        assert spool.bytes == bytes_in(tmp_path)
        spool.published(taken[3])
        spool.published(taken[1])
        await settled(spool)
        assert segments(tmp_path) == []
        assert (spool.bytes, spool.records, spool.oldest_at) == (0, 0, None)


async def test_a_drained_spool_leaves_no_file_although_the_last_segment_is_not_full(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        for _ in range(3):
            await spool.append(numbered(0, 10))
            await drained(spool)
            await settled(spool)
            assert segments(tmp_path) == []


async def test_a_start_reads_the_segments_of_killed_processes_only(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=100_000) as spool:
        for n in range(50):
            await spool.append(numbered(n * 200, n * 200 + 200, body_bytes=400))
    await killed(tmp_path, numbered(10_000, 10_001))
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk) as spool:
        assert len(segments(tmp_path)) == 26
        assert spool.records == 10_001
        assert disk.read_bytes < 10_000
        assert len(await drained(spool)) == 10_001


async def test_deleting_that_fails_is_tried_again_and_its_bytes_count_until_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FailingDisk(tmp_path)
    async with opened(tmp_path, files=disk, segment_bytes=500) as spool:
        for n in range(3):
            await spool.append(numbered(n * 10, n * 10 + 10))
        disk.fail("delete", errno.EIO, errno.EIO)
        for _ in range(2):
            spool.published(await take(spool, 10))
            await settled(spool)
        assert len(segments(tmp_path)) == 3
        assert spool.bytes == bytes_in(tmp_path)
        assert [record.message for record in caplog.records] == ["spool_segment_not_deleted"], "said once"
        spool.published(await take(spool, 10))
        await settled(spool)
        assert segments(tmp_path) == []
        assert spool.bytes == 0


async def test_bodies_are_not_kept_in_memory(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(offered(bytes(2**18)))
        tracemalloc.start()
        for _ in range(100):
            await spool.append(offered(bytes(2**18), bytes(2**18)))
        while spool.records:
            spool.published(await take(spool, bytes_max=2**20))
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 8 * 2**20, "50 MiB went through"


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_full_spool_refuses_and_has_room_again_once_records_are_published(tmp_path: Path) -> None:
    bytes_max = 10_000
    async with opened(tmp_path, bytes_max=bytes_max, segment_bytes=1000) as spool:
        with suppress(SpoolFull):
            for kept in range(0, bytes_max, 5):
                await spool.append(numbered(kept, kept + 5))
        assert bytes_max - 600 < bytes_in(tmp_path) == spool.bytes <= bytes_max
        with pytest.raises(SpoolFull, match=f"of {bytes_max} bytes"):
            await spool.append(offered(bytes(bytes_max)))
        taken = await take(spool)
        spool.published(taken)
        await settled(spool)
        await spool.append(numbered(kept, kept + 5))
        assert await drained(spool) == [body for _, body in numbered(len(taken.bodies), kept + 5)]


async def test_appends_that_wait_count_for_the_bound(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=10_000) as spool:
        outcomes = await asyncio.gather(
            *(spool.append(numbered(n, n + 1, body_bytes=400)) for n in range(100)), return_exceptions=True
        )
        taken_in = outcomes.count(None)
        assert {type(each) for each in outcomes} == {type(None), SpoolFull}
        assert spool.records == taken_in
        assert 15 < taken_in <= 10_000 // (400 + FRAME_BYTES)
    assert bytes_in(tmp_path) <= 10_000


async def test_files_of_earlier_processes_count_for_the_bound(tmp_path: Path) -> None:
    await killed(tmp_path, numbered(0, 100))
    async with opened(tmp_path, bytes_max=1000) as spool:
        assert spool.bytes == bytes_in(tmp_path) > 1000
        with pytest.raises(SpoolFull):
            await spool.append(offered(b""))
        await drained(spool)
        await settled(spool)
        await spool.append(offered(b""))


async def test_figures_say_how_many_how_large_and_how_old(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock=clock, segment_bytes=300) as spool:
        assert (spool.records, spool.bytes, spool.oldest_at) == (0, 0, None)
        started = clock.now_s
        for n in range(6):
            await spool.append(numbered(2 * n, 2 * n + 2))
            clock.now_s += 60
        for n in range(12):
            minute = started + n // 2 * 60
            assert (spool.records, spool.oldest_at) == (12 - n, minute)
            taken = await take(spool, 1)
            assert (spool.oldest_at, taken.oldest_at) == (minute, minute), "in hand is not published"
            if n == 5:
                spool.put_back(taken)
                assert spool.oldest_at == minute
                taken = await take(spool, 1)
            spool.published(taken)
        assert spool.oldest_at is None
        await spool.append(numbered(0, 1))
        assert spool.oldest_at == clock.now_s


@pytest.mark.parametrize("sealed", [True, False])
async def test_the_age_of_the_oldest_record_outlives_the_process(tmp_path: Path, sealed: bool) -> None:
    clock = Clock()
    spool = await Spool.open(tmp_path, bytes_max=2**20, clock=clock)
    await spool.append(offered(b"one"))
    clock.now_s += 60
    await spool.append(offered(b"two"))
    await (spool.close() if sealed else abandoned(spool))
    async with opened(tmp_path, clock=clock) as spool:
        assert spool.oldest_at == clock.now_s - 60


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


# --- torn tails -----------------------------------------------------------------------------------


async def test_a_tail_torn_at_any_byte_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await killed(tmp_path, offered(b"one"), offered(b"two", b"three"))
    [segment] = segments(tmp_path)
    whole = segment.read_bytes()
    ends = [HEADER_BYTES]
    for body in (b"one", b"two", b"three"):
        ends.append(ends[-1] + FRAME_BYTES + len(body))
    assert ends[-1] == len(whole)
    for torn_bytes in range(len(whole)):
        folder = tmp_path / str(torn_bytes)
        folder.mkdir()
        (folder / segment.name).write_bytes(whole[:torn_bytes])
        async with opened(folder) as spool:
            good = sum(end <= torn_bytes for end in ends[1:])
            assert bytes_in(folder) == spool.bytes == (ends[good] if good else 0)
            await spool.append(offered(b"four"))
            assert await drained(spool) == [*[b"one", b"two", b"three"][:good], b"four"]
            assert spool.records_lost == 0
    assert {record.message for record in caplog.records} == {"spool_tail_cut", "spool_empty_segment_deleted"}


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\xffREC"])
async def test_a_tail_of_pages_that_were_never_written_is_cut_off(tmp_path: Path, fill: bytes) -> None:
    await killed(tmp_path, offered(b"one"))
    [segment] = segments(tmp_path)
    whole = segment.read_bytes()
    with segment.open("ab") as file:
        file.write(fill * 5000)
    async with opened(tmp_path) as spool:
        assert segment.read_bytes() == whole
        assert await drained(spool) == [b"one"]


async def test_a_torn_tail_that_is_longer_than_a_write_can_be_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await killed(tmp_path, offered(b"one"))
    [segment] = segments(tmp_path)
    with segment.open("ab") as file:
        file.write(bytes(spool_files.TORN_BYTES_MAX + 1))
    before = segment.read_bytes()
    async with opened(tmp_path) as spool:
        assert spool.records_lost == 1
        assert await drained(spool) == [b"one"]
        await settled(spool)
        assert spool_files.set_aside_path(segment).read_bytes() == before
    assert "spool_segment_damaged" in caplog.text


async def test_a_hole_in_the_last_write_is_the_trace_of_a_power_failure_and_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk may store later pages of a write before earlier ones. Nothing of the write was answered."""
    await killed(tmp_path, numbered(0, 10), numbered(10, 200), numbered(200, 400, body_bytes=100))
    [segment] = segments(tmp_path)
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size - 4 * 4096)
        file.write(bytes(4096))
    async with opened(tmp_path) as spool:
        found = [int(body) for body in await drained(spool)]
        assert found[:200] == [*range(200)]
        assert found == sorted(found)
        assert 390 > len(found) > 360
        assert (spool.records_lost, spool.files_set_aside) == (0, 0)
        await settled(spool)
        assert segments(tmp_path) == []
    assert [record.message for record in caplog.records] == ["spool_tail_cut"]
    assert caplog.records[0].__dict__["records_missing"] == 400 - len(found)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
async def test_any_byte_that_is_damaged_costs_at_most_one_record_and_the_file_is_set_aside(
    tmp_path: Path, sealed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = [b"one", b"two", b"three", b"last"]
    spool = await Spool.open(tmp_path, bytes_max=2**20)
    await spool.append(offered(*bodies[:3]))
    await spool.append(offered(bodies[3]))
    await (spool.close() if sealed else abandoned(spool))
    [segment] = segments(tmp_path)
    whole = segment.read_bytes()
    last = HEADER_BYTES + 3 * FRAME_BYTES + len(b"onetwothree")
    for at in range(len(whole)):
        folder = tmp_path / str(at)
        folder.mkdir()
        bad = bytearray(whole)
        bad[at] ^= 1 << at % 8
        here = folder / segment.name
        here.write_bytes(bad)
        caplog.clear()
        async with opened(folder) as spool:
            await spool.append(offered(b"four"))
            found = await drained(spool)
            await settled(spool)
            assert found[-1] == b"four"
            lost = [body for body in bodies if body not in found]
            assert found == [body for body in bodies if body not in lost] + [b"four"], "in order"
            in_record = HEADER_BYTES <= at < len(whole) - (SEAL_BYTES if sealed else 0)
            assert len(lost) == in_record
            torn = not sealed and at >= last  # a crash leaves the same
            if at >= len(whole) - SEAL_BYTES and sealed:
                torn = True
            aside = spool_files.set_aside_path(here)
            assert aside.exists() is not torn
            assert spool.files_set_aside == (not torn)
            assert spool.records_lost == (0 if torn else len(lost))
            assert spool.bytes == bytes_in(folder) == (0 if torn else len(whole))
        said = [record for record in caplog.records if record.levelno == logging.CRITICAL]
        assert len(said) == (not torn)
        if said:
            assert said[0].__dict__["file"] == str(here)
            assert said[0].__dict__["kept_as"] == str(aside)
            assert said[0].__dict__["records_lost"] == len(lost)
            assert aside.read_bytes() == bad
        async with opened(folder) as spool:
            assert spool.records == 0, "what was set aside is not published again"
            assert spool.files_set_aside == (not torn)
            assert spool.bytes == bytes_in(folder)


@pytest.mark.parametrize("sealed", [True, False])
async def test_holes_in_a_long_segment_cost_the_records_in_them_alone(tmp_path: Path, sealed: bool) -> None:
    """Also where a hole is longer than what is read at once."""
    spool = await Spool.open(tmp_path, bytes_max=2**30, segment_bytes=2**30)
    records = numbered(0, 4000, body_bytes=1000)
    for n in range(0, 4000, 500):
        await spool.append(records[n : n + 500])
    await (spool.close() if sealed else abandoned(spool))
    [segment] = segments(tmp_path)
    with segment.open("r+b") as file:
        for begin, length in ((3000, 10), (100_000, 1_500_000), (3_000_000, 4096)):
            file.seek(begin)
            file.write(bytes(length))
    async with opened(tmp_path) as spool:
        found: list[bytes] = []
        while spool.records:
            taken = await take(spool, 100)
            if len(found) % 300 == 0:
                spool.put_back(taken)
                taken = await take(spool, 70)
            found += taken.bodies
            spool.published(taken)
        numbers = [int(body) for body in found]
        assert numbers == sorted(set(numbers))
        assert spool.records_lost == 4000 - len(found)
        assert 1400 < spool.records_lost < 1430
        assert numbers[0:2] == [0, 1]
        assert numbers[-1] == 3999


async def test_the_last_records_of_a_sealed_segment_are_missed_when_they_are_damaged(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(numbered(0, 10))
    [segment] = segments(tmp_path)
    whole = segment.read_bytes()
    size = FRAME_BYTES + 20
    segment.write_bytes(whole[: -SEAL_BYTES - 2 * size] + bytes(2 * size) + whole[-SEAL_BYTES:])
    async with opened(tmp_path) as spool:
        await spool.append(numbered(10, 12))
        assert await drained(spool) == [body for _, body in numbered(0, 8) + numbered(10, 12)]
        assert spool.records_lost == 2
        assert spool.files_set_aside == 1


async def test_a_file_that_is_gone_is_said_and_the_spool_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(numbered(0, 10))
    await killed(tmp_path, numbered(10, 20))
    first = segments(tmp_path)[0]
    async with opened(tmp_path) as spool:
        first.unlink()
        assert await drained(spool) == [body for _, body in numbered(10, 20)]
        assert spool.records_lost == 10
        await settled(spool)
        assert segments(tmp_path) == []
    assert str(first) in [record.__dict__.get("file") for record in caplog.records]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("bad", [{0}, {3, 4}, {12}, {1, 12}, {*range(13)}], ids=str)
async def test_a_page_that_the_disk_cannot_read_costs_the_records_in_it_alone(
    tmp_path: Path, bad: set[int], sealed: bool
) -> None:
    records = numbered(0, 200, body_bytes=200)
    spool = await Spool.open(tmp_path, bytes_max=2**30)
    await spool.append(records)
    await (spool.close() if sealed else abandoned(spool))
    [segment] = segments(tmp_path)
    whole = segment.read_bytes()
    record_bytes = 200 + FRAME_BYTES
    assert len(whole) // 4096 == 12, "the number of the last page"

    def pages(n: int) -> set[int]:
        begin = HEADER_BYTES + n * record_bytes
        return set(range(begin // 4096, (begin + record_bytes - 1) // 4096 + 1))

    disk = FailingDisk(tmp_path)
    disk.bad_pages = {(segment, page) for page in bad}
    async with opened(tmp_path, files=disk) as spool:
        assert await drained(spool) == [body for n, (_, body) in enumerate(records) if not bad & pages(n)]
        await settled(spool)
        assert spool.records_lost >= 1
        assert spool_files.set_aside_path(segment).read_bytes() == whole, "nothing is cut off"


async def test_bodies_that_look_like_records_are_no_records(tmp_path: Path) -> None:
    await killed(tmp_path, offered(b"inner"))
    [segment] = segments(tmp_path)
    inner = segment.read_bytes()[HEADER_BYTES:]
    segment.unlink()
    await killed(tmp_path, offered(inner, inner * 3, b"last"))
    async with opened(tmp_path) as spool:
        assert await drained(spool) == [inner, inner * 3, b"last"]


async def test_a_segment_of_a_later_version_is_the_operators_to_decide(tmp_path: Path) -> None:
    await killed(tmp_path, offered(b"one"))
    [segment] = segments(tmp_path)
    later = spool_files._START.pack(spool_files._MAGIC, 2)
    later += spool_files._CRC.pack(isal_zlib.crc32(later)) + b"who knows"
    segment.write_bytes(later)
    for _ in range(2):
        with pytest.raises(FutureFormat, match="later version") as refused:
            await Spool.open(tmp_path, bytes_max=2**20)
        assert isinstance(refused.value, OperatorError)
        assert str(segment) in str(refused.value)
        assert segment.read_bytes() == later
    segment.unlink()
    async with opened(tmp_path) as spool:
        assert spool.records == 0, "and the lock is free"


async def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("ours")
    (tmp_path / "1.spool").write_text("ours")
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"one"))
        await drained(spool)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "1.spool").read_text() == "ours"


async def test_numbers_go_on_after_files_that_were_set_aside(tmp_path: Path) -> None:
    aside = spool_files.set_aside_path(spool_files.segment_path(tmp_path, 41))
    aside.write_bytes(b"damaged")
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"one"))
        assert segments(tmp_path) == [spool_files.segment_path(tmp_path, 42)]
        assert spool.bytes == bytes_in(tmp_path)
        assert spool.files_set_aside == 1
    assert aside.read_bytes() == b"damaged"


# --- what the broker does not take -----------------------------------------------------------------


async def test_records_set_aside_outlive_their_segment_and_come_back_with_the_next_process(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with opened(tmp_path, clock=clock) as spool:
        await spool.append(offered(b"small", b"large"))
        appended_s = clock.now_s
        clock.now_s += 100
        taken = await take(spool)
        path = await spool.set_aside(offered(b"large"), at=taken.oldest_at)
        spool.published(taken)
        await settled(spool)
        assert (spool.records, spool.records_too_large, segments(tmp_path)) == (0, 1, [])
        assert spool.bytes == bytes_in(tmp_path) == path.stat().st_size
        await spool.append(offered(b"more"))
        assert segments(tmp_path) == [spool_files.segment_path(tmp_path, 3)]
    async with opened(tmp_path) as spool:
        assert spool.bytes == bytes_in(tmp_path)
        assert (spool.records, spool.oldest_at) == (2, appended_s)
        taken = await take(spool)
        assert (taken.keys, taken.bodies) == ([ORG], [b"large"])
        spool.published(taken)
        assert await drained(spool) == [b"more"]
        await settled(spool)
        assert bytes_in(tmp_path) == spool.bytes == 0


async def test_records_that_cannot_be_set_aside_stay_where_they_are(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    spool = await Spool.open(tmp_path, bytes_max=2**30, files=disk)
    await spool.append(offered(b"large"))
    taken = await take(spool)
    for operation in ("create", "write", "sync"):
        disk.fail(operation, errno.ENOSPC)
        with pytest.raises(SpoolFailed, match="No space left"):
            await spool.set_aside(offered(b"large"), at=taken.oldest_at)
    assert (spool.records, spool.records_too_large) == (1, 0)
    assert spool.bytes == bytes_in(tmp_path)
    spool.put_back(taken)
    assert await drained(spool) == [b"large"]
    await spool.close()
    with pytest.raises(SpoolFailed, match="closed"):
        await spool.set_aside(offered(b"large"), at=taken.oldest_at)


async def test_damage_in_what_was_set_aside_is_damage(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        path = await spool.set_aside(numbered(0, 10), at=1.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    async with opened(tmp_path) as spool:
        assert len(await drained(spool)) == 9
        await settled(spool)
        assert (spool.records_lost, spool.files_set_aside) == (1, 1)
    async with opened(tmp_path) as spool:
        assert (spool.records, spool.files_set_aside) == (0, 1)
        assert spool.bytes == bytes_in(tmp_path)


# --- the folder -----------------------------------------------------------------------------------


async def test_the_folder_and_its_files_are_nobody_elses_to_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "not" / "there"
        async with opened(folder) as spool:
            await spool.append(offered(b"one"))
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
            assert len(modes) == 3
            assert modes.pop(folder) == 0o700
            assert set(modes.values()) == {0o600}
    finally:
        os.umask(before)


async def test_a_second_spool_in_the_folder_is_refused_with_the_folder_and_the_process(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"one"))
        with pytest.raises(SpoolUnusable, match=f"process {os.getpid()} on ") as refused:
            await Spool.open(tmp_path, bytes_max=2**20)
        assert str(tmp_path) in str(refused.value)
        assert await drained(spool) == [b"one"]
    async with opened(tmp_path) as spool:
        assert spool.records == 0


async def test_a_folder_that_cannot_be_a_spool_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SpoolUnusable, match="disk of this host") as refused:
            await Spool.open(folder, bytes_max=2**20)
        assert str(folder) in str(refused.value)


async def test_a_folder_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SpoolUnusable, match="cannot be written"):
        await Spool.open(tmp_path, bytes_max=2**20)


# --- one process has a folder, whatever is deleted in it ------------------------------------------


async def test_a_second_process_is_refused_also_where_the_lock_file_was_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"one"))
        (tmp_path / "lock").unlink()
        with pytest.raises(SpoolUnusable, match="another collector has the spool"):
            await Spool.open(tmp_path, bytes_max=2**20)
        await spool.append(offered(b"two"))
        assert await drained(spool) == [b"one", b"two"]


async def test_nothing_is_answered_for_a_segment_that_was_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.append(offered(b"one"))
        segments(tmp_path)[0].unlink()
        with pytest.raises(SpoolFailed, match="deleted or moved"):
            await spool.append(offered(b"two"))
        await spool.append(offered(b"three"))
        assert await drained(spool) == [b"three"]


async def test_a_folder_that_was_moved_away_takes_nothing_and_nothing_is_deleted_in_its_place(
    tmp_path: Path,
) -> None:
    folder, moved = tmp_path / "spool", tmp_path / "moved"
    async with opened(folder) as first:
        await first.append(offered(b"one"))
        taken = await take(first)
        folder.rename(moved)
        async with opened(folder) as second:
            await second.append(offered(b"two"))
            assert [path.name for path in segments(folder)] == [path.name for path in segments(moved)]
            with pytest.raises(SpoolFailed, match="deleted or moved"):
                await first.append(offered(b"three"))
            first.published(taken)
            await settled(first)
            assert len(segments(folder)) == 1, "the same name, and another process's file"
            assert await drained(second) == [b"two"]
    async with opened(moved) as spool:
        assert await drained(spool) == [b"one"]


async def test_a_segment_that_somebody_else_wrote_into_is_kept_for_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await killed(tmp_path / "other", offered(b"one", b"two"))
    whole = segments(tmp_path / "other")[0].read_bytes()
    await killed(tmp_path / "spool", offered(b"one"))
    path = segments(tmp_path / "spool")[0]
    async with opened(tmp_path / "spool") as spool:
        taken = await take(spool)
        path.write_bytes(whole)
        spool.published(taken)
        await settled(spool)
        assert "spool_segment_grew" in caplog.text
        assert spool.files_set_aside == 1
    async with opened(tmp_path / "spool") as spool:
        assert await drained(spool) == [b"one", b"two"]


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


# --- files that are not ours ----------------------------------------------------------------------


FOREIGN = b"notes of an operator\n" * 60


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "folder", "link to a segment"])
async def test_a_foreign_file_with_a_segments_name_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    await killed(folder, offered(b"one"))
    path = spool_files.segment_path(folder, 101)
    if kind == "link to a segment":
        await killed(tmp_path / "other", offered(b"two"))
        elsewhere = segments(tmp_path / "other")[0]
    else:
        elsewhere.write_bytes(FOREIGN)
    if kind == "file":
        path.write_bytes(FOREIGN)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)
    before = path.lstat()
    async with opened(folder) as spool:
        assert await drained(spool) == [b"one"]
        await settled(spool)
        assert spool.files_set_aside == 1
    assert os.path.samestat(path.lstat(), before)
    assert elsewhere.stat().st_size > 0
    assert "spool_file_not_ours" in caplog.text


@pytest.mark.parametrize("size", [0, 1, 8, 15, 16, 20])
async def test_what_a_killed_process_left_of_its_first_write_is_deleted_and_has_no_negative_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    await killed(tmp_path / "other", offered(b"one"))
    start = segments(tmp_path / "other")[0].read_bytes()[:size]
    folder = tmp_path / "spool"
    folder.mkdir()
    for number, left in enumerate((start, bytes(size))):
        spool_files.segment_path(folder, number).write_bytes(left)
    async with opened(folder) as spool:
        assert (segments(folder), spool.files_set_aside) == ([], 0)
    said = [record.__dict__ for record in caplog.records if record.message == "spool_empty_segment_deleted"]
    assert len(said) == 2
    assert all(each["bytes"] >= 0 for each in said)


async def test_a_segment_with_a_damaged_header_is_ours(tmp_path: Path) -> None:
    await killed(tmp_path, offered(b"one", b"two"))
    path = segments(tmp_path)[0]
    path.write_bytes(b"?" * 8 + path.read_bytes()[8:])
    async with opened(tmp_path) as spool:
        assert await drained(spool) == [b"one", b"two"]
