"""Adding archived events up again, into the rows that the rollups should have.

This is a second opinion: it uses Arrow's group-by, not the pipeline's kernels and tables. The two share only
the format of the sketches. `reduce` turns the events of each file into partial sums at once, so memory grows
with the rows and not with the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import sketches
from pipeline.core.events import DETAILS
from pipeline.core.watermark import HOUR_US, MINUTE_US
from pipeline.core.windows import BREAKDOWNS, LATE_MINUTE, MEASURES, USAGE_QUARTER, Grain

Key = tuple[Any, ...]
"""(org, bucket start in microseconds, model, rate class[, client[, status, error code]]), ids as 16 bytes.

In the rows of dimensions, the dimension and the value are in place of the client.
"""
Row = tuple[Any, ...]
"""The measures in the order of `windows.MEASURES`, and the sketch; a row of failures has only the count."""
Rows = dict[Key, Row]

_SUMS: Final = MEASURES[:9]
_FIGURES: Final = (*_SUMS, *DETAILS)
_LATE: Final = ("late_minute", "late_hour", "late_day")
_COLUMNS: Final = {"client_id": "client", "dimension": "dimension", "value": "client"}
"""The columns of our sums for the texts in the key of a grain."""
_QUARTER: Final = "15 min"
_CELL: Final = ["org", "minute", "model", "rate", "dimension", "client"]
_FAILURE: Final = ["org", "model", "rate", "client", "status", "code"]


@dataclass(frozen=True, slots=True)
class Partial:
    """The sums of one hour's events: by minute, model and client; also by sketch bin; failures by code.

    The events are summed up once more for each of their dimensions, with the value in place of the client.
    The dimension is '' for the sums by client. Events that were counted by the quarter, too, are summed up
    once more under the dimension `_QUARTER`, which no setting can name.
    """

    cells: pa.Table
    bins: pa.Table
    failures: pa.Table


def reduce(events: pa.Table, *, org: bytes | None = None) -> dict[int, Partial]:
    """The sums of events, by hour (since 1970). ``events`` has the columns of `event_columns.SCHEMA`."""
    flat = _with_quarters(events, _with_dimensions(events, _flat(events)))
    if org is not None:
        flat = flat.filter(pc.equal(flat.column("org"), pa.scalar(org, pa.binary(16))))
    hours = flat.column("minute").to_numpy() // (HOUR_US // MINUTE_US)
    found = {}
    for hour in np.unique(hours).tolist():
        mine = flat.filter(pa.array(hours == hour))
        once = mine.filter(pc.equal(mine.column("dimension"), ""))
        failed = once.filter(pc.greater(once.column("status"), 0))
        found[hour] = Partial(
            cells=_added_up(mine, _CELL),
            bins=_counted(mine, [*_CELL, "bin"]),
            failures=_counted(failed, _FAILURE),
        )
    return found


def merge(partials: Sequence[Partial]) -> Partial:
    """Add several partial sums up to one."""
    cells, bins, failures = (
        pa.concat_tables([getattr(partial, name) for partial in partials])
        for name in ("cells", "bins", "failures")
    )
    return Partial(
        cells=_added_up(cells, _CELL),
        bins=_counted(bins, [*_CELL, "bin"]),
        failures=_counted(failures, _FAILURE),
    )


def rows_of(partials: Sequence[Partial], grain: Grain) -> Rows:
    """The rows of a grain, from the sums of some hours."""
    if not partials:
        return {}
    cells = _in_buckets(pa.concat_tables([partial.cells for partial in partials]), grain)
    bins = _in_buckets(pa.concat_tables([partial.bins for partial in partials]), grain)
    keys = ["org", "bucket", "model", "rate", *(_COLUMNS[text] for text in grain.texts)]
    order = [(key, "ascending") for key in keys]
    sums = _added_up(cells, keys).sort_by(order)
    pairs = _counted(bins, [*keys, "bin"]).sort_by([*order, ("bin", "ascending")])
    widths = pairs.group_by(keys).aggregate([("bin", "count")]).sort_by(order)
    edges = np.concatenate(([0], np.cumsum(widths.column("bin_count").to_numpy())))
    bin_numbers, counts = pairs.column("bin").to_numpy(), pairs.column("count").to_numpy()
    encoded = [
        sketches.encode(bin_numbers[first:end], counts[first:end])
        for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    assert grain.late is not None
    measures = (*_SUMS, "latency_max_ms", _LATE[grain.late - LATE_MINUTE], *DETAILS)
    figures = [sums.column(name).to_pylist() for name in measures]
    return dict(zip(_keys(sums, keys), zip(*figures, encoded, strict=True), strict=True))


def failures_of(partials: Sequence[Partial], hour: int) -> Rows:
    """The rows of ``usage_errors_hour``, from the sums of one hour."""
    if not partials:
        return {}
    table = _counted(pa.concat_tables([partial.failures for partial in partials]), _FAILURE)
    at = hour * HOUR_US
    return {
        (org, at, *rest): (count,)
        for (org, *rest), count in zip(_keys(table, _FAILURE), table.column("count").to_pylist(), strict=True)
    }


def _flat(events: pa.Table) -> pa.Table:
    """The events with a column for each figure that can be summed."""
    status = events.column("status").to_numpy()
    late = events.column("late").to_numpy()
    latency = events.column("latency_ms").to_numpy().astype(np.int64)
    at = events.column("occurred_at").cast(pa.int64()).to_numpy()
    return pa.table(
        {
            "org": _bytes(events, "org_id"),
            "minute": at // MINUTE_US,
            "model": pc.coalesce(_bytes(events, "counted_model_id"), _bytes(events, "model_id")),
            "rate": events.column("rate_class"),
            "dimension": pa.array([""] * len(at), pa.string()),
            "client": events.column("counted_client_id"),
            "status": events.column("status"),
            "code": events.column("counted_error_code"),
            "bin": sketches.bin_of(latency),
            "count": np.ones(len(at), np.int64),
            "invocations": np.ones(len(at), np.int64),
            **{name: (status == i).astype(np.int64) for i, name in enumerate(_SUMS[1:5])},
            **{name: pc.fill_null(events.column(name), 0) for name in (*_SUMS[5:8], *DETAILS[:-1])},
            DETAILS[-1]: events.column("cost_microcents").is_null().cast(pa.int64()),
            "latency_sum_ms": latency,
            "latency_max_ms": latency,
            **{name: (late > i).astype(np.int64) for i, name in enumerate(_LATE)},
        }
    )


def _with_dimensions(events: pa.Table, flat: pa.Table) -> pa.Table:
    """The flat events, and each of them once more for each of its dimensions."""
    column = events.column("dimensions")
    counted = pa.concat_arrays([pa.array([], column.type), *column.chunks])
    values = pc.list_flatten(counted)
    once_more = flat.take(pc.list_parent_indices(counted))
    for name, field in (("dimension", "dimension"), ("client", "counted_value")):
        place = once_more.column_names.index(name)
        once_more = once_more.set_column(place, name, pc.struct_field(values, field))
    return pa.concat_tables([flat, once_more])


def _with_quarters(events: pa.Table, flat: pa.Table) -> pa.Table:
    """The flat events, and those that were counted by the quarter once more."""
    counted = pa.array(np.flatnonzero(events.column("in_quarter").to_numpy()))
    once_more = flat.take(counted)  # the events themselves come first in ``flat``
    for name, text in (("dimension", _QUARTER), ("client", "")):
        place = once_more.column_names.index(name)
        once_more = once_more.set_column(place, name, pa.array([text] * len(counted), pa.string()))
    return pa.concat_tables([flat, once_more])


def _bytes(events: pa.Table, name: str) -> pa.ChunkedArray:
    chunks = [chunk.storage for chunk in events.column(name).chunks]
    return pa.chunked_array(chunks, pa.binary(16))


def _added_up(table: pa.Table, keys: list[str]) -> pa.Table:
    sums = (*_FIGURES, *_LATE)
    wanted = [*((name, "sum") for name in sums), ("latency_max_ms", "max")]
    added = table.group_by(keys).aggregate(wanted)
    names = {f"{name}_{how}": name for name, how in wanted}
    return added.rename_columns([names.get(name, name) for name in added.column_names]).select(
        [*keys, *sums, "latency_max_ms"]
    )


def _counted(table: pa.Table, keys: list[str]) -> pa.Table:
    counted = table.group_by(keys).aggregate([("count", "sum")])
    return counted.select([*keys, "count_sum"]).rename_columns([*keys, "count"])


def _in_buckets(table: pa.Table, grain: Grain) -> pa.Table:
    """The sums that belong to a grain, with the bucket of each."""
    table = table.filter(_counted_in(table.column("dimension"), grain))
    minutes = table.column("minute").to_numpy()
    starts = minutes * MINUTE_US // grain.length_us * grain.length_us
    return table.append_column("bucket", pa.array(starts, pa.int64()))


def _counted_in(dimension: pa.ChunkedArray, grain: Grain) -> pa.ChunkedArray:
    """Mask of the sums that belong to a grain, by their dimension."""
    if grain in BREAKDOWNS:
        return pc.invert(pc.is_in(dimension, pa.array(["", _QUARTER])))
    return pc.equal(dimension, _QUARTER if grain is USAGE_QUARTER else "")


def _keys(table: pa.Table, names: list[str]) -> list[Key]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
