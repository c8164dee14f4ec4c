"""``python -m tests.faults --faults 200 --seed 1``: a storm of real faults, and the books at its end.

After the storm comes the poison: one sender sends every kind of harmful record, among the traffic of ten
other orgs. The command exits with 1 if any bucket differs from the oracle, if a worker ended by itself, or if
the other orgs' events became visible more than 5 s later with poison than without. As root and without
Docker, each PostgreSQL gets a small file system, so that the disk can really become full.

With ``--restore 10`` no fault is injected. Backups of ten random moments are restored instead.
With ``--cluster`` the faults are those of a cluster instead: see `cluster_storm`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.local import Stack
from tests.faults import cluster_storm, failover, restore
from tests.faults.faults import FAULTS
from tests.faults.poison import Poisoned, poisoned
from tests.faults.schedule import Storm, storm
from tests.faults.world import Report, World

DISK_MIB = 1024
_OWN_MOUNTS = "SPENDSTREAM_FAULTS_OWN_MOUNTS"


def mounts_of_our_own() -> bool:
    """Go on in a mount namespace that ends with us, if we can make one. Are we in it now?"""
    if os.environ.get(_OWN_MOUNTS):
        return True
    probe = ("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    try:
        possible = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        possible = False
    if possible:
        os.environ[_OWN_MOUNTS] = "1"
        again = (sys.executable, "-m", "tests.faults", *sys.argv[1:])
        os.execvp("unshare", ("unshare", "--mount", *again))
    return False


def mount_small_disk(stack: Stack) -> None:
    stack.postgres.data.mkdir(parents=True)
    mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(stack.postgres.data))
    subprocess.run(mount, check=True)


def unmount_small_disk(stack: Stack) -> None:
    stack.postgres.kill()
    subprocess.run(("umount", "--lazy", str(stack.postgres.data)), check=True)


def say(line: str) -> None:
    print(line, flush=True)


async def run(
    folder: Path, options: argparse.Namespace, *, own_mounts: bool
) -> tuple[Storm, Poisoned | None]:
    kinds = options.kinds.split(",") if options.kinds else None
    with (
        Stack(folder / "stack", temporary=True) as stack,
        Stack(folder / "second", temporary=True) as second,
    ):
        disks_small = own_mounts and failover.possible(stack, second)
        if disks_small:
            mount_small_disk(stack)
            mount_small_disk(second)
        try:
            async with World(
                stack,
                folder,
                seed=options.seed,
                workers=options.workers,
                partitions=options.partitions,
                rate=options.rate,
                second=second,
                archive=True,
                disks_small=disks_small,
                say=say,
            ) as world:
                left_out = sorted(f.name for f in FAULTS.values() if f.needs and f.needs not in world.able)
                if left_out:
                    print(f"not possible here, left out: {', '.join(left_out)}")
                done = await storm(
                    world,
                    faults=options.faults,
                    seed=options.seed,
                    kinds=kinds,
                    workers=max(2, options.workers - 1),
                )
            if kinds is not None:
                return done, None
            async with World(
                stack, folder / "poison", seed=options.seed, workers=3, partitions=2, archive=True, say=say
            ) as world:
                return done, await poisoned(world, seed=options.seed)
        finally:
            if disks_small:
                unmount_small_disk(stack)
                unmount_small_disk(second)


def print_report(report: Report, seed: int, began: float) -> None:
    for line in (*report.mismatches[:50], *report.crashes):
        print(line)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(report.reasons.items()))
    print(
        f"seed {seed}, {time.monotonic() - began:.0f} s, accepted {report.accepted} (late"
        f" {report.late}), duplicate {report.duplicate}, rejected {report.rejected} ({reasons}),"
        f" archived {report.archived}, workers that ended by themselves: {len(report.crashes)}"
    )


def main() -> int:
    if "--cluster" in sys.argv[1:]:
        return cluster_storm.main()
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=220, help="how many to inject (220)")
    parser.add_argument("--restore", type=int, default=0, help="restore this many backups instead")
    parser.add_argument("--kinds", default="", help="just these, in this order, with commas between")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the schedule and the events; else by the clock"
    )
    parser.add_argument("--workers", type=int, default=4, help="worker processes at most (4)")
    parser.add_argument("--partitions", type=int, default=4, help="of the super stream (4)")
    parser.add_argument("--rate", type=float, default=300.0, help="events a second (300)")
    options = parser.parse_args()
    own_mounts = not options.restore and mounts_of_our_own()
    if options.seed is None:
        options.seed = time.time_ns() % 1_000_000
    began = time.monotonic()
    if options.restore:
        with tempfile.TemporaryDirectory(prefix="spendstream-faults-", ignore_cleanup_errors=True) as folder:
            restores = asyncio.run(restore.run(Path(folder), options, say=say))
        assert restores.report is not None
        print_report(restores.report, options.seed, began)
        print(restores.closing_line())
        return 1 if restores.report.mismatches or restores.report.crashes else 0
    with tempfile.TemporaryDirectory(prefix="spendstream-faults-", ignore_cleanup_errors=True) as folder:
        done, poison = asyncio.run(run(Path(folder), options, own_mounts=own_mounts))
    report = done.report
    assert report is not None
    if poison is not None:
        report.mismatches.extend(poison.report.mismatches)
        report.crashes.extend(poison.report.crashes)
    print_report(report, options.seed, began)
    if poison is not None:
        print(poison.line())
    print(done.closing_line())
    return 1 if report.mismatches or report.crashes or (poison is not None and poison.slow) else 0


if __name__ == "__main__":
    sys.exit(main())
