"""An API without a database in the process of the test, and its routes."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import api
import api.config
import api.handlers
from api.app import create_app
from api.contract.operations import OPERATIONS
from tests.support.api_alone import NOWHERE, ORG

OTHER = "aaaaaaaa-0000-4000-8000-000000000002"
Client = TestClient[web.Request, web.Application]


@asynccontextmanager
async def serving(environment: Mapping[str, str]) -> AsyncIterator[Client]:
    app = create_app(api.config.load({"DATABASE_URL": NOWHERE, **environment}))
    async with TestClient(TestServer(app)) as client:
        yield client


def filled(path: str, org: str = ORG) -> str:
    """The path with an id of its kind for each parameter; only ``org`` is one that means something."""
    given = {"orgId": org, "priceId": "1", "adjustmentId": "1", "name": "team"}
    return re.sub(r"{(\w+)}", lambda parameter: given.get(parameter[1], OTHER), path)


GUARDED = [(o.method, o.path) for o in OPERATIONS if not o.access.public]
READS = [path for method, path in GUARDED if method == "GET"]
SCOPED = [(method, path) for method, path in GUARDED if "{orgId}" in path]


async def said(client: Client, request: bytes) -> bytes:
    """The server's answer to bytes that no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer
