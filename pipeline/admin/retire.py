"""Retiring a stream: ``spendstream stream retire``, for a stream from which no more events come.

The watermark of a partition stands still when no worker reads the partition any more. Each org that was ever
counted there would be `delayed` for as long as its rows are kept. So a retired partition counts as complete
as the slowest of the other partitions (the view ``analytics.partition_watermarks``). The rows and counters of
the partition stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import redis
from psycopg.types.json import Jsonb

from pipeline.common.actor import actor
from pipeline.common.connect import Session, connect
from pipeline.common.operator import OperatorError
from pipeline.config import StreamConfig
from pipeline.transports.factory import open_transport
from sql import queries

QUIET_S: Final = 30
"""A partition without a commit for this long has no worker: even an idle worker commits each second or so."""
_REDIS_S: Final = 1.0


class RetireRefused(OperatorError):
    """The stream cannot be retired now; nothing was changed. The message has the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """The record in the audit log. ``end_offset`` is None for a stream that is gone."""

    stream: str
    partition: int
    committed_offset: int
    end_offset: int | None
    actor: str
    cache_error: str | None = None
    """Why the watermark could not be deleted in Redis; None: it was, or there is no Redis."""


async def retire(
    config: StreamConfig, database_url: str, *, stream: str, is_gone: bool, redis_url: str | None
) -> Retired:
    """Retire the partition of ``stream``, once all its records have been counted.

    ``is_gone``: the broker does not have the stream any more, so nobody can tell whether all records were
    counted.

    Raises:
        RetireRefused: records are left, a worker still reads the stream, or it is retired already.
        TransportError: the broker does not say what the stream holds.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    end_offset = None if is_gone else await _end_of(config, stream)
    retired = _record(database_url, stream, end_offset)
    if redis_url:
        return replace(retired, cache_error=_forget(redis_url, retired.partition))
    return retired


async def _end_of(config: StreamConfig, stream: str) -> int:
    transport = open_transport(replace(config, stream=stream))
    try:
        (extent,) = await transport.extents()
    finally:
        await transport.close()
    return extent.end_offset


def _record(database_url: str, stream: str, end_offset: int | None) -> Retired:
    named = {"stream": stream, "quiet": f"{QUIET_S} s"}
    with connect(database_url, Session(application_name="spendstream-retire")) as connection:
        standing = connection.execute(_RETIRE["standing"], named).fetchone()
        if standing is None:
            raise RetireRefused(f"no worker has ever read {stream!r} into this database")
        partition, committed, retired_at, is_read = standing
        if retired_at is not None:
            raise RetireRefused(f"{stream!r} was retired at {retired_at:%Y-%m-%d %H:%M:%S} UTC")
        if end_offset is not None and end_offset > committed:
            raise RetireRefused(
                f"{end_offset - committed} offsets of {stream!r} are not counted yet (committed up to"
                f" {committed}, the stream ends at {end_offset}): let a worker read them first"
            )
        if is_read:
            raise RetireRefused(
                f"a worker committed to {stream!r} within the last {QUIET_S} s: stop the workers that read"
                f" it, wait {QUIET_S} s, and try again"
            )
        connection.execute(_RETIRE["retire"], named)
        who = actor()
        detail = {"stream": stream, "partition": partition, "committed_offset": committed}
        connection.execute(
            _RETIRE["audit"], {"actor": who, "detail": Jsonb({**detail, "end_offset": end_offset})}
        )
    return Retired(
        stream=stream, partition=partition, committed_offset=committed, end_offset=end_offset, actor=who
    )


def _forget(redis_url: str, partition: int) -> str | None:
    """Delete the watermark in the cache, so that the API asks the database; the error if that failed.

    No worker writes this watermark any more, so it would stay old.
    """
    options = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S}
    try:
        with redis.Redis.from_url(redis_url, **options) as connection:
            connection.hdel("spendstream:watermarks", str(partition))
    except (redis.RedisError, OSError) as error:
        return str(error) or type(error).__name__
    return None


_RETIRE = queries.load("retire")
