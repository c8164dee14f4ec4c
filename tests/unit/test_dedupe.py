"""The table of ids: exact while it grows, forgets what has lapsed, and comes back whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import dedupe, kernels
from pipeline.core.dedupe import SeenIds
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules

HOUR = 480_000


def random_ids(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, (n, 2)).astype(np.uint64)


def column(n: int, value: int = 0, dtype: type = np.int32) -> np.ndarray:
    return np.full(n, value, dtype)


def test_ids_are_found_again_however_often_the_tables_grew() -> None:
    seen, n = SeenIds(), 200_000
    ids = random_ids(n, 1)
    for at in range(0, n, 7_000):
        part = ids[at : at + 7_000]
        k = len(part)
        out = seen.add(part, column(k), column(k, HOUR), column(k, 1, np.uint32), column(k, HOUR - 24))
        assert not out.any()
    assert len(seen) == n
    found = seen.add(ids, column(n), column(n, HOUR), column(n, 1, np.uint32), column(n, HOUR - 24))
    assert (found == kernels.DUPLICATE).all()
    found = seen.add(ids, column(n), column(n, HOUR), column(n, 2, np.uint32), column(n, HOUR - 24))
    assert (found == kernels.CONFLICT).all()
    other_org = seen.add(ids, column(n, 1), column(n, HOUR), column(n, 1, np.uint32), column(n, HOUR - 24))
    assert (other_org == kernels.NEW).all()


def test_lapsed_ids_make_room_instead_of_memory() -> None:
    seen, n = SeenIds(), 50_000
    sizes = []
    for hour in range(HOUR, HOUR + 40):
        live_from = column(n, hour - 3)
        seen.add(random_ids(n, hour), column(n), column(n, hour), column(n, 0, np.uint32), live_from)
        sizes.append(seen.memory_bytes)
    assert max(sizes[20:]) <= 1.3 * max(sizes[5:10])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), max_size=60))
def test_outcomes_are_those_of_a_dictionary(events: list[tuple[int, int, int]]) -> None:
    seen = SeenIds()
    known: dict[tuple[int, int], int] = {}
    for later, (org, event, back) in enumerate(events):
        hour = HOUR + later // 4 - back
        live_from = HOUR + later // 4 - 2
        before = known.get((org, event))
        is_new = before is None or before < live_from
        if is_new:
            known[org, event] = hour
        out = seen.add(
            np.array([[event, event]], np.uint64),
            column(1, org),
            column(1, hour),
            column(1, 0, np.uint32),
            column(1, live_from),
        )
        assert (out[0] == kernels.NEW) == is_new


def test_recovery_keeps_the_ids_of_every_hour_while_the_tables_grow() -> None:
    ledger, n, hours = Ledger(Rules()), 20_000, 12
    orgs = random_ids(1, 99)
    segments = []
    for i in range(hours):
        ids = random_ids(n, i)
        segments.append((HOUR + i, dedupe.encode_segment(orgs, column(n), ids, column(n, 0, np.uint32))))
    for segment in segments:
        ledger.recover_ids([segment])
    assert ledger.remembered_ids == n * hours
