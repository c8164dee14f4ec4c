"""One connection to a RabbitMQ stream node: rstream's client, made to fail loudly.

rstream speaks the protocol: handshake, metadata, subscribe, publishers. This module changes how its client
reads: reads are large, and delivered chunks are handed over undecoded. The module adds StreamStats, which
rstream lacks. It also changes how the client dies: after any fault `fail` is called. That wakes every waiting
task with a TransportError, and the connection is never used again. Offsets, credit and payloads are left to
others.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rstream import schema
from rstream.client import Client
from rstream.connection import ConnectionClosed
from rstream.constants import Key, OffsetType
from rstream.encoding import decode_frame
from rstream.exceptions import ClientError, ServerError

from pipeline.transports import TransportError
from pipeline.transports.rabbitmq.stream_socket import NotAStream, StreamSocket

FRAME_BYTES_MAX = 2**20
"""The largest frame that we offer to send; the broker may lower it. A delivered chunk may be larger."""
CLOSE_TIMEOUT_S = 2.0
REQUEST_TIMEOUT_S = 10.0

_HEAD = struct.Struct(">HH")
_DELIVER, _PUBLISH_CONFIRM, _STATS, _STATS_ANSWER = 0x0008, 0x0003, 0x001C, 0x801C
_CONSUMER_UPDATE, _CONSUMER_UPDATE_ANSWER = 0x001A, 0x801A
_OK, _NO_SUCH_STREAM, _PRECONDITION_FAILED = 0x01, 0x02, 0x11
_CHUNK_HEADER = struct.Struct(">BbbHIqQQIIII")
_CREDIT = struct.Struct(">IHHBH")
_HEARTBEAT = struct.pack(">IHH", 4, 0x0017, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredChunk:
    """A chunk as the broker sent it; its entries lie in ``frame[start:end]`` and are not decoded yet."""

    subscription_id: int
    first_offset: int
    entries: int
    records: int
    timestamp_ms: int
    crc: int
    frame: bytes | memoryview
    start: int
    end: int

    @property
    def next_offset(self) -> int:
        return self.first_offset + self.records


class StreamConnection(Client):  # type: ignore[misc]
    """A connection to one node; `dead` says why the connection cannot be used any more.

    The reading task calls ``on_chunk``, ``on_confirm`` and ``on_update``, and an exception in one of these
    ends the connection. `fail` calls ``on_death``. All four are plain functions.
    """

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, heartbeat_s: int, name: str
    ) -> None:
        super().__init__(
            host,
            port,
            ssl_context=tls,
            frame_max=FRAME_BYTES_MAX,
            heartbeat=heartbeat_s,
            connection_name=name,
        )
        self.address = f"{host}:{port}"
        self.dead: TransportError | None = None
        self.on_chunk: Callable[[DeliveredChunk], None] = _ignore
        self.on_confirm: Callable[[tuple[int, ...]], None] = _ignore
        self.on_update: Callable[[int, bool], None] = _ignore_update
        """Called with a correlation id, and whether this single active consumer is active from now on.
        `answer_update` with the same id is the answer."""
        self.on_death: Callable[[], None] = _nothing
        self._stats_waiters: dict[int, asyncio.Future[dict[str, int]]] = {}

    async def dial(self, *, vhost: str, user: str, password: str) -> None:
        """Connect and authenticate. Raises TransportError, after closing everything that it opened."""
        try:
            with self.translated(f"the connection of user {user!r} to vhost {vhost!r}"):
                self._conn = StreamSocket(self.host, self.port, self._ssl_context)
                await self._conn.open()
                self.start_task("listener", self._listener())
                await self.authenticate(vhost=vhost, username=user, password=password)
        except BaseException:
            await self.close()
            raise

    @property
    def advertised(self) -> tuple[str, int]:
        """The address by which this node calls itself in metadata."""
        properties = self.server_properties or {}
        return str(properties.get("advertised_host", "")), int(properties.get("advertised_port", 0))

    async def leader(self, stream: str) -> tuple[str, int]:
        """The advertised address of the stream's leader. Raises TransportError."""
        with self.translated(f"the look-up of stream {stream!r}"):
            broker, _ = await self.query_leader_and_replicas(stream)
            return str(broker.host), int(broker.port)

    async def exists(self, stream: str) -> bool:
        with self.translated(f"the look-up of stream {stream!r}"):
            return bool(await self.stream_exists(stream))

    async def partitions_of(self, super_stream: str) -> list[str]:
        """The streams of a super stream in their order; empty if the super stream does not exist.

        Raises TransportError.
        """
        with self.translated(f"the look-up of super stream {super_stream!r}"):
            request = schema.SuperStreamPartitions(self._corr_id_seq.next(), super_stream=super_stream)
            answer = await self.sync_request(
                request, resp_schema=schema.SuperStreamPartitionsResponse, raise_exception=False
            )
            if answer.response_code != _NO_SUCH_STREAM:
                answer.check_response_code()
            return list(answer.streams)

    async def stats(self, stream: str) -> dict[str, int]:
        """The broker's statistics of a stream, by name. Raises TransportError.

        ``first_chunk_id``, ``committed_chunk_id`` and ``last_chunk_id`` are each the offset of the first
        record of a chunk, and -1 when the stream is empty.
        """
        self.raise_if_dead()
        correlation_id = self._corr_id_seq.next()
        waiter = asyncio.get_running_loop().create_future()
        self._stats_waiters[correlation_id] = waiter
        name = stream.encode()
        request = struct.pack(">HHIH", _STATS, 1, correlation_id, len(name)) + name
        try:
            with self.translated(f"the statistics of stream {stream!r}"):
                await self.write(len(request).to_bytes(4, "big") + request)
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    answer: dict[str, int] = await waiter
                    return answer
        finally:
            self._stats_waiters.pop(correlation_id, None)

    async def attach(
        self,
        stream: str,
        *,
        subscription_id: int,
        offset: int | None,
        credit: int,
        properties: dict[str, str] | None = None,
    ) -> None:
        """Subscribe from ``offset`` on: 0 is the first record of the stream, None the last chunk.

        The initial credit is 1, and the rest is granted afterwards. The broker withholds chunks until more
        than half of the *initial* credit is free, so with an initial credit of 1 each grant brings a chunk.

        Raises TransportError.
        """
        if offset is None:
            start = schema.OffsetSpec.from_params(OffsetType.LAST, None)
        elif offset == 0:
            start = schema.OffsetSpec.from_params(OffsetType.FIRST, None)
        else:
            start = schema.OffsetSpec.from_params(OffsetType.OFFSET, offset)
        with self.translated(f"the subscription to stream {stream!r}"):
            await self.subscribe(
                stream=stream,
                subscription_id=subscription_id,
                offset_spec=start,
                initial_credit=1,
                properties=properties,
            )
        if credit > 1:
            self.credit_chunks(subscription_id, credit - 1)

    async def detach(self, subscription_id: int) -> None:
        with self.translated("the end of a subscription"):
            await self.unsubscribe(subscription_id)

    def credit_chunks(self, subscription_id: int, chunks: int) -> None:
        if self.dead is None:
            self._conn.write_soon(_CREDIT.pack(7, 0x0009, 1, subscription_id, chunks))

    async def answer_update(self, correlation_id: int, offset: int) -> None:
        """Answer the broker's update; an active consumer then gets the records from ``offset`` on.

        Raises TransportError.
        """
        kind = OffsetType.OFFSET if offset else OffsetType.FIRST
        frame = struct.pack(">HHIHH", _CONSUMER_UPDATE_ANSWER, 1, correlation_id, _OK, kind)
        if offset:
            frame += offset.to_bytes(8, "big")
        await self.write(len(frame).to_bytes(4, "big") + frame)

    async def write(self, frames: bytes) -> None:
        """Send encoded frames, waiting while the socket is full. Raises TransportError."""
        self.raise_if_dead()
        try:
            await self._conn.write_all(frames)
        except OSError as error:
            self.fail(TransportError(f"the connection to {self.address} was cut: {error}"))
        self.raise_if_dead()

    def fail(self, error: TransportError) -> None:
        """Declare the connection dead and wake every waiting task; only the first reason counts."""
        if self.dead is not None:
            return
        self.dead = error
        self._is_not_closed = False
        for waiter in [*self._waiters.values(), *self._stats_waiters.values()]:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # else asyncio complains of an exception that nobody looked at
        if self._conn is not None:
            self._conn.abort()
        self.on_death()

    def raise_if_dead(self) -> None:
        if self.dead is not None:
            raise self.dead.with_traceback(None)

    async def close(self) -> None:
        """Say goodbye if the connection is alive, and release the socket. Never raises."""
        if self.dead is None and self.is_started:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    goodbye = schema.Close(self._corr_id_seq.next(), code=1, reason="OK")
                    await self.sync_request(goodbye, resp_schema=schema.CloseResponse)
        self.fail(TransportError("the connection is closed"))
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Turn the exceptions of rstream and of the socket into TransportError; ``what`` failed."""
        try:
            yield
        except TransportError:
            raise
        except ServerError as error:
            reason = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
            raise TransportError(f"{self.address} refused {what}: {error.args or reason}") from error
        except TimeoutError as error:
            raise TransportError(f"{self.address} did not answer in time: {what}") from error
        except (ClientError, OSError, AssertionError, LookupError, ValueError) as error:
            raise TransportError(f"{self.address} failed {what}: {error!r}") from error

    # --- overrides of rstream's client -------------------------------------------------------------

    async def send_frame(self, frame: Any, version: int = 1) -> None:
        self.raise_if_dead()
        try:
            await self._conn.write_frame(frame, version)
        except OSError as error:
            self.fail(TransportError(f"the connection to {self.address} was cut: {error}"))
        self.raise_if_dead()

    async def _listener(self) -> None:
        try:
            while True:
                self._dispatch(await self._conn.read_frame_bytes())
        except (ConnectionClosed, OSError) as error:
            self.fail(TransportError(f"the connection to {self.address} was cut: {error or 'end of stream'}"))
        except NotAStream as error:
            self.fail(TransportError(f"{self.address} is no stream listener: {error}"))
        except Exception as error:  # a frame that cannot be decoded, or a fault in a callback
            self.fail(TransportError(f"a frame from {self.address} could not be handled: {error!r}"))

    async def _heartbeat_sender(self) -> None:
        """Send heartbeats, and fail when the broker was silent for two heartbeats.

        The task wakes four times a heartbeat, and eight wakes in a row with no read are two silent
        heartbeats. Wakes are counted, not seconds: an event loop that was busy for 60 s did not read either,
        and the broker's silence is then no fault of the broker.
        """
        silent_wakes = 0
        while self.dead is None:
            heard = self._conn.reads
            self._conn.write_soon(_HEARTBEAT)
            await asyncio.sleep(self._heartbeat / 4)
            silent_wakes = 0 if self._conn.reads > heard else silent_wakes + 1
            if silent_wakes >= 8:
                silence_s = 2 * self._heartbeat
                self.fail(TransportError(f"{self.address} was silent for {silence_s} s: taken for cut off"))

    def _dispatch(self, frame: bytes | memoryview) -> None:
        key, version = _HEAD.unpack_from(frame)
        if key == _DELIVER and version == 1:
            self.on_chunk(_delivered(frame))
            return
        raw = bytes(frame)
        if key == _PUBLISH_CONFIRM:
            (count,) = struct.unpack_from(">I", raw, 5)
            self.on_confirm(struct.unpack_from(f">{count}Q", raw, 9))
        elif key == _STATS_ANSWER:
            self._answer_stats(raw)
        elif key == _CONSUMER_UPDATE:
            correlation_id, _, active = struct.unpack_from(">IBB", raw, 4)
            self.on_update(correlation_id, active == 1)
        else:
            self._dispatch_decoded(decode_frame(raw))

    def _dispatch_decoded(self, frame: Any) -> None:
        if isinstance(frame, schema.Close):
            self.fail(TransportError(f"{self.address} closed the connection: {frame.reason}"))
        elif frame.key is Key.MetadataUpdate:
            info = frame.metadata_info
            self.fail(TransportError(f"stream {info.stream!r} was deleted or has moved (code {info.code})"))
        elif frame.key is Key.PublishError:
            codes = sorted({error.response_code for error in frame.errors})
            self.fail(TransportError(f"{self.address} did not store {len(frame.errors)} entries: {codes}"))
        elif isinstance(frame, schema.CreditResponse):
            # The broker answers with this code when it deactivated the consumer while the credit was on its
            # way. The broker counts the credit all the same.
            if frame.response_code != _PRECONDITION_FAILED:
                self.fail(TransportError(f"{self.address} refused a credit (code {frame.response_code})"))
        else:
            if frame.key is Key.Tune:  # zero leaves the choice to us, but rstream would take the zero
                frame.heartbeat = frame.heartbeat or self._heartbeat
                frame.frame_max = frame.frame_max or self._frame_max
            waiter = self._waiters.pop((frame.key, frame.corr_id), None)
            if waiter is not None and not waiter.done():
                waiter.set_result(frame)

    def _answer_stats(self, raw: bytes) -> None:
        correlation_id, code, count = struct.unpack_from(">IHI", raw, 4)
        waiter = self._stats_waiters.pop(correlation_id, None)
        if waiter is None or waiter.done():
            return
        if code != 1:
            waiter.set_exception(ServerError.from_code(code)())
            return
        values, at = {}, 14
        for _ in range(count):
            (length,) = struct.unpack_from(">H", raw, at)
            name = raw[at + 2 : at + 2 + length].decode()
            (values[name],) = struct.unpack_from(">q", raw, at + 2 + length)
            at += 10 + length
        waiter.set_result(values)


def _delivered(raw: bytes | memoryview) -> DeliveredChunk:
    (
        subscription_id,
        magic,
        _kind,
        entries,
        records,
        timestamp_ms,
        _epoch,
        first_offset,
        crc,
        data_bytes,
        _trailer,
        _reserved,
    ) = _CHUNK_HEADER.unpack_from(raw, _HEAD.size)
    start = _HEAD.size + _CHUNK_HEADER.size
    if magic != 0x50 or start + data_bytes > len(raw):
        raise ValueError(f"not a chunk: magic {magic:#x}, {data_bytes} bytes in a frame of {len(raw)}")
    return DeliveredChunk(
        subscription_id=subscription_id,
        first_offset=first_offset,
        entries=entries,
        records=records,
        timestamp_ms=timestamp_ms,
        crc=crc,
        frame=raw,
        start=start,
        end=start + data_bytes,
    )


def _ignore(_: Any) -> None:
    """Drop chunks or confirmations: nobody has asked for them."""


def _ignore_update(_: int, __: bool) -> None:
    """Drop an update: this connection has no single active consumer."""


def _nothing() -> None:
    """Do nothing at the death of a connection: nobody waits for it."""
