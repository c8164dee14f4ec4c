"""``spendstream check``: an event through everything on real servers, and what is said if a part is away."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web

from deploy.local.ports import free_port
from deploy.local.servers import RabbitMQ
from pipeline.admin import check
from pipeline.admin.check import CheckConfig
from pipeline.collector import ids
from pipeline.common.settings import ConfigError
from pipeline.common.settings_table import SETTINGS
from pipeline.core import wire
from tests.support import access, collectors, processes, streams
from tests.support.processes import Api

ORG = ids.org_id("spendstream check")


# --- on real servers -------------------------------------------------------------------------------


@pytest.fixture
def env(rabbitmq: RabbitMQ, migrated_timescale: str) -> dict[str, str]:
    """The settings of worker, collector, API and check: a super stream of two partitions, and keys."""
    env = {
        **rabbitmq.env,
        **access.ENV,
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_STREAM": f"check.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
        "CHECK_KEY": access.new_key(
            migrated_timescale, ORG, "analytics:usage:read", "analytics:events:write"
        ),
    }
    made = processes.command("stream", "create", "--partitions", "2", env=env)
    assert made.returncode == 0, made.stderr
    return env


@contextmanager
def api_at(env: dict[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """Run an API; yields the settings with its address."""
    with Api(env, folder) as api:
        yield {**env, "CHECK_API_URL": api.ready_url.partition("/analytics")[0]}


def rows(url: str) -> list[tuple[Any, ...]]:
    """What the database has of the check's org: calls, tokens, costs and clients."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT org_id, sum(invocations)::int, sum(input_tokens + output_tokens)::int,"
            " sum(cost_microcents)::int, sum(unestimated)::int, sum(latency_sum_ms)::int"
            " FROM analytics.usage_hour GROUP BY org_id"
        ).fetchall()


def test_each_run_sends_one_event_that_counts_once_and_costs_nothing(
    env: dict[str, str], tmp_path: Path
) -> None:
    with (
        processes.worker(env, tmp_path),
        collectors.collector(env, tmp_path) as collector,
        api_at(env, tmp_path) as env,
    ):
        by_stream = processes.command("check", env=env)
        assert (by_stream.returncode, by_stream.stderr) == (0, "")
        assert by_stream.stdout.startswith("counted after ")
        assert f"of org {ORG}, by the stream, which had it after " in by_stream.stdout
        at = f"http://127.0.0.1:{collector.port}"
        found = []
        for options in (["--collector", at], ["--collector", at, "--name", "check-berlin"]):
            done = processes.command("check", "--json", *options, env=env)
            assert (done.returncode, done.stderr) == (0, "")
            found.append(json.loads(done.stdout))
        assert [one["by"] for one in found] == ["collector", "collector"]
        assert all(one["counted"] and 0 < one["stored_s"] <= one["counted_s"] for one in found)
        assert [one["client_id"].rpartition("-")[0] for one in found] == ["check", "check-berlin"]
        assert rows(env["DATABASE_URL"]) == [(ORG, 3, 0, 0, 0, 0)]
        assert len({found[0]["event_id"], found[1]["event_id"]} | set(by_stream.stdout.split())) > 2
        priced = processes.command("prices", "check", env=env)
        assert (priced.returncode, priced.stdout) == (0, "every model seen has a price\n")
        named = processes.command("check", "--org", "acme", "--timeout", "20s", env=env)
        assert named.returncode == 2, "the key is of another org"
        assert f"needs a key of org {ids.org_id('acme')} with the role analytics:usage:read" in named.stderr
        bodies = asyncio.run(_published(env))
    assert len(bodies) == 3
    for body in bodies:
        assert body.keys() & {"actorId", "metadata", "errorCode"} == set()
        assert isinstance(wire.read(json.dumps(body).encode()), wire.Event)


async def _published(env: dict[str, str]) -> list[dict[str, Any]]:
    from pipeline.transports.rabbitmq.transport import RabbitMQTransport

    transport = RabbitMQTransport(streams.config(env["RABBITMQ_URL"], env["RABBITMQ_STREAM"]))
    found = []
    try:
        for number, extent in enumerate(await transport.extents()):
            subscription = await transport.subscribe(partition=number, offset=0)
            offset = 0
            while offset < extent.end_offset:
                chunk = await asyncio.wait_for(subscription.receive(), 120)
                subscription.grant()
                found += [json.loads(bytes(body)) for body in chunk.bodies]
                offset = chunk.next_offset
    finally:
        await transport.close()
    return found


