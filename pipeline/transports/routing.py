"""Which partition a record goes to: the rule of RabbitMQ's stream clients, and a publisher that follows it.

The Java, Go and .NET clients hash the UTF-8 bytes of the routing key with the 32-bit MurmurHash3 (x86) and
seed 104729, and take the *unsigned* hash modulo the number of partitions. Read in their sources:
rabbitmq-stream-java-client (``HashUtils``; unsigned since issue 199), -go-client
(``super_stream_producer.go``), -dotnet-client (``RawSuperStreamProducer.cs``). rstream 1.1 does something
else (128 bits over UTF-16), so it is not used.

Figures are right whichever partition an org is in, because every rollup row has its partition. What needs the
rule is dedupe, which is a partition's own: all copies of an event must lie in one.
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
    """The partition, from 0 on, of a routing key; bytes are taken for UTF-8."""
    return mmh3.hash(key, SEED, signed=False) % partitions


def org_key(body: bytes) -> bytes:
    """The routing key that the event's router would use: its orgId in canonical lower-case text.

    Taken from the text without parsing it: under 1 us. A body without any goes by the empty key; whatever
    is wrong with it, some partition must reject it.
    """
    found = _ORG_ID.search(body)
    return found[1].lower() if found else b""


class PartitionPublisher(Protocol):
    """What is needed of the publisher to each partition."""

    closed: bool

    def check(self, bodies: Sequence[bytes]) -> None:
        """Raises ValueError if a body is larger than the stream takes."""
        ...

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None: ...

    async def close(self) -> None: ...


class RoutingPublisher:
    """See `pipeline.transports.Publisher`: one publisher a partition, and the records in order in each."""

    def __init__(self, publishers: Sequence[PartitionPublisher]) -> None:
        self._publishers = publishers

    @property
    def closed(self) -> bool:
        return all(publisher.closed for publisher in self._publishers)

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        self._publishers[0].check(bodies)
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
