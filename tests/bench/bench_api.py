"""How fast the API answers on a year of figures while a worker flushes: python -m tests.bench.bench_api.

Loads hour and day rows of many orgs into a TimescaleDB of its own, runs the API as the process it is, checks
one answer against the database, and then asks: one request at a time, and at a fixed rate that does not
wait for slow answers (each latency counts from when its request was due). It reports and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from deploy.local import Stack
from pipeline.core import sketches
from pipeline.core.rules import Rules
from pipeline.sink.timescale import TimescaleSink
from sql import migrate
from tests import books, processes

ZERO_MODELS = [uuid.UUID(int=0x4000_8000_0000_0000_0000 + n) for n in range(100)]


def org(number: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"org-{number}")


def load(url: str, *, orgs: int, models: int, days: int, client_days: int, now: datetime) -> None:
    """Rows of every hour and day; a sketch of a realistic size; 4 clients for the last days."""
    first = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    rng = random.Random(1)
    sketch = sketches.of([int(rng.lognormvariate(6, 1)) for _ in range(90)])
    values = "1 + n %% 90, 1 + n %% 90, 0, 0, 0, n %% 5000, n %% 700, (n %% 9999) * 12345, n %% 900, 99"
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(orgs):
            for table, step, count in (("usage_hour", "1 h", days * 24), ("usage_day", "1 d", days)):
                connection.execute(
                    f"INSERT INTO analytics.{table} SELECT %s, %s + n * interval '{step}', model, 0,"
                    f" {values}, %s, 0, now() FROM generate_series(0, %s) AS n, unnest(%s::uuid[]) AS model"
                    " ORDER BY 2, 3",
                    (org(number), first, sketch, count - 1, ZERO_MODELS[:models]),
                )
            if client_days:
                connection.execute(
                    "INSERT INTO analytics.client_hour SELECT %s, %s + n * interval '1 h', model,"
                    f" 'client-' || c, 0, {values}, %s, 0, now()"
                    " FROM generate_series(0, %s) AS n, unnest(%s::uuid[]) AS model,"
                    " generate_series(1, 4) AS c ORDER BY 2, 3, 4",
                    (
                        org(number),
                        first + timedelta(days=days - client_days),
                        sketch,
                        client_days * 24 - 1,
                        ZERO_MODELS[:models],
                    ),
                )
            connection.execute(
                "INSERT INTO analytics.orgs_seen VALUES (%s, 0, %s, %s, %s)", (org(number), first, now, now)
            )
        for table in ("usage_hour", "usage_day", "client_hour", "orgs_seen"):
            connection.execute(f"VACUUM ANALYZE analytics.{table}")


@contextmanager
def flushing(url: str, *, orgs: int, models: int, events: int) -> Iterator[None]:
    """A worker's sink that commits a batch of events once a second."""
    stop, begun = threading.Event(), threading.Event()

    async def flush() -> None:
        sink = TimescaleSink(url, timeout_s=600)
        claim, ledger = await books.recover(sink, Rules())
        rng, offset = random.Random(2), 0
        while not stop.is_set():
            started = time.monotonic()
            now_us = time.time_ns() // 1000
            at = datetime.fromtimestamp(now_us / 1e6, UTC).isoformat()
            bodies = [
                json.dumps(
                    {
                        "eventId": str(uuid.UUID(int=rng.getrandbits(128))),
                        "orgId": str(org(rng.randrange(orgs))),
                        "modelId": str(ZERO_MODELS[rng.randrange(models)]),
                        "clientId": f"client-{rng.randrange(4)}",
                        "occurredAt": at,
                        "latencyMs": 5,
                        "status": "success",
                        "inputTokens": 5,
                        "outputTokens": 5,
                        "costEstimateCents": 0.5,
                    }
                ).encode()
                for _ in range(events)
            ]
            for chunk in books.chunks_of(bodies, size=events, broker_us=now_us, first_offset=offset):
                ledger.ingest(**chunk)
            offset += events
            await books.flush(sink, claim, ledger, now_us=now_us)
            begun.set()
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - started)))
        await sink.close()

    thread = threading.Thread(target=lambda: asyncio.run(flush()))
    thread.start()
    while thread.is_alive() and not begun.wait(0.1):
        pass
    print("the worker flushes" if begun.is_set() else "NO WORKER FLUSHES", flush=True)
    yield
    stop.set()
    thread.join()


