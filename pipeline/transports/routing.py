"""Routing records to partitions: the rule of RabbitMQ's stream clients, and a publisher that follows it.

The Java, Go and .NET clients hash the UTF-8 bytes of the routing key with the 32-bit MurmurHash3 (x86) and
seed 104729. The partition is the *unsigned* hash modulo the number of partitions. Their sources say so:
rabbitmq-stream-java-client (``HashUtils``; unsigned since issue 199), -go-client
(``super_stream_producer.go``), -dotnet-client (``RawSuperStreamProducer.cs``). rstream 1.1 does something
else (128 bits over UTF-16), so it is not used.

The rule matters for dedupe: each partition knows only its own event ids, so all copies of an event must lie
in one partition. The rule does not matter for figures, because every rollup row has its partition in its key.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Protocol

import mmh3

SEED = 104729

_ORG_ID = re.compile(rb'"org(?:Id|_id)"\s*:\s*"([0-9A-Fa-f-]{36})"')


def partition_of(key: str | bytes, partitions: int) -> int:
    """The partition of a routing key, from 0 on; bytes are taken as UTF-8."""
    return mmh3.hash(key, SEED, signed=False) % partitions


def org_key(body: bytes) -> bytes:
    """The routing key that the API router uses for an event: its orgId in canonical lower-case text.

    The orgId is found without parsing the body, in less than 1 us. A body without an orgId has the empty key,
    so that one of the partitions rejects it.
    """
    found = _ORG_ID.search(body)
    return found[1].lower() if found else b""


class PartitionPublisher(Protocol):
    """A publisher to one partition, as `RoutingPublisher` needs it."""

    closed: bool

    @property
    def body_bytes_max(self) -> int: ...

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None: ...

    async def close(self) -> None: ...


def refuse_larger(bodies: Sequence[bytes], body_bytes_max: int) -> None:
    """Raise ValueError if a body has more bytes than that."""
    largest = max(map(len, bodies), default=0)
    if largest > body_bytes_max:
        raise ValueError(f"a body has {largest} bytes, and the stream takes at most {body_bytes_max}")


class RoutingPublisher:
    """See `pipeline.transports.Publisher`. It has a publisher for each partition, each in order."""

    def __init__(self, publishers: Sequence[PartitionPublisher]) -> None:
        self._publishers = publishers

    @property
    def closed(self) -> bool:
        return all(publisher.closed for publisher in self._publishers)

    @property
    def body_bytes_max(self) -> int:
        return min(publisher.body_bytes_max for publisher in self._publishers)

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        refuse_larger(bodies, self.body_bytes_max)  # before anything is sent
        count = len(self._publishers)
        parts: list[list[bytes]] = [[] for _ in range(count)]
        routed: Sequence[str | bytes] = [org_key(body) for body in bodies] if keys is None else keys
        for body, key in zip(bodies, routed, strict=True):
            parts[partition_of(key, count)].append(body)
        outcomes = await asyncio.gather(
            *(one.publish(part) for one, part in zip(self._publishers, parts, strict=True) if part),
            return_exceptions=True,
        )
        for failure in outcomes:
            if failure is not None:
                raise failure

    async def close(self) -> None:
        await asyncio.gather(*(publisher.close() for publisher in self._publishers))
