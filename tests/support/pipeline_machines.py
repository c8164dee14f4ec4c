"""State machines of Hypothesis: the ledger and its sink, under random orders of events and accidents.

Hypothesis publishes, duplicates, delays and spoils events. It ingests, flushes, cuts flushes before and after
their commit, crashes, restarts, steals the partition, and asks for backfills of dead letters. After each
commit, every row must equal the oracle's count from the start of the stream to the committed offset.

`guided` makes a narrower search out of a machine, for a bug that is seldom met.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from pipeline.core.batch import Batch
from pipeline.core.dimensions import Dimension
from pipeline.core.ledger import Ledger
from pipeline.core.replay import Letter, Opened
from pipeline.core.rules import Rules
from pipeline.sink import Fenced, SinkUnavailable
from tests.support import books, event_details, replays
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink

T = TypeVar("T")
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


def now(step: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, without the event loop that `asyncio.run` makes."""
    try:
        step.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the sink in memory waits for something")


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
            self.ledger.adopt(now(self.sink.load(self.claim, blocks)), blocks)

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
            now(self.sink.flush(self.claim, self.unknown))
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
        claim, ledger = now(books.recover(self.sink, self.terms))
        self.sink.fail_before_commit = self.sink.fail_after_commit = 0
        if ledger.received_offset < len(self.stream):
            timestamp_us, body = self.stream[ledger.received_offset]
            ledger.ingest(
                first_offset=ledger.received_offset,
                next_offset=ledger.received_offset + 1,
                timestamp_us=timestamp_us,
                bodies=[body],
            )
        now(books.flush(self.sink, claim, ledger))
        batch = self.unknown or None
        if batch is None and not self.ledger.missing():
            batch = self.ledger.drain(now_us=self.now_us, caught_up=False)
        if batch is not None:
            with pytest.raises(Fenced):
                now(self.sink.flush(self.claim, batch))
        self.restart()
        self.compare()

    def restart(self) -> None:
        self.unknown = None
        self.claim, self.ledger = now(books.recover(self.sink, self.terms))

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
        opened = self.ledger.open(now(self.sink.waiting_letters(self.claim, most=100)))
        self.load(opened)
        self.ledger.replay(opened, now(self.sink.counted(self.claim, opened)))
        self.flush(before=before, after=after)


class FullDaysMachine(ReplayMachine):
    """The machine with days that are full after two events of the highest cost."""

    terms = replace(RULES, sum_max=8_000_000)


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


class OffsetApartMachine(PipelineMachine):
    """The machine with a broken sink, which commits the offset even if it does not commit the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.sink.offset_apart = True


# --- a search that is guided ------------------------------------------------------------------------

Accident = Callable[[Any], None]


def restart(machine: PipelineMachine) -> None:
    machine.crash_and_restart()


def nothing(machine: PipelineMachine) -> None: ...


def cut_and_restart(machine: PipelineMachine) -> None:
    """Cut a flush before its commit, and crash before the next try."""
    while machine.ledger.received_offset < len(machine.stream):
        machine.ingest(most=6)
    machine.flush(before=1, after=0)
    machine.crash_and_restart()


def publish_the_newest_again(machine: PipelineMachine) -> None:
    machine.publish_again(which=len(machine.stream) - 1)


def guided(
    machine: type[PipelineMachine],
    *,
    accidents: Sequence[Accident] = (nothing,),
    pauses_us: Sequence[int] = (0,),
    **narrow: Sequence[Any],
) -> type[RuleBasedStateMachine]:
    """A machine whose steps are whole turns of another: an accident, some events, and all is committed.

    Each turn takes rules of ``machine`` and nothing else, so ``machine`` could take it too, but seldom would.
    ``narrow`` has the values of those fields of the events that are not always the same.
    """
    plain: dict[str, Sequence[Any]] = {
        "org": ORGS[:1],
        "event": IDS,
        "model": MODELS[:1],
        "client": ["a"],
        "actor": [None],
        "metadata": [None],
        "ago_us": [0],
        "status": ["success"],
        "latency": [1],
        "cost": ["0.1"],
        "details": [{"inputTokens": 1, "outputTokens": 2}],
    }
    assert narrow.keys() <= plain.keys()
    event = st.fixed_dictionaries({name: st.sampled_from(of) for name, of in {**plain, **narrow}.items()})

    class Guided(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.machine = machine()

        @initialize()
        def start(self) -> None:
            self.machine.start()

        @rule(
            accident=st.sampled_from(accidents),
            events=st.lists(event, min_size=1, max_size=3),
            pause_us=st.sampled_from(pauses_us),
        )
        def turn(self, accident: Accident, events: list[dict[str, Any]], pause_us: int) -> None:
            for one in events:
                self.machine.publish(**one)
            accident(self.machine)
            self.machine.settle(then_us=pause_us)

        def teardown(self) -> None:
            self.machine.teardown()

    return Guided
