"""The freshness of each org in Redis, written after each commit; a cache, never the truth.

Keys: the hash ``spendstream:org:{orgId}`` holds by partition the models seen with their last event and
rollup (null where there are more than MODELS_MAX); the hash ``spendstream:watermarks`` holds each partition's
committed watermark. The API computes lags from them when it is asked, so a dead worker shows a growing lag.
While Redis is away nothing else is affected; when it is back, every org is written anew, because anything may
be missing there. So it is when a key has gone that this worker wrote.

Each key lapses `LIFE_S` after it was last written. The worker writes every org that it knows anew each
`RENEW_US`: so only what no worker knows any more lapses, whole. A worker forgets orgs that it has not heard
of for `QUIET_US`, and the quietest ones where it would know more than `KNOWN_MAX` models. Of an org that may
be one of those that were too many the worker knows no complete list, and says so: the API asks the database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import msgspec
import numpy.typing as npt
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline import metrics
from pipeline.core.batch import Batch

log = logging.getLogger(__name__)

_ORGS_PER_WRITE = 500
LIFE_HOURS: Final = 30 * 24
"""How long a key lives without a worker that writes it. `api.reading.freshness.OLD` is half of it."""
MODELS_MAX = 1000
"""Of an org with more models in a partition none is listed: it is read from the database, page by page."""
KNOWN_MAX = 1_000_000
"""Models of all orgs that a worker knows by partition, about 200 bytes each; an org counts as one more."""
LIFE_S: Final = LIFE_HOURS * 3600
RENEW_US: Final = LIFE_S * 1_000_000 // 4
QUIET_US: Final = 400 * 86_400 * 1_000_000
"""As long as its rows last by default. Before that, a lag of this partition is a lag of the org."""


class FreshnessCache:
    """Knows every model of every org of one partition, and brings Redis up to date with it."""

    def __init__(self, url: str, *, partition: int, known: Iterable[tuple[UUID, UUID, int, int]]) -> None:
        self._redis = Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._partition = str(partition)
        # By text: Python hashes texts with a secret, and UUIDs with none: a sender could make those collide.
        self._orgs: dict[str, dict[str, tuple[int, int]] | None] = {}
        """By org, its models' last event and rollup; None: too many, or not all of them are known. The org
        that was heard of last is the last."""
        self._known = 0
        self._has_forgotten = False
        self._has_written = False
        self._heard_us: dict[str, int] = {}
        for org, model, last_event_us, last_rollup_us in sorted(known, key=itemgetter(3)):
            self._hear(str(org), str(model), last_event_us, last_rollup_us)
        self._unwritten: set[str] = set(self._orgs)
        self._renewed_us: int | None = None
        self._away = False

    async def committed(self, batch: Batch, *, now_us: int) -> None:
        """Take in a committed batch and write what Redis lacks. Never raises for Redis' sake."""
        seen = batch.models
        assert seen.model is not None
        for i in range(len(seen)):
            org, model = (_text(ids[i]) for ids in (seen.org, seen.model))
            self._hear(org, model, int(seen.span_us[i, 1]), now_us)
            self._unwritten.add(org)
        if self._renewed_us is None or now_us >= self._renewed_us + RENEW_US:
            self._forget(lambda org: self._heard_us[org] < now_us - QUIET_US)
            self._renewed_us, self._unwritten = now_us, set(self._orgs)
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

    def _hear(self, org: str, model: str, last_event_us: int, last_rollup_us: int) -> None:
        if org in self._orgs:
            models = self._orgs.pop(org)
        else:
            models = None if self._has_forgotten else {}
            self._known += 1
        if models is not None:
            last_us = max(last_event_us, models.get(model, (0, 0))[0])
            self._known += model not in models
            models[model] = (last_us, last_rollup_us)
            if len(models) > MODELS_MAX:
                self._known -= len(models)
                models = None
        self._orgs[org], self._heard_us[org] = models, last_rollup_us
        if self._known > KNOWN_MAX:
            self._forget(lambda _: self._known > KNOWN_MAX * 9 // 10)
            self._has_forgotten = True

    def _forget(self, is_to_go: Callable[[str], bool]) -> None:
        """Forget the quietest orgs while they are to go."""
        for org in list(self._orgs):
            if not is_to_go(org):
                break
            self._known -= 1 + len(self._orgs.pop(org) or ())
            del self._heard_us[org]

    async def _write(self, watermark_us: int | None) -> None:
        while self._unwritten:
            some = [self._unwritten.pop() for _ in range(min(_ORGS_PER_WRITE, len(self._unwritten)))]
            async with self._redis.pipeline(transaction=False) as pipe:
                for org in some:
                    of_org = self._orgs.get(org)  # None, too, if the org has been forgotten meanwhile
                    models = None if of_org is None else [[model, *at] for model, at in of_org.items()]
                    key = f"spendstream:org:{org}"
                    pipe.hset(key, self._partition, msgspec.json.encode({"models": models}).decode())
                    pipe.expire(key, LIFE_S)
                await pipe.execute()
        if watermark_us is not None:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset("spendstream:watermarks", self._partition, str(watermark_us))
                pipe.expire("spendstream:watermarks", LIFE_S)
                is_new, _ = await pipe.execute()
            if is_new and self._has_written:
                log.warning("redis_lost_keys")
                self._unwritten = set(self._orgs)
            self._has_written = True

    async def close(self) -> None:
        await self._redis.aclose()


def _text(halves: npt.NDArray[Any]) -> str:
    """An id of (high, low) as text."""
    return str(UUID(int=int(halves[0]) << 64 | int(halves[1])))
