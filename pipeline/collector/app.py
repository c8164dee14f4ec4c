"""The collector's HTTP application: who asks, what is sent, what is published, what is answered.

A request passes these stations in this order: its caller is known and may write; its head fits; its body is
read (`requests`); its items are offered by a dialect and admitted (`doors`, `admit`); the events are safe
(`outlet`). Only then is the answer 200. No station logs anything of a body but the faults of its items, which
never quote it: many senders show their users no answer, so the log is where somebody finds the faults.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from pipeline.collector import answers, doors
from pipeline.collector.admit import Admission, Admitted
from pipeline.collector.dialects import TooMuch, Unreadable
from pipeline.collector.in_work import InWork
from pipeline.collector.metrics import Metrics
from pipeline.collector.org_names import OrgNames
from pipeline.collector.outlet import Away, Outlet
from pipeline.collector.requests import BodyReader
from pipeline.common import correlation, heap, keys, logs, problems, traces
from pipeline.common.access.authenticate import Authenticator, Networks, address_of
from pipeline.common.access.caller import Caller
from pipeline.common.access.limits import ALLOWANCE, RateLimiter, Unknown, show_allowance
from pipeline.common.cors import Cors
from pipeline.common.http import template
from pipeline.common.problems import Fault, Problem
from pipeline.common.seldom import Seldom
from pipeline.common.served import CONTENT_TYPE
from pipeline.common.serving import expected_later, go_on
from pipeline.common.traces import requests as traced

log = logging.getLogger(__name__)

ROLE: Final = keys.EVENTS_WRITE
RETRY_AFTER_S: Final = 2
_PAGE_HEADERS: Final = (
    "Content-Encoding",
    "ce-id",
    "ce-source",
    "ce-specversion",
    "ce-subject",
    "ce-time",
    "ce-type",
)
"""What a page in a browser may send beside what every server of ours takes."""
_FORM: Final = web.RequestKey("form", str)
_SUBJECT: Final = web.RequestKey("subject", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Who may write."""

    authenticate: Authenticator
    limiter: RateLimiter
    unknown: Unknown
    trusted_proxies: Networks

    async def caller(self, request: web.Request) -> Caller:
        """Who sent the request.

        Raises:
            Problem: 401, 403 (the caller may not write), 429.
            Unavailable: it cannot be found out now.
        """
        try:
            caller = await self.authenticate(request)
        except Problem:
            self.unknown.take(address_of(request, self.trusted_proxies))
            raise
        allowance = await self.limiter.take(caller.subject)
        if allowance is not None:
            request[ALLOWANCE] = allowance
        if not caller.has(ROLE):
            log.info("access_denied", extra={"actor": caller.subject, "role": ROLE})
            raise problems.forbidden(f"This needs the role {ROLE}.")
        return caller


