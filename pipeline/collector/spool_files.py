"""The files of a spool: their format, how they are written, how they are read, and what damage does to them.

The module is synchronous. `pipeline.collector.spool` calls it in threads, and decides which records go where.

A segment is one file, ``<number>.spool``, or ``<number>.spool.too-large`` with records that the broker did
not take. It has a header, then records, then a seal if it was finished in
good order. All numbers are big-endian.

| part   | bytes                                                                                          |
| ------ | ---------------------------------------------------------------------------------------------- |
| header | magic (8), version of the format (4), CRC-32 of the two (4); later versions begin like this    |
| record | mark (4), index (4), index of the first record of the same write (4), time in us (8),          |
|        | key bytes (2), body bytes (4), CRC-32 (4), key, body                                           |
| seal   | as the head of a record, with another mark: number of records, 0, time of the first record, 0, |
|        | position of the seal, CRC-32                                                                   |

The index counts the records of a segment from 0 on. So a reader that finds its way again behind damaged bytes
knows how many records it missed. The first byte of both marks occurs in no UTF-8 text. So a body that is JSON
cannot hold bytes that pass for a record.

Each write is followed by a sync, and has at most `WRITE_BYTES_MAX` and one record. A crash can spoil only the
last write of a segment without a seal: its tail may be missing, and after a power failure also pages in its
middle. Other bad bytes are damage.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isal import isal_zlib

from pipeline.common import folder_lock
from pipeline.common.operator import OperatorError
from pipeline.common.private import FILE_MODE

VERSION: Final = 1
KEY_BYTES_MAX: Final = 2**16 - 1
BODY_BYTES_MAX: Final = 2**20
WRITE_BYTES_MAX: Final = 4 * 2**20

_MAGIC: Final = b"SPNDSPL\n"
_RECORD: Final = b"\xffREC"
_SEAL: Final = b"\xffEND"
_START: Final = struct.Struct(">8sI")
_PREFIX: Final = struct.Struct(">4sIIQHI")
_CRC: Final = struct.Struct(">I")
HEADER_BYTES: Final = _START.size + _CRC.size
RECORD_HEAD_BYTES: Final = _PREFIX.size + _CRC.size
SEAL_BYTES: Final = RECORD_HEAD_BYTES
RECORD_BYTES_MAX: Final = RECORD_HEAD_BYTES + KEY_BYTES_MAX + BODY_BYTES_MAX
TORN_BYTES_MAX: Final = HEADER_BYTES + WRITE_BYTES_MAX + RECORD_BYTES_MAX + SEAL_BYTES
"""What a crash can leave of one write at most."""

_PAGE_BYTES: Final = 4096
_READ_BYTES: Final = 2**20

log = logging.getLogger(__name__)


class FutureFormat(OperatorError):
    """A later version of Spendstream wrote a segment. Its records cannot be read, and stay."""


class Files:
    """The calls to the file system that a spool makes. Tests put one that fails in its place.

    Each method passes OSError on.
    """

    def create(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(path, flags, FILE_MODE)

    def open(self, path: Path, *, write: bool = False) -> int:
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def read(self, fd: int, size: int, position: int) -> bytes:
        return os.pread(fd, size, position)

    def write(self, fd: int, data: memoryview, position: int) -> int:
        """Write some of the data; returns how many bytes."""
        return os.pwrite(fd, data, position)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when what was written is on the disk, and the size of the file with it."""
        os.fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in the folder are on the disk."""
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def is_at(self, fd: int, path: Path) -> bool:
        """Does the path lead to the open file? Not if somebody deleted the file, or moved its folder."""
        return folder_lock.is_there(path, fd)

    def size(self, path: Path) -> int:
        return os.stat(path).st_size

    def try_room(self, folder: Path, size: int) -> None:
        """Write and sync so many bytes into a file without a name, which is gone at once."""
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            rest = memoryview(bytes(size))
            while rest:
                rest = rest[file.write(rest) :]
            os.fdatasync(file.fileno())

    def close(self, fd: int) -> None:
        os.close(fd)

    def delete(self, path: Path) -> None:
        os.unlink(path)

    def rename(self, path: Path, new: Path) -> None:
        os.rename(path, new)


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:020d}.spool"


def too_large_path(folder: Path, number: int) -> Path:
    """The name of a segment of records that the broker did not take, because they are too large."""
    return folder / f"{number:020d}.spool.too-large"


def set_aside_path(path: Path) -> Path:
    """The name of a damaged segment, once everything that can be read of it is published."""
    return path.with_name(f"{path.name}.damaged")


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """Records of one append, as (key, body), and when they came."""

    pairs: Sequence[tuple[bytes, bytes]]
    at_us: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """The bytes of one write; where its last record ends, and how many records the segment has then."""

    data: bytes
    end: int
    records: int


class SegmentWriter:
    """Writes one new segment. Not safe to call from several threads at once."""

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self.end = 0
        """The position after the last durable record; 0 if there is none."""
        self.records = 0
        """Durable records."""
        self.file_bytes = 0
        self.sealed = False
        self._files = files
        self._first_us = 0
        self._sync_failed = False
        self._fd = -1

    def append(self, offers: Sequence[Offer], *, seal_from: int) -> None:
        """Write the records and sync them. The segment is sealed if it then has ``seal_from`` bytes.

        Raises OSError: nothing of the offers is durable for certain, and the segment takes no more. Call
        `abandon`.
        """
        new = self._fd < 0
        if new:
            self._fd = self._files.create(self.path)
            self._first_us = offers[0].at_us
        position, end, records = self.end, self.end, self.records
        for piece in self._pieces(offers, seal_from):
            self._write(piece.data, position)
            position += len(piece.data)
            end, records = piece.end, piece.records
        if new:
            self._files.sync_folder(self.path.parent)
        if not self._files.is_at(self._fd, self.path):
            raise OSError(errno.ESTALE, "somebody deleted or moved the file", str(self.path))
        self.end, self.records, self.file_bytes = end, records, position
        self.sealed = position > end
        if self.sealed:
            self._close()

    def seal(self) -> None:
        """Write the seal, and close the file. Raises OSError; then call `abandon`."""
        self._write(_seal(self.records, self._first_us, self.end), self.end)
        self.file_bytes, self.sealed = self.end + SEAL_BYTES, True
        self._close()

    def abandon(self) -> None:
        """Cut off what is not durable, and close the file; delete a file without durable records.

        Never raises. `file_bytes` is what the file takes up then.

        After a failed sync the kernel may call pages clean that are not on the disk, so the file gets no more
        records. The last durable record may share its page with the first that failed, and that page on the
        disk may hold anything. So that page is written again.
        """
        if self._fd < 0:
            return
        try:
            if self.records == 0:
                if self._files.is_at(self._fd, self.path):  # else it is somebody else's
                    self._delete()
                self.file_bytes = 0
            else:
                self._cut_back()
                self.file_bytes = self.end
        except OSError as error:
            with suppress(OSError):
                self.file_bytes = self.path.stat().st_size
            facts = {"file": str(self.path), "position": self.end, "error": str(error)}
            if self.records:
                effect = f"if this host loses power soon, some of the {self.records} records may be lost"
                log.critical("spool_segment_not_cut", extra={**facts, "effect": effect})
            else:
                log.error("spool_segment_not_deleted", extra=facts)
        self._close()

    def _delete(self) -> None:
        """Delete the file. If that fails, leave it empty: where a sync has failed, the disk may hold
        anything, and a later start could not tell whose file it is."""
        try:
            self._files.delete(self.path)
        except OSError:
            self._files.truncate(self._fd, 0)
            self._files.sync(self._fd)
            raise

    def _cut_back(self) -> None:
        page = self.end - self.end % _PAGE_BYTES
        kept = self._files.read(self._fd, self.end - page, page)
        self._files.truncate(self._fd, self.end)
        if self._sync_failed:
            self._write(kept, page)
        else:
            self._files.sync(self._fd)

    def close(self) -> None:
        """Close the file as it is. Never raises."""
        self._close()

    def _pieces(self, offers: Sequence[Offer], seal_from: int) -> Iterator[_Piece]:
        end, index = self.end or HEADER_BYTES, self.records
        write = index
        parts = [] if self.end else [_header()]
        wait_bytes = 0
        prefix_of, crc_of, crc32 = _PREFIX.pack, _CRC.pack, isal_zlib.crc32
        for offer in offers:
            at_us = offer.at_us
            for key, body in offer.pairs:
                prefix = prefix_of(_RECORD, index, write, at_us, len(key), len(body))
                parts += (prefix, crc_of(crc32(body, crc32(key, crc32(prefix)))), key, body)
                index += 1
                wait_bytes += RECORD_HEAD_BYTES + len(key) + len(body)
                if wait_bytes >= WRITE_BYTES_MAX:
                    end += wait_bytes
                    yield _Piece(b"".join(parts), end, index)
                    parts, wait_bytes, write = [], 0, index
        end += wait_bytes
        if end >= seal_from:
            parts.append(_seal(index, self._first_us, end))
        if parts:
            yield _Piece(b"".join(parts), end, index)

    def _write(self, data: bytes, position: int) -> None:
        rest = memoryview(data)
        while rest:
            written = self._files.write(self._fd, rest, position)
            if written <= 0:
                raise OSError(errno.EIO, "the file system takes no bytes")
            rest = rest[written:]
            position += written
        try:
            self._files.sync(self._fd)
        except OSError:
            self._sync_failed = True
            raise

    def _close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                self._files.close(self._fd)
        self._fd = -1


def _header() -> bytes:
    start = _START.pack(_MAGIC, VERSION)
    return start + _CRC.pack(isal_zlib.crc32(start))


def _seal(records: int, first_us: int, end: int) -> bytes:
    prefix = _PREFIX.pack(_SEAL, records, 0, first_us, 0, end & 0xFFFFFFFF)
    return prefix + _CRC.pack(isal_zlib.crc32(prefix))


# --- reading --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """A record, and the bytes of the file that it takes up: [position, end)."""

    index: int
    write: int
    """The index of the first record that was written with this one."""
    at_us: int
    key: bytes
    body: bytes
    position: int
    end: int


class SegmentReader:
    """Records of one segment, by position. Reads ``ahead_bytes`` at once, or more if a record is larger.

    Raises OSError, but not EIO: a page that the disk cannot read is damage, and reads as zeros.
    """

    def __init__(self, files: Files, fd: int, end: int, ahead_bytes: int) -> None:
        self._files = files
        self._fd = fd
        self.end = end
        """Records end here at the latest."""
        self.unreadable = False
        """Did the disk fail to read a page?"""
        self._ahead_bytes = ahead_bytes
        self._buffer = b""
        self._begin = 0

    def record(self, position: int) -> Record | None:
        """The record at a position; None if there is no whole record whose checksum is right."""
        head_end = position + RECORD_HEAD_BYTES
        if head_end > self.end:
            return None
        at = self._load(position, RECORD_HEAD_BYTES)
        mark, index, write, at_us, key_bytes, body_bytes = _PREFIX.unpack_from(self._buffer, at)
        end = head_end + key_bytes + body_bytes
        if mark != _RECORD or body_bytes > BODY_BYTES_MAX or end > self.end:
            return None
        at = self._load(position, end - position)
        buffer = self._buffer
        key_at, body_at = at + RECORD_HEAD_BYTES, at + RECORD_HEAD_BYTES + key_bytes
        key, body = buffer[key_at:body_at], buffer[body_at : body_at + body_bytes]
        crc = isal_zlib.crc32(body, isal_zlib.crc32(key, isal_zlib.crc32(buffer[at : at + _PREFIX.size])))
        if crc != _CRC.unpack_from(buffer, at + _PREFIX.size)[0]:
            return None
        return Record(index, write, at_us, key, body, position, end)

    def next_record(self, position: int, index: int) -> Record | None:
        """The first record at or behind ``position`` whose index is at least ``index``, or None."""
        while position + RECORD_HEAD_BYTES <= self.end:
            at = self._load(position, RECORD_HEAD_BYTES)
            found = self._buffer.find(_RECORD, at)
            if found < 0:
                position = self._begin + len(self._buffer) - len(_RECORD) + 1
                continue
            position = self._begin + found
            record = self.record(position)
            if record is not None and record.index >= index:
                return record
            position += 1
        return None

    def header(self) -> bool:
        """Is the header whole and of this version? Raises FutureFormat."""
        if self.end < HEADER_BYTES:
            return False
        head = self._read(0, HEADER_BYTES)
        magic, version = _START.unpack_from(head)
        crc = isal_zlib.crc32(head[: _START.size])
        if magic != _MAGIC or crc != _CRC.unpack_from(head, _START.size)[0]:
            return False
        if version != VERSION:
            raise FutureFormat(f"format {version}, and this version reads format {VERSION}")
        return True

    def start(self, size: int) -> bytes:
        """The first bytes of the file."""
        return self._read(0, min(size, self.end))

    def seal(self) -> tuple[int, int] | None:
        """(records, time of the first one in us) of a sealed segment, else None."""
        position = self.end - SEAL_BYTES
        if position < HEADER_BYTES:
            return None
        seal = self._read(position, SEAL_BYTES)
        _, records, _, first_us, _, _ = _PREFIX.unpack_from(seal)
        return (records, first_us) if seal == _seal(records, first_us, position) else None

    def _load(self, position: int, size: int) -> int:
        """Have these bytes in the buffer, which must lie before the end; returns where they begin in it."""
        if not self._begin <= position or position + size > self._begin + len(self._buffer):
            wanted = min(max(size, self._ahead_bytes), self.end - position)
            self._buffer = self._read(position, wanted)
            self._begin = position
        return position - self._begin

    def _read(self, position: int, size: int) -> bytes:
        try:
            data = self._files.read(self._fd, size, position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b"".join(self._pages(position, size))
        while len(data) < size:
            more = self._files.read(self._fd, size - len(data), position + len(data))
            data += more or bytes(size - len(data))  # somebody cut the file: what is gone reads as zeros
        return data

    def _pages(self, position: int, size: int) -> Iterator[bytes]:
        while size > 0:
            part = min(size, _PAGE_BYTES - position % _PAGE_BYTES)
            try:
                data = self._files.read(self._fd, part, position)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self.unreadable = True
                data = b""
            yield data.ljust(part, b"\0")
            position += part
            size -= part


def is_ours(files: Files, path: Path) -> bool:
    """Has a spool written this file, as far as can be told?

    Its header says so, or what there is of a header, because a process may be killed while it writes the
    header. After a power failure the first page may be zeros. A header may also be damaged, and then a record
    says so. Raises OSError.
    """
    with reading(files, path) as reader:
        start = reader.start(HEADER_BYTES)
        if start == _header()[: len(start)] or start.startswith(_MAGIC):  # perhaps of a later version
            return True
        if not any(reader.start(_PAGE_BYTES)):
            return True
        return reader.next_record(0, 0) is not None or reader.seal() is not None


@contextmanager
def reading(
    files: Files, path: Path, end: int | None = None, *, ahead_bytes: int = _READ_BYTES
) -> Iterator[SegmentReader]:
    """A reader of a segment up to ``end``, or of all of it."""
    fd = files.open(path)
    try:
        yield SegmentReader(files, fd, os.fstat(fd).st_size if end is None else end, ahead_bytes)
    finally:
        files.close(fd)


@dataclass(frozen=True, slots=True)
class Extent:
    """Records of a segment that follow each other: [index, until), from ``position`` on."""

    position: int
    index: int
    until: int


@dataclass(slots=True)
class Read:
    """What was read of an extent, and where the rest of the extent begins."""

    bodies: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    first_us: int = 0
    """When the first of these records was appended."""
    rest: Extent | None = None
    rest_us: int = 0
    """When the first record of the rest was appended."""
    lost: int = 0
    """Records that are too damaged to be read."""


def read(files: Files, path: Path, extent: Extent, *, end: int, bytes_max: int, records_max: int) -> Read:
    """The records at the beginning of an extent: at least one, unless all of the extent are lost.

    ``bytes_max`` bounds the bodies; one larger body comes alone. A file that is gone is an extent that is
    lost. Raises OSError.
    """
    found = Read()
    try:
        ahead_bytes = min(_READ_BYTES, bytes_max + RECORD_HEAD_BYTES * records_max)
        with reading(files, path, end, ahead_bytes=ahead_bytes) as reader:
            _read(reader, extent, found, bytes_max, records_max)
    except FileNotFoundError:
        found.lost += extent.until - extent.index
    return found


def _read(reader: SegmentReader, extent: Extent, found: Read, bytes_max: int, records_max: int) -> None:
    position, index, until = extent.position, extent.index, extent.until
    while index < until:
        record = reader.record(position)
        if record is None or record.index != index:
            record = reader.next_record(position, index)
            if record is None or record.index >= until:
                found.lost += until - index
                return
            found.lost += record.index - index
            index = record.index
        body = record.body
        bytes_max -= len(body)
        if found.bodies and (bytes_max < 0 or len(found.bodies) == records_max):
            found.rest, found.rest_us = Extent(record.position, index, until), record.at_us
            return
        if not found.bodies:
            found.first_us = record.at_us
        found.bodies.append(body)
        found.keys.append(record.key.decode())
        position, index = record.end, index + 1


def say_damaged(path: Path, lost: int) -> None:
    log.critical(
        "spool_segment_damaged",
        extra={
            "file": str(path),
            "records_lost": lost,
            "effect": "the records that can be read are published; then the file is kept under another name",
            "kept_as": str(set_aside_path(path)),
            "remedy": "look at the disk; ask the senders to send the events of that time again",
        },
    )
