"""Every route as seen from outside, with no database behind it: what errors look like."""

import asyncio
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import AsyncIterator

import pytest

import api
import api.config
import api.handlers
from api.asking.limits import Limits
from api.config import RangeConfig
from api.contract import openapi
from api.contract.operations import BASE
from api.exports import jobs
from api.reading import database
from pipeline.common.errors import ServiceError
from pipeline.common.problems import Problem
from tests.support.api_alone import ORG, RANGE, WITHIN_S, problem
from tests.support.api_in_process import READS, Client, filled, serving


async def test_unknown_paths_and_methods_are_problems(client: Client) -> None:
    await problem(await client.get("/nothing"), 404)
    await problem(await client.get(f"{BASE}/orgs/{ORG}/lives"), 404)
    response = await client.delete(f"{BASE}/orgs")
    await problem(response, 405)
    assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD"}


async def test_an_org_that_is_no_uuid_is_a_fault_of_the_path(client: Client) -> None:
    for org in ("acme", "%00", "1" * 32, "%F0%9F%8D%8E"):
        body = await problem(await client.get(f"{BASE}/orgs/{org}/usage", params=RANGE), 400)
        assert [fault["field"] for fault in body["errors"]] == ["orgId"]


async def test_every_faulty_parameter_is_listed(client: Client) -> None:
    query = {"start": "x", "granularity": "fortnight", "colour": "red"}
    body = await problem(await client.get(f"{BASE}/orgs/{ORG}/usage", params=query), 400)
    assert {fault["field"] for fault in body["errors"]} == {"start", "end", "granularity", "colour"}


async def test_an_answer_is_not_made_long_by_a_question(client: Client) -> None:
    many = "&".join(f"p{number}" for number in range(1500))
    for query in (many, "n" * 8000):
        response = await client.get(f"{BASE}/orgs/{ORG}/models?{query}")
        body = await problem(response, 400)
        assert len(await response.read()) < 20_000
        assert len(body["errors"]) <= 51
    asked = json.dumps({f"p{number}": 1 for number in range(4000)}).encode()
    with pytest.raises(Problem) as caught:
        jobs.order(asked, Limits(ranges=RangeConfig(), now=0))
    assert (len(caught.value.errors), caught.value.errors[-1].message) == (51, "and 3951 more faults")
    assert len(caught.value.detail) < 10_000


@pytest.mark.parametrize("path", READS)
async def test_unknown_parameters_are_refused_on_every_route(client: Client, path: str) -> None:
    body = await problem(await client.get(filled(path), params={**RANGE, "x": "1"}), 400)
    assert "x" in {fault["field"] for fault in body["errors"]}


@pytest.mark.parametrize("path", [path for path in READS if path != f"{BASE}/caller"])
async def test_without_a_database_the_answer_is_503_within_a_second(client: Client, path: str) -> None:
    ranged = path.endswith(("usage", "reliability", "/orgs"))
    started = time.monotonic()
    response = await client.get(filled(path), params=RANGE if ranged else {})
    await problem(response, 503)
    assert int(response.headers["Retry-After"]) > 0
    assert time.monotonic() - started < WITHIN_S


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A server that accepts and never says a word."""
    held = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in held:
        writer.close()


async def test_servers_that_hang_cost_less_than_a_second(silent_port: int) -> None:
    environment = {
        "DATABASE_URL": f"postgresql://a:b@127.0.0.1:{silent_port}/c",
        "REDIS_URL": f"redis://127.0.0.1:{silent_port}/0",
        "API_POOL_SIZE": "2",
    }
    waits_s = database._PATIENCE_S + api.config.load(environment).database.timeout_s
    assert waits_s < 1
    async with serving(environment) as client:
        started = time.monotonic()
        responses = await asyncio.gather(*(client.get(f"{BASE}/orgs/{ORG}/freshness") for _ in range(6)))
        assert time.monotonic() - started < WITHIN_S
        for response in responses:
            body = await problem(response, 503)
            assert "a:b" not in json.dumps(body)
        ready = await client.get(f"{BASE}/status/readyz")
        assert ready.status == 503
        assert (await ready.json())["components"]["redis"]["status"] == "degraded"


async def test_our_own_mistakes_are_500_and_say_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(openapi, "document_json", broken)
    body = await problem(await client.get(f"{BASE}/openapi.json"), 500)
    assert "hunter2" not in json.dumps(body)


# --- exceptions ---------------------------------------------------------------------------------------


SHARED = ("pipeline.common.errors", "pipeline.common.problems", "pipeline.common.access")


def test_every_exception_of_the_api_has_one_root() -> None:
    for module in pkgutil.walk_packages(api.__path__, "api."):
        if module.name != "api.__main__":
            importlib.import_module(module.name)
    found = [
        kind
        for name, module in sys.modules.items()
        if name.startswith(("api.", *SHARED))
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__ == name
    ]
    assert {kind.__name__ for kind in found} >= {"Problem", "Unavailable", "CursorError", "UnwritableError"}
    assert [kind for kind in found if not issubclass(kind, ServiceError)] == []
