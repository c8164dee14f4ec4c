"""Reading the embedded log: offsets, credit, and the end of the log, which other processes move.

No server tells a reader of new records, so a waiting reader polls. It is at most ``_POLL_MAX_S`` behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.transports import Chunk, OffsetGone, TransportError
from pipeline.transports.embedded.log_files import DamagedLog, LogReader, segment_bases

_POLL_MIN_S = 0.002
_POLL_MAX_S = 0.1


class EmbeddedSubscription:
    """See `pipeline.transports.Subscription`."""

    def __init__(self, stream: str, folder: Path, *, partition: int, offset: int, credit: int) -> None:
        self.partition = partition
        self._stream = stream
        self._folder = folder
        self._wanted_offset = offset
        self._before_us: int | None = None
        self._credit = credit
        self._outstanding = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closed = asyncio.Event()
        self._dead: TransportError | None = None
        self._reader: LogReader | None = None
        self._tail: LogReader | None = None
        self.first_offset: int | None = None

    async def receive(self) -> Chunk:
        wait_s = _POLL_MIN_S
        while True:
            await self._room.wait()
            with self._failing_for_good():
                self._raise_if_dead()
                if self._reader is None:
                    self._reader = self._open_reader()
                stored = self._reader.peek()
            if stored is not None:
                break
            await self._pause(wait_s)
            wait_s = min(wait_s * 2, _POLL_MAX_S)
        if undurable := self._reader.undurable(stored):
            fd, size = undurable
            with self._failing_for_good():
                await asyncio.to_thread(_sync_and_close, fd)
            self._raise_if_dead()
            self._reader.durable_up_to(size)
        # Nothing above has moved the reader, so a cancelled call loses no record.
        wanted_offset = self._reader.next_offset
        self._reader.advance(stored)
        self._outstanding += 1
        if self._outstanding >= self._credit:
            self._room.clear()
        return Chunk(
            partition=self.partition,
            first_offset=max(stored.first_offset, wanted_offset),
            next_offset=stored.next_offset,
            timestamp_us=stored.timestamp_us,
            bodies=stored.bodies(wanted_offset),
        )

    def grant(self) -> None:
        if self._dead is None:
            assert self._outstanding > 0, "a grant without a chunk that was received"
            self._outstanding -= 1
            self._room.set()

    async def caught_up(self, next_offset: int) -> bool:
        return await self.offset_lag(next_offset) == 0

    async def offset_lag(self, next_offset: int) -> int:
        with translated(self._stream):
            self._raise_if_dead()
            self.first_offset = next(iter(segment_bases(self._folder)), 0)
            self._tail = self._tail or _tail_reader(self._folder)
            if self._tail is None:
                return 0
            try:
                while (chunk := self._tail.peek()) is not None:
                    self._tail.advance(chunk)
                    await asyncio.sleep(0)
                    self._raise_if_dead()
            except LookupError:  # nobody asked for long, and retention has deleted the segment meanwhile
                self._tail.close()
                self._tail = None
                return await self.offset_lag(next_offset)
            return max(0, self._tail.next_offset - next_offset)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def close(self) -> None:
        self._dead = self._dead or TransportError(f"the subscription to {self._stream!r} is closed")
        self._closed.set()
        self._room.set()
        for reader in (self._reader, self._tail):
            if reader is not None:
                reader.close()

    def _open_reader(self) -> LogReader:
        """A reader at the wanted offset. Raises OffsetGone if the log has lost this offset."""
        bases = segment_bases(self._folder)
        first_offset = bases[0] if bases else 0
        if self._wanted_offset == 0:
            return LogReader(self._folder, first_offset)
        end_offset = log_end(self._folder)
        held = first_offset <= self._wanted_offset <= end_offset
        stored = stored_us(self._folder, self._wanted_offset - 1) if held and self._before_us else None
        replaced = stored is not None and stored != self._before_us
        if not held or replaced:
            raise OffsetGone(
                stream=self._stream,
                wanted_offset=self._wanted_offset,
                first_offset=first_offset,
                end_offset=end_offset,
                replaced=replaced,
            )
        return LogReader(self._folder, self._wanted_offset)

    async def _pause(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._closed.wait()
        except TimeoutError:
            pass

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise self._dead

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        try:
            with translated(self._stream):
                yield
        except TransportError as error:
            self._dead = self._dead or error
            raise


def log_end(folder: Path) -> int:
    """Where the next record of the log goes. Raises OSError and DamagedLog."""
    tail = _tail_reader(folder)
    if tail is None:
        return 0
    try:
        while (chunk := tail.peek()) is not None:
            tail.advance(chunk)
        return tail.next_offset
    finally:
        tail.close()


def stored_us(folder: Path, offset: int) -> int | None:
    """The time at which the chunk of a record was stored; None if the record is gone.

    UTC microseconds since 1970. Raises OSError, DamagedLog, and TransportError if the record is not there
    yet.
    """
    reader = LogReader(folder, offset)
    try:
        chunk = reader.peek()
    except LookupError:
        return None
    finally:
        reader.close()
    if chunk is None:
        raise TransportError(f"record {offset} of {folder.name!r} is not there yet")
    return chunk.timestamp_us


def _tail_reader(folder: Path) -> LogReader | None:
    """A reader at the start of the last segment, to walk to the end of the log; None if the log is empty."""
    bases = segment_bases(folder)
    return LogReader(folder, bases[-1]) if bases else None


def _sync_and_close(fd: int) -> None:
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


@contextmanager
def translated(stream: str) -> Iterator[None]:
    """Turn the exceptions of the file system and of the log's format into TransportError."""
    try:
        yield
    except LookupError as error:
        raise TransportError(
            f"retention overtook the reader of stream {stream!r}: it now begins at offset {error.args[0]}"
        ) from error
    except (OSError, DamagedLog) as error:
        raise TransportError(f"stream {stream!r} cannot be used: {error}") from error
