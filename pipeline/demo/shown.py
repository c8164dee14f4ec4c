"""What the demo prints that takes working out: the figures of all orgs, and a line that sends an event."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final
from urllib.parse import quote

from pipeline.collector import ids
from pipeline.demo import rest

_MODEL: Final = ("openai", "gpt-4o-2024-08-06")


def figures(api: str, events_before: int | None) -> tuple[int, str]:
    """Today's number of events of all orgs, and a line that says it beside what they cost.

    Raises OSError: the API does not answer.
    """
    events, spend, orgs, freshness, cursor = 0, Decimal(0), 0, None, ""
    bases: set[str] = set()
    while cursor is not None:
        page = rest.get(f"{api}/orgs?{rest.today()}&limit=1000{cursor and '&cursor=' + quote(cursor)}")
        for item in page["items"]:
            orgs += 1
            events += item["invocations"]
            spend += Decimal(item["cost"]["amount"] or 0)
            bases.add(item["cost"]["basis"])
            if freshness is None or item["freshness"]["lagSeconds"] > freshness["lagSeconds"]:
                freshness = item["freshness"]
        cursor = page["nextCursor"]
    lag = f"lag {freshness['lagSeconds']:.1f} s ({freshness['status']})" if freshness else "no events"
    new = f"{events - events_before:+,}" if events_before is not None else "today"
    basis = f" (basis: {bases.pop() if len(bases) == 1 else 'mixed'})" if bases else ""
    return events, f"{events:,} events ({new})  ${spend:,.4f}{basis}  {orgs:,} orgs  {lag}"


def sending(collector: str, org_id: str) -> str:
    """A line that sends an event of the org to the collector."""
    event = {
        "eventId": str(uuid.uuid4()),
        "orgId": org_id,
        "modelId": str(ids.model_id(*_MODEL)),
        "provider": _MODEL[0],
        "modelName": _MODEL[1],
        "occurredAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "latencyMs": 812,
        "status": "success",
        "inputTokens": 1200,
        "outputTokens": 80,
    }
    body = json.dumps(event, separators=(",", ":"))
    return f"curl -s {collector}/v1/events -H 'Content-Type: application/json' -d '{body}'"
