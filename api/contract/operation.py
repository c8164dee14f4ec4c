"""What a route says of itself, and the texts and headers that several routes share.

`Operation` has no default for the access, the handler or the summary. So no route can be without a role or
without documentation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiohttp import web

from api.access.guard import Access
from api.asking.params import Parameter
from api.handlers import Handlers

BASE: Final = "/analytics/v1"
"""The path that every versioned route begins with."""
ORG: Final = f"{BASE}/orgs/{{orgId}}"
"""The path that every route of one org begins with."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Orders once, however often it is sent.",
    "schema": {"type": "string", "pattern": r"^[!-~]{1,200}$"},
}
CURSOR: Final = "a cursor must be one that was given out for the same org and parameters"
ZONES: Final = (
    "timeZone must be an IANA name, and minute rows be kept long enough if its days begin off the whole hour"
)
DIMENSIONS: Final = (
    "rows are by and of one of client and the dimensions that are set, and a range by dimension begins after"
    " that; FOCUS is by model"
)
RANGE: Final = (
    "either start and end, or last; end must be after start, and the range within its limits and what is kept"
)
VERSIONS: Final = "the price book must have had that version"


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


def link(operation: str, **parameters: str) -> dict[str, Any]:
    """An operation that can be called with values of an answer."""
    return {"operationId": operation, "parameters": parameters}
