"""PostgreSQL's binary COPY format, built from columns.

It owns the byte layout (PostgreSQL documentation, COPY, "Binary Format") and nothing about tables.
Fixed-width columns become one structured array, so a row costs a few slices; columns of varying length
come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[Any]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
EPOCH_2000_US: Final = 946_684_800_000_000
"""PostgreSQL counts timestamps from 2000-01-01: subtract this from microseconds since 1970."""


def payload(fixed: Sequence[IntArray], varying: Sequence[Sequence[bytes]] = ()) -> bytes:
    """One COPY stream of n rows.

    ``fixed``: columns int16[n], int32[n], int64[n] (integers and timestamps) or uint64[n, 2] (uuids).
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
    heads = rows.tobytes()
    if not varying:
        return b"".join((HEADER, heads, TRAILER))
    width = rows.dtype.itemsize
    pieces: list[Sequence[bytes]] = [[heads[at : at + width] for at in range(0, n * width, width)]]
    for values in varying:
        lengths = np.array([len(value) for value in values], ">i4").tobytes()
        pieces.append([lengths[at : at + 4] for at in range(0, 4 * n, 4)])
        pieces.append(values)
    body: list[bytes] = [HEADER]
    for row in zip(*pieces, strict=True):
        body.extend(row)
    body.append(TRAILER)
    return b"".join(body)
