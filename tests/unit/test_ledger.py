"""What the ledger asks of whoever times it, and what it makes of the broker's clock."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import replace
from datetime import timedelta
from types import TracebackType

import pytest

from pipeline.core import dedupe, wire
from pipeline.core.bodies import Bodies, Kept, Unreadable
from pipeline.core.intake import FOLD_BYTES
from pipeline.core.judge import LETTER_BYTES
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US
from tests.support import books, ledgers, mix
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink

NOW_US = 1_790_000_000_000_000


class Stopwatch:
    """Counts how often it was entered and left, and what the ledger had counted by then."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self.entered = self.left = 0
        self.accepted: list[int] = []

    def __enter__(self) -> None:
        self.entered += 1
        self._look()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left += 1
        self._look()

    def _look(self) -> None:
        assert self.ledger is not None
        self.accepted.append(self.ledger.position.accepted)


@pytest.mark.parametrize(("doubtful", "halves"), [(0, 1), (3, 2)])
def test_decoding_is_timed_without_dedupe_and_adding_up(doubtful: int, halves: int) -> None:
    stopwatch = Stopwatch()
    ledger = stopwatch.ledger = Ledger(Rules(), decoding=stopwatch)
    bodies = [*(_event(number, NOW_US) for number in range(300 - doubtful)), *([b"x"] * doubtful)]
    for first in (0, 100, 200):
        ledger.ingest(
            first_offset=first,
            next_offset=first + 100,
            timestamp_us=NOW_US,
            bodies=bodies[first : first + 100],
        )
    assert stopwatch.entered == 0, "so few events wait"
    ledger.fold()
    ledger.fold()
    assert (stopwatch.entered, stopwatch.left) == (halves, halves)
    assert set(stopwatch.accepted) == {0}
    assert ledger.position.accepted == 300 - doubtful


@pytest.mark.parametrize("fold_what_is_due", [True, False])
async def test_folds_in_two_halves_come_out_as_the_oracle_says(fold_what_is_due: bool) -> None:
    sink, oracle = MemorySink(), naive.Oracle()
    claim, ledger = await books.recover(sink, Rules())
    bodies = mix.make(20_000, seed=5, now_us=NOW_US, bad=0.05).bodies
    due = 0
    for chunk in books.chunks_of(bodies, size=3000, broker_us=NOW_US):
        for i, body in enumerate(chunk["bodies"]):
            oracle.feed(chunk["first_offset"] + i, NOW_US, body)
        ledger.receive(**chunk)
        if not ledger.fold_if_quick():
            due += 1
            if fold_what_is_due:
                ledger.fold()
    assert due > 1
    await books.flush(sink, claim, ledger)
    assert not books.difference(books.stored(sink), books.expected(oracle))


FOLD = 8192


