"""A latency sketch: counts in logarithmic bins, mergeable by addition, within 1 % of any quantile.

It owns the bin edges, the byte format and the quantile rule. It knows nothing of rows, time or
where the bytes are kept. The API imports this module alone, so it needs NumPy and no compiler; the
worker's compiled twin is `pipeline.core.kernels`, held to the same bytes by a test.

Bins (after DDSketch, Masson et al., VLDB 2019, with integer edges so that they are the same on
every machine): a bin that begins at ``lo`` milliseconds ends at ``lo + lo * 197 // 10000``. Below 51 ms
every integer has a bin of its own. A bin answers with the harmonic middle ``2*lo*hi / (lo+hi)``, which
is off by at most ``(hi-lo) / (hi+lo) <= 0.00976``; the rest of the 1 % is left to rounding.

Bytes (little endian; the shortest form is the only form, so equal sketches are equal bytes)::

    u8   widths: low nibble = bytes per gap (1, 2), high nibble = bytes per count (1, 2, 4, 8)
    u16  first bin
    gap[n-1]   distance to the previous bin, each 1 or 2 bytes
    count[n]   events in the bin, each 1, 2, 4 or 8 bytes

An empty sketch is ``b""``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

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
"""float64[BINS]: what a bin answers, in ms."""


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
    gap_width, count_width = sketch[0] & 0xF, sketch[0] >> 4
    if gap_width not in (1, 2) or count_width not in (1, 2, 4, 8) or len(sketch) < 3:
        raise SketchError("unknown widths")
    n, rest = divmod(len(sketch) - 3 + gap_width, gap_width + count_width)
    if rest or n < 1:
        raise SketchError("cut short")
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
    """Counts by bin (int64[BINS]) of all sketches together; feed it to `quantiles` or `from_dense`."""
    dense = np.zeros(BINS, np.int64)
    for sketch in sketches:
        bins, counts = decode(sketch)
        dense[bins] += counts
    return dense


def from_dense(dense: npt.NDArray[np.int64]) -> bytes:
    """Bytes of the sketch with these counts by bin (int64[BINS])."""
    bins = np.flatnonzero(dense)
    return encode(bins, dense[bins])


def quantiles(dense: npt.NDArray[np.int64], qs: Sequence[float]) -> list[float | None]:
    """Latencies in ms at each q of 0..1 by the nearest-rank rule; None each when there is no event.

    The answer is within 1 % of the exact value of the same rank.
    """
    total = int(dense.sum())
    if total == 0:
        return [None] * len(qs)
    ranks = np.maximum(np.ceil(np.asarray(qs) * total - 1e-9), 1)  # 0.07 * 100 is 7.000000000000001
    found = np.searchsorted(np.cumsum(dense), ranks, side="left")
    return [round(float(MIDDLES[i]), 2) for i in found]
