"""Latency sketches: counts in logarithmic bins, which can be added up and give any quantile within 1 %.

This module owns the bin edges, the byte format and the quantile rule. It knows nothing of rows or time, or of
the place where the bytes are kept. The API imports this module, which needs NumPy and no compiler. The worker
has a compiled twin, `pipeline.core.kernels.sketches`, and a test sees that both give the same bytes.

Bins are made after DDSketch (Masson et al., VLDB 2019). Their edges are integers, so that the bins are the
same on every machine. A bin that begins at ``lo`` milliseconds ends at ``lo + lo * 197 // 10000``. Below 51
ms every integer has a bin of its own. A quantile that falls into a bin is answered with the harmonic middle
of the bin, ``2*lo*hi / (lo+hi)``. The middle is off by at most ``(hi-lo) / (hi+lo) <= 0.00976``, and the rest
of the 1 % is left to rounding. For example, the bin that begins at 997 ms ends at 1016 ms. Its answer is
1006.41 ms, less than 1 % off for each latency of the bin.

Bytes (little endian). A sketch has only one form, the shortest, so equal sketches are equal bytes::

    u8   widths: low nibble = bytes per gap (1, 2), high nibble = bytes per count (1, 2, 4, 8)
    u16  first bin
    gap[n-1]   distance to the previous bin, each 1 or 2 bytes
    count[n]   events in the bin, each 1, 2, 4 or 8 bytes

An empty sketch is ``b""``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LATENCY_MS_MAX: Final = 2**31 - 1


def _bin_edges() -> npt.NDArray[np.int64]:
    edges = [0]
    while edges[-1] <= LATENCY_MS_MAX:
        lo = edges[-1]
        edges.append(lo + lo * 197 // 10_000 + 1)
    return np.array(edges, dtype=np.int64)


EDGES: Final = _bin_edges()
"""int64[BINS + 1]: bin ``i`` holds the integers from ``EDGES[i]`` to ``EDGES[i + 1] - 1``, in ms."""

BINS: Final = len(EDGES) - 1

_LOW = EDGES[:-1].astype(np.float64)
_HIGH = (EDGES[1:] - 1).astype(np.float64)
MIDDLES: Final = np.where(_LOW == 0, 0.0, 2 * _LOW * _HIGH / np.maximum(_LOW + _HIGH, 1))
"""float64[BINS]: the harmonic middle of each bin, in ms, with which the bin answers."""


class SketchError(ValueError):
    """The bytes are not a sketch of this format."""


def bin_of(latency_ms: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Bins of latencies in ms (integers from 0 to `LATENCY_MS_MAX`), same shape."""
    return np.searchsorted(EDGES, np.asarray(latency_ms, dtype=np.int64), side="right") - 1


