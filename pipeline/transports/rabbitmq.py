"""The RabbitMQ stream transport: one connection to the leader for each subscription and publisher.

Owns offsets, credit and the questions of lag; the connection's life and death is
`stream_connection`'s, the bytes of a chunk are `frames`'. There is no reconnecting here: a subscription
that fails stays failed, and the caller starts again from the offset that the database holds.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections import deque
from urllib.parse import unquote, urlsplit

from rstream.exceptions import StreamAlreadyExists

from pipeline.config import StreamConfig
from pipeline.transports import Chunk, OffsetGone, TransportError, frames
from pipeline.transports.rabbitmq_publisher import Framing, RabbitMQPublisher
from pipeline.transports.stream_connection import DeliveredChunk, StreamConnection

LEADER_ATTEMPTS = 5
SEGMENT_BYTES_MAX = 500_000_000
_SUBSCRIPTION, _PROBE = 0, 1


class RabbitMQTransport:
    """A stream of a RabbitMQ broker or cluster. See `pipeline.transports.Transport`."""

    def __init__(self, config: StreamConfig, *, heartbeat_s: int = 10) -> None:
        """A connection that is silent for two heartbeats is taken for dead.

        Raises ValueError if the URL is none of ours, or its CA file cannot be read.
        """
        url = urlsplit(config.url)
        if url.scheme not in ("rabbitmq-stream", "rabbitmq-stream+tls") or not url.hostname:
            raise ValueError("expected a URL like rabbitmq-stream://user:password@host:5552/vhost")
        self.stream = config.stream
        self._config = config
        self._heartbeat_s = heartbeat_s
        self._tls = _tls_context(config.ca_file) if url.scheme.endswith("+tls") else None
        self._host = url.hostname
        self._port = url.port or (5551 if self._tls else 5552)
        self._user = unquote(url.username or "guest")
        self._password = unquote(url.password or "guest")
        self._vhost = unquote(url.path[1:]) or "/"
        self._control: StreamConnection | None = None
        self._control_lock = asyncio.Lock()
        self._opened: set[RabbitMQSubscription | RabbitMQPublisher] = set()

    async def open(self) -> None:
        async with self._control_lock:
            control = await self._live_control()
            if not await control.exists(self.stream):
                await self._declare(control)
            await control.leader(self.stream)

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> RabbitMQSubscription:
        if credit < 1:
            raise ValueError("a subscription needs a credit of at least 1")
        if partition != 0:
            raise TransportError(f"stream {self.stream!r} has one partition, 0, not {partition}")
        connection = await self._connect_to_leader(f"{self._config.consumer}-partition-{partition}")
        subscription = RabbitMQSubscription(
            connection, stream=self.stream, partition=partition, offset=offset, credit=credit
        )
        try:
            await subscription.start()
        except BaseException:
            await subscription.close()
            raise
        self._remember(subscription)
        return subscription

    async def publisher(self, framing: Framing = "raw") -> RabbitMQPublisher:
        """``framing`` is how bodies are sent: as they are, as AMQP 1.0 messages as other clients do,
        or raw in gzip sub-entry batches."""
        connection = await self._connect_to_leader(f"{self._config.consumer}-publisher")
        try:
            with connection.translated(f"a publisher to stream {self.stream!r}"):
                await connection.declare_publisher(stream=self.stream, reference=None, publisher_id=0)
        except BaseException:
            await connection.close()
            raise
        publisher = RabbitMQPublisher(connection, framing=framing)
        self._remember(publisher)
        return publisher

    async def ping(self) -> None:
        async with self._control_lock:
            await (await self._live_control()).leader(self.stream)

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()
        if self._control is not None:
            await self._control.close()

    async def _declare(self, control: StreamConnection) -> None:
        """Create the stream with our retention. One that exists keeps its own: it is not ours."""
        segment_bytes = min(SEGMENT_BYTES_MAX, max(self._config.max_bytes // 8, 2**16))
        arguments = {
            "max-age": f"{round(self._config.max_age_s)}s",
            "max-length-bytes": self._config.max_bytes,
            "stream-max-segment-size-bytes": segment_bytes,
        }
        with control.translated(f"the declaration of stream {self.stream!r}"):
            try:
                await control.create_stream(self.stream, arguments)
            except StreamAlreadyExists:
                return

    async def _live_control(self) -> StreamConnection:
        if self._control is None or self._control.dead is not None:
            if self._control is not None:
                await self._control.close()
            self._control = await self._dial(self._host, self._port, f"{self._config.consumer}-control")
        return self._control

    async def _connect_to_leader(self, name: str) -> StreamConnection:
        """Connect to the stream's leader: only it knows what is committed now.

        The URL is tried first: it may be the only address that can be reached. Behind a load balancer
        another attempt can land on another node.
        """
        failure: TransportError | None = None
        for _ in range(LEADER_ATTEMPTS):
            connection = await self._dial(self._host, self._port, name)
            try:
                leader = await connection.leader(self.stream)
            except BaseException:
                await connection.close()
                raise
            if leader == connection.advertised:
                return connection
            await connection.close()
            try:
                return await self._dial(*leader, name)
            except TransportError as error:
                failure = error
        raise TransportError(f"the leader of stream {self.stream!r} cannot be reached: {failure}")

    async def _dial(self, host: str, port: int, name: str) -> StreamConnection:
        connection = StreamConnection(host, port, tls=self._tls, heartbeat_s=self._heartbeat_s, name=name)
        await connection.dial(vhost=self._vhost, user=self._user, password=self._password)
        return connection

    def _remember(self, opened: RabbitMQSubscription | RabbitMQPublisher) -> None:
        self._opened = {one for one in self._opened if not one.closed} | {opened}


class RabbitMQSubscription:
    """See `pipeline.transports.Subscription`."""

    def __init__(
        self, connection: StreamConnection, *, stream: str, partition: int, offset: int, credit: int
    ) -> None:
        self.partition = partition
        self.closed = False
        self._connection = connection
        self._stream = stream
        self._wanted_offset = offset
        self._credit = credit
        self._ungranted = 0
        self._delivered: deque[DeliveredChunk] = deque()
        self._probed: DeliveredChunk | None = None
        self._news = asyncio.Event()
        self._next_offset: int | None = offset or None
        # What is known of the stream's end: first and next offset of the last chunk received; for which
        # last chunk of the broker a probe saw which end; and what was committed when last asked.
        self._received: tuple[int, int] | None = None
        self._seen_end: tuple[int, int] | None = None
        self._asked_chunk = -1
        self._probe_lock = asyncio.Lock()
        connection.on_chunk = self._on_chunk
        connection.on_death = self._news.set

    async def start(self) -> None:
        """Check that the stream still has the offset, and start the delivery from it."""
        if self._wanted_offset > 0:
            stats = await self._connection.stats(self._stream)
            if gone := await self._offset_gone(stats):
                self._connection.fail(gone)
                return
        await self._connection.attach(
            self._stream,
            subscription_id=_SUBSCRIPTION,
            offset=self._wanted_offset,
            credit=self._credit,
        )

    async def receive(self) -> Chunk:
        while True:
            self._connection.raise_if_dead()
            if not self._delivered:
                self._news.clear()
                await self._news.wait()
                continue
            # The chunk stays in the queue until it is returned, so a cancelled call loses nothing.
            delivered = self._delivered[0]
            expected = delivered.first_offset if self._next_offset is None else self._next_offset
            if delivered.next_offset <= expected:
                self._delivered.popleft()
                self._connection.credit_chunks(_SUBSCRIPTION, 1)
                continue
            if delivered.first_offset > expected:
                await self._check_gap(expected)
            bodies = self._decode(delivered)
            self._delivered.popleft()
            self._received = (delivered.first_offset, delivered.next_offset)
            self._next_offset = delivered.next_offset
            self._ungranted += 1
            first_offset = max(delivered.first_offset, expected)
            return Chunk(
                partition=self.partition,
                first_offset=first_offset,
                next_offset=delivered.next_offset,
                timestamp_us=delivered.timestamp_ms * 1000,
                bodies=bodies[first_offset - delivered.first_offset :],
            )

    def grant(self) -> None:
        if self._connection.dead is None:
            assert self._ungranted > 0, "a grant without a chunk that was received"
            self._ungranted -= 1
            self._connection.credit_chunks(_SUBSCRIPTION, 1)

    async def caught_up(self, next_offset: int) -> bool:
        return await self.offset_lag(next_offset) == 0

    async def offset_lag(self, next_offset: int) -> int:
        """See `pipeline.transports.Subscription.offset_lag`.

        The broker names the first offset of its last committed chunk. Where that chunk ends is known if
        it was received; else a probe reads the last chunk. A chunk can also be the broker's own (offset
        tracking), which is never delivered: when the committed chunk stands still and nothing comes,
        the probe tells where the last record of a publisher is.
        """
        self._connection.raise_if_dead()
        stats = await self._connection.stats(self._stream)
        committed_chunk = stats["committed_chunk_id"]
        stands_still = committed_chunk == self._asked_chunk
        self._asked_chunk = committed_chunk
        if committed_chunk < 0:
            # A leader that has just begun has no chunk committed until its replicas answer.
            return 0 if stats["first_chunk_id"] < 0 else 1
        if self._received is not None and self._received[0] == committed_chunk:
            return max(0, self._received[1] - next_offset)
        undelivered = committed_chunk >= next_offset
        if undelivered and (self._delivered or not stands_still):
            return committed_chunk + 1 - next_offset
        end = await self._end_of_last_chunk(committed_chunk)
        if end is not None:
            return max(0, end - next_offset)
        # No record can be seen at all: either there is none, and it is not for want of credit that
        # nothing came, or the last chunk is not committed yet.
        return 0 if undelivered and self._ungranted < self._credit else 1

    async def close(self) -> None:
        self.closed = True
        await self._connection.close()

    def _on_chunk(self, chunk: DeliveredChunk) -> None:
        if chunk.subscription_id == _PROBE:
            self._probed = chunk
        elif len(self._delivered) + self._ungranted >= self._credit:
            raise ValueError("the broker delivered more chunks than it had credit for")
        else:
            self._delivered.append(chunk)
            self._news.set()

    def _decode(self, chunk: DeliveredChunk) -> list[bytes]:
        """The payloads of the chunk; an unreadable chunk ends the subscription."""
        try:
            with memoryview(chunk.frame) as view:
                if zlib.crc32(view[chunk.start : chunk.end]) != chunk.crc:
                    raise frames.BrokenChunk("its checksum does not hold")
            return frames.decode_entries(
                chunk.frame, chunk.start, chunk.end, entries=chunk.entries, records=chunk.records
            )
        except frames.BrokenChunk as error:
            self._connection.fail(
                TransportError(
                    f"chunk {chunk.first_offset} of stream {self._stream!r} is unreadable: {error}"
                )
            )
            raise self._connection.dead from error  # type: ignore[misc]

    async def _offset_gone(self, stats: dict[str, int]) -> OffsetGone | None:
        """Has retention, or a new stream of the same name, taken the wanted offset?"""
        first_offset, end_offset = max(0, stats["first_chunk_id"]), None
        last_chunk = stats["last_chunk_id"]  # a new leader has it before anything is committed
        if last_chunk < 0:
            end_offset = 0
        elif last_chunk < self._wanted_offset:
            end_offset = await self._end_of_last_chunk(last_chunk)
        if first_offset <= self._wanted_offset and (end_offset is None or end_offset >= self._wanted_offset):
            return None
        return OffsetGone(
            stream=self._stream,
            wanted_offset=self._wanted_offset,
            first_offset=first_offset,
            end_offset=end_offset,
        )

    async def _check_gap(self, expected: int) -> None:
        """Offsets may skip (the broker keeps its own chunks among ours), but not because of retention."""
        first_offset = (await self._connection.stats(self._stream))["first_chunk_id"]
        if first_offset <= expected:
            return
        error: TransportError = TransportError(f"retention overtook the reader of stream {self._stream!r}")
        if self._received is None:
            error = OffsetGone(stream=self._stream, wanted_offset=expected, first_offset=first_offset)
        self._connection.fail(error)
        raise error

    async def _end_of_last_chunk(self, last_chunk: int) -> int | None:
        """The offset after the last publisher's record, read from its chunk; None if there is none yet.

        ``last_chunk`` is what the broker called last just now; the answer is kept for it.
        """
        async with self._probe_lock:
            if self._seen_end is None or self._seen_end[0] != last_chunk:
                self._probed = None
                # The broker sends the chunk before it answers the detach.
                await self._connection.attach(self._stream, subscription_id=_PROBE, offset=None, credit=1)
                await self._connection.detach(_PROBE)
                if self._probed is None:
                    return None
                self._seen_end = (last_chunk, self._probed.next_offset)
                self._probed = None
            return self._seen_end[1]


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"the CA file {ca_file!r} cannot be used: {error}") from error
