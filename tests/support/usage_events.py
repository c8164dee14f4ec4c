"""Contract events in bulk, each with an id of its own: cheap enough for ten thousands a second."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

ORG = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001")
_ID = "00000000-0000-4000-8000-000000000000"


class EventMill:
    """Makes events of some orgs and models.

    ``seed`` begins the ids. Two mills with one seed, and one time ``at`` (or else now), make the same events.
    """

    def __init__(
        self, *, orgs: int = 20, models: int = 10, kinds: int = 997, seed: int = 0, at: datetime | None = None
    ) -> None:
        rng = random.Random(seed)
        occurred_at = (at or datetime.now(UTC)).isoformat().replace("+00:00", "Z")
        self._number = seed << 64
        org_ids = [ORG, *(uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(orgs - 1))]
        model_ids = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(models)]
        self.orgs = [str(org_id) for org_id in org_ids]
        self._tails: list[bytes] = []
        for kind in range(kinds):
            event = {
                "eventId": _ID,
                "orgId": self.orgs[kind % orgs],
                "modelId": str(rng.choice(model_ids)),
                "clientId": f"client-{rng.randrange(50)}",
                "occurredAt": occurred_at,
                "latencyMs": rng.randrange(2000),
                "status": rng.choice(["success"] * 9 + ["error"]),
                "inputTokens": rng.randrange(20_000),
                "outputTokens": rng.randrange(2000),
                "costEstimateCents": round(rng.random(), 4),
                "metadata": {"team": f"team-{rng.randrange(8)}", "feature": "search"},
                "provider": "openai",
                "modelName": "gpt-4o-2024-08-06",
            }
            head, _, tail = json.dumps(event, separators=(",", ":")).encode().partition(_ID.encode())
            self._head = head
            self._tails.append(tail)
        self.made = 0

    def events(self, count: int) -> list[bytes]:
        """``count`` new events."""
        head, tails, kinds = self._head, self._tails, len(self._tails)
        found = []
        for number in range(self._number, self._number + count):
            digits = f"{number:032x}"
            event_id = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            found.append(head + event_id.encode() + tails[number % kinds])
        self._number += count
        self.made += count
        return found


def array(events: Sequence[bytes]) -> bytes:
    """A body of several events."""
    return b"[" + b",".join(events) + b"]"


def post(
    path: str,
    body: bytes,
    *,
    port: int,
    headers: Sequence[tuple[str, str]] = (("Content-Type", "application/json"),),
) -> bytes:
    """A POST request as it goes out."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
