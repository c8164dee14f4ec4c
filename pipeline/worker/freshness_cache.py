"""The freshness of each org in Redis, written after each commit. The cache is never the truth.

There are three kinds of keys. The hash ``spendstream:org:{orgId}`` has a field for each partition: the models
seen, with the times of their last event and last rollup, or null if there are more than `MODELS_MAX`. The
hashes ``spendstream:watermarks`` and ``spendstream:counted`` have the committed watermark of each partition,
and the time up to which it is counted. The API computes the lags when
it is asked, so the lag of a dead worker grows.

A new owner of a partition first takes the watermark out of the hash, so the API asks the database until the
owner has committed. After a restore of the database the watermark in Redis would be later than the figures.

While Redis is away, nothing else is affected. When Redis is back, any key may be missing, so the worker
writes every org again. It does the same when it finds that the watermark it wrote is gone.

A key lapses `LIFE_S` (30 days) after the last write. The worker writes every org that it knows again each
`RENEW_US` (7.5 days), so only keys lapse that no worker knows any more. A worker forgets an org after
`QUIET_US` without an event. It also forgets the quietest orgs when it would know more than `KNOWN_MAX`
models. From then on, a new org may be one of these forgotten orgs, and the worker may not know all of its
models. So the worker writes null for the org, and the API asks the database.
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
from pipeline.core.batch import Batch, Position

log = logging.getLogger(__name__)

_ORGS_PER_WRITE = 500
LIFE_HOURS: Final = 30 * 24
"""How long a key lives without a worker that writes it. `api.reading.freshness.OLD` is half of it."""
MODELS_MAX = 1000
"""An org with more models in a partition has no list here: the API reads them from the database by page."""
KNOWN_MAX = 1_000_000
"""The most models that a worker knows for a partition, about 200 bytes each. An org counts as one more."""
LIFE_S: Final = LIFE_HOURS * 3600
RENEW_US: Final = LIFE_S * 1_000_000 // 4
QUIET_US: Final = 400 * 86_400 * 1_000_000
"""How long a worker knows a silent org: as long as rows are kept by default (400 days). Until then, the lag
of the partition is a lag of the org."""


class FreshnessCache:
    """Knows every model of every org of one partition, and brings Redis up to date with it."""

    def __init__(self, url: str, *, partition: int, known: Iterable[tuple[UUID, UUID, int, int]]) -> None:
        self._redis = Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._partition = str(partition)
        # The keys are texts: Python hashes texts with a secret. It hashes UUIDs without one, so a sender
        # could make many UUIDs collide.
        self._orgs: dict[str, dict[str, tuple[int, int]] | None] = {}
        """By org, the last event and rollup of its models. None: the org has too many models, or not all of
        them are known. The org that was heard of last stands last."""
        self._known = 0
        self._has_forgotten = False
        self._has_written = False
        self._heard_us: dict[str, int] = {}
        for org, model, last_event_us, last_rollup_us in sorted(known, key=itemgetter(3)):
            self._hear(str(org), str(model), last_event_us, last_rollup_us)
        self._unwritten: set[str] = set(self._orgs)
        self._renewed_us: int | None = None
        self._away = False

    async def recovered(self) -> None:
        """Take the watermark of an earlier owner out of Redis. An error of Redis is logged, not raised.

        Example: the database was restored from the backup of 02:00, and the last commit before was at 10:00.
        Without this step Redis would say until the first flush that the figures are complete up to 10:00.
        """
        try:
            await self._redis.hdel("spendstream:watermarks", self._partition)
        except (RedisError, OSError) as error:
            self._failed(error)

    async def committed(self, batch: Batch, *, now_us: int) -> None:
        """Take in a committed batch, and bring Redis up to date. An error of Redis is logged, not raised."""
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
            await self._write(batch.position)
        except (RedisError, OSError) as error:
            self._failed(error)
            self._unwritten = set(self._orgs)
        else:
            if self._away:
                log.info("redis_back")
            self._away = False

    def _failed(self, error: Exception) -> None:
        metrics.REDIS_FAILURES.inc()
        if not self._away:
            log.warning("redis_away", extra={"error": str(error)})
        self._away = True

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
        """Forget orgs, the quietest first, while ``is_to_go`` is true of them."""
        for org in list(self._orgs):
            if not is_to_go(org):
                break
            self._known -= 1 + len(self._orgs.pop(org) or ())
            del self._heard_us[org]

    async def _write(self, position: Position) -> None:
        while self._unwritten:
            some = [self._unwritten.pop() for _ in range(min(_ORGS_PER_WRITE, len(self._unwritten)))]
            async with self._redis.pipeline(transaction=False) as pipe:
                for org in some:
                    of_org = self._orgs.get(org)  # also None if the org was forgotten meanwhile
                    models = None if of_org is None else [[model, *at] for model, at in of_org.items()]
                    key = f"spendstream:org:{org}"
                    pipe.hset(key, self._partition, msgspec.json.encode({"models": models}).decode())
                    pipe.expire(key, LIFE_S)
                await pipe.execute()
        if position.watermark_us is not None:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset("spendstream:watermarks", self._partition, str(position.watermark_us))
                pipe.expire("spendstream:watermarks", LIFE_S)
                if position.counted_us is not None:
                    pipe.hset("spendstream:counted", self._partition, str(position.counted_us))
                    pipe.expire("spendstream:counted", LIFE_S)
                is_new, *_ = await pipe.execute()
            if is_new and self._has_written:
                log.warning("redis_lost_keys")
                self._unwritten = set(self._orgs)
            self._has_written = True

    async def close(self) -> None:
        await self._redis.aclose()


def _text(halves: npt.NDArray[Any]) -> str:
    """The text of an id given as (high, low)."""
    return str(UUID(int=int(halves[0]) << 64 | int(halves[1])))