class Intake:
    """The way of a request from its head to its answer."""

    def __init__(
        self,
        *,
        gate: Gate,
        bodies: BodyReader,
        in_work: InWork,
        admission: Admission,
        metrics: Metrics,
        org_names: OrgNames | None,
    ) -> None:
        self._gate = gate
        self._bodies = bodies
        self._in_work = in_work
        self._admission = admission
        self._outlet: Outlet | None = None
        self._metrics = metrics
        self._org_names = org_names
        self._seldom = Seldom()
        self._requests = 0
        self._none = asyncio.Event()
        self._none.set()

    @property
    def is_open(self) -> bool:
        """Are requests taken? Not before everything is started, and not when it stops."""
        return self._outlet is not None

    def start(self, outlet: Outlet) -> None:
        """Take requests from now on."""
        self._outlet = outlet

    def handler(self, door: doors.Door) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            request[_FORM] = form = door.form(request)
            if self._outlet is None:
                raise _closed()
            self._requests += 1
            self._none.clear()
            try:
                admitted = await self._take(door, request, self._outlet)
                return answers.taken(admitted, form, passes_over=door.passes_over)
            finally:
                self._requests -= 1
                if not self._requests:
                    self._none.set()
                if request.content.total_bytes > heap.TRIM_BYTES:
                    heap.trim()

        return handle

    async def finish(self) -> None:
        """Take no more requests, and return when those in work have their answers."""
        self._outlet = None
        await self._none.wait()

    async def _take(self, door: doors.Door, request: web.Request, outlet: Outlet) -> Admitted:
        caller = await self._gate.caller(request)
        request[_SUBJECT] = caller.subject
        atomic = _is_atomic(request)
        kind = door.content_type(request)
        await go_on(request)
        with self._in_work.share(caller.subject) as share:
            body = await self._bodies.read(request, share)
            try:
                offers = door.read(body, only_org(caller), kind, request.headers)
                admitted = await self._admission.admit(
                    offers,
                    body_bytes=len(body),
                    caller=caller,
                    share=share,
                    event_bytes_max=outlet.body_bytes_max,
                )
            except TooMuch as error:
                self._say("body_too_large", door.dialect, caller, 1, {"fault": str(error)})
                raise Problem(status=413, kind="too-large", detail=f"The body has {error}.") from None
            except Unreadable as error:
                self._say("body_unreadable", door.dialect, caller, 1, {"fault": str(error)})
                raise problems.invalid_body(str(error)) from None
            counts = {"events": len(admitted.bodies), "rejected": len(admitted.rejected)}
            traces.current().set(dialect=door.dialect, **counts)
            if admitted.rejected:
                facts = {"items": admitted.items, "fault": answers.first_fault(admitted.rejected)}
                self._say("events_rejected", door.dialect, caller, len(admitted.rejected), facts)
            share.shrink(len(body))
            del body, offers
            await self._publish(admitted, outlet, door.dialect, atomic=atomic)
        if self._org_names is not None and admitted.org_names:
            self._org_names.note(admitted.org_names)
        return admitted

    def _say(self, event: str, dialect: str, caller: Caller, count: int, facts: Mapping[str, Any]) -> None:
        """Warn of faults of a sender, at most once a minute for each caller and dialect.

        ``count`` in the line is of all since the line before; the other facts are of this body.
        """
        counted = self._seldom.count(f"{event} {dialect} {caller.subject}", count)
        if counted is not None:
            log.warning(event, extra={"dialect": dialect, "actor": caller.subject, "count": counted, **facts})

    async def _publish(self, admitted: Admitted, outlet: Outlet, dialect: str, *, atomic: bool) -> None:
        count = self._metrics.counted
        count(dialect, "rejected", len(admitted.rejected))
        count(dialect, "passed_over", admitted.passed_over)
        if admitted.rejected and (atomic or not admitted.bodies):
            count(dialect, "withdrawn", len(admitted.bodies))
            raise answers.nothing_taken(admitted)
        try:
            with traces.child("publish", "producer", events=len(admitted.bodies)) as span:
                went = await outlet.send(admitted.bodies, admitted.keys)
                span.set(to=went)
        except Away as error:
            count(dialect, "refused", len(admitted.bodies))
            raise away(str(error), spool=error.spool) from None
        count(dialect, went, len(admitted.bodies))


def only_org(caller: Caller) -> uuid.UUID | None:
    """The one org that the caller's credential is for; None: it is for several or all."""
    return next(iter(caller.orgs)) if caller.orgs is not None and len(caller.orgs) == 1 else None


