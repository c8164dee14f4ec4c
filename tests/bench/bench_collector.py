"""How fast the collector is, beside a broker and a worker: python -m tests.bench.bench_collector.

On servers of its own it runs a worker on a real stream and a collector, each as the process it is. It sends
batches and single events: first as fast as they are answered, over some connections, and then at a fixed
rate and at half of the first one, without waiting for slow answers. At the end it checks that the worker has
counted every event that was answered, once. It reports and judges nothing. All of it shares the cores of this
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import deque
from pathlib import Path

from tests.bench import collector_servers
from tests.bench.http_load import Connection, connect
from tests.support import collectors, processes
from tests.support.senders import counted
from tests.support.usage_events import EventMill, array, post

STEADY = {500: 30.0, 1: 1000.0}
"""Requests a second at which latencies are comparable between runs, by the events of a request. The other
rate is half of what the run before took."""
CONNECTIONS_MAX = 256
"""A sender has a pool of so many connections. What waits for one of them waits in the latency too."""
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


async def as_fast_as_possible(
    port: int, mill: EventMill, *, size: int, seconds: float, connections: int
) -> tuple[int, list[float]]:
    """Each of some connections sends again when it has its answer: requests answered, and their seconds."""
    until = time.perf_counter() + seconds
    found: list[float] = []

    async def send() -> None:
        connection = await connect(port)
        while time.perf_counter() < until:
            request = _request(port, mill, size)
            started = time.perf_counter()
            status = await connection.ask(request)
            assert status == 200, status
            found.append(time.perf_counter() - started)
        connection.close()

    await asyncio.gather(*(send() for _ in range(connections)))
    return len(found), found


async def at_a_rate(port: int, mill: EventMill, *, size: int, seconds: float, rate: float) -> list[float]:
    """Seconds from when each request was due to its answer."""
    idle: deque[Connection] = deque()
    found: list[float] = []

    room = asyncio.Semaphore(CONNECTIONS_MAX)

    async def ask(due: float) -> None:
        async with room:
            await answered(due)

    async def answered(due: float) -> None:
        connection = idle.popleft() if idle else await connect(port)
        status = await connection.ask(_request(port, mill, size))
        assert status == 200, status
        found.append(time.perf_counter() - due)
        idle.append(connection)

    tasks = []
    started = time.perf_counter() + 0.05
    for number in range(round(seconds * rate)):
        due = started + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return found


def _request(port: int, mill: EventMill, size: int) -> bytes:
    events = mill.events(size)
    return post("/v1/events", array(events) if size > 1 else events[0], port=port)


def percentiles_ms(found: list[float]) -> str:
    cuts = statistics.quantiles(found, n=1000)
    return f"p50 {cuts[499] * 1e3:.1f} ms, p99 {cuts[989] * 1e3:.1f} ms, max {max(found) * 1e3:.0f} ms"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(
    collector: processes.Process, port: int, mill: EventMill, *, size: int, seconds: float, connections: int
) -> None:
    pid = collector.process.pid
    before, started = cpu_s(pid), time.perf_counter()
    answered, found = asyncio.run(
        as_fast_as_possible(port, mill, size=size, seconds=seconds, connections=connections)
    )
    took = time.perf_counter() - started
    rate = answered / took
    print(
        f"{size} events a request, {connections} connections: {rate:,.0f} requests/s,"
        f" {rate * size:,.0f} events/s, {percentiles_ms(found)}; the collector had"
        f" {(cpu_s(pid) - before) / took:.0%} of a core and {rss_mib(pid):.0f} MiB",
        flush=True,
    )
    for steady in (STEADY[size], rate / 2):
        found = asyncio.run(at_a_rate(port, mill, size=size, seconds=seconds, rate=steady))
        events = steady * size
        print(f"  at {steady:,.0f} requests/s ({events:,.0f} events/s): {percentiles_ms(found)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument(
        "--spool", action="store_true", help="with a spool, which healthy brokers leave empty"
    )
    given = parser.parse_args()
    with collector_servers.running() as (_, env, folder):
        if given.spool:
            (folder / "spool").mkdir()
            env["COLLECTOR_SPOOL"] = str(folder / "spool")
        if given.partitions > 1:
            done = processes.command("stream", "create", "--partitions", str(given.partitions), env=env)
            assert done.returncode == 0, done.stderr
        mill = EventMill(seed=int(time.time()))
        with processes.worker(env, folder) as worker, collectors.collector(env, folder) as collector:
            for size, connections in ((500, 4), (1, 64)):
                measure(
                    collector, collector.port, mill, size=size, seconds=given.seconds, connections=connections
                )
            url = env["DATABASE_URL"]
            processes.wait_for(lambda: sum(counted(url)) >= mill.made, 120, worker.log)
            print(f"sent {mill.made:,} events; accepted, duplicate, rejected: {counted(url)}")


if __name__ == "__main__":
    main()
