"""The body of the request that says of what an org is to be told, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Any, Final

from api.budgets.orders import NUMBER
from api.notices import orders, rules

_UNUSUAL: Final = {
    "type": "object",
    "required": ["enabled"],
    "additionalProperties": False,
    "properties": {
        "enabled": {"type": "boolean"},
        "factor": {
            "type": ["number", "string"],
            "default": "3",
            "exclusiveMinimum": 1,
            "maximum": rules.FACTOR_MAX,
            "pattern": NUMBER,
            "description": "An hour is unusual above so many times what is usual. At most two decimals.",
        },
        "minimumAmount": {
            "type": "string",
            "default": "10",
            "pattern": NUMBER,
            "description": "US dollars, above 0. A cheaper hour is never unusual.",
        },
    },
}
_SUMMARY: Final = {
    "type": "object",
    "required": ["enabled"],
    "additionalProperties": False,
    "properties": {
        "enabled": {"type": "boolean"},
        "timeZone": {
            "type": "string",
            "default": "UTC",
            "description": "IANA name. The days are the zone's.",
        },
    },
}
NOTICES: Final[dict[str, Any]] = {
    "required": True,
    "description": "Of what the org is to be told. It replaces all of what was said.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {orders.UNUSUAL: _UNUSUAL, orders.SUMMARY: _SUMMARY},
            },
            "example": {
                orders.UNUSUAL: {"enabled": True, "factor": "3", "minimumAmount": "10"},
                orders.SUMMARY: {"enabled": True, "timeZone": "Europe/Berlin"},
            },
        }
    },
}
RULES: Final = (
    "the factor is above 1 and has at most two decimals; the minimum is above 0; timeZone is an IANA name"
)
