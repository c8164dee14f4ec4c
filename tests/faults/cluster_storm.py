"""``python -m tests.faults --cluster --faults 60 --seed 1``: faults on a cluster under load, and its books.

Three RabbitMQ nodes, a PostgreSQL primary and its standby run in a network of their own, and three workers
count 3,000 events a second. The faults come one after the other, each on a whole cluster. At the end every
bucket, dimension, dead letter and the archive is compared with a naive recount of the streams, and every
record that a publisher had confirmed must be in a stream. The command exits with 1 if anything differs, or if
a worker ended by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import network
from deploy.local.cluster import Cluster, enter
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_world import ClusterWorld
from tests.faults.world import Report

PAUSE_S = (1.0, 4.0)
LEG = 10
"""So many faults have a stream and a database together. Then the books are compared, and the next leg begins
with new ones: the recount keeps every event in memory, and an hour has millions."""


def deck(count: int, luck: random.Random) -> list[str]:
    """Draw ``count`` kinds in rounds: each round has every kind once, in a new order."""
    cards: list[str] = []
    while len(cards) < count:
        a_round = list(CLUSTER_FAULTS)
        luck.shuffle(a_round)
        cards += a_round
    return cards[:count]


async def storm(world: ClusterWorld, kinds: Sequence[str], *, seed: int) -> Report:
    """Inject faults of these kinds under load, heal, drain, and compare the books."""
    luck = random.Random(seed)
    for slot in world.slots:
        world.start(slot)
    await world.ready()
    world.start_load()
    await world.taken_over()
    world.takeovers_s.clear()  # that was the start
    for kind in kinds:
        await world.whole()
        await asyncio.sleep(luck.uniform(*PAUSE_S))
        world.say(kind)
        await CLUSTER_FAULTS[kind](world, random.Random(luck.getrandbits(64)))
    await world.whole()
    await world.heal()
    world.say("healed; draining")
    return await world.settle()


@dataclass(slots=True)
class Totals:
    """The sums over all legs."""

    injected: Counter[str] = field(default_factory=Counter)
    takeovers_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)

    def add(self, world: ClusterWorld, kinds: Sequence[str], report: Report) -> None:
        self.injected.update(kinds)
        self.takeovers_s += world.takeovers_s
        self.mismatches += report.mismatches
        self.crashes += report.crashes
        self.counts["confirmed"] += world.published
        for name in ("events", "accepted", "late", "duplicate", "rejected", "archived"):
            self.counts[name] += getattr(report, name)

    def closing_lines(self) -> tuple[str, str, str]:
        c = self.counts
        injected = ", ".join(f"{kind} {count}" for kind, count in sorted(self.injected.items()))
        return (
            f"confirmed {c['confirmed']}, accepted {c['accepted']} (late {c['late']}), duplicate"
            f" {c['duplicate']}, rejected {c['rejected']}, archived {c['archived']}, workers that ended by"
            f" themselves: {len(self.crashes)}",
            f"faults injected: {self.injected.total()} ({injected}), events: {c['events']}, mismatches:"
            f" {len(self.mismatches)}",
            f"takeover p50 {statistics.median(self.takeovers_s):.1f} s, worst {max(self.takeovers_s):.1f} s",
        )


async def run(folder: Path, options: argparse.Namespace) -> int:
    luck = random.Random(options.seed)
    kinds = options.kinds.split(",") if options.kinds else deck(options.faults, luck)
    began = time.monotonic()
    totals = Totals()
    with Cluster(folder / "cluster") as cluster:
        await asyncio.to_thread(cluster.start, ("redis", "s3"))
        for first in range(0, len(kinds), LEG):
            seed = luck.getrandbits(32)
            async with ClusterWorld(
                cluster,
                folder / f"world-{first}",
                seed=seed,
                workers=options.workers,
                partitions=options.partitions,
                rate=options.rate,
                archive_interval=options.archive_interval,
                say=lambda line: print(line, flush=True),
            ) as world:
                world.say(f"up; leg {first // LEG + 1} of {-(-len(kinds) // LEG)}")
                leg = kinds[first : first + LEG]
                totals.add(world, leg, await storm(world, leg, seed=seed))
            print(f"  mismatches so far: {len(totals.mismatches)}", flush=True)
    for line in (*totals.mismatches[:50], *totals.crashes):
        print(line)
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    for line in totals.closing_lines():
        print(line)
    return 1 if totals.mismatches or totals.crashes else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults --cluster", description=__doc__)
    parser.add_argument("--cluster", action="store_true", required=True)
    parser.add_argument("--faults", type=int, default=60, help="how many to inject (60)")
    parser.add_argument("--kinds", default="", help=f"just these, in this order: {', '.join(CLUSTER_FAULTS)}")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="else by the clock")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (3)")
    parser.add_argument("--partitions", type=int, default=3, help="of the super stream (3)")
    parser.add_argument("--rate", type=float, default=3000.0, help="events a second (3000)")
    parser.add_argument("--archive-interval", default="15s", help="ARCHIVE_INTERVAL of the workers (15s)")
    options = parser.parse_args()
    if unknown := set(filter(None, options.kinds.split(","))) - set(CLUSTER_FAULTS):
        parser.error(f"no kind {', '.join(sorted(unknown))}: there are {', '.join(CLUSTER_FAULTS)}")
    if not network.entered():
        enter((sys.executable, "-m", "tests.faults", *sys.argv[1:]))
    with tempfile.TemporaryDirectory(prefix="spendstream-cluster-", ignore_cleanup_errors=True) as folder:
        return asyncio.run(run(Path(folder), options))
