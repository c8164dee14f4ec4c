"""An event for which the sums of its bucket have no room is a dead letter, and nothing else is disturbed."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest

from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from tests.support.ledgers import HOUR_US, MODEL, NOW_US, ORG, Books, event, letter

MAX = 2**63 - 1
OTHER_ORG = str(uuid.UUID(int=9))
TINY = Rules(dedupe_window_us=30 * HOUR_US, clients_per_org_hour_max=2, sum_max=1000)


def dear(number: int) -> bytes:
    """An event at the highest cost."""
    return event(number, costEstimateCents="100000000", inputTokens=0, outputTokens=0)


def small(number: int, **fields: Any) -> bytes:
    """An event that costs nothing: only its latency and its tokens take room."""
    return event(number, **{"costEstimateCents": 0, **fields})


def test_an_event_without_room_in_its_bucket_is_a_dead_letter_and_all_else_goes_on() -> None:
    room_for = MAX // 10**14
    ledger = Ledger(Rules())
    bodies = [dear(i) for i in range(room_for + 2)]
    bodies += [event(room_for + 2, costEstimateCents="0.5"), event(0, orgId=OTHER_ORG), dear(0)]
    for first in range(0, len(bodies), 8000):
        part = bodies[first : first + 8000]
        ledger.ingest(first_offset=first, next_offset=first + len(part), timestamp_us=NOW_US, bodies=part)
    assert not ledger.missing()
    batch = ledger.drain(now_us=NOW_US, caught_up=True)
    refused = batch.dead_letters
    assert [(one.offset, one.reason) for one in refused] == [(room_for, "invalid"), (room_for + 1, "invalid")]
    assert [(f.field, f.message) for f in refused[0].faults] == [
        ("costEstimateCents", "no room in the bucket's sum")
    ]
    assert batch.position.accepted == room_for + 2, "what fits is counted, also of the same org"
    assert batch.position.duplicate == 1, "a duplicate takes no room, and stays one"
    costs = {int(cost) for rows in batch.tables[:5] for cost in rows.measures[:, 7]}
    assert costs == {room_for * 10**14 + 500_000, 500_000}


@pytest.mark.parametrize("field", ["inputTokens", "outputTokens", "latencyMs"])
async def test_tokens_and_latency_have_no_room_either(field: str) -> None:
    books = Books(rules=TINY)
    await books.recover()
    await books.read(*(small(i, **{field: 400}) for i in range(4)))
    assert [d.faults[0].field for d in books.state.dead_letters] == [field, field]
    books.check()


async def stream(luck: random.Random, books: Books, *, flush: float, restart: float) -> None:
    """A stream of one seed, flushed and restarted at times that are no part of that seed."""
    for _ in range(60):
        bodies = []
        for _ in range(luck.randrange(1, 8)):
            fields: dict[str, Any] = {
                luck.choice(("inputTokens", "latencyMs")): luck.choice((1, 90, 300)),
                "orgId": luck.choice((str(ORG), OTHER_ORG)),
                "modelId": luck.choice((str(MODEL), str(uuid.UUID(int=101)))),
                "status": luck.choice(("success", "error")),
            }
            ago_us = luck.choice((0, 0, HOUR_US, 12 * HOUR_US, 25 * HOUR_US))
            bodies.append(small(luck.randrange(150), ago_us=ago_us, **fields))
        first = books.ledger.received_offset
        for i, body in enumerate(bodies):
            books.oracle.feed(first + i, NOW_US, body)
        books.ledger.ingest(
            first_offset=first, next_offset=first + len(bodies), timestamp_us=NOW_US, bodies=bodies
        )
        moment = random.random()
        if moment < flush:
            await books.flush()
            if moment < restart:
                await books.recover()
        elif moment < 0.8:
            books.ledger.fold()
    await books.flush()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("flush", "restart"), [(0.0, 0.0), (0.3, 0.1), (1.0, 1.0)])
async def test_room_depends_on_the_stream_alone(seed: int, flush: float, restart: float) -> None:
    books = Books(rules=TINY)
    await books.recover()
    await stream(random.Random(seed), books, flush=flush, restart=restart)
    books.check()
    reasons = {d.reason for d in books.state.dead_letters}
    assert "invalid" in reasons


async def test_a_replayed_letter_without_room_stays_a_letter_and_counts_elsewhere() -> None:
    books = Books(rules=TINY)
    await books.recover()
    day_us = 24 * HOUR_US
    old = [small(i, ago_us=5 * day_us, inputTokens=400) for i in range(3)]
    await books.read(*old, small(10, ago_us=6 * day_us, inputTokens=900), small(11))
    assert len(books.state.dead_letters) == 4
    letters = [letter(i, body, evidence="accept") for i, body in enumerate(old)]
    assert await books.replay(letters[0]) == ["accepted"]
    await books.recover()
    assert await books.replay(*letters) == ["duplicate", "accepted", "invalid"]
    sixth = letter(3, small(10, ago_us=6 * day_us, inputTokens=900), evidence="accept")
    assert await books.replay(sixth) == ["accepted"]
    books.check()


async def test_a_day_that_left_memory_full_is_still_full_after_a_restart() -> None:
    books = Books(rules=TINY)
    await books.recover()
    await books.read(small(1, ago_us=26 * HOUR_US, inputTokens=999))
    await books.read(small(2))
    for number in (3, 4):
        await books.recover()
        await books.read(small(number, ago_us=26 * HOUR_US, inputTokens=2), small(10 + number))
    assert len(books.state.dead_letters) == 2
    books.check()
