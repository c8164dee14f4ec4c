"""Correlation: the id of a request and its trace, as the caller names them, in logs, jobs, audit and answers.

A caller sends ``X-Request-ID`` and ``traceparent`` (W3C Trace Context) and finds them again everywhere. Both
are bounded in form and length, because they go into logs. A request without a usable id gets one of ours.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from aiohttp import web
from aiohttp.web_request import BaseRequest

REQUEST_ID: Final = "X-Request-ID"
TRACEPARENT: Final = "traceparent"
REQUEST_ID_CHARS_MAX: Final = 128
_REQUEST_ID: Final = re.compile(rf"[!-~]{{1,{REQUEST_ID_CHARS_MAX}}}", re.ASCII)
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Correlation:
    """``request_id``: the caller's, or one of ours. ``traceparent``: the caller's, or None.

    ``instance`` names this one occurrence in a problem: the request's id if it is a UUID, else one of ours.
    """

    request_id: str
    traceparent: str | None
    instance: UUID

    @property
    def facts(self) -> dict[str, str]:
        """Facts of a log line. The instance is there where the id of the request does not say it."""
        facts = {"request_id": self.request_id}
        if self.traceparent is not None:
            facts["traceparent"] = self.traceparent
        if str(self.instance) != self.request_id:
            facts["instance"] = str(self.instance)
        return facts


_KEY: Final = web.RequestKey("correlation", Correlation)


def of(request: BaseRequest) -> Correlation:
    """The correlation of a request: the same one each time that somebody asks."""
    found: Correlation | None = request.get(_KEY)
    if found is None:
        given = _kept(request, REQUEST_ID, _REQUEST_ID)
        instance = (given and _uuid(given)) or uuid.uuid4()
        found = Correlation(given or str(instance), _kept(request, TRACEPARENT, _TRACEPARENT), instance)
        request[_KEY] = found
    return found


async def show(request: web.Request, response: web.StreamResponse) -> None:
    """Give the answer the headers that its caller sent (for an application's ``on_response_prepare``)."""
    correlation = of(request)
    response.headers[REQUEST_ID] = correlation.request_id
    if correlation.traceparent is not None:
        response.headers[TRACEPARENT] = correlation.traceparent


def _kept(request: BaseRequest, name: str, form: re.Pattern[str]) -> str | None:
    """The value of a header that is kept; None if it is not there once, or has another form."""
    given = request.headers.getall(name, [])
    return given[0] if len(given) == 1 and form.fullmatch(given[0]) else None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
