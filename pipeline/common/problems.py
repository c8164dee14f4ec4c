"""Errors as RFC 9457 problems: they tell the caller what to change, and nothing about our insides.

The code that finds an error raises a `Problem`. The outermost middleware of a server lets `answer` turn it
into ``application/problem+json``, and aiohttp's own errors and unforeseen ones too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from uuid import UUID

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.common import correlation, http
from pipeline.common.errors import ServiceError, Unavailable

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request: the parameter or field, and what is expected of it."""

    field: str
    message: str


@dataclass(slots=True, kw_only=True, eq=False)
class Problem(ServiceError):
    """The request cannot be answered: ``detail`` and ``errors`` tell the caller what to change."""

    status: int
    detail: str
    kind: str | None = None
    title: str | None = None
    errors: Sequence[Fault] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.detail}"


FAULTS_MAX: Final = 50
FIELD_CHARS_MAX: Final = 100
"""The caller chooses the names and how many there are, so both are bounded: a request cannot make its
answer long."""


def bounded(errors: Sequence[Fault]) -> list[Fault]:
    """The first `FAULTS_MAX` faults with their names cut, and how many more there are."""
    shown = [Fault(fault.field[:FIELD_CHARS_MAX], fault.message) for fault in errors[:FAULTS_MAX]]
    if len(errors) > FAULTS_MAX:
        shown.append(Fault("", f"and {len(errors) - FAULTS_MAX} more faults"))
    return shown


def invalid_parameters(errors: Sequence[Fault]) -> Problem:
    errors = bounded(errors)
    return Problem(
        status=400,
        kind="invalid-parameters",
        title="Invalid parameters",
        detail="; ".join(f"{fault.field}: {fault.message}" for fault in errors),
        errors=errors,
    )


def invalid_event(errors: Sequence[Fault]) -> Problem:
    return Problem(
        status=400,
        kind="invalid-event",
        title="Invalid event",
        detail="The event breaks the wire contract; errors names every fault.",
        errors=bounded(errors),
    )


GATEWAY_CHALLENGE: Final = 'Gateway realm="spendstream"'


def unauthenticated(detail: str, *, challenge: str = GATEWAY_CHALLENGE) -> Problem:
    return Problem(
        status=401,
        kind="unauthenticated",
        title="Not authenticated",
        detail=detail,
        headers={"WWW-Authenticate": challenge},
    )


def forbidden(detail: str) -> Problem:
    return Problem(status=403, kind="forbidden", title="Not yours", detail=detail)


def not_found(detail: str) -> Problem:
    return Problem(status=404, kind="not-found", detail=detail)


def conflict(detail: str) -> Problem:
    return Problem(status=409, kind="conflict", detail=detail)


def too_many(detail: str, *, retry_after_s: int) -> Problem:
    return Problem(
        status=429,
        kind="too-many-requests",
        detail=detail,
        headers={"Retry-After": str(retry_after_s)},
    )


def unavailable(detail: str) -> Problem:
    return Problem(
        status=503,
        kind="unavailable",
        title="A dependency is away",
        detail=detail,
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


class ErrorDetail(msgspec.Struct, frozen=True):
    field: str
    message: str


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. ``instance`` names this one occurrence, and the server's log has it: the X-Request-ID of the
    request if that is a UUID, else one of ours."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ErrorDetail] | msgspec.UnsetType = msgspec.UNSET


def response(problem: Problem, instance: UUID) -> web.Response:
    body = ProblemDetails(
        type=f"urn:spendstream:problem:{problem.kind}" if problem.kind else "about:blank",
        title=problem.title or HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        instance=f"urn:uuid:{instance}",
        errors=[ErrorDetail(fault.field, fault.message) for fault in problem.errors] or msgspec.UNSET,
    )
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(body),
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store", **problem.headers},
    )


def answer(error: Exception, request: web.Request) -> web.Response:
    """The answer to a request whose handling raised this error. A fault of ours is logged with its traceback.

    Raises:
        ConnectionError: there is nobody left to answer.
    """
    known = of_error(error, request)
    correlated = correlation.of(request)
    if known is not None:
        return response(known, correlated.instance)
    facts = {"route": http.template(request), "traceback": http.failure(error, request)}
    log.error("request_failed", extra=facts)
    return response(ours(), correlated.instance)


def of_error(error: Exception, request: web.Request) -> Problem | None:
    """What an error means to the caller. None: it is a fault of ours, and the caller of this logs it.

    Raises:
        ConnectionError: there is nobody left to answer.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, Unavailable):
        return unavailable(str(error))
    if isinstance(error, web.HTTPException):
        return of_http_error(error)
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):  # a body is not as its head says
        fault = type(error).__name__
        log.info("bad_request", extra={"fault": fault, "peer": request.remote})
        return invalid_body(
            "The body is not what the request's head says: its length, chunks or encoding are wrong."
        )
    if isinstance(error, ConnectionError):
        raise error
    return None


def invalid_body(detail: str) -> Problem:
    """400: the body as a whole cannot be read."""
    return Problem(status=400, kind="invalid-body", title="Invalid body", detail=detail)


def ours() -> Problem:
    """A fault of ours."""
    return Problem(status=500, detail="Something went wrong here; the log has it under this instance.")


_DETAILS: Final = {
    404: "There is nothing at this path.",
    405: "The path does not take this method.",
    413: "The request body is too large.",
}


def of_http_error(error: web.HTTPException) -> Problem:
    """An error of aiohttp's own, as a problem."""
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    detail = _DETAILS.get(error.status, HTTPStatus(error.status).description or error.reason)
    return Problem(status=error.status, detail=detail, headers=headers)
