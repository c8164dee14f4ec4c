"""The stream, as the rest of the pipeline sees it: chunks, offsets, credit and an end.

Two transports implement these protocols: `rabbitmq` (RabbitMQ 4 streams through rstream) and `embedded` (an
append-only log in a folder, for the demo and for tests). One contract suite,
``tests/contract/transports``, holds for both. The content of a record is left to the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.core.bodies import IntArray, Unreadable


class TransportError(Exception):
    """The stream cannot be used now: it is away, the connection was cut, or the subscription died.

    The remedy is always the same: drop the subscription, back off, and subscribe again from the offset that
    the database holds. Records that were delivered and not committed are read again.
    """


class StreamAbsent(TransportError):
    """The stream does not exist. The remedy: `Transport.open` declares it, as the first worker does."""


class OffsetGone(TransportError):
    """The stream does not have the wanted offset any more, because of retention or because the stream is new.

    Backing off cannot help, and the worker stops reading at the gap. The remedy: an operator decides about
    the gap between ``wanted_offset`` and ``first_offset``, and `remedy` is the command to go on past it.
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
        """``end_offset`` is the offset of the stream's next record. If it is below ``wanted_offset``, the
        stream is not the stream that was read before. ``replaced`` proves the same: the record before the
        wanted offset was stored at another time than the record that was read there.
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
        """The command by which an operator goes on past the gap."""
        return (
            f"spendstream stream accept-gap --stream {self.stream}"
            f" --from {self.wanted_offset} --to {self.first_offset}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive records that the broker stored at one time, and delivers together.

    `offsets` has the stream offset of each body. Without `Unreadable` runs, body ``i`` has the offset
    ``first_offset + i``. Each unreadable record takes an offset too. Example: a chunk begins at 100 with two
    bodies, then an unreadable batch of 10 records, then one body. The bodies have the offsets 100, 101 and
    112.

    A subscription goes on at ``next_offset`` after this chunk. Some offsets of a stream are never used, so
    ``next_offset`` can lie beyond the last record by more than one. A stored chunk whose batches unpack to
    many bytes comes as several chunks.

    A body is the payload alone, without AMQP 1.0 framing and unpacked from its sub-entry batch.
    """

    partition: int
    first_offset: int
    next_offset: int
    timestamp_us: int
    """The broker time: UTC microseconds since 1970. Brokers give milliseconds."""
    bodies: Sequence[bytes]
    unreadable: Sequence[Unreadable] = ()
    """Records that have offsets and no bodies, because their batch cannot be unpacked."""

    def offsets(self) -> IntArray:
        """int64[len(bodies)]: the stream offset of each body."""
        from pipeline.core.bodies import offsets_of  # here, so that --help does without numpy

        return offsets_of(self.first_offset, len(self.bodies), self.unreadable)


