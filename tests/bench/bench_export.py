"""How long an export of a million rows takes, and how much memory: python -m tests.bench.bench_export.

On a TimescaleDB of its own with 31 days of hour rows of one org by model and client. For each form an API
process of its own makes the file; the time is from the order to the answer that it is there, the memory the
process's highest (VmHWM). Each file is read back and its totals compared with the rows'. It reports and
judges nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pyarrow.parquet as pq

from deploy.local import Stack
from sql import migrate
from tests.bench import rollup_rows
from tests.bench.rollup_rows import Size
from tests.support import processes
from tests.support.api_server import BASE, Client

FORMS = ("csv", "parquet")
DAYS = 31


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


def totals(file: Path, form: str) -> tuple[int, Decimal]:
    """Invocations and dollars of all rows."""
    if form == "parquet":
        table = pq.read_table(file, columns=["invocations", "costAmount"])
        rows: Iterable[tuple[int, Decimal]] = zip(
            *(column.to_pylist() for column in table.columns), strict=True
        )
    else:
        with file.open(newline="") as lines:
            rows = ((int(r["invocations"]), Decimal(r["costAmount"])) for r in list(csv.DictReader(lines)))
    invocations, cost = 0, Decimal(0)
    for found, amount in rows:
        invocations, cost = invocations + found, cost + amount
    return invocations, cost


def make(url: str, form: str, end: datetime) -> tuple[float, float, int, int]:
    """(seconds, peak MiB, rows, bytes) of one export."""
    org = rollup_rows.org(0)
    span = {"start": (end - timedelta(days=DAYS)).isoformat(), "end": end.isoformat()}
    with tempfile.TemporaryDirectory() as folder:
        env = {"DATABASE_URL": url, "EXPORT_DIR": folder, "API_RATE_LIMIT": "0", "LOG_LEVEL": "error"}
        with processes.Api(env, Path(folder)) as api:
            client = Client(urlsplit(api.ready_url).port or 0)
            path = f"{BASE}/orgs/{org}/exports"
            body = json.dumps({"timeRange": span, "granularity": "hourly", "format": form}).encode()
            started = time.perf_counter()
            status, _, answer = client.request("POST", path, body=body)
            assert status == 202, answer
            job: Any = json.loads(answer)
            while job["status"] in ("pending", "running"):
                time.sleep(0.02)
                job = client.ok(f"{path}/{job['jobId']}")
            seconds = time.perf_counter() - started
            assert job["status"] == "succeeded", job
            peak = peak_mib(api.process.pid)
        (file,) = (p for p in (Path(folder) / "exports" / str(org)).iterdir() if job["jobId"] in p.name)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == job["checksum"]
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT sum(invocations), sum(cost_microcents), count(*) FROM analytics.client_hour"
                " WHERE bucket_start >= %(start)s AND bucket_start < %(end)s",
                span,
            ).fetchone()
        assert row is not None
        assert totals(file, form) == (row[0], row[1] / 10**8)
        assert job["rowCount"] == row[2]
        return seconds, peak, job["rowCount"], job["byteCount"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=337, help="337 make 1,002,912 rows by hour")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "stack", temporary=True) as stack:
        stack.postgres.start()
        url = stack.postgres.create_database("bench")
        migrate.upgrade(url)
        size = Size(orgs=1, models=arguments.models, days=DAYS, client_days=DAYS)
        rollup_rows.load(url, size, end=end)
        for form in FORMS:
            runs = [make(url, form, end) for _ in range(arguments.repeats)]
            seconds, peak = (statistics.median(run[i] for run in runs) for i in (0, 1))
            print(
                f"{form}: {runs[0][2]:,} rows, {runs[0][3] / 1e6:.0f} MB in {seconds:.2f} s,"
                f" {peak:.0f} MiB at most",
                flush=True,
            )


if __name__ == "__main__":
    main()