def shown(name: str, latencies_s: list[float]) -> None:
    ordered = sorted(latencies_s)

    def at(q: float) -> float:
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1000

    print(f"{name:<52} n={len(ordered):<6} p50 {at(0.5):6.1f} ms  p99 {at(0.99):6.1f} ms", flush=True)


async def one_at_a_time(session: aiohttp.ClientSession, url: Callable[[], str], count: int) -> list[float]:
    found = []
    for number in range(count + 20):
        started = time.perf_counter()
        async with session.get(url()) as answer:
            await answer.read()
            assert answer.status == 200
        if number >= 20:
            found.append(time.perf_counter() - started)
    return found


async def at_a_rate(
    session: aiohttp.ClientSession, url: Callable[[], str], *, rate: float, seconds: float
) -> list[float]:
    """Latencies from when each request was due."""
    found, refused = [], 0

    async def ask(due: float) -> None:
        nonlocal refused
        async with session.get(url()) as answer:
            await answer.read()
            refused += answer.status != 200
        found.append(time.perf_counter() - due)

    started = time.perf_counter()
    asked = []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask(due)))
    await asyncio.gather(*asked)
    if refused:
        print(f"{refused} of {len(found)} were not answered with 200", flush=True)
    return found


def query(now: datetime, days: int, granularity: str, **more: str) -> str:
    end = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    start = end - timedelta(days=days)
    pairs = {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", "end": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
    return "&".join(
        f"{k}={v}" for k, v in {**pairs, "granularity": granularity, "limit": "10000", **more}.items()
    )


async def measure(base: str, now: datetime, arguments: argparse.Namespace) -> None:
    rng = random.Random(3)

    def asking(what: str) -> Callable[[], str]:
        return lambda: f"{base}/orgs/{org(rng.randrange(arguments.orgs))}/usage?{what}"

    week = query(now, 7, "hour")
    year = query(now, min(390, arguments.days), "day")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        shown("7 days by hour, one at a time", await one_at_a_time(session, asking(week), 300))
        shown(
            f"{min(390, arguments.days)} days by day, one at a time",
            await one_at_a_time(session, asking(year), 100),
        )
        if arguments.client_days:
            clients = query(now, 7, "hour", groupBy="client")
            shown(
                "7 days by hour and client, one at a time", await one_at_a_time(session, asking(clients), 100)
            )
        latencies = await at_a_rate(session, asking(week), rate=arguments.rate, seconds=arguments.seconds)
        shown(f"7 days by hour at {arguments.rate:g} requests/s", latencies)


def check(url: str, api: processes.Api, now: datetime) -> None:
    """One answer, counted again in SQL."""
    end = now.replace(minute=0, second=0, microsecond=0)
    start = end - timedelta(days=7)
    answer: Any = api.answer(
        f"/orgs/{org(0)}/usage", start=start.isoformat(), end=end.isoformat(), granularity="hour", limit=10000
    )
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT sum(invocations), count(DISTINCT (bucket_start, model_id)) FROM analytics.usage_hour"
            " WHERE org_id = %s AND bucket_start >= %s AND bucket_start < %s",
            (org(0), start, end),
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
    parser.add_argument("--rate", type=float, default=150)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--events", type=int, default=2000, help="events that the worker flushes each second")
    arguments = parser.parse_args()
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "stack", temporary=True) as stack:
        stack.postgres.start()
        url = stack.postgres.create_database("bench")
        migrate.upgrade(url)
        started = time.monotonic()
        load(
            url,
            orgs=arguments.orgs,
            models=arguments.models,
            days=arguments.days,
            client_days=arguments.client_days,
            now=now,
        )
        rows = arguments.orgs * arguments.models * arguments.days * 25
        print(f"loaded {rows:,} rows (and by client) in {time.monotonic() - started:.0f} s", flush=True)
        env = {"DATABASE_URL": url, "API_RATE_LIMIT": "0", "LOG_LEVEL": "error"}
        with processes.Api(env, Path(folder)) as api:
            check(url, api, now)
            with flushing(url, orgs=arguments.orgs, models=arguments.models, events=arguments.events):
                asyncio.run(measure(api.ready_url.removesuffix("/status/readyz"), now, arguments))


if __name__ == "__main__":
    main()
