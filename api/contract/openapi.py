"""The OpenAPI 3.1 document, made from the table of operations.

Parameters are described by the tables that `api.asking.params` reads requests with, and answers by the types
that `api.answering.answers` encodes. So the document cannot differ from what the server reads and sends.
"""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from api import page
from api.answering import answers
from api.asking import params
from api.asking.params import Parameter
from api.config import RangeConfig
from api.contract.operations import OPERATIONS, Operation
from pipeline.common import problems

SECURITY: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "AUTH_MODE=jwt: claims sub, orgs (UUIDs) and roles.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "A key of one org, made by `spendstream keys create`; beside each mode but none.",
    },
    "gateway": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Actor-Subject",
        "description": "AUTH_MODE=gateway: with X-Actor-Roles and X-Actor-Orgs, set by a trusted proxy, each"
        " exactly once and empty for nothing."
        " AUTH_MODE=none asks for nothing and listens on loopback only.",
    },
}
_VALIDATOR: Final = {
    "ETag": {"description": "Weak: all but lagSeconds.", "schema": {"type": "string"}},
}
_EVENTS: Final = {
    "usage": answers.LiveUsage,
    "freshness": answers.LiveFreshness,
    "dropped": answers.LiveDropped,
}
_UUID: Final = {"type": "string", "format": "uuid"}
_ROW_ID: Final = {"type": "integer", "minimum": 0, "maximum": params.VERSION_MAX}
_PATH_SCHEMAS: Final = {
    "priceId": _ROW_ID,
    "adjustmentId": _ROW_ID,
    "file": {"enum": sorted(page.contents())},
    "name": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$"},
}
_REF: Final = "#/components/schemas/{name}"


@cache
def document_json(ranges: RangeConfig) -> bytes:
    return msgspec.json.encode(document(ranges))


def document(ranges: RangeConfig) -> dict[str, Any]:
    """The document, with the limits of this server in it."""
    types = [operation.answer for operation in OPERATIONS if isinstance(operation.answer, type)]
    types += [*_EVENTS.values(), problems.ProblemDetails]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].replace("``", "").split())
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, ranges)
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
            "securitySchemes": SECURITY,
        },
    }


def _operation(operation: Operation, ranges: RangeConfig) -> dict[str, Any]:
    statuses = {*operation.problems, *(() if operation.access.public else (401, 403, 429)), 500}
    responses = {
        str(operation.success): {
            "description": HTTPStatus(operation.success).phrase,
            **({"headers": operation.sends} if operation.sends else {}),
            **({"links": operation.links} if operation.links else {}),
            **_content(operation.answer),
        }
    }
    if operation.also is not None:
        responses[str(operation.also)] = {
            "description": HTTPStatus(operation.also).phrase,
            **_content(None if operation.also == HTTPStatus.NO_CONTENT else operation.answer),
        }
    if operation.method == "GET" and isinstance(operation.answer, type):
        responses[str(operation.success)]["headers"] = _VALIDATOR
        responses["304"] = {
            "description": "Not modified since the ETag in If-None-Match.",
            "headers": _VALIDATOR,
        }
    for status in sorted(statuses):
        rules = f": {operation.rules}." if status == HTTPStatus.BAD_REQUEST and operation.rules else ""
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase + rules,
            "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="ProblemDetails")}}},
        }
        if status in (429, 503):
            responses[str(status)]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
            }
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [
            *_path_parameters(operation),
            *(_parameter(parameter, ranges) for parameter in operation.parameters),
            *operation.headers,
        ],
        "responses": responses,
        "security": [] if operation.access.public else [{}, *({name: []} for name in SECURITY)],
    }
    if operation.body is not None:
        described["requestBody"] = operation.body
    return described


def _content(answer: type | str | None) -> dict[str, Any]:
    if answer is None:
        return {}
    if answer == "text/event-stream":
        return {"content": {answer: {"schema": {"oneOf": [_event(*named) for named in _EVENTS.items()]}}}}
    if isinstance(answer, str):
        schema = {"type": "object"} if answer == "application/json" else {"type": "string"}
        return {"content": {one: {"schema": schema} for one in answer.split(", ")}}
    return {"content": {"application/json": {"schema": {"$ref": _REF.format(name=answer.__name__)}}}}


def _event(name: str, data: type) -> dict[str, Any]:
    """One event of a stream, as its fields."""
    schema = {"$ref": _REF.format(name=data.__name__)}
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"const": name},
            "id": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": schema},
        },
    }


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, _UUID)}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]


def _parameter(parameter: Parameter, ranges: RangeConfig) -> dict[str, Any]:
    schema = parameter.schema
    description = parameter.help
    if parameter is params.LIMIT:
        default = min(params.LIMIT_DEFAULT, ranges.points_max)
        schema = {**schema, "maximum": ranges.points_max, "default": default}
    if parameter is params.END:
        description = description.replace("13 months", f"{ranges.months_max} months")
    if parameter.repeatable and schema["type"] != "array":
        schema = {"type": "array", "items": schema}
    described = {
        "name": parameter.name,
        "in": "query",
        "description": description,
        "required": parameter.required,
        "schema": schema,
    }
    if parameter.repeatable:
        described |= {"style": "form", "explode": True}
    return described
