"""The embedded stream: an append-only log in a folder, for the demo and for tests.

Gives the files of `segments` the interface of a broker: chunks, credit, a tail that other
processes may write. There is no server: readers poll, at most ``_POLL_MAX_S`` behind.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.config import StreamConfig
from pipeline.transports import Chunk, OffsetGone, TransportError
from pipeline.transports.segments import DamagedLog, LogReader, LogWriter, segment_bases

_POLL_MIN_S = 0.002
_POLL_MAX_S = 0.1


class EmbeddedTransport:
    """A log in a folder of its own below the URL's folder. See `pipeline.transports.Transport`."""

    def __init__(
        self,
        config: StreamConfig,
        *,
        clock: Callable[[], float] = time.time,
        segment_bytes: int | None = None,
    ) -> None:
        """Raises ValueError if the URL names no absolute folder."""
        url = urlsplit(config.url)
        if url.scheme != "embedded" or url.netloc or not url.path.startswith("/"):
            raise ValueError("the embedded stream needs a URL like embedded:///absolute/folder")
        self.stream = config.stream
        self._config = config
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._folder = Path(unquote(url.path)) / quote(config.stream, safe="")
        self._opened: set[EmbeddedSubscription | EmbeddedPublisher] = set()

    async def open(self) -> None:
        with _translated(self.stream):
            self._folder.mkdir(parents=True, exist_ok=True)
        await self.ping()

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> EmbeddedSubscription:
        if credit < 1:
            raise ValueError("a subscription needs a credit of at least 1")
        if partition != 0:
            raise TransportError(f"stream {self.stream!r} has one partition, 0, not {partition}")
        await self.ping()
        subscription = EmbeddedSubscription(self.stream, self._folder, partition, offset, credit)
        self._opened = {opened for opened in self._opened if not opened.closed}
        self._opened.add(subscription)
        return subscription

    async def publisher(self) -> EmbeddedPublisher:
        with _translated(self.stream):
            writer = LogWriter(
                self._folder,
                clock=self._clock,
                max_bytes=self._config.max_bytes,
                max_age_s=self._config.max_age_s,
                segment_bytes=self._segment_bytes,
            )
        publisher = EmbeddedPublisher(self.stream, writer)
        self._opened.add(publisher)
        return publisher

    async def ping(self) -> None:
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise TransportError(f"the folder of stream {self.stream!r} is missing or closed: {self._folder}")

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()


class EmbeddedSubscription:
    """See `pipeline.transports.Subscription`."""

    def __init__(self, stream: str, folder: Path, partition: int, offset: int, credit: int) -> None:
        self.partition = partition
        self._stream = stream
        self._folder = folder
        self._wanted_offset = offset
        self._credit = credit
        self._outstanding = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closed = asyncio.Event()
        self._dead: TransportError | None = None
        self._reader: LogReader | None = None
        self._tail: LogReader | None = None

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
        # Nothing above moved the reader, so a cancelled call loses nothing.
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
        with _translated(self._stream):
            self._raise_if_dead()
            self._tail = self._tail or _tail_reader(self._folder)
            if self._tail is None:
                return 0
            try:
                while (chunk := self._tail.peek()) is not None:
                    self._tail.advance(chunk)
                    await asyncio.sleep(0)
                    self._raise_if_dead()
            except LookupError:  # retention took a tail that was not looked at for long
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
        """Start at the wanted offset; raises OffsetGone if the log does not reach from it on."""
        bases = segment_bases(self._folder)
        first_offset = bases[0] if bases else 0
        if self._wanted_offset == 0:
            return LogReader(self._folder, first_offset)
        tail = _tail_reader(self._folder)
        end_offset = 0
        if tail is not None:
            while (chunk := tail.peek()) is not None:
                tail.advance(chunk)
            end_offset = tail.next_offset
            tail.close()
        if not first_offset <= self._wanted_offset <= end_offset:
            raise OffsetGone(
                stream=self._stream,
                wanted_offset=self._wanted_offset,
                first_offset=first_offset,
                end_offset=end_offset,
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
            with _translated(self._stream):
                yield
        except TransportError as error:
            self._dead = self._dead or error
            raise


class EmbeddedPublisher:
    """See `pipeline.transports.Publisher`. One chunk for each call, up to the limits of `segments`."""

    def __init__(self, stream: str, writer: LogWriter) -> None:
        self._stream = stream
        self._writer = writer
        self.closed = False

    async def publish(self, bodies: Sequence[bytes]) -> None:
        with _translated(self._stream):
            await asyncio.to_thread(self._writer.append, bodies)

    async def close(self) -> None:
        self.closed = True
        await asyncio.to_thread(self._writer.close)


def _tail_reader(folder: Path) -> LogReader | None:
    """A reader at the start of the last segment, to walk to the end of the log."""
    bases = segment_bases(folder)
    return LogReader(folder, bases[-1]) if bases else None


def _sync_and_close(fd: int) -> None:
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated(stream: str) -> Iterator[None]:
    """What the file system and the format raise, as TransportError."""
    try:
        yield
    except LookupError as error:
        raise TransportError(
            f"retention overtook the reader of stream {stream!r}: it now begins at offset {error.args[0]}"
        ) from error
    except (OSError, DamagedLog) as error:
        raise TransportError(f"stream {stream!r} cannot be used: {error}") from error
