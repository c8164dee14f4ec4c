"""Measures the latency of an event: from the time it is due until the REST API counts it.

Traffic is published at a steady rate to one partition, while the real worker and the real API run. The API is
asked again and again for the totals of the busiest org. The answer has one point, so asking costs little. The
answer is exact, because every event of the traffic is good, and each publication knows how many of its events
are the org's. A flush commits all orgs at once, so the busiest org stands for all. When an answer has a
higher count than the last one, the new events became visible before the answer arrived. So the measured time
is at most one poll too long. At the end the totals of all orgs must equal the published events.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from pipeline.bench import servers
from pipeline.bench.contenders import Task
from pipeline.bench.race import Options
from pipeline.traffic.generator import Traffic, World
from pipeline.transports.factory import open_transport
from sql import migrate

TICK_S: Final = 0.02
POLL_S: Final = 0.02
WARM_S: Final = 3.0
"""The first seconds do not count, because the worker's first flush makes its tables."""
VISIBLE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of the latency in seconds, over the events of the busiest org.

    ``lost`` is the number of events of all orgs that never became visible. It must be 0.
    """

    rate: float
    published: int
    published_per_s: float
    """Below ``rate`` if publisher or broker could not keep up. The delay counts as latency."""
    lost: int
    p50_s: float
    p95_s: float
    p99_s: float
    worker_cpu_s: float
    api_cpu_s: float


def _floats() -> array[float]:
    return array("d")


def _ints() -> array[int]:
    return array("q")


@dataclass(frozen=True, slots=True)
class _Moments:
    """Moments (time, events up to this time), ascending in both. 16 bytes a moment, 50 moments a second."""

    at_s: array[float] = field(default_factory=_floats)
    events: array[int] = field(default_factory=_ints)

    def add(self, at_s: float, events: int) -> None:
        self.at_s.append(at_s)
        self.events.append(events)


def measure(options: Options, *, rate: float, seconds: float) -> Latency:
    """Measure the latency at ``rate`` events/s for some seconds, in a stream and a database of its own.

    Raises:
        BenchError: the worker or the API failed.
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
            return asyncio.run(_measure(task, world, seed=shape.seed, rate=rate, seconds=seconds))
        finally:
            asyncio.run(servers.delete_stream(options.rabbitmq_url, stream))


async def _measure(task: Task, world: World, *, seed: int, rate: float, seconds: float) -> Latency:
    assert task.rabbitmq_url is not None
    traffic, org = Traffic(world, seed=seed), world.org_ids[0]
    transport = open_transport(servers.stream_config(task.rabbitmq_url, task.stream))
    await transport.open()
    try:
        with servers.Worker(task) as worker, servers.Api(task) as api:
            for service in (worker, api):
                await asyncio.to_thread(service.wait_ready)

            def check() -> None:
                worker.check()
                api.check()

            published, visible = _Moments(), _Moments()
            done, wanted = threading.Event(), [-1]
            figures = _Figures(api.port)
            watcher = asyncio.create_task(
                asyncio.to_thread(_watch, figures, org, visible, wanted, done, check)
            )
            try:
                publisher = await transport.publisher()
                started, sent, sent_of_org = time.monotonic(), 0, 0
                while (elapsed := time.monotonic() - started) < seconds and not watcher.done():
                    due = int(elapsed * rate) - sent
                    if due > 0:
                        bodies = traffic.take(np.full(due, time.time_ns() // 1000))
                        due_at_s = started + sent / rate
                        sent += due
                        sent_of_org += sum(org.encode() in body for body in bodies)
                        await publisher.publish(bodies)
                        published.add(due_at_s, sent_of_org)
                    await asyncio.sleep(TICK_S)
                took_s = time.monotonic() - started
                await publisher.close()
                wanted[0] = sent_of_org
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(watcher), VISIBLE_S_MAX)
            finally:
                done.set()
                await watcher
            lost = sent - await asyncio.to_thread(_visible_of_all, figures, sent)
            figures.close()
            worker_cpu_s, _ = await asyncio.to_thread(worker.stop)
            api_cpu_s, _ = await asyncio.to_thread(api.stop)
    finally:
        await transport.close()
    p50, p95, p99 = percentiles(published.at_s, published.events, visible.at_s, visible.events, warm_s=WARM_S)
    return Latency(
        rate=rate,
        published=sent,
        published_per_s=sent / took_s,
        lost=lost,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        worker_cpu_s=worker_cpu_s,
        api_cpu_s=api_cpu_s,
    )


class _Figures:
    """Asks the API for counts of events, from yesterday to tomorrow, over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        start, end = today - timedelta(days=1), today + timedelta(days=2)
        self._range = f"start={start:%Y-%m-%dT%H:%M:%SZ}&end={end:%Y-%m-%dT%H:%M:%SZ}"

    def of_org(self, org: str) -> int:
        """The count of an org's events. Raises OSError or HTTPException if there is no answer."""
        answer = self._get(f"/orgs/{org}/usage?{self._range}&granularity=day&groupBy=none")
        return int(answer["totals"]["invocations"])

    def of_all(self) -> int:
        total, cursor = 0, ""
        while cursor is not None:
            answer = self._get(f"/orgs?{self._range}&limit=1000{cursor and '&cursor=' + quote(cursor)}")
            total += sum(item["invocations"] for item in answer["items"])
            cursor = answer["nextCursor"]
        return total

    def close(self) -> None:
        self._connection.close()

    def _get(self, path: str) -> Any:
        try:
            self._connection.request("GET", servers.BASE + path)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            self._connection.close()
            raise
        if answer.status != 200:
            raise OSError(f"the API answered {path} with {answer.status}: {body[:300]!r}")
        return json.loads(body)


def _watch(
    figures: _Figures,
    org: str,
    visible: _Moments,
    wanted: list[int],
    done: threading.Event,
    check: Callable[[], None],
) -> None:
    """Note each time at which more events became visible, until ``wanted[0]`` are visible, or until ``done``.

    If the API does not answer, for example because it sheds load, it is asked again. The wait counts as
    latency.
    """
    while not done.is_set():
        check()
        with suppress(OSError, HTTPException):
            count = figures.of_org(org)
            if not visible.events or count > visible.events[-1]:
                visible.add(time.monotonic(), count)
            if count == wanted[0]:
                return
        time.sleep(POLL_S)


def _visible_of_all(figures: _Figures, wanted: int) -> int:
    """Wait until ``wanted`` events of all orgs are visible, at most `VISIBLE_S_MAX`; returns how many are."""
    until = time.monotonic() + VISIBLE_S_MAX
    while True:
        try:
            count = figures.of_all()
        except (OSError, HTTPException) as error:
            if time.monotonic() > until:
                raise servers.BenchError(str(error)) from None
        else:
            if count == wanted or time.monotonic() > until:
                return count
        time.sleep(POLL_S)


def percentiles(
    published_s: Sequence[float],
    published: Sequence[int],
    visible_s: Sequence[float],
    visible: Sequence[int],
    *,
    warm_s: float = 0.0,
) -> tuple[float, float, float]:
    """p50, p95 and p99 of the latencies of single events.

    The n-th event is visible at the first moment with at least n visible events. Its latency is that moment
    less the moment of its publication. For example, event 40 is published at 2.0 s. At 2.5 s 38 events are
    visible, and at 3.0 s 41 events are. The latency of event 40 is 1.0 s. An event that is never seen counts
    as infinitely late. Events of the first ``warm_s`` do not count.
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
