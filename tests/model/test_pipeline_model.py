"""The ledger and its sink, under random orders of events and accidents, against a naive recount.

Hypothesis publishes, duplicates, delays and spoils events. It ingests, flushes, cuts flushes before and after
their commit, crashes, restarts, steals the partition, and asks for backfills of dead letters. After each
commit, every row must equal the oracle's count from the start of the stream to the committed offset.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.core.batch import Batch
from pipeline.core.bodies import IntArray
from pipeline.core.dedupe import SeenIds
from pipeline.core.dimensions import Dimension
from pipeline.core.events import Names, Reader
from pipeline.core.ledger import Ledger
from pipeline.core.remembered import RememberedIds
from pipeline.core.replay import CountedIds, Letter, Opened
from pipeline.core.rollups import Rollups
from pipeline.core.rules import Rules
from pipeline.core.watermark import NEVER
from pipeline.core.windows import NameCap, Table
from pipeline.sink import Fenced, SinkUnavailable
from tests.support import books, event_details, memory_sink, replays
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink

MINUTE_US, HOUR_US = 60_000_000, 3_600_000_000
START_US = 1_790_000_000_000_000 // HOUR_US * HOUR_US
TEAM, USER = Dimension("team", "metadata.team"), Dimension("user", "actorId")
RULES = Rules(
    dedupe_window_us=5 * HOUR_US,
    clients_per_org_hour_max=2,
    models_per_org_hour_max=2,
    dimensions=(TEAM, USER),
    split_hours=tuple(range(0, 24, 2)),
    values_per_org_hour_max=2,
)

ORGS = [str(uuid.UUID(int=i + 1)) for i in range(3)]
MODELS = [str(uuid.UUID(int=i + 100)) for i in range(3)]
IDS = [str(uuid.UUID(int=i + 1000)) for i in range(12)]
PLAIN = st.just({"inputTokens": 1, "outputTokens": 2})
"""Most events are plain: events of many rate classes seldom meet in one row, and there most bugs are."""
DETAILS = st.builds(
    lambda *parts: {name: value for part in parts for name, value in part.items()},
    st.sampled_from([{"inputTokens": tokens} for tokens in event_details.INPUT_TOKENS]),
    st.sampled_from([{"outputTokens": tokens} for tokens in event_details.OUTPUT_TOKENS]),
    st.sampled_from([{}, *event_details.KINDS]),
    st.sampled_from([{}, *({"serviceTier": tier} for tier in event_details.SERVICE_TIERS)]),
    st.sampled_from([{}, *event_details.LABELS]),
    st.sampled_from([{}, {}, {"costEstimateCents": None}]),
)
"""The fields that a producer for version 0.1.0 does not send. ``null`` takes the place of the estimate."""


@pytest.fixture(autouse=True)
def _names_are_looked_through_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through the names even if they are few. Otherwise no name would ever be forgotten here."""
    monkeypatch.setattr(Rollups, "_must_sweep", lambda self, kind, count: True)


