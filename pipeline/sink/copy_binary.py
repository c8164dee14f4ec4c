"""PostgreSQL's binary COPY format, built from columns.

This module knows the byte layout (PostgreSQL documentation, COPY, "Binary Format"). Tables are left to
others. Fixed-width columns become one structured array. Columns of varying length come last. Compiled loops
put the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core.kernels.compile import compiled
from pipeline.core.windows import Blobs

IntArray = npt.NDArray[Any]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
EPOCH_2000_US: Final = 946_684_800_000_000
"""PostgreSQL counts timestamps from 2000-01-01: subtract this from microseconds since 1970."""


def payload(fixed: Sequence[IntArray], varying: Sequence[Sequence[bytes]] = ()) -> bytes:
    """One COPY stream of n rows.

    ``fixed``: columns int8[n] (booleans), int16[n], int32[n], int64[n] (integers and timestamps) or
    uint64[n, 2] (uuids).
    ``varying``: columns of n byte strings (text in UTF-8, bytea), which follow the fixed ones.
    """
    n = len(fixed[0])
    layout: list[tuple[Any, ...]] = [("fields", ">i2")]
    for i, column in enumerate(fixed):
        layout.append((f"width{i}", ">i4"))
        if column.ndim == 2:
            layout.append((f"value{i}", ">u8", 2))
        else:
            layout.append((f"value{i}", f">i{column.dtype.itemsize}"))
    rows = np.empty(n, layout)
    rows["fields"] = len(fixed) + len(varying)
    for i, column in enumerate(fixed):
        rows[f"width{i}"] = column.dtype.itemsize * (column.shape[1] if column.ndim == 2 else 1)
        rows[f"value{i}"] = column
    texts = [_as_blobs(values) for values in varying]
    row_bytes = np.full(n, rows.dtype.itemsize, np.int64)
    for text in texts:
        row_bytes += 4 + np.diff(text.edges)
    ends = len(HEADER) + np.cumsum(row_bytes)
    out = np.empty((int(ends[-1]) if n else len(HEADER)) + len(TRAILER), np.uint8)
    out[: len(HEADER)] = np.frombuffer(HEADER, np.uint8)
    out[-len(TRAILER) :] = np.frombuffer(TRAILER, np.uint8)
    places = ends - row_bytes
    _place_fixed(out, places, rows.view(np.uint8).reshape(n, rows.dtype.itemsize))
    for text in texts:
        _place_varying(out, places, text.text, text.edges)
    return out.tobytes()


def warm_up() -> None:
    """Compile the loops, or load them, so that no flush waits for the compiler."""
    payload([np.zeros(1, np.int64)], [[b"x"]])


def _as_blobs(values: Sequence[bytes]) -> Blobs:
    if isinstance(values, Blobs):
        return values
    edges = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, count=len(values)), out=edges[1:])
    return Blobs(np.frombuffer(bytearray(b"".join(values)), np.uint8), edges)


@compiled
def _place_fixed(out: Any, places: Any, rows: Any) -> None:
    """Copy ``rows`` uint8[n, width] to ``places`` int64[n] in ``out``, and move each place behind its row."""
    for i in range(len(places)):
        at = places[i]
        for j in range(rows.shape[1]):
            out[at + j] = rows[i, j]
        places[i] = at + rows.shape[1]


@compiled
def _place_varying(out: Any, places: Any, text: Any, edges: Any) -> None:
    """Copy each string ``text[edges[i] : edges[i + 1]]`` after its length, and move each place behind it."""
    for i in range(len(places)):
        at, first = places[i], edges[i]
        length = edges[i + 1] - first
        for j in range(4):
            out[at + j] = (length >> (8 * (3 - j))) & 0xFF
        at += 4
        for j in range(length):
            out[at + j] = text[first + j]
        places[i] = at + length
