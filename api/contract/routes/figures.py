"""Routes of figures, of what has them (orgs, models, clients, values), and of the names of these."""

from __future__ import annotations

from typing import Final

from api.access.guard import ANALYTICS_ADMIN, RELIABILITY_READ, USAGE_READ, Access
from api.answering import answers
from api.asking import params
from api.contract import bodies
from api.contract.operation import BASE, CURSOR, ORG, RANGE, VERSIONS, Operation, link

_FIGURES: Final = (
    f"{RANGE}; minutes are not counted by"
    " client or dimension; figures are split and filtered by one of client and the dimensions that are set;"
    f" timeZone must be an IANA name; {CURSOR}"
)
_NAME_RULES: Final = "a name is not blank and has no control characters"


OPERATIONS: Final = (
    Operation(
        method="GET",
        path=f"{ORG}/usage",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.usage,
        name="getUsage",
        summary="Usage and spend over time, with totals of the whole range.",
        answer=answers.Usage,
        parameters=params.USAGE,
        problems=(400, 503),
        rules=f"{_FIGURES}; {VERSIONS}",
    ),
    Operation(
        method="GET",
        path=f"{ORG}/reliability",
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
        path=f"{ORG}/freshness",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.org_freshness,
        name="getFreshness",
        summary="How old the org's figures are, and those of each of its models.",
        answer=answers.OrgFreshness,
        parameters=params.FRESHNESS,
        problems=(400, 404, 503),
        rules=CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{ORG}/live",
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
        path=f"{ORG}/models",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.models,
        name="listModels",
        summary="Models seen, with their first and last event.",
        answer=answers.Models,
        parameters=params.LISTING,
        problems=(400, 503),
        rules=CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{ORG}/clients",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.clients,
        name="listClients",
        summary="Clients seen, with their first and last event.",
        answer=answers.Clients,
        parameters=params.LISTING,
        problems=(400, 503),
        rules=CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{ORG}/dimensions",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.dimensions,
        name="listDimensions",
        summary="The dimensions that events are counted by beside their client (DIMENSIONS), and since when.",
        answer=answers.Dimensions,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{ORG}/dimensions/{{name}}",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.values,
        name="listDimensionValues",
        summary="Values of a dimension seen, with their first and last event.",
        answer=answers.Values,
        parameters=params.LISTING,
        problems=(400, 404, 503),
        rules=f"the dimension must be set; {CURSOR}",
    ),
    Operation(
        method="PUT",
        path=f"{ORG}/dimensions/{{name}}/names",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.name_changes.set_values,
        name="setValueNames",
        summary="Set or remove the names of some values of a dimension, or of clients: the values of client."
        " They need not have been seen.",
        answer=answers.ValueNames,
        body=bodies.VALUE_NAMES_BODY,
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
        body=bodies.ORG_NAME_BODY,
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
            name: link(name, orgId="$response.body#/items/0/orgId")
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
        rules=f"{RANGE}; {CURSOR}; {VERSIONS}",
    ),
)
