"""How fast the API answers on a year of figures while a worker flushes: python -m tests.bench.bench_api.

On servers of its own it loads hour and day rows of many orgs, runs a worker on a real stream and the API,
each as the process it is, and checks one answer against the database. Then it asks: one request at a time,
and at a fixed rate that does not wait for slow answers. It reports and judges nothing. With --keep the loaded
data stays in a folder for the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from deploy.local import Stack
from sql import migrate
from tests.bench import http_load, rollup_rows
from tests.bench.rollup_rows import Size
from tests.support import processes, streams

STREAM = "analytics.usage.v1"
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


# --- what is measured on -----------------------------------------------------------------------


def prepared(folder: Path, size: Size) -> tuple[str, datetime]:
    """URL of the loaded database below ``folder``, and the end of its rows; loaded now unless it is there."""
    note = folder / "loaded.json"
    wanted = {"orgs": size.orgs, "models": size.models, "days": size.days, "client_days": size.client_days}
    if note.exists():
        kept = json.loads(note.read_text())
        if kept["size"] != wanted:
            sys.exit(f"{folder} holds {kept['size']}; take another folder or the same numbers")
        postgres = Stack(folder / "stack").postgres
        postgres.start()
        migrate.upgrade(postgres.database_url("bench"))
        return postgres.database_url("bench"), datetime.fromisoformat(kept["end"])
    postgres = Stack(folder / "stack", durable=False).postgres  # an empty database has nothing to lose
    postgres.start()
    loading = {"wal_level": "minimal", "max_wal_senders": "0", "autovacuum": "off", "max_wal_size": "8GB"}
    _set(postgres.url, loading)
    postgres.stop()
    postgres.start()
    url = postgres.create_database("bench")
    migrate.upgrade(url)
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    started = time.monotonic()
    rollup_rows.load(url, size, end=end)
    rollup_rows.price(url, changed_at=end - timedelta(days=min(3, size.days)))
    print(f"loaded {size.rows:,} rows in {time.monotonic() - started:.0f} s", flush=True)
    _set(postgres.url, dict.fromkeys(loading) | {"shared_buffers": "1GB", "max_wal_size": "4GB"})
    postgres.stop()
    postgres = Stack(folder / "stack").postgres
    postgres.start()
    note.write_text(json.dumps({"size": wanted, "end": end.isoformat()}))
    return url, end


def _set(url: str, settings: dict[str, Any]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(
                f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = '{value}'"
            )


@contextmanager
def flushing(stack: Stack, url: str, folder: Path, size: Size, *, rate: int) -> Iterator[processes.Process]:
    """A worker that commits ``rate`` events a second from a real stream."""
    stack.rabbitmq.start()
    env = {**stack.rabbitmq.env, "DATABASE_URL": url, "RABBITMQ_STREAM": STREAM}
    with processes.worker(env, folder) as worker:
        publisher = multiprocessing.get_context("spawn").Process(
            target=publish, args=(env["RABBITMQ_URL"], size, rate), daemon=True
        )
        publisher.start()
        try:
            before = streams.offered(url)
            processes.wait_for(lambda: streams.offered(url) > before + rate, 60, worker.log)
            yield worker
            assert worker.process.poll() is None, worker.log()
        finally:
            publisher.terminate()
            publisher.join()
        worker.stop()


def publish(url: str, size: Size, rate: int) -> None:
    """Events of all orgs, models and clients at random, a batch a second, until terminated."""
    rng = random.Random()

    async def run() -> None:
        while True:
            started = time.monotonic()
            at = datetime.now(UTC).isoformat()
            bodies = [
                json.dumps(
                    {
                        "eventId": str(uuid.UUID(int=rng.getrandbits(128))),
                        "orgId": str(rollup_rows.org(rng.randrange(size.orgs))),
                        "modelId": str(rollup_rows.model(rng.randrange(size.models))),
                        "clientId": rollup_rows.client(rng.randrange(rollup_rows.CLIENTS)),
                        "occurredAt": at,
                        "latencyMs": rng.randrange(2000),
                        "status": "success",
                        "inputTokens": rng.randrange(20_000),
                        "outputTokens": rng.randrange(2000),
                        "costEstimateCents": 0.5,
                    }
                ).encode()
                for _ in range(rate)
            ]
            await streams.publish(url, STREAM, bodies, "raw", amqp_url="")
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - started)))

    asyncio.run(run())


# --- measuring ---------------------------------------------------------------------------------


class Asked:
    """The requests of one kind: of an org at random each."""

    def __init__(self, port: int, size: Size, end: datetime, *, gzip: bool) -> None:
        self._port, self._size, self._end, self._gzip = port, size, end, gzip
        self._rng = random.Random(3)

    def usage(self, count: int, days: int, granularity: str, **more: str) -> list[bytes]:
        return [
            self._get("usage", days, granularity=granularity, limit="10000", **more) for _ in range(count)
        ]

    def reliability(self, count: int, days: int, grain: str) -> list[bytes]:
        return [self._get("reliability", days, granularity=grain, limit="10000") for _ in range(count)]

    def freshness(self, count: int) -> list[bytes]:
        return [self._path(f"{self._org()}/freshness") for _ in range(count)]

    def orgs(self, count: int, days: int) -> list[bytes]:
        """A twentieth of ``count``: each answer reads all orgs."""
        return [self._path(f"?{self._range(days)}") for _ in range(max(10, count // 20))]

    def _get(self, route: str, days: int, **more: str) -> bytes:
        rest = "".join(f"&{name}={value}" for name, value in more.items())
        return self._path(f"{self._org()}/{route}?{self._range(days)}{rest}")

    def _range(self, days: int) -> str:
        start = self._end - timedelta(days=days)
        return f"start={start:%Y-%m-%dT%H:%M:%SZ}&end={self._end:%Y-%m-%dT%H:%M:%SZ}"

    def _org(self) -> str:
        return f"/{rollup_rows.org(self._rng.randrange(self._size.orgs))}"

    def _path(self, rest: str) -> bytes:
        return http_load.get(f"/analytics/v1/orgs{rest}", port=self._port, gzip=self._gzip)


def cpu_s(pid: int) -> float:
    """CPU seconds that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def percentile_ms(latencies_s: list[float], q: float) -> float:
    ordered = sorted(latencies_s)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1000


