"""The RabbitMQ stream transport: one connection to the leader for each subscription and publisher.

The module knows the addresses of the nodes, and it declares streams: a plain stream, which is one partition,
and a super stream, which has several. `subscription` reads a stream, and `competing` takes turns at reading.
Nothing here connects again: a subscription that fails stays failed, and the caller subscribes again from the
offset that the database holds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from rstream.exceptions import StreamAlreadyExists

from pipeline.common import urls
from pipeline.config import StreamConfig
from pipeline.transports import Extent, Owner, StreamAbsent, TransportError
from pipeline.transports.rabbitmq.competing import CompetingSubscription
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.publisher import Framing, RabbitMQPublisher
from pipeline.transports.rabbitmq.subscription import RabbitMQSubscription
from pipeline.transports.routing import RoutingPublisher

LEADER_ATTEMPTS = 5
LEADER_ATTEMPTS_GIVEN, LEADER_LOOK_S = 20, 0.05
"""With RABBITMQ_ADDRESS=given: 20 attempts, 0.05 s apart.

Behind a load balancer each attempt may land on another node, and only one node leads the stream.
"""
CREATION_LOOKS, CREATION_LOOK_S = 20, 0.1
ABSENCE_LOOKS, ABSENCE_LOOK_S = 5, 0.1
SEGMENT_BYTES_MAX = 500_000_000
Reading = TypeVar("Reading", bound=RabbitMQSubscription)


class RabbitMQTransport:
    """A stream of a RabbitMQ broker or cluster. See `pipeline.transports.Transport`."""

    def __init__(self, config: StreamConfig) -> None:
        """Read the URL and the CA file; `open` connects.

        We and the broker both take a connection for dead when it is silent for two heartbeats. The broker
        looks twice a heartbeat. So another worker gets the partitions of a frozen owner within three
        heartbeats.

        Raises ValueError if the URL is not of a RabbitMQ stream, or the CA file cannot be read.
        """
        url = urls.split(config.url)
        if url.scheme not in ("rabbitmq-stream", "rabbitmq-stream+tls"):
            raise ValueError("expected a URL like rabbitmq-stream://user:password@host:5552/vhost")
        self.stream = config.stream
        self._config = config
        self._tls = _tls_context(config.ca_file) if url.scheme.endswith("+tls") else None
        self._addresses = addresses(config.url)
        """The addresses of the URL; the address that answered last stands first."""
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
        """A publisher to all partitions, which sends bodies in one of three framings. Raises TransportError.

        ``framing``: "raw" sends a body as it is, "amqp" as the AMQP 1.0 message that other clients send, and
        "gzip" packs raw bodies into gzip sub-entry batches.
        """
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
        """Delete the stream, or the super stream and its partitions, if there is one. Raises TransportError.

        `Transport` has no such method, because only the benchmarks delete their events.
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
        """The partitions, if another client created them at the same time; else raises TransportError.

        The broker makes the streams first and then the exchange that binds them. Meanwhile another client may
        create the same super stream. A creation that fails may leave some of its streams behind.
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
        """The stream of each partition, by number; empty if there is neither a stream nor a super stream.

        A starting broker shows a super stream without partitions, and then with some of its partitions. These
        would get wrong numbers: if only events-1 of events-0 and events-1 is shown, events-1 would be
        partition 0. So we accept a list only when every partition in it has a leader and the broker then
        shows the same list again. And a partition keeps its number for as long as the process lives.

        Raises TransportError if the list changes, or does not begin with the partitions that we know.
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
        """Is there neither a stream nor a super stream of the name?

        Raises TransportError if there may be one.

        The caller creates a plain stream if the answer is True, and a plain stream beside a super stream of
        the same name would stop all work on both. A starting broker does not know its super streams for some
        tenths of a second, but it already knows the streams of their partitions. So we look for these
        streams, five times within half a second.
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
        """Create the stream with our retention. A stream that exists keeps its own retention."""
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
        """Connect to the leader of the partition's stream, because only the leader knows the committed end.

        First we dial the addresses of the URL, because they may be the only ones that can be reached. If the
        node that answers is not the leader, we dial the address by which the leader calls itself. If that
        fails, we try again: behind a load balancer another attempt may land on another node. Exception: with
        RABBITMQ_ADDRESS=given we dial only the addresses of the URL, until one of them is the leader.

        Raises TransportError if the leader is not reached in `LEADER_ATTEMPTS` (or `LEADER_ATTEMPTS_GIVEN`).
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
        """A connection to the first address that answers. Raises TransportError, with the fault of each."""
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
    """Host and port of each node that a URL names, in order: ``host1,host2:5553,[::1]`` names three.

    A node without a port gets 5552, or 5551 with TLS. Raises ValueError if a node has no host name.
    """
    parts = urls.split(url)
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
