"""Is the core faster or slower than at another commit? python -m tests.bench.bench_core REVISION --facts 1

Both commits read the same events in processes that stay. In each round each process reads them once, in a
random order, and says how much CPU time an event took. The result is the median of the rounds' ratios. A
comparison takes about half a minute, and needs no server. It judges nothing.

With `--strict` the other commit reads the same events without labels, tier, token kinds and purpose, as if
nobody sent these fields yet. So the ratio says what the fields cost, and not only what their code costs.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CHUNK_EVENTS = 4096
FLUSH_EVENTS = 100_000
END_US = 1_767_225_600_000_000


def read_once(bodies: Sequence[bytes]) -> float:
    """CPU time for an event, in nanoseconds, from bytes to the batches of all flushes."""
    from pipeline.core.ledger import Ledger
    from pipeline.core.rules import Rules

    ledger = Ledger(Rules())
    started = time.process_time()
    for first in range(0, len(bodies), CHUNK_EVENTS):
        chunk = bodies[first : first + CHUNK_EVENTS]
        ledger.ingest(first_offset=first, next_offset=first + len(chunk), timestamp_us=END_US, bodies=chunk)
        if ledger.unflushed_events >= FLUSH_EVENTS:
            assert not ledger.missing()
            ledger.drain(now_us=0, caught_up=False)
    assert not ledger.missing()
    batch = ledger.drain(now_us=0, caught_up=False)
    spent = time.process_time() - started
    assert batch.position.offered == len(bodies)
    assert batch.position.accepted > 0.95 * len(bodies), "the workload has 2.5 % that do not count"
    return spent / len(bodies) * 1e9


def reader(file: Path) -> None:
    """Read the file's events once for each line of the standard input, and print the time for an event."""
    from pipeline.core.warm_up import warm_up

    warm_up()
    bodies = file.read_bytes()[:-1].split(b"\n")
    read_once(bodies)  # memory has been asked for
    for _ in sys.stdin:
        print(read_once(bodies), flush=True)


class Reader:
    """A process that reads events with the code of one commit."""

    def __init__(self, tree: Path, file: Path) -> None:
        environment = {"PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree.with_suffix(".numba"))}
        self._process = subprocess.Popen(
            (sys.executable, "-P", __file__, "--read", str(file)),
            cwd=tree.parent,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_core", description=__doc__)
    parser.add_argument("revision", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (9)")
    parser.add_argument("--events", type=int, default=300_000, help="events in the file (300000)")
    parser.add_argument(
        "--facts", type=float, default=0.0, help="share of the events that have all fields (0)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="REVISION reads the same events without these fields"
    )
    options = parser.parse_args()
    if options.strict and not options.facts:
        parser.error("--strict compares events that have the fields: give --facts too")
    from pipeline.bench import workload
    from tests.bench.bench_before import check_out

    with tempfile.TemporaryDirectory(prefix="spendstream-core-") as name:
        folder = Path(name)
        facts = {"before": 0.0 if options.strict else options.facts, "now": options.facts}
        readers = {}
        for which, revision in (("before", options.revision), ("now", "HEAD")):
            file = folder / f"events-{which}"
            shape = workload.Shape(events=options.events, facts=facts[which])
            workload.make(shape, end_us=END_US).save(file)
            check_out(revision, folder / which)
            readers[which] = Reader(folder / which, file)
        spent: dict[str, list[float]] = {which: [] for which in readers}
        for _ in range(options.rounds):
            for which in random.sample(sorted(readers), len(readers)):
                spent[which].append(readers[which].ask())
        for one in readers.values():
            one.end()
    ratios = [before / now for before, now in zip(spent["before"], spent["now"], strict=True)]
    before, now = (statistics.median(spent[which]) for which in ("before", "now"))
    print(
        f"core: before {before:,.0f} ns an event, now {now:,.0f} ns,"
        f" speed x {statistics.median(ratios):.3f} (median; from {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        reader(Path(sys.argv[2]))
    else:
        main()
