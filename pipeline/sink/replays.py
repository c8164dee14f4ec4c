"""Reading the dead letters that wait for a replay, and the ids of their events that were counted before.

The flush that counts the letters also writes their outcomes (`pipeline.sink.flush`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from pipeline.core import replay
from pipeline.core.replay import CountedIds, Letter, Opened
from pipeline.sink import Claim, Sink
from pipeline.sink.connection import Database
from pipeline.sink.rows import halves, hour_time, unsigned, uuid_of
from sql import queries

_REPLAYS: Final = queries.load("replays")


class Replays(Sink):
    """The part of `TimescaleSink` that reads dead letters back."""

    database: Database

    async def waiting_letters(self, claim: Claim, *, most: int) -> list[Letter]:
        async with self.database.transaction() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_REPLAYS["waiting"], {"partition": claim.partition, "most": most})
            names = ("offset", "position", "broker_us", "evidence", "absent_to_hour", "reason", "body")
            return [Letter(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall()]

    async def counted(self, claim: Claim, opened: Opened) -> CountedIds:
        keys = list(dict.fromkeys(opened.keys))
        asked = {
            "partition": claim.partition,
            "orgs": [uuid_of(high, low) for high, low, _, _ in keys],
            "events": [uuid_of(high, low) for _, _, high, low in keys],
        }
        by_hour = opened.of_stored_hours()
        hours = [hour_time(hour) for hour in by_hour]
        async with self.database.transaction() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_REPLAYS["counted"], asked)
            rows = await cursor.fetchall()
            found = [
                CountedIds(
                    org=halves(row[0] for row in rows),
                    event=halves(row[1] for row in rows),
                    hour=np.full(len(rows), replay.ANY_HOUR, np.int64),
                    check=np.array([unsigned(row[2]) for row in rows], np.uint64),
                )
            ]
            if hours:
                # One segment is in memory at a time, because a busy hour has tens of megabytes of ids.
                stored = {"partition": claim.partition, "hours": hours}
                async for hour, segment in cursor.stream(_REPLAYS["ids_of_hours"], stored):
                    found.append(await asyncio.to_thread(replay.among, by_hour[hour], hour, segment))
        return CountedIds.join(found)
