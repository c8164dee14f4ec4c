"""Sends what is in the outbox: each delivery until it arrives, or until its attempts are used up.

1. Claimed. A delivery belongs to this process until its lease runs out. If the process dies now, another one
   sends the delivery after that.
2. Sent. If the process dies now, the delivery is sent once more, with the same ``webhook-id``, by which the
   receiver knows it.
3. Recorded: delivered, due again, or failed.

One endpoint holds up no other one. An endpoint has one delivery in work at a time in a process. An attempt
ends after WEBHOOK_TIMEOUT. Endpoints that fail, or whose last answer here took `SLOW_S`, are apart: they have
at most `APART_MAX` of the `SENDS_MAX` places, so the others find a place, however many hang. An org has at
most `ORG_MAX` places, and `ORG_APART_MAX` more for its endpoints that are apart, so four orgs cannot fill all
places. The org with the fewest deliveries in work is served first.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final
from uuid import UUID

import aiohttp
from psycopg.rows import tuple_row

from api.alerts.calls import APART, Lookups, PublicResolver, bounded_socket, said
from api.alerts.metrics import Metrics
from api.config import WebhookConfig
from api.reading.database import Database, rows
from api.webhooks.addresses import fault_of
from api.webhooks.kept import SQL
from api.webhooks.messages import headers
from api.webhooks.sealed import Endpoint, Sealer, Unreadable
from pipeline.common import traces
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable

log = logging.getLogger(__name__)

SENDS_MAX: Final = 64
APART_MAX: Final = 32
ORG_MAX: Final = 10
ORG_APART_MAX: Final = 4
SLOW_S: Final = 3.0
SCHEDULE_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""How long after an attempt the next one is: Standard Webhooks. Jitter makes it a fifth more or less."""
RETRY_AFTER_MAX_S: Final = 86_400
KEPT: Final = timedelta(days=30)
_JITTER: Final = 0.2
_POLL_S: Final = 1.0
_HOUSEKEEPING_S: Final = 15.0
_LEASE_S: Final = 60.0
_STOP_S: Final = 5.0
_SLOW_KNOWN_MAX: Final = 10_000
_GONE: Final = 410


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. ``error`` None: the endpoint has taken the delivery."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Claimed:
    delivery_id: UUID
    webhook_id: UUID
    org_id: UUID
    body: str
    attempts: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class _Work:
    """A delivery that is being sent, in one of the places of its org."""

    task: asyncio.Task[None]
    org_id: UUID
    apart: bool


def again_s(attempts: int, retry_after_s: float | None, jitter: float) -> float | None:
    """After how long the next attempt is, if so many have failed; None: there is none.

    ``jitter`` is from -1 to 1. An endpoint may ask for more time by Retry-After, at most a day.
    """
    if attempts > len(SCHEDULE_S):
        return None
    wait_s = SCHEDULE_S[attempts - 1] * (1 + _JITTER * jitter)
    return max(wait_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))


