"""The server below the application: what is no HTTP at all, or too long a head, is answered as a problem too.

aiohttp answers such requests before any middleware, as plain text. This replaces that one answer, and nothing
else of its protocol; there is no public place to do so.
"""

from __future__ import annotations

import uuid

from aiohttp import web, web_protocol
from aiohttp.web_request import BaseRequest

from api import problems
from api.problems import Problem


class Runner(web.AppRunner):
    """An `aiohttp.web.AppRunner` whose every answer is ours."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        return server


class _Server(web.Server):
    def __call__(self) -> web_protocol.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web_protocol.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs, and raises where an answer has begun
        detail = (
            "The request is not HTTP as this server reads it, or a line of it is too long."
            if status < 500
            else "Something went wrong here; the log has it."
        )
        response = problems.response(Problem(status=status, detail=detail), str(uuid.uuid4()))
        response.force_close()
        return response
