"""The spool: durable before the answer, in order, bounded, and what the broker does not take."""

from __future__ import annotations

import asyncio
import errno
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.collector import spool_files
from pipeline.collector.spool import Spool, SpoolFailed, SpoolFull
from tests.support.failing_disk import FailingDisk
from tests.support.spools import (
    FRAME_BYTES,
    ORG,
    Clock,
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


# --- what the broker does not take ----------------------------------------------------------------


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
