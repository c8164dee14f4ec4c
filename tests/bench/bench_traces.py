"""What tracing costs, off and on: python -m tests.bench.bench_traces [--rounds 7].

The modes take turns within each round, so that a machine that is slow for a while is slow for all of them. A
figure is the median of the rounds, and its ratio is the median of each round's own ratio to `off`.

- a span: the `with` line alone, with two attributes.
- a chunk: a real partition, with its ledger, and a sink in memory. 20 chunks and a flush, again and again.
- a request: aiohttp with a handler that does nothing, so the span is as large a part as can be.

`away` has a receiver at which nothing listens. The receiver of `on` is a process of its own. It reports and
judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from deploy.local.ports import free_port
from pipeline.common import traces
from pipeline.common.traces import requests
from pipeline.common.traces.config import TracesConfig
from pipeline.config import FlushConfig
from pipeline.core.rules import Rules
from pipeline.core.warm_up import warm_up
from pipeline.transports import Chunk, Subscription
from pipeline.worker.membership import Delivery
from pipeline.worker.partition import PartitionWorker
from tests.support import books
from tests.support.memory_sink import MemorySink
from tests.support.memory_transport import MemoryBroker, MemoryTransport
from tests.support.usage_events import EventMill

SPANS: Final = 100_000
FLUSHES: Final = 6
CHUNKS: Final = 20
REQUESTS: Final = 1500
MODES: Final = ("off", "on", "1 %", "away")
_RECEIVER: Final = """
import time
from tests.support.otlp_receiver import over_http
with over_http() as receiver:
    receiver.take = lambda body, headers: 200
    print(receiver.url, flush=True)
    time.sleep(86400)
"""


@contextmanager
def receiver() -> Iterator[str]:
    """The URL of a receiver in a process of its own, which throws away what it gets."""
    process = subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def configs(url: str) -> dict[str, TracesConfig | None]:
    """How tracing is set up in each of `MODES`."""
    return {
        "off": None,
        "on": TracesConfig(endpoint=url, queue_spans_max=100_000, delay_s=1.0),
        "1 %": TracesConfig(endpoint=url, sampler="parentbased_traceidratio", ratio=0.01, delay_s=1.0),
        "away": TracesConfig(endpoint=f"http://127.0.0.1:{free_port()}", delay_s=0.1, timeout_s=1.0),
    }


def a_span() -> float:
    """Nanoseconds of a span. Without tracing, the loop itself is a large part of it, and is taken off."""
    began = time.perf_counter()
    for _ in range(SPANS):
        pass
    loop_s = time.perf_counter() - began
    count = SPANS if not traces.is_on() else SPANS // 50
    began = time.perf_counter()
    for number in range(count):
        with traces.span("flush", partition=3, rows=number):
            pass
    return (time.perf_counter() - began - loop_s * count / SPANS) / count * 1e9


class _Granted:
    def grant(self) -> None: ...


def partition(chunk_events: int) -> float:
    """Microseconds of a chunk, with its share of the flush after each `CHUNKS` of them."""
    mill = EventMill(orgs=20, models=10)
    batches = [mill.events(chunk_events * CHUNKS) for _ in range(FLUSHES)]

    async def work() -> float:
        worker = PartitionWorker(
            index=0,
            stream=books.STREAM,
            transport=MemoryTransport(MemoryBroker(books.STREAM)),
            sink=MemorySink(),
            rules=Rules(),
            flush=FlushConfig(),
        )
        await worker.activated()
        offset, took_s = 0, 0.0
        for bodies in batches:
            chunks = books.chunks_of(
                bodies, size=chunk_events, broker_us=time.time_ns() // 1000, first_offset=offset
            )
            offset += len(bodies)
            deliveries = [
                Delivery(Chunk(partition=0, **one), cast(Subscription, _Granted()), worker._life.term)
                for one in chunks
            ]
            began = time.perf_counter()
            for delivery in deliveries:
                await worker.book(delivery)
            await worker.flush()
            took_s += time.perf_counter() - began
        await worker.close()
        return took_s / (FLUSHES * CHUNKS) * 1e6

    return asyncio.run(work())


def a_request() -> float:
    """Microseconds of a request and its answer, one after the other on one connection."""

    async def nothing(_: web.Request) -> web.Response:
        return web.Response(text="")

    async def work() -> float:
        app = web.Application(middlewares=requests.middlewares())
        app.router.add_get("/orgs/{orgId}/usage", nothing)
        async with TestClient(TestServer(app)) as client:
            began = time.perf_counter()
            for _ in range(REQUESTS):
                async with client.get("/orgs/aaaaaaaa-0000-4000-8000-000000000001/usage") as answer:
                    await answer.read()
            return (time.perf_counter() - began) / REQUESTS * 1e6

    return asyncio.run(work())


MEASURED: Final[Mapping[str, Callable[[], float]]] = {
    "a span, ns": a_span,
    "a chunk of 100 events, us": lambda: partition(100),
    "a chunk of 1,000 events, us": lambda: partition(1000),
    "a request, us": a_request,
}


def measure(url: str, rounds: int, what: Callable[[], float]) -> dict[str, list[float]]:
    """What each mode took in each round."""
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    modes = configs(url)
    for number in range(rounds):
        for mode in (*MODES[number % 4 :], *MODES[: number % 4]):
            with traces.running(modes[mode], "bench"):
                found[mode].append(what())
    return found


def row(name: str, found: Mapping[str, Sequence[float]]) -> str:
    """A line of the table: the median of each mode, and its ratio to `off`."""
    cells: list[Any] = [name]
    for mode in MODES:
        ratios = [one / off for one, off in zip(found[mode], found["off"], strict=True)]
        cells.append(f"{statistics.median(found[mode]):,.1f} ({statistics.median(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    warm_up()
    partition(100)
    print(f"| median of {rounds} rounds (ratio to off) | {' | '.join(MODES)} |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with receiver() as url:
        for name, what in MEASURED.items():
            print(row(name, measure(url, rounds, what)), flush=True)


if __name__ == "__main__":
    main()
