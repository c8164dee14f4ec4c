"""What becomes of events: the judge alone, without tables, batches or a stream."""

from __future__ import annotations

import json
import uuid
from typing import Any

import numpy as np

from pipeline.core import intake
from pipeline.core.batch import Position, Tally
from pipeline.core.bodies import Bodies
from pipeline.core.events import Columns, Reader
from pipeline.core.intake import Chunk, Records
from pipeline.core.judge import Judge, Undecided
from pipeline.core.rules import Rules
from pipeline.core.watermark import DAY_US, HOUR_US

NOW_US = 1_790_000_000_000_000 // DAY_US * DAY_US + 12 * HOUR_US


class Days:
    """As the rollups: the days in memory, and how many tokens were counted in each."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[int, int], int] = {}
        self.are_cold = False

    def cold_days(self, org: Any, day: Any) -> Any:
        return np.full(len(org), self.are_cold)

    def sums_by_day(self) -> list[tuple[Any, Any]]:
        keys = np.array(list(self.tokens), np.int32).reshape(-1, 2)
        sums = np.array([(tokens, 0, 0, 0) for tokens in self.tokens.values()], np.int64).reshape(-1, 4)
        return [(keys, sums)]


class Court:
    """A judge with all that it needs."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.reader, self.days = rules, Reader(), Days()
        self.position, self.tally = Position(), Tally()
        self.judge = Judge(rules, self.position, self.tally, self.reader, self.days)

    def read(self, *bodies: bytes) -> tuple[Columns, Records]:
        chunk = Chunk(first_offset=100, timestamp_us=NOW_US, bodies=Bodies.of(bodies))
        window_us = self.rules.dedupe_window_us
        records, self.position.newest_broker_us = intake.join([chunk], newest_us=0, window_us=window_us)
        columns, rejected = self.reader.read(records.bodies)
        assert not rejected
        return columns, records


def event(number: int, *, ago_us: int = 0, tokens: int = 1) -> bytes:
    at = np.datetime64(NOW_US - ago_us, "us")
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=number)),
            "orgId": str(uuid.UUID(int=1)),
            "modelId": str(uuid.UUID(int=2)),
            "occurredAt": f"{at}Z",
            "latencyMs": 1,
            "status": "success",
            "inputTokens": tokens,
            "outputTokens": 0,
            "costEstimateCents": "0",
        }
    ).encode()


def test_events_out_of_time_become_dead_letters_with_the_reason() -> None:
    court = Court(Rules(dedupe_window_us=5 * HOUR_US))
    columns, records = court.read(event(1), event(2, ago_us=-HOUR_US), event(3, ago_us=6 * HOUR_US))
    kept = court.judge.in_time(columns, records)
    assert kept.source.tolist() == [0]
    letters = court.judge.drain().dead_letters
    assert [(letter.offset, letter.reason) for letter in letters] == [(101, "future"), (102, "too_late")]
    assert court.position.rejected == 2


def test_an_id_counts_once_and_another_payload_is_a_conflict() -> None:
    court = Court(Rules())
    columns, records = court.read(event(1), event(1), event(1, tokens=2), event(2))
    accepted = court.judge.not_counted_before(columns, records)
    assert accepted.source.tolist() == [0, 3]
    assert (court.position.accepted, court.position.duplicate, court.position.rejected) == (2, 1, 1)
    outcomes = court.judge.drain()
    assert [letter.reason for letter in outcomes.dead_letters] == ["conflict"]
    assert list(outcomes.id_segments) == [NOW_US // HOUR_US]


def test_an_event_that_a_full_day_has_no_room_for_is_invalid() -> None:
    court = Court(Rules(sum_max=10_000))
    columns, records = court.read(event(1, tokens=9_000), event(2, tokens=9_000), event(3, tokens=1_000))
    fitting = court.judge.with_room(columns, records)
    assert isinstance(fitting, Columns)
    assert fitting.source.tolist() == [0, 2]
    assert court.tally.rejected["invalid"] == 1


def test_nothing_is_decided_while_a_day_that_may_be_full_is_not_in_memory() -> None:
    court = Court(Rules(sum_max=10_000))
    court.days.are_cold = True
    columns, records = court.read(event(1, tokens=9_000))
    day = (int(columns.org[0]), NOW_US // DAY_US)
    assert court.judge.with_room(columns, records) == Undecided(frozenset({day}))
    assert court.position.rejected == 0
    court.days.are_cold = False
    court.days.tokens[day] = 5_000
    court.judge.days_came([day], np.array([(5_000, 0, 0, 0)], np.int64))
    fitting = court.judge.with_room(columns, records)
    assert isinstance(fitting, Columns)
    assert not len(fitting)


def test_only_so_many_dead_letters_keep_their_bodies() -> None:
    court = Court(Rules(dead_letter_bodies_max=1))
    columns, records = court.read(event(1, ago_us=-HOUR_US), event(2, ago_us=-HOUR_US))
    court.judge.in_time(columns, records)
    bodies = [letter.body for letter in court.judge.drain().dead_letters]
    assert bodies == [event(1, ago_us=-HOUR_US), None]
