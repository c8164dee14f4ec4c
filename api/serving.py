"""The server below the application: what is no HTTP at all, or too long a head, is a problem too."""

from __future__ import annotations

import uuid

from aiohttp import web

from api.answering import problems
from api.answering.problems import Problem
from pipeline.common import http


class Runner(http.Runner):
    """The door of the API: its every answer is ours."""

    def refusal(self, status: int) -> web.Response:
        detail = (
            "The request is not HTTP as this server reads it, or a line of it is too long."
            if status < 500
            else "Something went wrong here; the log has it."
        )
        return problems.response(Problem(status=status, detail=detail), str(uuid.uuid4()))
