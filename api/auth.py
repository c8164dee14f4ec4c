"""Whether a caller may: one middleware in front of every route.

Each route states its `Access`; a route without one is refused, so a new route cannot forget it. The org in
a path is checked here and nowhere else, before any handler runs: an org that is not the caller's is 403
whether it exists or not. Reads across orgs, granted and denied, go to the audit log before the answer goes
out; an answer that cannot be audited is not given.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from aiohttp import web
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from api import params, problems
from api.database import Database, Unavailable
from api.identity import ADMIN, Authenticator, Caller, Networks, address_of
from api.limits import ALLOWANCE, RateLimiter, Unknown
from api.problems import Fault
from api.turns import Turns
from sql.schema import audit_log

log = logging.getLogger(__name__)

USAGE_READ: Final = "analytics:usage:read"
RELIABILITY_READ: Final = "analytics:reliability:read"
EXPORTS_CREATE: Final = "analytics:exports:create"
EXPORTS_READ: Final = "analytics:exports:read"
EXPORTS_DOWNLOAD: Final = "analytics:exports:download"
ANALYTICS_ADMIN: Final = "analytics:admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a route asks of its caller. ``role`` None: any caller; ``public``: nobody need be known.

    ``all_orgs``: it shows every org at once. A path with ``{orgId}`` is scoped to that org by itself.
    ``streams``: the answer goes out while the handler runs, so it is audited before that.
    """

    role: str | None = None
    public: bool = False
    all_orgs: bool = False
    streams: bool = False


# --- the middleware ----------------------------------------------------------------------------

AccessTable = Mapping[tuple[str, str], Access]
"""By method and path template."""

ORG_ID: Final = web.RequestKey("org_id", UUID)
"""Key of the request under which a handler finds the org it may answer for."""

CALLER: Final = web.RequestKey("caller", Caller)
"""Key of the request under which a handler finds who asks: to write it down, not to decide by it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """The one place that lets a request through to its handler."""

    def __init__(
        self,
        *,
        authenticate: Authenticator,
        limiter: RateLimiter,
        unknown: Unknown,
        turns: Turns,
        trusted_proxies: Networks,
        accesses: AccessTable,
        database: Database,
        clock: Callable[[], datetime],
    ) -> None:
        self._authenticate = authenticate
        self._limiter = limiter
        self._unknown = unknown
        self._turns = turns
        self._trusted_proxies = trusted_proxies
        self._accesses = accesses
        self._database = database
        self._clock = clock

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.http_exception is not None:
            return await handler(request)  # no such route: 404 or 405, the same for everybody
        path = template(request)
        access = self._accesses.get(("GET" if request.method == "HEAD" else request.method, path))
        if access is None:
            raise AssertionError(f"route without access: {request.method} {path}")
        if access.public:
            return await handler(request)
        try:
            caller = request[CALLER] = await self._authenticate(request)
        except problems.Problem:
            self._unknown.take(address_of(request, self._trusted_proxies))
            raise
        allowance = await self._limiter.take(caller.subject)
        if allowance is not None:
            request[ALLOWANCE] = allowance
        org_id = self._org_in_path(request)
        across_orgs = access.all_orgs or (org_id is not None and not caller.owns(org_id))
        refusal = self._refusal(caller, access, org_id)
        if refusal is not None:
            if across_orgs:
                await self._audit_denied(request, caller, org_id, refusal)
            raise refusal
        if access.streams:
            if across_orgs:
                await self._audit(request, caller, org_id, "granted", 200)
            return await handler(request)
        asks = org_id is not None or access.all_orgs
        keys = [f"org {org_id}"] * (org_id is not None) + [f"caller {caller.subject}"]
        try:
            async with self._turns.turn(keys) if asks else nullcontext():
                response = await handler(request)
        except problems.Problem as problem:
            if across_orgs and problem.status != 400:  # a question that was not understood has read nothing
                await self._audit(request, caller, org_id, "granted", problem.status)
            raise
        if across_orgs:
            await self._audit(request, caller, org_id, "granted", response.status)
        return response

    @staticmethod
    def _org_in_path(request: web.Request) -> UUID | None:
        text = request.match_info.get("orgId")
        if text is None:
            return None
        try:
            org_id = request[ORG_ID] = params.uuid(text)
        except ValueError as error:
            raise problems.invalid_parameters([Fault("orgId", str(error))]) from None
        return org_id

    @staticmethod
    def _refusal(caller: Caller, access: Access, org_id: UUID | None) -> problems.Problem | None:
        # The org first: which role would do is nobody's business who does not belong to it.
        if org_id is not None and not caller.owns(org_id) and ADMIN not in caller.roles:
            return problems.forbidden("This org is not yours to read.")
        if access.role is not None and not caller.has(access.role):
            return problems.forbidden(f"This needs the role {access.role}.")
        return None

    async def _audit_denied(
        self, request: web.Request, caller: Caller, org_id: UUID | None, refusal: problems.Problem
    ) -> None:
        try:
            await self._audit(request, caller, org_id, "denied", refusal.status)
        except Unavailable:
            log.error(
                "audit_lost", extra={"actor": caller.subject, "org_id": str(org_id)}
            )  # denied all the same

    async def _audit(
        self, request: web.Request, caller: Caller, org_id: UUID | None, outcome: str, status: int
    ) -> None:
        action = f"{request.method} {template(request)}"
        row = {
            "at": self._clock(),
            "actor": caller.subject[:200],
            "action": action,
            "org_id": org_id,
            "outcome": outcome,
            "detail": {"status": status, "query": _clean(request.query_string)},
        }

        async def add(connection: AsyncConnection) -> None:
            # inline: no RETURNING, which would take the right to read the log.
            await connection.execute(insert(audit_log).values(row).inline())

        log.info(
            "cross_org_read",
            extra={"actor": caller.subject, "action": action, "org_id": str(org_id), "outcome": outcome},
        )
        await self._database.write(add)


def template(request: web.Request) -> str:
    """The path of the route, with its variables as names."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


def _clean(text: str) -> str:
    """What jsonb takes, in a bounded length."""
    return text[:2000].encode("utf-8", "replace").decode().replace("\0", "")
