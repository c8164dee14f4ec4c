"""The ten rules of a partition's books, each as one small test with its minutes drawn.

A cell between two bars is a minute, and a character of the cell stands for 10 seconds. A small letter is an
event at that time. ``!`` is the broker's time when it stored the chunk. Events are read in the order that the
test names, which need not be the order of their times.
"""

from __future__ import annotations

import json
import uuid
from datetime import timedelta

import numpy as np

from pipeline.core.batch import Batch
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.windows import MEASURES
from tests.support import books
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink

MINUTE_US = 60_000_000
START_US = 1_790_000_000_000_000 // 86_400_000_000 * 86_400_000_000 + 10 * 60 * MINUTE_US  # 10:00
RULES = Rules(allowed_lateness_us=10_000_000, dedupe_window_us=60 * MINUTE_US)
INVOCATIONS, REVISION = MEASURES.index("invocations"), MEASURES.index("revision")


def times_of(drawing: str) -> dict[str, int]:
    """The time of each sign of a drawing, in microseconds."""
    cells = drawing.strip("|").split("|")
    return {
        sign: START_US + minute * MINUTE_US + place * 10_000_000
        for minute, cell in enumerate(cells)
        for place, sign in enumerate(cell)
        if sign != " "
    }


def body(sign: str, at_us: int, *, cost: str = "1") -> bytes:
    """The event of a letter; its id is the letter's."""
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=ord(sign))),
            "orgId": str(uuid.UUID(int=1)),
            "modelId": str(uuid.UUID(int=2)),
            "occurredAt": (naive.EPOCH + timedelta(microseconds=at_us)).isoformat(),
            "latencyMs": 10,
            "status": "success",
            "inputTokens": 1,
            "outputTokens": 1,
            "costEstimateCents": cost,
        }
    ).encode()


