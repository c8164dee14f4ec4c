"""The bodies of requests, as the OpenAPI document shows them. `budget_bodies` has those of budgets."""

from __future__ import annotations

from typing import Any, Final

from api.asking import params
from api.asking.params import CostBasis
from api.exports.jobs import (
    DELIVERIES,
    FORMATS,
    GRANULARITIES,
    INITIATOR_CHARS_MAX,
    MODELS_MAX,
    VALUES_MAX,
)
from api.names.orders import ITEMS_MAX
from api.prices.orders import COLUMNS as PRICE_COLUMNS
from api.prices.orders import ORGS_MAX, PRICES_MAX
from pipeline.common import adjustments, names
from pipeline.core import wire

_SHAPE: Final = {
    "granularity": {"enum": list(GRANULARITIES), "default": "daily"},
    "timeZone": {
        "type": "string",
        "default": "UTC",
        "description": "IANA name. Days, weeks (from Monday) and months are those of the zone.",
    },
    "groupBy": {
        "type": "string",
        "pattern": r"^[a-z][a-z0-9_]{0,31}(,[a-z][a-z0-9_]{0,31})*$",
        "description": "What rows are by: model, client or a dimension, model and one of these with a comma"
        " between them, or none. Rows of FOCUS are by model, have no clients, and have the value of a"
        " dimension in Tags. Absent: model and client, or model and the dimension of dimensions.",
        "examples": ["model,client", "team"],
    },
    "dimensions": {
        "type": "array",
        "items": params.DIMENSION.schema,
        "maxItems": VALUES_MAX,
        "description": "Only these values of one dimension, as in team:search, or only these clients, as in"
        " client:key-1; none: all. An empty value means events without one.",
    },
    "format": {"enum": list(FORMATS), "default": "csv"},
    "models": {
        "type": "array",
        "items": {"type": "string", "format": "uuid"},
        "maxItems": MODELS_MAX,
        "description": "Only these; none: all.",
    },
}
_HOUR: Final = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:00:00(\.0+)?(Z|[+-]\d\d:00)$",
}
_REASON: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": adjustments.REASON_CHARS_MAX,
    "pattern": r"^[^\u0000]*$",
}
_VERSION: Final = {"type": "integer", "minimum": 0, "maximum": params.VERSION_MAX}
_PRICE_FIELDS: Final[dict[str, dict[str, Any]]] = {
    "contextFrom": {"type": ["integer", "string", "null"]},
    "kind": {"enum": params.KIND.schema["enum"]},
    "rate": {"type": "string", "examples": ["2.5"]},
    # Empty texts and times without a zone are as good as in a CSV.
    "validFrom": {"description": "A whole hour, such as 2026-11-01T00:00:00Z."},
    "validTo": {"description": "A whole hour, not included."},
    "orgId": {"description": "The UUID of the org that the price is for."},
}


