"""The HTTP server below an application: what it refuses by itself is a problem too."""

from __future__ import annotations

import uuid

from aiohttp import web

from pipeline.common import correlation, http, problems
from pipeline.common.problems import Problem


class Runner(http.Runner):
    """Serves the application, and answers with a problem what never reaches the application."""

    def refusal(self, status: int) -> web.Response:
        """The answer to bytes that aiohttp cannot read as a request."""
        detail = (
            "The request is not HTTP as this server reads it, or a line of it is too long."
            if status < 500
            else "Something went wrong here; the log has it."
        )
        return problems.response(Problem(status=status, detail=detail), uuid.uuid4())


async def expected_later(request: web.Request) -> web.StreamResponse | None:
    """The same for a handler that calls `go_on` by itself, once it wants the body."""
    return await expected(request) if request.headers["Expect"].lower() != "100-continue" else None


async def go_on(request: web.Request) -> None:
    """Have the sender send the body, if it waits for that."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await expected(request)


async def expected(request: web.Request) -> web.StreamResponse | None:
    """Meet what a request waits for before it sends its body. aiohttp's own refusal is no problem+json."""
    if request.headers["Expect"].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None
    return problems.response(
        Problem(status=417, detail="Of all that Expect may say, 100-continue alone is met."),
        correlation.of(request).instance,
    )
