"""Values that a sender has chosen to meet in one slot do not: every table's hash has the process's secret.

The values are made to collide under the hashes of version 0.1.0, which had no secret. Whoever walks a table
takes at most as many steps as its longest run of occupied slots; so runs are measured here, never time.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from pipeline.core import secret
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Names, Uuids
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.windows import NameCap, Rows
from pipeline.worker import freshness_cache
from pipeline.worker.freshness_cache import FreshnessCache
from tests.support import mix as traffic

U64 = np.uint64
RUN_MAX = 200
"""At three quarters full, runs of some dozens are usual; of those made to collide, one run has all."""
COUNT = 5_000


def mix(h: Any) -> Any:
    """The finaliser of splitmix64, on uint64[n]."""
    h = (h ^ (h >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> U64(27))) * U64(0x94D049BB133111EB)
    return h ^ (h >> U64(31))


def unmix(h: Any) -> Any:
    """The inverse of `mix`."""

    def undo(h: Any, by: int) -> Any:
        x = h
        for _ in range(64 // by):
            x = h ^ (x >> U64(by))
        return x

    h = undo(h, 31) * U64(pow(0x94D049BB133111EB, -1, 2**64))
    h = undo(h, 27) * U64(pow(0xBF58476D1CE4E5B9, -1, 2**64))
    return undo(h, 30)


def colliding_ids(n: int) -> Any:
    """128-bit values (uint64[n, 2]) whose hashes were all the same."""
    high = np.random.default_rng(1).integers(0, 2**63, n).astype(U64)
    low = unmix(U64(12345) - high * U64(0x9E3779B97F4A7C15))
    assert len(set(mix(high * U64(0x9E3779B97F4A7C15) + mix(low)).tolist())) == 1
    return np.stack((high, low), axis=1)


def longest_run(occupied: Any) -> int:
    """The most occupied slots in a row, also around the end."""
    assert not occupied.all()
    rolled = np.roll(occupied, -int(np.argmin(occupied)))
    edges = np.flatnonzero(np.diff(np.concatenate(([0], rolled.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def test_models_that_are_made_to_collide_do_not() -> None:
    uuids = Uuids()
    ids = colliding_ids(COUNT)
    assert uuids.number(ids).tolist() == list(range(COUNT))
    assert longest_run(uuids._slots >= 0) < RUN_MAX
    uuids.number(np.random.default_rng(2).integers(0, 2**63, (4 * COUNT, 2)).astype(U64))  # it has grown
    assert uuids.number(ids).tolist() == list(range(COUNT))
    assert longest_run(uuids._slots >= 0) < RUN_MAX


def test_event_ids_that_are_made_to_collide_do_not() -> None:
    n = 20_000
    seen, ids, first_org = SeenIds(), colliding_ids(n), np.zeros(n, np.int32)
    hours, checks = np.full(n, 480_000, np.int32), np.zeros(n, U64)
    assert not seen.add(ids, first_org, hours, checks, hours).any()
    assert max(longest_run(index != 0) for index in seen._indexes) < RUN_MAX
    for number in range(len(seen._indexes)):
        seen.renew(number, live_from=480_000)
    assert max(longest_run(index != 0) for index in seen._indexes) < RUN_MAX
    # And no table of the sixteen has more than its share.
    assert seen._used.max() < 1.5 * n / len(seen._used)


def colliding_names(n: int) -> list[str]:
    """Names of eight ASCII letters with hashes whose lower 18 bits are 0."""
    found: list[str] = []
    for part in range(100):
        upper = np.arange(part * 2**19, (part + 1) * 2**19).astype(U64)
        words = unmix(upper << U64(18)) ^ U64(8)
        good = words[((words & U64(0x8080808080808080)) == 0)]
        texts = [word.to_bytes(8, "little") for word in good.tolist()]
        found += [text.decode() for text in texts if 0 not in text]
        if len(found) >= n:
            return found[:n]
    raise AssertionError("too few")


def test_names_that_are_made_to_collide_do_not() -> None:
    names = Names("more")
    texts = colliding_names(COUNT)
    words = np.array([int.from_bytes(text.encode(), "little") for text in texts], U64)
    assert not (mix(words ^ U64(8)) & U64(2**18 - 1)).any()
    assert names.numbers(texts).tolist() == list(range(2, COUNT + 2))
    assert longest_run(names._slots >= 0) < RUN_MAX


def test_long_names_that_differ_in_their_end_are_told_apart() -> None:
    names = Names("more")
    texts = ["\U0001f600" * 127 + chr(0x1F600 + i) for i in range(80)]
    assert names.numbers(texts).tolist() == names.numbers(texts).tolist() == list(range(2, 82))
    longer = ["x" * 1000 + str(i) for i in range(2000)]  # longer than the secret
    assert len(set(names.numbers(longer).tolist())) == 2000
    assert longest_run(names._slots >= 0) < RUN_MAX


def colliding_keys(n: int) -> Any:
    """Keys (int32[n, 3]) of rows with hashes in 32 slots of 2^15."""
    numbers = np.arange(2**23)
    keys = np.stack((np.zeros_like(numbers), numbers % 1440, numbers // 1440), axis=1).astype(np.int32)
    h = np.full(len(keys), 0x9E3779B97F4A7C15, U64)
    for column in range(3):
        h = mix(h ^ keys[:, column].astype(np.uint32).astype(U64))
    good = keys[(h & U64(2**15 - 1)) < 32]
    assert len(good) >= n
    return good[:n].copy()


def test_rows_that_are_made_to_collide_do_not() -> None:
    rows = Rows(3, 1)
    keys = colliding_keys(COUNT)
    assert rows.locate(keys).tolist() == list(range(COUNT))
    assert longest_run(rows._slots >= 0) < RUN_MAX
    rows.keep(np.arange(COUNT))
    assert longest_run(rows._slots >= 0) < RUN_MAX
    cap = NameCap(10**6, overflow=-1)
    assert not len(cap.apply(*keys.T.copy()))
    assert longest_run(cap._names._slots >= 0) < RUN_MAX


def test_models_in_the_freshness_cache_do_not_collide_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness_cache, "MODELS_MAX", COUNT)
    org = uuid.UUID(int=1)
    models = [uuid.UUID(int=7 + number * (2**61 - 1)) for number in range(COUNT)]
    assert len({hash(model) for model in models}) == 1
    known = [(org, model, 1, 2) for model in models]
    cache = FreshnessCache("redis://127.0.0.1:1", partition=0, known=known)
    [of_org] = cache._orgs.values()
    assert of_org is not None
    assert len({hash(model) for model in of_org}) == len(of_org) == COUNT


def test_two_processes_have_different_secrets() -> None:
    assert secret.SECRET.shape == secret.new_secret().shape == (130,)
    assert len({*secret.SECRET.tolist(), *secret.new_secret().tolist()}) == 260


def test_no_figure_depends_on_the_secret() -> None:
    now_us = 1_790_000_000_000_000
    bodies = traffic.make(500, seed=3, now_us=now_us).bodies

    def batch() -> Any:
        ledger = Ledger(Rules())
        ledger.ingest(first_offset=0, next_offset=len(bodies), timestamp_us=now_us, bodies=bodies)
        assert not ledger.missing()
        return ledger.drain(now_us=now_us, caught_up=False)

    first, before = batch(), secret.SECRET.copy()
    try:
        secret.SECRET[:] = secret.new_secret()
        second = batch()
    finally:
        secret.SECRET[:] = before
    assert dict(first.id_segments) == dict(second.id_segments)
    for one, other in zip(first.tables, second.tables, strict=True):
        np.testing.assert_array_equal(one.measures, other.measures)
        assert list(one.sketches) == list(other.sketches)
