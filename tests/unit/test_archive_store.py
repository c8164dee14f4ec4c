"""The folder of an archive: a name has its whole file or none, and nothing else stays beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.archive.store import Folder, StoreError

NAME = "day=2026-11-30/hour=07/0-1-2.parquet"


def held(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            Folder(tmp_path).write(NAME, b"whole")
    assert held(tmp_path) == []
    Folder(tmp_path).write(NAME, b"whole")
    assert held(tmp_path) == [NAME]


def test_the_next_write_removes_what_an_earlier_process_left_of_the_same_file(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.write(NAME, b"whole")
    place = (tmp_path / NAME).parent
    (place / ".0-1-2.parquet.4711.part").write_bytes(b"wh")
    other = place / ".0-2-3.parquet.4711.part"
    other.write_bytes(b"of another file, perhaps in work")
    store.write(NAME, b"whole")
    assert held(tmp_path) == sorted([NAME, str(other.relative_to(tmp_path))])
    assert store.read(NAME) == b"whole"