class Drawn:
    """A partition whose events are drawn."""

    def __init__(self, drawing: str) -> None:
        self.times = times_of(drawing)
        self.minutes = drawing.strip("|").count("|") + 1
        self.ledger = Ledger(RULES)
        self.rows: dict[int, tuple[int, int]] = {}

    def reads(self, *signs: str, cost: str = "1", stored_at: str = "!", caught_up: bool = False) -> Batch:
        """One chunk with these events in this order, and the batch that a flush would commit."""
        bodies = [body(sign, self.times[sign], cost=cost) for sign in signs]
        return self.reads_bodies(*bodies, stored_at=stored_at, caught_up=caught_up)

    def reads_bodies(self, *bodies: bytes, stored_at: str = "!", caught_up: bool = False) -> Batch:
        first, at_us = self.ledger.received_offset, self.times[stored_at]
        self.ledger.ingest(
            first_offset=first, next_offset=first + len(bodies), timestamp_us=at_us, bodies=bodies
        )
        batch = self.ledger.drain(now_us=at_us, caught_up=caught_up)
        for table in batch.tables:
            if table.grain.name == "usage_minute":
                for bucket, row in zip(table.bucket.tolist(), table.measures, strict=True):
                    self.rows[bucket] = (int(row[INVOCATIONS]), int(row[REVISION]))
        return batch

    def counted(self) -> list[str]:
        """Each minute: its events, and in brackets its revision if there is one."""
        shown = []
        for minute in range(self.minutes):
            count, revision = self.rows.get(START_US // MINUTE_US + minute, (0, 0))
            shown.append((str(count) if count else "") + (f" ({revision})" if revision else ""))
        return shown

    def watermark(self) -> str:
        """As minutes and seconds after the drawing's beginning."""
        mark_us = self.ledger.position.watermark_us
        assert mark_us is not None
        return f"{(mark_us - START_US) // MINUTE_US}:{(mark_us - START_US) // 1_000_000 % 60:02}"


def outcomes(batch: Batch) -> list[str]:
    return [letter.reason for letter in batch.dead_letters]


def test_1_event_time_decides_the_bucket_whatever_the_order_of_arrival() -> None:
    drawn = Drawn("|a  b  |   c  |  d  !|")
    drawn.reads("d", "b", "c", "a")  # three of them late, because d came first
    assert drawn.counted() == ["2 (2)", "1 (1)", "1"]


def test_2_the_watermark_is_the_newest_event_less_the_allowed_lateness() -> None:
    drawn = Drawn("|a     |   b  |     !|")
    drawn.reads("a", "b")
    assert drawn.watermark() == "1:20", "b is at 1:30"


def test_3_the_watermark_never_goes_back() -> None:
    drawn = Drawn("|a     |   b  |     !|")
    drawn.reads("b")
    drawn.reads("a")
    assert drawn.watermark() == "1:20"


def test_4_a_late_event_counts_in_its_true_bucket_and_raises_its_revision() -> None:
    drawn = Drawn("|a   b |   c  |     !|")
    drawn.reads("a", "c")  # the watermark is at 1:20, so the first minute is over
    drawn.reads("b")
    assert drawn.counted() == ["2 (1)", "1", ""]


def test_5_an_event_behind_the_watermark_is_in_time_for_a_bucket_that_still_goes_on() -> None:
    drawn = Drawn("|      |a  b  |     !|")
    drawn.reads("b")  # the watermark is at 1:20, and the minute ends at 2:00
    drawn.reads("a")
    assert drawn.counted() == ["", "2", ""]


def test_6_once_all_is_read_the_watermark_follows_the_brokers_time() -> None:
    drawn = Drawn("|a     |      |     !|")
    drawn.reads("a", caught_up=True)
    assert drawn.watermark() == "2:40", "now is 2:50"


def test_7_the_second_copy_of_an_event_counts_no_more() -> None:
    drawn = Drawn("|a     |     !|")
    drawn.reads("a")
    batch = drawn.reads("a")
    assert drawn.counted() == ["1", ""]
    assert (batch.position.duplicate, outcomes(batch)) == (1, [])


def test_8_another_event_under_the_same_id_is_a_conflict_and_the_first_one_stands() -> None:
    drawn = Drawn("|a     |     !|")
    drawn.reads("a", cost="1")
    batch = drawn.reads("a", cost="2")
    assert drawn.counted() == ["1", ""]
    assert outcomes(batch) == ["conflict"]


def test_9_an_event_beyond_the_window_or_ahead_of_time_is_rejected_and_moves_no_watermark() -> None:
    drawn = Drawn("|a     |b     |" + "      |" * 59 + "     !|" + "      |" * 6 + "c|")
    batch = drawn.reads("a", "b", "c")  # the broker's time is 61:50; an hour before is 1:50
    assert outcomes(batch) == ["too_late", "too_late", "future"]
    assert batch.position.watermark_us is None
    drawn = Drawn("|      |     b|" + "      |" * 59 + "     !|" + "    c |")
    batch = drawn.reads("b", "c")  # to the second within the window, and less than 5 minutes ahead
    assert (outcomes(batch), batch.position.accepted) == ([], 2)


async def test_10_a_batch_has_exactly_the_events_below_its_offset_and_all_are_accounted_for() -> None:
    drawn = Drawn("|a  b  |   c  |     !|")
    first = drawn.reads_bodies(body("a", drawn.times["a"]), b"no event", body("b", drawn.times["b"]))
    assert (first.from_offset, first.position.next_offset) == (0, 3)
    assert [(letter.offset, letter.reason) for letter in first.dead_letters] == [(1, "malformed")]
    second = drawn.reads("c", "a")
    assert (second.from_offset, second.position.next_offset) == (3, 5)
    position = second.position
    assert (position.offered, position.accepted, position.duplicate, position.rejected) == (5, 3, 1, 1)

    # A worker that takes over after the first batch reads the rest again, and has the same rows.
    sink = MemorySink()
    claim, _ = await sink.claim(books.STREAM)
    await sink.flush(claim, first)
    _, recovered = await books.recover(sink, RULES)
    assert recovered.received_offset == 3
    drawn.ledger = recovered
    again = drawn.reads("c", "a")
    assert again.position == second.position
    for mine, theirs in zip(again.tables, second.tables, strict=True):
        assert np.array_equal(mine.measures, theirs.measures)
