"""How a process takes a spool over, and what it makes of the files that it finds.

One process has the folder at a time: a lock on the folder itself says so, which ends with the process. The
file ``lock`` in it names the process, and nothing depends on it.

A process that was killed leaves one segment without a seal. Its last write may be torn: the tail is cut off.
A segment with damage in its middle stays, and is read as far as it can be (`spool_files.read`).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.collector import spool_files
from pipeline.collector.spool_files import (
    HEADER_BYTES,
    SEAL_BYTES,
    TORN_BYTES_MAX,
    Extent,
    Files,
    FutureFormat,
    reading,
    say_damaged,
    set_aside_path,
)
from pipeline.common import folder_lock, private
from pipeline.common.operator import OperatorError

_NAME: Final = re.compile(r"([0-9]{20})\.spool(?:\.too-large)?(\.damaged)?")
_HOLDER: Final = "lock"
_REMEDY: Final = "give the collector a folder on a disk of this host that its user may write"
_NEWER: Final = "start that version until the spool is empty, or move the file away and keep it"

log = logging.getLogger(__name__)


class SpoolUnusable(OperatorError):
    """The folder cannot be a spool: it cannot be written, or another process has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A segment of an earlier process, with at least one record to be published."""

    number: int
    path: Path
    file_bytes: int
    first: Extent
    end: int
    oldest_us: int
    lost: int
    """Records that were durable and cannot be read."""
    torn: int
    """Records of the last write that a power failure has spoiled, before others that can be read."""
    damaged: bool


@dataclass(slots=True)
class Recovered:
    segments: list[Found] = field(default_factory=list)
    next_number: int = 1
    set_aside: int = 0
    set_aside_bytes: int = 0
    lost: int = 0


def take_over(folder: Path, files: Files) -> tuple[int, Recovered]:
    """Make the folder, lock it, and look through it: the lock's descriptor, and what earlier processes left.

    The folder gets mode 0700 if it is new. Its name and those of new folders above it are synced. Raises
    SpoolUnusable and FutureFormat.
    """
    lock_fd = -1
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        private.make_folder(folder, below=folder)
        for each in missing:
            files.sync_folder(each.parent)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise SpoolUnusable(f"the spool {folder} cannot be written: {_REMEDY}")
        lock_fd = _locked(folder)
        return lock_fd, recover(files, folder)
    except BaseException as error:
        if lock_fd >= 0:
            os.close(lock_fd)
        if isinstance(error, OSError):
            raise SpoolUnusable(f"the spool {folder} cannot be used ({error}): {_REMEDY}") from error
        raise


def _locked(folder: Path) -> int:
    """Take the lock, which ends with this process, and write into a file who has it."""
    note = folder / _HOLDER
    try:
        fd = folder_lock.taken(folder)
    except BlockingIOError:
        holder = ""
        with suppress(OSError):
            holder = note.read_bytes()[:300].decode(errors="replace").strip()
        raise SpoolUnusable(
            f"another collector has the spool {folder}: {holder or 'a process that is not known'}. Stop that"
            " one, or give this one a folder of its own"
        ) from None
    try:
        with open(note, "w", opener=private.opener) as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    except OSError as error:  # such as a full disk. The records that are there can be published all the same
        log.warning("spool_holder_not_noted", extra={"file": str(note), "error": str(error)})
    return fd


def recover(files: Files, folder: Path) -> Recovered:
    """Look through the folder: cut torn tails off, and find what is to be published.

    A sealed segment is not read here; its seal says how many records it has. So a start reads one segment for
    each process that was killed, and not all of a large spool.

    Raises FutureFormat, and OSError.
    """
    found = Recovered()
    names = sorted(filter(None, map(_NAME.fullmatch, os.listdir(folder))), key=lambda name: name[0])
    for name in names:
        path, number = folder / name[0], int(name[1])
        found.next_number = max(found.next_number, number + 1)
        if name[2]:
            found.set_aside += 1
            found.set_aside_bytes += path.stat().st_size
            continue
        if not stat.S_ISREG(path.lstat().st_mode) or not spool_files.is_ours(files, path):
            _leave(path, found)
            continue
        segment = _look_through(files, path, number)
        if segment is None:
            files.delete(path)
            continue
        found.lost += segment.lost
        if segment.first.index < segment.first.until:
            found.segments.append(segment)
        else:
            files.rename(path, set_aside_path(path))
            found.set_aside += 1
            found.set_aside_bytes += segment.file_bytes
    return found


def _leave(path: Path, found: Recovered) -> None:
    """Leave a file alone that has the name of a segment, and that no spool has written."""
    found.set_aside += 1
    with suppress(OSError):
        found.set_aside_bytes += path.lstat().st_size
    log.error(
        "spool_file_not_ours",
        extra={
            "file": str(path),
            "effect": "it is left as it is",
            "remedy": "move it out of the spool's folder",
        },
    )


def _look_through(files: Files, path: Path, number: int) -> Found | None:
    """One segment; None if no record of it was ever durable."""
    with reading(files, path) as reader:
        size = reader.end
        try:
            whole = reader.header()
        except FutureFormat as fault:
            raise FutureFormat(f"a later version of Spendstream wrote {path} ({fault}): {_NEWER}") from None
        if whole and (seal := reader.seal()) is not None:
            records, first_us = seal
            return Found(
                number=number,
                path=path,
                file_bytes=size,
                first=Extent(HEADER_BYTES, 0, records),
                end=size - SEAL_BYTES,
                oldest_us=first_us,
                lost=0,
                torn=0,
                damaged=False,
            )
        first, last_write, position, index = None, 0, HEADER_BYTES, 0
        gaps: list[tuple[int, int]] = []
        while record := reader.next_record(position, index):
            if record.index > index:
                gaps.append((index, record.index))
            elif record.position != position:
                whole = False
            first = first or record
            last_write = max(last_write, record.write)
            position, index = record.end, record.index + 1
    bad_bytes = max(0, size - position)
    # The writes before the last one were synced, and no crash makes a page unreadable. So what is missing is
    # the trace of a crash only if it belongs to the last write.
    excused_from = index if reader.unreadable else last_write
    lost = sum(max(0, min(until, excused_from) - begin) for begin, until in gaps)
    torn = sum(until - begin for begin, until in gaps) - lost
    damaged = lost > 0 or reader.unreadable or (not whole and last_write > 0)
    if bad_bytes > TORN_BYTES_MAX or (bad_bytes and reader.unreadable):
        damaged = True
        lost += 1  # or more: nobody knows
    facts = {"file": str(path), "position": position, "bytes": bad_bytes, "records_missing": torn}
    if damaged:
        say_damaged(path, lost)
    elif first is None:
        log.warning("spool_empty_segment_deleted", extra=facts)
        return None
    elif bad_bytes or torn:
        if bad_bytes:
            _cut(files, path, position)
            size = position
        log.warning("spool_tail_cut", extra=facts)
    return Found(
        number=number,
        path=path,
        file_bytes=size,
        first=Extent(first.position, first.index, index) if first else Extent(0, 0, 0),
        end=position,
        oldest_us=first.at_us if first else 0,
        lost=lost,
        torn=torn,
        damaged=damaged,
    )


def _cut(files: Files, path: Path, end: int) -> None:
    fd = files.open(path, write=True)
    try:
        files.truncate(fd, end)
        files.sync(fd)
    finally:
        files.close(fd)
