"""Rate limits: how many requests a minute each caller may send.

Requests are counted by caller, in Redis where it is configured, so the limit holds over all processes of a
server. Without Redis each process counts by itself. While Redis is away the processes do the same: nobody is
turned away because of Redis. A window is a minute of the clock.

A request whose credentials prove nothing has no caller. `Unknown` counts it by address, in each process.
"""

from __future__ import annotations

import hashlib
import logging
import time
from asyncio import timeout
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline.common import problems

log = logging.getLogger(__name__)

WINDOW_S: Final = 60
_REDIS_TIMEOUT_S: Final = 0.05
_PAUSE_S: Final = 2.0
_CALLERS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a caller has left in this window, which ends in ``reset_s``."""

    quota: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        return {
            "RateLimit-Policy": f'"caller";q={self.quota};w={WINDOW_S}',
            "RateLimit": f'"caller";r={self.remaining};t={self.reset_s}',
        }


ALLOWANCE: Final = web.RequestKey("allowance", Allowance)
"""Key of the request under which `show_allowance` finds what to show."""


async def show_allowance(request: web.Request, response: web.StreamResponse) -> None:
    """Tell the caller of its allowance (for an application's ``on_response_prepare``)."""
    allowance = request.get(ALLOWANCE)
    if allowance is not None:
        response.headers.update(allowance.headers())


class Unknown:
    """Counts requests whose credentials prove nothing, by address and all together, in this process.

    Callers who prove who they are never meet this limit. So it does not hurt them to share an address, of a
    proxy for example, with others who fail. ``quota`` is the limit of one address; 0: no limit. ``setting``
    is the name of the setting that says so.
    """

    PROCESS: Final = 10
    """The limit of the whole process, as a multiple of the limit of one address. It also bounds how many
    addresses are counted."""

    def __init__(
        self, quota: int, clock: Callable[[], datetime], *, setting: str = "API_UNKNOWN_RATE_LIMIT"
    ) -> None:
        self._quota = quota
        self._setting = setting
        self._clock = clock
        self._window = 0
        self._counts: Counter[str] = Counter()
        self._all = 0

    def take(self, address: str) -> None:
        """Count one request. Raises `Problem` 429 when a limit is passed."""
        if not self._quota:
            return
        now = self._clock().timestamp()
        window = int(now // WINDOW_S)
        if window != self._window:
            self._window, self._all = window, 0
            self._counts.clear()
        if self._all < self._quota * self.PROCESS and self._counts[address] < self._quota:
            self._all += 1
            self._counts[address] += 1
            return
        raise problems.too_many(
            f"At most {self._quota} requests a minute without valid credentials from one address"
            f" ({self._setting}).",
            retry_after_s=int((window + 1) * WINDOW_S - now) + 1,
        )


class RateLimiter:
    """Counts requests by caller. ``quota`` is the limit of one caller; 0: no limit.

    ``setting`` is the name of the setting that says so. Servers with different settings count apart in Redis,
    each under its ``space``.
    """

    def __init__(
        self,
        quota: int,
        redis_url: str | None,
        clock: Callable[[], datetime],
        *,
        setting: str = "API_RATE_LIMIT",
        space: str = "rate",
    ) -> None:
        self._quota = quota
        self._setting = setting
        self._space = space
        self._clock = clock
        self._redis: Redis | None = None
        if redis_url is not None and quota:
            self._redis = Redis.from_url(
                redis_url,
                socket_timeout=_REDIS_TIMEOUT_S,
                socket_connect_timeout=_REDIS_TIMEOUT_S,
                retry=None,
            )
        self._away_until = 0.0
        self._counts: Counter[str] = Counter()
        self._window = 0

    async def take(self, subject: str) -> Allowance | None:
        """Count one request; None where there is no limit. Raises `Problem` 429 when the limit is passed."""
        if not self._quota:
            return None
        now = self._clock().timestamp()
        window = int(now // WINDOW_S)
        name = hashlib.blake2b(subject.encode("utf-8", "replace"), digest_size=16).hexdigest()
        count = await self._count_shared(f"spendstream:{self._space}:{name}:{window}")
        if count is None:
            count = self._count_here(name, window)
        reset_s = int((window + 1) * WINDOW_S - now) + 1
        allowance = Allowance(quota=self._quota, remaining=max(0, self._quota - count), reset_s=reset_s)
        if count > self._quota:
            problem = problems.too_many(
                f"At most {self._quota} requests a minute for each caller ({self._setting}).",
                retry_after_s=reset_s,
            )
            problem.headers = {**problem.headers, **allowance.headers()}
            raise problem
        return allowance

    async def close(self) -> None:
        if self._redis:
            await self._redis.aclose()

    async def _count_shared(self, key: str) -> int | None:
        if self._redis is None or time.monotonic() < self._away_until:
            return None
        try:
            async with timeout(_REDIS_TIMEOUT_S), self._redis.pipeline(transaction=False) as pipeline:
                pipeline.incr(key)
                pipeline.expire(key, 2 * WINDOW_S)
                return int((await pipeline.execute())[0])
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = time.monotonic() + _PAUSE_S
            log.warning("rate_limit_counted_here", extra={"error": str(error) or type(error).__name__})
            return None

    def _count_here(self, name: str, window: int) -> int:
        if window != self._window or len(self._counts) >= _CALLERS_MAX:
            self._window = window
            self._counts.clear()
        self._counts[name] += 1
        return self._counts[name]