def body(schema: dict[str, Any], description: str, example: dict[str, Any]) -> dict[str, Any]:
    return {
        "required": True,
        "description": description,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


ORDER_BODY: Final = body(
    {
        "type": "object",
        "required": ["timeRange"],
        "additionalProperties": False,
        "properties": {
            "timeRange": {
                "type": "object",
                "required": ["start", "end"],
                "additionalProperties": False,
                "properties": {"start": params.START.schema, "end": params.END.schema},
            },
            **_SHAPE,
            "priceVersion": {
                **_VERSION,
                "description": "Price as of this version of the price book; absent: the newest one now.",
            },
            "costBasis": {"enum": [basis.value for basis in CostBasis], "default": "auto"},
            "delivery": {
                "type": ["object", "null"],
                "required": ["type"],
                "additionalProperties": False,
                "properties": {
                    "type": {"enum": list(DELIVERIES)},
                    "bucket": {"type": ["string", "null"]},
                },
                "description": "Every file can be downloaded, and lies in this server's bucket, if it has"
                " one: another bucket is refused.",
            },
            "initiatedBy": {
                "type": ["string", "null"],
                "minLength": 1,
                "maxLength": INITIATOR_CHARS_MAX,
                "description": "Who wants the file, as the job is to say; absent: who sends the order.",
            },
        },
    },
    "With seconds, the range is widened to whole minutes, so that an end of 23:59:59 is midnight; at most 31"
    " days for hourly, 13 months otherwise. Edges off the whole hour take minute rows, as in usage, and there"
    " are none by client or dimension.",
    {
        "timeRange": {"start": "2026-10-01T00:00:00Z", "end": "2026-11-01T00:00:00Z"},
        "granularity": "daily",
        "format": "csv",
    },
)
PRICES: Final = {
    "type": "array",
    "minItems": 1,
    "maxItems": PRICES_MAX,
    "items": {
        "type": "object",
        "required": ["kind", "rate"],
        "additionalProperties": False,
        "properties": {
            name: {"type": ["string", "null"]} | _PRICE_FIELDS.get(name, {}) for name in PRICE_COLUMNS
        },
    },
}
_PRICE_EXAMPLE: Final = {
    "provider": "openai",
    "modelName": "gpt-4o",
    "kind": "input",
    "rate": "2.25",
    "validFrom": "2026-11-01T00:00:00Z",
    "basis": "invoice 4711",
}
PRICES_BODY: Final = body(
    {
        "type": "object",
        "required": ["prices"],
        "additionalProperties": False,
        "properties": {"prices": PRICES},
    },
    "Rates are texts, so that they are exact: US dollars for a million tokens, for request US dollars for a"
    " call, for discount percent. Each price says from when it holds.",
    {"prices": [_PRICE_EXAMPLE]},
)
RETRACTION_BODY: Final = body(
    {
        "type": "object",
        "required": ["reason"],
        "additionalProperties": False,
        "properties": {"reason": _REASON},
    },
    "Why it was wrong.",
    {"reason": "was for another region"},
)
DIFF_BODY: Final = body(
    {
        "type": "object",
        "required": ["start", "end"],
        "additionalProperties": False,
        "properties": {
            "start": _HOUR,
            "end": _HOUR,
            "orgs": {
                "type": "array",
                "items": {"type": "string", "format": "uuid"},
                "maxItems": ORGS_MAX,
                "description": "Only these; absent: all.",
            },
            "prices": PRICES,
            "before": _VERSION,
            "after": _VERSION,
        },
    },
    "Two versions, of which before is the newest one if absent; or prices to try.",
    {
        "start": "2026-11-01T00:00:00Z",
        "end": "2026-12-01T00:00:00Z",
        "prices": [_PRICE_EXAMPLE],
    },
)
ADJUSTMENT_BODY: Final = body(
    {
        "type": "object",
        "required": ["kind", "amount", "periodStart", "periodEnd", "reason"],
        "additionalProperties": False,
        "properties": {
            "kind": {"enum": list(adjustments.KINDS)},
            "amount": {
                "type": "string",
                "pattern": adjustments.AMOUNT,
                "description": "US dollars, added to what the org pays; below 0 for a credit or refund.",
            },
            "periodStart": _HOUR,
            "periodEnd": _HOUR,
            "reason": _REASON,
        },
    },
    "The amount is a text, so that it is exact. The adjustment belongs wholly to the instant periodStart.",
    {
        "kind": "credit",
        "amount": "-250.00",
        "periodStart": "2026-11-01T00:00:00Z",
        "periodEnd": "2026-12-01T00:00:00Z",
        "reason": "outage of 12 November",
    },
)
_NAME: Final = {
    "type": ["string", "null"],
    "minLength": 1,
    "maxLength": names.NAME_CHARS_MAX,
    "description": "Without control characters, and not blank; null removes the name.",
}
ORG_NAME_BODY: Final = body(
    {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {"name": _NAME},
    },
    "What answers and files are to call the org.",
    {"name": "Acme Ltd."},
)
VALUE_NAMES_BODY: Final = body(
    {
        "type": "object",
        "required": ["items"],
        "additionalProperties": False,
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": ITEMS_MAX,
                "items": {
                    "type": "object",
                    "required": ["value", "name"],
                    "additionalProperties": False,
                    "properties": {
                        "value": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": wire.VALUE_CHARS_MAX,
                        },
                        "name": _NAME,
                    },
                },
            }
        },
    },
    "Values and what answers are to call them, each value once. All other names stay as they are.",
    {"items": [{"value": "t-17", "name": "Search"}, {"value": "t-18", "name": None}]},
)
SCHEDULE_BODY: Final = body(
    {"type": "object", "additionalProperties": False, "properties": _SHAPE},
    "What each month's file looks like.",
    {"granularity": "daily", "format": "focus-1.2"},
)
EVENT_BODY: Final = {
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
