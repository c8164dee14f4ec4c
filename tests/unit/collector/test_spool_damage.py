"""A spool's files with torn tails and damage: what is lost, what is found, and what is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from isal import isal_zlib

from pipeline.collector import spool_files
from pipeline.collector.spool import Spool
from pipeline.collector.spool_files import FutureFormat
from pipeline.common.operator import OperatorError
from tests.support.failing_disk import FailingDisk
from tests.support.spools import (
    FRAME_BYTES,
    HEADER_BYTES,
    SEAL_BYTES,
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