def test_without_a_worker_the_event_is_not_counted_in_time_and_counts_once_later(
    env: dict[str, str], tmp_path: Path
) -> None:
    with api_at(env, tmp_path) as env:
        done = processes.command("check", "--timeout", "3s", env=env)
        assert (done.returncode, done.stdout) == (1, "")
        assert "not counted within 3 s: event " in done.stderr
        assert "the stream had it after " in done.stderr
        as_json = processes.command("check", "--timeout", "3s", "--json", "--name", "other", env=env)
        assert as_json.returncode == 1
        told = json.loads(as_json.stdout)
        assert (told["counted"], told["counted_s"]) == (False, None)
        assert told["fault"] == "the API counts 0 events of the client, as before"
        with processes.worker(env, tmp_path):
            processes.wait_for(lambda: sum(row[1] for row in rows(env["DATABASE_URL"])) == 2, 60)
            again = processes.command("check", "--name", "third", env=env)
            assert again.returncode == 0, again.stderr
        assert rows(env["DATABASE_URL"]) == [(ORG, 3, 0, 0, 0, 0)]


def test_a_part_that_is_away_is_code_1_and_one_that_refuses_us_is_code_2(
    env: dict[str, str], tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    gone = processes.command("check", "--timeout", "1s", "--api", nobody, env=env)
    assert gone.returncode == 1
    assert f"not sent within 1 s: the API at {nobody}" in gone.stderr
    with api_at(env, tmp_path) as env:
        no_collector = processes.command("check", "--timeout", "2s", "--collector", nobody, env=env)
        assert no_collector.returncode == 1
        assert (
            f"not sent within 2 s: the collector at {nobody}/v1/events does not answer" in no_collector.stderr
        )
        elsewhere = {**env, "RABBITMQ_STREAM": f"nowhere.{uuid.uuid4().hex}"}
        no_stream = processes.command("check", "--timeout", "2s", env=elsewhere)
        assert no_stream.returncode == 1
        assert "not sent within 2 s: the stream cannot be used" in no_stream.stderr
        no_such = processes.command("stream", "show", env=elsewhere)
        assert no_such.returncode != 0, "a check makes no stream"
        refused = processes.command("check", env={**env, "CHECK_KEY": "sk_nobody"})
        assert refused.returncode == 2
        assert refused.stderr.startswith("configuration: CHECK_KEY: ")
        assert "sk_nobody" not in refused.stderr
        no_api = processes.command("check", "--api", f"{env['CHECK_API_URL']}/elsewhere", env=env)
        assert no_api.returncode == 2
        assert "CHECK_API_URL" in no_api.stderr
        assert "answers 404" in no_api.stderr
    assert streams.offered(env["DATABASE_URL"]) == 0


def test_wrong_settings_are_code_2_and_all_are_named() -> None:
    done = processes.command(
        "check",
        env={"CHECK_API_URL": "https://user:pass@api.example.com", "CHECK_TIMEOUT": "8m", "CHECK_ORG": " "},
    )
    assert done.returncode == 2
    named = [line for line in done.stderr.splitlines() if line.startswith("configuration: ")]
    assert len(named) == 4
    for setting in ("RABBITMQ_URL", "CHECK_API_URL", "CHECK_TIMEOUT", "CHECK_ORG"):
        assert any(setting in line for line in named), setting
    collector = {"CHECK_COLLECTOR_URL": "http://127.0.0.1:9"}
    assert processes.command("check", "--name", "", env=collector).returncode == 2


# --- against an API of our own, which answers what we like -----------------------------------------


class Fake:
    """An API and a collector in one, whose answers are told one by one; the last one stays."""

    def __init__(self, counts: list[int | web.Response], doors: list[int]) -> None:
        self.counts = counts
        self.doors = doors
        self.asked: list[dict[str, str]] = []
        self.taken: list[bytes] = []
        self.url = ""

    async def usage(self, request: web.Request) -> web.Response:
        self.asked.append({**request.query, "key": request.headers.get("X-API-Key", "")})
        count = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        if isinstance(count, web.Response):
            return web.Response(status=count.status, body=count.body, content_type="application/json")
        return web.json_response({"totals": {"invocations": count}})

    async def events(self, request: web.Request) -> web.Response:
        self.taken.append(await request.read())
        status = self.doors.pop(0) if len(self.doors) > 1 else self.doors[0]
        return web.json_response({"accepted": 1, "rejected": []}, status=status)


@asynccontextmanager
async def faked(counts: list[Any], doors: list[int] | None = None) -> AsyncIterator[Fake]:
    fake = Fake(counts, doors or [200])
    app = web.Application()
    app.router.add_get("/analytics/v1/orgs/{org}/usage", fake.usage)
    app.router.add_post("/v1/events", fake.events)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


def config(fake: Fake, **more: Any) -> CheckConfig:
    return CheckConfig(api_url=fake.url, collector_url=fake.url, **{"timeout_s": 30.0, **more})


AT = datetime(2026, 11, 10, 12, 59, 59, 999_999, tzinfo=UTC)


async def test_the_event_is_counted_when_the_count_is_one_higher_than_before() -> None:
    async with faked([7, 7, 7, 8]) as fake:
        outcome = await check.run(config(fake, key="sk_1"), now=lambda: AT)
    assert outcome.is_counted
    assert outcome.fault == ""
    assert len(fake.asked) == 4
    minute = int(AT.timestamp()) // 60
    assert fake.asked[0] == {
        "start": "2026-11-10T12:00:00Z",
        "end": "2026-11-10T13:00:00Z",
        "granularity": "hour",
        "groupBy": "none",
        "clientId": f"check-{minute % 8}",
        "key": "sk_1",
    }
    (body,) = fake.taken
    event = wire.read(body)
    assert isinstance(event, wire.Event)
    assert json.loads(body)["occurredAt"] == "2026-11-10T12:59:59.999999Z"
    assert json.loads(body)["clientId"] == outcome.client_id


async def test_what_is_away_is_asked_again_with_the_same_event() -> None:
    away = web.Response(status=503, body=b'{"detail": "later"}')
    async with faked([away, 0, away, 0, 1], [503, 429, 200]) as fake:
        outcome = await check.run(config(fake))
    assert outcome.is_counted
    assert len(fake.taken) == 3
    assert len(set(fake.taken)) == 1
    assert json.loads(fake.taken[0])["eventId"] == str(outcome.event_id)


@pytest.mark.parametrize(
    ("counts", "doors", "fault"),
    [
        ([4], [200], "the API counts 4 events of the client, as before"),
        ([web.Response(status=503, body=b'{"detail": "no database"}')], [200], "503: no database"),
        ([0], [503], "answers 503"),
    ],
)
async def test_what_was_wrong_last_is_said_when_the_time_is_up(
    counts: list[Any], doors: list[int], fault: str
) -> None:
    async with faked(counts, doors) as fake:
        outcome = await check.run(config(fake, timeout_s=2.0))
    assert not outcome.is_counted
    assert fault in outcome.fault
    assert (outcome.stored_s is None) is ("answers" in fault or "database" in fault)


@pytest.mark.parametrize(
    ("counts", "doors", "named"),
    [
        ([web.Response(status=401, body=b"")], [200], "CHECK_KEY"),
        ([web.Response(status=403, body=b'{"detail": "not yours"}')], [200], "not yours"),
        ([web.Response(status=404, body=b"")], [200], "CHECK_API_URL"),
        ([web.Response(status=302, body=b"")], [200], "CHECK_API_URL"),
        ([web.Response(status=200, body=b"<html>")], [200], "CHECK_API_URL"),
        ([web.Response(status=200, body=b"{}")], [200], "CHECK_API_URL"),
        ([0], [403], "analytics:events:write"),
        ([0], [404], "CHECK_COLLECTOR_URL"),
    ],
)
async def test_what_no_waiting_mends_is_wrong_configuration(
    counts: list[Any], doors: list[int], named: str
) -> None:
    async with faked(counts, doors) as fake:
        with pytest.raises(ConfigError, match=named):
            await check.run(config(fake))


def test_runs_of_neighbouring_minutes_have_other_clients_for_longer_than_a_run_may_take() -> None:
    longest = next(one for one in SETTINGS if one.name == "CHECK_TIMEOUT")
    with pytest.raises(ValueError, match="7m"):
        longest.parse(f"{check.CLIENTS}m")

    async def clients(when: Callable[[int], datetime]) -> list[str]:
        async with faked([0, 1] * 8) as fake:
            outcomes = [await check.run(config(fake), now=partial(when, number)) for number in range(8)]
        return [outcome.client_id for outcome in outcomes]

    assert len(set(asyncio.run(clients(lambda minute: AT + timedelta(minutes=minute))))) == 8
    assert set(asyncio.run(clients(lambda second: AT - timedelta(seconds=second)))) == {"check-3"}
