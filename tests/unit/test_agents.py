"""The services that the worker stops by hand end, whatever the library below them does."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from pipeline.worker.agents import Feeder
from pipeline.worker.partition import PartitionWorker


class _Channel:
    async def send(self, *, value: Any) -> None:
        raise AssertionError("nothing was received")


class _DeafPartition:
    """A partition that loses its first cancellations, as asyncio.wait_for may on Python 3.11."""

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self.cancelled = 0

    async def receive(self) -> Any:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if self.cancelled > self.lost:
                    raise


async def test_a_feeder_stops_though_a_cancellation_is_lost(monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.worker.agents.CANCEL_AGAIN_S", 0.01)
    partition = _DeafPartition(lost=2)
    feeder = Feeder(cast(PartitionWorker, partition), channel=_Channel())
    await feeder.start()
    await asyncio.sleep(0)  # the task of the feeder begins

    async with asyncio.timeout(5):
        await feeder.stop()

    assert partition.cancelled == 3


async def test_a_feeder_that_never_began_stops() -> None:
    feeder = Feeder(cast(PartitionWorker, _DeafPartition(lost=0)), channel=_Channel())
    await feeder.start()

    async with asyncio.timeout(5):
        await feeder.stop()

    assert feeder.should_stop
