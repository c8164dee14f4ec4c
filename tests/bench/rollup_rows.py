"""A year of rollups of many orgs, as a worker would have left them: rows in order of time, by COPY.

Rows are made as NumPy records that are COPY's binary format byte for byte, so loading is the database's time
and not ours. A chunk of a hypertable is one transaction.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg

from pipeline.core import sketches, windows
from pipeline.prices import book, genai
from pipeline.prices.price import Price

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
CLIENTS: Final = 4
LABELS: Final = (
    ("openai", "gpt-4o-2024-08-06"),
    ("anthropic", "claude-opus-4-5"),
    ("openai", "gpt-4o-mini-2024-07-18"),
    ("anthropic", "claude-sonnet-4-5"),
    ("google", "gemini-2.5-pro"),
)
"""Provider and name of the first models. They come round again."""
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_CHUNK_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_BATCH_BUCKETS: Final = 24
_SKETCHES: Final = 50

MEASURES: Final = tuple(name for name in windows.MEASURES if name not in ("latency_max_ms", "revision"))
"""Those that are bigint in the database; the two others are integer."""


def org(number: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"org-{number}")


def model(number: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"model-{number}")


def client(number: int) -> str:
    return f"client-{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """``days`` of hour and day rows, and of them ``client_days`` by `CLIENTS` clients."""

    orgs: int
    models: int
    days: int
    client_days: int

    @property
    def rows(self) -> int:
        return self.orgs * self.models * (self.days * 25 + self.client_days * 24 * CLIENTS)


def price(url: str, *, changed_at: datetime) -> None:
    """Import the public prices into the book; the first model has another price from ``changed_at`` on."""
    provider, model_name = LABELS[0]
    dear = Price(
        provider=provider, model_name=model_name, kind="input", rate=Decimal(3), valid_from=changed_at
    )
    with book.connected(url) as connection:
        book.add(connection, genai.read().prices, action="prices.import", title="genai-prices")
        book.add(connection, [dear], action="prices.set", title="set input")


def load(url: str, size: Size, *, end: datetime) -> None:
    """Fill the migrated database at ``url`` with the ``size.days`` days before that of ``end`` (a whole hour)
    and its hours so far, all in the partition of the stream analytics.usage.v1, which stands at its offset 0
    with its watermark at ``end``.
    """
    midnight = end.replace(hour=0)
    first = midnight - size.days * DAY
    with psycopg.connect(url) as connection:
        _load(connection, "usage_hour", size, first=first, step=HOUR, end=end, chunk=7 * DAY)
        _load(connection, "usage_day", size, first=first, step=DAY, end=end, chunk=90 * DAY)
        _load(
            connection,
            "client_hour",
            size,
            first=midnight - size.client_days * DAY,
            step=HOUR,
            end=end,
            chunk=7 * DAY,
        )
        orgs = [org(n) for n in range(size.orgs)]
        models = [model(n) for n in range(size.models)]
        labels = [LABELS[n % len(LABELS)] for n in range(size.models)]
        clients = [client(n) for n in range(CLIENTS)]
        connection.execute(
            "INSERT INTO analytics.orgs_seen SELECT o, 0, %s, %s, %s FROM unnest(%s::uuid[]) AS o",
            (first, end, end, orgs),
        )
        connection.execute(
            "INSERT INTO analytics.models_seen"
            " SELECT o, m, 0, %s, %s, %s, %s, provider, name FROM unnest(%s::uuid[]) AS o,"
            " unnest(%s::uuid[], %s::text[], %s::text[]) AS models(m, provider, name)",
            (
                first,
                end,
                end,
                end,
                orgs,
                models,
                [label[0] for label in labels],
                [label[1] for label in labels],
            ),
        )
        connection.execute(
            "INSERT INTO analytics.clients_seen SELECT o, c, 0, %s, %s, %s"
            " FROM unnest(%s::uuid[]) AS o, unnest(%s::text[]) AS c",
            (first, end, end, orgs, clients),
        )
        connection.execute(
            "INSERT INTO analytics.partitions (partition, stream, watermark, max_event_time, updated_at)"
            " VALUES (0, 'analytics.usage.v1', %s, %s, now())",
            (end - timedelta(seconds=10), end),
        )
        connection.commit()
        connection.autocommit = True
        for table in ("usage_hour", "usage_day", "client_hour", "orgs_seen", "models_seen", "clients_seen"):
            connection.execute(f"VACUUM (ANALYZE) analytics.{table}")


def _load(
    connection: psycopg.Connection[Any],
    table: str,
    size: Size,
    *,
    first: datetime,
    step: timedelta,
    end: datetime,
    chunk: timedelta,
) -> None:
    """Rows of every ``step`` in [first, end), as many at a time as lie in one chunk of the hypertable."""
    records = Records(size, by_client=table.startswith("client"))
    at = first
    while at < end:
        since = (at - _CHUNK_EPOCH) % chunk
        upto = min(end, at + chunk - since)
        with connection.cursor().copy(
            f"COPY analytics.{table} ({records.columns}) FROM STDIN (FORMAT binary)"
        ) as copy:
            copy.write(_HEADER)
            for part in records.between(at, upto, step):
                copy.write(part)
            copy.write(_TRAILER)
        connection.commit()
        at += -(-(upto - at) // step) * step


class Records:
    """COPY's records of all orgs and models (and clients), in the order of the key."""

    def __init__(self, size: Size, *, by_client: bool) -> None:
        self._rng = np.random.default_rng(1)
        self._sketches = _sketches()
        keys = [
            (org(o), model(m), client(c))
            for o in range(size.orgs)
            for m in range(size.models)
            for c in range(CLIENTS if by_client else 1)
        ]
        keys.sort()
        self._dtype = _dtype(self._sketches.dtype.itemsize, by_client=by_client)
        self._template = np.zeros(len(keys), self._dtype)
        row = self._template
        row["fields"] = len([name for name in self._dtype.names or () if name.startswith("len_")])
        for name in self._dtype.names or ():
            if name.startswith("len_"):
                row[name] = self._dtype[name.removeprefix("len_")].itemsize
        row["org_id"] = _bytes([key[0].bytes for key in keys], 16)
        row["model_id"] = _bytes([key[1].bytes for key in keys], 16)
        if by_client:
            row["client_id"] = [key[2].encode() for key in keys]

    @property
    def columns(self) -> str:
        """The columns of a record, in its order."""
        names = (name.removeprefix("len_") for name in self._dtype.names or () if name.startswith("len_"))
        return ", ".join(names)

    def between(self, start: datetime, end: datetime, step: timedelta) -> Iterator[bytes]:
        """Rows of the buckets in [start, end), some buckets at a time."""
        count = -(-(end - start) // step)
        for begin in range(0, count, _BATCH_BUCKETS):
            buckets = np.arange(begin, min(count, begin + _BATCH_BUCKETS), dtype=np.int64)
            rows = np.tile(self._template, len(buckets))
            first_us = (start - _POSTGRES_EPOCH) // timedelta(microseconds=1)
            starts = first_us + buckets * (step // timedelta(microseconds=1))
            rows["bucket_start"] = np.repeat(starts, len(self._template))
            rows["updated_at"] = rows["bucket_start"]
            self._fill(rows)
            yield rows.tobytes()

    def _fill(self, rows: npt.NDArray[Any]) -> None:
        n = len(rows)
        draw = self._rng.integers
        rows["errors"] = draw(0, 3, n)
        rows["successes"] = draw(60, 120, n)
        rows["invocations"] = rows["successes"] + rows["errors"]
        rows["input_tokens"] = draw(10_000, 2_000_000, n)
        rows["output_tokens"] = draw(1_000, 200_000, n)
        rows["cost_microcents"] = draw(10**6, 10**9, n)
        rows["latency_sum_ms"] = draw(10_000, 90_000, n)
        rows["latency_max_ms"] = draw(900, 9_000, n)
        rows["latency_sketch"] = self._sketches[draw(0, len(self._sketches), n)]


def _dtype(sketch_bytes: int, *, by_client: bool) -> np.dtype[Any]:
    columns: list[tuple[str, str]] = [("org_id", "V16"), ("bucket_start", ">i8"), ("model_id", "V16")]
    if by_client:
        columns.append(("client_id", f"S{len(client(0))}"))
    columns += [("rate_class", ">i2"), ("partition", ">i2")]
    columns += [(name, ">i8") for name in MEASURES]
    columns += [("latency_max_ms", ">i4"), ("latency_sketch", f"V{sketch_bytes}")]
    columns += [("revision", ">i4"), ("updated_at", ">i8")]
    fields = [("fields", ">i2")]
    for name, form in columns:
        fields += [(f"len_{name}", ">i4"), (name, form)]
    return np.dtype(fields)


def _sketches() -> npt.NDArray[np.void]:
    """Sketches of 90 latencies, all of one length, so that all records are."""
    rng = random.Random(1)
    made = [sketches.of([int(rng.lognormvariate(6, 1)) for _ in range(90)]) for _ in range(20 * _SKETCHES)]
    lengths = [len(sketch) for sketch in made]
    usual = max(set(lengths), key=lengths.count)
    return _bytes([sketch for sketch in made if len(sketch) == usual][:_SKETCHES], usual)


def _bytes(values: Sequence[bytes], length: int) -> npt.NDArray[np.void]:
    return np.frombuffer(b"".join(values), dtype=f"V{length}")
