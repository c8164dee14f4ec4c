"""The OpenAPI 3.1 document, made from what `params` reads and `answers` encodes.

A test holds the operations here to the routes in `app`, so neither can gain one without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from api import answers, params, problems
from api.params import Parameter

BASE: Final = "/analytics/v1"
_REF: Final = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the document says of one route. ``answer`` is a type of `answers`, or a media type for text."""

    method: str
    path: str
    name: str
    summary: str
    answer: type | str | None
    parameters: Sequence[Parameter] = ()
    problems: Sequence[int] = ()
    public: bool = False
    success: int = 200
    also: int | None = None
    takes_event: bool = False


_ORG: Final = f"{BASE}/orgs/{{orgId}}"
OPERATIONS: Final = (
    Operation(
        method="GET",
        path=f"{_ORG}/usage",
        name="usage",
        summary="Usage and spend over time, with totals of the whole range.",
        answer=answers.Usage,
        parameters=params.FIGURES,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/reliability",
        name="reliability",
        summary="Error rates, latency percentiles and error codes over time.",
        answer=answers.Reliability,
        parameters=params.FIGURES,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/freshness",
        name="freshness",
        summary="How old the org's figures are, and those of each of its models.",
        answer=answers.OrgFreshness,
        problems=(400, 404, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/live",
        name="live",
        summary="Server-sent events: `usage` after each committed flush that touched the org (LiveUsage; its"
        " id, sent back as Last-Event-ID, resumes), `freshness` at least every 5 s (LiveFreshness), and"
        " `dropped` as the last word (LiveDropped).",
        answer="text/event-stream",
        problems=(400, 429, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/models",
        name="models",
        summary="Models seen, with their first and last event.",
        answer=answers.Models,
        parameters=params.LISTING,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/clients",
        name="clients",
        summary="Clients seen, with their first and last event.",
        answer=answers.Clients,
        parameters=params.LISTING,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/orgs",
        name="orgs",
        summary="All orgs with totals of a range, by id. Each read is audited.",
        answer=answers.Orgs,
        parameters=params.ORGS,
        problems=(400, 503),
    ),
    Operation(
        method="POST",
        path=f"{BASE}/events/validate",
        name="validateEvent",
        summary="Check one usage event against the wire contract: nothing is stored.",
        answer=None,
        success=204,
        problems=(400, 413),
        takes_event=True,
    ),
    Operation(
        method="GET",
        path=f"{BASE}/status/healthz",
        name="healthz",
        summary="Liveness.",
        answer="text/plain",
        public=True,
    ),
    Operation(
        method="GET",
        path=f"{BASE}/status/readyz",
        name="readyz",
        summary="Readiness, component by component; 503 while the database or its schema is away.",
        answer=answers.Readiness,
        public=True,
        also=503,
    ),
    Operation(
        method="GET",
        path=f"{BASE}/openapi.json",
        name="openapi",
        summary="This document.",
        answer="application/json",
        public=True,
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Prometheus metrics.",
        answer="text/plain",
        public=True,
    ),
)


@cache
def document_json() -> bytes:
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    types = [operation.answer for operation in OPERATIONS if isinstance(operation.answer, type)]
    types += [answers.LiveUsage, answers.LiveFreshness, answers.LiveDropped, problems.ProblemDetails]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].replace("``", "").split())
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spendstream analytics",
            "version": "1.0.0",
            "description": "Exact spend, usage, reliability and freshness of LLM inference. Times are RFC"
            " 3339 in UTC, ranges [start, end), money is exact decimal text. Errors are RFC 9457 problems.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "gateway": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Actor-Subject",
                    "description": "AUTH_MODE=gateway: with X-Actor-Roles and X-Actor-Orgs, set by a trusted"
                    " proxy. AUTH_MODE=none asks for nothing and listens on loopback only.",
                }
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    statuses = (*operation.problems, *(() if operation.public else (401, 403)), 500)
    responses = {
        str(operation.success): {
            "description": HTTPStatus(operation.success).phrase,
            **_content(operation.answer),
        }
    }
    if operation.also is not None:
        responses[str(operation.also)] = {
            "description": HTTPStatus(operation.also).phrase,
            **_content(operation.answer),
        }
    for status in sorted(statuses):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="ProblemDetails")}}},
        }
        if status == 503:
            responses["503"]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
            }
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation), *map(_parameter, operation.parameters)],
        "responses": responses,
        "security": [] if operation.public else [{}, {"gateway": []}],
    }
    if operation.takes_event:
        described["requestBody"] = _EVENT_BODY
    return described


def _content(answer: type | str | None) -> dict[str, Any]:
    if answer is None:
        return {}
    if isinstance(answer, str):
        schema = {"type": "object"} if answer == "application/json" else {"type": "string"}
        return {"content": {answer: {"schema": schema}}}
    return {"content": {"application/json": {"schema": {"$ref": _REF.format(name=answer.__name__)}}}}


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    if "{orgId}" not in operation.path:
        return []
    return [{"name": "orgId", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = parameter.schema
    if parameter.repeatable and schema.get("type") == "string":
        schema = {"type": "array", "items": schema}
    described = {
        "name": parameter.name,
        "in": "query",
        "description": parameter.help,
        "required": parameter.required,
        "schema": schema,
    }
    if parameter.repeatable:
        described |= {"style": "form", "explode": True}
    return described


_EVENT_BODY: Final = {
    "required": True,
    "description": "One event, at most 64 KiB: camelCase, snake_case, or a CloudEvents 1.0 envelope.",
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "example": {
                "eventId": "6f2a9a3e-0f55-4d0e-9a53-7f7a0b9c1d2e",
                "orgId": "123e4567-e89b-42d3-a456-426614174000",
                "modelId": "123e4567-e89b-42d3-a456-426614174001",
                "clientId": "checkout",
                "occurredAt": "2026-11-01T12:00:00Z",
                "latencyMs": 412,
                "status": "success",
                "inputTokens": 812,
                "outputTokens": 96,
                "costEstimateCents": "0.4375",
            },
        }
    },
}
