"""The embedded log on disk: torn tails, rolls, retention, damage, and writers side by side."""

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common import folder_lock
from pipeline.config import StreamConfig
from pipeline.transports import TransportError
from pipeline.transports.embedded import log_files as segments
from pipeline.transports.embedded.log_files import (
    DamagedLog,
    LogReader,
    LogWriter,
    segment_bases,
    segment_path,
)
from pipeline.transports.embedded.transport import EmbeddedTransport


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def writer_of(folder: Path, *, clock: Clock | None = None, **limits: int) -> LogWriter:
    settings = {"max_bytes": 2**30, "max_age_s": 10**9, "segment_bytes": 2**20} | limits
    return LogWriter(folder, clock=clock or Clock(), **settings)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    writer = writer_of(tmp_path)
    yield writer
    writer.close()


def append(folder: Path, *bodies: bytes, clock: Clock | None = None, **limits: int) -> int:
    """Append as a process that starts, appends once and ends."""
    writer = writer_of(folder, clock=clock, **limits)
    try:
        return writer.append(bodies)
    finally:
        writer.close()


def stored(folder: Path, from_offset: int = 0) -> list[bytes]:
    """All a reader gets, with the offsets checked."""
    reader = LogReader(folder, from_offset)
    bodies: list[bytes] = []
    try:
        while chunk := reader.peek():
            assert chunk.first_offset <= from_offset + len(bodies) < chunk.next_offset
            bodies += chunk.bodies(from_offset + len(bodies))
            reader.advance(chunk)
            assert reader.next_offset == from_offset + len(bodies)
    finally:
        reader.close()
    return bodies


# --- torn tails ---------------------------------------------------------------------------------


def test_a_tail_torn_at_any_byte_is_invisible_and_cut_off(tmp_path: Path) -> None:
    append(tmp_path, b"one", b"two")
    segment = segment_path(tmp_path, 0)
    whole_bytes = segment.stat().st_size
    append(tmp_path, b"three", b"")
    both = segment.read_bytes()
    for torn_bytes in range(whole_bytes, len(both)):
        segment.write_bytes(both[:torn_bytes])
        assert stored(tmp_path) == [b"one", b"two"]
        assert append(tmp_path, b"again") == 3
        assert stored(tmp_path) == [b"one", b"two", b"again"]
    segment.write_bytes(both)
    assert append(tmp_path, b"five") == 5
    assert stored(tmp_path) == [b"one", b"two", b"three", b"", b"five"]


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"S"])
def test_a_tail_of_pages_that_were_never_written_is_cut_off(tmp_path: Path, fill: bytes) -> None:
    append(tmp_path, b"one")
    with segment_path(tmp_path, 0).open("ab") as file:
        file.write(fill * 5000)
    assert stored(tmp_path) == [b"one"]
    assert append(tmp_path, b"two") == 2
    assert stored(tmp_path) == [b"one", b"two"]
    assert segment_path(tmp_path, 0).stat().st_size == 2 * (segments.HEADER_BYTES + 4 + 3)


