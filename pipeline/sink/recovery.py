"""Claiming a partition, and reading back the rows and ids that a worker needs before it reads the stream.

Nothing here changes a figure. `Recovery.merge_ids` rewrites ids in fewer rows, so that the next recovery is
short.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg

from pipeline.core import dedupe
from pipeline.core.batch import Block, Position, StoredRows
from pipeline.core.dimensions import Dimension
from pipeline.core.rate_classes import RateClass, RateClasses, classes_of
from pipeline.core.rules import FUTURE_US
from pipeline.core.watermark import NEVER
from pipeline.core.windows import USAGE_DAY, Grain
from pipeline.sink import GROUP_QUIET_S, Claim, Contested, Fenced, Sink
from pipeline.sink.connection import Database
from pipeline.sink.rows import bucket_time, columns, halves, hour_time, stored_rows, uuid_of
from sql import queries

log = logging.getLogger(__name__)

_FLUSH: Final = queries.load("flush")

SEGMENTS_MANY: Final = 16
"""From this number of small segments on, an hour is merged."""
SEGMENT_BYTES_MAX: Final = 64 * 2**20
"""About the largest size of a merged segment: 3 million ids."""


class Recovery(Sink):
    """The part of `TimescaleSink` that claims a partition and reads it back."""

    database: Database
    consumer: str

    # --- ownership

    async def claim(
        self,
        stream: str,
        dimensions: Sequence[Dimension] = (),
        split_hours: Sequence[int] = (),
        context_tiers: Sequence[int] | None = None,
    ) -> tuple[Claim, Position]:
        """See `Sink.claim`. One claim at a time runs in a database, so that no two streams get one number."""
        named = {"stream": stream, "consumer": self.consumer, "quiet": f"{GROUP_QUIET_S} s"}
        rate_classes = None
        async with self.database.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('analytics.partitions'))")
            row, other = None, await (await connection.execute(_FLUSH["flushing"], named)).fetchone()
            if other is None:
                row = await (await connection.execute(_FLUSH["claim"], named)).fetchone()
            if row is None:
                other = other or await (await connection.execute(_FLUSH["consumer"], named)).fetchone()
            else:
                await _set_dimensions(connection, row[0], dimensions)
                await _set_split_hours(connection, row[0], split_hours)
                if context_tiers is not None:
                    rate_classes = await _rate_classes(connection, context_tiers)
        if row is None:
            assert other is not None
            raise Contested(
                f"the consumer groups {other[0]!r} and {self.consumer!r} (RABBITMQ_CONSUMER) both read"
                f" {stream!r} into this database, where one of them is enough: give all workers of a database"
                f" the same group, or stop those of one group for {GROUP_QUIET_S} s"
            )
        partition, epoch, *standing = row[:14]
        was_retired, crashes, tried_from, tried_to = row[14:]
        if was_retired:
            log.warning("retired_stream_is_read_again", extra={"stream": stream, "partition": partition})
        tried = None if tried_from is None else (tried_from, tried_to)
        return Claim(stream, partition, epoch, crashes, tried, rate_classes), _position(*standing)

    async def released(self, claim: Claim) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(_FLUSH["released"], _named(claim))

    async def trying(self, claim: Claim, from_offset: int, to_offset: int) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(
                _FLUSH["trying"], {**_named(claim), "from_offset": from_offset, "to_offset": to_offset}
            )

    async def skips(self, claim: Claim, *, from_offset: int) -> dict[int, str]:
        async with self.database.transaction() as connection:
            rows = await connection.execute(
                _FLUSH["skips"], {"stream": claim.stream, "from_offset": from_offset}
            )
            return {offset: f"skipped by {actor}: {note}" for offset, note, actor in await rows.fetchall()}

    async def holds(self, claim: Claim, *, offset: int) -> bool:
        async with self.database.transaction() as connection:
            cursor = await connection.execute(
                _FLUSH["standing"], {"partition": claim.partition, "stream": claim.stream}
            )
            standing = await cursor.fetchone()
            return standing is not None and standing[:2] == (claim.epoch, offset)

    # --- rows

    async def resident_rows(self, claim: Claim, wanted: Iterable[tuple[Grain, int]]) -> list[StoredRows]:
        found = []
        async with self.database.transaction("resident_rows") as connection:
            for grain, bucket in wanted:
                cursor = connection.cursor(binary=True)
                await cursor.execute(
                    _reading("resident_rows", grain),
                    {
                        "start": bucket_time(grain, max(bucket, 0)),
                        "partition": claim.partition,
                        "dimension": grain.dimension,
                    },
                )
                found.append(stored_rows(grain, await cursor.fetchall()))
        return found

    async def high_days(self, claim: Claim, *, from_day: int, sum_least: int) -> list[Block]:
        day = USAGE_DAY
        async with self.database.transaction() as connection:
            cursor = await connection.execute(
                _FLUSH["high_days"],
                {
                    "partition": claim.partition,
                    "start": bucket_time(day, max(from_day, 0)),
                    "sum_least": sum_least,
                },
            )
            rows = await cursor.fetchall()
        orgs = halves(row[0] for row in rows).tolist()
        return [
            Block(grain=day, org=(high, low), bucket=number)
            for (high, low), (_, number) in zip(orgs, rows, strict=True)
        ]

    async def load(self, claim: Claim, blocks: Sequence[Block]) -> list[StoredRows]:
        found = []
        async with self.database.transaction("load") as connection:
            for grain in dict.fromkeys(block.grain for block in blocks):
                mine = [block for block in blocks if block.grain == grain]
                starts = [bucket_time(grain, block.bucket) for block in mine]
                cursor = connection.cursor(binary=True)
                await cursor.execute(
                    _reading("block_rows", grain),
                    {
                        "orgs": [uuid_of(*block.org) for block in mine],
                        "starts": starts,
                        "first": min(starts),
                        "last": max(starts),
                        "partition": claim.partition,
                        "dimension": grain.dimension,
                    },
                )
                found.append(stored_rows(grain, await cursor.fetchall()))
        return found

    async def org_models(self, claim: Claim) -> list[tuple[UUID, UUID, int, int]]:
        async with self.database.transaction() as connection:
            cursor = await connection.execute(_FLUSH["org_models"], {"partition": claim.partition})
            return await cursor.fetchall()

    # --- ids

    async def live_ids_count(self, claim: Claim, *, from_hour: int) -> int:
        async with self.database.transaction() as connection:
            first = {"partition": claim.partition, "from_hour": hour_time(max(from_hour, 0))}
            found = await (await connection.execute(_FLUSH["live_bytes"], first)).fetchone()
            assert found is not None
            return int(found[0]) // dedupe.BYTES_AT_REST

    async def live_ids(self, claim: Claim, *, from_hour: int) -> AsyncIterator[tuple[int, bytes]]:
        """See `Sink.live_ids`. One hour is in memory at a time, and each hour is read in its own transaction.

        Several transactions are safe here, because only the partition's owner writes ids.
        """
        async with self.database.transaction() as connection:
            first = {"partition": claim.partition, "from_hour": hour_time(max(from_hour, 0))}
            hours = await (await connection.execute(_FLUSH["live_hours"], first)).fetchall()
        for (hour,) in hours:
            async with self.database.transaction() as connection:
                cursor = connection.cursor(binary=True)
                mine = {"partition": claim.partition, "hour": hour_time(hour)}
                segments = await (await cursor.execute(_FLUSH["live_ids"], mine)).fetchall()
            for (segment,) in segments:
                yield hour, segment

    async def merge_ids(self, claim: Claim, *, before_hour: int) -> int:
        """See `Sink.merge_ids`. The merged segment has at most about `SEGMENT_BYTES_MAX`.

        One transaction replaces the small segments by the merged one. It locks the claim, so no new owner can
        recover half of the change.
        """
        partition = {"partition": claim.partition}
        async with self.database.transaction() as connection:
            if await (await connection.execute(_FLUSH["ours"], _named(claim))).fetchone() is None:
                raise Fenced(f"partition {claim.partition} of {claim.stream} has another owner")
            bounds = {"before": hour_time(max(before_hour, 0)), "many": SEGMENTS_MANY}
            small = {**partition, "small": SEGMENT_BYTES_MAX // 2}
            found = await (await connection.execute(_FLUSH["crowded_hour"], {**small, **bounds})).fetchone()
            if found is None:
                return 0
            hour = {**partition, "hour": found[0]}
            cursor = connection.cursor(binary=True)
            await cursor.execute(_FLUSH["small_segments"], {**small, **hour})
            segments: list[int] = []
            parts: list[bytes] = []
            size = 0
            async for segment, ids in cursor:
                size += len(ids)
                if size > SEGMENT_BYTES_MAX and segments:
                    break
                segments.append(segment)
                parts.append(ids)
            merged = await asyncio.to_thread(dedupe.merge_segments, parts)
            await connection.execute(_FLUSH["drop_segments"], {**hour, "segments": segments})
            await connection.execute(_FLUSH["add_ids"], {**hour, "segment": segments[-1], "ids": merged})
            return len(segments)


async def _rate_classes(connection: psycopg.AsyncConnection[Any], boundaries: Sequence[int]) -> RateClasses:
    """The numbers of the rate classes, in the transaction of a claim.

    One claim at a time adds classes, so no two classes get one number. The lock is for workers of earlier
    versions, which add classes outside of their claims.
    """
    wanted = classes_of(boundaries)
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('analytics.rate_classes'))")
    cursor = await connection.execute(
        _FLUSH["rate_classes"],
        {
            "tiers": [one.service_tier for one in wanted],
            "firsts": [one.input_from for one in wanted],
            "lasts": [one.input_to for one in wanted],
        },
    )
    numbers = {RateClass(*named): number for number, *named in await cursor.fetchall()}
    return RateClasses(boundaries, numbers.__getitem__)


async def _set_dimensions(
    connection: psycopg.AsyncConnection[Any], partition: int, dimensions: Sequence[Dimension]
) -> None:
    """Note which dimensions the owner of a partition counts, and since when each is complete."""
    names = [one.name for one in dimensions]
    await connection.execute(_FLUSH["drop_dimensions"], {"partition": partition, "names": names})
    if names:
        await connection.execute(
            _FLUSH["set_dimensions"],
            {
                "partition": partition,
                "names": names,
                "sources": [one.source for one in dimensions],
                "future": f"{FUTURE_US} microseconds",
            },
        )


async def _set_split_hours(
    connection: psycopg.AsyncConnection[Any], partition: int, hours: Sequence[int]
) -> None:
    """Note which hours of the day the owner of a partition counts by the quarter, and since when."""
    values = {"partition": partition, "hours": list(hours), "future": f"{FUTURE_US} microseconds"}
    await connection.execute(_FLUSH["drop_split_hours"], values)
    if hours:
        await connection.execute(_FLUSH["set_split_hours"], values)


def _reading(query: str, grain: Grain) -> str:
    """A query for the rows of a grain. A table of dimensions is read for one dimension."""
    of_dimension = " AND dimension = %(dimension)s" if grain.dimension else ""
    return _FLUSH[query].format(table=grain.name, columns=columns(grain), of_dimension=of_dimension)


def _position(
    next_offset: int,
    offered: int,
    accepted: int,
    duplicate: int,
    rejected: int,
    replays: int,
    watermark_us: int | None,
    newest_us: int | None,
    broker_us: int | None,
    newest_broker_us: int | None,
    ids_from_hour: int | None,
    counted_us: int | None,
) -> Position:
    """The position in a row of the query ``claim``, in its order. A null was never committed."""
    return Position(
        next_offset=next_offset,
        newest_us=NEVER if newest_us is None else newest_us,
        broker_us=broker_us or 0,
        newest_broker_us=newest_broker_us or 0,
        ids_from_hour=ids_from_hour or 0,
        watermark_us=watermark_us,
        counted_us=counted_us,
        offered=offered,
        accepted=accepted,
        duplicate=duplicate,
        rejected=rejected,
        replays=replays,
    )


def _named(claim: Claim) -> dict[str, Any]:
    return {"stream": claim.stream, "partition": claim.partition, "epoch": claim.epoch}
