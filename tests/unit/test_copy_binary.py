"""PostgreSQL's binary COPY format against a writer that follows its documentation, a field at a time."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.bodies import IntArray
from pipeline.core.windows import Blobs
from pipeline.sink import copy_binary

ROW = st.tuples(
    st.integers(-(2**15), 2**15 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=400),
    st.binary(max_size=20),
)


def plainly(rows: list[tuple[int, int, int, bytes, bytes, bytes]], *, varying: int) -> bytes:
    text = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
    for small, middle, large, uuid, *strings in rows:
        fields = [struct.pack(">h", small), struct.pack(">i", middle), struct.pack(">q", large), uuid]
        fields += strings[:varying]
        text += struct.pack(">h", len(fields))
        text += b"".join(struct.pack(">i", len(field)) + field for field in fields)
    return text + struct.pack(">h", -1)


@given(st.lists(ROW, max_size=20), st.integers(0, 2), st.booleans())
def test_rows_are_written_as_the_format_says(
    rows: list[tuple[int, int, int, bytes, bytes, bytes]], varying: int, as_blobs: bool
) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * 6
    fixed: list[IntArray] = [
        np.array(columns[0], np.int16),
        np.array(columns[1], np.int32),
        np.array(columns[2], np.int64),
        np.frombuffer(b"".join(columns[3]), ">u8").astype(np.uint64).reshape(-1, 2),
    ]
    strings: list[Sequence[bytes]] = [list(column) for column in columns[4 : 4 + varying]]
    if as_blobs:
        strings = [
            Blobs(
                np.frombuffer(b"".join(column) or b"\0", np.uint8).copy(),
                np.cumsum([0, *map(len, column)]),
            )
            for column in strings
        ]
    assert copy_binary.payload(fixed, strings) == plainly(rows, varying=varying)
