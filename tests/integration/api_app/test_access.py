"""Every route as seen from outside, with no database behind it: who gets in, and what errors look like."""

import asyncio
import importlib
import json
import pkgutil
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

import api
import api.config
import api.handlers
from api.access.authenticate import authenticator
from api.access.guard import ANY_CALLER, Access
from api.answering.problems import Problem
from api.app import create_app
from api.config import AuthConfig
from api.contract import openapi
from api.contract.operations import BASE, OPERATIONS, Operation
from api.errors import ApiError
from api.exports import jobs
from api.reading import database
from api.serving import Runner
from pipeline.common.settings import ConfigError
from tests.support.api_alone import EVENT, NOWHERE, ORG, RANGE, READER, WITHIN_S, problem

OTHER = "aaaaaaaa-0000-4000-8000-000000000002"

Client = TestClient[web.Request, web.Application]


@asynccontextmanager
async def serving(environment: Mapping[str, str]) -> AsyncIterator[Client]:
    app = create_app(api.config.load({"DATABASE_URL": NOWHERE, **environment}))
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving({}) as client:
        yield client


@pytest.fixture
async def gateway() -> AsyncIterator[Client]:
    async with serving({"AUTH_MODE": "gateway"}) as client:
        yield client


# --- the table of routes ---------------------------------------------------------------------------


async def test_the_server_has_the_routes_of_the_table_and_no_others(client: Client) -> None:
    routes = [
        (route.method, route.resource.canonical) for route in client.app.router.routes() if route.resource
    ]
    stated = [(operation.method, operation.path) for operation in OPERATIONS]
    heads = [("HEAD", path) for method, path in stated if method == "GET"]
    assert sorted(routes) == sorted(stated + heads)


def test_the_document_describes_the_routes_of_the_table_and_no_others() -> None:
    document = openapi.document(api.config.load({"DATABASE_URL": NOWHERE}).ranges)
    described = {
        (method.upper(), path): about
        for path, of in document["paths"].items()
        for method, about in of.items()
    }
    assert described.keys() == {(operation.method, operation.path) for operation in OPERATIONS}
    names = [about["operationId"] for about in described.values()]
    assert len(names) == len(set(names))
    assert all(about["summary"] for about in described.values())
    open_to_all = {key for key, about in described.items() if about["security"] == []}
    assert open_to_all == {(o.method, o.path) for o in OPERATIONS if o.access.public}


@pytest.mark.parametrize("missing", ["access", "handler", "name", "summary", "answer"])
def test_a_route_without_role_handler_or_document_cannot_be_made(missing: str) -> None:
    stated = {field.name: getattr(OPERATIONS[0], field.name) for field in fields(Operation)}
    assert Operation(**stated) == OPERATIONS[0]
    del stated[missing]
    with pytest.raises(TypeError, match=missing):
        Operation(**stated)


def test_an_access_names_a_role_that_there_is() -> None:
    with pytest.raises(TypeError, match="role"):
        Access()  # type: ignore[call-arg]
    for role in ("", "analytics:usage", None):
        with pytest.raises(ValueError, match="no such role"):
            Access(role=role)  # type: ignore[arg-type]


async def test_a_route_beside_the_table_is_refused_and_its_handler_not_called() -> None:
    async def handler(_: web.Request) -> web.Response:
        raise AssertionError("called")

    app = create_app(api.config.load({"DATABASE_URL": NOWHERE}))
    app.router.add_get(f"{BASE}/orgs/{{orgId}}/secrets", handler)
    async with TestClient(TestServer(app)) as client:
        await problem(await client.get(f"{BASE}/orgs/{ORG}/secrets"), 500)


def test_only_the_validation_of_events_asks_for_no_role() -> None:
    assert {o.name for o in OPERATIONS if o.access.role == ANY_CALLER} == {"validateEvent"}


def test_only_status_metrics_and_the_document_are_public() -> None:
    assert {operation.path for operation in OPERATIONS if operation.access.public} == {
        f"{BASE}/status/healthz",
        f"{BASE}/status/readyz",
        f"{BASE}/openapi.json",
        f"{BASE}/docs",
        f"{BASE}/exports/{{jobId}}/file",  # its signature is the credential
        "/metrics",
        "/",
    }


async def test_the_address_of_the_server_leads_to_the_page(client: Client) -> None:
    for method in ("GET", "HEAD"):
        assert (await client.request(method, "/", allow_redirects=False)).status == 302
    response = await client.get("/")
    assert (response.status, response.content_type, response.url.path) == (200, "text/html", f"{BASE}/docs")


