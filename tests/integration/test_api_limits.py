"""Limits of a caller, validators and compression, as seen from outside and without a database."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from multidict import CIMultiDict

import api.config
from api.answering.conditional import GZIP_BYTES_MIN, finished
from api.app import create_app
from api.contract.operations import BASE
from pipeline.common.access import limits
from pipeline.common.access.authenticate import address_of
from pipeline.common.access.limits import RateLimiter, Unknown
from pipeline.common.problems import Problem
from tests.support.api_alone import EVENT as ANY_EVENT
from tests.support.api_alone import NOWHERE, ORG, RANGE, READER, problem

NOW = datetime(2026, 11, 10, 12, 0, 30, tzinfo=UTC)
EVENT = {**ANY_EVENT, "occurredAt": NOW.isoformat()}


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def serving(
    **environment: str,
) -> AsyncIterator[tuple[TestClient[web.Request, web.Application], Clock]]:
    clock = Clock()
    app = create_app(api.config.load({"DATABASE_URL": NOWHERE, **environment}), clock=clock)
    async with TestClient(TestServer(app), auto_decompress=False) as client:
        yield client, clock


async def test_a_caller_has_so_many_requests_a_minute_and_is_told_how_many_are_left() -> None:
    async with serving(AUTH_MODE="gateway", API_RATE_LIMIT="3") as (client, clock):
        url = f"{BASE}/events/validate"
        for left in (2, 1, 0):
            response = await client.post(url, data=json.dumps(EVENT), headers=READER)
            assert response.status == 204
            assert response.headers["RateLimit-Policy"] == '"caller";q=3;w=60'
            assert response.headers["RateLimit"] == f'"caller";r={left};t=31'
        # What is refused counts too, and so do other routes.
        for path in ("events/validate", f"orgs/{ORG}/usage"):
            method = "POST" if path.startswith("events") else "GET"
            response = await client.request(method, f"{BASE}/{path}", headers=READER)
            body = await problem(response, 429)
            assert "API_RATE_LIMIT" in body["detail"]
            assert response.headers["Retry-After"] == "31"
            assert response.headers["RateLimit"] == '"caller";r=0;t=31'
        other = {**READER, "X-Actor-Subject": "bob"}
        assert (await client.post(url, data=json.dumps(EVENT), headers=other)).status == 204
        assert (await client.get(f"{BASE}/status/healthz")).status == 200
        clock.now = NOW + timedelta(seconds=31)
        assert (await client.post(url, data=json.dumps(EVENT), headers=READER)).status == 204


async def test_a_limit_is_shared_through_redis_and_held_here_without_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_REDIS_TIMEOUT_S", 60)  # a slow machine would hold the limit here
    shared = [RateLimiter(10, redis_url, Clock()) for _ in range(2)]
    remaining = []
    for number in range(10):
        allowance = await shared[number % 2].take("ana")
        assert allowance is not None
        remaining.append(allowance.remaining)
    assert remaining == list(range(9, -1, -1))
    for limiter in shared:
        with pytest.raises(Problem):
            await limiter.take("ana")
        await limiter.close()
    alone = RateLimiter(1, "redis://127.0.0.1:1/0", Clock())
    assert await alone.take("ana")
    with pytest.raises(Problem):
        await alone.take("ana")
    await alone.close()
    assert await RateLimiter(0, None, Clock()).take("ana") is None


def test_whoever_proves_nothing_is_counted_by_address_and_all_together() -> None:
    clock = Clock()
    unknown = Unknown(3, clock)
    for _ in range(3):
        unknown.take("a")
    with pytest.raises(Problem) as caught:
        unknown.take("a")
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "31")
    counted = 3
    for number in range(1000):
        try:
            unknown.take(f"address {number}")
        except Problem:
            continue
        counted += 1
    assert counted == 3 * Unknown.PROCESS
    clock.now = NOW + timedelta(seconds=31)
    unknown.take("a")
    for _ in range(100):
        Unknown(0, clock).take("a")


async def test_a_flood_without_credentials_turns_away_nobody_who_has_some() -> None:
    async with serving(AUTH_MODE="gateway", API_UNKNOWN_RATE_LIMIT="5") as (client, _):
        url = f"{BASE}/events/validate"
        strangers = {"X-Forwarded-For": "198.51.100.7"}
        for status in [401] * 5 + [429] * 5:
            await problem(await client.post(url, headers=strangers), status)
        for headers in (
            {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"},
            {"X-Forwarded-For": "::ffff:198.51.100.7"},
        ):
            await problem(await client.post(url, headers=headers), 429)
        await problem(await client.post(url, headers={"X-Forwarded-For": "198.51.100.8"}), 401)
        assert (await client.post(url, data=json.dumps(EVENT), headers=READER | strangers)).status == 204


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("198.51.100.7", ["203.0.113.1"], "198.51.100.7"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.1, 198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["203.0.113.1", "198.51.100.7, 127.0.0.1"], "198.51.100.7"),
        ("127.0.0.1", ["203.0.113.1, nonsense"], "127.0.0.1"),
        ("::1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        ("::ffff:127.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
    ],
)
def test_an_address_is_what_the_last_trusted_proxy_saw(peer: str, forwarded: list[str], address: str) -> None:
    transport = asyncio.Transport(extra={"peername": (peer, 1)})
    headers = CIMultiDict([("X-Forwarded-For", line) for line in forwarded])
    request = make_mocked_request("GET", "/", headers=headers, transport=transport)
    assert address_of(request, (ip_network("127.0.0.1/32"), ip_network("::1/128"))) == address


async def test_each_bound_is_a_setting_with_its_answer() -> None:
    async with serving(API_REQUEST_BYTES_MAX="1KiB", API_MONTHS_MAX="1", API_POINTS_MAX="5") as (client, _):
        await problem(await client.post(f"{BASE}/events/validate", data=b" " * 1025), 413)
        url = f"{BASE}/orgs/{ORG}/usage"
        query = {"start": "2026-09-01T00:00:00Z", "end": "2026-11-01T00:00:00Z"}
        body = await problem(await client.get(url, params=query), 400)
        assert body["errors"] == [{"field": "end", "message": "must be at most 1 months after start"}]
        body = await problem(await client.get(url, params={**RANGE, "limit": "6"}), 400)
        assert body["errors"][0]["field"] == "limit"
        document = json.loads(gzip.decompress(await document_of(client)))
        parameters = document["paths"][f"{BASE}/orgs/{{orgId}}/usage"]["get"]["parameters"]
        limit = next(p["schema"] for p in parameters if p["name"] == "limit")
        assert (limit["maximum"], limit["default"]) == (5, 5)


async def document_of(client: TestClient[web.Request, web.Application], **headers: str) -> bytes:
    headers = {"Accept-Encoding": "br, gzip;q=0.5", **headers}
    response = await client.get(f"{BASE}/openapi.json", headers=headers)
    assert response.headers["Content-Encoding"] == "gzip"
    return await response.read()


async def test_big_answers_are_compressed_for_whoever_takes_it() -> None:
    async with serving() as (client, _):
        packed = await document_of(client)
        for accepted in ("identity", "br", "gzip;q=0", "gzip; q=0.0"):
            response = await client.get(f"{BASE}/openapi.json", headers={"Accept-Encoding": accepted})
            assert "Content-Encoding" not in response.headers
            plain = await response.read()
            assert gzip.decompress(packed) == plain
        assert len(packed) < len(plain) / 2


async def test_an_answer_that_the_client_has_is_not_sent_again() -> None:
    async with serving() as (client, _):
        url = f"{BASE}/openapi.json"
        tag = (await client.get(url)).headers["ETag"]
        assert tag.startswith('W/"')
        for given in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
            response = await client.get(url, headers={"If-None-Match": given})
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["ETag"] == tag
        for given in ('"x"', "x", "", tag.replace('"', "")):
            assert (await client.get(url, headers={"If-None-Match": given})).status == 200


async def test_the_lag_alone_makes_no_other_answer() -> None:
    def answer(**fields: Any) -> web.Response:
        return web.json_response(body=json.dumps(fields, separators=(",", ":")).encode())

    asked = make_mocked_request("GET", "/")
    tags = [
        (await finished(asked, answer(**fields))).headers["ETag"]
        for fields in (
            {"a": 1, "freshness": {"lagSeconds": 1.5, "status": "fresh"}},
            {"a": 1, "freshness": {"lagSeconds": None, "status": "fresh"}},
            {"a": 1, "freshness": {"lagSeconds": 99, "status": "stale"}},
            {"a": 2, "freshness": {"lagSeconds": 1.5, "status": "fresh"}},
        )
    ]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 3


async def test_what_is_small_or_no_success_goes_out_as_it_is() -> None:
    async with serving() as (client, _):
        response = await client.get(f"{BASE}/nothing", headers={"Accept-Encoding": "gzip"})
        assert (response.status, "ETag" in response.headers) == (404, False)
        assert "Content-Encoding" not in response.headers
        assert len(await response.read()) < GZIP_BYTES_MIN
