"""The answers that need no database: validation, health, metrics, the document and its page."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

import api
import api.config
import api.handlers
from api.app import create_app
from api.contract.operations import BASE
from pipeline.common.serving import Runner
from tests.support.api_alone import EVENT, NOWHERE, ORG, problem
from tests.support.api_in_process import Client


async def test_a_valid_event_is_204_and_a_bad_one_names_every_fault(client: Client) -> None:
    url = f"{BASE}/events/validate"
    response = await client.post(url, data=json.dumps(EVENT))
    assert (response.status, await response.text()) == (204, "")
    assert (await client.post(url, data=json.dumps({**EVENT, "latencyMs": 812.0}))).status == 204
    for no_integer in (812.4, "812"):
        body = await problem(await client.post(url, data=json.dumps({**EVENT, "latencyMs": no_integer})), 400)
        assert body["errors"] == [{"field": "latencyMs", "message": "expected an integer"}]
    bad = {**EVENT, "latencyMs": -1, "status": "fine", "orgId": None}
    body = await problem(await client.post(url, data=json.dumps(bad)), 400)
    assert {fault["field"] for fault in body["errors"]} == {"latencyMs", "status", "orgId"}
    for junk in (b"", b"[]", b"\xff", b"{"):
        body = await problem(await client.post(url, data=junk), 400)
        assert body["errors"]


@pytest.mark.parametrize(
    ("ago", "outcome"),
    [
        (timedelta(hours=23, minutes=59), None),
        (timedelta(hours=24, minutes=1), "too_late"),
        (timedelta(days=4000), "too_late"),
        (timedelta(minutes=-4), None),
        (timedelta(minutes=-6), "future"),
    ],
)
async def test_a_valid_event_that_would_be_rejected_now_is_said_to_be_so(
    client: Client, ago: timedelta, outcome: str | None
) -> None:
    event = {**EVENT, "occurredAt": (datetime.now(UTC) - ago).isoformat()}
    response = await client.post(f"{BASE}/events/validate", data=json.dumps(event))
    if outcome is None:
        assert (response.status, await response.read()) == (204, b"")
    else:
        assert response.status == 200
        body = await response.json()
        assert body["outcome"] == outcome
        assert "occurredAt" in body["detail"]


async def test_a_body_over_64_kib_is_413(client: Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b" " * 1024 for _ in range(65))

    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield chunk

    padded = json.dumps(EVENT).ljust(64 * 1024).encode()
    assert (await client.post(f"{BASE}/events/validate", data=padded)).status == 204
    await problem(await client.post(f"{BASE}/events/validate", data=padded + b" "), 413)
    await problem(await client.post(f"{BASE}/events/validate", data=stream()), 413)


async def test_a_gatewayed_caller_of_any_role_may_validate(gateway: Client) -> None:
    response = await gateway.post(
        f"{BASE}/events/validate",
        data=json.dumps(EVENT),
        headers={"X-Actor-Subject": "ana", "X-Actor-Roles": "", "X-Actor-Orgs": ""},
    )
    assert response.status == 204


async def test_health_is_ok_while_readiness_waits(client: Client) -> None:
    health = await client.get(f"{BASE}/status/healthz")
    assert (health.status, await health.text()) == (200, "OK")
    ready = await client.get(f"{BASE}/status/readyz")
    assert (ready.status, ready.content_type) == (503, "application/json")
    body = await ready.json()
    assert body["status"] == "not_ready"
    assert {name: part["status"] for name, part in body["components"].items()} == {
        "database": "down",
        "redis": "off",
        "schema": "down",
    }


async def test_metrics_count_routes_and_never_paths(client: Client) -> None:
    await client.get(f"{BASE}/orgs/{ORG}/usage")
    await client.get(f"/secret/{ORG}")
    await client.request("PROPFIND", f"{BASE}/orgs")
    text = await (await client.get("/metrics")).text()
    usage = 'method="GET",route="/analytics/v1/orgs/{orgId}/usage",status="400"'
    assert f"http_requests_total{{{usage}}} 1.0" in text
    assert 'http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert 'method="other",route="unmatched",status="405"' in text
    assert "http_request_duration_seconds_bucket" in text
    assert ORG not in text
    assert "secret" not in text


async def test_the_document_is_openapi_and_every_reference_resolves(client: Client) -> None:
    response = await client.get(f"{BASE}/openapi.json")
    document = await response.json()
    assert document["openapi"].startswith("3.1.")
    usage = document["paths"][f"{BASE}/orgs/{{orgId}}/usage"]["get"]
    names = [parameter["name"] for parameter in usage["parameters"]]
    assert names == [
        "orgId",
        "start",
        "end",
        "last",
        "granularity",
        "modelId",
        "clientId",
        "dimension",
        "groupBy",
        "timeZone",
        "limit",
        "cursor",
        "priceVersion",
        "costBasis",
    ]
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


@pytest.mark.parametrize(
    "junk",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=("no HTTP", "NUL", "long"),
)
async def test_what_is_no_http_is_a_problem_too(junk: bytes) -> None:
    runner = Runner(create_app(api.config.load({"DATABASE_URL": NOWHERE})), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(junk)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    finally:
        await runner.cleanup()
    assert head.split(b" ")[1] == b"400"
    assert b"Content-Type: application/problem+json" in head
    assert json.loads(body)["status"] == 400


async def test_the_page_needs_nothing_from_elsewhere(client: Client) -> None:
    response = await client.get(f"{BASE}/docs")
    text = await response.text()
    assert (response.status, response.content_type) == (200, "text/html")
    assert not re.findall(r"(?:src|href)=[\"'](?!openapi\.json)", text)
    assert "://" not in text
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.count("sha256-") == 2


async def test_head_answers_like_get_without_a_body(client: Client) -> None:
    response = await client.head(f"{BASE}/status/healthz")
    assert (response.status, await response.read()) == (200, b"")