class Subscription(Protocol):
    """One partition, read in order from one offset on. Not shared between tasks.

    A subscription of `Transport.compete` starts again with each activation, from the offset that its owner
    returns. Until the broker activates it, `receive` waits.
    """

    partition: int
    first_offset: int | None
    """The first offset that the stream had when `offset_lag` last answered; None before that. Retention
    deletes from the front, so the distance to what was read says how near a loss is."""

    async def receive(self) -> Chunk:
        """The next chunk, waiting for it as long as it takes.

        The chunk has no records below the subscribed offset. The caller owes one `grant` for each received
        chunk, as soon as it has room for another.

        Raises:
            OffsetGone: instead of the first chunk, if the stream has lost the offset.
            TransportError: the subscription is dead (connection cut, stream deleted, frame that
                cannot be decoded, no heartbeat); every later call raises too.
        """
        ...

    def grant(self) -> None:
        """Give the credit of one chunk back. Never waits, and does nothing when the subscription is dead.

        At most ``credit`` chunks are received and not granted at any time. Example: with a credit of 4, the
        fifth chunk comes only after the first grant. A chunk that was received before a deactivation is
        granted like any other, also when the grant comes after the deactivation.
        """
        ...

    async def caught_up(self, next_offset: int) -> bool:
        """Does every record that the broker has committed at this moment lie below ``next_offset``?

        True for an empty stream. True is always right. False can be wrong for one call, after the broker has
        stored a chunk of its own. Raises TransportError when the broker does not answer.
        """
        ...

    async def offset_lag(self, next_offset: int) -> int:
        """About the number of offsets that the broker has committed at or above ``next_offset`` (>= 0).

        Right to within one chunk, and 0 exactly when `caught_up` is True. Raises TransportError.
        """
        ...

    async def close(self) -> None:
        """Stop the delivery and release the connection. Never raises; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class ReadFrom:
    """The place at which the reading of a partition goes on."""

    offset: int
    before_us: int | None = None
    """The broker time of the chunk that held the record before ``offset``; None: not known.

    If the stream has another time there, the stream was made anew, and the subscription raises `OffsetGone`.
    """


class Owner(Protocol):
    """The reader of a partition, while the broker says that no other reader has the partition."""

    async def activated(self) -> ReadFrom:
        """Take the partition over, and return the place to read on from.

        The call has a task of its own, and the delivery starts when it returns. RabbitMQ waits 60 s
        (``request_timeout``). After that it cuts the connection off and asks the next consumer. The call is
        cancelled if the partition is lost meanwhile. An exception ends the subscription.
        """
        ...

    async def deactivated(self) -> None:
        """Hand the partition over: return when this owner will write nothing more.

        Chunks that were delivered and not received are dropped before this call. The next consumer is
        activated only after the return, so keep the call short: 60 s at most, as for `activated`. An
        exception ends the subscription.

        If the connection is lost, this is not called, and `Subscription.receive` raises. If the connection is
        lost during the call, the call may finish, but `Subscription.close` cancels it after 2 s.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The records that one partition holds: [first_offset, end_offset)."""

    stream: str
    first_offset: int
    end_offset: int
    """The offset of the next record."""
    stored_bytes: int | None
    """The bytes on disk; None if the stream does not tell."""


class Publisher(Protocol):
    """Appends records to a stream; used by the collector, the simulator, trace replay and tests."""

    @property
    def body_bytes_max(self) -> int:
        """The size of the largest body that the stream takes. Another publisher may have another bound."""
        ...

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        """Append the bodies in order; return when the stream has stored them durably.

        ``keys`` has the routing key of each body: its orgId in canonical lower-case text. Without ``keys``,
        the key is the orgId in the body. Keys matter only for several partitions
        (`pipeline.transports.routing`), and the order then holds within each partition.

        Raises:
            TransportError: nobody knows whether the bodies are stored, and the publisher may be dead. Publish
                the same bodies again with another publisher: consumers deduplicate.
            ValueError: a body is larger than `body_bytes_max`, or there is not one key for each body; nothing
                was appended.
        """
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    """A stream: makes the subscriptions and publishers of its partitions."""

    stream: str

    async def open(self) -> None:
        """Connect, and declare a plain stream if neither a stream nor a super stream has the name.

        Raises TransportError.
        """
        ...

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> Subscription:
        """Read ``partition`` from ``offset`` on; 0 reads from the first record that the stream still has.

        ``credit`` is the number of chunks that may be delivered and not granted. Raises TransportError.
        """
        ...

    async def partitions(self) -> Sequence[str]:
        """The stream of each partition, by number: one for a plain stream, N for a super stream.

        Raises TransportError.
        """
        ...

    async def compete(self, *, partition: int, owner: Owner, credit: int = 4) -> Subscription:
        """Join the consumer group of a partition. The broker activates one member of the group at a time.

        While another member is active, `Subscription.receive` waits. A member that is closed, cut off or dead
        loses the partition to the next member. ``credit`` is as in `subscribe`. Raises TransportError.
        """
        ...

    async def create_super_stream(self, *, partitions: int) -> bool:
        """Create the stream with several partitions; False if it already exists with this number.

        Each partition gets the retention that a plain stream would get.

        Raises TransportError, also if the stream exists with another number of partitions, or as a plain
        stream. With another number, an org would move to another partition, which does not know the org's
        event ids.
        """
        ...

    async def extents(self) -> Sequence[Extent]:
        """The records that each partition holds now. Raises TransportError."""
        ...

    async def stored_us(self, *, partition: int, offset: int) -> int | None:
        """The broker time of the chunk that holds a record; None if the stream has lost the record.

        UTC microseconds since 1970. Raises TransportError, also for a record that is not committed yet.
        """
        ...

    async def publisher(self) -> Publisher:
        """A publisher to all partitions. Raises TransportError."""
        ...

    async def ping(self) -> None:
        """Return if the stream can be read now, else raise TransportError. The doctor uses this."""
        ...

    async def close(self) -> None:
        """Release everything. Never raises; safe to call twice."""
        ...
