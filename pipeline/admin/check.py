"""A synthetic check: sends one event through everything, and measures how long it takes until it counts.

The event goes through the collector's door, or into the stream. Then the API is asked for the count of such
events, until the count is one higher than before. So a good answer says that door, broker, worker, database
and API all work now, and how late figures are.

The event bends no figure but the number of calls. It costs nothing (an estimate of 0), and has no tokens, no
latency, no actor and no metadata. It belongs to an org and a model of their own. Its id is new in each run.

How a run knows its own event: by its client, ``check-0`` to ``check-7``, from the minute in which the run
began. Runs that began in other minutes have other clients, so a run never takes the event of the run before
for its own, even if that one is late. Runs that begin in the same minute need names of their own. Eight
clients a name are a bound for the rows: a run a minute makes 8 rows by client an hour, and not 60. No run may
take eight minutes (CHECK_TIMEOUT), after which its client comes again.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final, Literal
from uuid import UUID

import aiohttp

from pipeline.collector import ids
from pipeline.common.settings import ConfigError, of
from pipeline.config import StreamConfig
from pipeline.prices.price import CHECK_MODEL
from pipeline.transports import TransportError
from pipeline.transports.factory import open_transport

PROVIDER, MODEL_NAME = CHECK_MODEL
CLIENTS: Final = 8
NAME_CHARS_MAX: Final = 100
_POLL_S: Final = 0.1
_PAUSE_S: Final = 0.5
_REQUEST_S: Final = 10.0
_BODY_BYTES_MAX: Final = 1 << 20
_BASE: Final = "/analytics/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """What is checked. ``key`` is an API key of the org: never log it.

    ``stream``: the event goes into this stream; None: to the collector. ``timeout_s`` is for all of the run.
    """

    api_url: str = of("CHECK_API_URL")
    collector_url: str | None = of("CHECK_COLLECTOR_URL")
    key: str | None = of("CHECK_KEY")
    org: str = of("CHECK_ORG")
    timeout_s: float = of("CHECK_TIMEOUT")
    name: str = "check"
    stream: StreamConfig | None = None

    @property
    def org_id(self) -> UUID:
        """The id of the org, which may be given by its name (docs/ids.md)."""
        return ids.org_id(self.org)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How far a run came. Times are seconds since the event was first sent; None: it did not come so far."""

    event_id: UUID
    org_id: UUID
    client_id: str
    by: Literal["collector", "stream"]
    stored_s: float | None = None
    counted_s: float | None = None
    fault: str = ""
    """What went wrong last: an answer, an error, or a count."""

    @property
    def is_counted(self) -> bool:
        return self.counted_s is not None


async def run(
    config: CheckConfig,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    new_id: Callable[[], UUID] = uuid.uuid4,
) -> Outcome:
    """Send one event, and wait until the API counts it, or until the time is up.

    A part that is away is asked again until then.

    Raises:
        ConfigError: a part refuses the key, or is no such part.
    """
    began = now()
    minute = int(began.timestamp()) // 60
    outcome = Outcome(
        event_id=new_id(),
        org_id=config.org_id,
        client_id=f"{config.name}-{minute % CLIENTS}",
        by="stream" if config.stream else "collector",
    )
    try:
        async with asyncio.timeout(config.timeout_s), _session(config) as session:
            await _Run(config, outcome, session, began).to_the_end()
    except TimeoutError:
        outcome.fault = outcome.fault or "nothing answered"
    return outcome


def _session(config: CheckConfig) -> aiohttp.ClientSession:
    headers = {"X-API-Key": config.key} if config.key else {}
    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=_REQUEST_S))


