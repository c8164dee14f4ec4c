"""`spendstream simulate`: publish traffic at a steady rate, without drift, until told to stop.

This module decides how many events are due now. It publishes the same bodies again when the stream cannot say
whether it has them, because consumers count an event once. `pipeline.traffic.generator` makes the events.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.traffic.generator import Traffic
from pipeline.transports import Publisher, Transport, TransportError

TICK_S: Final = 0.025
STEP_S_MAX: Final = 1.0
"""A step makes the events of at most this time. Otherwise a stream that was away for an hour would cost the
memory of an hour's events."""
BATCH_EVENTS_MAX: Final = 20_000
BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

Shape = Callable[[int], float]
Warn = Callable[[str], None]


class PatientPublisher:
    """Publishes until the stream has the bodies, even if the stream is away for long.

    After a TransportError a new publisher is opened, and the same bodies go out again in the same order. The
    stream may then hold them twice, and consumers count them once.
    """

    def __init__(self, transport: Transport, *, warn: Warn) -> None:
        self._transport = transport
        self._publisher: Publisher | None = None
        self._warn = warn
        self.retries = 0

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Return when the stream has all bodies durably. Cancel it to give up."""
        failures = 0
        while True:
            try:
                if self._publisher is None:
                    self._publisher = await self._transport.publisher()
                await self._publisher.publish(bodies)
                return
            except TransportError as error:
                wait_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                if failures == 0 or wait_s == BACKOFF_S[-1]:
                    self._warn(f"stream unavailable, publishing again in {wait_s:g} s: {error}")
                failures += 1
                self.retries += 1
                await self.close()
                await asyncio.sleep(wait_s)

    async def close(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.close()


async def open_patiently(transport: Transport, *, warn: Warn) -> None:
    """Open the transport, and wait as long as the stream is away."""
    failures = 0
    while True:
        try:
            await transport.open()
            return
        except TransportError as error:
            wait_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            warn(f"stream unavailable, trying again in {wait_s:g} s: {error}")
            failures += 1
            await asyncio.sleep(wait_s)


@asynccontextmanager
async def publishing(transport: Transport, *, warn: Warn) -> AsyncIterator[PatientPublisher]:
    """A publisher to the stream, once the stream is there. At the end publisher and transport are closed."""
    publisher = PatientPublisher(transport, warn=warn)
    try:
        await open_patiently(transport, warn=warn)
        yield publisher
    finally:
        await publisher.close()
        await transport.close()


async def until_signal(work: Callable[[asyncio.Event], Awaitable[None]], *, grace_s: float = 2.0) -> bool:
    """Run ``work`` with an event that SIGINT or SIGTERM sets; cancel it ``grace_s`` after that.

    Returns True if the work ended by itself or within the grace, and False if it had to be cancelled.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    working = asyncio.ensure_future(work(stop))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        await asyncio.wait((working,), timeout=grace_s)
    if working.done():
        working.result()
        return True
    working.cancel()
    await asyncio.wait((working,))
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    published: int
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The pace of a simulation: ``rate`` events a second, multiplied by ``shape`` of the moment.

    The simulation takes ``duration_s``, or has no end if that is None.
    """

    rate: float
    duration_s: float | None = None
    shape: Shape | None = None


async def simulate(
    publish: Callable[[Sequence[bytes]], Awaitable[None]],
    traffic: Traffic,
    pace: Pace,
    *,
    stop: asyncio.Event,
    report: Callable[[Progress], None],
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Progress:
    """Publish the events that are due, every 25 ms; returns at ``stop`` or at the end of the duration.

    ``report`` is called after each batch. The number of due events follows from the time since the start
    alone, so slow batches and rounding do not add up. After a pause of the stream, the missing events are
    published at full speed. For example, at 100 events/s and after a pause of 10 s, 1000 events follow at
    once. An event occurred when it was due, so these events arrive late, as the events of real producers do.
    """
    started_s, started_us = monotonic(), now_us()
    published, due, until_s, tick = 0, 0.0, 0.0, 0
    while True:
        elapsed_s = min(monotonic() - started_s, until_s + STEP_S_MAX)
        if pace.duration_s is not None:
            elapsed_s = min(elapsed_s, pace.duration_s)
        if pace.shape is None:
            due = pace.rate * elapsed_s
        else:
            middle_us = started_us + round((until_s + elapsed_s) / 2 * 1e6)
            due += pace.rate * pace.shape(middle_us) * (elapsed_s - until_s)
        since_us = started_us + round(until_s * 1e6)
        till_us = started_us + round(elapsed_s * 1e6)
        n = int(due + 1e-9) - published
        # Each event lies half a step after the edge, so that no event lies on the edge of two batches.
        times_us = (since_us + (np.arange(n) + 0.5) * (till_us - since_us) / max(n, 1)).astype(np.int64)
        until_s = elapsed_s
        for first in range(0, n, BATCH_EVENTS_MAX):
            if stop.is_set():
                break
            bodies = traffic.take(times_us[first : first + BATCH_EVENTS_MAX])
            await publish(bodies)
            published += len(bodies)
            report(Progress(published=published, elapsed_s=monotonic() - started_s))
        if stop.is_set() or (pace.duration_s is not None and elapsed_s >= pace.duration_s):
            return Progress(published=published, elapsed_s=monotonic() - started_s)
        now_s = monotonic()
        tick = max(tick + 1, int((now_s - started_s) / TICK_S))
        await sleep(max(0.0, started_s + tick * TICK_S - now_s))
