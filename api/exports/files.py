"""One snapshot becomes one file: rows stream from the database through the format into the store.

PostgreSQL makes the sums, the exact money and the cells of CSV (COPY), so a row costs this process almost
nothing. Memory holds one block, never the file. Everything here blocks, and runs in the runner's thread.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg.types.json import Jsonb

from api.errors import ApiError
from api.exports import focus
from api.exports.cells import ISO, MODEL_NAME, PROVIDER, cell, dollars
from api.exports.jobs import SQL, Job
from api.reading import prices, rollups, seen
from api.reading.prices import Book

_BLOCK_BYTES: Final = 1 << 20
_ROWS_PER_GROUP: Final = 20_000
_COST: Final = dollars("(amount * 0.00000000000000000001)")
# A cost that nobody knows is no amount, and not 0.
_AMOUNT: Final = f"CASE WHEN unpriced < invocations THEN {_COST} END"
_ESTIMATE: Final = (
    "CASE WHEN unestimated < invocations THEN (cost_microcents * 0.00000001)::numeric(40, 8) END"
)
_BASIS: Final = """
    CASE WHEN booked > 0 AND booked + unpriced < invocations THEN 'mixed' WHEN booked > 0 THEN 'book'
        WHEN unpriced < invocations THEN 'estimate' ELSE 'none' END
"""

_CSV: Final = f"""
SELECT to_char(bucket AT TIME ZONE 'UTC', {ISO}) AS "bucketStart", model_id AS "modelId",
    {cell("client_id")} AS "clientId", invocations, input_tokens AS "inputTokens",
    output_tokens AS "outputTokens", {_AMOUNT} AS "costAmount", 'USD' AS "costCurrency",
    cache_read_tokens AS "cacheReadTokens", cache_write_tokens AS "cacheWriteTokens",
    cache_write_1h_tokens AS "cacheWrite1hTokens", reasoning_tokens AS "reasoningTokens",
    unpriced AS "unpricedInvocations", {_BASIS} AS "costBasis", {_ESTIMATE} AS "estimateAmount",
    {cell(PROVIDER)} AS "provider", {cell(MODEL_NAME)} AS "modelName",
    %(export_version)s::bigint AS "priceVersion"
FROM ({{figures}}) AS figures
"""

_PARQUET: Final = f"""
SELECT bucket, model_id::text, NULLIF(client_id, ''), invocations::bigint, input_tokens::bigint,
    output_tokens::bigint, ({_AMOUNT})::numeric(38, 20), cache_read_tokens::bigint,
    cache_write_tokens::bigint, cache_write_1h_tokens::bigint, reasoning_tokens::bigint, unpriced::bigint,
    {_BASIS}, ({_ESTIMATE})::numeric(38, 8), {PROVIDER}, {MODEL_NAME}, %(export_version)s::bigint
FROM ({{figures}}) AS figures
"""

SCHEMA: Final = pa.schema(
    [
        pa.field("bucketStart", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("modelId", pa.string(), nullable=False),
        pa.field("clientId", pa.string()),
        pa.field("invocations", pa.int64(), nullable=False),
        pa.field("inputTokens", pa.int64(), nullable=False),
        pa.field("outputTokens", pa.int64(), nullable=False),
        pa.field("costAmount", pa.decimal128(38, 20)),
        pa.field("cacheReadTokens", pa.int64(), nullable=False),
        pa.field("cacheWriteTokens", pa.int64(), nullable=False),
        pa.field("cacheWrite1hTokens", pa.int64(), nullable=False),
        pa.field("reasoningTokens", pa.int64(), nullable=False),
        pa.field("unpricedInvocations", pa.int64(), nullable=False),
        pa.field("costBasis", pa.string(), nullable=False),
        pa.field("estimateAmount", pa.decimal128(38, 8)),
        pa.field("provider", pa.string()),
        pa.field("modelName", pa.string()),
        pa.field("priceVersion", pa.int64(), nullable=False),
    ]
)
"""Of a parquet file. Amounts are in US dollars, and null if nobody knows them. Texts are as they are, because
no spreadsheet runs them."""
_BEYOND_INT64: Final = (
    "A sum of tokens or invocations is beyond 2^63-1, and the columns of a Parquet file hold no more."
    " Order csv, which has no such limit, or a finer granularity."
)


class UnwritableError(ApiError):
    """The format cannot hold a figure, so another attempt fails too: the owner orders another format.

    The text is for the job's owner.
    """


class Sink(Protocol):
    def write(self, block: bytes, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written. ``checksum`` is SHA-256 in hexadecimal, ``watermark`` that of the snapshot, and
    ``price_version`` the version of the book that the file is priced at."""

    rows: int
    bytes: int
    checksum: str
    watermark: datetime | None
    price_version: int


