"""aiohttp's server, with an answer and a log line of our own for a request that cannot be read.

aiohttp answers an unreadable request before any middleware. It logs a traceback with the bytes of the wrong
line, and these bytes may be a credential. Here the log gets one line, with nothing that the peer sent.
aiohttp has no public way to change this. So this module replaces `handle_error` and the log of aiohttp's
protocol, and leaves the rest of aiohttp alone.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Any, Final

from aiohttp import web, web_protocol
from aiohttp.web_request import BaseRequest

from pipeline.common.logs import is_unread

log = logging.getLogger(__name__)

_MASKED_CHARS_MIN: Final = 6
"""Shorter words of a header are not masked, because a traceback has them anyway."""


def failure(error: BaseException, request: BaseRequest) -> str:
    """The traceback of an error of ours, with all words masked that are in a header of the request."""
    text = "".join(traceback.format_exception(error))
    for value in request.headers.values():
        for word in (value, *value.split()):
            if len(word) >= _MASKED_CHARS_MIN:
                text = text.replace(word, "…")
    return text


def template(request: web.Request) -> str:
    """The path of the request's route, with its variables as names; ``unmatched`` where there is no route."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


class Runner(web.AppRunner):
    """An `aiohttp.web.AppRunner` without an access log, which logs no header and no body of a request.

    With ``connections_max``, one connection more ends the one that has been idle longest. If none is idle,
    the new one is closed at once. So idle connections, however many, keep nobody out.
    """

    def __init__(self, app: web.Application, *, connections_max: int | None = None, **kwargs: Any) -> None:
        super().__init__(app, **{"access_log": None, **kwargs})
        self.connections_max = connections_max

    def refusal(self, status: int) -> web.Response:
        """The answer to an unreadable request (400), or after an error of ours (500)."""
        return web.Response(status=status, text="The request is not HTTP as this server reads it.\n")

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        server.runner = self  # type: ignore[attr-defined]
        return server


class _Server(web.Server):
    runner: Runner

    def __call__(self) -> web_protocol.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web_protocol.RequestHandler):
    __slots__ = ("_runner",)

    def __init__(self, manager: _Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._runner: Final = manager.runner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        bound, manager = self._runner.connections_max, self._manager
        if bound is not None and manager is not None and len(manager.connections) >= bound:
            idle = [one for one in manager.connections if isinstance(one, _Protocol) and one.is_idle]
            if not idle:
                self.transport = None
                self._manager = None
                assert isinstance(transport, asyncio.Transport)
                transport.abort()
                return
            min(idle, key=lambda one: one._next_keepalive_close_time).force_close()
        super().connection_made(transport)

    @property
    def is_idle(self) -> bool:
        """Does the connection wait for the head of a request?"""
        return self._waiter is not None and not self._waiter.done()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):  # the peer has gone: nobody is left to answer
            raise exc
        if exc is not None and is_unread(exc):
            log.info(
                "bad_request", extra={"status": status, "fault": type(exc).__name__, "peer": request.remote}
            )
        else:
            fault = failure(exc, request) if exc is not None else None
            log.error("request_failed", extra={"status": status, "traceback": fault})
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: there cannot be another")
        response = self._runner.refusal(status)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        error = kwargs.get("exc_info")
        if isinstance(error, Exception) and is_unread(error):
            return  # the rest of an unreadable body, after the answer: `handle_error` has logged its line
        log.error("connection_failed", exc_info=error)

    def log_debug(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing, because clients come and go all the time."""
