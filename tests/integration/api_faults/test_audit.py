"""The audit log of the API: what is granted or denied, and what cannot be written down."""

import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from tests.support.api_facts import (
    NEIGHBOUR,
    NOW,
    ORG,
    STRANGER,
)
from tests.support.api_faults import RANGE, USAGE, actor, eventually_equal
from tests.support.api_server import BASE, served


def audited(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT actor, action, org_id, outcome, detail->'status', at FROM analytics.audit_log ORDER BY id"
        ).fetchall()
        connection.execute("TRUNCATE analytics.audit_log")
    assert all(NOW <= row[-1] <= NOW + timedelta(hours=1) for row in rows)
    return [row[:-1] for row in rows]


def test_reads_across_orgs_are_audited_granted_or_denied(database_url: str) -> None:
    usage, orgs = f"GET {BASE}/orgs/{{orgId}}/usage", f"GET {BASE}/orgs"
    with served({"DATABASE_URL": database_url, "AUTH_MODE": "gateway"}, NOW) as server:
        assert server.now is not None
        audited(database_url)
        mine = actor("analytics:usage:read", ORG)
        assert server.get(USAGE, RANGE, headers=mine)[0] == 200
        assert audited(database_url) == []
        foreign = f"{BASE}/orgs/{NEIGHBOUR}/usage"
        for org in (NEIGHBOUR, STRANGER):  # denied alike, whether it exists or not
            assert server.get(f"{BASE}/orgs/{org}/usage", RANGE, headers=mine)[0] == 403
            assert audited(database_url) == [("ana", usage, org, "denied", 403)]
            server.now += timedelta(minutes=1)
        assert server.get(foreign, RANGE, headers=actor("admin"))[0] == 200
        assert audited(database_url) == [("ana", usage, NEIGHBOUR, "granted", 200)]
        assert server.get(f"{BASE}/orgs/{STRANGER}/freshness", headers=actor("admin"))[0] == 404
        assert audited(database_url)[0][2:] == (STRANGER, "granted", 404)
        assert server.get(f"{BASE}/orgs", RANGE, headers=actor("analytics:admin", ORG))[0] == 200
        assert audited(database_url) == [], "its own org alone"
        assert server.get(f"{BASE}/orgs", RANGE, headers=actor("admin"))[0] == 200
        assert audited(database_url) == [("ana", orgs, None, "granted", 200)]
        assert server.get(f"{BASE}/orgs", RANGE, headers=mine)[0] == 403
        assert audited(database_url) == [("ana", orgs, None, "denied", 403)]
        server.now += timedelta(minutes=1)
        assert server.get(foreign, RANGE, headers=actor("analytics:admin"))[0] == 403
        assert audited(database_url)[0][3] == "denied"


def test_a_role_that_is_lacking_is_audited_as_an_org_is(database_url: str) -> None:
    with served({"DATABASE_URL": database_url, "AUTH_MODE": "gateway"}, NOW) as server:
        audited(database_url)
        own = f"{BASE}/orgs/{ORG}/reliability"
        assert server.get(own, RANGE, headers=actor("analytics:usage:read", ORG))[0] == 403
        assert audited(database_url) == [
            ("ana", f"GET {BASE}/orgs/{{orgId}}/reliability", ORG, "denied", 403)
        ]


def test_a_granted_write_is_audited_before_it_is_done(database_url: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database_url, "AUTH_MODE": "gateway", "EXPORT_DIR": str(tmp_path)}
    with served(env, NOW) as server:
        audited(database_url)
        schedule = f"{BASE}/orgs/{ORG}/export-schedule"
        own = actor("analytics:exports:create", ORG)
        assert server.request("PUT", schedule, headers=own, body=b"{}")[0] == 200
        path = f"{BASE}/orgs/{{orgId}}/export-schedule"
        assert audited(database_url) == [("ana", f"PUT {path}", ORG, "granted", None)]
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE analytics.audit_log RENAME TO audit_log_away")
            try:
                assert server.request("DELETE", schedule, headers=own)[0] == 503
                count = "SELECT count(*) FROM analytics.export_schedules WHERE org_id = %s"
                assert connection.execute(count, (ORG,)).fetchone() == (1,)
            finally:
                connection.execute("ALTER TABLE analytics.audit_log_away RENAME TO audit_log")
        assert server.request("DELETE", schedule, headers=own)[0] == 204


def test_denied_attempts_of_one_caller_are_one_row_a_minute_with_their_count(database_url: str) -> None:
    env = {"DATABASE_URL": database_url, "AUTH_MODE": "gateway", "API_RATE_LIMIT": "0"}
    with psycopg.connect(database_url, autocommit=True) as connection:

        def rows() -> list[Any]:
            query = "SELECT actor, (detail->'count')::int FROM analytics.audit_log ORDER BY id"
            return connection.execute(query).fetchall()

        connection.execute("TRUNCATE analytics.audit_log")
        with served(env, NOW) as server:
            assert server.now is not None
            mine = actor("analytics:usage:read", ORG)
            secret = {**RANGE, "access_token": "never-in-a-table"}
            for number in range(300):
                foreign = f"{BASE}/orgs/{uuid.UUID(int=number)}/usage"
                assert server.get(foreign, secret, headers=mine)[0] == 403
            assert rows() == [("ana", 1)]
            bob = {**mine, "X-Actor-Subject": "bob"}
            assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/usage", RANGE, headers=bob)[0] == 403
            assert rows() == [("ana", 1), ("bob", 1)]
            server.now += timedelta(minutes=1)
            eventually_equal(rows, [("ana", 1), ("bob", 1), ("ana", 299)])
            for _ in range(5):
                assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/clients", headers=mine)[0] == 403
            assert len(rows()) == 3
        assert rows()[3:] == [("ana", 5)]  # a server that stops writes what it has counted
        (detail,) = connection.execute(
            "SELECT detail FROM analytics.audit_log WHERE (detail->'count')::int = 299"
        ).fetchone() or ({},)
        assert len(detail["attempts"]) == 20
        assert detail["attempts"][0] == {
            "action": f"GET {BASE}/orgs/{{orgId}}/usage",
            "orgId": str(uuid.UUID(int=1)),
            "count": 1,
        }
        dump = json.dumps(connection.execute("SELECT a::text FROM analytics.audit_log a").fetchall())
        assert "never-in-a-table" not in dump
        assert "access_token" in dump
