"""The file format of the embedded log: segments of checksummed chunks, one writer at a time.

The module appends under a lock on the folder, cuts off torn tails, begins new segment files, deletes old
ones, and reads from any offset. It is synchronous. The other modules of `embedded` add asyncio, credit and
the transport.

A segment file is named after the offset of its first record, and its chunks stand back to back. A chunk is a
header and a payload. The header has a magic number, the first offset, the number of records, the timestamp,
the payload bytes, and the CRC-32 of header and payload. The payload has the records, each as a 4-byte
big-endian length and its bytes.

A chunk exists once its checksum holds. If kill -9 leaves half a chunk behind, readers do not see it, and the
next append cuts it off.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from pipeline.common import folder_lock
from pipeline.common.private import FILE_MODE

RECORDS_PER_CHUNK_MAX = 4096
PAYLOAD_BYTES_MAX = 2**20
SEGMENT_BYTES_MAX = 64 * 2**20

_MAGIC = b"SPS1"
_NAME = re.compile(r"[0-9]{20}\.seg")
_PREFIX = struct.Struct(">4sQIqI")
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">I")
HEADER_BYTES = _PREFIX.size + _CRC.size


class DamagedLog(Exception):
    """Stored bytes are wrong and good chunks follow them, so this is no torn tail.

    Nothing is cut off or skipped silently. The remedy: restore the file, or move the file away and decide
    what happens to its events.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunk:
    """One valid chunk of a segment; ``end`` is the file position after it."""

    first_offset: int
    records: int
    timestamp_us: int
    payload: bytes
    end: int

    @property
    def next_offset(self) -> int:
        return self.first_offset + self.records

    def bodies(self, from_offset: int) -> list[bytes]:
        """The records at or above ``from_offset``."""
        bodies: list[bytes] = []
        payload, start = self.payload, 0
        length_at, append = _LENGTH.unpack_from, bodies.append
        for _ in range(self.records):
            start += 4
            end = start + length_at(payload, start - 4)[0]
            append(payload[start:end])
            start = end
        return bodies[max(0, from_offset - self.first_offset) :]


def segment_bases(folder: Path) -> list[int]:
    """First offsets of the segments, ascending."""
    return sorted(int(name[:-4]) for name in os.listdir(folder) if _NAME.fullmatch(name))


def segment_path(folder: Path, base: int) -> Path:
    return folder / f"{base:020d}.seg"


def read_chunk(fd: int, position: int, size: int) -> StoredChunk | None:
    """The chunk at ``position`` of a file of ``size`` bytes; None if no valid chunk is there."""
    body_at = position + HEADER_BYTES
    if body_at > size:
        return None
    header = os.pread(fd, HEADER_BYTES, position)
    if len(header) < HEADER_BYTES:
        return None
    magic, first_offset, records, timestamp_us, payload_bytes = _PREFIX.unpack_from(header)
    if magic != _MAGIC or body_at + payload_bytes > size:
        return None
    payload = os.pread(fd, payload_bytes, body_at)
    crc = isal_zlib.crc32(payload, isal_zlib.crc32(header[: _PREFIX.size]))
    if len(payload) < payload_bytes or crc != _CRC.unpack_from(header, _PREFIX.size)[0]:
        return None
    return StoredChunk(
        first_offset=first_offset,
        records=records,
        timestamp_us=timestamp_us,
        payload=payload,
        end=body_at + payload_bytes,
    )


def encode_chunk(*, first_offset: int, timestamp_us: int, bodies: Sequence[bytes]) -> bytes:
    payload = b"".join(part for body in bodies for part in (_LENGTH.pack(len(body)), body))
    prefix = _PREFIX.pack(_MAGIC, first_offset, len(bodies), timestamp_us, len(payload))
    return b"".join((prefix, _CRC.pack(isal_zlib.crc32(payload, isal_zlib.crc32(prefix))), payload))


