"""The composition root of ``spendstream collector``: builds everything, starts and stops it in order.

The start: first the server, so that probes get an answer; then the compiled rules and the spool; then
requests are taken. The broker may be away at the start, and so may the database.

SIGTERM or SIGINT stops the collector: readiness says so and new requests get a 503, those in work get their
answers, and the process exits with 0. Events in the spool stay there for the next start. A crash of any part
exits with 1 at once; what was answered is in the stream or in the spool.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from pipeline.collector.admit import Admission
from pipeline.collector.app import Gate, Health, Intake, create_app
from pipeline.collector.config import SPOOL_NEARLY_FULL, Config
from pipeline.collector.database import Database
from pipeline.collector.in_work import InWork
from pipeline.collector.metrics import Metrics
from pipeline.collector.org_names import OrgNames
from pipeline.collector.outlet import SILENT, Outlet
from pipeline.collector.requests import BodyReader
from pipeline.collector.spool import Spool
from pipeline.common.access.authenticate import authenticator
from pipeline.common.access.keys import Keys
from pipeline.common.access.limits import RateLimiter, Unknown
from pipeline.common.access.tokens import Tokens
from pipeline.common.errors import Unavailable
from pipeline.common.heap import give_freed_memory_back
from pipeline.common.listening import CannotListen, listen
from pipeline.common.serving import Runner
from pipeline.core import checked
from pipeline.processes import compiling
from pipeline.transports.factory import open_transport

log = logging.getLogger(__name__)

STOP_S: Final = 10.0
"""How long a stopping collector waits for the requests in work."""
KEEPALIVE_S: Final = 75.0
"""How long a connection may be idle. It also bounds the time for the head of a request."""
KEY_GRACE_S: Final = 900.0
"""How long an API key that was good is believed while the database is away. A sender may try only once, and
its events are not to be lost because a key cannot be looked up."""
_LINGER_S: Final = 2.0
"""How long a body is read and dropped after its request was refused, so that the sender sees why."""
_READ_BYTES: Final = 2**15
_HEALTH_S: Final = 0.5
"""How often the database is asked whether it is there."""
_SWITCH_S: Final = 0.001
"""How long the event loop waits for a thread that works on a large body. Python's own 5 ms would be felt."""
_DISK_S: Final = 5.0
"""How often a spool's disk that failed is tried."""


