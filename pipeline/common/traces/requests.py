"""A span for each request that a server of ours answers, by OpenTelemetry's conventions for HTTP.

The span has the route, never the path or the query: those hold ids and perhaps secrets. It continues the
trace that the sender names in ``traceparent`` and ``tracestate``. Probes and scrapes have no span.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Middleware

from pipeline.common import correlation, traces
from pipeline.common.http import template

_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_UNTRACED: Final = ("/healthz", "/readyz", "/metrics")
_TRACESTATE: Final = "tracestate"
_TRACESTATE_CHARS_MAX: Final = 512


def middlewares() -> list[Middleware]:
    """What an application puts before its other middlewares: nothing while tracing is off."""
    return [_traced] if traces.is_on() else []


@web.middleware
async def _traced(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    route = template(request)
    if route.endswith(_UNTRACED):
        return await handler(request)
    method = request.method if request.method in _METHODS else "_OTHER"
    matched = route != "unmatched"
    with traces.span(
        f"{method} {route}" if matched else method,
        "server",
        parent=_parent(request),
        request_id=correlation.of(request).request_id,
        org_id=_org(request),
    ) as span:
        span.set(**{"http.request.method": method, "http.route": route if matched else None})
        response = await handler(request)
        span.set(**{"http.response.status_code": response.status})
        if response.status >= 500:
            span.failed(str(response.status))
        return response


def _parent(request: web.Request) -> dict[str, str]:
    """The headers by which the sender's trace goes on; empty if there is none."""
    traceparent = correlation.of(request).traceparent
    if traceparent is None:
        return {}
    state = ",".join(request.headers.getall(_TRACESTATE, []))
    found = {correlation.TRACEPARENT: traceparent}
    if state and len(state) <= _TRACESTATE_CHARS_MAX:
        found[_TRACESTATE] = state
    return found


def _org(request: web.Request) -> str | None:
    """The org in the path, if it is the id of one."""
    try:
        return str(UUID(request.match_info["orgId"]))
    except (KeyError, ValueError):
        return None
