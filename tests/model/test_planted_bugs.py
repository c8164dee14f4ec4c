"""The proof that the machines of `test_pipeline_model` notice a bug: each planted bug must be found.

Some need several things in a row, such as two events of one row hours apart, which the general machine draws
once in thousands of examples. A guided search draws such turns alone. It takes the rules of the general
machine and nothing else, so what it finds, the general machine can find, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from pipeline.core.bodies import IntArray
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Names, Reader
from pipeline.core.ledger import Ledger
from pipeline.core.remembered import RememberedIds
from pipeline.core.replay import CountedIds
from pipeline.core.watermark import NEVER
from pipeline.core.windows import NameCap, Table
from tests.support import event_details, memory_sink
from tests.support.memory_sink import MemorySink
from tests.support.pipeline_machines import (
    HOUR_US,
    IDS,
    MODELS,
    ORGS,
    Accident,
    ChangingSettingsMachine,
    OffsetApartMachine,
    PipelineMachine,
    ReplayMachine,
    cut_and_restart,
    guided,
    nothing,
    restart,
)

pytestmark = pytest.mark.usefixtures("names_are_looked_through_after_each_batch")

Machine = type[RuleBasedStateMachine]
Plant = Callable[[pytest.MonkeyPatch], None]


def _the_offset_is_committed_alone(patch: pytest.MonkeyPatch) -> None:
    """Nothing to patch: the machine's sink commits the offset even if it does not commit the rows."""


def _rows_are_never_cold(patch: pytest.MonkeyPatch) -> None:
    """A late event starts its row anew instead of adding to the stored one."""
    patch.setattr(Table, "cold", lambda self, org, bucket: np.zeros(len(org), np.bool_))


def _ids_are_not_recovered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "recover_ids", lambda self, hour, segment: None)


def _ids_are_never_forgotten(patch: pytest.MonkeyPatch) -> None:
    add = SeenIds.add

    def from_the_first_hour(
        self: SeenIds, ids: IntArray, orgs: IntArray, hours: IntArray, checks: IntArray, *_: Any, **__: Any
    ) -> IntArray:
        return add(self, ids, orgs, hours, checks, live_from=np.zeros(len(ids), np.int32))

    patch.setattr(SeenIds, "add", from_the_first_hour)


def _names_are_not_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NameCap, "restore", lambda self, org, hour, name: None)


def _models_are_not_restored(patch: pytest.MonkeyPatch) -> None:
    restore = NameCap.restore

    def names_alone(self: NameCap, org: Any, hour: Any, name: Any) -> None:
        if self.overflow != Reader.OVERFLOW_MODEL:
            restore(self, org, hour, name)

    patch.setattr(NameCap, "restore", names_alone)


def _values_are_not_restored(patch: pytest.MonkeyPatch) -> None:
    restore = NameCap.restore

    def others_alone(self: NameCap, org: Any, hour: Any, name: Any) -> None:
        if self.overflow != Names.OVERFLOW_VALUE:
            restore(self, org, hour, name)

    patch.setattr(NameCap, "restore", others_alone)


def _dimensions_count_at_once(patch: pytest.MonkeyPatch) -> None:
    """A dimension that was set in the middle of an hour claims this hour as complete."""
    patch.setattr(memory_sink, "FUTURE_US", -2 * HOUR_US)


def _split_hours_count_at_once(patch: pytest.MonkeyPatch) -> None:
    """The first rows of quarters are taken for complete, although earlier events are not in them."""
    claim = MemorySink.claim

    async def hasty(self: MemorySink, *what: Any) -> Any:
        found = await claim(self, *what)
        self.state.split_hours = dict.fromkeys(self.state.split_hours, 0)
        return found

    patch.setattr(MemorySink, "claim", hasty)


def _late_quarters_wait_for_no_block(patch: pytest.MonkeyPatch) -> None:
    """A late event starts the row of its quarter anew instead of adding to the stored one."""
    cold = Table.cold

    def never(self: Table, org: IntArray, bucket: IntArray) -> IntArray:
        return np.zeros(len(org), np.bool_) if self.grain.split_only else cold(self, org, bucket)

    patch.setattr(Table, "cold", never)


def _lateness_is_lost_in_a_restart(patch: pytest.MonkeyPatch) -> None:
    claim = MemorySink.claim

    async def forgetful(self: MemorySink, *what: Any) -> Any:
        held, position = await claim(self, *what)
        return held, replace(position, newest_us=NEVER)

    patch.setattr(MemorySink, "claim", forgetful)


def _replays_forget_what_was_counted(patch: pytest.MonkeyPatch) -> None:
    """A backfill asks neither the stored hours nor the earlier backfills."""

    async def nothing(self: MemorySink, claim: Any, opened: Any) -> CountedIds:
        return CountedIds.join([])

    patch.setattr(MemorySink, "counted", nothing)


