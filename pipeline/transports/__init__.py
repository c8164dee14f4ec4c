"""What a stream is to the rest of the pipeline: chunks, offsets, credit and a tail.

Two streams implement this: `rabbitmq` (RabbitMQ 4 streams through rstream) and `embedded` (an
append-only log in a folder, for the demo and for tests). One contract suite,
``tests/contract/test_transports.py``, holds for both. Nothing here knows what a message says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.core.bodies import IntArray, Unreadable


class TransportError(Exception):
    """The stream cannot be used now: away, cut, or the subscription died.

    The remedy is always the same: drop the subscription, back off, and subscribe again from the
    offset that the database holds. Nothing delivered but not committed counts as consumed.
    """


class StreamAbsent(TransportError):
    """There is no such stream. `Transport.open` declares it, so before the first worker that is no fault."""


class OffsetGone(TransportError):
    """The stream no longer holds the offset asked for: retention or a new stream took it.

    Backing off cannot help. An operator decides what happens to the gap between
    ``wanted_offset`` and ``first_offset``; the pipeline never skips it in silence.
    """

    def __init__(
        self,
        *,
        stream: str,
        wanted_offset: int,
        first_offset: int,
        end_offset: int | None = None,
        replaced: bool = False,
    ) -> None:
        """``end_offset`` is where the next record of the stream goes; below ``wanted_offset`` it
        proves that this is not the stream that was read before. So does ``replaced``: the record before the
        wanted one was stored at another time than the one that was read there.
        """
        if replaced:
            fault = (
                f"the record {wanted_offset - 1} of stream {stream!r} is not the one that was read there:"
                " the stream was deleted and made anew, and events may be gone with the old one"
            )
        elif end_offset is not None and end_offset < wanted_offset:
            fault = (
                f"stream {stream!r} ends at offset {end_offset}, but the database expects {wanted_offset}:"
                " it was deleted and made anew, and events may be gone with the old one"
            )
        else:
            fault = (
                f"stream {stream!r} begins at offset {first_offset}, but the database expects"
                f" {wanted_offset}: events between them are gone from the stream"
            )
        super().__init__(fault)
        self.stream = stream
        self.wanted_offset = wanted_offset
        self.first_offset = first_offset
        self.end_offset = end_offset

    @property
    def remedy(self) -> str:
        """What an operator types to go on past what is lost."""
        return (
            f"spendstream stream accept-gap --stream {self.stream}"
            f" --from {self.wanted_offset} --to {self.first_offset}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What the broker delivers at once: consecutive records with one broker timestamp.

    Record ``i`` of ``bodies`` has the stream offset ``first_offset + i``, but for the `Unreadable` runs
    among them: `offsets` tells. ``next_offset`` is where a subscription that has consumed this chunk goes on
    (it can lie beyond the last record, because offsets of a stream need not be contiguous between chunks).
    What a broker stored as one chunk can come as several, where its batches unpack to much.

    A body is the payload alone: AMQP 1.0 framing and sub-entry batches are already undone.
    """

    partition: int
    first_offset: int
    next_offset: int
    timestamp_us: int
    """When the broker stored the chunk: UTC microseconds since 1970 (brokers give milliseconds)."""
    bodies: Sequence[bytes]
    unreadable: Sequence[Unreadable] = ()
    """Records that have offsets and no bodies: batches that a sender wrote and nobody can undo."""

    def offsets(self) -> IntArray:
        """int64[len(bodies)]: the stream offset of each body."""
        from pipeline.core.bodies import offsets_of  # here, so that --help does without numpy

        return offsets_of(self.first_offset, len(self.bodies), self.unreadable)


