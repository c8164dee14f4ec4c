"""CORS: which web pages may ask a server from a browser, and read its answers.

A server mounts `Cors` in two places. The middleware answers preflight requests, which carry no credentials.
So it stands outside authentication, and inside the middleware that turns errors into answers. `Cors.show` is
for ``on_response_prepare``: it adds the headers to every answer of the application just before the answer
goes out, so that errors and streams have them too.

An origin is compared as a whole. A page of another origin gets the same answers without a header of CORS, and
its browser keeps them from it. The browser has sent its request all the same: only authentication protects
from that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import hdrs, web

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")
HEADERS: Final = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "X-Request-ID",
    "traceparent",
    "tracestate",
)
"""What a page may send beside what every page may."""
EXPOSED: Final = (
    "ETag",
    "Location",
    "Content-Disposition",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
    "traceparent",
)
"""What a page may read beside what every page may."""
MAX_AGE_S: Final = 600
"""How long a browser remembers the answer to a preflight request, also after an origin is no longer named."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Cors:
    """Lets the pages of ``origins`` in.

    ``more_headers`` are further headers that they may send. Credentials are allowed, because a gateway in
    front of us may know its users by a cookie.
    """

    def __init__(
        self,
        origins: Sequence[str],
        *,
        methods: Sequence[str] = METHODS,
        more_headers: Sequence[str] = (),
    ) -> None:
        self._origins = frozenset(origins)
        self._preflight = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(methods),
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ", ".join((*HEADERS, *more_headers)),
            hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE_S),
        }
        self._exposed = ", ".join(EXPOSED)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a preflight request of a named origin with 204. All other requests go on."""
        asks_first = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if request.method == hdrs.METH_OPTIONS and asks_first and self._named(request) is not None:
            return web.Response(status=204, headers=self._preflight)
        return await handler(request)

    async def show(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers to an answer (for an application's ``on_response_prepare``)."""
        if not self._origins:
            return
        # Also without an origin: a cache must not give this answer to a page, nor a page's to another one.
        given = response.headers.get(hdrs.VARY)
        response.headers[hdrs.VARY] = hdrs.ORIGIN if given is None else f"{given}, {hdrs.ORIGIN}"
        origin = self._named(request)
        if origin is None:
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        if hdrs.ACCESS_CONTROL_ALLOW_METHODS not in response.headers:  # else it answers a preflight request
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = self._exposed

    def _named(self, request: web.Request) -> str | None:
        given = request.headers.getall(hdrs.ORIGIN, [])
        return given[0] if len(given) == 1 and given[0] in self._origins else None
