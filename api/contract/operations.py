"""The one table of routes: for each its path, who may ask, which handler answers, and its documentation.

The router, the guard (`api.access.guard`) and the OpenAPI document (`api.contract.openapi`) are all made from
`OPERATIONS`. A route is served only if it stands here, and `Operation` has no default for the access, the
handler or the summary. So no route can be without a role or without documentation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiohttp import web

from api.access.guard import (
    ANALYTICS_ADMIN,
    ANY_CALLER,
    EXPORTS_CREATE,
    EXPORTS_DOWNLOAD,
    EXPORTS_READ,
    PUBLIC,
    RELIABILITY_READ,
    USAGE_READ,
    Access,
)
from api.answering import answers
from api.asking import params
from api.asking.params import CostBasis, Parameter
from api.contract import docs
from api.exports.jobs import (
    DELIVERIES,
    FORMATS,
    GRANULARITIES,
    INITIATOR_CHARS_MAX,
    MODELS_MAX,
    VALUES_MAX,
)
from api.handlers import Handlers
from api.names.orders import ITEMS_MAX
from api.prices.orders import COLUMNS as PRICE_COLUMNS
from api.prices.orders import ORGS_MAX, PRICES_MAX
from pipeline.common import adjustments, names
from pipeline.core import wire

BASE: Final = "/analytics/v1"
"""The path that every versioned route begins with."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route. ``handler`` picks the function that answers it from the server's `Handlers`."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    access: Access
    handler: Callable[[Handlers], Handler]
    name: str
    """The operationId: a verb with its object. Generated clients have functions of this name."""
    summary: str
    answer: type | str | None
    """A type of `answers`, or the media type of any other text; None: the answer has no body."""
    parameters: Sequence[Parameter] = ()
    problems: Sequence[int] = ()
    """Statuses of problems beside those that the guard gives."""
    rules: str = ""
    """Rules for a request that no schema can express. An operation without rules answers whatever its schema
    allows; a test relies on that."""
    success: int = 200
    also: int | None = None
    """A second status that is no problem."""
    body: dict[str, Any] | None = None
    headers: Sequence[dict[str, Any]] = ()
    """Headers that a request may have."""
    sends: dict[str, Any] | None = None
    """Headers of the successful answer."""
    links: dict[str, Any] | None = None
    """Operations that can be called with values of the successful answer."""


# --- bodies ---

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


