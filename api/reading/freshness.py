"""Freshness: how old the figures are, and the worker's cache of that in Redis.

The lag of an org is now minus the watermark of its slowest partition. The lag is computed when it is read and
never stored, so a dead pipeline shows a growing lag. An org whose slowest partition has no watermark yet is
``delayed``, and has no lag.

The worker writes three hashes to Redis after each commit: ``spendstream:org:{orgId}`` (by partition, the
org's models with their last event and rollup), ``spendstream:watermarks`` and ``spendstream:counted`` (by
partition; a worker of an earlier version does not write the last one). The database is asked
instead in two cases. First, something in the hashes is missing or unreadable. Second, the watermark of some
partition is older than `OLD`: that partition's worker may be gone, so its entry in the org's hash may have
lapsed, and the answer would leave the partition out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.config import FreshnessConfig

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S: Final = 0.1
"""Short, so that an answer stays under a second when both Redis and the database are away."""
_PAUSE_S: Final = 2.0
OLD: Final = timedelta(days=15)
"""Half of the life of a key that no worker writes (`pipeline.worker.freshness_cache.LIFE_HOURS`)."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Status = Literal["fresh", "stale", "delayed"]
_Hash = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the pipeline has come with an org or a model in one partition."""

    partition: int
    watermark: datetime | None
    last_event_at: datetime
    last_rollup_at: datetime
    counted_through: datetime | None = None
    """Every event that the broker had stored before this time is counted. None: a worker of an earlier
    version does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStanding:
    """How far the pipeline has come with one model in one partition."""

    model_id: UUID
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingsPage:
    """A page of an org's models with their standings, and the standings of the whole org."""

    of_org: Sequence[Standing]
    by_model: Mapping[UUID, Sequence[Standing]]
    more: bool


def standings_page(models: Iterable[ModelStanding], after: UUID | None, limit: int) -> StandingsPage:
    """The page of ``models``, which are all of the org's, that comes ``after`` one of them."""
    by_model: dict[UUID, list[Standing]] = {}
    of_org = []
    for model in models:
        of_org.append(model.standing)
        if after is None or model.model_id > after:
            by_model.setdefault(model.model_id, []).append(model.standing)
    shown = sorted(by_model)[:limit]
    return StandingsPage(
        of_org=of_org,
        by_model={model_id: by_model[model_id] for model_id in shown},
        more=len(by_model) > len(shown),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """The age of the figures of an org or a model, over all its partitions."""

    status: Status
    lag_s: float | None
    watermark: datetime | None
    counted_through: datetime | None
    last_event_at: datetime | None
    last_rollup_at: datetime | None

    def fields(self) -> dict[str, Any]:
        """Fields of `answers.FreshnessOut` and `answers.LiveFreshness`."""
        return {
            "status": self.status,
            "lag_seconds": self.lag_s,
            "watermark": self.watermark,
            "counted_through": self.counted_through,
            "last_event_at": self.last_event_at,
            "last_rollup_at": self.last_rollup_at,
        }


def status_of(lag_s: float | None, config: FreshnessConfig) -> Status:
    """The word for a lag; no lag is ``delayed``."""
    if lag_s is None:
        return "delayed"
    return "fresh" if lag_s < config.fresh_lag_s else "stale" if lag_s < config.stale_lag_s else "delayed"


def lag_s(watermark: datetime | None, now: datetime) -> float | None:
    """Now minus the watermark, in seconds. Never negative, though this machine's clock may be behind."""
    return None if watermark is None else max(0.0, round((now - watermark).total_seconds(), 3))


def freshness(standings: Iterable[Standing], now: datetime, config: FreshnessConfig) -> Freshness:
    """The age of the figures that these standings tell of."""
    standings = list(standings)
    slowest = slowest_time(standing.watermark for standing in standings)
    lag = lag_s(slowest, now)
    return Freshness(
        status=status_of(lag, config),
        lag_s=lag,
        watermark=slowest,
        counted_through=slowest_time(standing.counted_through for standing in standings),
        last_event_at=max((standing.last_event_at for standing in standings), default=None),
        last_rollup_at=max((standing.last_rollup_at for standing in standings), default=None),
    )


def slowest_time(times: Iterable[datetime | None]) -> datetime | None:
    """The earliest watermark of some partitions, or the earliest of the times up to which they are counted.

    None: there is none, or one of them is not known.
    """
    known: list[datetime] = []
    for time_of_one in times:
        if time_of_one is None:
            return None
        known.append(time_of_one)
    return min(known, default=None)


# --- the cache in Redis ------------------------------------------------------------------------


class _OrgEntry(msgspec.Struct, frozen=True):
    """``models`` None: the org has more models than the worker keeps here."""

    models: list[tuple[UUID, int, int]] | None


class FreshnessCache:
    """Reads the worker's hashes. Never raises: when there is no answer, the caller asks the database."""

    def __init__(self, url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S, retry=None
        )
        self._away_until = 0.0

    async def org(self, org_id: UUID) -> list[ModelStanding] | None:
        """The org's models by partition. None: Redis is away, or does not know the whole org."""
        if time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                entries, watermarks, counted = await self._fetch(org_id)
            return standings_from_redis(entries, watermarks, counted, not_before=self._clock() - OLD)
        except (RedisError, OSError, TimeoutError) as error:
            # A Redis that hangs would otherwise cost every request its whole timeout.
            self._away_until = time.monotonic() + _PAUSE_S
            log.warning("redis_unavailable", extra={"error": str(error) or type(error).__name__})
        except (msgspec.DecodeError, ValueError, OverflowError) as error:
            log.warning("redis_entry_unreadable", extra={"org_id": str(org_id), "error": str(error)})
        return None

    async def ping(self) -> str | None:
        """What is wrong with Redis; None when it answers."""
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await self._redis.ping()
        except (RedisError, OSError, TimeoutError) as error:
            return str(error) or type(error).__name__
        return None

    async def close(self) -> None:
        await self._redis.aclose()

    async def _fetch(self, org_id: UUID) -> tuple[_Hash, _Hash, _Hash]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(f"spendstream:org:{org_id}")
            pipeline.hgetall("spendstream:watermarks")
            pipeline.hgetall("spendstream:counted")
            entries, watermarks, counted = await pipeline.execute()
        return entries, watermarks, counted


def standings_from_redis(
    entries: _Hash, watermarks: _Hash, counted: _Hash, *, not_before: datetime = _EPOCH
) -> list[ModelStanding] | None:
    """The standings in the worker's hashes.

    None: the hashes do not have the whole org, or a watermark is older than ``not_before``.
    """
    if not entries or not entries.keys() <= watermarks.keys():
        return None
    if any(_from_us(int(watermark)) < not_before for watermark in watermarks.values()):
        return None
    by_partition = {
        partition: msgspec.json.decode(entry, type=_OrgEntry).models for partition, entry in entries.items()
    }
    if None in by_partition.values():
        return None
    return [
        ModelStanding(
            model_id=model_id,
            standing=Standing(
                partition=int(partition),
                watermark=_from_us(int(watermarks[partition])),
                last_event_at=_from_us(last_event_us),
                last_rollup_at=_from_us(last_rollup_us),
                counted_through=_from_us(int(counted[partition])) if partition in counted else None,
            ),
        )
        for partition, models in by_partition.items()
        for model_id, last_event_us, last_rollup_us in models or ()
    ]


def _from_us(us: Any) -> datetime:
    return _EPOCH + timedelta(microseconds=us)
