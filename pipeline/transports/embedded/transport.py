"""The embedded stream: an append-only log in a folder, for the demo and for tests.

The module gives the logs of `log_files` the names and partitions of a broker's streams. A stream of one
partition is a folder with one log. A stream of several partitions is a folder with a folder for each log, and
with a file that holds the number of partitions.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from pipeline.common import private
from pipeline.config import StreamConfig
from pipeline.transports import Extent, Owner, StreamAbsent, TransportError
from pipeline.transports.embedded.competing import CompetingEmbeddedSubscription
from pipeline.transports.embedded.log_files import DamagedLog, LogWriter, segment_bases, segment_path
from pipeline.transports.embedded.subscription import EmbeddedSubscription, log_end, stored_us, translated
from pipeline.transports.routing import RoutingPublisher

_COUNT_FILE = "partitions"


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
        with translated(self.stream):
            private.make_folder(self._folder, below=self._folder.parent)
        await self.ping()

    async def partitions(self) -> Sequence[str]:
        await self.ping()
        count = self._partition_count()
        return [f"{self.stream}-{number}" for number in range(count)] if count else [self.stream]

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> EmbeddedSubscription:
        if credit < 1:
            raise ValueError("a subscription needs a credit of at least 1")
        folder = await self._folder_of(partition)
        subscription = EmbeddedSubscription(
            self.stream, folder, partition=partition, offset=offset, credit=credit
        )
        self._remember(subscription)
        return subscription

    async def compete(
        self, *, partition: int, owner: Owner, credit: int = 4
    ) -> CompetingEmbeddedSubscription:
        if credit < 1:
            raise ValueError("a subscription needs a credit of at least 1")
        folder = await self._folder_of(partition)
        subscription = CompetingEmbeddedSubscription(
            self.stream,
            folder,
            group=self._config.consumer,
            partition=partition,
            owner=owner,
            credit=credit,
        )
        self._remember(subscription)
        return subscription

    async def create_super_stream(self, *, partitions: int) -> bool:
        if partitions < 1:
            raise ValueError("a super stream needs at least one partition")
        with translated(self.stream):
            private.make_folder(self._folder.parent, below=self._folder.parent)
            # The stream is made in another folder and then moved here, so nobody sees half of it.
            with tempfile.TemporaryDirectory(dir=self._folder.parent, prefix=".new-") as aside:
                made = Path(aside) / "stream"
                for number in range(partitions):
                    private.make_folder(made / str(number), below=Path(aside))
                (made / _COUNT_FILE).touch(private.FILE_MODE)
                (made / _COUNT_FILE).write_text(str(partitions))
                if not self._folder.exists():
                    with suppress(OSError):  # another process has just made the stream
                        made.rename(self._folder)
                        return True
        existing = self._partition_count()
        if existing == 0:
            raise TransportError(f"{self.stream!r} is a plain stream; only another name can have partitions")
        if existing != partitions:
            raise TransportError(f"stream {self.stream!r} has {existing} partitions, not {partitions}")
        return False

    async def extents(self) -> Sequence[Extent]:
        extents = []
        with translated(self.stream):
            for number, name in enumerate(await self.partitions()):
                folder = await self._folder_of(number)
                bases = segment_bases(folder)
                extents.append(
                    Extent(
                        stream=name,
                        first_offset=bases[0] if bases else 0,
                        end_offset=log_end(folder),
                        stored_bytes=sum(segment_path(folder, base).stat().st_size for base in bases),
                    )
                )
        return extents

    async def stored_us(self, *, partition: int, offset: int) -> int | None:
        folder = await self._folder_of(partition)
        with translated(self.stream):
            return stored_us(folder, offset)

    async def publisher(self) -> EmbeddedPublisher | RoutingPublisher:
        publishers = []
        for number in range(len(await self.partitions())):
            publishers.append(self._partition_publisher(await self._folder_of(number)))
        return publishers[0] if len(publishers) == 1 else RoutingPublisher(publishers)

    async def ping(self) -> None:
        if not self._folder.exists():
            raise StreamAbsent(f"stream {self.stream!r} does not exist: there is no folder {self._folder}")
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise TransportError(f"the folder of stream {self.stream!r} is closed to us: {self._folder}")

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()

    def _partition_publisher(self, folder: Path) -> EmbeddedPublisher:
        with translated(self.stream):
            writer = LogWriter(
                folder,
                clock=self._clock,
                max_bytes=self._config.max_bytes,
                max_age_s=self._config.max_age_s,
                segment_bytes=self._segment_bytes,
            )
        publisher = EmbeddedPublisher(self.stream, writer)
        self._remember(publisher)
        return publisher

    async def _folder_of(self, partition: int) -> Path:
        partitions = await self.partitions()
        if not 0 <= partition < len(partitions):
            count = "one partition, 0" if len(partitions) == 1 else f"{len(partitions)} partitions"
            raise TransportError(f"stream {self.stream!r} has {count}, not {partition}")
        return self._folder / str(partition) if self._partition_count() else self._folder

    def _partition_count(self) -> int:
        """The number of logs in the stream's folder; 0 if the folder is itself a log."""
        with translated(self.stream):
            try:
                return int((self._folder / _COUNT_FILE).read_text())
            except FileNotFoundError:
                return 0
            except ValueError as error:
                raise DamagedLog(f"{self._folder / _COUNT_FILE} is not a number") from error

    def _remember(self, opened: EmbeddedSubscription | EmbeddedPublisher) -> None:
        self._opened = {one for one in self._opened if not one.closed} | {opened}


class EmbeddedPublisher:
    """See `pipeline.transports.Publisher`. Each call writes one chunk, or several if one is too small."""

    body_bytes_max: Final = sys.maxsize
    """A body can be of any size."""

    def __init__(self, stream: str, writer: LogWriter) -> None:
        self._stream = stream
        self._writer = writer
        self.closed = False

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        with translated(self._stream):
            await asyncio.to_thread(self._writer.append, bodies)

    async def close(self) -> None:
        self.closed = True
        await asyncio.to_thread(self._writer.close)
