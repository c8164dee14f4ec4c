"""A spool's folder: one process has it, and files in it that are not ours are left alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.collector import spool_files
from pipeline.collector.spool import Spool, SpoolFailed
from pipeline.collector.spool_recovery import SpoolUnusable
from tests.support.spools import drained, killed, offered, opened, segments, settled, take

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
