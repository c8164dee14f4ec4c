"""A collector, a worker and an API on one super stream, and all that they keep of what was sent."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
from psycopg import sql as pgsql

from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support import collectors, processes, streams
from tests.support.collectors import Collector
from tests.support.processes import Api, Process


class World:
    """A collector, a worker and an API on one super stream."""

    def __init__(self, env: dict[str, str], collector: Collector, worker: Process, api: Api) -> None:
        self.env = env
        self.collector = collector
        self.worker = worker
        self.api = api

    def offered(self) -> int:
        return streams.offered(self.env["DATABASE_URL"])

    def totals(self, org: uuid.UUID | str) -> dict[str, Any]:
        answer: dict[str, Any] = self.usage(org)["totals"]
        return answer

    def usage(self, org: uuid.UUID | str, by: str = "model") -> Any:
        return self._answer(org, "usage", by)

    def reliability(self, org: uuid.UUID | str, by: str = "model") -> Any:
        return self._answer(org, "reliability", by)

    def _answer(self, org: uuid.UUID | str, what: str, by: str) -> Any:
        """An answer about each day of these days."""
        start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
        period = {
            "start": start.isoformat().replace("+00:00", "Z"),
            "end": (start + timedelta(days=4)).isoformat().replace("+00:00", "Z"),
        }
        return self.api.answer(f"/orgs/{org}/{what}", granularity="day", groupBy=by, **period)

    def bodies(self) -> dict[int, list[bytes]]:
        """Every record of each partition of the stream."""
        return asyncio.run(_read(self.env))


async def _read(env: dict[str, str]) -> dict[int, list[bytes]]:
    transport = RabbitMQTransport(streams.config(env["RABBITMQ_URL"], env["RABBITMQ_STREAM"]))
    found: dict[int, list[bytes]] = {}
    try:
        for number, extent in enumerate(await transport.extents()):
            subscription = await transport.subscribe(partition=number, offset=0)
            found[number], next_offset = [], 0
            while next_offset < extent.end_offset:
                chunk = await asyncio.wait_for(subscription.receive(), 120)
                subscription.grant()
                found[number] += [bytes(body) for body in chunk.bodies]
                next_offset = chunk.next_offset
    finally:
        await transport.close()
    return found


@contextmanager
def running(
    env: Mapping[str, str], folder: Path, *, partitions: int = 2, collector: Mapping[str, str] | None = None
) -> Iterator[World]:
    """Make the stream, and run a world on it, with a spool and an archive.

    ``collector`` is settings that only the collector has.
    """
    (folder / "spool").mkdir()
    env = {
        **env,
        "ARCHIVE_URL": f"file://{folder}/archive",
        "ARCHIVE_INTERVAL": "500ms",
        "COLLECTOR_SPOOL": str(folder / "spool"),
        "COLLECTOR_SPOOL_AFTER": "10s",
        "DIMENSIONS": "team=metadata.team",
        "LOG_LEVEL": "debug",
    }
    made = processes.command("stream", "create", "--partitions", str(partitions), env=env)
    assert made.returncode == 0, made.stderr
    with ExitStack() as stack:
        worker = stack.enter_context(processes.worker(env, folder))
        door = stack.enter_context(collectors.collector({**env, **(collector or {})}, folder))
        api = stack.enter_context(Api({"DATABASE_URL": env["DATABASE_URL"], "LOG_LEVEL": "debug"}, folder))
        yield World(env, door, worker, api)


def spooled(folder: Path) -> bytes:
    """All bytes of the spool."""
    return b"".join(path.read_bytes() for path in (folder / "spool").rglob("*") if path.is_file())


def archived(folder: Path) -> str:
    """All rows of the archive, as text: its files are compressed."""
    files = sorted((folder / "archive").rglob("*.parquet"))
    return "\n".join(str(row) for file in files for row in pq.read_table(file).to_pylist())


def rows_of(url: str) -> str:
    """All rows of all tables, as text. What is bytes in them is there as characters of Latin-1."""
    found = []
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_schema = 'analytics' AND table_type = 'BASE TABLE'"
        ).fetchall()
        assert len(tables) > 20
        for schema, table in tables:
            query = pgsql.SQL("SELECT t::text FROM {} AS t").format(pgsql.Identifier(schema, table))
            found += [row for (row,) in connection.execute(query)]
    hexadecimal = re.compile(r"\\+x((?:[0-9a-f]{2})+)")
    return hexadecimal.sub(lambda hit: bytes.fromhex(hit[1]).decode("latin-1"), "\n".join(found))
