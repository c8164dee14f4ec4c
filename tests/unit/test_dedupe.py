"""The table of ids: exact while it grows, forgets what has lapsed, and comes back whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import dedupe, kernels
from pipeline.core.dedupe import NewLog, SeenIds, TooManyIds
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.secret import SECRET
from pipeline.worker import id_files as spill

HOUR = 480_000


def random_ids(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, (n, 2)).astype(np.uint64)


def column(n: int, value: int = 0, dtype: type = np.int32) -> np.ndarray:
    return np.full(n, value, dtype)


def checks(n: int, value: int = 0) -> np.ndarray:
    return np.full(n, value, np.uint64) | kernels.hashing.WIDE


@pytest.fixture(params=["memory", "file"])
def new_log(request: pytest.FixtureRequest, tmp_path: Path) -> NewLog | None:
    return spill.logs_in(tmp_path) if request.param == "file" else None


def test_ids_are_found_again_however_often_the_tables_grew(new_log: NewLog | None) -> None:
    seen, n = SeenIds(new_log=new_log), 200_000
    ids = random_ids(n, 1)
    for at in range(0, n, 7_000):
        part = ids[at : at + 7_000]
        k = len(part)
        out = seen.add(part, column(k), column(k, HOUR), checks(k, 1), column(k, HOUR - 24))
        assert not out.any()
    assert len(seen) == n
    found = seen.add(ids, column(n), column(n, HOUR), checks(n, 1), column(n, HOUR - 24))
    assert (found == kernels.ids.DUPLICATE).all()
    found = seen.add(ids, column(n), column(n, HOUR), checks(n, 2), column(n, HOUR - 24))
    assert (found == kernels.ids.CONFLICT).all()
    other_org = seen.add(ids, column(n, 1), column(n, HOUR), checks(n, 1), column(n, HOUR - 24))
    assert (other_org == kernels.ids.NEW).all()


def test_a_look_alike_in_the_index_is_no_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that agree in the 32 bits that the index keeps of a hash, and in the table, are told apart."""
    chosen = np.random.default_rng(0).integers(0, 2**64, 130, dtype=np.uint64)
    monkeypatch.setattr(dedupe, "SECRET", chosen)
    n = 400_000
    ids, org = random_ids(n, 3), column(n)
    hashes, order, begins = np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(17, np.int64)
    kernels.ids.spread(chosen, ids, org, hashes, order, begins)
    marks = hashes & np.uint64(0xF0000000FFFFFFFF)
    by_mark = np.argsort(marks, kind="stable")
    twins = by_mark[:-1][marks[by_mark][1:] == marks[by_mark][:-1]]
    assert len(twins) > 0
    seen = SeenIds()
    out = seen.add(ids, org, column(n, HOUR), checks(n, 1), column(n, HOUR))
    assert (out == kernels.ids.NEW).all()
    again = seen.add(ids, org, column(n, HOUR), checks(n, 1), column(n, HOUR))
    assert (again == kernels.ids.DUPLICATE).all()


def test_memory_is_as_stated(tmp_path: Path) -> None:
    n = 300_000
    for new_log, least, most in ((None, 42, 48.1), (spill.logs_in(tmp_path), 10.6, 16.1)):
        seen = SeenIds(new_log=new_log)
        seen.add(random_ids(n, 1), column(n), column(n, HOUR), checks(n, 0), column(n, HOUR))
        assert least < seen.memory_bytes / n < most


def test_files_have_no_name_and_end_with_the_ids(tmp_path: Path) -> None:
    before = _mapped()
    seen = SeenIds(new_log=spill.logs_in(tmp_path))
    seen.add(random_ids(50_000, 1), column(50_000), column(50_000), checks(50_000, 0), column(50_000))
    assert list(tmp_path.iterdir()) == []
    assert _mapped() == before + 16
    del seen
    assert _mapped() == before


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("(deleted)")


def test_too_many_ids_are_refused_before_one_is_forgotten() -> None:
    seen, n = SeenIds(ids_max=20_000), 60_000
    with pytest.raises(TooManyIds, match="DEDUPE_IDS_MAX=20000"):
        seen.add(random_ids(n, 1), column(n), column(n, HOUR), checks(n, 0), column(n, HOUR))
    assert 20_000 < len(seen) < 40_000
    lapsing = SeenIds(ids_max=20_000)
    for hour in range(HOUR, HOUR + 40):
        k = 5_000
        lapsing.add(random_ids(k, hour), column(k), column(k, hour), checks(k, 0), column(k, hour - 1))
    assert 10_000 <= len(lapsing) <= 20_000


def test_lapsed_ids_make_room_instead_of_memory(new_log: NewLog | None) -> None:
    seen, n = SeenIds(new_log=new_log), 50_000
    sizes = []
    for hour in range(HOUR, HOUR + 40):
        live_from = column(n, hour - 3)
        seen.add(random_ids(n, hour), column(n), column(n, hour), checks(n, 0), live_from)
        sizes.append(seen.memory_bytes)
        again = seen.add(random_ids(n, hour - 3), column(n), column(n, hour), checks(n, 0), live_from)
        assert (again == (kernels.ids.DUPLICATE if hour >= HOUR + 3 else kernels.ids.NEW)).all()
    assert max(sizes[20:]) <= 1.3 * max(sizes[5:10])


def test_a_full_table_gets_room_however_many_of_its_ids_have_lapsed() -> None:
    n, total = 40_000, 1500
    ids = random_ids(n, 5)
    hashes, order, begins = np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(17, np.int64)
    kernels.ids.spread(SECRET, ids, column(n), hashes, order, begins)
    of_one_table = ids[order[begins[2] : begins[3]]][:total]

    def add(seen: SeenIds, part: np.ndarray, hour: int) -> np.ndarray:
        k = len(part)
        return seen.add(part, column(k), column(k, hour), checks(k, 0), column(k, hour))

    for lapsed in range(total):
        seen = SeenIds()
        add(seen, of_one_table[:lapsed], HOUR)
        assert (add(seen, of_one_table[lapsed:], HOUR + 1) == kernels.ids.NEW).all()
        assert (add(seen, of_one_table[lapsed:], HOUR + 1) == kernels.ids.DUPLICATE).all()


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
            checks(1, 0),
            column(1, live_from),
        )
        assert (out[0] == kernels.ids.NEW) == is_new


def test_reserved_room_spares_every_copy(new_log: NewLog | None) -> None:
    made: list[int] = []

    def counted(entries: int) -> np.ndarray:
        made.append(entries)
        return np.empty((entries, 8), np.uint32) if new_log is None else new_log(entries)

    seen, n = SeenIds(new_log=counted), 200_000
    early = random_ids(500, 2)
    seen.add(early, column(500), column(500, HOUR), checks(500, 1), column(500, HOUR))
    seen.reserve(n)
    assert len(made) == 32
    ids = np.concatenate((early, random_ids(n - 500, 1)))
    out = seen.add(ids, column(n), column(n, HOUR), checks(n, 1), column(n, HOUR))
    assert np.count_nonzero(out == kernels.ids.DUPLICATE) == 500
    assert len(made) == 32


def test_recovery_keeps_the_ids_of_every_hour_while_the_tables_grow() -> None:
    ledger, n, hours = Ledger(Rules()), 20_000, 12
    orgs = random_ids(1, 99)
    segments = []
    for i in range(hours):
        ids = random_ids(n, i)
        segments.append((HOUR + i, dedupe.encode_segment(orgs, column(n), ids, checks(n, 0))))
    for segment in segments:
        ledger.recover_ids(*segment)
    assert ledger.remembered_ids == n * hours
