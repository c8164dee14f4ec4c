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
        self._occurred_at = (at or datetime.now(UTC)).isoformat().replace("+00:00", "Z")
        self._seed = seed
        self._number = seed << 64
        org_ids = [ORG, *(uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(orgs - 1))]
        self.orgs = [str(org_id) for org_id in org_ids]
        self._models = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(models)]
        self._parts: list[tuple[bytes, bytes] | None] = [None] * kinds
        self.made = 0

    def events(self, count: int) -> list[bytes]:
        """``count`` new events."""
        found = []
        for number in range(self._number, self._number + count):
            kind = number % len(self._parts)
            head, tail = self._parts[kind] or self._make(kind)
            digits = f"{number:032x}"
            event_id = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            found.append(head + event_id.encode() + tail)
        self._number += count
        self.made += count
        return found

    def _make(self, kind: int) -> tuple[bytes, bytes]:
        """What stands before and behind the id in the events of a kind."""
        rng = random.Random(f"{self._seed} {kind}")
        event = {
            "eventId": _ID,
            "orgId": self.orgs[kind % len(self.orgs)],
            "modelId": rng.choice(self._models),
            "clientId": f"client-{rng.randrange(50)}",
            "occurredAt": self._occurred_at,
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
        self._parts[kind] = head, tail
        return head, tail


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