def filled(path: str, org: str = ORG) -> str:
    return path.replace("{orgId}", org).replace("{jobId}", OTHER)


GUARDED = [(o.method, o.path) for o in OPERATIONS if not o.access.public]
READS = [path for method, path in GUARDED if method == "GET"]
SCOPED = [(method, path) for method, path in GUARDED if "{orgId}" in path]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_nobody_gets_in_without_the_gateways_word(gateway: Client, method: str, path: str) -> None:
    response = await gateway.request(method, filled(path))
    await problem(response, 401)
    assert response.headers["WWW-Authenticate"]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_headers_of_a_stranger_are_not_believed(method: str, path: str) -> None:
    environment = {"AUTH_MODE": "gateway", "TRUSTED_PROXIES": "203.0.113.0/24"}
    async with serving(environment) as client:
        headers = {**READER, "X-Actor-Roles": "admin", "X-Forwarded-For": "203.0.113.7"}
        await problem(await client.request(method, filled(path), headers=headers), 401)


@pytest.mark.parametrize(("method", "path"), SCOPED)
async def test_an_org_of_others_is_forbidden_on_every_route(gateway: Client, method: str, path: str) -> None:
    for org in (OTHER, OTHER.upper()):
        body = await problem(await gateway.request(method, filled(path, org), headers=READER), 403)
        assert org not in json.dumps(body)


@pytest.mark.parametrize("path", READS)
async def test_a_role_is_asked_for_on_every_route(gateway: Client, path: str) -> None:
    headers = {**READER, "X-Actor-Roles": "analytics:nothing"}
    await problem(await gateway.get(filled(path), headers=headers), 403)


async def test_each_route_asks_for_its_own_role(gateway: Client) -> None:
    headers = {**READER, "X-Actor-Roles": "analytics:usage:read"}
    await problem(await gateway.get(f"{BASE}/orgs/{ORG}/reliability", headers=headers, params=RANGE), 403)
    await problem(await gateway.get(f"{BASE}/orgs", headers=headers, params=RANGE), 403)
    # The database is away, so getting past the door is a 503.
    await problem(await gateway.get(f"{BASE}/orgs/{ORG}/usage", headers=headers, params=RANGE), 503)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Actor-Subject": " "},
        {"X-Actor-Orgs": "all"},
        {"X-Actor-Orgs": f"{ORG};{OTHER}"},
        {"X-Actor-Subject": "a" * 201},
    ],
)
async def test_malformed_credentials_are_no_credentials(gateway: Client, headers: dict[str, str]) -> None:
    await problem(await gateway.get(f"{BASE}/orgs/{ORG}/usage", headers=READER | headers, params=RANGE), 401)


@pytest.mark.parametrize(
    "more",
    [
        [("X-Actor-Orgs", OTHER)],
        [("X-Actor-Roles", "admin")],
        [("x-actor-roles", "admin")],
        [("X_Actor_Roles", "admin")],
        [("X-Actor_Roles", "admin")],
        [("X-Actor-Subject", "root")],
        [("X-Actor-Roles", "")],
        [("X-Actor-Orgs", ",")],
        [("X-Actor-Tenant", "x")],
        [("X-Actor-", "admin")],
    ],
    ids=lambda more: "=".join(more[0]),
)
@pytest.mark.parametrize("first", [False, True], ids=("appended", "prepended"))
async def test_a_second_line_of_an_actor_header_is_no_credential(
    gateway: Client, more: list[tuple[str, str]], first: bool
) -> None:
    own = list(READER.items())
    lines = more + own if first else own + more
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    path = f"{BASE}/orgs/{ORG}/freshness"
    answer = await said(
        gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n".encode()
    )
    assert answer.split(b" ")[1] == b"401"


