"""How long after its publication an event is visible to another session of the database.

Traffic is published at a steady rate while the real worker runs; every moment at which more events are seen
to be committed tells when those became visible. A reader of the API sees them one query later.
"""

from __future__ import annotations

import asyncio
import bisect
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psycopg

from pipeline.bench import servers
from pipeline.bench.contenders import Task
from pipeline.bench.race import Options
from pipeline.traffic import Traffic, World
from pipeline.transports.factory import open_transport
from sql import migrate

TICK_S: Final = 0.02
POLL_S: Final = 0.01
WARM_S: Final = 3.0
"""The first seconds do not count: the worker's first flush makes its tables."""
VISIBLE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds from the confirmation of a publication to visibility, over all events; ``lost`` must be 0."""

    rate: float
    published: int
    lost: int
    p50_s: float
    p95_s: float
    p99_s: float
    worker_cpu_s: float


@dataclass(frozen=True, slots=True)
class _Moments:
    """(when, how many events by then), ascending in both."""

    at_s: list[float]
    events: list[int]


def measure(options: Options, *, rate: float, seconds: float) -> Latency:
    """Publish ``rate`` events/s for some seconds, in a stream and a database of their own.

    Raises:
        BenchError: the worker failed.
    """
    assert options.rabbitmq_url is not None
    assert options.database_url is not None
    shape, stream = options.shape, servers.new_name()
    world = World(orgs=shape.orgs, models=shape.models, clients_per_org=shape.clients)
    with (
        servers.database(options.database_url) as url,
        tempfile.TemporaryDirectory(prefix="spendstream-bench-") as name,
    ):
        migrate.upgrade(url)
        task = Task(
            file=Path(name),
            events=0,
            minute_us=0,
            rabbitmq_url=options.rabbitmq_url,
            stream=stream,
            database_url=url,
            folder=Path(name),
        )
        try:
            return asyncio.run(_measure(task, Traffic(world, seed=shape.seed), rate=rate, seconds=seconds))
        finally:
            asyncio.run(servers.delete_stream(options.rabbitmq_url, stream))


async def _measure(task: Task, traffic: Traffic, *, rate: float, seconds: float) -> Latency:
    assert task.rabbitmq_url is not None
    assert task.database_url is not None
    transport = open_transport(servers.stream_config(task.rabbitmq_url, task.stream))
    await transport.open()
    try:
        with servers.Worker(task) as worker:
            await asyncio.to_thread(worker.wait_ready)
            published, visible = _Moments([], []), _Moments([], [])
            done, wanted = threading.Event(), [-1]
            watcher = asyncio.create_task(
                asyncio.to_thread(_watch, task.database_url, visible, wanted, done, worker.check)
            )
            publisher = await transport.publisher()
            started, sent = time.monotonic(), 0
            while (elapsed := time.monotonic() - started) < seconds:
                due = int(elapsed * rate) - sent
                if due > 0:
                    now_us = time.time_ns() // 1000
                    await publisher.publish(traffic.take(np.full(due, now_us)))
                    sent += due
                    published.at_s.append(time.monotonic())
                    published.events.append(sent)
                await asyncio.sleep(TICK_S)
            wanted[0] = sent
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(watcher), VISIBLE_S_MAX)
            done.set()
            await watcher
            await publisher.close()
            cpu_s, _ = await asyncio.to_thread(worker.stop)
    finally:
        await transport.close()
    seen = visible.events[-1] if visible.events else 0
    p50, p95, p99 = percentiles(published.at_s, published.events, visible.at_s, visible.events, warm_s=WARM_S)
    return Latency(
        rate=rate, published=sent, lost=sent - seen, p50_s=p50, p95_s=p95, p99_s=p99, worker_cpu_s=cpu_s
    )


def _watch(
    database_url: str, visible: _Moments, wanted: list[int], done: threading.Event, check: Callable[[], None]
) -> None:
    """Note when more became visible, until ``wanted[0]`` events are, or ``done``."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        while not done.is_set():
            row = connection.execute(
                "SELECT coalesce(sum(offered), 0)::bigint FROM analytics.partitions", prepare=True
            ).fetchone()
            assert row is not None
            if not visible.events or row[0] > visible.events[-1]:
                visible.events.append(row[0])
                visible.at_s.append(time.monotonic())
            if row[0] == wanted[0]:
                return
            check()
            time.sleep(POLL_S)


def percentiles(
    published_s: list[float],
    published: list[int],
    visible_s: list[float],
    visible: list[int],
    *,
    warm_s: float = 0.0,
) -> tuple[float, float, float]:
    """p50, p95 and p99 of (first moment with at least so many visible - moment published), by event.

    Events that were never seen count as infinitely late; those of the first ``warm_s`` do not count.
    """
    delays, weights = [], []
    before = 0
    for at_s, count in zip(published_s, published, strict=True):
        place = bisect.bisect_left(visible, count)
        if at_s - published_s[0] >= warm_s:
            delays.append(visible_s[place] - at_s if place < len(visible) else float("inf"))
            weights.append(count - before)
        before = count
    if not delays:
        return float("nan"), float("nan"), float("nan")
    order = np.argsort(delays)
    cumulated = np.cumsum(np.array(weights)[order])
    places = [int(np.searchsorted(cumulated, q * cumulated[-1])) for q in (0.5, 0.95, 0.99)]
    p50, p95, p99 = (float(max(0.0, delays[order[place]])) for place in places)
    return p50, p95, p99
