"""The oracle of replays: what a dead letter becomes, and what the books hold then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import psycopg

from pipeline.core.replay import Letter
from sql import queries
from tests import archives
from tests import oracle as naive
from tests.memory_sink import MemorySink, State

STORED_US = naive.DAY_US
"""How much longer than for the window ids are stored."""


class ReplayingOracle(naive.Oracle):
    """An oracle that also takes dead letters back in."""

    def __init__(self, rules: naive.Rules | None = None) -> None:
        super().__init__(rules)
        self._counted: dict[Any, naive.Event] = {}
        """By org, event and hour; by org and event alone what replays have counted."""

    def _count(self, event: naive.Event, broker_us: int) -> None:
        super()._count(event, broker_us)
        self._counted[event.org_id, event.event_id, event.occurred_us // naive.HOUR_US] = event

    def replay(self, broker_us: int, body: bytes | None, *, evidence: str = "none") -> str:
        """The outcome of a letter that the broker stored at ``broker_us``; counts it if it is accepted."""
        outcome = self._judge(broker_us, body, evidence)
        if outcome in ("accepted", "duplicate"):
            self.rejected -= 1
        if outcome == "duplicate":
            self.duplicate += 1
        if outcome == "accepted":
            assert body is not None
            event = naive.decode(body)
            assert isinstance(event, naive.Event)
            self.accepted += 1
            key = event.org_id, event.event_id
            newest_us = self.max_event_us
            self._count(event, broker_us)
            self.max_event_us = newest_us
            self._counted[key] = self._event_of_id[key] = event
            self._hour_of_id[key] = event.occurred_us // naive.HOUR_US * naive.HOUR_US
        return outcome

    def _judge(self, broker_us: int, body: bytes | None, evidence: str) -> str:
        if body is None:
            return "gone"
        event = naive.decode(body)
        if isinstance(event, naive.Rejected):
            return event.reason
        if event.occurred_us > broker_us + naive.FUTURE_US:
            return "future"
        key = event.org_id, event.event_id
        hour = event.occurred_us // naive.HOUR_US
        live_us = self.floor_us
        live = (hour + 1) * naive.HOUR_US > live_us
        stored = live or hour * naive.HOUR_US >= live_us - STORED_US
        first = self._counted.get(key)
        if first is None and stored and not live:
            first = self._counted.get((*key, hour))
        if first is None and evidence == "counted":
            return "duplicate"
        if first is None and not stored and evidence == "none":
            return "unknown"
        counted_us = self._hour_of_id.get(key)
        if first is None and counted_us is not None and counted_us + naive.HOUR_US > live_us:
            first = self._event_of_id[key]
        if first is None:
            return "accepted"
        return "duplicate" if first == event else "conflict"


def request(sink: MemorySink, letters: Sequence[Letter]) -> None:
    """Ask for letters to be replayed."""
    sink.state.waiting.update({(letter.offset, letter.position): letter for letter in letters})


def request_in_database(database_url: str, letters: Sequence[Letter], *, partition: int = 0) -> None:
    """Likewise, as the command does."""
    with psycopg.connect(database_url) as connection:
        for letter in letters:
            row = {
                "partition": partition,
                "offset": letter.offset,
                "position": letter.position,
                "run": uuid4(),
                "broker_time": naive.EPOCH + naive.timedelta(microseconds=letter.broker_us),
                "evidence": letter.evidence,
                "body": None,
            }
            assert connection.execute(queries.load("replays")["request"], row).rowcount == 1


def follow(
    state: State, records: list[tuple[int, int, bytes]], rules: naive.Rules
) -> tuple[ReplayingOracle, list[archives.Row], list[str]]:
    """An oracle that has read a stream and replayed what a database has settled, in the order of its commits.

    With the rows that an archive must hold, and what was settled otherwise than the oracle would.
    """
    oracle = ReplayingOracle(rules)
    accepted: list[archives.Row] = []
    wrong: list[str] = []
    rest = iter(records)
    at = 0
    for letter, settled in state.settled:
        part = [next(rest) for _ in range(settled.at_offset - at)]
        at = settled.at_offset
        accepted += archives.accepted(oracle, part)
        outcome = oracle.replay(letter.broker_us, letter.body, evidence=letter.evidence)
        if outcome != settled.outcome:
            wrong.append(f"letter {letter.offset}: {settled.outcome}, oracle {outcome}")
        if outcome == "accepted":
            assert letter.body is not None
            event = naive.decode(letter.body)
            assert isinstance(event, naive.Event)
            accepted.append(archives.row(letter.offset, event))
    accepted += archives.accepted(oracle, rest)
    return oracle, accepted, wrong