async def said(client: Client, request: bytes) -> bytes:
    """The server's answer to bytes that no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("missing", READER)
async def test_the_gateway_says_all_three_even_where_one_is_empty(gateway: Client, missing: str) -> None:
    """A header that the gateway leaves out where it is empty is one that a caller could send."""
    headers = {name: value for name, value in READER.items() if name != missing}
    await problem(await gateway.get(f"{BASE}/orgs/{ORG}/usage", headers=headers, params=RANGE), 401)


_LINE = st.tuples(
    st.sampled_from(("X-Actor-Subject", "X-Actor-Roles", "X-Actor-Orgs", "X_ACTOR_ROLES", "x-actor-orgs")),
    st.sampled_from(
        ("", " ", ",", "ana", "admin", "analytics:usage:read", ORG, OTHER, f"{ORG},{OTHER}", ",,,")
    ),
)


@settings(max_examples=300)
@given(lines=st.lists(_LINE, max_size=6))
async def test_whoever_gets_in_is_named_by_exactly_three_lines(lines: list[tuple[str, str]]) -> None:
    transport = asyncio.Transport(extra={"peername": ("127.0.0.1", 1)})
    request = make_mocked_request("GET", "/", headers=CIMultiDict(lines), transport=transport)
    config = AuthConfig(mode="gateway", trusted_proxies=(ip_network("127.0.0.1/32"),))
    try:
        caller = await authenticator(config, keys=None, tokens=None)(request)
    except Problem:  # a 401: there is no other here
        return
    given = {name.lower(): value for name, value in lines}
    assert len(lines) == 3
    assert given.keys() == {"x-actor-subject", "x-actor-roles", "x-actor-orgs"}
    assert caller.subject == given["x-actor-subject"]
    assert all(str(org) in given["x-actor-orgs"] for org in caller.orgs or ())
    assert all(role in given["x-actor-roles"].split(",") for role in caller.roles)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8084"}, 503),
        ({"Host": "[::1]:8084"}, 503),
        ({"Host": "127.0.0.2"}, 503),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:8084"}, 403),
        ({"Host": "[nonsense"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 503),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_in_mode_none_no_page_of_the_web_is_answered(
    client: Client, headers: dict[str, str], status: int
) -> None:
    """503: who is let in hears that there is no database here. A page's request carries its Origin, and one
    whose name was bound to loopback (DNS rebinding) carries that name as Host."""
    path = f"{BASE}/orgs/{ORG}/freshness"
    await problem(await client.get(path, headers=headers), status)
    await problem(await client.post(f"{BASE}/orgs/{ORG}/exports", headers=headers, data=b"{}"), status)


async def test_modes_with_credentials_are_answered_under_any_name(gateway: Client) -> None:
    headers = {"Host": "api.example.com", "Origin": "https://app.example.com", **READER}
    await problem(await gateway.get(f"{BASE}/orgs/{ORG}/freshness", headers=headers), 503)


async def test_what_a_head_may_expect_is_its_100_alone(client: Client) -> None:
    url = f"{BASE}/events/validate"
    answer = await problem(await client.post(url, json=EVENT, headers={"Expect": "tea"}), 417)
    assert "100-continue" in answer["detail"]
    async with client.post(url, json=EVENT, expect100=True) as continued:
        assert continued.status in (200, 204)


def test_mode_none_is_refused_off_loopback() -> None:
    with pytest.raises(ConfigError) as caught:
        api.config.load({"HTTP_HOST": "0.0.0.0", "TRUSTED_PROXIES": "x", "HTTP_PORT": "no"})
    assert len(caught.value.faults) == 4  # and DATABASE_URL is missing


def test_proxies_are_networks() -> None:
    config = api.config.load(
        {"DATABASE_URL": NOWHERE, "AUTH_MODE": "gateway", "TRUSTED_PROXIES": "10.0.0.0/8, ::1/128"}
    )
    assert config.auth.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


# --- errors ----------------------------------------------------------------------------------------


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
    query = {"start": "x", "granularity": "week", "colour": "red"}
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
        jobs.order(asked, oldest=0, months_max=13)
    assert (len(caught.value.errors), caught.value.errors[-1].message) == (51, "and 3951 more faults")
    assert len(caught.value.detail) < 10_000


@pytest.mark.parametrize("path", READS)
async def test_unknown_parameters_are_refused_on_every_route(client: Client, path: str) -> None:
    body = await problem(await client.get(filled(path), params={**RANGE, "x": "1"}), 400)
    assert "x" in {fault["field"] for fault in body["errors"]}


@pytest.mark.parametrize("path", READS)
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


# --- validate, status, metrics ------------------------------------------------------------------------


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
        "granularity",
        "modelId",
        "clientId",
        "groupBy",
        "timeZone",
        "limit",
        "cursor",
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


# --- exceptions ---------------------------------------------------------------------------------------


def test_every_exception_of_the_api_has_one_root() -> None:
    for module in pkgutil.walk_packages(api.__path__, "api."):
        if module.name != "api.__main__":
            importlib.import_module(module.name)
    found = [
        kind
        for name, module in sys.modules.items()
        if name.startswith("api.")
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__ == name
    ]
    assert {kind.__name__ for kind in found} >= {"Problem", "Unavailable", "CursorError", "UnwritableError"}
    assert [kind for kind in found if not issubclass(kind, ApiError)] == []
