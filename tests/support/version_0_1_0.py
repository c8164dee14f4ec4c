"""What a worker of version 0.1.0 left behind: its stream, the rows that it stored, and its archive.

The version's own code made all of it. See tests/data/README.md.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import psycopg

from tests.support import older_schema

HEAD: Final = "0005"
"""The revision of the schema of version 0.1.0."""

_FILE: Final = Path(__file__).parent.parent / "data" / "version-0.1.0.zip"
_HYPERTABLES: Final = (
    "usage_minute",
    "usage_hour",
    "client_hour",
    "usage_errors_hour",
    "usage_day",
    "client_day",
)


def bodies() -> list[bytes]:
    """The records of the stream, from offset 0 on. All of them have the broker time `archives.NOW_US`."""
    return [json.loads(line).encode("latin-1") for line in _member("stream.jsonl").splitlines()]


def restore(database_url: str, folder: Path) -> None:
    """Give an empty database the schema and rows of 0.1.0, and a folder its Parquet files, in ``archive``.

    With TimescaleDB the tables are hypertables, as 0.1.0 made them.
    """
    older_schema.make(database_url, HEAD)
    with psycopg.connect(database_url) as connection:
        if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
            for table in _HYPERTABLES:
                connection.execute(
                    "SELECT create_hypertable(%s::regclass, 'bucket_start',"
                    " chunk_time_interval => INTERVAL '7 days', create_default_indexes => false)",
                    (f"analytics.{table}",),
                )
        for table, (columns, rows) in _tables().items():
            with connection.cursor().copy(f"COPY analytics.{table} ({columns}) FROM STDIN".encode()) as copy:
                copy.write(rows)
    with ZipFile(_FILE) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if name.startswith("archive/")])


def left() -> dict[str, list[str]]:
    """The rows that 0.1.0 left, by table: each a line of PostgreSQL's COPY, in order."""
    return {table: sorted(rows.splitlines()) for table, (_, rows) in _tables().items()}


def found(database_url: str) -> dict[str, list[str]]:
    """The columns and tables of 0.1.0 as a database has them now, in the form of `left`."""
    lines: dict[str, list[str]] = {}
    with psycopg.connect(database_url) as connection:
        connection.execute("SET timezone = 'UTC'")
        for table, (columns, _) in _tables().items():
            query = f"COPY (SELECT {columns} FROM analytics.{table}) TO STDOUT".encode()
            with connection.cursor().copy(query) as copy:
                lines[table] = sorted(b"".join(bytes(part) for part in copy).decode().splitlines())
    return lines


@cache
def _tables() -> dict[str, tuple[str, str]]:
    """For each table that is not empty its columns, as SQL lists them, and its rows."""
    content: dict[str, Any] = json.loads(_member("tables.json"))
    return {
        table: (", ".join(f'"{name}"' for name in one["columns"]), one["rows"])
        for table, one in content.items()
    }


def _member(name: str) -> str:
    with ZipFile(_FILE) as packed:
        return packed.read(name).decode()