def show(name: str, runs: list[tuple[list[float], float]]) -> None:
    """Medians over the runs, each of latencies and the API's CPU seconds."""

    def median(of: Any) -> float:
        return statistics.median(float(of(latencies, cpu)) for latencies, cpu in runs)

    each = len(runs[0][0])
    print(
        f"{name:<52} n={len(runs)}x{each:<5}"
        f" p50 {median(lambda found, _: percentile_ms(found, 0.5)):6.1f}"
        f" p95 {median(lambda found, _: percentile_ms(found, 0.95)):6.1f}"
        f" p99 {median(lambda found, _: percentile_ms(found, 0.99)):6.1f} ms;"
        f" API CPU {median(lambda found, cpu: cpu / len(found) * 1000):5.2f} ms/request",
        flush=True,
    )


async def measure(api: processes.Api, size: Size, end: datetime, arguments: argparse.Namespace) -> None:
    pid, port = api.process.pid, int(api.ready_url.split(":")[2].split("/")[0])
    year = min(390, size.days)
    for gzip in (False, True):
        ask = Asked(port, size, end, gzip=gzip)
        coding = " (gzip)" if gzip else ""
        kinds: dict[str, Callable[[int], list[bytes]]] = {}
        for days, grain in ((7, "hour"), (year, "day")):
            by_book = partial(ask.usage, days=days, granularity=grain)
            by_estimate = partial(ask.usage, days=days, granularity=grain, costBasis="estimate")
            kinds |= {f"{days} days by {grain}": by_book}
            kinds |= {f"{days} days by {grain}, estimates only": by_estimate}
        if not gzip:
            kinds |= {
                f"{year} days by month": partial(ask.usage, days=year, granularity="month"),
                "7 days by hour and client": partial(ask.usage, days=7, granularity="hour", groupBy="client"),
                "7 days by day, reliability": partial(ask.reliability, days=7, grain="day"),
                "freshness": ask.freshness,
                "all orgs, 7 days": partial(ask.orgs, days=7),
            }
        for name, make in kinds.items():
            if "client" in name and not size.client_days:
                continue
            await http_load.one_at_a_time(port, make(20))
            runs = []
            for _ in range(arguments.repeats):
                before = cpu_s(pid)
                runs.append(
                    (await http_load.one_at_a_time(port, make(arguments.requests)), cpu_s(pid) - before)
                )
            show(f"{name}{coding}, one at a time", runs)
        for rate in arguments.rate:
            runs = []
            for _ in range(arguments.repeats):
                before = cpu_s(pid)
                found, refused = await http_load.at_a_rate(
                    port, ask.usage(int(rate * arguments.seconds), 7, "hour"), rate=rate
                )
                runs.append((found, cpu_s(pid) - before))
                if refused:
                    print(f"{refused} of {len(found)} were not answered with 200", flush=True)
            show(f"7 days by hour{coding} at {rate:g} requests/s", runs)


def check(url: str, api: processes.Api, end: datetime) -> None:
    """One answer, counted again in SQL."""
    start, org = end - timedelta(days=7), rollup_rows.org(0)
    answer: Any = api.answer(
        f"/orgs/{org}/usage", start=start.isoformat(), end=end.isoformat(), granularity="hour", limit=10000
    )
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT sum(invocations), count(DISTINCT (bucket_start, model_id)) FROM analytics.usage_hour"
            " WHERE org_id = %s AND bucket_start >= %s AND bucket_start < %s",
            (org, start, end),
        ).fetchone()
    assert row is not None
    assert (answer["totals"]["invocations"], len(answer["series"])) == (row[0], row[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orgs", type=int, default=250)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--days", type=int, default=395, help="days of hour and day rows (395: 24 million)")
    parser.add_argument("--client-days", type=int, default=31, help="days of hour rows by 4 clients")
    parser.add_argument("--rate", type=float, action="append", help="requests a second; repeat it for more")
    parser.add_argument("--seconds", type=float, default=10, help="of each run at a rate")
    parser.add_argument("--requests", type=int, default=200, help="of each run one at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--events", type=int, default=1000, help="events the worker takes in each second")
    parser.add_argument("--keep", type=Path, help="a folder to keep the loaded data in (25 GB)")
    arguments = parser.parse_args()
    arguments.rate = arguments.rate or [150]
    size = Size(
        orgs=arguments.orgs, models=arguments.models, days=arguments.days, client_days=arguments.client_days
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stack = Stack(folder / "stack")
        try:
            url, end = prepared(folder, size)
            env = {"DATABASE_URL": url, "API_RATE_LIMIT": "0", "LOG_LEVEL": "error"}
            with processes.Api(env, Path(temporary)) as api:
                check(url, api, end)
                with flushing(stack, url, Path(temporary), size, rate=arguments.events):
                    asyncio.run(measure(api, size, end + timedelta(hours=1), arguments))
        finally:
            stack.stop(purge=not arguments.keep)


if __name__ == "__main__":
    main()
