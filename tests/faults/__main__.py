"""``python -m tests.faults --faults 200 --seed 1``: a storm of real faults, and the books at its end.

Exits with 1 if any bucket differs from the oracle, or a worker ended by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from deploy.local import Stack
from tests.faults.schedule import Storm, storm
from tests.faults.world import World


async def run(folder: Path, options: argparse.Namespace) -> Storm:
    with Stack(folder / "stack", temporary=True) as stack:
        async with World(
            stack,
            folder,
            seed=options.seed,
            workers=options.workers,
            partitions=options.partitions,
            rate=options.rate,
            say=lambda line: print(line, flush=True),
        ) as world:
            return await storm(
                world, faults=options.faults, seed=options.seed, workers=max(2, options.workers - 1)
            )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=220, help="how many to inject (220)")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the schedule and the events; else by the clock"
    )
    parser.add_argument("--workers", type=int, default=4, help="worker processes at most (4)")
    parser.add_argument("--partitions", type=int, default=4, help="of the super stream (4)")
    parser.add_argument("--rate", type=float, default=300.0, help="events a second (300)")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = time.time_ns() % 1_000_000
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="spendstream-faults-") as folder:
        done = asyncio.run(run(Path(folder), options))
    assert done.report is not None
    for name, count in sorted(done.injected.items()):
        print(f"  {count:4d} {name}")
    for line in (*done.report.mismatches[:50], *done.report.crashes):
        print(line)
    print(
        f"seed {options.seed}, {time.monotonic() - began:.0f} s, accepted {done.report.accepted}, duplicate"
        f" {done.report.duplicate}, rejected {done.report.rejected}, workers that ended by themselves:"
        f" {len(done.report.crashes)}"
    )
    print(done.closing_line())
    return 1 if done.report.mismatches or done.report.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