class Subscription(Protocol):
    """One partition, read in order from one offset on. Not shared between tasks.

    One that competes (`Transport.compete`) starts again with each activation, from the offset that its owner
    answers; until it is activated, `receive` waits.
    """

    partition: int

    async def receive(self) -> Chunk:
        """Return the next chunk, waiting for it as long as it takes.

        Records below the offset that was subscribed are never in it. The caller owes one `grant`
        for each chunk received, once it has room for another.

        Raises:
            OffsetGone: instead of the first chunk, if the stream has lost the offset.
            TransportError: the subscription is dead (connection cut, stream deleted, frame that
                cannot be decoded, no heartbeat); every later call raises too.
        """
        ...

    def grant(self) -> None:
        """Give back the credit of one chunk; nothing happens when the subscription is dead. Never waits.

        At most ``credit`` chunks are ever outstanding, and each grant brings one more when there is one. A
        chunk that was received before a deactivation is owed its grant like any other, however late it comes.
        """
        ...

    async def caught_up(self, next_offset: int) -> bool:
        """Has everything that the broker had committed when asked been delivered below ``next_offset``?

        True for an empty stream. Never True in error; it can be False once too often, when the broker
        has stored something of its own. Raises TransportError when the broker does not answer.
        """
        ...

    async def offset_lag(self, next_offset: int) -> int:
        """Roughly how many offsets the broker has committed at or above ``next_offset`` (>= 0).

        Granular to one chunk; 0 exactly when `caught_up`. Raises TransportError.
        """
        ...

    async def close(self) -> None:
        """Stop the delivery and release the connection. Never raises; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class ReadFrom:
    """Where the reading of a partition goes on."""

    offset: int
    before_us: int | None = None
    """Broker time of the chunk that held the record before ``offset``; None: not known. A stream that has
    another one there was made anew: `OffsetGone`."""


class Owner(Protocol):
    """Whoever reads a partition while the broker says that it is theirs alone."""

    async def activated(self) -> ReadFrom:
        """The partition is ours from now on: return where to read on.

        Called in a task of its own, never in the reader; delivery starts when it returns. RabbitMQ gives
        it 60 s (``request_timeout``) before it cuts the connection off and asks the next consumer. It is
        cancelled when the partition is lost while it runs. It must not raise: that ends the subscription.
        """
        ...

    async def deactivated(self) -> None:
        """Another consumer is to take over: return when nothing more of ours will be written.

        What was delivered and not yet received is dropped before this is called. The peer's activation
        waits for the return, so keep it short (60 s at most, as above); it must not raise: that ends the
        subscription. Not called when the connection is lost: then `Subscription.receive` raises. Should that
        happen while this runs, it may come to its end, but `Subscription.close` cancels it after 2 s.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What one partition holds: the records from ``first_offset`` on, up to ``end_offset``."""

    stream: str
    first_offset: int
    end_offset: int
    """Where the next record goes."""
    stored_bytes: int | None
    """On disk; None where the stream does not tell."""


class Publisher(Protocol):
    """Appends records to a stream; used by the simulator, trace replay and tests."""

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        """Append the bodies in order; return when the stream has them durably.

        ``keys`` has the routing key of each body, which is its orgId in canonical lower-case text; without
        it, the key is the orgId found in the body. It matters only where there are several partitions
        (`pipeline.transports.routing`); the order holds within each of them.

        Raises:
            TransportError: it cannot be known whether they are. The publisher may be dead: the same
                bodies may be published again by another one, because consumers deduplicate.
            ValueError: a body is larger than the stream takes, or there is not one key for each;
                nothing was appended.
        """
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    """A stream: where its subscriptions and publishers come from."""

    stream: str

    async def open(self) -> None:
        """Connect, and declare a plain stream when there is none of the name, nor a super stream.

        Raises TransportError.
        """
        ...

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> Subscription:
        """Read ``partition`` from ``offset`` on (0: from the first record the stream still has).

        ``credit`` is the number of chunks that may be delivered and not yet granted back.
        Raises TransportError.
        """
        ...

    async def partitions(self) -> Sequence[str]:
        """The stream of each partition, by its number: one for a plain stream, N for a super stream.

        Raises TransportError.
        """
        ...

    async def compete(self, *, partition: int, owner: Owner, credit: int = 4) -> Subscription:
        """Join the consumer group of a partition: of all who did, the broker activates one at a time.

        While another is active, `Subscription.receive` waits. A consumer that is closed, cut off or dead
        loses the partition to the next. ``credit`` as in `subscribe`. Raises TransportError.
        """
        ...

    async def create_super_stream(self, *, partitions: int) -> bool:
        """Create the stream with several partitions; False if it already exists with just so many.

        Each partition gets the retention that a plain stream would. Raises TransportError, also if it exists
        with another number of partitions, or as a plain stream: neither can be changed without losing which
        events were counted where.
        """
        ...

    async def extents(self) -> Sequence[Extent]:
        """How far each partition reaches now. Raises TransportError."""
        ...

    async def stored_us(self, *, partition: int, offset: int) -> int | None:
        """When the broker stored the chunk that holds a record; None if the stream has that record no more.

        UTC microseconds since 1970. Raises TransportError, also for a record that is not committed yet.
        """
        ...

    async def publisher(self) -> Publisher:
        """To all partitions, however many there are. Raises TransportError."""
        ...

    async def ping(self) -> None:
        """Return if the stream can be read now, else raise TransportError. For doctor and readiness."""
        ...

    async def close(self) -> None:
        """Release everything. Never raises; safe to call twice."""
        ...