class PipelineMachine(RuleBasedStateMachine):
    """One partition, its stream, its sink, and at times a rival worker."""

    terms = RULES

    def __init__(self) -> None:
        super().__init__()
        self.stream: list[tuple[int, bytes]] = []
        """(broker time, body) by offset."""
        self.now_us = START_US
        self.sink = MemorySink()
        self.claim: Any
        self.ledger: Ledger
        self.unknown: Batch | None = None
        """A batch whose flush failed. Nothing else may happen until its outcome is known."""

    # --- the stream --------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        self.restart()

    @rule(
        org=st.sampled_from(ORGS),
        event=st.sampled_from(IDS),
        model=st.sampled_from(MODELS),
        client=st.sampled_from(["a", "b", "c", "other", None]),
        actor=st.sampled_from([*IDS[:3], IDS[10].upper(), None]),
        metadata=st.sampled_from(
            [None, {}, *({"team": team} for team in ("", "a", "b", "c", "\0", "t" * 129))]
        ),
        ago_us=st.one_of(
            st.integers(-1000, 20_000_000),
            st.integers(0, 6 * HOUR_US),
            st.sampled_from([7 * MINUTE_US, 14 * MINUTE_US, 2 * HOUR_US, 2 * HOUR_US + 7 * MINUTE_US]),
            st.sampled_from([MINUTE_US, 10_000_000, HOUR_US, 5 * HOUR_US, -6 * MINUTE_US]),
        ),
        status=st.sampled_from(["success", "success", "error", "timeout"]),
        latency=st.integers(0, 5000),
        cost=st.sampled_from(["0.1", "0.0000005", "3"]),
        details=st.one_of(PLAIN, PLAIN, PLAIN, DETAILS),
    )
    def publish(self, **e: Any) -> None:
        at_us = self.now_us - e["ago_us"]
        at = naive.EPOCH + timedelta(microseconds=at_us)
        event = {
            "eventId": e["event"],
            "orgId": e["org"],
            "modelId": e["model"],
            "clientId": e["client"],
            "actorId": e["actor"],
            "metadata": e["metadata"],
            "occurredAt": at.isoformat(),
            "latencyMs": e["latency"],
            "status": e["status"],
            "errorCode": e["client"] if e["status"] != "success" else None,
            "costEstimateCents": e["cost"],
            **e["details"],
        }
        self.stream.append((self.now_us, json.dumps(event).encode()))

    @precondition(lambda self: self.stream)
    @rule(which=st.integers(0, 10_000))
    def publish_again(self, which: int) -> None:
        self.stream.append((self.now_us, self.stream[which % len(self.stream)][1]))

    @rule(body=st.sampled_from([b"", b"{}", b"\xff", b'{"eventId":"x"}']))
    def publish_bad(self, body: bytes) -> None:
        self.stream.append((self.now_us, body))

    @rule(by_us=st.sampled_from([1_000_000, MINUTE_US, 7 * MINUTE_US, HOUR_US, 4 * HOUR_US]))
    def time_passes(self, by_us: int) -> None:
        self.now_us += by_us

    @rule(by_us=st.sampled_from([1_000_000, 7 * MINUTE_US, HOUR_US, 4 * HOUR_US]))
    def the_brokers_clock_goes_back(self, by_us: int) -> None:
        self.now_us -= by_us

    # --- the worker ---------------------------------------------------------------------------------

    @precondition(lambda self: self.ledger.received_offset < len(self.stream))
    @rule(most=st.integers(1, 6))
    def ingest(self, most: int) -> None:
        first = self.ledger.received_offset
        timestamp_us = self.stream[first][0]
        bodies: list[bytes] = []
        for stamp_us, body in self.stream[first : first + most]:
            if stamp_us != timestamp_us:
                break
            bodies.append(body)
        self.ledger.ingest(
            first_offset=first, next_offset=first + len(bodies), timestamp_us=timestamp_us, bodies=bodies
        )

    @rule()
    def fold(self) -> None:
        self.ledger.fold()

    @precondition(lambda self: self.unknown is None)
    @rule(before=st.integers(0, 1), after=st.integers(0, 1))
    def flush(self, before: int, after: int) -> None:
        self.sink.fail_before_commit, self.sink.fail_after_commit = before, after
        self.load()
        self.unknown = self.ledger.drain(now_us=self.now_us, caught_up=False)
        self.try_again()

    def load(self, opened: Opened | None = None) -> None:
        """Load the blocks that the drain needs, or that the backfill of letters needs."""
        while blocks := self.ledger.missing(opened):
            self.ledger.adopt(asyncio.run(self.sink.load(self.claim, blocks)), blocks)

    @precondition(lambda self: self.unknown is None)
    @rule(then_us=st.sampled_from([0, 7 * MINUTE_US, 2 * HOUR_US]))
    def settle(self, then_us: int) -> None:
        """Commit everything that is published, and let time pass, so that the next events may be late."""
        while self.ledger.received_offset < len(self.stream):
            self.ingest(most=6)
        self.flush(before=0, after=0)
        self.now_us += then_us

    @precondition(lambda self: self.unknown is not None)
    @rule()
    def try_again(self) -> None:
        assert self.unknown is not None
        try:
            asyncio.run(self.sink.flush(self.claim, self.unknown))
        except SinkUnavailable:
            return
        self.unknown = None
        self.compare()

    @rule()
    def crash_and_restart(self) -> None:
        self.restart()
        self.compare()

    @rule()
    def rival_takes_over_and_crashes(self) -> None:
        """Let another worker claim the partition and commit. Our flush must then fail whole."""
        claim, ledger = asyncio.run(books.recover(self.sink, self.terms))
        self.sink.fail_before_commit = self.sink.fail_after_commit = 0
        if ledger.received_offset < len(self.stream):
            timestamp_us, body = self.stream[ledger.received_offset]
            ledger.ingest(
                first_offset=ledger.received_offset,
                next_offset=ledger.received_offset + 1,
                timestamp_us=timestamp_us,
                bodies=[body],
            )
        asyncio.run(books.flush(self.sink, claim, ledger))
        batch = self.unknown or None
        if batch is None and not self.ledger.missing():
            batch = self.ledger.drain(now_us=self.now_us, caught_up=False)
        if batch is not None:
            with pytest.raises(Fenced):
                asyncio.run(self.sink.flush(self.claim, batch))
        self.restart()
        self.compare()

    def restart(self) -> None:
        self.unknown = None
        self.claim, self.ledger = asyncio.run(books.recover(self.sink, self.terms))

    # --- the truth ----------------------------------------------------------------------------------

    def compare(self) -> None:
        committed = self.sink.state.position.next_offset
        records = [(i, at_us, body) for i, (at_us, body) in enumerate(self.stream[:committed])]
        oracle, _, wrong = replays.follow(self.sink.state, records, books.oracle_rules(self.terms))
        assert not wrong
        self.compare_rows(books.stored(self.sink), books.expected(oracle))
        position = self.sink.state.position
        assert position.offered == position.accepted + position.duplicate + position.rejected
        assert position.offered == committed

    def compare_rows(self, stored: dict[str, Any], expected: dict[str, Any]) -> None:
        assert not books.difference(stored, expected)
        assert not books.uneven_sums(stored, {one.name: 0 for one in self.terms.dimensions})

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.sink.fail_before_commit = self.sink.fail_after_commit = 0
        if self.unknown is not None:
            self.try_again()
        self.settle(then_us=0)
        assert self.sink.state.position.next_offset == len(self.stream)


