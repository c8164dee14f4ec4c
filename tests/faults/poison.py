"""Poisons: records with which one sender could hurt all others, and the delay of the others' events.

Each poison is published into a partition as a stream client would publish it, in frames made by hand. The
probe is ten orgs. Each of them publishes one event again and again, and asks the database when the event is
counted. A worker is killed now and then. The probe runs first without poison, then with one poison of each
kind.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from pipeline.transports import TransportError
from pipeline.transports.rabbitmq.publisher import RabbitMQPublisher
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support import streams

if TYPE_CHECKING:
    from tests.faults.world import Report, World

SLOWER_S_MAX = 5.0
"""With poison, the events of other orgs may become visible at most this much later than without."""
PROBE_ORGS = 10
VISIBLE_S_MAX = 400.0
_ROUND_S = 0.5
_BATCH = struct.Struct(">BHII")  # 1, codec and 4 unused bits; records; bytes unpacked; bytes stored

Entries = Iterator[bytes]
"""Entries of a publish frame, each with its length or its batch's header in front."""


@dataclass(frozen=True, slots=True)
class Poisoned:
    """The result: the seconds of the other orgs' slowest event, from its publication to its figure.

    ``calm_s`` is without poison, and ``hurt_s`` is with poison.
    """

    calm_s: float
    hurt_s: float
    report: Report

    @property
    def slow(self) -> bool:
        """Did the poison make others wait?"""
        return self.hurt_s > self.calm_s + SLOWER_S_MAX

    def line(self) -> str:
        return (
            f"poisons: {len(POISONS)}, the slowest event of other orgs visible after {self.calm_s:.1f} s"
            f" without and {self.hurt_s:.1f} s with poison, mismatches: {len(self.report.mismatches)}"
        )


async def poisoned(world: World, *, seed: int) -> Poisoned:
    """Run the probe without poison and with one poison of each kind, then compare the books."""
    for slot in world.slots:
        world.start(slot)
    await world.ready()
    calm = await visible_delays(world, rounds=30, luck=random.Random(seed))
    world.flooded = True
    hurt = await visible_delays(world, rounds=70, luck=random.Random(seed + 1), poisons=POISONS)
    await world.heal()
    return Poisoned(max(calm), max(hurt), await world.settle())


@dataclass(frozen=True, slots=True)
class Poison:
    name: str
    entries: Callable[[random.Random], Entries]


def batch(codec: int, *, records: int, unpacked: int, stored: bytes) -> bytes:
    """A sub-entry batch whose header may claim anything."""
    return _BATCH.pack(0x80 | codec << 4, records, unpacked, len(stored)) + stored


def event(luck: random.Random, *, org: uuid.UUID | None = None, **fields: str) -> bytes:
    """A valid event of now. ``fields`` (JSON text) replace its own fields."""

    def new() -> uuid.UUID:
        return uuid.UUID(int=luck.getrandbits(128), version=4)

    own = {
        "eventId": f'"{new()}"',
        "orgId": f'"{org or new()}"',
        "modelId": f'"{new()}"',
        "occurredAt": f'"{datetime.now(UTC).isoformat()}"',
        "latencyMs": "5",
        "status": '"success"',
        "inputTokens": "1",
        "outputTokens": "1",
        "costEstimateCents": "0.25",
        **fields,
    }
    return ("{" + ",".join(f'"{name}":{value}' for name, value in own.items()) + "}").encode()


def gzip_batches(bodies: Sequence[bytes], *, each: int = 700) -> Entries:
    """Valid batches that hold all bodies: many events in few bytes."""
    for at in range(0, len(bodies), each):
        some = bodies[at : at + each]
        plain = b"".join(len(body).to_bytes(4, "big") + body for body in some)
        packer = zlib.compressobj(1, wbits=31)
        stored = packer.compress(plain) + packer.flush()
        yield batch(1, records=len(some), unpacked=len(plain), stored=stored)


# --- the poisons ------------------------------------------------------------------------------------------

_FULL_ORG = uuid.UUID("f0000000-0000-4000-8000-000000000001")
_FULL_MODEL = "f0000000-0000-4000-8000-000000000002"
_EVENTS_TO_FILL_A_SUM = 92_234
"""The sum of a bucket passes 2^63 - 1 with this many events at the highest cost, 10^14 microcents."""


def _full_sum(luck: random.Random) -> Entries:
    """Events of one org at the highest cost, until the sum has no room, and then some more events."""
    at = f'"{datetime.now(UTC).replace(second=0, microsecond=0).isoformat()}"'
    fields = {"occurredAt": at, "modelId": f'"{_FULL_MODEL}"', "costEstimateCents": '"100000000"'}
    bodies = [event(luck, org=_FULL_ORG, **fields) for _ in range(_EVENTS_TO_FILL_A_SUM + 500)]
    return gzip_batches(bodies)


def _claims(luck: random.Random) -> Entries:
    """Batches of 11 bytes that claim 65,535 records each and hold none."""
    for _ in range(64):
        yield batch(luck.choice((0, 1)), records=65_535, unpacked=luck.choice((0, 2**32 - 1)), stored=b"")


def _bombs(luck: random.Random) -> Entries:
    """Batches of 256 KiB that unpack to 250 MiB: one body, or thousands of bodies that are too large."""
    size = 250 * 2**20
    for length in (size - 4, 70_000):
        packer = zlib.compressobj(9, wbits=31)
        record = length.to_bytes(4, "big") + bytes(length)
        records = size // len(record)
        parts = [packer.compress(record) for _ in range(records)]
        stored = b"".join((*parts, packer.flush()))
        for _ in range(3):
            yield batch(1, records=records, unpacked=records * len(record), stored=stored)


