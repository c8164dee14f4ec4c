"""How the cost grows with orgs, models, clients and late events: python -m tests.bench.bench_growth.

The core alone, in a process of its own for each line: no server. Every answer is compared with a recount.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pipeline.bench import race, workload
from pipeline.bench.answers import Outcome
from pipeline.bench.contenders import Task
from pipeline.bench.workload import Shape

LINES = (
    Shape(orgs=50, models=8),
    Shape(orgs=500, models=20),
    Shape(orgs=500, models=20, clients=12),
    Shape(orgs=1_000, models=40),
    Shape(orgs=1_000, models=40, clients=10),
    Shape(orgs=5_000, models=40, clients=10),
    Shape(orgs=500, models=20, late=0.05),
    Shape(orgs=500, models=20, late=0.30),
)


def measure(shape: Shape, folder: Path, *, repeat: int) -> list[Outcome]:
    """Runs of the core that fold everything and drain once. Raises SystemExit on a wrong answer."""
    made = workload.make(shape, end_us=time.time_ns() // 1000)
    made.save(folder / "events")
    task = Task(
        file=folder / "events",
        events=shape.events,
        minute_us=made.minute_us,
        flush_events=shape.events + 1,
        folder=folder,
    )
    found = [race.in_a_process_of_its_own(race.BY_NAME["core"], task) for _ in range(repeat)]
    for outcome in found:
        assert outcome.answer is not None
        if faults := outcome.answer.faults(made.truth):
            sys.exit(f"{shape}: {'; '.join(faults)}")
    return found


def line(shape: Shape, found: list[Outcome]) -> str:
    rate = statistics.median(outcome.events / outcome.cpu_s for outcome in found)
    figures = found[0].figures
    return (
        f"| {shape.orgs:,} | {shape.models} | {shape.clients} | {shape.late:.0%} | {round(rate, -3):,.0f}"
        f" | {figures['rows']:,.0f} | {figures['ledger_mib']:.0f} |"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--events", type=int, default=300_000)
    options.add_argument("--repeat", type=int, default=3)
    given = options.parse_args()
    print(
        f"| orgs | models | clients | late | core, events per CPU s | dirty rows of {given.events:,} events"
        " | ledger, MiB |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="spendstream-bench-growth-") as folder:
        for preset in LINES:
            shape = replace(preset, events=given.events)
            print(line(shape, measure(shape, Path(folder), repeat=given.repeat)), flush=True)


if __name__ == "__main__":
    main()
