"""One sender's poisons of every kind, among the traffic of ten other orgs, while workers are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import Stack
from tests.faults.poison import poisoned
from tests.faults.world import World

pytestmark = pytest.mark.timeout(1800)


async def test_no_poison_stops_a_partition_or_bends_a_figure(servers: Stack, tmp_path: Path) -> None:
    """The wait of the other orgs is printed here. `python -m tests.faults` fails if the wait is too long."""
    async with World(
        servers, tmp_path, seed=3, workers=3, partitions=2, archive=True, clocks=False, say=print
    ) as world:
        done = await poisoned(world, seed=3)
    print(done.line())
    assert done.report.mismatches == []
    assert done.report.crashes == []
    reasons = done.report.reasons
    assert reasons["invalid"] >= 500, "the events for which a sum had no room"
    assert reasons["malformed"] >= 64 + 8, "the batches that cannot be undone"