def test_any_flipped_bit_of_the_last_chunk_hides_it_whole(tmp_path: Path) -> None:
    append(tmp_path, b"one")
    start = segment_path(tmp_path, 0).stat().st_size
    append(tmp_path, b"two", b"three")
    good = segment_path(tmp_path, 0).read_bytes()
    for at in range(start, len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        segment_path(tmp_path, 0).write_bytes(bad)
        assert stored(tmp_path) == [b"one"]


def test_a_reader_waits_before_a_torn_tail_and_goes_on_after_its_repair(tmp_path: Path) -> None:
    append(tmp_path, b"one")
    segment = segment_path(tmp_path, 0)
    good = segment.read_bytes()
    reader = LogReader(tmp_path, 0)
    chunk = reader.peek()
    assert chunk is not None
    reader.advance(chunk)
    with segment.open("ab") as file:
        file.write(good[:-1])
    assert reader.peek() is None
    assert reader.peek() is None
    append(tmp_path, b"two")
    chunk = reader.peek()
    assert chunk is not None
    assert chunk.bodies(1) == [b"two"]
    reader.close()


def test_a_failed_write_is_repaired_by_the_next_append(
    tmp_path: Path, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.append([b"one"])
    pwrite = os.pwrite

    def full_disk(fd: int, data: bytes, position: int) -> int:
        monkeypatch.setattr(os, "pwrite", fails)
        return pwrite(fd, bytes(data)[:10], position)

    def fails(fd: int, data: bytes, position: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.append([b"two"])
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert stored(tmp_path) == [b"one"]
    assert writer.append([b"two"]) == 2
    assert stored(tmp_path) == [b"one", b"two"]


def test_an_append_whose_sync_failed_is_counted_by_the_next(
    tmp_path: Path, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be on disk: its publisher was told of the failure and sends it again under new offsets."""

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="Input/output"):
            writer.append([b"one"])
    assert writer.append([b"one"]) == 2
    assert stored(tmp_path) == [b"one", b"one"]


# --- damage ---------------------------------------------------------------------------------------


def test_damage_before_good_chunks_is_refused_by_writers_and_readers(tmp_path: Path) -> None:
    for body in (b"one", b"two", b"three"):
        append(tmp_path, body)
    segment = segment_path(tmp_path, 0)
    bad = bytearray(segment.read_bytes())
    bad[len(bad) // 2] ^= 1
    segment.write_bytes(bad)
    with pytest.raises(DamagedLog, match="damaged at byte"):
        append(tmp_path, b"four")
    with pytest.raises(DamagedLog, match="offset 1"):
        stored(tmp_path)
    assert segment.read_bytes() == bad


def test_a_missing_segment_in_the_middle_is_refused(tmp_path: Path) -> None:
    for body in (b"one", b"two", b"three"):
        append(tmp_path, body, segment_bytes=1)
    assert segment_bases(tmp_path) == [0, 1, 2]
    segment_path(tmp_path, 1).unlink()
    with pytest.raises(DamagedLog, match="offset 1"):
        stored(tmp_path)
    with pytest.raises(DamagedLog):
        stored(tmp_path, from_offset=1)


def test_a_segment_cut_short_before_a_later_one_is_refused(tmp_path: Path) -> None:
    for body in (b"one", b"two"):
        append(tmp_path, body, segment_bytes=1)
    os.truncate(segment_path(tmp_path, 0), segment_path(tmp_path, 0).stat().st_size - 1)
    with pytest.raises(DamagedLog):
        stored(tmp_path)


def test_a_log_deleted_under_its_users_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    writer = writer_of(folder)
    writer.append([b"one"])
    reader = LogReader(folder, 0)
    chunk = reader.peek()
    assert chunk is not None
    reader.advance(chunk)
    shutil.rmtree(folder)
    folder.mkdir()
    append(folder, b"another")
    with pytest.raises(FileNotFoundError):
        reader.peek()
    with pytest.raises(FileNotFoundError):
        writer.append([b"two"])
    assert stored(folder) == [b"another"]
    reader.close()
    writer.close()


# --- segments and retention -------------------------------------------------------------------------


def test_segments_roll_and_read_as_one(tmp_path: Path, writer: LogWriter) -> None:
    small = writer_of(tmp_path, segment_bytes=100)
    for n in range(20):
        small.append([b"%d" % n, b"x" * n])
    small.close()
    assert len(segment_bases(tmp_path)) > 3
    expected = [body for n in range(20) for body in (b"%d" % n, b"x" * n)]
    for offset in range(41):
        assert stored(tmp_path, offset) == expected[offset:]
    assert writer.append([]) == 40


@pytest.mark.parametrize("torn_bytes", [0, 1, 20, 40])
def test_a_crash_in_the_middle_of_a_roll_loses_nothing(tmp_path: Path, torn_bytes: int) -> None:
    clock = Clock()
    append(tmp_path, b"one", clock=clock)
    torn = segments.encode_chunk(first_offset=1, timestamp_us=0, bodies=[b"two", b"three"])[:torn_bytes]
    segment_path(tmp_path, 1).write_bytes(torn)
    reader = LogReader(tmp_path, 0)
    chunk = reader.peek()
    assert chunk is not None
    reader.advance(chunk)
    assert reader.peek() is None
    clock.now_s -= 100
    append(tmp_path, b"two", clock=clock)
    following = reader.peek()
    assert following is not None
    assert following.bodies(1) == [b"two"]
    assert following.timestamp_us >= chunk.timestamp_us
    assert segment_bases(tmp_path) == [0, 1]
    reader.close()


def test_old_segments_go_at_the_size_bound(tmp_path: Path) -> None:
    writer = writer_of(tmp_path, segment_bytes=1000, max_bytes=5000)
    for _ in range(100):
        writer.append([b"x" * 400])
    writer.close()
    sizes = [segment_path(tmp_path, base).stat().st_size for base in segment_bases(tmp_path)]
    assert 4000 <= sum(sizes) <= 5000 + 2000
    first_offset = segment_bases(tmp_path)[0]
    assert first_offset > 0
    assert len(stored(tmp_path, first_offset)) == 100 - first_offset
    with pytest.raises(LookupError):
        stored(tmp_path, 0)


def test_old_segments_go_at_the_age_bound(tmp_path: Path) -> None:
    clock = Clock()
    writer = writer_of(tmp_path, clock=clock, segment_bytes=1, max_age_s=60)
    for _ in range(10):
        writer.append([b"x"])
        clock.now_s += 20
    writer.close()
    # Segments hold times 0, 20, ... 180; one goes when all of it is older than 180 - 60.
    assert segment_bases(tmp_path) == [5, 6, 7, 8, 9]


def test_a_slow_reader_finishes_its_segment_and_is_then_told(tmp_path: Path) -> None:
    writer = writer_of(tmp_path, segment_bytes=100, max_bytes=300)
    writer.append([b"x" * 60])
    writer.append([b"y" * 60])
    reader = LogReader(tmp_path, 0)
    assert reader.peek()
    for _ in range(20):
        writer.append([b"z" * 100])
    writer.close()
    for _ in range(2):
        chunk = reader.peek()
        assert chunk is not None
        reader.advance(chunk)
    with pytest.raises(LookupError) as gone:
        reader.peek()
    assert reader.next_offset == 2
    assert gone.value.args[0] == segment_bases(tmp_path)[0] > 2
    reader.close()


# --- time, limits, writers -----------------------------------------------------------------------


def test_timestamps_never_go_backwards_also_over_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    timestamps_us = []
    for step_s in (0, -50, 10, -1000, 2000):
        clock.now_s += step_s
        append(tmp_path, b"x", clock=clock, segment_bytes=1)
    reader = LogReader(tmp_path, 0)
    while chunk := reader.peek():
        timestamps_us.append(chunk.timestamp_us)
        reader.advance(chunk)
    reader.close()
    start_us = 1_700_000_000_000_000
    assert timestamps_us == [start_us, start_us, start_us, start_us, start_us + 960_000_000]


@given(st.lists(st.integers(0, 50), max_size=60))
def test_a_publish_is_split_within_both_limits(sizes: list[int]) -> None:
    bodies = [b"x" * size for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "RECORDS_PER_CHUNK_MAX", 7)
        patch.setattr(segments, "PAYLOAD_BYTES_MAX", 60)
        parts = list(segments.split(bodies))
    assert [body for part in parts for body in part] == bodies
    for part in parts:
        assert 1 <= len(part) <= 7
        assert len(part) == 1 or sum(4 + len(body) for body in part) <= 60


def test_a_publish_is_one_chunk_up_to_the_limits(tmp_path: Path, writer: LogWriter) -> None:
    writer.append([b"x"] * segments.RECORDS_PER_CHUNK_MAX)
    writer.append([b"x"] * (segments.RECORDS_PER_CHUNK_MAX + 1))
    counts = [chunk.records for chunk in segments.scan(tmp_path, 0)]
    assert counts == [4096, 4096, 1]


# --- the transport around it ------------------------------------------------------------------------


def transport_of(folder: Path, *, max_bytes: int = 20 * 2**30) -> EmbeddedTransport:
    config = StreamConfig(url=f"embedded://{folder}", stream="a/b c", consumer="test", max_bytes=max_bytes)
    return EmbeddedTransport(config)


async def test_records_are_synced_before_they_are_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not take back what a reader has counted."""
    transport = transport_of(tmp_path)
    await transport.open()
    publisher = await transport.publisher()
    await publisher.publish([b"one"])
    subscription = await transport.subscribe(partition=0, offset=0)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    await subscription.receive()
    assert len(synced) == 1
    await transport.close()


async def test_retention_that_overtakes_a_reader_ends_its_subscription(tmp_path: Path) -> None:
    transport = transport_of(tmp_path, max_bytes=64 * 1024)
    await transport.open()
    publisher = await transport.publisher()
    await publisher.publish([b"x" * 1000] * 10)
    subscription = await transport.subscribe(partition=0, offset=0, credit=1)
    await subscription.receive()
    for _ in range(50):
        await publisher.publish([b"x" * 1000] * 10)
    subscription.grant()
    for _ in range(2):
        with pytest.raises(TransportError, match="retention overtook"):
            await subscription.receive()
    await transport.close()


async def test_lag_survives_retention_that_took_what_it_last_looked_at(tmp_path: Path) -> None:
    transport = transport_of(tmp_path, max_bytes=64 * 1024)
    await transport.open()
    publisher = await transport.publisher()
    await publisher.publish([b"x"])
    subscription = await transport.subscribe(partition=0, offset=0)
    assert await subscription.offset_lag(0) == 1
    for _ in range(50):
        await publisher.publish([b"x" * 1000] * 10)
    assert await subscription.offset_lag(0) == 501
    await transport.close()


async def test_a_damaged_log_is_a_transport_error(tmp_path: Path) -> None:
    transport = transport_of(tmp_path)
    await transport.open()
    publisher = await transport.publisher()
    for _ in range(3):
        await publisher.publish([b"x" * 100])
    segment = segment_path(tmp_path / "a%2Fb%20c", 0)
    bad = bytearray(segment.read_bytes())
    bad[150] ^= 1
    segment.write_bytes(bad)
    subscription = await transport.subscribe(partition=0, offset=0)
    async with asyncio.timeout(60):
        await subscription.receive()
        with pytest.raises(TransportError, match="damaged"):
            await subscription.receive()
    await transport.close()


async def test_a_folder_that_cannot_be_made_is_a_transport_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TransportError, match="cannot be used"):
        await transport_of(tmp_path / "file").open()


@pytest.mark.parametrize("url", ["embedded://host/folder", "embedded:relative", "file:///x", "embedded://"])
def test_only_an_absolute_folder_is_accepted(url: str) -> None:
    with pytest.raises(ValueError, match="embedded:///absolute/folder"):
        EmbeddedTransport(StreamConfig(url=url, stream="s", consumer="c"))


def test_writers_keep_each_other_out_whatever_is_deleted_in_the_folder(
    tmp_path: Path, writer: LogWriter
) -> None:
    writer.append([b"one"])
    fd = folder_lock.taken(tmp_path)
    try:
        for path in tmp_path.iterdir():
            if path.suffix != ".seg":
                path.unlink()
        appending = threading.Thread(target=append, args=(tmp_path, b"two"))
        appending.start()
        appending.join(0.2)
        assert appending.is_alive(), "the lock is ours, so the other writer waits"
    finally:
        os.close(fd)
    appending.join(20)
    assert stored(tmp_path) == [b"one", b"two"]


def test_a_writer_whose_folder_was_moved_away_writes_into_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    writer = writer_of(folder)
    writer.append([b"one"])
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    with pytest.raises(FileNotFoundError):
        writer.append([b"two"])
    writer.close()
    assert stored(folder) == []
    assert stored(tmp_path / "moved") == [b"one"]


def test_foreign_files_in_the_folder_are_no_segments_and_stay(tmp_path: Path) -> None:
    foreign = [tmp_path / name for name in ("notes.seg", "7.seg", "00000000000000000000.seg.old")]
    for path in foreign:
        path.write_bytes(b"notes")
    for number in range(40):
        append(tmp_path, b"%d" % number * 100, max_bytes=2000, segment_bytes=1)
    assert len(segment_bases(tmp_path)) < 40, "old segments went"
    assert [path.read_bytes() for path in foreign] == [b"notes"] * 3
