"""What the tests of an API in trouble share: its events, and questions that are timed or repeated."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from tests.support.api_facts import (
    ORG,
    random_events,
)
from tests.support.api_server import BASE, Api

EVENTS = random_events(200, seed=5)
RANGE = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-10T00:00:00Z"}
USAGE = f"{BASE}/orgs/{ORG}/usage"
FRESHNESS = f"{BASE}/orgs/{ORG}/freshness"


def timed(server: Api, path: str, query: Any = ()) -> tuple[int, Any, float]:
    started = time.monotonic()
    status, answer = server.get(path, query)
    return status, answer, time.monotonic() - started


def eventually(server: Api, path: str, query: Any = (), within_s: float = 120) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        status, answer = server.get(path, query)
        if status == 200:
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


def actor(roles: str, orgs: uuid.UUID | str = "") -> Mapping[str, str]:
    return {"X-Actor-Subject": "ana", "X-Actor-Roles": roles, "X-Actor-Orgs": str(orgs)}


def eventually_equal(found: Any, wanted: Any) -> None:
    deadline = time.monotonic() + 120
    while found() != wanted:
        assert time.monotonic() < deadline, found()
        time.sleep(0.05)