async def run_collector(config: Config) -> int:
    """Run a collector until a signal or a crash; the exit code: 0 after a signal, 1 after a crash.

    Raises:
        OperatorError: the spool's folder cannot be used.
    """
    give_freed_memory_back()
    sys.setswitchinterval(_SWITCH_S)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    collector = Collector(config)
    runner = collector.runner()
    await runner.setup()
    try:
        addresses = await listen(runner, config.hosts, config.port)
        log.info("listening", extra={"addresses": addresses, "auth_mode": config.auth.mode})
        work = asyncio.create_task(collector.run())
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((stopped, work), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            stopped.cancel()
            await work
        log.info("collector_stopping")
        await collector.finish()
        await _cancelled(work)
    except CannotListen as error:
        log.error("cannot_listen", extra={"error": error.strerror})
        return 1
    finally:
        await runner.cleanup()
        await collector.close()
        log.info("collector_stopped")
    return 0


class Collector:
    """The parts of one collector. Its `intake` belongs to a server, which starts before and ends after
    `run`."""

    def __init__(self, config: Config) -> None:
        self.metrics = Metrics()
        self._config = config
        self._in_work = InWork(config.memory_bytes_max)
        self._transport = open_transport(config.stream)
        self._spool: Spool | None = None
        self._outlet: Outlet | None = None
        self._database: Database | None = None
        self._database_asked_at = float("-inf")
        self._org_names: OrgNames | None = None
        if config.database_url is not None:
            self._database = Database(
                config.database_url, service_name=config.service_name, timeout_s=config.database_timeout_s
            )
            self._org_names = OrgNames(self._database, set_by=config.service_name)
        self._tokens = Tokens(config.auth.tokens, _utc_now) if config.auth.tokens else None
        self._limiter = RateLimiter(
            config.rate_limit,
            config.redis_url,
            _utc_now,
            setting="COLLECTOR_RATE_LIMIT",
            space="collector-rate",
        )
        self.intake = Intake(
            gate=self._gate(),
            bodies=BodyReader(config.bounds),
            in_work=self._in_work,
            admission=Admission(config.bounds),
            metrics=self.metrics,
            org_names=self._org_names,
        )

    def runner(self) -> Runner:
        """The server for the collector's application."""
        config = self._config
        return Runner(
            create_app(self.intake, self.metrics, self, cors_origins=config.cors_origins),
            connections_max=config.connections_max,
            handle_signals=False,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=_LINGER_S,
            read_bufsize=_READ_BYTES,
            shutdown_timeout=1.0,
        )

    async def run(self) -> None:
        """Start, take requests, and publish until cancelled. Raises whatever a part raises."""
        config = self._config
        await compiling.warm_up(checked.warm_up)
        if config.spool is not None:
            self._spool = await Spool.open(config.spool.folder, bytes_max=config.spool.bytes_max)
        self._outlet = Outlet(
            self._transport,
            patience_s=config.confirm_s if config.spool is None else config.spool.after_s,
            spool=self._spool,
            confirmed=self.metrics.confirmed,
        )
        self.metrics.show(self._in_work, self._spool)
        # What the start has made stays for good. Without it in view the collector's full passes are short.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outlet.run())
            if self._spool is not None:
                tasks.create_task(_try_disk(self._spool))
            if self._org_names is not None:
                tasks.create_task(self._org_names.run())
            self.intake.start(self._outlet)
            log.info("collector_started", extra={"stream": config.stream.stream})

    async def finish(self) -> None:
        """Take no more requests, and return when those in work have their answers, or after `STOP_S`."""
        try:
            async with asyncio.timeout(STOP_S):
                await self.intake.finish()
        except TimeoutError:
            log.error("requests_left", extra={"after_s": STOP_S})

    async def close(self) -> None:
        """Close every connection, and the spool."""
        await self._transport.close()
        if self._spool is not None:
            await self._spool.close()
        await self._limiter.close()
        if self._tokens is not None:
            await self._tokens.close()
        if self._database is not None:
            await self._database.close()

    async def health(self) -> Health:
        """Are requests taken and kept, and how is each part?

        The spool stands in for the stream. The database is needed for API keys alone, and a key that was good
        is believed for a while without it. Anybody may ask, so no server or path of ours is named: the log
        has the causes.
        """
        stream, stream_keeps = self._stream_health()
        spool, spool_keeps = self._spool_health()
        return Health(
            ready=self.intake.is_open and (stream_keeps or spool_keeps),
            components={"stream": stream, "spool": spool, "database": await self._database_health()},
        )

    def _stream_health(self) -> tuple[dict[str, Any], bool]:
        if self._outlet is None:
            return _component("unavailable", "starting"), False
        if self._outlet.error is not None:
            return _component("unavailable", "away; the log says why"), False
        if self._outlet.is_stuck:
            return _component("unavailable", SILENT), False
        return _component("ok", "takes events"), True

    def _spool_health(self) -> tuple[dict[str, Any], bool]:
        spool = self._spool
        if spool is None:
            off = self._config.spool is None
            return _component("off" if off else "unavailable", "not set" if off else "starting"), False
        share = spool.bytes / spool.bytes_max
        oldest_s = None if spool.oldest_at is None else round(max(0.0, time.time() - spool.oldest_at), 1)
        facts = {
            "bytes": spool.bytes,
            "bytesMax": spool.bytes_max,
            "share": round(share, 4),
            "records": spool.records,
            "oldestSeconds": oldest_s,
            "tooLarge": spool.records_too_large,
            "lost": spool.records_lost,
            "filesSetAside": spool.files_set_aside,
        }
        if spool.failure is not None:
            return _component("unavailable", "its disk fails; the log says how", **facts), False
        if not spool.has_room:
            return _component("unavailable", "full (COLLECTOR_SPOOL_BYTES_MAX)", **facts), False
        if share >= SPOOL_NEARLY_FULL:
            return _component("degraded", "nearly full", **facts), True
        if spool.records_too_large:
            fault = "has events that are too large for the broker; the log says how to bring them back"
            return _component("degraded", fault, **facts), True
        if spool.records_lost or spool.files_set_aside:
            fault = "has lost events, or keeps files that are damaged or not its own; the log says which"
            return _component("degraded", fault, **facts), True
        return _component("ok", "keeps events while the broker is away", **facts), True

    async def _database_health(self) -> dict[str, Any]:
        if self._database is None:
            return _component("off", "DATABASE_URL is not set: no API keys, and no names of orgs")
        now = asyncio.get_running_loop().time()
        if now >= self._database_asked_at + _HEALTH_S:  # anybody may ask, as often as they like
            self._database_asked_at = now
            with suppress(Unavailable):
                await self._database.ping()
        if self._database.error is not None:
            return _component("degraded", "away; API keys that were good are believed for a while")
        return _component("ok", "answers")

    def _gate(self) -> Gate:
        auth = self._config.auth
        keys = None
        if auth.key_secret and self._database is not None:
            keys = Keys(
                auth.key_secret.encode(),
                database=self._database,
                cache_s=auth.key_cache_s,
                clock=_utc_now,
                grace_s=KEY_GRACE_S,
            )
        elif auth.key_secret and auth.mode != "none":
            remedy = "set DATABASE_URL, where the keys are; until then every API key gets a 401"
            log.warning("api_keys_off", extra={"missing": "DATABASE_URL", "remedy": remedy})
        return Gate(
            authenticate=authenticator(auth, keys=keys, tokens=self._tokens),
            limiter=self._limiter,
            unknown=Unknown(self._config.unknown_rate_limit, _utc_now),
            trusted_proxies=auth.trusted_proxies,
        )


async def _try_disk(spool: Spool) -> None:
    """Find out when a disk that failed works again, although no sender is sent here meanwhile."""
    while True:
        await asyncio.sleep(_DISK_S)
        if spool.failure is not None:
            await spool.try_disk()


def _component(status: str, detail: str, **facts: Any) -> dict[str, Any]:
    return {"status": status, "detail": detail, **facts}


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