class Sender:
    """Sends deliveries until its task is cancelled."""

    def __init__(
        self,
        database: Database,
        config: WebhookConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._sealer = Sealer(config.keys) if config.keys else None
        self._in_work: dict[UUID, _Work] = {}
        self._slow: dict[UUID, None] = {}
        self._lookups = Lookups(2 * SENDS_MAX)  # a look-up may outlive its call
        self._lookups_apart = Lookups(2 * APART_MAX)
        self._wake = asyncio.Event()
        self._housekept_at = 0.0

    def wake(self) -> None:
        """Look for deliveries at once."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due, again and again. When cancelled, it gives what is in work a few seconds."""
        async with self.session() as session:
            try:
                while True:
                    self._wake.clear()
                    try:
                        await self._keep_house()
                        await self.send_due(session)
                    except Unavailable as error:
                        log.warning("webhooks_without_database", extra={"error": str(error)})
                    except Exception:
                        log.exception("webhooks_look_failed")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_S):
                            await self._wake.wait()
            finally:
                tasks = [work.task for work in self._in_work.values()]
                if tasks:  # what was cancelled would be sent again after its lease
                    await asyncio.wait(tasks, timeout=_STOP_S)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def session(self) -> aiohttp.ClientSession:
        """A session that follows no proxy of the environment and keeps neither connections nor cookies."""
        resolver = PublicResolver(
            self._lookups, self._lookups_apart, allow_private=self._config.allow_private
        )
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=resolver,
                use_dns_cache=False,
                force_close=True,
                limit=SENDS_MAX,
                socket_factory=bounded_socket,
            ),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def send_due(self, session: aiohttp.ClientSession) -> int:
        """Begin to send a delivery of each webhook that has one due, as far as there are places.

        Raises `Unavailable`.
        """
        begun = 0
        for apart in (False, True):
            free = SENDS_MAX - len(self._in_work)
            if apart:
                free = min(free, APART_MAX - sum(work.apart for work in self._in_work.values()))
            free = min(free, (self._lookups_apart if apart else self._lookups).free)
            if free <= 0:
                continue
            claim = uuid.uuid4()
            for claimed in await self._claim(claim, apart=apart, limit=free):
                task = asyncio.create_task(self._send(session, claimed, claim, apart=apart))
                self._in_work[claimed.webhook_id] = _Work(task, claimed.org_id, apart)
                task.add_done_callback(lambda _, webhook_id=claimed.webhook_id: self._done(webhook_id))  # type: ignore[misc]
                begun += 1
        return begun

    async def wait(self) -> None:
        """Wait for what is in work."""
        await asyncio.gather(*(work.task for work in self._in_work.values()))

    def _done(self, webhook_id: UUID) -> None:
        self._in_work.pop(webhook_id, None)
        self._wake.set()  # the webhook may have another delivery

    async def _claim(self, claim: UUID, *, apart: bool, limit: int) -> list[_Claimed]:
        values = {
            "claim": claim,
            "lease": timedelta(seconds=_LEASE_S + self._config.timeout_s),
            "apart": apart,
            "slow": list(self._slow),
            "busy": list(self._in_work),
            "busy_orgs": [work.org_id for work in self._in_work.values() if work.apart == apart],
            "org_max": ORG_APART_MAX if apart else ORG_MAX,
            "limit": limit,
        }
        found = await self._database.write(lambda c: rows(c, SQL["claim"], values, tuple_row))
        return [
            _Claimed(delivery_id, webhook_id, org_id, body, attempts, bytes(sealed))
            for delivery_id, webhook_id, org_id, body, attempts, sealed in found
        ]

    async def _send(
        self, session: aiohttp.ClientSession, claimed: _Claimed, claim: UUID, *, apart: bool
    ) -> None:
        APART.set(apart)  # for this task alone, and for the look-up of its name
        began_s = time.monotonic()
        try:
            with traces.span(
                "deliver",
                "client",
                webhook_id=claimed.webhook_id,
                delivery_id=claimed.delivery_id,
                attempt=claimed.attempts,
            ) as span:
                outcome = await self._attempt(session, claimed)
                self._took(claimed.webhook_id, time.monotonic() - began_s)
                span.set(**{"http.response.status_code": outcome.status})
                if outcome.error is not None:
                    span.failed("not_delivered" if outcome.status is None else str(outcome.status))
                await self._record(claimed, claim, outcome)
        except Unavailable as error:  # the lease runs out, and the delivery is sent again
            log.warning("webhooks_without_database", extra={"error": str(error)})
        except Exception:
            log.exception("webhook_failed", extra={"webhook_id": str(claimed.webhook_id)})

    def _took(self, webhook_id: UUID, took_s: float) -> None:
        self._slow.pop(webhook_id, None)
        if took_s >= SLOW_S:
            self._slow[webhook_id] = None
            if len(self._slow) > _SLOW_KNOWN_MAX:
                del self._slow[next(iter(self._slow))]

    async def _attempt(self, session: aiohttp.ClientSession, claimed: _Claimed) -> Outcome:
        if self._sealer is None:
            return Outcome(error="WEBHOOK_KEY is not set, so the address cannot be read")
        try:
            endpoint = self._sealer.open(claimed.webhook_id, claimed.sealed)
        except Unreadable as error:
            return Outcome(error=f"the address cannot be read: {error}")
        if fault := fault_of(endpoint.url, allow_private=self._config.allow_private):
            return Outcome(error=f"the URL {fault}")
        try:
            return await self._post(session, endpoint, claimed)
        except TimeoutError:
            return Outcome(error=f"no answer within {self._config.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(error=said(error, endpoint.url))

    async def _post(self, session: aiohttp.ClientSession, endpoint: Endpoint, claimed: _Claimed) -> Outcome:
        now = self._clock()
        body = claimed.body.encode()
        sent = headers(claimed.delivery_id, body, endpoint.signing(now), int(now))
        async with session.post(endpoint.url, data=body, headers=sent, allow_redirects=False) as response:
            status = response.status
            retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""), now)
            response.close()  # whatever else it says, nobody reads it
        if 200 <= status < 300:
            return Outcome(status=status)
        why = "redirects are not followed" if 300 <= status < 400 else "it was not a success"
        return Outcome(status=status, error=f"the answer was {status}; {why}", retry_after_s=retry_after_s)

    async def _record(self, claimed: _Claimed, claim: UUID, outcome: Outcome) -> None:
        values: dict[str, Any] = {
            "delivery_id": claimed.delivery_id,
            "webhook_id": claimed.webhook_id,
            "claim": claim,
            "attempts": claimed.attempts,
            "last_status": outcome.status,
            "last_error": outcome.error,
            "again": None,
        }
        if outcome.error is None:
            name = "delivered"
        elif outcome.status == _GONE:
            name = "gone"
        else:
            wait_s = again_s(claimed.attempts, outcome.retry_after_s, random.uniform(-1, 1))
            values["again"] = None if wait_s is None else timedelta(seconds=wait_s)
            name = "failed" if wait_s is None else "repeated"

        async def write(connection: AsyncConnection) -> None:
            statement = name if name in ("delivered", "gone") else "not_delivered"
            if name == "gone":
                await connection.execute(SQL["not_delivered"], values)
            await connection.execute(SQL[statement], values)

        await self._database.write(write)
        self._metrics.sent(name)
        if outcome.error is not None:
            facts = {"webhook_id": str(claimed.webhook_id), "delivery_id": str(claimed.delivery_id)}
            log.info("webhook_not_delivered", extra={**facts, "error": outcome.error, "then": name})

    async def _keep_house(self) -> None:
        if time.monotonic() - self._housekept_at < _HOUSEKEEPING_S:
            return

        async def keep(connection: AsyncConnection) -> tuple[Any, ...]:
            await connection.execute(SQL["forget"], {"kept": KEPT})
            (found,) = await rows(connection, SQL["outbox"], {}, tuple_row)
            return found

        self._metrics.outbox(*await self._database.write(keep))
        self._housekept_at = time.monotonic()


def _retry_after_s(text: str, now: float) -> float | None:
    """The seconds of a Retry-After, which may be a date."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None
