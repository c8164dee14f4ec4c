"""Composition: builds the server from its parts, and the middleware that every request passes.

Which routes there are, and who may ask them, is the table in `api.contract.operations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from api import scrape
from api.access.guard import Guard
from api.access.turns import Turns
from api.adjustments.routes import Adjustments
from api.answering.answers import Readiness
from api.answering.conditional import finished
from api.asking.cursors import Cursors
from api.asking.questions import Parser
from api.budgets.routes import Budgets
from api.config import Config
from api.contract import openapi
from api.contract.operations import BASE, OPERATIONS, Handler
from api.exports.routes import Exports
from api.exports.runner import Runner
from api.exports.stores import FolderStore, S3Store, Store
from api.handlers import Handlers
from api.health import readiness
from api.live.hub import Hub
from api.live.streams import Live
from api.metrics import Exports as ExportMetrics
from api.metrics import Facts, Metrics
from api.names.routes import NameChanges
from api.notices.routes import NoticeRoutes
from api.prices.routes import Prices
from api.reading.database import PRIVILEGED_REMEDY, Database
from api.reading.freshness import FreshnessCache
from api.reading.prices import Books
from api.reading.recent import Recent
from api.webhooks.routes import Webhooks
from pipeline.common import correlation, logs, problems
from pipeline.common.access.audit import Audit
from pipeline.common.access.authenticate import authenticator
from pipeline.common.access.keys import Keys
from pipeline.common.access.limits import RateLimiter, Unknown, show_allowance
from pipeline.common.access.tokens import Tokens
from pipeline.common.cors import Cors
from pipeline.common.http import template
from pipeline.common.served import Decisions
from pipeline.common.serving import expected
from pipeline.common.traces import requests

log = logging.getLogger(__name__)

_READY_POLL_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


def export_store(config: Config) -> Store | None:
    """The place for this server's exports; None: there is none."""
    if config.exports.s3:
        return S3Store(config.exports.s3)
    if config.exports.folder:
        return FolderStore(Path(config.exports.folder), config.cursor_secret, BASE)
    return None