@dataclass(slots=True)
class _Run:
    config: CheckConfig
    outcome: Outcome
    session: aiohttp.ClientSession
    began: datetime
    sent_s: float = field(default=0.0, init=False)

    async def to_the_end(self) -> None:
        before = await self._count()
        self.sent_s = time.monotonic()
        event = _event(self.outcome, self.began)
        if self.config.stream is not None:
            await self._publish(self.config.stream, event)
        else:
            await self._post(event)
        self.outcome.stored_s = time.monotonic() - self.sent_s
        self.outcome.fault = ""
        while (count := await self._count()) <= before:
            self.outcome.fault = f"the API counts {count} events of the client, as before"
            await asyncio.sleep(_POLL_S)
        self.outcome.counted_s = time.monotonic() - self.sent_s
        self.outcome.fault = ""

    async def _count(self) -> int:
        """How many events of the run's client the API counts in the run's hour."""
        hour = self.began.replace(minute=0, second=0, microsecond=0)
        query = {
            "start": _rfc3339(hour),
            "end": _rfc3339(hour + timedelta(hours=1)),
            "granularity": "hour",
            "groupBy": "none",
            "clientId": self.outcome.client_id,
        }
        url = f"{self.config.api_url.removesuffix(_BASE)}{_BASE}/orgs/{self.config.org_id}/usage"
        while (answer := await self._ask("the API", "CHECK_API_URL", "GET", url, params=query)) is None:
            pass
        try:
            return int(answer["totals"]["invocations"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError([f"CHECK_API_URL: the answer of {url} is not an API's of ours"]) from None

    async def _post(self, event: bytes) -> None:
        url = f"{self.config.collector_url}/v1/events"
        json_body = {"Content-Type": "application/json"}
        ask = ("the collector", "CHECK_COLLECTOR_URL", "POST", url)
        while (answer := await self._ask(*ask, data=event, headers=json_body)) is None:
            pass  # the same event again: it counts once
        if not isinstance(answer, dict) or answer.get("accepted") != 1:
            raise ConfigError([f"CHECK_COLLECTOR_URL: the answer of {url} is not a collector's of ours"])

    async def _ask(self, whom: str, setting: str, method: str, url: str, **request: Any) -> Any:
        """The answer's JSON; None: it may be another one later, and `_PAUSE_S` has passed.

        Raises:
            ConfigError: it will be no other one later.
        """
        try:
            async with self.session.request(method, url, allow_redirects=False, **request) as response:
                body = await response.content.read(_BODY_BYTES_MAX)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.outcome.fault = f"{whom} at {url} does not answer: {str(error) or type(error).__name__}"
            await asyncio.sleep(_PAUSE_S)
            return None
        if status == HTTPStatus.OK:
            try:
                return json.loads(body)
            except ValueError:
                raise ConfigError([f"{setting}: {url} answers with no JSON; is it {whom}?"]) from None
        said = f"{url} answers {status}{_detail(body)}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            role = "analytics:usage:read" if whom == "the API" else "analytics:events:write"
            needs = f"{whom} needs a key of org {self.config.org_id} with the role {role}"
            raise ConfigError([f"CHECK_KEY: {said}; {needs}"])
        if status < 500 and status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
            raise ConfigError([f"{setting}: {said}; is it {whom}?"])
        self.outcome.fault = said
        await asyncio.sleep(_PAUSE_S)
        return None

    async def _publish(self, config: StreamConfig, event: bytes) -> None:
        """Publish the event until the stream has it. The check makes no stream that is not there."""
        transport = open_transport(config)
        try:
            while True:
                try:
                    publisher = await transport.publisher()
                    try:
                        await publisher.publish([event])
                    finally:
                        await publisher.close()
                    return
                except TransportError as error:
                    self.outcome.fault = f"the stream cannot be used: {error}"
                    await asyncio.sleep(_PAUSE_S)
        finally:
            await transport.close()


def _event(outcome: Outcome, occurred_at: datetime) -> bytes:
    return json.dumps(
        {
            "eventId": str(outcome.event_id),
            "orgId": str(outcome.org_id),
            "modelId": str(ids.model_id(PROVIDER, MODEL_NAME)),
            "provider": PROVIDER,
            "modelName": MODEL_NAME,
            "clientId": outcome.client_id,
            "occurredAt": _rfc3339(occurred_at),
            "latencyMs": 0,
            "status": "success",
            "inputTokens": 0,
            "outputTokens": 0,
            "costEstimateCents": "0",
        }
    ).encode()


def _detail(body: bytes) -> str:
    """What a problem says, in a line."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, TypeError, KeyError):
        return ""
    return f": {str(detail)[:300]}"


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
