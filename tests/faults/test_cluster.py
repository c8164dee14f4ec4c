"""A short storm on a cluster for every run of the tests, and the parts of the long one."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.local import network
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_storm import deck
from tests.faults.cluster_world import missing

pytestmark = pytest.mark.timeout(1200)
ROOT = Path(__file__).parents[2]
SHORT = ("leader_killed", "primary_killed_asynchronous", "leader_moved")


@pytest.mark.skipif(network.impossible() is not None, reason=f"{network.impossible()}")
def test_a_cluster_that_loses_a_node_and_its_primary_stays_exact_and_loses_nothing_confirmed() -> None:
    options = (
        *("--cluster", "--kinds", ",".join(SHORT), "--seed", "1"),
        *("--rate", "600", "--workers", "2", "--archive-interval", "10s"),
    )
    done = subprocess.run(
        (sys.executable, "-m", "tests.faults", *options),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    facts, injected, takeover = done.stdout.splitlines()[-3:]
    assert re.search(r"accepted [1-9]\d* \(late [1-9]\d*\), duplicate [1-9]\d*, rejected [1-9]\d*", facts)
    assert injected.startswith("faults injected: 3 (")
    assert injected.endswith("mismatches: 0")
    assert re.fullmatch(r"takeover p50 \d+\.\d s, worst \d+\.\d s", takeover)


def test_a_confirmed_record_is_missed_as_often_as_no_stream_holds_it() -> None:
    def digests(*numbers: int) -> np.ndarray:
        return np.array(numbers, np.uint64)

    assert missing(digests(1, 2, 2, 3), digests(3, 2, 1, 2, 9)) == 0
    assert missing(digests(1, 2, 2, 3), digests(2, 9)) == 3
    assert missing(digests(2**64 - 1), digests()) == 1
    assert missing(digests(), digests(5)) == 0


def test_every_round_has_every_fault_of_a_cluster() -> None:
    kinds = len(CLUSTER_FAULTS)
    cards = deck(2 * kinds, random.Random(1))
    assert set(cards[:kinds]) == set(cards[kinds:]) == set(CLUSTER_FAULTS)
    assert cards != deck(2 * kinds, random.Random(2))
