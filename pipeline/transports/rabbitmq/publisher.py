"""Publishing to a RabbitMQ stream: send encoded frames, and wait for the confirmations.

The publisher uses the connection itself, not rstream's producer. That producer holds compressed batches back
for a timer of 0.5 s, and after a fault it sends records again without telling the caller.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.transports import TransportError
from pipeline.transports.rabbitmq import batches
from pipeline.transports.rabbitmq.amqp import amqp_message
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.routing import refuse_larger

Framing = Literal["raw", "amqp", "gzip"]

CONFIRM_TIMEOUT_S = 30.0
_BATCH_BYTES = 256 * 2**10
_FRAME_OVERHEAD_BYTES = 2048
"""Room for headers, and for the bytes that gzip adds to a body that it cannot shrink."""


class RabbitMQPublisher:
    """A publisher to one stream; see `pipeline.transports.Publisher`. A TransportError ends it."""

    def __init__(self, connection: StreamConnection, *, framing: Framing) -> None:
        self.closed = False
        self._connection = connection
        self._framing = framing
        self.body_bytes_max = connection.frame_max - _FRAME_OVERHEAD_BYTES
        self._lock = asyncio.Lock()
        self._next_id = 1
        self._unconfirmed: set[int] = set()
        self._news = asyncio.Event()
        connection.on_confirm = self._on_confirm
        connection.on_death = self._news.set

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        refuse_larger(bodies, self.body_bytes_max)  # before anything is sent
        async with self._lock:
            for frame in self._publish_frames(bodies, self.body_bytes_max):
                await self._connection.write(frame)
            while self._unconfirmed:
                self._connection.raise_if_dead()
                self._news.clear()
                try:
                    async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                        await self._news.wait()
                except TimeoutError:
                    self._connection.fail(
                        TransportError(
                            f"no confirmation for {CONFIRM_TIMEOUT_S:g} s: has the stream a quorum?"
                        )
                    )

    async def close(self) -> None:
        self.closed = True
        await self._connection.close()

    def _on_confirm(self, publishing_ids: tuple[int, ...]) -> None:
        self._unconfirmed.difference_update(publishing_ids)
        self._news.set()

    def _publish_frames(self, bodies: Sequence[bytes], room: int) -> Iterator[bytes]:
        """Frames with up to ``room`` bytes of entries each; the ids of the entries become unconfirmed."""
        entries: list[bytes] = []
        frame_bytes = count = 0
        for entry in self._entries(bodies):
            if count and frame_bytes + 8 + len(entry) > room:
                yield _publish_frame(entries, count)
                entries, frame_bytes, count = [], 0, 0
            entries += (self._next_id.to_bytes(8, "big"), entry)
            self._unconfirmed.add(self._next_id)
            self._next_id += 1
            frame_bytes += 8 + len(entry)
            count += 1
        if count:
            yield _publish_frame(entries, count)

    def _entries(self, bodies: Sequence[bytes]) -> Iterator[bytes]:
        if self._framing == "gzip":
            for batch in _batches(bodies, min(_BATCH_BYTES, self.body_bytes_max)):
                unpacked_bytes, stored = batches.gzip_batch(batch)
                yield struct.pack(">BHII", 0x90, len(batch), unpacked_bytes, len(stored)) + stored
            return
        for body in bodies:
            payload = amqp_message(body) if self._framing == "amqp" else body
            yield len(payload).to_bytes(4, "big") + payload


def _publish_frame(entries: Sequence[bytes], count: int) -> bytes:
    payload = b"".join(entries)
    return struct.pack(">IHHBI", 9 + len(payload), 0x0002, 1, 0, count) + payload


def _batches(bodies: Sequence[bytes], bytes_max: int) -> Iterator[Sequence[bytes]]:
    """Cut bodies into sub-entry batches of at most so many bytes; one larger body is a batch of its own.

    So a batch fits in a frame even if gzip cannot shrink the batch.
    """
    start, batch_bytes = 0, 0
    for index, body in enumerate(bodies):
        full = index - start == batches.RECORDS_PER_BATCH_MAX or batch_bytes + 4 + len(body) > bytes_max
        if full and index > start:
            yield bodies[start:index]
            start, batch_bytes = index, 0
        batch_bytes += 4 + len(body)
    if start < len(bodies):
        yield bodies[start:]
