"""Looking at what was refused: ``spendstream dead-letters``. Reads one table and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from sql import queries


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRecord:
    """One row of ``dead_letters``."""

    stream: str
    partition: int
    offset: int
    position: int
    reason: str
    faults: list[dict[str, str]]
    body: bytes | None
    """The original bytes; None when a flood left only the offset."""
    rejected_at: datetime


def newest(
    database_url: str, *, stream: str | None = None, reason: str | None = None, limit: int = 20
) -> Iterator[RefusedRecord]:
    """Refused records, newest first. Raises `psycopg.Error`."""
    filters: dict[str, Any] = {"stream": stream, "reason": reason, "limit": limit}
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        for row in connection.execute(queries.load("dead_letters")["newest"], filters):
            names = RefusedRecord.__slots__
            yield RefusedRecord(**dict(zip(names, row, strict=True)))


def count_by_reason(
    database_url: str, *, stream: str | None = None, reason: str | None = None
) -> dict[str, int]:
    """How many records were refused for each reason. Raises `psycopg.Error`."""
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        rows = connection.execute(
            queries.load("dead_letters")["count_by_reason"], {"stream": stream, "reason": reason}
        )
        return dict(rows.fetchall())
