"""The worker's place in the consumer group of one partition: join it, receive chunks, join it again.

The broker decides which member owns the partition (`pipeline.transports.Owner`). What the chunks mean, and
whose they are, is left to `pipeline.worker.partition`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.common.backoff import Backoff
from pipeline.core.watermark import BrokerClock
from pipeline.transports import Chunk, OffsetGone, Owner, Subscription, Transport, TransportError
from pipeline.worker.life import Life

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A chunk, the subscription that is owed its grant, and the term in which the chunk came."""

    chunk: Chunk
    subscription: Subscription
    term: int


class Membership:
    """The subscription to one partition while the broker is there, and the reason while it is not."""

    def __init__(
        self,
        transport: Transport,
        *,
        index: int,
        stream: str,
        owner: Owner,
        life: Life,
        steady_us: Callable[[], int],
        backoff: Callable[[], Backoff],
    ) -> None:
        """``owner`` answers the broker's questions, and ``life`` numbers its terms."""
        self._transport = transport
        self._index = index
        self._stream = stream
        self._owner = owner
        self._life = life
        self._steady_us = steady_us
        self._backoff = backoff
        self._broker_clock = BrokerClock()
        self._waits_for_news = False
        self._subscription: Subscription | None = None
        self._gap: OffsetGone | None = None
        self._away: str | None = "not connected yet"
        self.failure: Exception | None = None
        """Why the group must not be joined again: `receive` raises this error."""

    async def receive(self) -> Delivery:
        """The next chunk, waiting for it. While the stream is away, join the consumer group again and again.

        Raises `failure`, once the subscription has ended.
        """
        backoff = self._backoff()
        while True:
            try:
                subscription = self._subscription
                if subscription is None:
                    await self._transport.open()
                    subscription = await self._transport.compete(partition=self._index, owner=self._owner)
                    self._subscription = subscription
                    log.info("stream_joined", extra={"stream": self._stream})
                    self._away = None
                # A chunk may still come while another task leaves the group. Its grant belongs to the
                # subscription that it came from, which `self._subscription` then does not name any more.
                chunk = await subscription.receive()
                if self._waits_for_news:  # we had read everything, so the broker has just stored this chunk
                    self._broker_clock.heard(chunk.timestamp_us, monotonic_us=self._steady_us())
                    self._waits_for_news = False
                return Delivery(chunk, subscription, self._life.term)
            except TransportError as error:
                if self.failure is not None:
                    raise self.failure from error
                self._stream_away(error)
                await self.leave()
                await backoff.wait()

    def _stream_away(self, error: TransportError) -> None:
        if isinstance(error, OffsetGone):
            self._gap = error
            facts = {"stream": self._stream, "error": str(error), "remedy": error.remedy}
            log.critical("offset_gone", extra=facts)
        elif self._away != str(error):
            log.warning("stream_away", extra={"stream": self._stream, "error": str(error)})
        self._away = str(error)

    async def leave(self) -> None:
        """End the subscription, if there is one. The next `receive` joins the group again."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    def error(self, next_offset: int | None) -> str | None:
        """Why nothing can be read at ``next_offset`` (None: we own nothing); None while all is well.

        A gap is reported until it is passed, even when the group has been joined again meanwhile.
        """
        gap = self._gap
        if gap is not None and next_offset == gap.wanted_offset:
            return str(gap)
        return self._away

    async def lag(self, next_offset: int) -> int | None:
        """How many offsets the broker has from ``next_offset`` on; None: it does not answer."""
        if self._subscription is None:
            return None
        try:
            lag = await self._subscription.offset_lag(next_offset)
        except TransportError:
            return None
        if lag == 0:  # a lag does not reset this: the chunk of the lag may be the news that is on its way
            self._waits_for_news = True
        return lag

    @property
    def first_offset(self) -> int | None:
        """The first offset that the stream had when `lag` was last known; None: nobody has asked."""
        return None if self._subscription is None else self._subscription.first_offset

    def broker_now_us(self, *, host_us: int) -> int:
        """The broker's time: ``host_us``, unless the host's clock is ahead of what the broker has told."""
        return self._broker_clock.now_us(host_us=host_us, monotonic_us=self._steady_us())