def split(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut the bodies of one publish into chunks within both limits. A larger body is a chunk of its own."""
    start, payload_bytes = 0, 0
    for index, body in enumerate(bodies):
        entry_bytes = 4 + len(body)
        full = index - start == RECORDS_PER_CHUNK_MAX or payload_bytes + entry_bytes > PAYLOAD_BYTES_MAX
        if full and index > start:
            yield bodies[start:index]
            start, payload_bytes = index, 0
        payload_bytes += entry_bytes
    if start < len(bodies):
        yield bodies[start:]


class LogWriter:
    """Appends to a log. Writers of other processes may append too, because each append takes a lock.

    Safe to call from several threads. Every method passes the OSError of the file system on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float],
        max_bytes: int,
        max_age_s: float,
        segment_bytes: int | None = None,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_age_us = round(max_age_s * 1e6)
        self._segment_bytes = segment_bytes or min(SEGMENT_BYTES_MAX, max(max_bytes // 8, 4096))
        self._thread_lock = threading.Lock()
        self._lock_fd = folder_lock.opened(folder)
        self._fd = -1
        self._base = -1
        self._end = 0
        self._next_offset = 0
        self._last_us = 0

    def append(self, bodies: Sequence[bytes]) -> int:
        """Write the bodies and sync them to disk; return the offset after the last one.

        Raises:
            DamagedLog: bytes in the last segment are wrong, and good chunks follow them.
            OSError: the bodies may be stored or not; append them again.
        """
        with self._thread_lock:
            if self._lock_fd < 0:
                raise OSError("the log writer is closed")
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                self._find_end()
                if bodies:
                    self._roll_when_full()
                    self._write(bodies)
                return self._next_offset
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        with self._thread_lock:
            for fd in (self._fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._lock_fd = -1

    def _find_end(self) -> None:
        """Move to the end of the log, which other writers may have moved, and cut off a torn tail."""
        if not folder_lock.is_there(self._folder, self._lock_fd):
            raise FileNotFoundError("the log was deleted under its writer")
        bases = segment_bases(self._folder)
        if not bases:
            self._start_segment(0)
        elif bases[-1] != self._base or os.fstat(self._fd).st_size < self._end:
            self._last_us = self._timestamp_before(bases)
            self._open_segment(bases[-1])
        size = os.fstat(self._fd).st_size
        while size > self._end and (chunk := read_chunk(self._fd, self._end, size)):
            self._end, self._next_offset = chunk.end, chunk.next_offset
            self._last_us = max(self._last_us, chunk.timestamp_us)
        if size > self._end:
            if holds_chunk_after(self._fd, self._end, size, self._next_offset):
                raise DamagedLog(f"{segment_path(self._folder, self._base)} is damaged at byte {self._end}")
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)

    def _write(self, bodies: Sequence[bytes]) -> None:
        timestamp_us = max(round(self._clock() * 1e6), self._last_us)
        next_offset, encoded = self._next_offset, []
        for part in split(bodies):
            encoded.append(encode_chunk(first_offset=next_offset, timestamp_us=timestamp_us, bodies=part))
            next_offset += len(part)
        payload = memoryview(b"".join(encoded))
        written = 0
        while written < len(payload):
            written += os.pwrite(self._fd, payload[written:], self._end + written)
        os.fdatasync(self._fd)
        # These change only after the sync. If the write or the sync fails, the next append looks at the tail:
        # it cuts off a torn chunk, and counts the records of whole chunks.
        self._end += written
        self._next_offset, self._last_us = next_offset, timestamp_us

    def _roll_when_full(self) -> None:
        if self._end < self._segment_bytes:
            return
        self._start_segment(self._next_offset)
        self._drop_old_segments()

    def _start_segment(self, base: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(segment_path(self._folder, base), flags, FILE_MODE))
        folder_fd = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
        self._open_segment(base)

    def _open_segment(self, base: int) -> None:
        fd = os.open(segment_path(self._folder, base), os.O_RDWR | os.O_CLOEXEC)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._base, self._end, self._next_offset = fd, base, 0, base

    def _timestamp_before(self, bases: Sequence[int]) -> int:
        """The last timestamp of the segment before the last, so that timestamps never go backwards."""
        if len(bases) < 2:
            return 0
        return max((c.timestamp_us for c in scan(self._folder, bases[-2])), default=0)

    def _drop_old_segments(self) -> None:
        bases = segment_bases(self._folder)
        sizes = [segment_path(self._folder, base).stat().st_size for base in bases]
        horizon_us = round(self._clock() * 1e6) - self._max_age_us
        for index, base in enumerate(bases[:-1]):
            newer = next(scan(self._folder, bases[index + 1]), None)
            # No chunk of a segment is newer than the first chunk of the next segment.
            expired = newer is not None and newer.timestamp_us < horizon_us
            if not expired and sum(sizes[index:]) <= self._max_bytes:
                return
            segment_path(self._folder, base).unlink()


def scan(folder: Path, base: int) -> Iterator[StoredChunk]:
    """The valid chunks of one segment, in order."""
    fd = os.open(segment_path(folder, base), os.O_RDONLY | os.O_CLOEXEC)
    try:
        position, size = 0, os.fstat(fd).st_size
        while chunk := read_chunk(fd, position, size):
            yield chunk
            position = chunk.end
    finally:
        os.close(fd)


def holds_chunk_after(fd: int, position: int, size: int, offset: int) -> bool:
    """Does a valid chunk with records after ``offset`` follow the bad bytes at ``position``?"""
    rest = os.pread(fd, size - position, position)
    at = rest.find(_MAGIC, 1)
    while at >= 0:
        chunk = read_chunk(fd, position + at, size)
        if chunk is not None and chunk.first_offset > offset:
            return True
        at = rest.find(_MAGIC, at + 1)
    return False


class LogReader:
    """A position in a log that moves forward, behind the writers of any process.

    `peek` reads and does not move. `advance` moves and does not read. So a caller that is cancelled between
    the two loses nothing.
    """

    def __init__(self, folder: Path, offset: int) -> None:
        self._folder = folder
        self._fd = -1
        self._base = -1
        self._position = 0
        self._durable_size = 0
        self._checked_size = -1
        self.next_offset = offset
        """The offset of the first record that `advance` has not passed yet."""

    def peek(self) -> StoredChunk | None:
        """The next chunk that holds a record at or above ``next_offset``; None at the end.

        Raises:
            LookupError: the log now begins after ``next_offset``, at offset ``args[0]``.
            DamagedLog: the stored bytes here are wrong, and the log goes on after them.
        """
        while self._fd >= 0 or self._open_segment():
            size = os.fstat(self._fd).st_size
            self._skip_consumed(size)
            chunk = read_chunk(self._fd, self._position, size)
            if chunk is None:
                if not self._open_segment():
                    return None
            elif chunk.first_offset > self.next_offset:
                raise self._damage()
            else:
                return chunk
        return None

    def advance(self, chunk: StoredChunk) -> None:
        self._position, self.next_offset = chunk.end, chunk.next_offset

    def undurable(self, chunk: StoredChunk) -> tuple[int, int] | None:
        """A descriptor that the caller must sync and close before it uses the chunk; None: not needed.

        The second item is the file size that is durable after the sync. Without the sync, a power cut could
        take back records that a reader has counted.
        """
        if chunk.end <= self._durable_size:
            return None
        return os.dup(self._fd), os.fstat(self._fd).st_size

    def durable_up_to(self, size: int) -> None:
        self._durable_size = max(self._durable_size, size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _skip_consumed(self, size: int) -> None:
        """Step over chunks wholly below ``next_offset``, by reading only their headers."""
        while self._position + HEADER_BYTES <= size:
            header = os.pread(self._fd, HEADER_BYTES, self._position)
            magic, first_offset, records, _, payload_bytes = _PREFIX.unpack_from(header)
            end = self._position + HEADER_BYTES + payload_bytes
            if magic != _MAGIC or first_offset + records > self.next_offset or end > size:
                return
            self._position = end

    def _open_segment(self) -> bool:
        """Open the segment that holds ``next_offset``; False if it is already open, or not there yet."""
        is_first = self.next_offset == self._base
        if self._fd >= 0 and (is_first or not segment_path(self._folder, self.next_offset).exists()):
            self._reject_gap()
            return False
        bases = segment_bases(self._folder)
        if bases and bases[0] > self.next_offset:
            raise LookupError(bases[0])
        base = max((b for b in bases if b <= self.next_offset), default=-1)
        if base < 0 or base == self._base:
            return False
        fd = os.open(segment_path(self._folder, base), os.O_RDONLY | os.O_CLOEXEC)
        self.close()
        self._fd, self._base = fd, base
        self._position, self._durable_size, self._checked_size = 0, 0, -1
        return True

    def _reject_gap(self) -> None:
        """Raise if the log goes on although nothing valid is stored at this position."""
        bases = segment_bases(self._folder)
        goes_on = bool(bases) and bases[-1] > self.next_offset
        if not goes_on and os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError("the log was deleted under its reader")
        size = os.fstat(self._fd).st_size
        if not goes_on and size > self._position and size != self._checked_size:
            goes_on = self._holds_more(size)
        # Look again, because a writer may have finished the chunk after `peek` looked.
        if goes_on and read_chunk(self._fd, self._position, os.fstat(self._fd).st_size) is None:
            if bases and bases[0] > self.next_offset:
                raise LookupError(bases[0])
            raise self._damage()

    def _holds_more(self, size: int) -> bool:
        """Do good chunks follow the bad bytes here? False also while a writer holds the lock."""
        lock_fd = folder_lock.opened(self._folder)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._checked_size = size
            return holds_chunk_after(self._fd, self._position, size, self.next_offset)
        except BlockingIOError:
            return False
        finally:
            os.close(lock_fd)

    def _damage(self) -> DamagedLog:
        return DamagedLog(
            f"{segment_path(self._folder, self._base)} is damaged at byte {self._position}"
            f" (offset {self.next_offset})"
        )
