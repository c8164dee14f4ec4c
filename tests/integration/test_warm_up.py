"""Compiling happens in the warm-up and nowhere else: no event waits for a compiler."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import time

from pipeline.core import lexer, scan
from pipeline.core.kernels import hashing, ids, names, rows, sketches
from pipeline.core.ledger import Ledger
from pipeline.core.warm_up import warm_up
from pipeline.core.rules import Rules
from tests.support import mix

def compiled():
    return {
        (module.__name__, name): len(function.signatures)
        for module in (hashing, ids, names, rows, sketches, lexer, scan)
        for name, function in vars(module).items()
        if hasattr(function, "signatures")
    }

warm_up()
before = compiled()
now_us = 1_790_000_000_000_000
rules = Rules(
    clients_per_org_hour_max=3,
    models_per_org_hour_max=3,
    dimensions=mix.DIMENSIONS,
    values_per_org_hour_max=3,
)
ledger = Ledger(rules)
# Enough to grow every table, to meet every kind of bad event, and to hold events back as late.
for part in range(3):
    bodies = mix.make(8000, seed=part, now_us=now_us, late=0.3, bad=0.05).bodies
    first = ledger.received_offset
    ledger.ingest(first_offset=first, next_offset=first + len(bodies), timestamp_us=now_us, bodies=bodies)
    missing = ledger.missing()
    ledger.adopt([], missing)
    batch = ledger.drain(now_us=now_us, caught_up=False)
    recovered = Ledger(rules, batch.position)
    recovered.adopt(batch.tables)
    for hour, segment in sorted(batch.id_segments.items()):
        recovered.recover_ids(hour, segment)
    recovered.drain(now_us=now_us, caught_up=False)
late = {name: count for name, count in compiled().items() if before.get(name) != count}
assert not late, late
"""


def test_nothing_is_compiled_after_the_warm_up() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
