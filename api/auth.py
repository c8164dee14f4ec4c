"""Who calls, and whether they may: one middleware in front of every route.

Each route states its `Access`; a route without one is refused, so a new route cannot forget it. The org in
a path is checked here and nowhere else, before any handler runs: an org that is not the caller's is 403
whether it exists or not. Reads across orgs, granted and denied, go to the audit log before the answer goes
out; an answer that cannot be audited is not given.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol
from uuid import UUID

from aiohttp import web
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from api import params, problems
from api.config import AuthConfig
from api.database import Database, Unavailable
from api.problems import Fault
from sql.schema import audit_log

log = logging.getLogger(__name__)

ADMIN: Final = "admin"
USAGE_READ: Final = "analytics:usage:read"
RELIABILITY_READ: Final = "analytics:reliability:read"
ANALYTICS_ADMIN: Final = "analytics:admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a route asks of its caller. ``role`` None: any caller; ``public``: nobody need be known.

    ``all_orgs``: it shows every org at once. A path with ``{orgId}`` is scoped to that org by itself.
    """

    role: str | None = None
    public: bool = False
    all_orgs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """``orgs`` None: this caller's own orgs are all of them (AUTH_MODE none)."""

    subject: str
    roles: frozenset[str]
    orgs: frozenset[UUID] | None

    def has(self, role: str) -> bool:
        return role in self.roles or ADMIN in self.roles

    def owns(self, org_id: UUID) -> bool:
        return self.orgs is None or org_id in self.orgs


class Authenticator(Protocol):
    def __call__(self, request: web.Request) -> Caller:
        """Who sent this. Raises `Problem` 401."""


def authenticator(config: AuthConfig) -> Authenticator:
    if config.mode == "none":
        return _nobody_asked
    assert config.mode == "gateway", config.mode
    return _Gateway(config)


def _nobody_asked(request: web.Request) -> Caller:
    return Caller(subject="local", roles=frozenset((ADMIN,)), orgs=None)


class _Gateway:
    """Believes a trusted proxy's X-Actor-Subject, X-Actor-Roles and X-Actor-Orgs (comma separated)."""

    def __init__(self, config: AuthConfig) -> None:
        self._trusted = config.trusted_proxies

    def __call__(self, request: web.Request) -> Caller:
        if not self._is_trusted(request):
            raise problems.unauthenticated("This server takes requests from its gateway only.")
        subject = request.headers.getall("X-Actor-Subject", [])
        if len(subject) != 1 or not subject[0].strip():
            raise problems.unauthenticated("The gateway must send X-Actor-Subject, once.")
        try:
            orgs = frozenset(params.uuid(org) for org in _listed(request, "X-Actor-Orgs"))
        except ValueError:
            raise problems.unauthenticated("X-Actor-Orgs must be UUIDs, separated by commas.") from None
        return Caller(
            subject=subject[0].strip(), roles=frozenset(_listed(request, "X-Actor-Roles")), orgs=orgs
        )

    def _is_trusted(self, request: web.Request) -> bool:
        # The peer of the connection itself: request.remote may be rewritten, and the headers are in doubt.
        peer = request.transport.get_extra_info("peername") if request.transport else None
        if not isinstance(peer, tuple):
            return False
        address = ip_address(peer[0].partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)


def _listed(request: web.Request, header: str) -> Iterable[str]:
    words = (word.strip() for line in request.headers.getall(header, []) for word in line.split(","))
    return filter(None, words)


# --- the middleware ----------------------------------------------------------------------------

AccessTable = Mapping[tuple[str, str], Access]
"""By method and path template."""

ORG_ID: Final = web.RequestKey("org_id", UUID)
"""Key of the request under which a handler finds the org it may answer for."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """The one place that lets a request through to its handler."""

    def __init__(
        self,
        *,
        authenticate: Authenticator,
        accesses: AccessTable,
        database: Database,
        clock: Callable[[], datetime],
    ) -> None:
        self._authenticate = authenticate
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
        caller = self._authenticate(request)
        org_id = self._org_in_path(request)
        across_orgs = access.all_orgs or (org_id is not None and not caller.owns(org_id))
        refusal = self._refusal(caller, access, org_id)
        if refusal is not None:
            if across_orgs:
                await self._audit_denied(request, caller, org_id, refusal)
            raise refusal
        try:
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
            await connection.execute(insert(audit_log).values(row))

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
