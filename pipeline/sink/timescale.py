"""`TimescaleSink`: the `Sink` on PostgreSQL, put together from its parts.

A worker uses the parts in this order: `recovery` claims a partition and reads it back, `replays` reads the
dead letters that wait, and `flush` writes. The parts share one `connection`. `rows` turns arrays into SQL
rows and back.
"""

from __future__ import annotations

from typing import Final

from pipeline.sink import SchemaMissing
from pipeline.sink.connection import Database
from pipeline.sink.flush import Flush
from pipeline.sink.recovery import Recovery
from pipeline.sink.replays import Replays
from sql import queries
from sql.schema import HEAD

_FLUSH: Final = queries.load("flush")


class TimescaleSink(Recovery, Replays, Flush):
    """A `Sink` on PostgreSQL, with or without TimescaleDB."""

    def __init__(
        self,
        database_url: str,
        *,
        application_name: str = "spendstream",
        consumer: str = "spendstream",
        timeout_s: float = 60.0,
        silent_s: float = 15.0,
    ) -> None:
        """``consumer`` is the consumer group that we read for; `Database` explains the two times."""
        self.consumer = consumer
        self.database = Database(
            database_url, application_name=application_name, timeout_s=timeout_s, silent_s=silent_s
        )

    async def close(self) -> None:
        await self.database.close()

    async def check_schema(self) -> None:
        """See `Sink.check_schema`. A newer schema passes: most migrations only add tables and columns.

        After one that has changed a key, a flush raises `SinkUnavailable`.
        """
        async with self.database.transaction() as connection:
            row = await (await connection.execute(_FLUSH["revision"])).fetchone()
        found = row[0] if row is not None else None
        if found is None or found < HEAD:
            raise SchemaMissing(
                f"run `spendstream migrate`: the schema is at revision {found}, and this version needs {HEAD}"
            )
