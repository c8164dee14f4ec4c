"""Routes of the server itself: who asks, whether it is well, its documents and its page."""

from __future__ import annotations

from typing import Final

from api import page
from api.access.guard import ANY_CALLER, PUBLIC, Access
from api.answering import answers
from api.contract import bodies, docs
from api.contract.operation import BASE, Operation

OPERATIONS: Final = (
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
        body=bodies.EVENT_BODY,
    ),
    Operation(
        method="GET",
        path=f"{BASE}/caller",
        access=Access(role=ANY_CALLER),
        handler=lambda h: h.caller,
        name="getCaller",
        summary="Who asks, as this server knows the caller: its orgs and roles.",
        answer=answers.Caller,
        problems=(400,),
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
        handler=lambda _: page.root,
        name="openRoot",
        summary="Leads to the page.",
        answer=None,
        success=302,
        sends={"Location": {"description": "The page.", "schema": {"type": "string"}}},
    ),
    Operation(
        method="GET",
        path=f"{BASE}/app",
        access=Access(role=PUBLIC),
        handler=lambda _: page.bare,
        name="openPage",
        summary="Leads to the page.",
        answer=None,
        success=302,
        sends={"Location": {"description": "The page.", "schema": {"type": "string"}}},
    ),
    Operation(
        method="GET",
        path=f"{BASE}/app/",
        access=Access(role=PUBLIC),
        handler=lambda _: page.index,
        name="getPage",
        summary="The page for people: spend, usage and reliability, live.",
        answer="text/html",
    ),
    Operation(
        method="GET",
        path=f"{BASE}/app/{{file}}",
        access=Access(role=PUBLIC),
        handler=lambda _: page.file,
        name="getPageFile",
        summary="A script, style or picture of the page.",
        answer=", ".join(sorted(set(page.MEDIA_TYPES.values()))),
        problems=(404,),
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
