"""The HTTP server below the application: its refusals of bytes that are no HTTP are problems too."""

from __future__ import annotations

import uuid

from aiohttp import web

from api.answering import problems
from api.answering.problems import Problem
from pipeline.common import http


class Runner(http.Runner):
    """Serves the application, and answers with a problem what never reaches the application."""

    def refusal(self, status: int) -> web.Response:
        """The answer to bytes that aiohttp cannot read as a request."""
        detail = (
            "The request is not HTTP as this server reads it, or a line of it is too long."
            if status < 500
            else "Something went wrong here; the log has it."
        )
        return problems.response(Problem(status=status, detail=detail), str(uuid.uuid4()))
