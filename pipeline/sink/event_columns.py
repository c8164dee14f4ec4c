"""Accepted events as an Arrow table, and the table as bytes for a row of the outbox.

This module defines the columns of the archive: their names, types and meaning. Files, hours and SQL are left
to others.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.accepted import AcceptedEvents
from pipeline.core.events import DETAILS, TIER

IntArray = npt.NDArray[Any]

_VALUE: Final = pa.struct(
    [("dimension", pa.string()), ("value", pa.string()), ("counted_value", pa.string())]
)
_TIME: Final = pa.timestamp("us", tz="UTC")
SCHEMA: Final = pa.schema(
    [
        ("offset", pa.int64()),
        ("broker_time", _TIME),
        ("event_id", pa.uuid()),
        ("org_id", pa.uuid()),
        ("model_id", pa.uuid()),
        ("counted_model_id", pa.uuid()),
        ("client_id", pa.string()),
        ("counted_client_id", pa.string()),
        ("occurred_at", _TIME),
        ("latency_ms", pa.int32()),
        ("status", pa.int8()),
        ("error_code", pa.string()),
        ("counted_error_code", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost_microcents", pa.int64()),
        ("late", pa.int8()),
        *((name, pa.int64()) for name in DETAILS[:-1]),
        ("service_tier", pa.int8()),
        ("rate_class", pa.int16()),
        ("provider", pa.string()),
        ("model_name", pa.string()),
        ("dimensions", pa.list_(_VALUE)),
        ("in_quarter", pa.int8()),
    ]
)
"""The columns of the archive, one row for each event.

``status`` is 0 success, 1 error, 2 timeout, 3 throttled. A missing name is ''. The ``counted_`` columns have
the names under which the event was counted: beyond the caps of an hour, that is the overflow's name
(`wire.OVERFLOW_CLIENT`). ``counted_model_id`` is null if the event was counted under its own model; up to
version 0.1.0 that was always so. ``cost_microcents`` is null if there is no estimate. ``late`` says which
buckets the watermark had passed when the event came: 0 none, 1 the minute, 2 also the hour, 3 also the day.
Files of versions up to 0.2.0 end there. Then come the kinds of tokens, the service tier (a place in
`wire.SERVICE_TIERS`), the class under which the event was counted (``analytics.rate_classes``), and the
labels of the model. ``dimensions`` has each dimension that the event was counted by, with the event's own
value and the value under which it was counted. ``in_quarter`` is 1 if it was also counted by the quarter.
"""


def table_of(events: AcceptedEvents) -> pa.Table:
    """The events as a table with the columns of `SCHEMA`."""
    n = len(events)
    columns = (
        pa.array(events.offset, pa.int64()),
        pa.array(events.broker_us.astype("datetime64[us]"), _TIME),
        _uuids(events.event),
        _uuids(events.org),
        _uuids(events.model),
        _uuids(events.counted_model, where=(events.counted_model != events.model).any(axis=1)),
        _texts(events.client, events.clients),
        _texts(events.counted_client, events.clients),
        pa.array(events.occurred_us.astype("datetime64[us]"), _TIME),
        pa.array(events.latency_ms.astype(np.int32)),
        pa.array(events.status.astype(np.int8)),
        _texts(events.error_code, events.error_codes),
        _texts(events.counted_error_code, events.error_codes),
        pa.array(events.input_tokens),
        pa.array(events.output_tokens),
        pa.array(events.cost_microcents, mask=events.details[:, len(DETAILS) - 1] > 0),
        pa.array(events.late.astype(np.int8)),
        *(pa.array(kind) for kind in events.details[:, : len(DETAILS) - 1].T),
        pa.array(events.details[:, TIER].astype(np.int8)),
        pa.array(events.rate_class.astype(np.int16)),
        _texts(events.provider, events.labels),
        _texts(events.model_name, events.labels),
        _dimensions(events),
        pa.array(events.in_quarter.astype(np.int8)),
    )
    assert all(len(column) == n for column in columns)
    return pa.Table.from_arrays(list(columns), schema=SCHEMA)


def encode(table: pa.Table) -> bytes:
    """The table as an Arrow IPC stream, compressed with zstd."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode(data: bytes) -> pa.Table:
    """The table that `encode` made into these bytes."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return complete(reader.read_all())


def complete(table: pa.Table) -> pa.Table:
    """Complete a table of an earlier version to the columns of `SCHEMA`.

    An event that an earlier version has counted has none of the kinds of tokens, the rate class 0 and no
    label. Its ``counted_model_id`` is null, and it was counted by no dimension and by no quarter.
    """
    for field in SCHEMA:
        if field.name in table.column_names:
            continue
        if pa.types.is_integer(field.type):
            missing = pa.array(np.zeros(len(table), field.type.to_pandas_dtype()))
        elif pa.types.is_string(field.type):
            missing = pa.array([""] * len(table), pa.string())
        elif pa.types.is_list(field.type):
            missing = pa.array([[]] * len(table), field.type)
        else:
            nulls = pa.nulls(len(table), field.type.storage_type)
            missing = pa.ExtensionArray.from_storage(field.type, nulls)
        table = table.append_column(field, missing)
    return table.select(SCHEMA.names)


def _uuids(halves: IntArray, where: IntArray | None = None) -> pa.Array:
    """The ids as a column of UUIDs. With ``where`` (bool[n]), an id is null where ``where`` is false."""
    data = np.ascontiguousarray(halves, ">u8")
    valid = None if where is None else pa.py_buffer(np.packbits(where, bitorder="little"))
    stored = pa.Array.from_buffers(pa.binary(16), len(halves), [valid, pa.py_buffer(data)])
    return pa.ExtensionArray.from_storage(pa.uuid(), stored)


def _dimensions(events: AcceptedEvents) -> pa.Array:
    """For each event, its dimensions with their values."""
    n, d = events.value.shape
    names = np.tile(np.arange(d, dtype=np.int32), n)
    values = pa.StructArray.from_arrays(
        [
            _texts(names, list(events.dimensions)),
            _texts(events.value.reshape(-1), events.values),
            _texts(events.counted_value.reshape(-1), events.values),
        ],
        fields=list(_VALUE),
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * d), values)


def _texts(places: IntArray, texts: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(places), pa.array(texts, pa.string())).cast(pa.string())