SETTINGS = settings(max_examples=150, stateful_step_count=40, deadline=None)

TestPipeline = PipelineMachine.TestCase
TestPipeline.settings = SETTINGS


class ReplayMachine(PipelineMachine):
    """The machine with backfills of dead letters."""

    @precondition(lambda self: self.unknown is None and self.sink.state.dead_letters)
    @rule(
        which=st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
        evidence=st.sampled_from(["none", "none", "accept", "absent"]),
        before=st.integers(0, 1),
        after=st.integers(0, 1),
    )
    def replay(self, which: list[int], evidence: str, before: int, after: int) -> None:
        """Ask for the backfill of dead letters, as an operator does. The worker takes in all, and flushes."""
        state = self.sink.state
        done = {letter.offset for letter, one in state.settled if one.outcome in ("accepted", "duplicate")}
        for refused in (state.dead_letters[i % len(state.dead_letters)] for i in which):
            if refused.offset not in done:
                letter = Letter(
                    offset=refused.offset,
                    position=0,
                    broker_us=refused.broker_us,
                    evidence=evidence,
                    absent_to_hour=2**31 if evidence == "absent" else 0,
                    reason=refused.reason,
                    body=refused.body,
                )
                state.waiting.setdefault((letter.offset, 0), letter)
        self.load()
        opened = self.ledger.open(asyncio.run(self.sink.waiting_letters(self.claim, most=100)))
        self.load(opened)
        self.ledger.replay(opened, asyncio.run(self.sink.counted(self.claim, opened)))
        self.flush(before=before, after=after)