def away(reason: str, *, spool: str = "") -> Problem:
    """The answer when events can be kept nowhere. ``reason`` may name our servers, so the log has it
    alone. ``spool`` says why the spool has not kept them; '' if there is none."""
    log.debug("events_refused", extra={"error": reason})
    return Problem(
        status=503,
        kind="unavailable",
        title="The stream is away",
        detail=(f"The stream is away, and {spool}. " if spool else "")
        + "The events cannot be kept now: send them again. What was stored all the same counts once.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def _closed() -> Problem:
    return Problem(
        status=503,
        kind="unavailable",
        title="Starting or stopping",
        detail="This collector is starting or stopping: send the request again, if you can to another one.",
        headers={"Retry-After": "1", "Connection": "close"},
    )


def _is_atomic(request: web.Request) -> bool:
    """The query's only parameter, ``atomic=true``. Raises `Problem` 400."""
    if not request.query_string:
        return False
    faults = []
    atomic = False
    for name in dict.fromkeys(request.query):
        values = request.query.getall(name)
        if name != "atomic":
            faults.append(Fault(name, "there is no such parameter; the only one is atomic"))
        elif len(values) > 1:
            faults.append(Fault(name, "must be given once"))
        elif values[0] not in ("true", "false"):
            faults.append(Fault(name, "expected true or false"))
        else:
            atomic = values[0] == "true"
    if faults:
        raise problems.invalid_parameters(faults)
    return atomic


# --- the application -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Is the collector ready, and what it says of each component."""

    ready: bool
    components: Mapping[str, Mapping[str, Any]]


class Healthy(Protocol):
    async def health(self) -> Health: ...


def create_app(
    intake: Intake, metrics: Metrics, healthy: Healthy, *, cors_origins: Sequence[str] = ()
) -> web.Application:
    """The application. Its parts open and close elsewhere (`pipeline.collector.service`)."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def readyz(_: web.Request) -> web.Response:
        health = await healthy.health()
        return web.json_response(
            {"status": "ready" if health.ready else "not_ready", "components": health.components},
            status=200 if health.ready else 503,
        )

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    cors = Cors(cors_origins, methods=("GET", "HEAD", "POST"), more_headers=_PAGE_HEADERS)
    app = web.Application(
        middlewares=[
            *traced.middlewares(),
            _observed(metrics),
            *([cors.middleware] if cors_origins else []),
        ]
    )
    for door in doors.DOORS:
        app.router.add_post(door.path, intake.handler(door), expect_handler=expected_later)
    app.router.add_get("/status/healthz", healthz)
    app.router.add_get("/status/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    app.on_response_prepare.append(correlation.show)
    app.on_response_prepare.append(show_allowance)
    if cors_origins:
        app.on_response_prepare.append(cors.show)
    return app


def _observed(metrics: Metrics) -> Middleware:
    """The outermost middleware: every answer is counted and logged, every error is a problem."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        correlated = correlation.of(request).facts
        with logs.within(correlated):
            try:
                response = await handler(request)
            except Exception as error:
                response = _answer(error, request)
        duration_s = time.perf_counter() - started
        route = template(request)
        metrics.served.count(request.method, route, response.status, duration_s)
        level = logging.DEBUG if response.status < 400 else logging.INFO
        if log.isEnabledFor(level):
            facts = {
                "method": request.method,
                "route": route,
                "status": response.status,
                "duration_ms": round(duration_s * 1000, 2),
                "actor": request.get(_SUBJECT),
                **correlated,
            }
            log.log(level, "request_served", extra=facts)
        return response

    return middleware


def _answer(error: Exception, request: web.Request) -> web.Response:
    """The answer to a request whose handling raised this error. Raises `ConnectionError`: nobody is left."""
    instance = correlation.of(request).instance
    return answers.problem(_problem(error, request), instance, request.get(_FORM, "json"))


def _problem(error: Exception, request: web.Request) -> Problem:
    known = problems.of_error(error, request)
    if known is not None:
        return known
    # The text of an error may quote the body, so the log has the places alone.
    places = "".join(traceback.format_tb(error.__traceback__))
    facts = {"route": template(request), "fault": type(error).__name__, **correlation.of(request).facts}
    log.error("request_failed", extra={**facts, "places": places})
    return problems.ours()
