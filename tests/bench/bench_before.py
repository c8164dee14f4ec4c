"""Is the code slower than at another commit? Both race in turn: python -m tests.bench.bench_before REVISION.

On servers of its own, each commit from a folder of its own with the libraries of this environment. In each
round both run every contender once, in the other order than in the round before; the result is the median
of the rounds' ratios, so that a machine that other people use as well slows both. It judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.local import Stack

ROOT = Path(__file__).resolve().parents[2]
CONTENDERS = ("core", "committed")


def check_out(revision: str, folder: Path) -> None:
    """Lay the files of a commit into a new folder. Raises CalledProcessError if there is none."""
    folder.mkdir()
    packed = folder.with_suffix(".tar")
    subprocess.run(("git", "archive", "-o", str(packed), revision), cwd=ROOT, check=True)
    subprocess.run(("tar", "-xf", str(packed), "-C", str(folder)), check=True)


def rates(tree: Path, arguments: Sequence[str], env: Mapping[str, str], folder: Path) -> dict[str, float]:
    """Events a second of each contender, from one run of the tree's own ``spendstream bench``."""
    report = folder / "report.json"
    command = (sys.executable, "-P", "-m", "pipeline.cli", "bench", "--repeat", "1", "--json", str(report))
    only = [part for name in CONTENDERS for part in ("--only", name)]
    subprocess.run(
        (*command, *only, *arguments),
        cwd=folder,
        env={**os.environ, **env, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(folder / tree.name)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    found = json.loads(report.read_text())["contenders"]
    return {one["name"]: float(one["events_per_s"]) for one in found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_before", description=__doc__)
    parser.add_argument("revision", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (5); one more warms up")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="spendstream-before-") as name:
        folder = Path(name)
        trees = {"before": folder / "before", "now": folder / "now"}
        check_out(options.revision, trees["before"])
        check_out("HEAD", trees["now"])
        with Stack(folder / "stack", temporary=True) as stack:
            stack.start(("rabbitmq", "postgres"))
            measured: dict[str, list[dict[str, float]]] = defaultdict(list)
            for number in range(options.rounds + 1):
                for which in ("before", "now") if number % 2 else ("now", "before"):
                    found = rates(trees[which], arguments, stack.env, folder)
                    print(f"round {number}, {which}: {found}", flush=True)
                    if number:
                        measured[which].append(found)
    for contender in CONTENDERS:
        before, now = ([one[contender] for one in measured[which]] for which in ("before", "now"))
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        print(
            f"{contender}: before {statistics.median(before):,.0f}/s, now {statistics.median(now):,.0f}/s,"
            f" median ratio {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
