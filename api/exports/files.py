"""One snapshot becomes one file: rows stream from the database through the format into the store.

PostgreSQL makes the sums, the exact money and the cells of CSV (COPY), so a row costs this process almost
nothing. Memory holds one block, never the file. Everything here blocks, and runs in the runner's thread.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg.types.json import Jsonb

from api.asking.buckets import Quarters, to_datetime
from api.asking.limits import Limits
from api.asking.questions import Counted, FiguresQuestion
from api.exports import focus, lines
from api.exports.jobs import SQL, Job
from api.reading import adjustments, names, prices, rollups, seen
from api.reading.prices import Book
from pipeline.common.errors import ServiceError
from pipeline.common.names import NAMES_MAX
from pipeline.common.problems import Problem

_BLOCK_BYTES: Final = 1 << 20
_ROWS_PER_GROUP: Final = 20_000
_NOT_THERE: Final = "The file needs rows that are not there now: {}."
_BEYOND_INT64: Final = (
    "A sum of tokens or invocations is beyond 2^63-1, and the columns of a Parquet file hold no more."
    " Order csv, which has no such limit, or a finer granularity."
)


class UnwritableError(ServiceError):
    """Another attempt would fail, too: the format cannot hold a figure, or rows are kept no more.

    The text is for the job's owner, and says what to order instead.
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
    connection: psycopg.Connection[Any],
    job: Job,
    sink: Sink,
    *,
    provider: str,
    check: Callable[[], None],
    limits: Callable[[], Limits],
) -> Written:
    """Stream the job's figures into the sink, all from one snapshot.

    ``check`` is called for each block, and raises to stop. ``limits`` gives the limits of ranges now.

    Raises:
        UnwritableError: the format cannot hold a figure, or rows are kept no more.
        psycopg.Error: the database failed.
        Exception: whatever the sink or ``check`` raises.
    """
    out = _Counting(sink, check)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = connection.execute(SQL["watermark"], {"org_id": job.org_id}).fetchone()
        assert row is not None
        dimension = _dimension(connection, job)
        quarters = _quarters(connection, job, limits())
        book = _book(connection, job)
        values = _values(connection, job, book, provider)
        connection.execute(prices.SQL["no_loops"])
        question = job.question(quarters)
        if dimension is not None:
            question = dimension.folded(question)
        statements = _statements(question, job, book, values)
        rows = _write(connection, job, statements, lines.schema(question), out)
    out.flush()
    return Written(
        rows=rows, bytes=out.bytes, checksum=out.checksum, watermark=row[0], price_version=book.version
    )


def _quarters(connection: psycopg.Connection[Any], job: Job, limits: Limits) -> Quarters:
    """The rows of quarters that the database has for the org. The snapshot has been taken.

    So what is still to be kept at ``limits`` is in the snapshot.

    Raises:
        UnwritableError: rows that the file needs are kept no more, or not yet.
    """
    shape = job.shape
    found = seen.quarters_of(connection.execute(seen.SQL["split_hours"], {"org_id": job.org_id}))
    if lacking := limits.lacking(job.span, shape.calendar, split_by=shape.split_by, quarters=found):
        raise UnwritableError(_NOT_THERE.format(lacking[0].message))
    return found


def _dimension(connection: psycopg.Connection[Any], job: Job) -> Counted | None:
    """The dimension of the file, if it has one. Does it still count, and since the range began?

    Raises:
        UnwritableError: no.
    """
    if not job.shape.dimension:
        return None
    found = connection.execute(seen.SQL["dimensions"], {"org_id": job.org_id})
    known = [Counted(*row) for row in found]
    try:
        return job.shape.check_dimension(known, job.span)
    except Problem as problem:
        raise UnwritableError(_NOT_THERE.format(problem.errors[0].message)) from None


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


def _names(connection: psycopg.Connection[Any], job: Job) -> Jsonb:
    """The names of the clients, or of the values of the dimension, that the rows are by."""
    named_by = job.question().named_by
    values = names.asked(job.org_id, named_by, None) | {"names_max": NAMES_MAX + 1}
    found = connection.execute(names.OF_ORG, values) if named_by else ()
    return Jsonb(names.names_of(found).values)


Statement = tuple[str, Mapping[str, Any]]
"""A text and its values. The rows of several statements stand in the file one after the other."""


def _statements(question: FiguresQuestion, job: Job, book: Book, values: dict[str, Any]) -> list[Statement]:
    """The statements of the rows of usage, and of those of adjustments where the file is of the whole org."""
    if job.is_focus:
        groups, needed = rollups.sku_groups(question, book)
        usage, adjusted = focus.usage(groups, question, job.format), focus.adjustments(question, job.format)
    else:
        figures, needed = rollups.figures(question, book)
        parquet = job.format == "parquet"
        usage = lines.usage(figures, question, parquet=parquet)
        adjusted = lines.adjustments(question, parquet=parquet)
    of_usage: Statement = (usage, needed | values)
    return [of_usage, (adjusted, values)] if question.of_whole_org else [of_usage]


def _values(connection: psycopg.Connection[Any], job: Job, book: Book, provider: str) -> dict[str, Any]:
    """The values of the columns of all formats."""
    calendar = job.shape.calendar
    return {
        "export_labels": _labels(connection, job),
        "export_names": _names(connection, job),
        "export_version": book.version,
        "export_org_name": job.org_name,
        "edges": [to_datetime(edge) for edge in calendar.edges(job.span)],
        **adjustments.values_of(job.org_id, job.span),
        **focus.values_of(job, provider),
    }


def _write(
    connection: psycopg.Connection[Any],
    job: Job,
    statements: Sequence[Statement],
    schema: pa.Schema,
    out: _Counting,
) -> int:
    if job.format != "parquet":
        return _write_csv(connection, statements, out, bom=job.format == "csv-excel")
    try:
        return _write_parquet(connection, statements, schema, out)
    except psycopg.errors.NumericValueOutOfRange as error:
        raise UnwritableError(_BEYOND_INT64) from error


def _write_csv(
    connection: psycopg.Connection[Any], statements: Sequence[Statement], out: _Counting, *, bom: bool
) -> int:
    cursor = psycopg.ClientCursor(connection)
    block = bytearray(codecs.BOM_UTF8 if bom else b"")
    rows = 0
    header = ", HEADER"
    for query, values in statements:
        bound = cursor.mogrify(query, values)
        with cursor.copy(f"COPY ({bound}) TO STDOUT (FORMAT csv{header})") as copy:
            for line in copy:
                block += line
                if len(block) >= _BLOCK_BYTES:
                    out.write(bytes(block))
                    block.clear()
        rows += cursor.rowcount
        header = ""
    out.write(bytes(block))
    return rows


def _write_parquet(
    connection: psycopg.Connection[Any], statements: Sequence[Statement], schema: pa.Schema, out: _Counting
) -> int:
    rows = 0
    with pq.ParquetWriter(pa.PythonFile(out, "w"), schema, compression="zstd") as writer:
        for query, values in statements:
            with connection.cursor("export", binary=True) as cursor:
                cursor.itersize = _ROWS_PER_GROUP
                cursor.execute(query, values)
                while found := cursor.fetchmany(_ROWS_PER_GROUP):
                    writer.write_batch(_batch(found, schema))
                    rows += len(found)
    return rows


def _batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)
    ]
    return pa.record_batch(columns, schema=schema)


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