def write(
    connection: psycopg.Connection[Any], job: Job, sink: Sink, *, provider: str, check: Callable[[], None]
) -> Written:
    """Stream the job's figures into the sink, all from one snapshot.

    ``check`` is called for each block, and raises to stop.

    Raises:
        UnwritableError: the format cannot hold a figure.
        psycopg.Error: the database failed.
        Exception: whatever the sink or ``check`` raises.
    """
    out = _Counting(sink, check)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = connection.execute(SQL["watermark"], {"org_id": job.org_id}).fetchone()
        assert row is not None
        book = _book(connection, job)
        shared = {"export_labels": _labels(connection, job), "export_version": book.version}
        connection.execute(prices.SQL["no_loops"])
        if job.is_focus:
            text, values = focus.statement(job, book)
            values |= shared | focus.values_of(job, provider)
            rows = _write_csv(connection, text, values, out)
        else:
            figures, values = rollups.figures(job.question(), book)
            rows = _write_figures(connection, job, figures, values | shared, out)
    out.flush()
    return Written(
        rows=rows, bytes=out.bytes, checksum=out.checksum, watermark=row[0], price_version=book.version
    )


def _book(connection: psycopg.Connection[Any], job: Job) -> Book:
    question = job.question()
    values = prices.values_of(question.pricing, [job.org_id], question.span)
    row = connection.execute(prices.SQL["book"], values).fetchone()
    assert row is not None
    return prices.book_of(row, question.pricing, [job.org_id])


def _labels(connection: psycopg.Connection[Any], job: Job) -> Jsonb:
    """Provider and name of each model of the org, by its id."""
    values = {"org_id": job.org_id, "labelled": None, "labels_max": None}
    found = connection.execute(seen.SQL["labels"], values)
    return Jsonb({model: [provider or None, name or None] for model, provider, name in found})


def _write_figures(
    connection: psycopg.Connection[Any], job: Job, figures: str, values: Mapping[str, Any], out: _Counting
) -> int:
    """Write the file of any format but FOCUS."""
    if job.format != "parquet":
        query = _CSV.format(figures=figures)
        return _write_csv(connection, query, values, out, bom=job.format == "csv-excel")
    try:
        return _write_parquet(connection, _PARQUET.format(figures=figures), values, out)
    except psycopg.errors.NumericValueOutOfRange as error:
        raise UnwritableError(_BEYOND_INT64) from error


def _write_csv(
    connection: psycopg.Connection[Any],
    query: str,
    values: Mapping[str, Any],
    out: _Counting,
    *,
    bom: bool = False,
) -> int:
    cursor = psycopg.ClientCursor(connection)
    bound = cursor.mogrify(query, values)
    block = bytearray(codecs.BOM_UTF8 if bom else b"")
    with cursor.copy(f"COPY ({bound}) TO STDOUT (FORMAT csv, HEADER)") as copy:
        for line in copy:
            block += line
            if len(block) >= _BLOCK_BYTES:
                out.write(bytes(block))
                block.clear()
    out.write(bytes(block))
    return cursor.rowcount


def _write_parquet(
    connection: psycopg.Connection[Any], query: str, values: Mapping[str, Any], out: _Counting
) -> int:
    rows = 0
    with (
        connection.cursor("export", binary=True) as cursor,
        pq.ParquetWriter(pa.PythonFile(out, "w"), SCHEMA, compression="zstd") as writer,
    ):
        cursor.itersize = _ROWS_PER_GROUP
        cursor.execute(query, values)
        while found := cursor.fetchmany(_ROWS_PER_GROUP):
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*found, strict=True), SCHEMA, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            rows += len(found)
    return rows


class _Counting:
    """Passes blocks on to the sink, and hashes and counts them. A file as far as pyarrow needs one."""

    closed = False

    def __init__(self, sink: Sink, check: Callable[[], None]) -> None:
        self._sink = sink
        self._check = check
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    @property
    def checksum(self) -> str:
        return self._sha256.hexdigest()

    def write(self, block: bytes) -> int:
        self._check()
        block = bytes(block)
        self._sha256.update(block)
        self._sink.write(block)
        self.bytes += len(block)
        return len(block)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None: ...

    def close(self) -> None: ...
