"""Reading a partition while the broker says that it is ours: RabbitMQ's single active consumer.

Of all subscriptions with one group name the broker activates one, and asks each that it activates where to
read from; it asks one that is to step down, and activates the next when that has answered. Owns these
questions and their order; whose offsets they are, and what an owner does with its turn, is `Owner`'s.

A *term* lasts from the answer to an activation to the next deactivation. Credit knows no terms: a chunk
that was received is owed its one grant in whatever term it comes, and at most ``credit`` chunks are
outstanding ever. What a deactivation drops gives its credit back by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque

from pipeline.transports import Owner, TransportError
from pipeline.transports.rabbitmq.connection import CLOSE_TIMEOUT_S, DeliveredChunk, StreamConnection
from pipeline.transports.rabbitmq.subscription import SUBSCRIPTION, RabbitMQSubscription


class CompetingSubscription(RabbitMQSubscription):
    """See `pipeline.transports.Transport.compete`."""

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
        """What the broker does not have yet: it takes credit of an inactive consumer for a mistake."""
        self._updates: deque[tuple[int, bool]] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._activating = False
        connection.on_update = self._on_update
        connection.on_death = self._on_death

    async def start(self) -> None:
        """Join the group. The offset named here is never read from: each activation is answered with one."""
        await self._connection.attach(
            self._stream, subscription_id=SUBSCRIPTION, offset=0, credit=1, properties=self._properties
        )

    async def close(self) -> None:
        """Leave the group, and let the next consumer have the partition.

        An activation that is going on is cancelled; a deactivation may go on for 2 s. Neither is waited
        for before the broker is told.
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
            self._kept_credit += 1  # nobody's: it would come again in the next term
        else:
            super()._on_chunk(chunk)

    def _on_update(self, correlation_id: int, active: bool) -> None:
        if active and self._active:
            raise ValueError("the broker activated a consumer that was active")
        if not active:
            # The broker has stopped sending; what comes from now on is of the next term.
            self._active = False
            self._kept_credit += len(self._delivered)
            self._delivered.clear()
        self._updates.append((correlation_id, active))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_all())

    def _on_death(self) -> None:
        """Claiming must not go on for a partition that is lost; letting go may come to its end."""
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
        # It can have been taken back meanwhile; the broker then expects an answer, and sends nothing.
        self._active = not self._updates
        await self._connection.answer_update(correlation_id, offset)
        if self._active:
            self._connection.credit_chunks(SUBSCRIPTION, self._kept_credit)
            self._kept_credit = 0
