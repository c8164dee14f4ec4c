"""The API without a database: a caller that the API lets in, and the form of its problems."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from aiohttp import ClientResponse

ORG = "aaaaaaaa-0000-4000-8000-000000000001"
NOWHERE = "postgresql://nobody@/nothing?host=/nonexistent"
WITHIN_S = 3.0
"""The API promises its answer without a database within a second. A slow machine adds work of its own.

The next bounds are 5 s for a connection and 10 s for a query.
"""
RANGE = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"}
READER = {
    "X-Actor-Subject": "ana",
    "X-Actor-Roles": "analytics:usage:read, analytics:reliability:read",
    "X-Actor-Orgs": ORG,
}
EVENT = {
    "eventId": "6f2a9a3e-0f55-4d0e-9a53-7f7a0b9c1d2e",
    "orgId": ORG,
    "modelId": ORG,
    "occurredAt": datetime.now(UTC).isoformat(),
    "latencyMs": 412,
    "status": "success",
    "inputTokens": 812,
    "outputTokens": 96,
    "costEstimateCents": "0.4375",
}


async def problem(response: ClientResponse, status: int) -> dict[str, Any]:
    """The body of an answer that must be a problem with this status."""
    text = await response.text()
    assert response.status == status, text
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = json.loads(text)
    assert body["status"] == status
    assert body.keys() - {"errors"} == {"type", "title", "status", "detail", "instance"}
    assert UUID(body["instance"].removeprefix("urn:uuid:"))
    return body
