"""The Faust app and its agents: wiring only.

Each partition has one bounded channel and one agent. A feeder (`mode.Service`) moves chunks from the
transport into the channel. The agent hands each chunk to the partition's ledger, and a flusher commits on a
timer. Faust runs without Kafka here: its transport, topics and tables are not used, because the offsets are
in our database.

An exception anywhere crashes the app. So nothing is committed past a chunk that failed, and the restarted
worker goes on from the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import faust
import mode
from faust.app.base import BootStrategy

from pipeline.worker.partition import PartitionWorker

CHANNEL_CHUNKS = 8
"""The most chunks between the transport and the agent. In practice the credit is the tighter bound."""

CANCEL_AGAIN_S = 0.5
"""How long a feeder that stops waits for its task to end, before the feeder cancels the task once more."""


class _NoKafka(BootStrategy):  # type: ignore[misc]
    enable_kafka = False
    enable_web = False


class App(faust.App):  # type: ignore[misc]
    """Faust without Kafka: streams run on channels, and start as soon as the app does."""

    BootStrategy = _NoKafka

    async def on_start(self) -> None:
        self.finalize()
        await super().on_start()
        self.flow_control.resume()  # without this call every Faust stream drops its items

    def _create_directories(self) -> None:
        """Make no folder for Faust's tables: we use none, and a worker need not have the right to write."""


class Feeder(mode.Service):  # type: ignore[misc]
    """Moves chunks of one partition into its channel, waiting when the channel is full."""

    def __init__(self, partition: PartitionWorker, channel: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._partition = partition
        self._channel = channel
        self._feeding: asyncio.Task[Any] | None = None

    async def on_stop(self) -> None:
        """Cancel the feeding again and again until it has ended.

        mode cancels a task once, and a cancellation may get lost: `asyncio.wait_for`, by which rstream waits
        for its answers, swallows one that comes together with the answer (Python 3.11).
        """
        while self._feeding is not None and not self._feeding.done():
            self._feeding.cancel()
            await asyncio.wait((self._feeding,), timeout=CANCEL_AGAIN_S)

    @mode.Service.task  # type: ignore[untyped-decorator]
    async def _feed(self) -> None:
        self._feeding = asyncio.current_task()
        while not self.should_stop:
            await self._channel.send(value=await self._partition.receive())


class Flusher(mode.Service):  # type: ignore[misc]
    """Flushes one partition every interval, and at once when its ledger has filled up."""

    def __init__(self, partition: PartitionWorker, interval_s: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._partition = partition
        self._interval_s = interval_s
        self._finishing = False
        self._finished = asyncio.Event()

    @mode.Service.task  # type: ignore[untyped-decorator]
    async def _flush(self) -> None:
        while not self._finishing:
            # asyncio.wait_for would swallow a cancellation that comes as the event is set (Python 3.11).
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._partition.flush_wanted.wait()
            await self._partition.flush()
        self._finished.set()

    async def finish(self) -> None:
        """Flush once more and end. A flush in flight is not cut off, because its outcome must be known."""
        self._finishing = True
        self._partition.flush_wanted.set()
        await self._finished.wait()


@dataclass(frozen=True, slots=True)
class Wiring:
    """The app, and the services that the worker stops by hand."""

    app: App
    feeders: tuple[Feeder, ...]
    flushers: tuple[Flusher, ...]


def wire(partitions: Sequence[PartitionWorker], *, flush_interval_s: float) -> Wiring:
    """Wire an app for some partitions. The caller starts the app, and watches ``app.crashed``."""
    app = App("spendstream", broker="kafka://not-used", autodiscover=False)
    feeders, flushers = [], []
    for number, partition in enumerate(partitions):
        channel = app.channel(maxsize=CHANNEL_CHUNKS)

        async def book(deliveries: Any, partition: PartitionWorker = partition) -> None:
            async for delivery in deliveries:
                await partition.book(delivery)

        app.agent(channel, name=f"book-{number}", supervisor_strategy=mode.CrashingSupervisor)(book)
        feeders.append(Feeder(partition, channel))
        flushers.append(Flusher(partition, flush_interval_s))
    return Wiring(app, tuple(feeders), tuple(flushers))
