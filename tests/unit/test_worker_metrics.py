"""What a worker's page says of a partition: who owns it, how near a loss is, when hours were complete."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Self

from pipeline import metrics
from pipeline.config import FlushConfig
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US
from pipeline.worker.partition import PartitionWorker
from tests.support.memory_sink import MemoryDatabase, MemorySink
from tests.support.memory_transport import MemoryBroker, MemoryTransport

NOON_US = 1_790_000_000_000_000 // HOUR_US * HOUR_US
LATENESS_S = 10


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def delays() -> tuple[float, float]:
    """How many delays of hours were observed, and their sum in seconds."""
    name = "analytics_hour_complete_delay_seconds"
    return value(f"{name}_count") or 0.0, value(f"{name}_sum") or 0.0


class AtOnce:
    """A `Backoff` that waits for other tasks alone."""

    async def wait(self) -> None:
        await asyncio.sleep(0)

    def reset(self) -> None: ...


@dataclass(slots=True)
class Place:
    """A broker, a database and a clock that several workers share."""

    stream: str
    broker: MemoryBroker
    database: MemoryDatabase
    now_us: int = NOON_US - 60_000_000

    @classmethod
    def new(cls) -> Self:
        stream = f"s-{uuid.uuid4().hex}"
        return cls(stream, MemoryBroker(stream), MemoryDatabase())

    def worker(self, **flush: int) -> PartitionWorker:
        return PartitionWorker(
            index=0,
            stream=self.broker.partitions[0].name,
            transport=MemoryTransport(self.broker),
            sink=MemorySink(self.database),
            rules=Rules(),
            flush=FlushConfig(**flush),
            clock_us=lambda: self.now_us,
            backoff=AtOnce,
        )

    def publish(self, count: int = 1) -> None:
        self.broker.publish(0, [b"{"] * count, timestamp_us=self.now_us)

    @property
    def owned(self) -> float | None:
        return value("analytics_partition_owned", stream=self.broker.partitions[0].name)


async def take(worker: PartitionWorker) -> None:
    """Take the next chunk in."""
    await worker.book(await worker.receive())


async def test_a_partition_is_owned_from_its_recovery_to_its_end() -> None:
    place = Place.new()
    worker = place.worker()
    assert place.owned == 0
    place.publish()
    await take(worker)
    assert place.owned == 1
    await worker.close()
    assert place.owned == 0


async def test_the_retained_offsets_are_what_the_stream_has_before_our_place() -> None:
    place = Place.new()
    worker = place.worker()
    for _ in range(3):
        place.publish(10)
        await take(worker)
    await worker.flush()
    assert value("analytics_stream_retained_offsets", partition="0") == 30
    del place.broker.partitions[0].chunks[:2]  # retention
    await worker.flush()
    assert value("analytics_stream_retained_offsets", partition="0") == 10
    await worker.close()
    assert value("analytics_stream_retained_offsets", partition="0") is None


async def test_credit_is_withheld_while_there_is_no_room() -> None:
    place = Place.new()
    worker = place.worker(buffer_events_max=10)
    for _ in range(2):
        place.publish(10)
    await take(worker)
    assert value("analytics_stream_credit_withheld", partition="0") == 1
    await worker.flush()
    assert value("analytics_stream_credit_withheld", partition="0") == 0
    await worker.close()


async def test_the_delay_of_an_hour_ends_with_the_commit_that_passes_its_end() -> None:
    place = Place.new()
    worker = place.worker()
    before, sum_before = delays()
    place.publish()
    await take(worker)
    await worker.flush()  # the first watermark: nothing is known of the hours before
    assert delays() == (before, sum_before)
    place.now_us = NOON_US + (LATENESS_S - 1) * 1_000_000
    await worker.flush()
    assert delays()[0] == before, "the watermark is at 11:59:59"
    place.now_us = NOON_US + 25_000_000
    await worker.flush()
    assert delays() == (before + 1, sum_before + 25)
    await worker.flush()
    assert delays()[0] == before + 1, "an hour counts once"
    await worker.close()
    # Nobody works for two hours and a half. The next worker knows from the database where the last one was.
    place.now_us = NOON_US + 2 * HOUR_US + HOUR_US // 2
    following = place.worker()
    place.publish()
    await take(following)
    await following.flush()
    assert delays() == (before + 3, sum_before + 25 + 1.5 * 3600 + 0.5 * 3600)
    await following.close()
