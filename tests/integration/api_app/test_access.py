"""Every route as seen from outside, with no database behind it: who gets in."""

import asyncio
import json
import re
from ipaddress import ip_network

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

import api
import api.config
import api.handlers
from api.contract.operations import BASE
from pipeline.common import keys
from pipeline.common.access.authenticate import authenticator
from pipeline.common.access.config import AuthConfig
from pipeline.common.problems import Problem
from pipeline.common.served import REFUSALS
from pipeline.common.settings import ConfigError
from tests.support.api_alone import EVENT, NOWHERE, ORG, RANGE, READER, problem
from tests.support.api_in_process import GUARDED, OTHER, READS, SCOPED, Client, filled, said, serving


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


@pytest.mark.parametrize("path", [path for path in READS if path != f"{BASE}/caller"])
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


def decisions(text: str) -> dict[str, int]:
    """How many requests were allowed (the empty reason), or refused for each reason, on a page of metrics."""
    found = re.findall(
        r'^analytics_auth_decisions_total{decision="\w+",reason="(\w*)"} ([0-9.]+)$', text, re.M
    )
    return {reason: int(float(count)) for reason, count in found}


async def test_each_decision_is_counted_with_its_reason() -> None:
    usage = f"{BASE}/orgs/{ORG}/usage"
    role = {**READER, "X-Actor-Roles": "analytics:nothing"}
    environment = {"AUTH_MODE": "gateway", "API_UNKNOWN_RATE_LIMIT": "2", "API_RATE_LIMIT": "100"}
    async with serving(environment) as client:

        async def counted() -> dict[str, int]:
            return decisions(await (await client.get("/metrics")).text())

        assert await counted() == dict.fromkeys(("", *REFUSALS), 0)
        await problem(await client.get(usage, headers=READER, params=RANGE), 503)  # allowed; no database
        await problem(await client.get(f"{BASE}/orgs/{OTHER}/usage", headers=READER, params=RANGE), 403)
        await problem(await client.get(usage, headers=role, params=RANGE), 403)
        await problem(await client.get(usage), 401)
        await problem(await client.get(usage), 401)
        await problem(await client.get(usage), 429)
        expected = {"": 1, "org": 1, "role": 1, "credential": 2, "rate": 1, "place": 0, "unknown": 0}
        assert await counted() == expected
    async with serving({}) as client:
        await problem(
            await client.get(usage, params=RANGE, headers={"Origin": "https://elsewhere.test"}), 403
        )
        assert decisions(await (await client.get("/metrics")).text())["place"] == 1


async def test_a_caller_who_cannot_be_looked_up_is_refused_as_unknown() -> None:
    environment = {"AUTH_MODE": "gateway", "API_KEY_SECRET": "the server's own secret, 32 characters"}
    _, key = keys.new_key(b"the server's own secret, 32 characters")
    async with serving(environment) as client:
        await problem(await client.get(f"{BASE}/orgs/{ORG}/usage", headers={"X-API-Key": key}), 503)
        assert decisions(await (await client.get("/metrics")).text())["unknown"] == 1
