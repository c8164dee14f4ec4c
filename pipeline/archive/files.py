"""The files of the archive: how events become Parquet, one file for each hour of event time, and back.

A cut is some consecutive outbox rows of a partition. The same cut always becomes the same names and the same
bytes, so an upload can be repeated after any crash.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.archive.store import Missing, Store
from pipeline.core.watermark import HOUR_US
from pipeline.sink import event_columns

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Damaged(Exception):
    """A listed file is missing, or differs from the manifest. The remedy: restore the file from a backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The accepted events [accepted_from, accepted_to) of a partition, encoded as in their outbox rows."""

    partition: int
    accepted_from: int
    accepted_to: int
    parts: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file as the manifest lists it, with its bytes."""

    hour: datetime
    path: str
    from_offset: int
    to_offset: int
    row_count: int
    byte_count: int
    sha256: bytes
    data: bytes

    def listing(self) -> dict[str, Any]:
        """The file's line in the manifest."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "data"}

    def without_data(self) -> File:
        return replace(self, data=b"")


def files_of(cut: Cut) -> Iterator[File]:
    """The files of a cut, one at a time, in the order of their hours.

    Raises ValueError if the outbox rows do not hold the events of the cut.
    """
    table = pa.concat_tables([event_columns.decode(part) for part in cut.parts])
    if len(table) != cut.accepted_to - cut.accepted_from:
        raise ValueError(f"{len(table)} events are not those from {cut.accepted_from} to {cut.accepted_to}")
    hours = occurred_us(table) // HOUR_US
    for number in np.unique(hours).tolist():
        mine = table.filter(pa.array(hours == number))
        hour = EPOCH + timedelta(hours=number)
        sink = io.BytesIO()
        pq.write_table(mine, sink, compression="zstd")
        data = sink.getvalue()
        offsets = pc.min_max(
            mine.column("offset")
        ).as_py()  # the smallest need not come first: a replayed event has an old offset
        name = f"p{cut.partition}-{cut.accepted_from}-{cut.accepted_to}.parquet"
        yield File(
            hour=hour,
            path=f"day={hour:%Y-%m-%d}/hour={hour:%H}/{name}",
            from_offset=offsets["min"],
            to_offset=offsets["max"] + 1,
            row_count=len(mine),
            byte_count=len(data),
            sha256=hashlib.sha256(data).digest(),
            data=data,
        )


def read(store: Store, path: str, *, row_count: int, sha256: bytes) -> pa.Table:
    """Read the events of a listed file, after comparing the file with the manifest.

    Raises:
        Damaged: the file is missing, or its digest or its number of events differs from the manifest.
        StoreError: the store cannot be used now.
    """
    try:
        data = store.read(path)
    except Missing as error:
        raise Damaged(f"{path}: listed in the manifest, and missing in the archive") from error
    if hashlib.sha256(data).digest() != sha256:
        raise Damaged(f"{path}: its sha256 is not the manifest's")
    table = event_columns.complete(pq.read_table(io.BytesIO(data)))
    if len(table) != row_count:
        raise Damaged(f"{path}: {len(table)} events, and the manifest says {row_count}")
    return table


def occurred_us(table: pa.Table) -> Any:
    """Event times of a table, int64[n]."""
    return table.column("occurred_at").cast(pa.int64()).to_numpy()
