"""Reading a partition while the broker says that it is ours: RabbitMQ's single active consumer.

The broker activates one of all subscriptions with the same group name. It asks the subscription that it
activates for the offset to read from. When another subscription is to take over, the broker first tells the
active one to step down, waits for the answer, and only then activates the other. This module keeps the
broker's questions in order and answers them. The caller's `Owner` object knows the offsets, and works while
the partition is ours.

A *term* lasts from the answer to an activation to the next deactivation. Every chunk that the broker delivers
takes one credit. If the caller has received the chunk, the credit is free when the caller calls `grant`, even
after the chunk's term. If the caller has not received the chunk by the end of the term, the chunk is dropped
and its credit is free at once.

Example: with a credit of 4, the broker has delivered four chunks and the caller has received two of them. At
the deactivation the other two are dropped, so two credits are free. If the next term begins now, the broker
may send two chunks. The two grants that the caller still owes free the other two credits.
"""

from __future__ import annotations

import asyncio
from collections import deque

from pipeline.transports import Owner, TransportError
from pipeline.transports.rabbitmq.connection import CLOSE_TIMEOUT_S, DeliveredChunk, StreamConnection
from pipeline.transports.rabbitmq.subscription import SUBSCRIPTION, RabbitMQSubscription


class CompetingSubscription(RabbitMQSubscription):
    """A subscription that delivers chunks only while the broker says that the partition is ours."""

    def __init__(
        self,
        connection: StreamConnection,
        *,
        stream: str,
        super_stream: str | None,
        group: str,
        partition: int,
        owner: Owner,
        credit: int,
    ) -> None:
        super().__init__(connection, stream=stream, partition=partition, offset=0, credit=credit)
        self._owner = owner
        self._properties = {"single-active-consumer": "true", "name": group}
        if super_stream is not None:
            self._properties["super-stream"] = super_stream
        self._active = False
        self._kept_credit = credit - 1
        """Credit that waits for the next activation: the broker refuses credit from an inactive consumer."""
        self._updates: deque[tuple[int, bool]] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._activating = False
        connection.on_update = self._on_update
        connection.on_death = self._on_death

    async def start(self) -> None:
        """Join the group. The offset 0 is never used: the answer to each activation names the offset."""
        await self._connection.attach(
            self._stream, subscription_id=SUBSCRIPTION, offset=0, credit=1, properties=self._properties
        )

    async def close(self) -> None:
        """Leave the group, so that the broker activates the next consumer.

        The broker is told first, so it waits for nothing here. A running activation is cancelled. A running
        deactivation has 2 s to finish before it is cancelled.
        """
        await super().close()
        answering = self._answering
        if answering is None or answering is asyncio.current_task():
            return
        await asyncio.wait((answering,), timeout=CLOSE_TIMEOUT_S)
        answering.cancel()
        await asyncio.wait((answering,), timeout=CLOSE_TIMEOUT_S)

    def _give_credit(self) -> None:
        if self._active:
            super()._give_credit()
        else:
            self._kept_credit += 1

    def _on_chunk(self, chunk: DeliveredChunk) -> None:
        if chunk.subscription_id == SUBSCRIPTION and not self._active:
            self._kept_credit += 1  # the chunk is dropped: its records come again in the next term
        else:
            super()._on_chunk(chunk)

    def _on_update(self, correlation_id: int, active: bool) -> None:
        if active and self._active:
            raise ValueError("the broker activated a consumer that was active")
        if not active:
            # The broker has stopped sending. Chunks that come later belong to the next term.
            self._active = False
            self._kept_credit += len(self._delivered)
            self._delivered.clear()
        self._updates.append((correlation_id, active))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_all())

    def _on_death(self) -> None:
        """Wake the reader, and cancel an activation: its partition is lost. A deactivation may finish."""
        self._news.set()
        if self._activating and self._answering is not None and self._answering is not asyncio.current_task():
            self._answering.cancel()

    async def _answer_all(self) -> None:
        try:
            while self._updates and self._connection.dead is None:
                correlation_id, active = self._updates.popleft()
                if active:
                    await self._begin_term(correlation_id)
                else:
                    await self._owner.deactivated()
                    await self._connection.answer_update(correlation_id, 0)
        except TransportError as error:
            self._connection.fail(error)
        except Exception as error:
            failed = TransportError(f"the owner of partition {self.partition} failed: {error!r}")
            failed.__cause__ = error
            self._connection.fail(failed)

    async def _begin_term(self, correlation_id: int) -> None:
        self._activating = True
        try:
            place = await self._owner.activated()
            offset = place.offset
            if gone := await self._offset_gone(offset, place.before_us):
                self._connection.fail(gone)
                return
        finally:
            self._activating = False
        self._wanted_offset = offset
        self._next_offset = offset or None
        self._received = None
        # The broker may have deactivated us meanwhile. It still expects the answer, but it sends no chunks.
        self._active = not self._updates
        await self._connection.answer_update(correlation_id, offset)
        if self._active:
            self._connection.credit_chunks(SUBSCRIPTION, self._kept_credit)
            self._kept_credit = 0
