"""What a flush costs, and whether tables grow without new keys: python -m tests.bench.bench_flush.

On a TimescaleDB of its own (with fsync), through the real ledger and the real sink. Each flush has one event
of each of some (org, model) pairs, always of the same minute, so that every flush writes the same rows again:
about five a pair, and two more for each dimension. The first `WARM` flushes, which make rows and tables, do
not count. It reports and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from deploy.local import Stack
from pipeline.bench import workload
from pipeline.core import dimensions
from pipeline.core.rules import Rules
from pipeline.core.warm_up import warm_up
from pipeline.core.windows import BREAKDOWNS, ERRORS, GRAINS
from pipeline.sink.timescale import TimescaleSink
from sql import migrate
from tests.support import books

ROWS_A_PAIR = len(GRAINS)
WARM = 5
_PAIR = slice(59, 144)
"""Org and model in a camelCase body."""

_TABLES = [f"analytics.{grain.name}" for grain in (*GRAINS, *BREAKDOWNS, ERRORS)]
_SIZE = """
    WITH parents AS (SELECT name::regclass::oid AS oid FROM unnest(%s::text[]) AS name)
    SELECT sum(pg_total_relation_size(oid))::bigint
    FROM (SELECT oid FROM parents UNION SELECT inhrelid FROM pg_inherits JOIN parents ON oid = inhparent)
"""


def one_of_each(pairs: int, *, end_us: int) -> tuple[int, list[bytes]]:
    """A minute (UTC microseconds), and an event in it of each of so many (org, model) pairs."""
    shape = workload.Shape(events=max(2000, 10 * pairs), orgs=max(20, pairs // 4), models=20)
    made = workload.make(shape, end_us=end_us)
    found: dict[bytes, bytes] = {}
    for body in made.bodies:
        if body.endswith(b"}"):
            found.setdefault(body[_PAIR], body)
    assert len(found) >= pairs, f"{len(found)} pairs are too few"
    return made.minute_us, list(found.values())[:pairs]


def with_new_ids(bodies: Sequence[bytes], number: int) -> list[bytes]:
    prefix = b"%08x" % number
    return [body[:12] + prefix + body[20:] for body in bodies]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """``table_bytes`` are those of the rollup tables, with their indexes, after it."""

    rows: int
    seconds: float
    cpu_s: float
    wal_bytes: int
    table_bytes: int


async def flushes(url: str, pairs: int, count: int, rules: Rules) -> list[Flush]:
    """``count`` flushes of the same rows into the migrated, empty database at ``url``."""
    minute_us, bodies = one_of_each(pairs, end_us=time.time_ns() // 1000 - workload.MINUTE_US)
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, rules)
    found: list[Flush] = []
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(count):
            ledger.ingest(
                first_offset=number * len(bodies),
                next_offset=(number + 1) * len(bodies),
                timestamp_us=minute_us + workload.MINUTE_US,
                bodies=with_new_ids(bodies, number),
            )
            ledger.fold()
            before = _lsn(connection)
            started, cpu = time.perf_counter(), time.process_time()
            assert not ledger.missing()
            batch = ledger.drain(now_us=0, caught_up=False)
            await sink.flush(claim, batch)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
            size = connection.execute(_SIZE, (_TABLES,)).fetchone()
            assert size is not None
            found.append(
                Flush(
                    rows=batch.row_count,
                    seconds=seconds,
                    cpu_s=cpu_s,
                    wal_bytes=_lsn(connection) - before,
                    table_bytes=size[0],
                )
            )
    assert ledger.position.accepted == count * len(bodies), "the same ids came twice"
    await sink.close()
    return found


def _lsn(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def steady_line(found: Sequence[Flush]) -> str:
    """Medians of the time, the mean of the WAL: a page written whole after a checkpoint counts too."""
    steady = found[WARM:]
    rows = sum(flush.rows for flush in steady)
    seconds, cpu_s = ([getattr(flush, name) for flush in steady] for name in ("seconds", "cpu_s"))
    return (
        f"| {steady[-1].rows:,} | {statistics.median(seconds):.3f} | {max(seconds):.3f}"
        f" | {statistics.median(cpu_s):.3f} | {sum(flush.wal_bytes for flush in steady) / rows:,.0f} |"
    )


def growth_line(found: Sequence[Flush]) -> str:
    """MB of the tables after the first flush and after each quarter."""
    quarters = [found[0], *(found[len(found) * quarter // 4 - 1] for quarter in (1, 2, 3, 4))]
    sizes = " | ".join(f"{flush.table_bytes / 1e6:.1f}" for flush in quarters)
    return f"| {found[-1].rows:,} | {len(found):,} | {sizes} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rows", type=int, nargs="+", default=[1_700, 10_000, 50_000])
    options.add_argument(
        "--flushes", type=int, default=30, help="of each number of rows, the first 5 uncounted"
    )
    options.add_argument(
        "--grow", type=int, default=1_000, help="flushes of the first number of rows for growth"
    )
    options.add_argument("--dimensions", default="", help="as DIMENSIONS, such as region=metadata.region")
    given = options.parse_args()
    rules = Rules(dimensions=dimensions.parse(given.dimensions))
    if given.flushes <= WARM:
        options.error(f"--flushes must be more than {WARM}")
    warm_up()
    with (
        tempfile.TemporaryDirectory(prefix="spendstream-bench-flush-") as folder,
        Stack(Path(folder), temporary=True) as stack,
    ):
        stack.start(("postgres",))

        def run(name: str, rows: int, count: int) -> list[Flush]:
            url = stack.postgres.create_database(name)
            migrate.upgrade(url)
            return asyncio.run(flushes(url, rows // ROWS_A_PAIR, count, rules))

        print("| dirty rows | median s | worst s | of it the worker's CPU | WAL bytes a row |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        for rows in given.rows:
            print(steady_line(run(f"flush_{rows}", rows, given.flushes)), flush=True)
        print("\n| dirty rows | flushes | tables, MB, after the first | a quarter | half | three | all |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        print(growth_line(run("grow", given.rows[0], given.grow)))


if __name__ == "__main__":
    main()
