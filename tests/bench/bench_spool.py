"""How fast a spool takes records in, and gives them back: python -m tests.bench.bench_spool [FOLDER].

The folder should be on the disk to be measured. It says records/s, the time of an append, how late the event
loop was, and the processor time of a record. It reports and judges nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from pipeline.collector.spool import Spool

BODY = b'{"eventId":"0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69"}'.ljust(400)
KEY = "5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e"
SECONDS = 5.0


def _raw_syncs_per_s(folder: Path) -> float:
    """What the disk itself can do: writes of one record, each with its sync, one after the other."""
    fd = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    count, end = 0, time.perf_counter() + 2
    while time.perf_counter() < end:
        os.write(fd, BODY)
        os.fdatasync(fd)
        count += 1
    os.close(fd)
    os.unlink(folder / "raw")
    return count / 2


async def _loop_lag(lags: list[float]) -> None:
    """How much later than asked the event loop comes back, again and again."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.002)
        lags.append(time.perf_counter() - begun - 0.002)


def _at(values: list[float], share: float) -> str:
    return f"{sorted(values)[int(len(values) * share)] * 1e3:.1f} ms" if values else "none"


async def _appends(folder: Path, *, callers: int, batch: int, drains: bool = False) -> None:
    spool = await Spool.open(folder, bytes_max=8 * 2**30)
    times: list[float] = []
    lags: list[float] = []
    given = 0
    end = time.perf_counter() + SECONDS

    async def call() -> None:
        records = [(KEY, BODY)] * batch
        while time.perf_counter() < end:
            begun = time.perf_counter()
            await spool.append(records)
            times.append(time.perf_counter() - begun)

    async def drain() -> None:
        nonlocal given
        while True:
            taken = await spool.oldest(bytes_max=2**20, records_max=2000)
            await asyncio.sleep(0)
            spool.published(taken)
            given += len(taken.bodies)

    helpers = [asyncio.create_task(_loop_lag(lags))]
    if drains:
        helpers.append(asyncio.create_task(drain()))
    begun, begun_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call() for _ in range(callers)))
    took, took_cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    records = len(times) * batch
    print(
        f"{callers:4} callers, batches of {batch:3}{', drained' if drains else '':9}:"
        f" {records / took:9,.0f} records/s, {len(times) / took:7,.0f} appends/s,"
        f" append p50 {_at(times, 0.5)} p99 {_at(times, 0.99)}, loop p99 {_at(lags, 0.99)},"
        f" {took_cpu / (records + given) * 1e6:.1f} us of processor a record"
    )
    for helper in helpers:
        helper.cancel()
    await asyncio.wait(helpers)
    await spool.close()


async def _start_and_drain(folder: Path) -> None:
    begun = time.perf_counter()
    spool = await Spool.open(folder, bytes_max=8 * 2**30)
    opened = time.perf_counter()
    records, stored = spool.records, spool.bytes
    while spool.records:
        spool.published(await spool.oldest(bytes_max=2**20, records_max=2000))
    took = time.perf_counter() - opened
    print(
        f"start with {stored / 2**20:,.0f} MiB: {(opened - begun) * 1e3:.0f} ms;"
        f" drained at {records / took:,.0f} records/s"
    )
    await spool.close()


async def _main(folder: Path) -> None:
    print(f"the disk: {_raw_syncs_per_s(folder):,.0f} writes with a sync a second")
    for callers, batch in ((1, 500), (4, 500), (1, 1), (20, 1), (100, 1)):
        await _appends(folder, callers=callers, batch=batch)
    await _start_and_drain(folder)
    for callers, batch in ((4, 500), (1, 1), (100, 1)):
        await _appends(folder, callers=callers, batch=batch, drains=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as made:
        asyncio.run(_main(Path(made)))