def _body(schema: dict[str, Any], description: str, example: dict[str, Any]) -> dict[str, Any]:
    return {
        "required": True,
        "description": description,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


ORDER_BODY: Final = _body(
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
PRICES_BODY: Final = _body(
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
RETRACTION_BODY: Final = _body(
    {
        "type": "object",
        "required": ["reason"],
        "additionalProperties": False,
        "properties": {"reason": _REASON},
    },
    "Why it was wrong.",
    {"reason": "was for another region"},
)
DIFF_BODY: Final = _body(
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
ADJUSTMENT_BODY: Final = _body(
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
ORG_NAME_BODY: Final = _body(
    {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {"name": _NAME},
    },
    "What answers and files are to call the org.",
    {"name": "Acme Ltd."},
)
VALUE_NAMES_BODY: Final = _body(
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
SCHEDULE_BODY: Final = _body(
    {"type": "object", "additionalProperties": False, "properties": _SHAPE},
    "What each month's file looks like.",
    {"granularity": "daily", "format": "focus-1.2"},
)
IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Orders once, however often it is sent.",
    "schema": {"type": "string", "pattern": r"^[!-~]{1,200}$"},
}
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

# --- operations ---


def _link(operation: str, **parameters: str) -> dict[str, Any]:
    return {"operationId": operation, "parameters": parameters}


_CURSOR: Final = "a cursor must be one that was given out for the same org and parameters"
_ZONES: Final = (
    "timeZone must be an IANA name, and minute rows be kept long enough if its days begin off the whole hour"
)
_DIMENSIONS: Final = (
    "rows are by and of one of client and the dimensions that are set, and a range by dimension begins after"
    " that; FOCUS is by model"
)
_RANGE: Final = (
    "either start and end, or last; end must be after start, and the range within its limits and what is kept"
)
_FIGURES: Final = (
    f"{_RANGE}; minutes are not counted by"
    " client or dimension; figures are split and filtered by one of client and the dimensions that are set;"
    f" timeZone must be an IANA name; {_CURSOR}"
)
_NAME_RULES: Final = "a name is not blank and has no control characters"
_VERSIONS: Final = "the price book must have had that version"
_ORG: Final = f"{BASE}/orgs/{{orgId}}"
OPERATIONS: Final = (
    Operation(
        method="GET",
        path=f"{_ORG}/usage",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.usage,
        name="getUsage",
        summary="Usage and spend over time, with totals of the whole range.",
        answer=answers.Usage,
        parameters=params.USAGE,
        problems=(400, 503),
        rules=f"{_FIGURES}; {_VERSIONS}",
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/reliability",
        access=Access(role=RELIABILITY_READ),
        handler=lambda h: h.reliability,
        name="getReliability",
        summary="Error rates, latency percentiles and error codes over time.",
        answer=answers.Reliability,
        parameters=params.RELIABILITY,
        problems=(400, 503),
        rules=_FIGURES,
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/freshness",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.org_freshness,
        name="getFreshness",
        summary="How old the org's figures are, and those of each of its models.",
        answer=answers.OrgFreshness,
        parameters=params.FRESHNESS,
        problems=(400, 404, 503),
        rules=_CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/live",
        access=Access(role=USAGE_READ, streams=True),
        handler=lambda h: h.live.answer,
        name="streamLive",
        summary="Server-sent events: `usage` after each committed flush that touched the org (LiveUsage; its"
        " id, sent back as Last-Event-ID, resumes), `freshness` at least every 5 s (LiveFreshness), and"
        " `dropped` as the last word (LiveDropped).",
        answer="text/event-stream",
        problems=(400, 429, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/models",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.models,
        name="listModels",
        summary="Models seen, with their first and last event.",
        answer=answers.Models,
        parameters=params.LISTING,
        problems=(400, 503),
        rules=_CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/clients",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.clients,
        name="listClients",
        summary="Clients seen, with their first and last event.",
        answer=answers.Clients,
        parameters=params.LISTING,
        problems=(400, 503),
        rules=_CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/dimensions",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.dimensions,
        name="listDimensions",
        summary="The dimensions that events are counted by beside their client (DIMENSIONS), and since when.",
        answer=answers.Dimensions,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/dimensions/{{name}}",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.values,
        name="listDimensionValues",
        summary="Values of a dimension seen, with their first and last event.",
        answer=answers.Values,
        parameters=params.LISTING,
        problems=(400, 404, 503),
        rules=f"the dimension must be set; {_CURSOR}",
    ),
    Operation(
        method="PUT",
        path=f"{_ORG}/dimensions/{{name}}/names",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.name_changes.set_values,
        name="setValueNames",
        summary="Set or remove the names of some values of a dimension, or of clients: the values of client."
        " They need not have been seen.",
        answer=answers.ValueNames,
        body=VALUE_NAMES_BODY,
        problems=(400, 404, 409, 413, 503),
        rules=f"{_NAME_RULES}; a value is storable text and stands in the list once",
    ),
    Operation(
        method="PUT",
        path=f"{BASE}/names/orgs/{{orgId}}",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.name_changes.set_org,
        name="setOrgName",
        summary="Set or remove the name of an org. The org need not have been seen.",
        answer=answers.OrgName,
        body=ORG_NAME_BODY,
        problems=(400, 413, 503),
        rules=_NAME_RULES,
    ),
    Operation(
        method="DELETE",
        path=f"{BASE}/names/orgs/{{orgId}}",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.name_changes.remove_org,
        name="removeOrgName",
        summary="Remove the name of an org, if it has one.",
        answer=None,
        success=204,
        problems=(400, 503),
    ),
    Operation(
        method="POST",
        path=f"{_ORG}/exports",
        access=Access(role=EXPORTS_CREATE, writes=True),
        handler=lambda h: h.exports.create,
        name="createExport",
        summary="Order a file of the org's figures by bucket, model and client, or by a dimension. The same"
        " Idempotency-Key gives the same job.",
        answer=answers.ExportJob,
        success=202,
        body=ORDER_BODY,
        headers=(IDEMPOTENCY_KEY,),
        sends={"Location": {"description": "The job.", "schema": {"type": "string"}}},
        links={
            name: _link(name, orgId="$request.path.orgId", jobId="$response.body#/jobId")
            for name in ("getExport", "downloadExport")
        },
        problems=(400, 409, 413, 429, 503),
        rules="end must be after start, and the range within its limits and what is kept;"
        f" {_ZONES}; {_DIMENSIONS}; {_VERSIONS}; delivery is to this server's own bucket, if it has one;"
        " initiatedBy is printable",
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/exports",
        access=Access(role=EXPORTS_READ),
        handler=lambda h: h.exports.page,
        name="listExports",
        summary="The org's exports, the newest first.",
        answer=answers.ExportJobs,
        parameters=params.EXPORTS,
        problems=(400, 503),
        rules=_CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/exports/{{jobId}}",
        access=Access(role=EXPORTS_READ),
        handler=lambda h: h.exports.one,
        name="getExport",
        summary="One export and how far it is.",
        answer=answers.ExportJob,
        problems=(400, 404, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/exports/{{jobId}}/download",
        access=Access(role=EXPORTS_DOWNLOAD),
        handler=lambda h: h.exports.download,
        name="downloadExport",
        summary="A signed link to the file, good for 24 hours.",
        answer=None,
        success=302,
        sends={"Location": {"description": "The link.", "schema": {"type": "string"}}},
        problems=(400, 404, 409, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/export-schedule",
        access=Access(role=EXPORTS_READ),
        handler=lambda h: h.exports.schedule,
        name="getExportSchedule",
        summary="The org's monthly export.",
        answer=answers.ExportSchedule,
        problems=(400, 404, 503),
    ),
    Operation(
        method="PUT",
        path=f"{_ORG}/export-schedule",
        access=Access(role=EXPORTS_CREATE, writes=True),
        handler=lambda h: h.exports.set_schedule,
        name="setExportSchedule",
        summary="Make an export of each month of a time zone once its figures are final.",
        answer=answers.ExportSchedule,
        body=SCHEDULE_BODY,
        problems=(400, 413, 503),
        rules=f"{_ZONES}; {_DIMENSIONS}",
    ),
    Operation(
        method="DELETE",
        path=f"{_ORG}/export-schedule",
        access=Access(role=EXPORTS_CREATE, writes=True),
        handler=lambda h: h.exports.drop_schedule,
        name="dropExportSchedule",
        summary="End the org's monthly export.",
        answer=None,
        success=204,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{_ORG}/adjustments",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.adjustments.page,
        name="listAdjustments",
        summary="Credits, refunds and corrections of what the org pays.",
        answer=answers.Adjustments,
        parameters=params.ADJUSTMENTS,
        problems=(400, 503),
        rules=f"end must be after start; {_CURSOR}",
    ),
    Operation(
        method="POST",
        path=f"{_ORG}/adjustments",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.adjustments.add,
        name="addAdjustment",
        summary="Record a credit, refund or correction. The same Idempotency-Key records it once.",
        answer=answers.Adjustment,
        success=201,
        body=ADJUSTMENT_BODY,
        headers=(IDEMPOTENCY_KEY,),
        problems=(400, 409, 413, 503),
        rules="the period must be whole hours of UTC and end after its start; a credit or refund is below 0,"
        " and a correction is not 0",
    ),
    Operation(
        method="POST",
        path=f"{_ORG}/adjustments/{{adjustmentId}}/retract",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.adjustments.retract,
        name="retractAdjustment",
        summary="Retract an adjustment, so that it counts nowhere. The answer is the row that retracts it.",
        answer=answers.Adjustment,
        success=201,
        body=RETRACTION_BODY,
        headers=(IDEMPOTENCY_KEY,),
        problems=(400, 404, 409, 413, 503),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/exports/{{jobId}}/file",
        access=Access(role=PUBLIC),
        handler=lambda h: h.exports.file,
        name="getExportFile",
        summary="The file that a signed link of this server leads to; the signature is the credential.",
        answer="application/octet-stream",
        parameters=params.SIGNED,
        problems=(400, 403, 404, 503),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/orgs",
        access=Access(role=ANALYTICS_ADMIN, own_orgs=True),
        handler=lambda h: h.orgs,
        name="listOrgs",
        summary="The caller's orgs with totals of a range, by id; all orgs for the role admin, whose reads"
        " are audited.",
        answer=answers.Orgs,
        parameters=params.ORGS,
        links={
            name: _link(name, orgId="$response.body#/items/0/orgId")
            for name in (
                "getUsage",
                "getReliability",
                "getFreshness",
                "listModels",
                "listClients",
                "listExports",
            )
        },
        problems=(400, 503),
        rules=f"{_RANGE}; {_CURSOR}; {_VERSIONS}",
    ),
    Operation(
        method="GET",
        path=f"{BASE}/prices",
        access=Access(role=USAGE_READ, own_orgs=True),
        handler=lambda h: h.prices.page,
        name="listPrices",
        summary="Rows of the price book: those of everyone and those of the caller's orgs; all of them for"
        " the role admin, whose reads are audited.",
        answer=answers.Prices,
        parameters=params.PRICES,
        problems=(400, 503),
        rules=f"the book must have had that version; {_CURSOR}",
    ),
    Operation(
        method="POST",
        path=f"{BASE}/prices",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.prices.append,
        name="appendPrices",
        summary="Append what these prices say and the book does not. If one price breaks a rule, nothing is"
        " appended, and every fault is named. Prices of everyone need the role admin. Past versions"
        " stay as they were.",
        answer=answers.BookChange,
        body=PRICES_BODY,
        problems=(400, 413, 503),
        rules="the rules of prices, as for an import from CSV; hours are whole hours of UTC",
    ),
    Operation(
        method="POST",
        path=f"{BASE}/prices/{{priceId}}/retract",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.prices.retract,
        name="retractPrice",
        summary="Retract a price: the book then says what it would say without that row."
        " A price of everyone needs the role admin.",
        answer=answers.BookChange,
        body=RETRACTION_BODY,
        problems=(400, 404, 409, 413, 503),
    ),
    Operation(
        method="POST",
        path=f"{BASE}/prices/diff",
        access=Access(role=ANALYTICS_ADMIN, all_orgs=True, writes=True),
        handler=lambda h: h.prices.diff,
        name="diffPrices",
        summary="What the calls of a range of hours cost at two versions of the book, or with some prices"
        " added to the newest one, by org and model. Nothing is changed. Without orgs it needs the"
        " role admin.",
        answer=answers.PriceDifferences,
        body=DIFF_BODY,
        problems=(400, 413, 503),
        rules="either prices or after; the book must have had these versions; end must be after start",
    ),
    Operation(
        method="POST",
        path=f"{BASE}/events/validate",
        access=Access(role=ANY_CALLER),
        handler=lambda h: h.validate,
        name="validateEvent",
        summary="Check one usage event against the wire contract: nothing is stored. 204: it is valid; 200:"
        " it is valid, and would be rejected if it came now, as too_late or future.",
        answer=answers.EventOutlook,
        also=204,
        problems=(400, 413),
        rules="all of the wire contract: what this operation is for",
        body=EVENT_BODY,
    ),
    Operation(
        method="GET",
        path=f"{BASE}/status/healthz",
        access=Access(role=PUBLIC),
        handler=lambda h: h.healthz,
        name="getHealth",
        summary="Liveness.",
        answer="text/plain",
    ),
    Operation(
        method="GET",
        path=f"{BASE}/status/readyz",
        access=Access(role=PUBLIC),
        handler=lambda h: h.readyz,
        name="getReadiness",
        summary="Readiness, component by component; 503 while the database or its schema is away.",
        answer=answers.Readiness,
        also=503,
    ),
    Operation(
        method="GET",
        path="/",
        access=Access(role=PUBLIC),
        handler=lambda _: docs.root,
        name="openRoot",
        summary="Leads to the page of this document.",
        answer=None,
        success=302,
        sends={"Location": {"description": "The page.", "schema": {"type": "string"}}},
    ),
    Operation(
        method="GET",
        path=f"{BASE}/openapi.json",
        access=Access(role=PUBLIC),
        handler=lambda h: h.openapi,
        name="getDocument",
        summary="This document.",
        answer="application/json",
    ),
    Operation(
        method="GET",
        path=f"{BASE}/docs",
        access=Access(role=PUBLIC),
        handler=lambda _: docs.page,
        name="getDocs",
        summary="This document as a page.",
        answer="text/html",
    ),
    Operation(
        method="GET",
        path="/metrics",
        access=Access(role=PUBLIC),
        handler=lambda h: h.prometheus,
        name="getMetrics",
        summary="Prometheus metrics.",
        answer="text/plain",
    ),
)
