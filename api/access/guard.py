"""Whether a caller may: one middleware in front of every route.

Each route of the table (`api.contract.operations`) states its `Access`. A route beside the table is refused.
The org in a path is checked here and nowhere else, before any handler runs. The answer for an org that is not
the caller's is 403, whether that org exists or not.

The audit log (`pipeline.common.access.audit`) gets each denial, each read across orgs, and each request that
may change something. The row is written before the answer goes out; an answer that cannot be audited is not
given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from aiohttp import web
from multidict import MultiMapping

from api.access.turns import Turns
from api.asking import params
from pipeline.common import correlation, ids, keys, problems
from pipeline.common.access.audit import Audit, Decision
from pipeline.common.access.authenticate import Authenticator, Networks, address_of
from pipeline.common.access.caller import Caller
from pipeline.common.access.limits import ALLOWANCE, RateLimiter, Unknown
from pipeline.common.errors import Unavailable
from pipeline.common.http import template
from pipeline.common.problems import Fault
from pipeline.common.served import Decisions

USAGE_READ: Final = "analytics:usage:read"
RELIABILITY_READ: Final = "analytics:reliability:read"
EXPORTS_CREATE: Final = "analytics:exports:create"
EXPORTS_READ: Final = "analytics:exports:read"
EXPORTS_DOWNLOAD: Final = "analytics:exports:download"
BUDGETS_READ: Final = "analytics:budgets:read"
BUDGETS_WRITE: Final = "analytics:budgets:write"
ANALYTICS_ADMIN: Final = "analytics:admin"
ANY_CALLER: Final = "any caller"
"""In the place of a role: every caller who is authenticated may ask."""
PUBLIC: Final = "public"
"""In the place of a role: everybody may ask, and nobody is authenticated."""
_ROLES: Final = frozenset((*keys.ROLES, ANALYTICS_ADMIN, ANY_CALLER, PUBLIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a route asks of its caller: a role, or `ANY_CALLER`, or `PUBLIC`. There is no default.

    A path with ``{orgId}`` is always scoped to that org. The flags say what else a route does:
    ``all_orgs``: it shows every org at once. ``own_orgs``: so it does to an administrator of all orgs, and
    shows others their own orgs. ``streams``: its answer goes out while the handler runs, so the
    access is audited before the handler runs. ``writes``: it may change something, so the access is audited
    before the handler runs, for the caller's own org too.

    Raises:
        ValueError: there is no such role.
    """

    role: str
    all_orgs: bool = False
    own_orgs: bool = False
    streams: bool = False
    writes: bool = False

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(f"no such role: {self.role}")

    @property
    def public(self) -> bool:
        return self.role == PUBLIC

    def admits(self, caller: Caller) -> bool:
        """Has the caller the role that is asked for?"""
        return self.role in (ANY_CALLER, PUBLIC) or caller.has(self.role)


# --- the middleware ----------------------------------------------------------------------------

AccessTable = Mapping[tuple[str, str], Access]
"""By method and path template."""

ORG_ID: Final = web.RequestKey("org_id", UUID)
"""Key of the request under which a handler finds the org it may answer for."""

CALLER: Final = web.RequestKey("caller", Caller)
"""Key of the request under which a handler finds who asks: to write it down, not to decide by it."""

_REFUSED: Final = {401: "credential", 403: "place", 429: "rate"}
"""Why a caller is not let in, by the status of the answer; see `pipeline.common.served.REFUSALS`."""

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
        audit: Audit,
        decisions: Decisions,
    ) -> None:
        self._authenticate = authenticate
        self._limiter = limiter
        self._unknown = unknown
        self._turns = turns
        self._trusted_proxies = trusted_proxies
        self._accesses = accesses
        self._audit = audit
        self._decisions = decisions

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
        caller = request[CALLER] = await self._caller(request)
        org_id = self._org_in_path(request)
        all_orgs = access.all_orgs or (access.own_orgs and caller.reaches_all)
        across_orgs = all_orgs or (org_id is not None and not caller.owns(org_id))
        refusal = self._refusal(caller, access, org_id)
        if refusal is not None:
            reason, problem = refusal
            self._decisions.refused(reason)
            await self._audit.denied(self._decision(request, caller, org_id, problem.status))
            raise problem
        self._decisions.allowed()
        if access.streams or access.writes:  # it cannot be taken back, so it is audited before it is done
            if across_orgs or access.writes:
                status = 200 if access.streams else None
                await self._audit.granted(self._decision(request, caller, org_id, status))
            across_orgs = False
        asks = (org_id is not None or access.all_orgs or access.own_orgs) and not access.streams
        keys = [f"org {org_id}"] * (org_id is not None) + [f"caller {caller.subject}"]
        try:
            async with self._turns.turn(keys) if asks else nullcontext():
                response = await handler(request)
        except problems.Problem as problem:
            if across_orgs and problem.status != 400:  # a faulty question has read nothing
                await self._audit.granted(self._decision(request, caller, org_id, problem.status))
            raise
        if across_orgs:
            await self._audit.granted(self._decision(request, caller, org_id, response.status))
        return response

    async def _caller(self, request: web.Request) -> Caller:
        """Who sent the request, if the caller has not asked too often. Raises `Problem` and `Unavailable`."""
        try:
            try:
                caller = await self._authenticate(request)
            except problems.Problem:
                self._unknown.take(address_of(request, self._trusted_proxies))
                raise
            allowance = await self._limiter.take(caller.subject)
        except problems.Problem as problem:
            self._decisions.refused(_REFUSED.get(problem.status, "credential"))
            raise
        except Unavailable:
            self._decisions.refused("unknown")
            raise
        if allowance is not None:
            request[ALLOWANCE] = allowance
        return caller

    @staticmethod
    def _org_in_path(request: web.Request) -> UUID | None:
        text = request.match_info.get("orgId")
        if text is None:
            return None
        try:
            org_id = request[ORG_ID] = ids.uuid(text)
        except ValueError as error:
            raise problems.invalid_parameters([Fault("orgId", str(error))]) from None
        return org_id

    @staticmethod
    def _refusal(caller: Caller, access: Access, org_id: UUID | None) -> tuple[str, problems.Problem] | None:
        """Why the caller may not ask this, as one of `served.REFUSALS` and as an answer; None: it may."""
        # The org first: a stranger to the org does not learn which role is needed.
        if org_id is not None and not caller.reaches(org_id):
            return "org", problems.forbidden("This org is not yours to read.")
        if not access.admits(caller):
            return "role", problems.forbidden(f"This needs the role {access.role}.")
        return None

    @staticmethod
    def _decision(request: web.Request, caller: Caller, org_id: UUID | None, status: int | None) -> Decision:
        return Decision(
            actor=caller.subject,
            action=f"{request.method} {template(request)}",
            org_id=org_id,
            status=status,
            asked=_asked(request.query),
            correlation=correlation.of(request),
        )


def _asked(query: MultiMapping[str]) -> str:
    """The query as text that jsonb can hold, cut to a bounded length.

    The value of a parameter that no route knows is left out: somebody may have put a token there.
    """
    known = params.NAMES_SHOWN
    text = "&".join(f"{name[:100]}={value if name in known else '…'}" for name, value in query.items())
    return text[:2000].encode("utf-8", "replace").decode().replace("\0", "")
