"""The bodies of requests that make or change budgets and webhooks, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any, Final

from api.budgets.orders import DIMENSION, NUMBER
from api.budgets.periods import Period
from api.budgets.rules import NAME_CHARS_MAX, PERCENT_MAX, THRESHOLDS_MAX, Basis, Metric
from api.webhooks import messages, orders
from api.webhooks.addresses import URL, URL_CHARS_MAX
from pipeline.core import wire

_AMOUNT: Final = {
    "type": "string",
    "pattern": NUMBER,
    "description": "US dollars, tokens or requests, above 0. A text, so that it is exact.",
}
_ON: Final = {
    "enum": [basis.value for basis in Basis],
    "description": "The figure of the period so far, or what the period comes to if it goes on like that.",
}
_THRESHOLD: Final = {
    "oneOf": [
        {
            "type": "object",
            "required": ["percent", "on"],
            "additionalProperties": False,
            "properties": {
                "percent": {
                    "type": ["number", "string"],
                    "exclusiveMinimum": 0,
                    "maximum": PERCENT_MAX,
                    "pattern": NUMBER,
                    "description": "Of the budget's amount, with at most two decimals.",
                },
                "on": _ON,
            },
        },
        {
            "type": "object",
            "required": ["amount", "on"],
            "additionalProperties": False,
            "properties": {"amount": _AMOUNT, "on": _ON},
        },
    ]
}
_SCOPE: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "modelId": {"type": "string", "format": "uuid"},
        "dimension": {"type": "string", "pattern": DIMENSION},
        "value": {"type": "string", "maxLength": wire.VALUE_CHARS_MAX},
    },
    "description": "One model, or one value of client or of a dimension; empty or absent: the whole org.",
}
_SCHEMA: Final = {
    "type": "object",
    "required": ["name", "metric", "period", "amount", "thresholds"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX},
        "scope": _SCOPE,
        "metric": {"enum": [metric.value for metric in Metric]},
        "period": {"enum": [period.value for period in Period]},
        "timeZone": {
            "type": "string",
            "default": "UTC",
            "description": "IANA name. Days, weeks (from Monday), months, quarters and years are the zone's.",
        },
        "amount": _AMOUNT,
        "thresholds": {
            "type": "array",
            "minItems": 1,
            "maxItems": THRESHOLDS_MAX,
            "items": _THRESHOLD,
        },
    },
}
BUDGET: Final[dict[str, Any]] = {
    "required": True,
    "description": "What may be spent in each period, and when to say so. A change replaces all of it.",
    "content": {
        "application/json": {
            "schema": _SCHEMA,
            "example": {
                "name": "Search, monthly",
                "scope": {},
                "metric": "cost",
                "period": "month",
                "timeZone": "Europe/Berlin",
                "amount": "2500.00",
                "thresholds": [
                    {"percent": "80", "on": "actual"},
                    {"percent": "100", "on": "forecast"},
                ],
            },
        }
    },
}
RULES: Final = (
    "the name is not blank and has no control characters; the scope has modelId, or dimension and value,"
    " and the dimension is set; amounts of tokens and requests are whole; no two thresholds come to the same"
    " amount; the rows of a whole period are kept, which a zone whose days begin off the whole hour may lack"
)

_WEBHOOK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "url"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": orders.NAME_CHARS_MAX},
        "url": {
            "type": "string",
            "pattern": URL,
            "maxLength": URL_CHARS_MAX,
        },
        "format": {"enum": list(messages.FORMATS), "default": messages.STANDARD},
        "enabled": {"type": "boolean", "default": True},
    },
}
_ROTATE: Final = {
    "type": "boolean",
    "default": False,
    "description": "Makes a new secret. The old one signs beside it for a day.",
}
_WEBHOOK_EXAMPLE: Final = {"name": "on-call", "url": "https://example.com/spendstream", "format": "standard"}


def _webhook(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        "required": True,
        "description": description,
        "content": {"application/json": {"schema": schema, "example": _WEBHOOK_EXAMPLE}},
    }


WEBHOOK: Final = _webhook(_WEBHOOK, "Where alerts are to be sent.")
WEBHOOK_CHANGE: Final = _webhook(
    {**_WEBHOOK, "properties": {**_WEBHOOK["properties"], orders.ROTATE: _ROTATE}},
    "Where alerts are to be sent. It replaces all of what was said; the secret stays.",
)
WEBHOOK_RULES: Final = (
    "the name is not blank and has no control characters; the URL is https, without user, password and"
    " fragment; its host is a full name or a public address, and its port is not 0"
)
