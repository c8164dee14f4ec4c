"""A deployment for the live view: a worker on an embedded log, an API, and events of two orgs."""

import asyncio
import json
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support import access, processes, streams, tokens
from tests.support.api_facts import NEIGHBOUR, ORG, rfc3339
from tests.support.processes import Api

EVIL = "\x1b]0;owned\x07\x1b[2J\u202egpt"
"""A model's name that would set the title of a terminal, clear it, and turn a line around."""
NAMED = "Acme 東京"
MODELS = (("openai", "gpt-4o"), ("openai", EVIL), ("nobody", "unpriced"))
CLIENTS = ("checkout", "\x1b[31mred", None)


def admin_token() -> str:
    """A token that sees all orgs."""
    return tokens.token(
        tokens.SECRET,
        "HS256",
        exp=int(datetime.now(UTC).timestamp()) + 3600,
        orgs=[],
        roles=["admin"],
        sub="root",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The worker and the API that run, and their settings. ``key`` is one of `ORG`."""

    env: Mapping[str, str]
    serving: Mapping[str, str]
    worker: processes.Process
    api: Api
    key: str
    token: str

    @property
    def url(self) -> str:
        return self.api.ready_url.partition("/analytics")[0]

    def client(self, **more: str) -> dict[str, str]:
        """The settings of a `spendstream top` by the administrator."""
        return {"SPENDSTREAM_API_URL": self.url, "SPENDSTREAM_TOKEN": self.token, **more}

    def publish(self, events: Sequence[bytes]) -> None:
        """Publish the events, and wait until they count."""
        before = streams.offered(self.env["DATABASE_URL"])
        asyncio.run(streams.publish_embedded(dict(self.env), list(events)))
        url = self.env["DATABASE_URL"]
        processes.wait_for(lambda: streams.offered(url) == before + len(events), 400, self.worker.log)


@contextmanager
def running(database_url: str, folder: Path) -> Iterator[Running]:
    """Run a worker and an API on a migrated database."""
    env = {
        **streams.embedded_env(database_url, folder),
        "DIMENSIONS": "team=metadata.team",
    }
    serving = {
        "DATABASE_URL": database_url,
        "AUTH_MODE": "jwt",
        "JWT_ISSUER": tokens.ISSUER,
        "JWT_AUDIENCE": tokens.AUDIENCE,
        "JWT_SECRET": tokens.SECRET,
        "API_KEY_SECRET": access.SECRET,
    }
    roles = ("analytics:usage:read", "analytics:reliability:read")
    key = access.new_key(database_url, ORG, *roles)
    with processes.worker(env, folder) as worker, Api(serving, folder) as api:
        yield Running(env=env, serving=serving, worker=worker, api=api, key=key, token=admin_token())


def events(count: int, seed: int, *, at: datetime | None = None) -> list[bytes]:
    """Events of two orgs in the last minutes, of which those of one model have no cost."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        provider, name = rng.choice(MODELS)
        occurred_at = (at or datetime.now(UTC)) - timedelta(seconds=rng.randrange(180))
        tokens_in = rng.randrange(1, 5000)
        event: dict[str, Any] = {
            "eventId": str(uuid.UUID(int=rng.getrandbits(128))),
            "orgId": str(rng.choice((ORG, NEIGHBOUR))),
            "modelId": str(uuid.uuid5(ORG, name)),
            "provider": provider,
            "modelName": name,
            "clientId": rng.choice(CLIENTS),
            "occurredAt": rfc3339(occurred_at),
            "latencyMs": rng.randrange(3000),
            "status": rng.choices(("success", "error", "timeout"), (8, 1, 1))[0],
            "inputTokens": tokens_in,
            "cacheReadTokens": rng.randrange(tokens_in),
            "outputTokens": rng.randrange(500),
            "metadata": {"team": rng.choice(("search", "ads"))},
        }
        if name != "unpriced":
            event["costEstimateCents"] = f"{rng.randrange(99)}.{rng.randrange(10**6):06d}"
        found.append(json.dumps(event).encode())
    return found


def day_of(at: datetime) -> dict[str, str]:
    """The query of the day of UTC that holds ``at``."""
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return {"start": rfc3339(start), "end": rfc3339(start + timedelta(days=1))}


def amount_of(given: Mapping[str, Any]) -> Decimal | None:
    """The cost of a point or of totals."""
    amount = given["cost"]["amount"]
    return None if amount is None else Decimal(amount)