def encode(bins: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> bytes:
    """Bytes of a sketch from ascending ``bins`` (int64[n]) and their positive ``counts`` (int64[n])."""
    if len(bins) == 0:
        return b""
    gaps = np.diff(bins)
    gap_width = 2 if len(gaps) and int(gaps.max()) > 0xFF else 1
    top = int(counts.max())
    count_width = 1 if top <= 0xFF else 2 if top <= 0xFFFF else 4 if top <= 0xFFFFFFFF else 8
    return b"".join(
        (
            bytes((gap_width | count_width << 4,)),
            int(bins[0]).to_bytes(2, "little"),
            gaps.astype(f"<u{gap_width}").tobytes(),
            counts.astype(f"<u{count_width}").tobytes(),
        )
    )


def decode(sketch: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ascending bins and their counts (int64[n] each) of a sketch's bytes.

    Raises:
        SketchError: the bytes are damaged or of another format.
    """
    if not sketch:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    gap_width, count_width, n = _shape(sketch[0], len(sketch))
    counts_at = 3 + (n - 1) * gap_width
    bins = np.empty(n, np.int64)
    bins[0] = int.from_bytes(sketch[1:3], "little")
    bins[1:] = np.frombuffer(sketch, f"<u{gap_width}", count=n - 1, offset=3)
    np.cumsum(bins, out=bins)
    if bins[-1] >= BINS:
        raise SketchError("bin out of range")
    return bins, np.frombuffer(sketch, f"<u{count_width}", count=n, offset=counts_at).astype(np.int64)


def of(latencies_ms: npt.ArrayLike) -> bytes:
    """The sketch of some latencies in ms."""
    bins, counts = np.unique(bin_of(latencies_ms), return_counts=True)
    return encode(bins, counts.astype(np.int64))


def merge(sketches: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """Add up sketches: counts by bin (int64[BINS]), for `quantiles` or `from_dense`."""
    dense = np.zeros(BINS, np.int64)
    for sketch in sketches:
        bins, counts = decode(sketch)
        dense[bins] += counts
    return dense


@dataclass(frozen=True, slots=True)
class Packed:
    """Many sketches, with their bytes end to end and the length of each: a database sends this fastest."""

    data: bytes
    lengths: npt.NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.lengths)

    def halves(self) -> tuple[Packed, Packed]:
        """The same sketches, divided into two halves."""
        half = len(self) // 2
        edge = int(self.lengths[:half].sum(dtype=np.int64))
        return Packed(self.data[:edge], self.lengths[:half]), Packed(self.data[edge:], self.lengths[half:])


def merge_each(groups: Sequence[Packed]) -> npt.NDArray[np.int64]:
    """Add up the sketches of each group: counts by bin, int64[len(groups), BINS].

    Sketches of one form and length are read together. That takes a tenth of the time of reading each alone.

    Raises:
        SketchError: the bytes are damaged or of another format.
    """
    dense = np.zeros((len(groups), BINS), np.int64)
    data = np.frombuffer(b"".join(group.data for group in groups), np.uint8)
    lengths = np.concatenate([np.empty(0, np.int64), *(group.lengths for group in groups)]).astype(np.int64)
    if np.any(lengths < 0) or int(lengths.sum()) != len(data):
        raise SketchError("lengths that are not those of the bytes")
    rows = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    starts = np.cumsum(lengths) - lengths
    there = np.flatnonzero(lengths)
    forms = lengths[there] << 8 | data[starts[there]]
    order = np.argsort(forms, kind="stable")
    ends = np.flatnonzero(np.diff(forms[order])) + 1
    for alike in np.split(there[order], ends):
        for begin in range(0, len(alike), _AT_ONCE):
            some = alike[begin : begin + _AT_ONCE]
            _add(dense, rows[some], data, starts[some], int(lengths[some[0]]))
    return dense


_AT_ONCE: Final = 1024


def _add(
    dense: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    length: int,
) -> None:
    """Add the sketches of one form and ``length`` at ``starts`` to ``rows`` (int64[n] both) of ``dense``."""
    gap_width, count_width, n = _shape(int(data[starts[0]]), length)
    counts_at = length - n * count_width
    found = np.lib.stride_tricks.sliding_window_view(data, length)[starts]  # uint8[len(starts), length]
    bins = np.empty((len(starts), n), np.int64)
    bins[:, 0] = found[:, 1] | found[:, 2].astype(np.int64) << 8
    bins[:, 1:] = np.ascontiguousarray(found[:, 3:counts_at]).view(f"<u{gap_width}")
    np.cumsum(bins, axis=1, out=bins)
    if int(bins[:, -1].max()) >= BINS:
        raise SketchError("bin out of range")
    counts = np.ascontiguousarray(found[:, counts_at:]).view(f"<u{count_width}").reshape(-1)
    first, last = int(rows.min()), int(rows.max())
    bins += (rows - first)[:, None] * BINS
    if count_width == 8:  # a float has no room for their sum
        np.add.at(dense[first:].reshape(-1), bins.reshape(-1), counts.astype(np.int64))
    else:
        summed = np.bincount(bins.reshape(-1), weights=counts, minlength=(last + 1 - first) * BINS)
        dense[first : last + 1] += summed.astype(np.int64).reshape(-1, BINS)


def _shape(form: int, length: int) -> tuple[int, int, int]:
    """(bytes of a gap, bytes of a count, bins) of a sketch with first byte ``form`` and ``length`` bytes."""
    gap_width, count_width = form & 0xF, form >> 4
    if gap_width not in (1, 2) or count_width not in (1, 2, 4, 8) or length < 3:
        raise SketchError("unknown widths")
    n, rest = divmod(length - 3 + gap_width, gap_width + count_width)
    if rest or n < 1:
        raise SketchError("cut short")
    return gap_width, count_width, n


def from_dense(dense: npt.NDArray[np.int64]) -> bytes:
    """Bytes of the sketch with these counts by bin (int64[BINS])."""
    bins = np.flatnonzero(dense)
    return encode(bins, dense[bins])


def quantiles(dense: npt.NDArray[np.int64], qs: Sequence[float]) -> list[float | None]:
    """The latency in ms at each q of 0..1, by the nearest-rank rule. All are None when there is no event.

    The answer is within 1 % of the exact value of the same rank.
    """
    total = int(dense.sum())
    if total == 0:
        return [None] * len(qs)
    ranks = np.maximum(np.ceil(np.asarray(qs) * total - 1e-9), 1)  # 0.07 * 100 is 7.000000000000001
    found = np.searchsorted(np.cumsum(dense), ranks, side="left")
    return [round(float(MIDDLES[i]), 2) for i in found]
