"""What the ids of the dedupe window cost, in memory and at recovery: python -m tests.bench.bench_ids.

On a PostgreSQL of its own it stores ids spread over 24 hours, as a worker's merged segments hold them. Then a
process of its own, for each way to keep them, recovers a partition from the database, as a worker does
before it reads, and looks up new ids and known ones. It reports and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from deploy.local import Stack
from pipeline.core import dedupe
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.warm_up import warm_up
from pipeline.core.watermark import HOUR_US
from pipeline.sink.timescale import TimescaleSink
from pipeline.worker import id_files as spill
from sql import migrate
from tests.support import books, mix

HOURS = 24
ORGS = 500
SEGMENT_IDS = 3_000_000
LOOK_UPS = 400_000
BATCH = 8192


def random_ids(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, (n, 2)).astype(np.uint64)


def random_orgs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, ORGS, n).astype(np.int32)


async def store(url: str, ids: int) -> None:
    """A partition with one event and ``ids`` ids of the last 24 hours."""
    now_us = time.time_ns() // 1000
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, Rules())
    body = mix.make(1, seed=1, now_us=now_us, bad=0).bodies
    ledger.ingest(first_offset=0, next_offset=1, timestamp_us=now_us, bodies=body)
    await books.flush(sink, claim, ledger)
    await sink.close()
    uuids = random_ids(ORGS, 0)
    with psycopg.connect(url, autocommit=True) as connection:
        last_hour, an_hour = now_us // HOUR_US, ids // HOURS
        for back in range(HOURS):
            for segment, begin in enumerate(range(0, an_hour, SEGMENT_IDS)):
                n = min(SEGMENT_IDS, an_hour - begin)
                seed = 1 + back * 1000 + segment
                checks = np.zeros(n, np.uint64)
                data = dedupe.encode_segment(uuids, random_orgs(n, seed), random_ids(n, seed), checks)
                connection.execute(
                    "INSERT INTO analytics.dedupe_ids (partition, hour, segment, ids)"
                    " VALUES (%s, to_timestamp(%s), %s, %s)",
                    (claim.partition, (last_hour - back) * 3600, 1000 + segment, data),
                )


def _status(name: str) -> float:
    """MiB that /proc/self/status gives under a name."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


async def recover(url: str, folder: str) -> dict[str, Any]:
    """Recover the partition in this process, and look up."""
    warm_up()
    before_mib = _status("RssAnon")
    sink = TimescaleSink(url)
    began, cpu = time.perf_counter(), time.process_time()
    claim, position = await sink.claim(books.STREAM)
    ledger = Ledger(Rules(), position, new_log=spill.logs_in(Path(folder)) if folder else None)
    ledger.adopt(await sink.resident_rows(claim, ledger.resident_from()))
    from_hour = ledger.live_hours_from()
    ledger.expect_ids(await sink.live_ids_count(claim, from_hour=from_hour))
    async for hour, segment in sink.live_ids(claim, from_hour=from_hour):
        ledger.recover_ids(hour, segment)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    await sink.close()
    resident_mib, in_files_mib = _status("RssAnon") - before_mib, _status("RssFile")
    seen, now_hour = ledger._judge.ids.seen, position.broker_us // HOUR_US

    def look_up(ids: np.ndarray, orgs: np.ndarray) -> float:
        hours = np.full(BATCH, now_hour, np.int32)
        checks, spent = np.zeros(BATCH, np.uint64), 0.0
        for at in range(0, len(ids) - BATCH, BATCH):
            cpu = time.process_time()
            seen.add(ids[at : at + BATCH], orgs[at : at + BATCH], hours, checks, hours - HOURS)
            spent += time.process_time() - cpu
        return spent / len(ids) * 1e9

    known = seen._logs[0][: min(LOOK_UPS, int(seen._used[0])), :5]
    words = known[:, :4].astype(np.uint64)
    pairs = np.stack((words[:, 0] << 32 | words[:, 1], words[:, 2] << 32 | words[:, 3]), axis=1)
    figures = {
        "ids": len(seen),
        "recovery_s": took_s,
        "recovery_cpu_s": cpu_s,
        "index_and_ids_mib": ledger.memory_bytes / 2**20,
        "resident_mib": resident_mib,
        "in_files_mib": in_files_mib,
        "peak_mib": _status("VmHWM"),
        "known_ns": look_up(pairs, known[:, 4].astype(np.int32)),
    }
    return figures | {"new_ns": look_up(random_ids(LOOK_UPS, 999_999), random_orgs(LOOK_UPS, 999_999))}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--millions", type=int, nargs="+", default=[1, 10, 20])
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        print(json.dumps(asyncio.run(recover(*given.child))))
        return
    columns = (
        "recovery_s",
        "recovery_cpu_s",
        "resident_mib",
        "in_files_mib",
        "peak_mib",
        "new_ns",
        "known_ns",
    )
    print("| ids | kept in | " + " | ".join(columns) + " |")
    print("| ---: | --- |" + " ---: |" * len(columns))
    with (
        tempfile.TemporaryDirectory(prefix="spendstream-bench-ids-") as folder,
        Stack(Path(folder) / "stack", temporary=True) as stack,
    ):
        stack.start(("postgres",))
        ids_folder = Path(folder) / "ids"
        ids_folder.mkdir()
        for millions in given.millions:
            url = stack.postgres.create_database(f"ids_{millions}")
            migrate.upgrade(url)
            asyncio.run(store(url, millions * 1_000_000))
            for place, where in (("memory", ""), ("files", str(ids_folder))):
                argv = [sys.executable, "-m", "tests.bench.bench_ids", "--child", url, where]
                done = subprocess.run(argv, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout)
                cells = " | ".join(f"{found[name]:,.1f}" for name in columns)
                print(f"| {found['ids']:,} | {place} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
