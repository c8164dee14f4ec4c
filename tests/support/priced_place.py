"""A priced usage behind a running API, and ways to ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.api_server import BASE, Api
from tests.support.exports import downloaded, made
from tests.support.priced_usage import World


class Place:
    """A database with a priced usage, and an API that reads it."""

    def __init__(self, url: str, world: World, server: Api) -> None:
        self.url = url
        self.world = world
        self.server = server
        self.version = max(row.id for row in world.book)

    def usage(self, org: str, query: Mapping[str, Any]) -> Any:
        return self.server.ok(f"{BASE}/orgs/{org}/usage", query)

    def exported(self, org: str, body: Mapping[str, Any]) -> tuple[Any, bytes]:
        path = f"{BASE}/orgs/{org}/exports"
        job = made(self.server, body, path)
        assert job["status"] == "succeeded", job
        return job, downloaded(self.server, job, path)
