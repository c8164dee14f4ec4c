"""Thousands of seeded schedules of a whole deployment, and a proof that they find planted bugs.

See `tests.support.simulation`. A failure names its seed; ``simulation.run(seed)`` plays it again.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from pipeline.core.batch import Batch
from pipeline.core.windows import Table
from pipeline.sink import Claim
from pipeline.worker import life
from pipeline.worker.life import Event, State
from pipeline.worker.owned import Owned
from pipeline.worker.partition import PartitionWorker
from tests.support import event_details, simulation
from tests.support.memory_sink import MemorySink

SCHEDULES_ALWAYS = 2000
"""Every run of the tests plays this many schedules, which take 140 s of one core. A planted bug must be found
in them. CONTRIBUTING.md says when to play more."""
SCHEDULES = int(os.environ.get("SPENDSTREAM_SCHEDULES", str(SCHEDULES_ALWAYS)))
SLICE = 250


def play(first: int, count: int = SLICE) -> simulation.Outcome:
    """Play ``count`` schedules, from seed ``first`` on; returns their outcomes added up."""
    outcomes = [simulation.run(seed) for seed in range(first, first + count)]
    return simulation.Outcome(
        sum(o.events for o in outcomes), sum(o.faults for o in outcomes), sum(o.replayed for o in outcomes)
    )


@pytest.mark.timeout(3000)
def test_no_schedule_loses_or_doubles_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        outcomes = list(pool.map(play, range(0, SCHEDULES, SLICE)))
    events, faults = sum(o.events for o in outcomes), sum(o.faults for o in outcomes)
    replayed = sum(o.replayed for o in outcomes)
    with capsys.disabled():
        print(f"\n{SCHEDULES} schedules, {events} events, {faults} faults, {replayed} replays, 0 mismatches")
    assert events > 15 * SCHEDULES
    assert faults > 2 * SCHEDULES
    assert replayed > SCHEDULES // 2


def _offset_is_committed_early(patch: pytest.MonkeyPatch) -> None:
    born = MemorySink.__init__

    def broken(self: MemorySink, *args: Any, **kwargs: Any) -> None:
        born(self, *args, **kwargs)
        self.offset_apart = True

    patch.setattr(MemorySink, "__init__", broken)


def _ids_are_kept_from_a_lost_ledger(patch: pytest.MonkeyPatch) -> None:
    """An event that was never committed and is read again looks like a duplicate."""
    release, recover = PartitionWorker._release, PartitionWorker._recover
    kept: dict[int, Any] = {}

    async def keep(self: PartitionWorker, why: Event) -> None:
        if self._owned is not None:
            kept[id(self)] = (self._owned.ledger._judge.ids, self._owned.ledger._reader)
        await release(self, why)

    async def reuse(self: PartitionWorker) -> Owned:
        owned = await recover(self)
        if id(self) in kept:
            owned.ledger._judge.ids, reader = kept[id(self)]
            for part in (owned.ledger, owned.ledger._judge, owned.ledger._rollups):
                part._reader = reader
        return owned

    patch.setattr(PartitionWorker, "_release", keep)
    patch.setattr(PartitionWorker, "_recover", reuse)


def _zombies_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    write = MemorySink.write

    def broken(self: MemorySink, claim: Claim, batch: Batch) -> None:
        held = Claim(claim.stream, claim.partition, self.state.epoch)
        self.state.position.next_offset = batch.from_offset
        self.state.position.replays = batch.from_replays
        write(self, held, batch)

    patch.setattr(MemorySink, "write", broken)


def _commits_lost_in_a_failover_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """The flush compares only the epoch and not the offset."""
    write = MemorySink.write

    def broken(self: MemorySink, claim: Claim, batch: Batch) -> None:
        if claim.epoch == self.state.epoch and self.state.position.next_offset < batch.from_offset:
            self.state.position.next_offset = batch.from_offset
        write(self, claim, batch)

    patch.setattr(MemorySink, "write", broken)


def _replays_are_not_marked_in_the_flush(patch: pytest.MonkeyPatch) -> None:
    """A second transaction marks the backfilled letters, and sometimes this transaction never happens."""
    write = MemorySink.write

    def broken(self: MemorySink, claim: Claim, batch: Batch) -> None:
        waiting = dict(self.state.waiting)
        write(self, claim, batch)
        if batch.settled and batch.position.replays % 2:
            self.state.waiting = waiting

    patch.setattr(MemorySink, "write", broken)


def _late_rows_are_overwritten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Table, "cold", lambda self, org, bucket: np.zeros(len(org), np.bool_))


def _a_lost_partition_is_kept(patch: pytest.MonkeyPatch) -> None:
    release = PartitionWorker._release

    async def keep(self: PartitionWorker, why: Event) -> None:
        owned = self._owned
        await release(self, why)
        self._owned = owned

    patch.setattr(PartitionWorker, "_release", keep)


def _a_step_of_a_partition_was_not_thought_of(patch: pytest.MonkeyPatch) -> None:
    """The connection is lost in the middle of a hand-over, and the broker gives the partition back."""
    # A copy: a key that is taken out of the table and put back comes last, and the picture is drawn in order.
    known = {
        step: after for step, after in life.STEPS.items() if step != (State.HANDING_OVER, Event.ACTIVATED)
    }
    patch.setattr(life, "STEPS", known)


@pytest.mark.parametrize(
    "plant",
    [
        _offset_is_committed_early,
        _ids_are_kept_from_a_lost_ledger,
        _zombies_are_not_fenced,
        _late_rows_are_overwritten,
        _commits_lost_in_a_failover_are_not_noticed,
        _replays_are_not_marked_in_the_flush,
        _a_lost_partition_is_kept,
        _a_step_of_a_partition_was_not_thought_of,
        *event_details.READERS_THAT_LOSE_A_FIELD,
    ],
)
def test_the_simulation_finds_a_planted_bug(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"seed \d+: "):
        play(0, SCHEDULES_ALWAYS)
