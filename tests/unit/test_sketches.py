"""The latency sketch: its error, its merging, its bytes, and its compiled twin."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.reading import figures
from pipeline.core import cells, kernels, sketches
from pipeline.core.windows import GRAINS, MEASURES, Table, TableRows

QS = (0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)

_rng = np.random.default_rng(7)
ADVERSARIAL = {
    "constant": np.full(1000, 1234),
    "two far spikes": np.concatenate((np.full(950, 3), np.full(50, 2_000_000_000))),
    "exact edge of p95": np.concatenate((np.full(95, 100), np.full(5, 100_000))),
    "log-normal": _rng.lognormal(7, 1.5, 20_000).astype(np.int64),
    "pareto": np.minimum((_rng.pareto(0.5, 20_000) * 100).astype(np.int64), sketches.LATENCY_MS_MAX),
    "uniform over everything": _rng.integers(0, sketches.LATENCY_MS_MAX, 20_000, endpoint=True),
    "every small value": np.arange(5000),
    "bin edges": np.concatenate((sketches.EDGES[:-1], sketches.EDGES[1:-1] - 1)),
    "powers of two": 2 ** np.arange(31),
    "all zero": np.zeros(10, np.int64),
    "one value": np.array([51]),
}


def exact(values: np.ndarray, q: float) -> int:
    """The value of nearest rank."""
    return int(np.sort(values)[max(int(np.ceil(q * len(values) - 1e-9)), 1) - 1])


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_merged_quantiles_are_within_one_percent_of_exact(name: str) -> None:
    values = ADVERSARIAL[name]
    parts = np.array_split(np.random.default_rng(1).permutation(values), 17)
    dense = sketches.merge(sketches.of(part) for part in parts)
    for q, got in zip(QS, sketches.quantiles(dense, QS), strict=True):
        want = exact(values, q)
        assert got is not None
        assert abs(got - want) <= 0.01 * want, (q, got, want)


@given(st.lists(st.integers(0, sketches.LATENCY_MS_MAX), min_size=1), st.floats(0, 1))
def test_any_quantile_of_any_values_is_within_one_percent(values: list[int], q: float) -> None:
    (got,) = sketches.quantiles(sketches.merge([sketches.of(values)]), [q])
    want = exact(np.array(values), q)
    assert got is not None
    assert abs(got - want) <= 0.01 * want


def packed(parts: list[bytes]) -> sketches.Packed:
    return sketches.Packed(b"".join(parts), np.array([len(part) for part in parts], ">i2"))


_COUNTS = st.dictionaries(
    st.integers(0, sketches.BINS - 1),
    st.integers(1, 255) | st.integers(1, 2**16) | st.integers(1, 2**32) | st.integers(1, 2**55),
    max_size=8,
)


@given(st.lists(st.lists(_COUNTS, max_size=6), max_size=5))
def test_sketches_read_together_are_the_sketches_read_one_by_one(groups: list[list[dict[int, int]]]) -> None:
    made = [
        [
            sketches.encode(
                np.array(sorted(one), np.int64), np.array([one[b] for b in sorted(one)], np.int64)
            )
            for one in group
        ]
        for group in groups
    ]
    found = sketches.merge_each([packed(group) for group in made])
    assert found.shape == (len(groups), sketches.BINS)
    for row, group in zip(found, made, strict=True):
        assert (row == sketches.merge(group)).all()


@given(st.binary(max_size=40), st.lists(st.integers(-2, 40), max_size=3))
def test_damaged_sketches_are_refused_together_too(data: bytes, lengths: list[int]) -> None:
    group = sketches.Packed(data, np.array(lengths, ">i2"))
    try:
        want = sketches.merge(
            data[at - length : at] for at, length in zip(np.cumsum(lengths), lengths, strict=True)
        )
        if min(lengths, default=0) < 0 or sum(lengths) != len(data):
            raise sketches.SketchError
    except sketches.SketchError:
        with pytest.raises(sketches.SketchError):
            sketches.merge_each([group])
    else:
        assert (sketches.merge_each([group])[0] == want).all()


@given(st.lists(st.lists(st.integers(0, sketches.LATENCY_MS_MAX)), max_size=6))
def test_merging_parts_gives_the_very_bytes_of_the_whole(parts: list[list[int]]) -> None:
    merged = sketches.from_dense(sketches.merge(sketches.of(part) for part in parts))
    assert merged == sketches.of([value for part in parts for value in part])


def test_no_events_have_no_quantiles() -> None:
    assert sketches.quantiles(sketches.merge([]), [0.5, 0.99]) == [None, None]


def test_bins_are_consecutive_and_narrow() -> None:
    low, high = sketches.EDGES[:-1], sketches.EDGES[1:] - 1
    assert (high >= low).all()
    assert high[-1] >= sketches.LATENCY_MS_MAX
    assert ((high[1:] - low[1:]) / (high[1:] + low[1:])).max() <= 0.0098
    assert (sketches.bin_of(low) == np.arange(sketches.BINS)).all()
    assert (sketches.bin_of(high) == np.arange(sketches.BINS)).all()


@given(
    st.dictionaries(st.integers(0, sketches.BINS - 1), st.integers(1, 2**62), max_size=40),
)
def test_bytes_come_back_as_they_were(counts: dict[int, int]) -> None:
    bins = np.array(sorted(counts), np.int64)
    values = np.array([counts[b] for b in sorted(counts)], np.int64)
    got_bins, got_counts = sketches.decode(sketches.encode(bins, values))
    assert got_bins.tolist() == bins.tolist()
    assert got_counts.tolist() == values.tolist()


@pytest.mark.parametrize(
    "damaged", [b"\x01", b"\x11\x00", b"\x33\x00\x00\x01", b"\x11\x00\x00", b"\x11\xff\xff\x01"]
)
def test_damaged_bytes_are_refused(damaged: bytes) -> None:
    with pytest.raises(sketches.SketchError):
        sketches.decode(damaged)


def as_they_are(keys: np.ndarray) -> np.ndarray:
    return np.arange(len(keys))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, sketches.BINS - 1),
            st.sampled_from((1, 200, 70_000, 5_000_000_000)),
        ),
        max_size=300,
    ),
    st.sampled_from((1, 2, 7, 300)),
    st.booleans(),
)
def test_the_compiled_twin_writes_the_same_bytes(
    adds: list[tuple[int, int, int]], batch: int, in_order: bool
) -> None:
    table = Table(GRAINS[0])
    rows: dict[int, np.ndarray] = {}
    for row, bin_, count in adds:
        dense = rows.setdefault(row, np.zeros(sketches.BINS, np.int64))
        dense[bin_] += count
    # Bins come alone or as runs to merge, and in between, so that blocks in the pool grow and move.
    places = table._touch(np.array([(row, 0, 0) for row in rows], np.int32).reshape(-1, 3))
    where = dict(zip(rows, places.tolist(), strict=True))
    for first in range(0, len(adds), batch):
        some = adds[first : first + batch]
        added = np.array(sorted(some) if in_order else some, np.int64)
        table._add_bins(np.array([where[row] for row in added[:, 0].tolist()]), added[:, 1], added[:, 2])
    drained = table.drain(as_they_are)
    assert [drained.sketches[where[row]] for row in rows] == [
        sketches.from_dense(dense) for dense in rows.values()
    ]
    again = Table(GRAINS[0])
    again.adopt(
        TableRows(GRAINS[0], drained.keys, np.zeros((len(rows), len(MEASURES)), np.int64), drained.sketches)
    )
    assert again.dirty_count == 0
    again._touch(drained.keys)
    assert list(again.drain(as_they_are).sketches) == list(drained.sketches)


@given(st.lists(st.integers(0, sketches.LATENCY_MS_MAX), max_size=50))
def test_compiled_bins_are_the_same_bins(latencies: list[int]) -> None:
    values = np.array([*latencies, *sketches.EDGES[:-1], 65_535, 65_536], np.int64)
    bins = np.empty(len(values), np.int64)
    kernels.sketches.bins_of(values, cells._LOW_BINS, sketches.EDGES, bins)
    assert bins.tolist() == sketches.bin_of(values).tolist()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=200))
def test_events_are_counted_by_cell_and_bin_in_order(events: list[tuple[int, int]]) -> None:
    of, bins = (np.array(column, np.int64) for column in zip(*events, strict=True))
    sizes = np.bincount(of, minlength=5)
    out = [np.empty(len(of), np.int64) for _ in range(3)]
    dense = np.zeros(sketches.BINS, np.int64)
    found = kernels.sketches.pair_up(
        of, bins, np.cumsum(sizes) - sizes, np.empty(len(of), np.int64), dense, *out
    )
    pairs = list(zip(*(column[:found].tolist() for column in out), strict=True))
    assert pairs == [(*key, count) for key, count in sorted(Counter(events).items())]
    assert not dense.any()


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_sketches_in_two_halves_and_in_two_threads_are_the_same(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [sketches.of([i, 3 * i, 10_000 + i]) for i in range(count)] + [b""]
    packed = sketches.Packed(b"".join(made), np.array([len(one) for one in made], ">i2"))
    whole = sketches.merge_each([packed])
    assert (sketches.merge_each(packed.halves()).sum(axis=0) == whole[0]).all()
    assert whole.sum() == 3 * count
    groups = [packed, *packed.halves()]
    alone = figures._merged(groups)
    monkeypatch.setattr(figures, "_SKETCHES_IN_ONE_THREAD", 1)
    assert (figures._merged(groups) == alone).all()
