"""The RabbitMQ stream transport: one connection to the leader for each subscription and publisher.

Owns addresses, names and declarations: of a plain stream, which is one partition, and of a super stream,
which has several. Reading is `rabbitmq_subscription`'s, taking turns at it `rabbitmq_competing`'s. There
is no reconnecting here: a subscription that fails stays failed, and the caller starts again from the
offset that the database holds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from rstream.exceptions import StreamAlreadyExists

from pipeline.config import StreamConfig
from pipeline.transports import Extent, Owner, StreamAbsent, TransportError
from pipeline.transports.rabbitmq.competing import CompetingSubscription
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.publisher import Framing, RabbitMQPublisher
from pipeline.transports.rabbitmq.subscription import RabbitMQSubscription
from pipeline.transports.routing import RoutingPublisher

LEADER_ATTEMPTS = 5
LEADER_ATTEMPTS_GIVEN, LEADER_LOOK_S = 20, 0.05
"""Behind a load balancer each attempt may land on another node, and only one of them leads the stream."""
CREATION_LOOKS, CREATION_LOOK_S = 20, 0.1
ABSENCE_LOOKS, ABSENCE_LOOK_S = 5, 0.1
SEGMENT_BYTES_MAX = 500_000_000
Reading = TypeVar("Reading", bound=RabbitMQSubscription)


class RabbitMQTransport:
    """A stream of a RabbitMQ broker or cluster. See `pipeline.transports.Transport`."""

    def __init__(self, config: StreamConfig) -> None:
        """A connection that is silent for two heartbeats is taken for dead, by us and by the broker; it looks
        twice a heartbeat, so that the partitions of a frozen owner are another's within three.

        Raises ValueError if the URL is none of ours, or its CA file cannot be read.
        """
        url = urlsplit(config.url)
        if url.scheme not in ("rabbitmq-stream", "rabbitmq-stream+tls"):
            raise ValueError("expected a URL like rabbitmq-stream://user:password@host:5552/vhost")
        self.stream = config.stream
        self._config = config
        self._tls = _tls_context(config.ca_file) if url.scheme.endswith("+tls") else None
        self._addresses = addresses(config.url)
        """Those of the URL, the one that answered last first."""
        credentials, _, _ = url.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        self._user = unquote(user or "guest")
        self._password = unquote(password or "guest")
        self._vhost = unquote(url.path[1:]) or "/"
        self._control: StreamConnection | None = None
        self._control_lock = asyncio.Lock()
        self._opened: set[RabbitMQSubscription | RabbitMQPublisher] = set()
        self._known_partitions: list[str] = []

    async def open(self) -> None:
        async with self._control_lock:
            control = await self._live_control()
            if await self._is_absent(control):
                await self._declare(control)
            await self._ping(control)

    async def partitions(self) -> Sequence[str]:
        async with self._control_lock:
            return await self._existing_partitions(await self._live_control())

    async def subscribe(self, *, partition: int, offset: int, credit: int = 4) -> RabbitMQSubscription:
        if credit < 1:
            raise ValueError("a subscription needs a credit of at least 1")
        connection, stream = await self._connect_to_leader(partition, f"partition-{partition}")
        subscription = RabbitMQSubscription(
            connection, stream=stream, partition=partition, offset=offset, credit=credit
        )
        return await self._started(subscription)

    async def compete(self, *, partition: int, owner: Owner, credit: int = 4) -> CompetingSubscription:
        if credit < 1:
            raise ValueError("a subscription needs a credit of at least 1")
        connection, stream = await self._connect_to_leader(partition, f"partition-{partition}")
        subscription = CompetingSubscription(
            connection,
            stream=stream,
            super_stream=None if stream == self.stream else self.stream,
            group=self._config.consumer,
            partition=partition,
            owner=owner,
            credit=credit,
        )
        return await self._started(subscription)

    async def create_super_stream(self, *, partitions: int) -> bool:
        if partitions < 1:
            raise ValueError("a super stream needs at least one partition")
        async with self._control_lock:
            control = await self._live_control()
            existing = await self._partitions(control)
            if not existing:
                streams = [f"{self.stream}-{number}" for number in range(partitions)]
                keys = [str(number) for number in range(partitions)]
                arguments = self._retention() | {"queue-leader-locator": "balanced"}
                try:
                    with control.translated(f"the creation of super stream {self.stream!r}"):
                        await control.create_super_stream(self.stream, streams, keys, arguments)
                    return True
                except TransportError as error:
                    existing = await self._created_by_another(streams, error)
        if existing == [self.stream]:
            raise TransportError(f"{self.stream!r} is a plain stream; only another name can have partitions")
        if len(existing) != partitions:
            raise TransportError(f"stream {self.stream!r} has {len(existing)} partitions, not {partitions}")
        return False

    async def extents(self) -> Sequence[Extent]:
        return [await self._extent(partition) for partition in range(len(await self.partitions()))]

    async def stored_us(self, *, partition: int, offset: int) -> int | None:
        connection, stream = await self._connect_to_leader(partition, "record")
        looking = RabbitMQSubscription(connection, stream=stream, partition=partition, offset=0, credit=1)
        try:
            return await looking.stored_us(offset)
        finally:
            await looking.close()

    async def publisher(self, framing: Framing = "raw") -> RabbitMQPublisher | RoutingPublisher:
        """``framing`` is how bodies are sent: as they are, as AMQP 1.0 messages as other clients do,
        or raw in gzip sub-entry batches."""
        publishers: list[RabbitMQPublisher] = []
        try:
            for partition in range(len(await self.partitions())):
                publishers.append(await self._partition_publisher(partition, framing))
        except BaseException:
            for publisher in publishers:
                await publisher.close()
            raise
        return publishers[0] if len(publishers) == 1 else RoutingPublisher(publishers)

    async def ping(self) -> None:
        async with self._control_lock:
            await self._ping(await self._live_control())

    async def delete(self) -> None:
        """Delete the stream, or the super stream and its partitions, if it is there. Raises TransportError.

        Not a part of `Transport`: only a bench ever throws its events away.
        """
        async with self._control_lock:
            control = await self._live_control()
            existing = await self._partitions(control)
            with control.translated(f"the deletion of stream {self.stream!r}"):
                if existing == [self.stream]:
                    await control.delete_stream(self.stream)
                elif existing:
                    await control.delete_super_stream(self.stream)
            self._known_partitions = []

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()
        if self._control is not None:
            await self._control.close()

    async def _started(self, subscription: Reading) -> Reading:
        try:
            await subscription.start()
        except BaseException:
            await subscription.close()
            raise
        self._remember(subscription)
        return subscription

    async def _created_by_another(self, streams: Sequence[str], error: TransportError) -> list[str]:
        """The partitions, if somebody else has made them at the same time; else raises ``error``.

        The broker makes the streams first and the exchange that binds them last, and neither excludes other
        creators nor undoes all of its work when it fails.
        """
        for _ in range(CREATION_LOOKS):
            control = await self._live_control()
            if existing := await self._partitions(control):
                return existing
            await asyncio.sleep(CREATION_LOOK_S)
        if left := [stream for stream in streams if await control.exists(stream)]:
            raise TransportError(
                f"{', '.join(left)} exist without their super stream {self.stream!r}, left by a creation that"
                " failed: delete them and create it again"
            ) from error
        raise error

    async def _partition_publisher(self, partition: int, framing: Framing) -> RabbitMQPublisher:
        connection, stream = await self._connect_to_leader(partition, "publisher")
        try:
            with connection.translated(f"a publisher to stream {stream!r}"):
                await connection.declare_publisher(stream=stream, reference=None, publisher_id=0)
        except BaseException:
            await connection.close()
            raise
        publisher = RabbitMQPublisher(connection, framing=framing)
        self._remember(publisher)
        return publisher

    async def _extent(self, partition: int) -> Extent:
        connection, stream = await self._connect_to_leader(partition, "extent")
        looking = RabbitMQSubscription(connection, stream=stream, partition=partition, offset=0, credit=1)
        try:
            first_offset, end_offset = await looking.extent()
        finally:
            await looking.close()
        return Extent(stream=stream, first_offset=first_offset, end_offset=end_offset, stored_bytes=None)

    async def _ping(self, control: StreamConnection) -> None:
        for stream in await self._existing_partitions(control):
            await control.leader(stream)

    async def _existing_partitions(self, connection: StreamConnection) -> list[str]:
        partitions = await self._partitions(connection)
        if not partitions:
            raise StreamAbsent(f"stream {self.stream!r} does not exist")
        return partitions

    async def _partitions(self, connection: StreamConnection) -> list[str]:
        """The stream of each partition; none if there is neither a stream nor a super stream.

        While a broker starts it shows a super stream without its partitions, then with some of them, which
        would number them wrongly. So partitions count once all have a leader and the broker then shows the
        same ones; and those that were known stay, by their numbers, as long as we live.
        """
        found = await self._shown_partitions(connection)
        if found and found != self._known_partitions:
            for stream in found:
                await connection.leader(stream)
            if found != await self._shown_partitions(connection):
                raise TransportError(f"the partitions of {self.stream!r} change: the broker is starting")
            if found[: len(self._known_partitions)] != self._known_partitions:
                raise TransportError(
                    f"stream {self.stream!r} has the partitions {', '.join(found)}, and before had"
                    f" {', '.join(self._known_partitions)}: the broker is starting, or it was created anew"
                )
            self._known_partitions = found
        return found

    async def _is_absent(self, control: StreamConnection) -> bool:
        """Is there no stream and no super stream? Raises TransportError if there may be one.

        A plain stream of a super stream's name would stop all work on it, and a broker that starts denies its
        super streams for some tenths of a second. It knows their partitions' streams by then.
        """
        if await self._partitions(control):
            return False
        for _ in range(ABSENCE_LOOKS):
            for partition in sorted({f"{self.stream}-0", *self._known_partitions} - {self.stream}):
                if await control.exists(partition):
                    raise TransportError(
                        f"there is {partition!r}, but neither a stream nor a super stream {self.stream!r}:"
                        " the broker is starting, or it is being created, or its creation failed"
                    )
            await asyncio.sleep(ABSENCE_LOOK_S)
            if await self._partitions(control):
                return False
        return True

    async def _shown_partitions(self, connection: StreamConnection) -> list[str]:
        is_stream = await connection.exists(self.stream)
        partitions = await connection.partitions_of(self.stream)
        if is_stream and partitions:
            raise TransportError(
                f"there are both a stream and a super stream {self.stream!r}: delete or rename the one that"
                " is not meant, or its events would be left unread"
            )
        return partitions or ([self.stream] if is_stream else [])

    async def _declare(self, control: StreamConnection) -> None:
        """Create the stream with our retention. One that exists keeps its own: it is not ours."""
        with control.translated(f"the declaration of stream {self.stream!r}"):
            try:
                await control.create_stream(self.stream, self._retention())
            except StreamAlreadyExists:
                return

    def _retention(self) -> dict[str, str | int]:
        return {
            "max-age": f"{round(self._config.max_age_s)}s",
            "max-length-bytes": self._config.max_bytes,
            "stream-max-segment-size-bytes": min(SEGMENT_BYTES_MAX, max(self._config.max_bytes // 8, 2**16)),
        }

    async def _live_control(self) -> StreamConnection:
        if self._control is None or self._control.dead is not None:
            if self._control is not None:
                await self._control.close()
            self._control = await self._dial_any(f"{self._config.consumer}-control")
        return self._control

    async def _connect_to_leader(self, partition: int, purpose: str) -> tuple[StreamConnection, str]:
        """Connect to the leader of the partition's stream: only it knows what is committed now.

        The URL is tried first: it may be the only address that can be reached. Behind a load balancer
        another attempt can land on another node; with RABBITMQ_ADDRESS=given that is the only way, and what a
        node calls itself is never dialled.
        """
        name = f"{self._config.consumer}-{purpose}"
        failure: TransportError | None = None
        given = self._config.address == "given"
        for _ in range(LEADER_ATTEMPTS_GIVEN if given else LEADER_ATTEMPTS):
            connection = await self._dial_any(name)
            try:
                stream = await self._stream_of(partition, connection)
                leader = await connection.leader(stream)
            except BaseException:
                await connection.close()
                raise
            if leader == connection.advertised:
                return connection, stream
            await connection.close()
            if given:
                failure = TransportError(
                    f"it calls itself {leader[0]}:{leader[1]}, and no address given is it"
                )
                self._addresses = [*self._addresses[1:], self._addresses[0]]
                await asyncio.sleep(LEADER_LOOK_S)
                continue
            try:
                return await self._dial(*leader, name), stream
            except TransportError as error:
                failure = error
        raise TransportError(f"the leader of stream {stream!r} cannot be reached: {failure}")

    async def _stream_of(self, partition: int, connection: StreamConnection) -> str:
        partitions = await self._existing_partitions(connection)
        if not 0 <= partition < len(partitions):
            count = "one partition, 0" if len(partitions) == 1 else f"{len(partitions)} partitions"
            raise TransportError(f"stream {self.stream!r} has {count}, not {partition}")
        return partitions[partition]

    async def _dial_any(self, name: str) -> StreamConnection:
        """A connection to the first address that answers. Raises TransportError, naming what each said."""
        failures: list[TransportError] = []
        for address in list(self._addresses):
            try:
                connection = await self._dial(*address, name)
            except TransportError as error:
                failures.append(error)
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return connection
        if len(failures) == 1:
            raise failures[0]
        raise TransportError("; ".join(map(str, failures))) from failures[-1]

    async def _dial(self, host: str, port: int, name: str) -> StreamConnection:
        connection = StreamConnection(
            host, port, tls=self._tls, heartbeat_s=self._config.heartbeat_s, name=name
        )
        await connection.dial(vhost=self._vhost, user=self._user, password=self._password)
        return connection

    def _remember(self, opened: RabbitMQSubscription | RabbitMQPublisher) -> None:
        self._opened = {one for one in self._opened if not one.closed} | {opened}


def addresses(url: str) -> list[tuple[str, int]]:
    """Host and port of each node that a URL names, in its order: ``host1,host2:5553,[::1]``.

    Raises ValueError if one of them is none.
    """
    parts = urlsplit(url)
    default = 5551 if parts.scheme.endswith("+tls") else 5552
    found = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError("expected a URL like rabbitmq-stream://user:password@host:5552/vhost")
        found.append((one.hostname, one.port or default))
    return found


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"the CA file {ca_file!r} cannot be used: {error}") from error