TestReplays = ReplayMachine.TestCase
TestReplays.settings = SETTINGS


class FullDaysMachine(ReplayMachine):
    """The machine with days that are full after two events of the highest cost."""

    terms = replace(RULES, sum_max=8_000_000)


TestFullDays = FullDaysMachine.TestCase
TestFullDays.settings = SETTINGS


class ChangingSettingsMachine(ReplayMachine):
    """The machine with other dimensions and split hours after each start.

    The oracle knows nothing of the changes. But from the hour on that the sink names, the sum over the values
    of a dimension must be the sum of all events, and a split hour must have the quarters of all events.
    """

    settings_of_starts = (
        ((), ()),
        ((TEAM,), RULES.split_hours),
        ((USER, TEAM), RULES.split_hours[::2]),
        ((Dimension("team", "actorId"),), ()),
        ((TEAM,), RULES.split_hours),
    )

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0

    @rule(which=st.integers(0, 4))
    def restart_with_other_settings(self, which: int) -> None:
        self.starts = which
        self.restart()

    def restart(self) -> None:
        dimensions, split_hours = self.settings_of_starts[self.starts]
        self.terms = replace(RULES, dimensions=dimensions, split_hours=split_hours)
        super().restart()

    def compare_rows(self, stored: dict[str, Any], expected: dict[str, Any]) -> None:
        for name in ("breakdown_hour", "breakdown_day", "values_seen"):
            del expected[name]
        split_hours = self.sink.state.split_hours
        assert split_hours.keys() == set(self.terms.split_hours)
        for tables in (stored, expected):
            tables["usage_quarter"] = {
                key: row
                for key, row in tables["usage_quarter"].items()
                if split_hours.get(key[1] // 4 % 24, 2**31) <= key[1] // 4
            }
        assert not books.difference(stored, expected)
        since = {name: since for name, (_, since) in self.sink.state.dimensions.items()}
        assert since.keys() == {one.name for one in self.terms.dimensions}
        assert not books.uneven_sums(stored, since)


TestChangingSettings = ChangingSettingsMachine.TestCase
TestChangingSettings.settings = SETTINGS


class OffsetApartMachine(PipelineMachine):
    """The machine with a broken sink, which commits the offset even if it does not commit the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.sink.offset_apart = True


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


@pytest.mark.parametrize(
    ("machine", "plant"),
    [
        (OffsetApartMachine, None),
        (PipelineMachine, _rows_are_never_cold),
        (PipelineMachine, _ids_are_not_recovered),
        (PipelineMachine, _ids_are_never_forgotten),
        (PipelineMachine, _names_are_not_restored),
        (PipelineMachine, _orgs_are_forgotten_while_they_have_rows),
        (PipelineMachine, _models_are_not_restored),
        (PipelineMachine, _values_are_not_restored),
        (ChangingSettingsMachine, _dimensions_count_at_once),
        (ChangingSettingsMachine, _split_hours_count_at_once),
        (PipelineMachine, _late_quarters_wait_for_no_block),
        (PipelineMachine, _lateness_is_lost_in_a_restart),
        (ReplayMachine, _replays_forget_what_was_counted),
        *((PipelineMachine, plant) for plant in event_details.READERS_THAT_LOSE_A_FIELD),
    ],
)
def test_the_model_finds_a_planted_bug(
    machine: type[PipelineMachine], plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plant is not None:
        plant(monkeypatch)
    with pytest.raises(AssertionError):
        _search(machine)


def _search(machine: type[PipelineMachine]) -> None:
    """Try examples until one fails: those that Hypothesis derives from the test, then those of more seeds.

    Which examples a seed gives differs from one Python to the next.
    """
    for number in (None, 1, 2, 3):
        run_state_machine_as_test(
            machine if number is None else seed(number)(machine),
            settings=settings(
                SETTINGS,
                max_examples=2000,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
            ),
        )
