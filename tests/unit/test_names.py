"""Names that a sender invents: orgs, models, clients and error codes are forgotten with their last row."""

from __future__ import annotations

import json
import random
import uuid
from datetime import timedelta

import numpy as np
import pytest

from pipeline.core import rollups
from pipeline.core.events import Uuids
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US
from tests.support import books
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink

START_US = 1_790_000_000_000_000
ORGS, MODELS, NAMES_MAX = 20, 60, 50
RULES = Rules(dedupe_window_us=5 * HOUR_US)


def event(chance: random.Random, *, number: int, org: int, model: int, at_us: int) -> bytes:
    return json.dumps(
        {
            # Few ids: a later org may have both the number and the id of an earlier one.
            "eventId": str(uuid.UUID(int=number)),
            "orgId": str(uuid.UUID(int=org)),
            "modelId": str(uuid.UUID(int=model)),
            "clientId": f"client {chance.random()}",
            "occurredAt": (naive.EPOCH + timedelta(microseconds=at_us)).isoformat(),
            "latencyMs": 1,
            "status": "error",
            "errorCode": f"code {chance.random()}",
            "inputTokens": 1,
            "outputTokens": 1,
            "costEstimateCents": "1",
        }
    ).encode()


async def test_orgs_and_models_that_nothing_refers_to_are_forgotten_and_no_figure_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollups, "NAMES_MAX", NAMES_MAX)
    chance, sink = random.Random(1), MemorySink()
    oracle = naive.Oracle(books.oracle_rules(RULES))
    claim, ledger = await books.recover(sink, RULES)
    known, sizes = [], []
    old: list[bytes] = []
    for generation in range(40):
        now_us = START_US + 6 * HOUR_US * generation
        orgs = [1, *(chance.getrandbits(128) for _ in range(ORGS))]
        bodies = [
            event(chance, number=n, org=orgs[n % len(orgs)], model=chance.getrandbits(128), at_us=now_us - n)
            for n in range(MODELS)
        ]
        # An event of an hour before makes old rows come back; a copy is a duplicate.
        bodies += [event(chance, number=999, org=orgs[3], model=7, at_us=now_us - 4 * HOUR_US), bodies[5]]
        bodies += old[:5]  # too late by now
        first = ledger.received_offset
        for i, body in enumerate(bodies):
            oracle.feed(first + i, now_us, body)
        ledger.ingest(first_offset=first, next_offset=first + len(bodies), timestamp_us=now_us, bodies=bodies)
        await books.flush(sink, claim, ledger)
        old = bodies
        known.append(ledger.names_known)
        sizes.append(ledger.memory_bytes)
    assert not books.difference(books.stored(sink), books.expected(oracle))
    assert sink.state.position.duplicate == 40
    # A day of rows is in memory, five generations; twice as many names may be known before a look.
    generation_names = ORGS + 3 * MODELS + 3
    assert max(known) <= 4 * NAMES_MAX + 2 * 6 * generation_names
    assert max(known) < 40 * generation_names / 2, "the test has more names than are kept"
    assert sizes[-1] <= 2 * max(sizes[:15])


def test_a_number_that_is_kept_means_the_same_id_and_others_are_given_again() -> None:
    uuids, chance = Uuids(), np.random.default_rng(3)
    meant: dict[int, tuple[int, int]] = {}
    for _ in range(20):
        ids = chance.integers(0, 2**63, (700, 2)).astype(np.uint64)
        numbers = uuids.number(ids)
        assert len(np.unique(numbers)) == len(ids)
        assert meant.keys().isdisjoint(numbers.tolist())
        meant |= dict(zip(numbers.tolist(), map(tuple, ids.tolist()), strict=True))
        taken = sorted(meant)
        assert [tuple(key) for key in uuids.keys[taken].tolist()] == [meant[number] for number in taken]
        assert sorted(taken, key=lambda n: int(uuids.ranks()[n])) == sorted(taken, key=meant.__getitem__)
        kept = chance.choice(np.array(taken), len(taken) // 2, replace=False)
        uuids.keep(kept[:100], kept[50:])
        meant = {number: meant[number] for number in kept.tolist()}
        assert len(uuids) == len(meant)
        assert uuids.number(np.array(list(meant.values()), np.uint64)).tolist() == list(meant)
    assert len(uuids.keys) < 5000


def test_names_count_as_memory() -> None:
    ledger = Ledger(Rules())
    before = ledger.memory_bytes
    ledger._reader.models.number(np.random.default_rng(4).integers(0, 2**63, (50_000, 2)).astype(np.uint64))
    ledger._reader.clients.numbers([f"client {i}" for i in range(50_000)])
    assert ledger.memory_bytes - before > 50_000 * (16 + 80)