def _orgs_are_forgotten_while_they_have_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Table, "orgs", lambda self: np.empty(0, np.int64))
    patch.setattr(RememberedIds, "note_orgs", lambda self, org, hour: None)


# --- what leads to them -------------------------------------------------------------------------------


def _other_settings(which: int) -> Accident:
    return lambda machine: machine.restart_with_other_settings(which=which)


def _backfill(evidence: str) -> Accident:
    def ask(machine: ReplayMachine) -> None:
        if machine.sink.state.dead_letters:
            machine.replay(which=[len(machine.stream)], evidence=evidence, before=0, after=0)

    return ask


LATE_EVENTS = guided(PipelineMachine, ago_us=[0, HOUR_US, 2 * HOUR_US], pauses_us=[0, HOUR_US, 2 * HOUR_US])
CRASHES = {
    machine: guided(machine, accidents=[nothing, cut_and_restart])
    for machine in (PipelineMachine, OffsetApartMachine)
}
COPIES = guided(PipelineMachine, event=IDS[:2], accidents=[nothing, restart], pauses_us=[0, 0, 4 * HOUR_US])
LATE_AFTER_A_RESTART = guided(PipelineMachine, accidents=[nothing, restart], ago_us=[0, 2 * HOUR_US])
ORGS_COME_AND_GO = guided(
    PipelineMachine, org=ORGS, ago_us=[0, 2 * HOUR_US], pauses_us=[0, 2 * HOUR_US, 4 * HOUR_US]
)
NAMES = guided(
    PipelineMachine,
    accidents=[nothing, restart],
    model=MODELS,
    client=["a", "b", "c"],
    metadata=[{"team": team} for team in "abc"],
)
OTHER_SETTINGS = guided(
    ChangingSettingsMachine,
    accidents=[nothing, *map(_other_settings, range(5))],
    metadata=[{"team": "a"}],
    pauses_us=[0, HOUR_US],
)
BACKFILLS = guided(
    ReplayMachine,
    accidents=[nothing, _backfill("none"), _backfill("accept")],
    event=IDS[:2],
    ago_us=[0, 6 * HOUR_US],
)
DETAILS = guided(
    PipelineMachine,
    details=[
        {
            "inputTokens": 200_001,
            "outputTokens": 7,
            "serviceTier": "batch",
            **kind,
            **event_details.LABELS[0],
            **estimate,
        }
        for kind in event_details.KINDS
        for estimate in ({}, {"costEstimateCents": None})
    ],
)


@pytest.mark.parametrize(
    ("machine", "plant"),
    [
        (CRASHES[OffsetApartMachine], _the_offset_is_committed_alone),
        (LATE_EVENTS, _rows_are_never_cold),
        (LATE_EVENTS, _late_quarters_wait_for_no_block),
        (LATE_AFTER_A_RESTART, _lateness_is_lost_in_a_restart),
        (COPIES, _ids_are_not_recovered),
        (COPIES, _ids_are_never_forgotten),
        (ORGS_COME_AND_GO, _orgs_are_forgotten_while_they_have_rows),
        (NAMES, _names_are_not_restored),
        (NAMES, _models_are_not_restored),
        (NAMES, _values_are_not_restored),
        (OTHER_SETTINGS, _dimensions_count_at_once),
        (OTHER_SETTINGS, _split_hours_count_at_once),
        (BACKFILLS, _replays_forget_what_was_counted),
        *((DETAILS, plant) for plant in event_details.READERS_THAT_LOSE_A_FIELD),
    ],
)
def test_a_guided_search_finds_a_planted_bug(
    machine: Machine, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _search(machine, examples=500, steps=12)


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(CRASHES[PipelineMachine], id="crashes"),
        pytest.param(LATE_EVENTS, id="late_events"),
        pytest.param(LATE_AFTER_A_RESTART, id="late_after_a_restart"),
        pytest.param(COPIES, id="copies"),
        pytest.param(ORGS_COME_AND_GO, id="orgs_come_and_go"),
        pytest.param(NAMES, id="names"),
        pytest.param(OTHER_SETTINGS, id="other_settings"),
        pytest.param(BACKFILLS, id="backfills"),
        pytest.param(DETAILS, id="details"),
    ],
)
def test_a_guided_search_finds_nothing_where_no_bug_is_planted(machine: Machine) -> None:
    _search(machine, examples=30, steps=12)


@pytest.mark.parametrize("plant", event_details.READERS_THAT_LOSE_A_FIELD[-4:])
def test_the_general_machine_finds_a_bug_of_one_event_by_itself(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _search(PipelineMachine, examples=1000, steps=40)


def _search(machine: Machine, *, examples: int, steps: int) -> None:
    """Try examples until one fails."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            print_blob=False,
        ),
    )
