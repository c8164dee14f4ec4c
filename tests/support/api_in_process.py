"""An API without a database in the process of the test, and its routes."""

import asyncio
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
    ids = {"{orgId}": org, "{jobId}": OTHER, "{priceId}": "1", "{adjustmentId}": "1", "{name}": "team"}
    for name, value in ids.items():
        path = path.replace(name, value)
    return path


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