def export_runner(
    config: Config,
    store: Store,
    clock: Callable[[], datetime] | None = None,
    metrics: ExportMetrics | None = None,
) -> Runner:
    """The runner that makes the files of ``store``, and counts its attempts in ``metrics`` if given."""
    return Runner(
        database=config.database,
        config=config.exports,
        store=store,
        ranges=config.ranges,
        clock=clock or utc_now,
        metrics=metrics,
    )


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    config: Config,
    *,
    clock: Callable[[], datetime] = utc_now,
    give_up: Callable[[], None] = lambda: None,
) -> web.Application:
    """The application; its connections open on first use and close with it.

    ``clock`` gives the time for freshness, retention, tokens and the audit log. ``give_up`` is called when
    the database gives us rights that we must not have: only an operator can change that.
    """
    database = Database(config.database)
    cache = FreshnessCache(config.redis_url, clock) if config.redis_url else None
    store = export_store(config)
    metrics = Metrics()
    metrics.expect((operation.method, operation.path) for operation in OPERATIONS)
    turns = Turns(each=config.questions_max, pool_size=config.database.pool_size)
    metrics.watch(database.pool, turns, stream_max_age_s=config.stream_max_age_s)
    held = _Held(
        database=database,
        cache=cache,
        hub=Hub(database, config.live),
        runner=export_runner(config, store, clock, metrics.exports)
        if store and config.exports.in_process
        else None,
        # Anybody may ask for these two, as often as they like.
        ready=Recent(lambda: readiness(database, cache), lambda answer: answer.status == "ready"),
        facts=Recent(lambda: database.read(scrape.facts), lambda _: True),
        limiter=RateLimiter(config.rate_limit, config.redis_url, clock),
        tokens=Tokens(config.auth.tokens, clock) if config.auth.tokens else None,
        audit=Audit(database, clock),
        give_up=give_up,
    )
    handlers = _handlers(config, held, store, metrics, clock)
    cors = Cors(config.cors_origins)
    app = web.Application(
        middlewares=[
            *requests.middlewares(),
            _observed(metrics),
            cors.middleware,
            _guard(config, held, clock, turns, metrics.decisions).middleware,
        ],
        client_max_size=config.request_bytes_max,
    )
    for operation in OPERATIONS:
        handler = operation.handler(handlers)
        app.router.add_route(operation.method, operation.path, handler, expect_handler=expected)
        if operation.method == "GET":
            app.router.add_route("HEAD", operation.path, handler, expect_handler=expected)
    app.on_shutdown.append(held.end_streams)
    app.on_response_prepare.append(correlation.show)
    app.on_response_prepare.append(show_allowance)
    app.on_response_prepare.append(cors.show)
    app.cleanup_ctx.append(held.at_work)
    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The connections of one server, and its work beside the requests. All of it ends with the server."""

    database: Database
    cache: FreshnessCache | None
    hub: Hub
    runner: Runner | None
    ready: Recent[Readiness]
    facts: Recent[Facts]
    limiter: RateLimiter
    tokens: Tokens | None
    audit: Audit
    give_up: Callable[[], None]

    async def at_work(self, _: web.Application) -> AsyncIterator[None]:
        """Begin the work beside the requests; at the end, stop it and close every connection."""
        runner = self.runner
        waiting = asyncio.create_task(_until_ready(self.database, self.cache, self.give_up))
        auditing = asyncio.create_task(self.audit.run())
        exporting = asyncio.create_task(asyncio.to_thread(runner.run)) if runner else None
        yield
        if runner and exporting:
            runner.stop()
            await exporting
        for task in (waiting, auditing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.ready.close()
        await self.facts.close()
        if self.cache:
            await self.cache.close()
        if self.tokens:
            await self.tokens.close()
        await self.limiter.close()
        await self.database.close()

    async def end_streams(self, _: web.Application) -> None:
        """End every live connection, which would otherwise keep the server from stopping."""
        await self.hub.close()


def _handlers(
    config: Config, held: _Held, store: Store | None, metrics: Metrics, clock: Callable[[], datetime]
) -> Handlers:
    cursors = Cursors(config.cursor_secret)
    parser = Parser(ranges=config.ranges, cursors=cursors, clock=clock)
    return Handlers(
        database=held.database,
        cache=held.cache,
        parser=parser,
        cursors=cursors,
        freshness=config.freshness,
        dedupe_window_s=config.ranges.dedupe_window_s,
        auth_mode=config.auth.mode,
        metrics=metrics,
        ready=held.ready,
        facts=held.facts,
        clock=clock,
        document=lambda: openapi.document_json(config.ranges),
        live=Live(
            hub=held.hub,
            parser=parser,
            config=config.live,
            freshness=config.freshness,
            metrics=metrics,
            clock=clock,
        ),
        exports=Exports(
            database=held.database,
            store=store,
            config=config.exports,
            parser=parser,
            cursors=cursors,
            clock=clock,
            wake=held.runner.wake if held.runner else lambda: None,
        ),
        adjustments=Adjustments(database=held.database, parser=parser, cursors=cursors),
        budgets=Budgets(database=held.database, parser=parser, cursors=cursors, clock=clock),
        notices=NoticeRoutes(database=held.database, parser=parser, cursors=cursors, clock=clock),
        webhooks=Webhooks(
            database=held.database,
            config=config.webhooks,
            parser=parser,
            cursors=cursors,
            clock=clock,
        ),
        name_changes=NameChanges(database=held.database, parser=parser),
        books=Books(),
        prices=Prices(
            database=held.database,
            config=config.database,
            ranges=config.ranges,
            parser=parser,
            cursors=cursors,
        ),
    )


def _guard(
    config: Config, held: _Held, clock: Callable[[], datetime], turns: Turns, decisions: Decisions
) -> Guard:
    """What stands before the handlers: who asks, whether that is allowed, and how often."""
    auth = config.auth
    keys = None
    if auth.key_secret:
        keys = Keys(auth.key_secret.encode(), database=held.database, cache_s=auth.key_cache_s, clock=clock)
    return Guard(
        authenticate=authenticator(auth, keys=keys, tokens=held.tokens),
        limiter=held.limiter,
        unknown=Unknown(config.unknown_rate_limit, clock),
        turns=turns,
        trusted_proxies=auth.trusted_proxies,
        accesses={(operation.method, operation.path): operation.access for operation in OPERATIONS},
        audit=held.audit,
        decisions=decisions,
    )


def _observed(metrics: Metrics) -> Middleware:
    """The outermost middleware: every answer is counted and logged, every error is a problem."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        facts = correlation.of(request).facts
        with logs.within(facts):
            response = await _answer(request, handler)
        duration_s = time.perf_counter() - started
        route = template(request)
        streamed = response.content_type == "text/event-stream"
        metrics.served.count(request.method, route, response.status, None if streamed else duration_s)
        quiet = response.status < 400 and not route.startswith(f"{BASE}/orgs")
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request_served",
            extra={
                "method": request.method,
                "route": route,
                "status": response.status,
                "duration_ms": round(duration_s * 1000, 2),
                **facts,
            },
        )
        return response

    return middleware


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await finished(request, await handler(request))
    except Exception as error:
        return problems.answer(error, request)


async def _until_ready(database: Database, cache: FreshnessCache | None, give_up: Callable[[], None]) -> None:
    """Log what the server waits for, and when everything is there."""
    waited = 0
    while True:
        answer = await readiness(database, cache)
        if database.privileged:
            log.error("database_role_privileged", extra={"remedy": PRIVILEGED_REMEDY})
            give_up()
            return
        if answer.status == "ready":
            log.info("ready", extra={"redis": answer.components.redis.status})
            return
        log.warning(
            "waiting_for_dependencies",
            extra={
                "database": answer.components.database.detail,
                "schema": answer.components.schema.detail,
            },
        )
        await asyncio.sleep(_READY_POLL_S[min(waited, len(_READY_POLL_S) - 1)])
        waited += 1
