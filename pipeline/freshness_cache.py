"""The freshness of each org in Redis, written after each commit; a cache, never the truth.

Keys: the hash ``spendstream:org:{orgId}`` holds by partition the models seen with their last event and
rollup (null where there are more than MODELS_MAX); the hash ``spendstream:watermarks`` holds each partition's
committed watermark. The API computes lags from them when it is asked, so a dead worker shows a growing lag.
While Redis is away nothing else is affected; when it is back, every org is written anew, because anything may
be missing there.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import msgspec
import numpy.typing as npt
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline import metrics
from pipeline.core.ledger import Batch

log = logging.getLogger(__name__)

_ORGS_PER_WRITE = 500
MODELS_MAX = 1000
"""Of an org with more models in a partition none is listed: it is read from the database, page by page."""


class FreshnessCache:
    """Knows every model of every org of one partition, and brings Redis up to date with it."""

    def __init__(self, url: str, *, partition: int, known: Iterable[tuple[UUID, UUID, int, int]]) -> None:
        self._redis = Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._partition = str(partition)
        # By text: Python hashes texts with a secret, and UUIDs with none: a sender could make those collide.
        self._orgs: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for org, model, last_event_us, last_rollup_us in known:
            self._orgs[str(org)][str(model)] = (last_event_us, last_rollup_us)
        self._unwritten: set[str] = set(self._orgs)
        self._away = False

    async def committed(self, batch: Batch, *, now_us: int) -> None:
        """Take in a committed batch and write what Redis lacks. Never raises for Redis' sake."""
        seen = batch.models
        assert seen.model is not None
        for i in range(len(seen)):
            org, model = (_text(ids[i]) for ids in (seen.org, seen.model))
            last_us = max(int(seen.span_us[i, 1]), self._orgs[org].get(model, (0, 0))[0])
            self._orgs[org][model] = (last_us, now_us)
            self._unwritten.add(org)
        try:
            await self._write(batch.position.watermark_us)
        except (RedisError, OSError) as error:
            metrics.REDIS_FAILURES.inc()
            if not self._away:
                log.warning("redis_away", extra={"error": str(error)})
            self._away = True
            self._unwritten = set(self._orgs)
        else:
            if self._away:
                log.info("redis_back")
            self._away = False

    async def _write(self, watermark_us: int | None) -> None:
        while self._unwritten:
            some = [self._unwritten.pop() for _ in range(min(_ORGS_PER_WRITE, len(self._unwritten)))]
            async with self._redis.pipeline(transaction=False) as pipe:
                for org in some:
                    models = None
                    if len(self._orgs[org]) <= MODELS_MAX:
                        models = [[model, *times] for model, times in self._orgs[org].items()]
                    pipe.hset(
                        f"spendstream:org:{org}",
                        self._partition,
                        msgspec.json.encode({"models": models}).decode(),
                    )
                await pipe.execute()
        if watermark_us is not None:
            await self._redis.hset("spendstream:watermarks", self._partition, str(watermark_us))

    async def close(self) -> None:
        await self._redis.aclose()


def _text(halves: npt.NDArray[Any]) -> str:
    """An id of (high, low) as text."""
    return str(UUID(int=int(halves[0]) << 64 | int(halves[1])))
