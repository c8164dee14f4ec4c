"""The ledger's arrays as rows of tables, and back: columns, times, ids and COPY streams.

This module defines how a bucket, an id or a check looks in SQL. Connections and statements are left to
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from pipeline.core.batch import SeenRows, StoredRows
from pipeline.core.windows import ERRORS, MEASURES, Grain
from pipeline.sink import copy_binary

IntArray = npt.NDArray[Any]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LOW: Final = 2**64 - 1


# --- one value


def time_of(us: int) -> datetime:
    """The time of UTC microseconds."""
    return _EPOCH + timedelta(microseconds=us)


def hour_time(hour: int) -> datetime:
    """The time at which an hour (since 1970) begins."""
    return _EPOCH + timedelta(hours=hour)


def bucket_time(grain: Grain, bucket: int) -> datetime:
    """The time at which a bucket begins."""
    return time_of(bucket * grain.length_us)


def uuid_of(high: int, low: int) -> UUID:
    """The id of two halves of 64 bits."""
    return UUID(int=high << 64 | low)


def halves(ids: Iterable[UUID]) -> IntArray:
    """uint64[n, 2], (high, low), of n ids."""
    return np.array([(i.int >> 64, i.int & _LOW) for i in ids], np.uint64).reshape(-1, 2)


def signed(check: int) -> int:
    """A check of 64 bits as a bigint, which is signed."""
    return check - 2**64 if check >= 2**63 else check


def unsigned(check: int) -> int:
    """A check of 64 bits from its bigint."""
    return check & _LOW


# --- rows that are read


def columns(grain: Grain) -> str:
    """The columns that `stored_rows` expects after org, bucket start, model and rate class."""
    if grain is ERRORS:
        return "count, client_id, status, error_code"
    return ", ".join((*MEASURES, "latency_sketch", *grain.texts[-1:]))


def stored_rows(grain: Grain, rows: Sequence[tuple[Any, ...]]) -> StoredRows:
    """The arrays of rows: org, bucket start (UTC microseconds), model, rate class, and the `columns`."""
    measure_count = 1 if grain is ERRORS else len(MEASURES)
    first, rest = 4, 4 + measure_count
    stored = StoredRows(
        grain=grain,
        org=halves(row[0] for row in rows),
        model=halves(row[2] for row in rows),
        bucket=np.array([row[1] // grain.length_us for row in rows], np.int64),
        rate_class=np.array([row[3] for row in rows], np.int32),
        measures=np.array([row[first:rest] for row in rows], np.int64).reshape(-1, measure_count),
    )
    if grain is ERRORS:
        stored.client = [row[rest] for row in rows]
        stored.status = np.array([row[rest + 1] for row in rows], np.int32)
        stored.error_code = [row[rest + 2] for row in rows]
    else:
        stored.sketches = [row[rest] for row in rows]
        stored.client = [row[rest + 1] for row in rows] if grain.texts else ()
    return stored


# --- rows that are written


def rollup_copy(rows: StoredRows, known: IntArray) -> bytes:
    """A COPY stream for the staging table of ``rows.grain``. ``known`` is bool[n]: which rows to update."""
    grain, m = rows.grain, rows.measures
    start = rows.bucket * grain.length_us - copy_binary.EPOCH_2000_US
    key = [rows.org, start, rows.model, rows.rate_class.astype(np.int16), known.view(np.int8)]
    if grain is ERRORS:
        assert rows.status is not None
        return copy_binary.payload(
            [*key, rows.status.astype(np.int16), m[:, 0]],
            [_utf8(rows.client), _utf8(rows.error_code)],
        )
    dimension = [[grain.dimension.encode()] * len(rows)] if grain.dimension else []
    return copy_binary.payload(
        [
            *key,
            *(m[:, i] for i in range(9)),
            m[:, 9].astype(np.int32),
            m[:, 10].astype(np.int32),
            *(m[:, i] for i in range(11, len(MEASURES))),
        ],
        [*dimension, *([_utf8(rows.client)] if grain.texts else []), rows.sketches],
    )


def seen_copy(seen: SeenRows) -> bytes:
    """A COPY stream for the staging table of orgs, models, clients or values, with first and last event."""
    first, last = (seen.span_us - copy_binary.EPOCH_2000_US).T
    if seen.model is not None and seen.labelled_us is not None:
        labelled = seen.labelled_us - copy_binary.EPOCH_2000_US
        texts = [_utf8(seen.provider), _utf8(seen.model_name)]
        return copy_binary.payload([seen.org, first, last, seen.model, labelled], texts)
    texts = [[seen.dimension.encode()] * len(seen)] if seen.dimension else []
    if len(seen.client):
        texts.append(_utf8(seen.client))
    return copy_binary.payload([seen.org, first, last], texts)


def _utf8(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]