def _codecs(luck: random.Random) -> Entries:
    """Every codec that three bits can name, known or not, with bytes that the codec cannot unpack."""
    for codec in range(8):
        yield batch(codec, records=luck.randint(1, 9), unpacked=500, stored=luck.randbytes(200))


def _keys(luck: random.Random) -> Entries:
    """Events of one org that share no row, because each has a model and a client of its own."""
    org = uuid.UUID(int=luck.getrandbits(128), version=4)
    return gzip_batches([event(luck, org=org, clientId=f'"{luck.getrandbits(64):x}"') for _ in range(60_000)])


def _oversized(luck: random.Random) -> Entries:
    """Bodies beyond the size limit, and bodies that only the slow reader can reject."""
    for _ in range(200):
        body = b"{" + b'"a":0,' * luck.randint(10_000, 12_000)
        yield len(body).to_bytes(4, "big") + body
    for _ in range(5_000):
        body = event(luck, latencyMs="-1", inputTokens='"x"')
        yield len(body).to_bytes(4, "big") + body


POISONS = (
    Poison("full_sum", _full_sum),
    Poison("claims", _claims),
    Poison("bombs", _bombs),
    Poison("codecs", _codecs),
    Poison("keys", _keys),
    Poison("oversized", _oversized),
)


class _RawPublisher(RabbitMQPublisher):
    """Publishes entries unchanged, also wrong ones."""

    def _entries(self, bodies: Sequence[bytes]) -> Iterator[bytes]:
        return iter(bodies)


async def publish(url: str, stream: str, entries: Sequence[bytes]) -> None:
    """Append entries to one stream. Raises TransportError if the broker is away."""
    transport = RabbitMQTransport(streams.config(url, stream))
    try:
        publisher = await transport._partition_publisher(0, "raw")
        raw = _RawPublisher(publisher._connection, framing="raw")
        try:
            await raw.publish(entries)
        finally:
            await raw.close()
    finally:
        await transport.close()


async def poison(world: World, entries: Sequence[bytes], luck: random.Random) -> None:
    """Publish a poison into one partition, and try again as long as the broker is away."""
    stream = luck.choice(world.streams)
    while True:
        try:
            await publish(world.stack.rabbitmq.url, stream, entries)
            return
        except TransportError:
            await asyncio.sleep(0.5)


# --- the probe --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Probe:
    """The events of ten orgs: when each was published, and how long it took until each was counted."""

    orgs: list[uuid.UUID] = field(default_factory=lambda: [uuid.uuid4() for _ in range(PROBE_ORGS)])
    waiting: dict[uuid.UUID, deque[float]] = field(default_factory=dict)
    counted: dict[uuid.UUID, int] = field(default_factory=dict)
    delays_s: list[float] = field(default_factory=list)

    def look(self, world: World) -> None:
        """Ask which events have become visible."""
        with suppress(psycopg.Error):  # the database itself may be away
            for org, count in world.sql(
                "SELECT org_id, sum(invocations)::bigint FROM analytics.usage_day WHERE org_id IN ("
                + ",".join(f"'{org}'" for org in self.orgs)
                + ") GROUP BY org_id"
            ):
                for _ in range(count - self.counted.get(org, 0)):
                    self.delays_s.append(time.monotonic() - self.waiting[org].popleft())
                self.counted[org] = count


async def visible_delays(
    world: World, *, rounds: int, luck: random.Random, poisons: Sequence[Poison] = ()
) -> list[float]:
    """Measure, for every probe event, the seconds from its confirmed publication to its figure.

    There are ``rounds`` rounds of half a second, with an event of each org in each round. In every tenth
    round a worker is killed. The poisons come evenly between the rounds. Raises AssertionError if an event is
    not visible after `VISIBLE_S_MAX`.
    """
    probe = Probe()
    transport = RabbitMQTransport(streams.config(world.stack.rabbitmq.url, world.stream))
    poisoning: list[asyncio.Task[None]] = []
    # The entries are made now, because making them takes long, and the probe would measure that time too.
    left = [(kind.name, list(kind.entries(luck))) for kind in poisons]
    every = max(1, rounds // (len(poisons) + 1))
    try:
        publisher: Any = await transport.publisher()
        for number in range(rounds):
            bodies = [event(luck, org=org) for org in probe.orgs]
            for org in probe.orgs:
                probe.waiting.setdefault(org, deque()).append(time.monotonic())
            await publisher.publish(bodies)
            world.published += len(bodies)
            if left and number % every == every - 1:
                name, entries = left.pop(0)
                world.say(f"poison {name}")
                poisoning.append(asyncio.create_task(poison(world, entries, luck)))
            if number % 10 == 5:
                await _kill_a_worker(world, luck)
            await asyncio.to_thread(probe.look, world)
            await asyncio.sleep(_ROUND_S)
        await asyncio.gather(*poisoning)
        until = time.monotonic() + VISIBLE_S_MAX
        while any(probe.waiting.values()):
            assert time.monotonic() < until, f"not visible after {VISIBLE_S_MAX:g} s: {probe.waiting}"
            await asyncio.to_thread(probe.look, world)
            await asyncio.sleep(0.1)
    finally:
        for task in poisoning:
            task.cancel()
        await asyncio.gather(*poisoning, return_exceptions=True)
        await transport.close()
    return probe.delays_s


async def _kill_a_worker(world: World, luck: random.Random) -> None:
    running = [slot for slot in world.wanted() if slot.running()]
    if running:
        slot = luck.choice(running)
        slot.busy = True
        world.say(f"killing worker {slot.number}, which owned {len(slot.owned())} partitions")
        await asyncio.to_thread(slot.process.kill)
        slot.busy = False
        world.start(slot)
