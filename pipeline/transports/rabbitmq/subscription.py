"""Reading one RabbitMQ stream in order: offsets, credit and the questions of lag.

A subscription keeps the delivered chunks and the credit that is owed for them. `connection` handles the life
and death of the connection, and `frames` decodes the bytes of a chunk. A subscription that fails stays
failed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from isal import isal_zlib

from pipeline.transports import Chunk, OffsetGone, TransportError
from pipeline.transports.rabbitmq import frames
from pipeline.transports.rabbitmq.connection import CLOSE_TIMEOUT_S, DeliveredChunk, StreamConnection

SUBSCRIPTION, _PROBE = 0, 1


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
        """The number of chunks whose last part was received, and whose credit is not given back yet."""
        self._outstanding: deque[bool] = deque()
        """One item for each part that was received and not granted: is the part the last of its chunk?"""
        self._parts: tuple[DeliveredChunk, Iterator[frames.Part]] | None = None
        """The chunk that is being handed on, and its remaining parts."""
        self._delivered: deque[DeliveredChunk] = deque()
        self._probed: DeliveredChunk | None = None
        self._news = asyncio.Event()
        self._next_offset: int | None = offset or None
        self._received: tuple[int, int] | None = None
        """First and next offset of the last chunk that was received."""
        self._seen_end: tuple[int, int] | None = None
        """The answer of the last probe: the broker's last chunk then, and the offset after its records."""
        self.first_offset: int | None = None
        self._asked_chunk = -1
        """The committed chunk when `offset_lag` last asked."""
        self._seen_overtaken_at = -1
        """The next offset at which `_end_if_stuck` once saw the reader silent and overtaken; -1: not seen."""
        self._probe_lock = asyncio.Lock()
        self._probes: set[asyncio.Task[int | None]] = set()
        connection.on_chunk = self._on_chunk
        connection.on_death = self._news.set

    async def start(self) -> None:
        """Check that the stream still has the offset, and start the delivery from it."""
        if gone := await self._offset_gone(self._wanted_offset):
            self._connection.fail(gone)
            return
        await self._connection.attach(
            self._stream,
            subscription_id=SUBSCRIPTION,
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
            if len(self._outstanding) >= self._credit:
                # A chunk may unpack to many parts. Each part takes one credit, so a part is unpacked only
                # when a credit is left for it.
                self._news.clear()
                await self._news.wait()
                continue
            # The chunk stays in the queue until its last part is returned, so a cancelled call loses nothing.
            delivered = self._delivered[0]
            expected = delivered.first_offset if self._next_offset is None else self._next_offset
            if delivered.next_offset <= expected:
                self._delivered.popleft()
                self._give_credit()
                continue
            if delivered.first_offset > expected and not await self._gap_is_harmless(delivered, expected):
                continue
            part = self._next_part(delivered, expected)
            last = part.next_offset == delivered.next_offset
            if last:
                self._delivered.popleft()
                self._parts = None
                self._ungranted += 1
                self._received = (delivered.first_offset, delivered.next_offset)
            self._outstanding.append(last)
            self._next_offset = part.next_offset
            return Chunk(
                partition=self.partition,
                first_offset=part.first_offset,
                next_offset=part.next_offset,
                timestamp_us=delivered.timestamp_ms * 1000,
                bodies=part.bodies,
                unreadable=part.unreadable,
            )

    def grant(self) -> None:
        if self._connection.dead is None:
            assert self._outstanding, "a grant without a chunk that was received"
            if self._outstanding.popleft():
                self._ungranted -= 1
                self._give_credit()
            self._news.set()

    async def caught_up(self, next_offset: int) -> bool:
        return await self.offset_lag(next_offset) == 0

    async def offset_lag(self, next_offset: int) -> int:
        """See `pipeline.transports.Subscription.offset_lag`.

        The broker names the first offset of its last committed chunk, but not where this chunk ends. The end
        is known if we have received the chunk. Otherwise a probe reads the last chunk.

        The last chunk can also be one of the broker's own (offset tracking), which is never delivered. So if
        the committed chunk is the same as at the last question and no chunk comes, the probe shows where the
        last record of a publisher is.
        """
        self._connection.raise_if_dead()
        stats = await self._connection.stats(self._stream)
        self._end_if_stuck(stats["first_chunk_id"])
        self.first_offset = max(0, stats["first_chunk_id"])
        committed_chunk = stats["committed_chunk_id"]
        stands_still = committed_chunk == self._asked_chunk
        self._asked_chunk = committed_chunk
        if committed_chunk < 0:
            # A new leader has no committed chunk until its replicas answer, even if its stream holds chunks.
            return 0 if stats["first_chunk_id"] < 0 else 1
        if self._received is not None and self._received[0] == committed_chunk:
            return max(0, self._received[1] - next_offset)
        undelivered = committed_chunk >= next_offset
        if undelivered and (self._delivered or not stands_still):
            return committed_chunk + 1 - next_offset
        end = await self._end_of_last_chunk(committed_chunk)
        if end is not None:
            return max(0, end - next_offset)
        # The probe saw no record. If a committed chunk begins at or above `next_offset`, and did not come
        # although we had credit left, then no publisher's record is there, and the lag is 0. Otherwise the
        # last chunk is not committed yet.
        return 0 if undelivered and self._ungranted < self._credit else 1

    async def extent(self) -> tuple[int, int]:
        """The first offset that the stream holds, and where its next record goes. Raises TransportError."""
        stats = await self._connection.stats(self._stream)
        if stats["committed_chunk_id"] < 0:
            return 0, 0
        end_offset = await self._end_of_last_chunk(stats["committed_chunk_id"])
        return max(0, stats["first_chunk_id"]), end_offset or stats["committed_chunk_id"]

    async def close(self) -> None:
        self.closed = True
        await self._connection.close()
        if probes := self._probes:
            for probe in probes:
                probe.cancel()
            await asyncio.wait(probes, timeout=CLOSE_TIMEOUT_S)

    def _give_credit(self) -> None:
        self._connection.credit_chunks(SUBSCRIPTION, 1)

    def _on_chunk(self, chunk: DeliveredChunk) -> None:
        if chunk.subscription_id == _PROBE:
            self._probed = chunk
        elif len(self._delivered) + self._ungranted >= self._credit:
            raise ValueError("the broker delivered more chunks than it had credit for")
        else:
            self._delivered.append(chunk)
            self._news.set()

    def _next_part(self, delivered: DeliveredChunk, expected: int) -> frames.Part:
        """The next part of the chunk, from the record ``expected`` on.

        A broken chunk ends the subscription: raises TransportError.
        """
        try:
            if self._parts is None or self._parts[0] is not delivered:
                self._parts = delivered, self._decode(delivered)
            for part in self._parts[1]:
                if part.next_offset > expected:
                    return part.since(expected)
            raise frames.BrokenChunk("its parts do not reach its end")
        except frames.BrokenChunk as error:
            self._connection.fail(
                TransportError(
                    f"chunk {delivered.first_offset} of stream {self._stream!r} is unreadable: {error}"
                )
            )
            raise self._connection.dead from error  # type: ignore[misc]

    @staticmethod
    def _decode(chunk: DeliveredChunk) -> Iterator[frames.Part]:
        """Raises BrokenChunk."""
        with memoryview(chunk.frame) as view:
            if isal_zlib.crc32(view[chunk.start : chunk.end]) != chunk.crc:
                raise frames.BrokenChunk("its checksum does not hold")
        return frames.decode_parts(
            chunk.frame,
            chunk.start,
            chunk.end,
            entries=chunk.entries,
            records=chunk.records,
            first_offset=chunk.first_offset,
        )

    async def stored_us(self, offset: int) -> int | None:
        """See `pipeline.transports.Transport.stored_us`."""
        async with self._probe_lock:
            chunk = await self._first_chunk_from(offset)
        if chunk is None:
            raise TransportError(f"record {offset} of stream {self._stream!r} is not committed yet")
        return chunk.timestamp_ms * 1000 if chunk.first_offset <= offset < chunk.next_offset else None

    async def _offset_gone(self, wanted_offset: int, before_us: int | None = None) -> OffsetGone | None:
        """The gap, if retention or a new stream of the same name has taken the wanted offset; else None.

        See `ReadFrom` for ``before_us``. Raises TransportError.
        """
        if wanted_offset == 0:
            return None
        stats = await self._connection.stats(self._stream)
        first_offset, end_offset = max(0, stats["first_chunk_id"]), None
        last_chunk = stats["last_chunk_id"]  # a new leader names its last chunk before it commits anything
        if last_chunk < 0:
            end_offset = 0
        elif last_chunk < wanted_offset:
            end_offset = await self._end_of_last_chunk(last_chunk)
        replaced = False
        if first_offset <= wanted_offset and (end_offset is None or end_offset >= wanted_offset):
            stored_us = None if before_us is None else await self.stored_us(wanted_offset - 1)
            replaced = stored_us is not None and stored_us != before_us
            if not replaced:
                return None
        return OffsetGone(
            stream=self._stream,
            wanted_offset=wanted_offset,
            first_offset=first_offset,
            end_offset=end_offset,
            replaced=replaced,
        )

    async def _gap_is_harmless(self, delivered: DeliveredChunk, expected: int) -> bool:
        """Is nothing lost where the offsets jump? False: ``delivered`` is no longer the next chunk.

        Offsets jump without loss where the broker keeps a chunk of its own. They jump with loss where
        retention has deleted records that were not read. Example: 500 is expected and the chunk begins at
        510. If the stream still begins at or below 500, nothing is lost. If the stream begins at 505, the
        records 500 to 504 may be lost.

        Raises TransportError if retention took records.
        """
        first_offset = (await self._connection.stats(self._stream))["first_chunk_id"]
        if not self._delivered or self._delivered[0] is not delivered:
            return False
        if first_offset <= expected:
            return True
        raise self._overtaken(expected, first_offset)

    def _end_if_stuck(self, first_offset: int) -> None:
        """End the subscription if retention overtook its reader at the broker and the reader stays silent.

        The reader of RabbitMQ 4 waits for ever if it comes to the end of a segment file while the broker
        deletes the next segment files. New records do not wake the reader. A chunk may just be on its way to
        us, so the subscription ends only when two questions in a row find the reader silent at the same
        offset.

        Raises TransportError.
        """
        silent = not self._delivered and self._ungranted < self._credit
        if self._next_offset is None or first_offset <= self._next_offset or not silent:
            self._seen_overtaken_at = -1
        elif self._seen_overtaken_at == self._next_offset:
            raise self._overtaken(self._next_offset, first_offset)
        else:
            self._seen_overtaken_at = self._next_offset

    def _overtaken(self, expected: int, first_offset: int) -> TransportError:
        error: TransportError = TransportError(f"retention overtook the reader of stream {self._stream!r}")
        if self._received is None:
            error = OffsetGone(stream=self._stream, wanted_offset=expected, first_offset=first_offset)
        self._connection.fail(error)
        return error

    async def _end_of_last_chunk(self, last_chunk: int) -> int | None:
        """The offset after the last record of a publisher, read by a probe; None if there is no record yet.

        ``last_chunk`` is the chunk that the broker has just named as its last one. The answer is kept until
        the broker names another chunk. A probe runs to its end even if its caller is cancelled, because the
        probe must end its own subscription.
        """
        probe = asyncio.create_task(self._probe(last_chunk))
        self._probes.add(probe)
        try:
            return await asyncio.shield(probe)
        finally:
            self._probes = {one for one in self._probes if not one.done()}

    async def _probe(self, last_chunk: int) -> int | None:
        async with self._probe_lock:
            if self._seen_end is None or self._seen_end[0] != last_chunk:
                chunk = await self._first_chunk_from(None)
                if chunk is None:
                    return None
                self._seen_end = (last_chunk, chunk.next_offset)
            return self._seen_end[1]

    async def _first_chunk_from(self, offset: int | None) -> DeliveredChunk | None:
        """The chunk that holds the record at ``offset``, or else the next chunk; at None the last chunk.

        None if there is no such chunk yet. Raises TransportError.
        """
        self._probed = None
        # The broker sends the chunk before it answers the detach.
        await self._connection.attach(self._stream, subscription_id=_PROBE, offset=offset, credit=1)
        await self._connection.detach(_PROBE)
        probed, self._probed = self._probed, None
        return probed
