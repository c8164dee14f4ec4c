"""The oracle of backfills: the outcome of each dead letter, and the books afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg

from pipeline.core.replay import Letter
from sql import queries
from tests.support import archives
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink, State

STORED_US = naive.DAY_US
"""The database stores ids for the dedupe window and this much longer."""


class ReplayingOracle(naive.Oracle):
    """An oracle that also backfills dead letters."""

    def __init__(self, rules: naive.Rules | None = None) -> None:
        super().__init__(rules)
        self._counted: dict[Any, naive.Event] = {}
        """Counted events by org, id and hour. Events that a backfill has counted are by org and id alone."""

    def _count(self, event: naive.Event, broker_us: int) -> None:
        super()._count(event, broker_us)
        self._counted[event.org_id, event.event_id, event.occurred_us // naive.HOUR_US] = event

    def replay(self, letter: Letter) -> str:
        """Judge a letter, and count it if it is accepted; returns the outcome."""
        broker_us, body = letter.broker_us, letter.body
        outcome = self._judge(broker_us, body, letter.evidence, letter.reason)
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

    def _judge(self, broker_us: int, body: bytes | None, evidence: str, reason: str) -> str:
        if body is None:
            return "gone"
        event = naive.decode(body)
        if isinstance(event, naive.Rejected):
            return event.reason
        if event.occurred_us > broker_us + naive.FUTURE_US:
            return "future"
        key = event.org_id, event.event_id
        own_us = event.occurred_us // naive.HOUR_US * naive.HOUR_US
        from_us = (broker_us - self.rules.dedupe_window_us) // naive.HOUR_US * naive.HOUR_US - naive.HOUR_US
        hours_us = {own_us, *range(from_us, broker_us + naive.FUTURE_US + 1, naive.HOUR_US)}
        live_us = self.floor_us // naive.HOUR_US * naive.HOUR_US
        stored_us = self.floor_us - STORED_US
        stored = {at_us for at_us in hours_us if at_us >= stored_us}
        firsts = [self._counted.get(key)] + [
            self._counted.get((*key, at_us // naive.HOUR_US)) for at_us in stored if at_us < live_us
        ]
        if event in firsts:
            return "duplicate"
        if any(firsts):
            return "conflict"
        if evidence == "counted":
            return "duplicate"
        if evidence == "none" and stored != hours_us:
            return "unknown"
        if evidence != "accept" and reason == "conflict":
            return "conflict"
        counted_us = self._hour_of_id.get(key)
        if counted_us is not None and counted_us >= live_us:
            return "duplicate" if self._event_of_id[key] == event else "conflict"
        return "invalid" if self._lacking(event) else "accepted"


def request(sink: MemorySink, letters: Sequence[Letter]) -> None:
    """Ask for the backfill of letters."""
    sink.state.waiting.update({(letter.offset, letter.position): letter for letter in letters})


def request_in_database(database_url: str, letters: Sequence[Letter], *, partition: int = 0) -> None:
    """Ask for the backfill of letters in a database, as the command does."""
    with psycopg.connect(database_url) as connection:
        for letter in letters:
            row = {
                "partition": partition,
                "offset": letter.offset,
                "position": letter.position,
                "run": uuid4(),
                "broker_time": naive.EPOCH + timedelta(microseconds=letter.broker_us),
                "evidence": letter.evidence,
                "absent_to": None,
                "body": None,
            }
            assert connection.execute(queries.load("replays")["request"], row).rowcount == 1


def follow(
    state: State, records: list[tuple[int, int, bytes]], rules: naive.Rules
) -> tuple[ReplayingOracle, list[archives.Row], list[str]]:
    """Let an oracle read a stream, and backfill as the database has done, in the order of the commits.

    Returns the oracle, the rows that an archive must hold, and the outcomes on which database and oracle
    differ.
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
        outcome = oracle.replay(letter)
        if outcome != settled.outcome:
            wrong.append(f"letter {letter.offset}: {settled.outcome}, oracle {outcome}")
        if outcome == "accepted":
            assert letter.body is not None
            event = naive.decode(letter.body)
            assert isinstance(event, naive.Event)
            accepted.append(archives.row(letter.offset, event, rules))
    accepted += archives.accepted(oracle, rest)
    return oracle, accepted, wrong