@pytest.mark.parametrize(
    ("bodies", "is_quick"),
    [
        pytest.param([ledgers.event(n) for n in range(FOLD - 1)], True, id="not due yet"),
        pytest.param([ledgers.event(n) for n in range(FOLD)], True, id="good"),
        pytest.param([ledgers.event(n) for n in range(2 * FOLD + 1)], False, id="very many"),
        pytest.param([ledgers.event(n) for n in range(FOLD - 512)] + 512 * [b"x"], True, id="few bad"),
        pytest.param([ledgers.event(n) for n in range(FOLD - 513)] + 513 * [b"x"], False, id="many bad"),
        pytest.param([ledgers.event(n, ago_us=99 * HOUR_US) for n in range(FOLD)], False, id="too late"),
        pytest.param([ledgers.event(n, ago_us=-HOUR_US) for n in range(FOLD)], False, id="future"),
        pytest.param([b" " * (FOLD_BYTES // 16)] * 16, False, id="very large"),
    ],
)
def test_a_fold_that_takes_long_is_left_to_the_caller(bodies: list[bytes], is_quick: bool) -> None:
    ledger = Ledger(Rules())
    ledger.receive(first_offset=0, next_offset=len(bodies), timestamp_us=ledgers.NOW_US, bodies=bodies)
    assert ledger.fold_if_quick() is is_quick
    position = ledger.position
    assert position.accepted + position.rejected == (len(bodies) if is_quick and len(bodies) >= FOLD else 0)
    assert ledger.unflushed_events == len(bodies)
    ledger.fold()
    assert position.accepted + position.rejected == len(bodies)


class Restarted:
    """A partition of which every part is read by another worker, beside the oracle."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.oracle = naive.Oracle()

    async def read(self, *events: tuple[int, int], broker_us: int) -> list[str]:
        """Read one chunk of events (number, event time), and restart; the reasons of the dead letters."""
        claim, ledger = await books.recover(self.sink, Rules())
        first = ledger.received_offset
        bodies = [_event(number, at_us) for number, at_us in events]
        for i, body in enumerate(bodies):
            self.oracle.feed(first + i, broker_us, body)
        ledger.ingest(
            first_offset=first, next_offset=first + len(bodies), timestamp_us=broker_us, bodies=bodies
        )
        before = len(self.sink.state.dead_letters)
        await books.flush(self.sink, claim, ledger)
        assert not books.difference(books.stored(self.sink), books.expected(self.oracle))
        return [letter.reason for letter in self.sink.state.dead_letters[before:]]

    @property
    def counts(self) -> tuple[int, int, int]:
        position = self.sink.state.position
        return position.accepted, position.duplicate, position.rejected


def _event(number: int, at_us: int) -> bytes:
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=number * 2**64 + number)),
            "orgId": str(uuid.UUID(int=1)),
            "modelId": str(uuid.UUID(int=2)),
            "occurredAt": (naive.EPOCH + timedelta(microseconds=at_us)).isoformat(),
            "latencyMs": 1,
            "status": "success",
            "inputTokens": 1,
            "outputTokens": 1,
            "costEstimateCents": "1",
        }
    ).encode()


async def test_a_broker_whose_clock_was_ahead_for_one_chunk_and_a_restart_count_nothing_twice() -> None:
    partition = Restarted()
    counted = 1, NOW_US - 22 * HOUR_US - HOUR_US // 2
    await partition.read(counted, broker_us=NOW_US)
    await partition.read((2, NOW_US), broker_us=NOW_US + 4 * HOUR_US)
    assert await partition.read(counted, broker_us=NOW_US + 1) == ["too_late"]
    assert partition.counts == (2, 0, 1)
    [letter] = partition.sink.state.dead_letters
    assert letter.faults[0].message == "more than 24 h before a time that the broker's clock has shown before"


async def test_the_floor_stands_still_until_the_brokers_clock_has_caught_up() -> None:
    partition = Restarted()
    ahead_us = NOW_US + 4 * HOUR_US
    floor_us = ahead_us - Rules().dedupe_window_us
    await partition.read((1, floor_us), (2, NOW_US), broker_us=ahead_us)
    assert await partition.read((3, floor_us - 1), (4, floor_us), (1, floor_us), broker_us=NOW_US) == [
        "too_late"
    ]
    assert partition.counts == (3, 1, 1)
    assert partition.sink.state.position.broker_us == NOW_US
    assert await partition.read((5, floor_us + 1), (6, floor_us), broker_us=ahead_us + 1) == ["too_late"]


async def test_a_jump_of_days_makes_events_dead_letters_and_counts_none_twice() -> None:
    partition = Restarted()
    await partition.read((1, NOW_US), broker_us=NOW_US)
    ahead_us = NOW_US + 3 * 24 * HOUR_US
    await partition.read((4, ahead_us), broker_us=ahead_us)
    assert await partition.read((1, NOW_US), (2, NOW_US), broker_us=NOW_US + 1) == ["too_late", "too_late"]
    # What is in the future is judged by its own chunk: a clock that was ahead once says nothing of this one.
    assert await partition.read((3, NOW_US + 2 * 24 * HOUR_US), broker_us=NOW_US + 2) == ["future"]
    assert partition.counts == (2, 0, 3)


def test_ids_stay_known_as_the_brokers_clock_steps_back_while_lapsed_ones_make_room() -> None:
    hour_us = NOW_US // HOUR_US * HOUR_US
    lapses_us = hour_us + HOUR_US + Rules().dedupe_window_us
    """When the ids of the hour begin to count no more."""
    ledger = Ledger(Rules())

    def ingest(first: int, count: int, *, at_us: int, broker_us: int) -> None:
        bodies = [_event(number, at_us) for number in range(first, first + count)]
        offset = ledger.received_offset
        ledger.ingest(first_offset=offset, next_offset=offset + count, timestamp_us=broker_us, bodies=bodies)
        ledger.fold()

    last_us = hour_us + HOUR_US - 1_000_000
    ingest(0, 20_000, at_us=last_us, broker_us=last_us)
    for thousands in range(20, 40):  # the tables of ids run full, and lapsed ids go first
        ingest(1000 * thousands, 1000, at_us=lapses_us, broker_us=lapses_us + 1_000_000)
    assert ledger.position.accepted == 40_000
    assert ledger.remembered_ids < 40_000
    ingest(0, 20_000, at_us=last_us, broker_us=lapses_us - 1_500_000)
    ingest(20_000, 20_000, at_us=lapses_us, broker_us=lapses_us - 1_500_000)
    position = ledger.position
    assert (position.accepted, position.duplicate, position.rejected) == (40_000, 20_000, 20_000)


def test_a_client_named_other_has_a_row_of_its_own_beside_what_is_beyond_the_cap() -> None:
    ledger = Ledger(Rules(clients_per_org_hour_max=2))
    names = ["other", "a", "b", "c", "other"]
    bodies = [
        json.dumps(
            {
                "eventId": str(uuid.UUID(int=number)),
                "orgId": str(uuid.UUID(int=1)),
                "modelId": str(uuid.UUID(int=2)),
                "clientId": name,
                "occurredAt": (naive.EPOCH + timedelta(microseconds=NOW_US)).isoformat(),
                "latencyMs": 1,
                "status": "error",
                "errorCode": "other",
                "inputTokens": 1,
                "outputTokens": 1,
                "costEstimateCents": 1,
            }
        ).encode()
        for number, name in enumerate(names)
    ]
    ledger.ingest(first_offset=0, next_offset=5, timestamp_us=NOW_US, bodies=bodies)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    assert batch.dead_letters == []
    tables = {rows.grain.name: rows for rows in batch.tables}
    for table in ("client_hour", "client_day"):
        counted = dict(zip(tables[table].client, tables[table].measures[:, 0].tolist(), strict=True))
        assert counted == {"other": 2, "a": 1, wire.OVERFLOW_CLIENT: 2}
    errors = tables["usage_errors_hour"]
    assert dict(zip(errors.client, errors.error_code, strict=True)) == dict.fromkeys(counted, "other")


def test_models_beyond_the_cap_of_an_hour_share_a_row_in_every_table_and_no_sum_changes() -> None:
    ledger = Ledger(Rules(models_per_org_hour_max=100))
    count = 20_000
    bodies = []
    for number in range(count):
        event = json.loads(_event(number, NOW_US))
        event |= {"modelId": str(uuid.UUID(int=10**6 + number)), "status": "error", "errorCode": "e"}
        bodies.append(json.dumps(event).encode())
    ledger.ingest(first_offset=0, next_offset=count, timestamp_us=NOW_US, bodies=bodies)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    assert batch.dead_letters == []
    first = {uuid.UUID(int=10**6 + number) for number in range(100)}
    for rows in batch.tables:
        models = [uuid.UUID(int=(high << 64) | low) for high, low in rows.model.tolist()]
        counts = dict(zip(models, rows.measures[:, 0].tolist(), strict=True))
        assert counts == dict.fromkeys(first, 1) | {wire.OVERFLOW_MODEL: count - 100}, rows.grain.name
    assert len(batch.tables) == 6
    assert ledger.tally.capped_models == count - 100
    assert len(batch.models) == 101


STORED_BY_0_1_0 = (
    497_222,
    bytes.fromhex(
        "0100000000000000000000000000000000000001020000000000000000000000000000000000000700000000000000000000"
        "000000000008372db7dc61c43e4f"
    ),
)
"""The hour and the segment that version 0.1.0 stored of the two events `_stored_event`."""


def _stored_event(number: int, client: str | None, **changed: object) -> bytes:
    event = json.loads(_event(0, NOW_US))
    event |= {"eventId": str(uuid.UUID(int=number)), "clientId": client}
    return json.dumps(event | {"status": "error", "errorCode": "rate_limit"} | changed).encode()


def _outcomes(ledger: Ledger, *bodies: bytes) -> tuple[int, int, int]:
    first = ledger.received_offset
    ledger.ingest(
        first_offset=first, next_offset=first + len(bodies), timestamp_us=NOW_US, bodies=list(bodies)
    )
    ledger.fold()
    return ledger.position.accepted, ledger.position.duplicate, ledger.position.rejected


def test_two_clients_of_one_crc_32_are_a_conflict() -> None:
    plumless, buckeroo = (_stored_event(7, client) for client in ("plumless", "buckeroo"))
    ledger = Ledger(Rules())
    assert _outcomes(ledger, plumless, buckeroo, plumless) == (1, 1, 1)
    codes = [_stored_event(8, None, errorCode=code) for code in ("plumless", "buckeroo")]
    assert _outcomes(ledger, *codes) == (2, 1, 2)


@pytest.mark.parametrize("merged", [False, True])
def test_what_version_0_1_0_counted_is_a_duplicate_after_the_upgrade(merged: bool) -> None:
    ledger = Ledger(Rules())
    new = Ledger(Rules())
    assert _outcomes(new, _stored_event(9, "c")) == (1, 0, 0)
    assert not new.missing()
    hour, segment = STORED_BY_0_1_0
    segments = [segment, new.drain(now_us=0, caught_up=False).id_segments[hour]]
    for stored in [dedupe.merge_segments(segments)] if merged else segments:
        ledger.recover_ids(hour, stored)
    assert ledger.remembered_ids == 3
    stored_events = _stored_event(7, "plumless"), _stored_event(8, None), _stored_event(9, "c")
    assert _outcomes(ledger, *stored_events) == (0, 3, 0)
    changed = _stored_event(7, "other"), _stored_event(8, None, latencyMs=2), _stored_event(9, "buckeroo")
    assert _outcomes(ledger, *changed) == (0, 3, 3)


KINDS = {"inputTokens": 9, "cacheReadTokens": 2, "cacheWrite1hTokens": 3, "reasoningTokens": 1}


def test_what_was_counted_without_its_kinds_of_tokens_is_a_duplicate_after_the_upgrade() -> None:
    before = Ledger(Rules())
    plain = {name: value for name, value in KINDS.items() if name == "inputTokens"}
    assert _outcomes(before, _stored_event(7, "c", **plain)) == (1, 0, 0)  # it did not look at the kinds
    assert not before.missing()
    [(hour, segment)] = before.drain(now_us=0, caught_up=False).id_segments.items()
    ledger = Ledger(Rules())
    ledger.recover_ids(hour, segment)
    assert _outcomes(ledger, _stored_event(7, "c", **KINDS), _stored_event(7, "c", **plain)) == (0, 2, 0)
    assert _outcomes(ledger, _stored_event(7, "c", **KINDS | {"inputTokens": 8})) == (0, 2, 1)


def test_an_event_with_other_kinds_of_tokens_or_another_estimate_is_a_conflict() -> None:
    ledger = Ledger(Rules())
    counted = _stored_event(7, "c", **KINDS), _stored_event(8, "c", costEstimateCents=None)
    assert _outcomes(ledger, *counted) == (2, 0, 0)
    assert _outcomes(ledger, *counted) == (2, 2, 0)
    changed = [_stored_event(7, "c", **KINDS | {name: 0}) for name in list(KINDS)[1:]]
    changed += [_stored_event(7, "c", inputTokens=9), _stored_event(8, "c", costEstimateCents=0)]
    assert _outcomes(ledger, *changed) == (2, 2, len(changed))
    free = _stored_event(9, "c", costEstimateCents=0), _stored_event(9, "c", costEstimateCents=None)
    assert _outcomes(ledger, *free) == (3, 2, len(changed) + 1)


def test_a_segment_of_a_later_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="has the layout 2"):
        dedupe.decode_segment(b"\xff\xff\xff\xff\2\0\0\0")


def unreadable(first_offset: int, records: int) -> Unreadable:
    return Unreadable(first_offset=first_offset, records=records, fault="a lie", stored=Kept.of(b"batch"))


def test_a_batch_that_cannot_be_undone_is_one_dead_letter_with_its_count_of_records() -> None:
    ledger = Ledger(Rules())
    bodies = mix.make(40, seed=3, now_us=NOW_US, late=0, bad=0).bodies[:4]
    runs = [unreadable(0, 65535), unreadable(65537, 10)]
    ledger.ingest(
        first_offset=0, next_offset=65549, timestamp_us=NOW_US, bodies=[*bodies[:3], b"?"], unreadable=runs
    )
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    position = batch.position
    assert position.offered == 65549
    assert position.offered == position.accepted + position.duplicate + position.rejected
    assert sum(letter.records for letter in batch.dead_letters) == position.rejected
    letters = {(d.offset, d.records, d.reason) for d in batch.dead_letters}
    assert {(0, 65535, "malformed"), (65537, 10, "malformed"), (65548, 1, "malformed")} == letters
    assert ledger.tally.rejected["malformed"] == 65546


def test_of_an_oversized_body_no_more_is_kept_than_of_an_event_with_its_length_and_digest() -> None:
    ledger = Ledger(Rules())
    large = b"{" + b"x" * 2**20
    ledger.ingest(first_offset=0, next_offset=1, timestamp_us=NOW_US, bodies=[large])
    (letter,) = ledger.drain(now_us=NOW_US, caught_up=False).dead_letters
    assert letter.body == large[: 64 * 1024 + 1]
    assert (letter.body_bytes, letter.body_sha256) == (len(large), hashlib.sha256(large).digest())


async def test_the_books_know_that_the_rest_of_an_oversized_body_is_not_kept() -> None:
    kept = ledgers.Books()
    await kept.recover()
    await kept.read(b"{" + b"x" * 2**17, b"{" + b"y" * 2**16, b"short")
    assert not books.difference(books.stored(kept.sink), books.expected(kept.oracle))
    kept.sink.state.dead_letters[0] = replace(kept.sink.state.dead_letters[0], body=b"{x")
    (line,) = books.difference(books.stored(kept.sink), books.expected(kept.oracle))
    assert line.startswith("dead_letters 0")


def test_the_bodies_kept_in_one_batch_have_a_budget_of_bytes() -> None:
    ledger = Ledger(Rules(dead_letter_bytes_max=1000))
    for generation in range(2):
        bodies = [b"x" * 400, b"y" * 400, b"z" * 400, b"w" * 100]
        first = 4 * generation
        ledger.ingest(
            first_offset=first,
            next_offset=first + 4,
            timestamp_us=NOW_US,
            bodies=bodies,
        )
        letters = ledger.drain(now_us=NOW_US, caught_up=False).dead_letters
        assert [letter.body for letter in letters] == [bodies[0], bodies[1], None, bodies[3]]


def test_large_bodies_are_folded_before_they_fill_the_memory() -> None:
    ledger = Ledger(Rules(dead_letter_bytes_max=0))
    body = b"x" * 2**20
    for offset in range(100):
        ledger.ingest(
            first_offset=offset, next_offset=offset + 1, timestamp_us=NOW_US, bodies=Bodies.of([body])
        )
        assert ledger.unflushed_bytes <= FOLD_BYTES + 100 * LETTER_BYTES
    assert ledger.unflushed_events == 100
