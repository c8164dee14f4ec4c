"""From a sender's body to a figure in REST: every door, a super stream, a worker; and no prompt anywhere."""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.servers import RabbitMQ
from pipeline.collector import ids
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support import collectors, processes, streams
from tests.support.collectors import Collector
from tests.support.processes import Api, Process, wait_for
from tests.support.usage_events import EventMill, array

CANARY = "canary-0d5e"
PARTITIONS = 2
ORG = uuid.UUID("bbbbbbbb-0000-4000-8000-000000000001")


class World:
    """A collector, a worker and an API on one super stream."""

    def __init__(self, env: dict[str, str], collector: Collector, worker: Process, api: Api) -> None:
        self.env = env
        self.collector = collector
        self.worker = worker
        self.api = api

    def offered(self) -> int:
        return streams.offered(self.env["DATABASE_URL"])

    def totals(self, org: uuid.UUID | str) -> dict[str, Any]:
        answer: dict[str, Any] = self.usage(org)["totals"]
        return answer

    def usage(self, org: uuid.UUID | str) -> Any:
        start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
        period = {
            "start": start.isoformat().replace("+00:00", "Z"),
            "end": (start + timedelta(days=4)).isoformat().replace("+00:00", "Z"),
        }
        return self.api.answer(f"/orgs/{org}/usage", granularity="day", groupBy="model", **period)

    def bodies(self) -> dict[int, list[bytes]]:
        """Every record of each partition of the stream."""
        return asyncio.run(_read(self.env))


async def _read(env: dict[str, str]) -> dict[int, list[bytes]]:
    transport = RabbitMQTransport(streams.config(env["RABBITMQ_URL"], env["RABBITMQ_STREAM"]))
    found: dict[int, list[bytes]] = {}
    try:
        for number, extent in enumerate(await transport.extents()):
            subscription = await transport.subscribe(partition=number, offset=0)
            found[number], next_offset = [], 0
            while next_offset < extent.end_offset:
                chunk = await asyncio.wait_for(subscription.receive(), 120)
                subscription.grant()
                found[number] += [bytes(body) for body in chunk.bodies]
                next_offset = chunk.next_offset
    finally:
        await transport.close()
    return found


@pytest.fixture
def world(env: dict[str, str], tmp_path: Path) -> Iterator[World]:
    (tmp_path / "spool").mkdir()
    env = {
        **env,
        "ARCHIVE_URL": f"file://{tmp_path}/archive",
        "ARCHIVE_INTERVAL": "500ms",
        "COLLECTOR_SPOOL": str(tmp_path / "spool"),
        "COLLECTOR_SPOOL_AFTER": "10s",
        "DIMENSIONS": "team=metadata.team",
        "LOG_LEVEL": "debug",
    }
    made = processes.command("stream", "create", "--partitions", str(PARTITIONS), env=env)
    assert made.returncode == 0, made.stderr
    with ExitStack() as running:
        worker = running.enter_context(processes.worker(env, tmp_path))
        collector = running.enter_context(collectors.collector(env, tmp_path))
        api = running.enter_context(Api({"DATABASE_URL": env["DATABASE_URL"]}, tmp_path))
        yield World(env, collector, worker, api)


def envelope(event: dict[str, Any]) -> dict[str, Any]:
    return {"specversion": "1.0", "type": "analytics.usage.v1", "source": "/g", "id": "1", "data": event}


def test_events_of_every_form_are_figures_in_rest_each_once(world: World) -> None:
    mill = EventMill(orgs=5, seed=11)
    events = mill.events(1000)
    objects = [json.loads(body) for body in events]
    post = world.collector.post
    lines = b"\n".join(events[500:700])
    for _ in range(2):
        assert post("/v1/events", array(events[:500]))[1] == {"accepted": 500, "rejected": []}
        assert post("/v1/events", lines, Content_Type="application/x-ndjson")[0] == 200
        batch = json.dumps([envelope(one) for one in objects[700:900]]).encode()
        assert post("/v1/events", batch, Content_Type="application/cloudevents-batch+json")[0] == 200
        for body in events[900:]:
            ce = {"ce_specversion": "1.0", "ce_type": "analytics.usage.v1", "ce_id": "1", "ce_source": "/"}
            assert post("/v1/events", body, **ce)[0] == 200
    wait_for(lambda: world.offered() == 2000, 120, world.worker.log)
    for org in mill.orgs:
        mine = [one for one in objects if one["orgId"] == org]
        totals = world.totals(org)
        assert totals["invocations"] == len(mine)
        assert totals["inputTokens"] == sum(one["inputTokens"] for one in mine)
        assert totals["outputTokens"] == sum(one["outputTokens"] for one in mine)
        assert float(totals["estimate"]["amount"]) == pytest.approx(
            sum(one["costEstimateCents"] for one in mine) / 100, abs=1e-12
        )
    stored = world.bodies()
    assert all(stored.values()), "all partitions are used"
    of_partition = {
        number: {json.loads(body)["orgId"] for body in bodies} for number, bodies in stored.items()
    }
    assert not of_partition[0] & of_partition[1], "an org is in one partition"


def litellm(org: str, **more: Any) -> dict[str, Any]:
    return {
        "litellm_call_id": str(uuid.uuid4()),
        "call_type": "acompletion",
        "status": "success",
        "custom_llm_provider": "openai",
        "model": "gpt-4o",
        "startTime": time.time() - 2,
        "endTime": time.time() - 1,
        "prompt_tokens": 120,
        "completion_tokens": 30,
        "response_cost": 0.0025,
        "metadata": {"user_api_key_org_id": org, "user_api_key_alias": "app", "requester_ip": CANARY},
        "messages": [{"role": "user", "content": CANARY}],
        "response": {"choices": [{"message": {"content": CANARY}}], "usage": {"prompt_tokens": 120}},
        "model_parameters": {"user": CANARY},
        **more,
    }


def traces(org: uuid.UUID) -> bytes:
    def text(key: str, value: str) -> dict[str, Any]:
        return {"key": key, "value": {"stringValue": value}}

    now_ns = time.time_ns()
    span = {
        "traceId": uuid.uuid4().hex,
        "spanId": uuid.uuid4().hex[:16],
        "name": CANARY,
        "startTimeUnixNano": str(now_ns - 10**9),
        "endTimeUnixNano": str(now_ns),
        "attributes": [
            text("gen_ai.operation.name", "chat"),
            text("gen_ai.provider.name", "anthropic"),
            text("gen_ai.request.model", "claude-x"),
            text("gen_ai.input.messages", CANARY),
            text("gen_ai.prompt.0.content", CANARY),
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "50"}},
            {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "6"}},
        ],
        "events": [{"name": CANARY, "attributes": [text("content", CANARY)]}],
    }
    other = {**span, "spanId": uuid.uuid4().hex[:16], "attributes": [text("http.route", CANARY)]}
    scope = {"scope": {"name": CANARY}, "spans": [span, other]}
    resource = {"attributes": [text("spendstream.org_id", str(org)), text("service.name", "shop")]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}).encode()


def test_what_litellm_and_opentelemetry_send_is_counted_once_under_its_names_and_no_prompt_is_kept(
    world: World, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    acme, post = ids.org_id("Acme"), world.collector.post
    entries = [
        litellm("Acme"),
        litellm("Acme", status="failure", response_cost=0, prompt_tokens=0, completion_tokens=0),
    ]
    spans = traces(ORG)
    own = {**json.loads(EventMill(seed=12).events(1)[0]), "orgId": str(ORG), "prompt": CANARY}
    faulty = {**own, "eventId": str(uuid.uuid4()), "status": CANARY, "clientId": "x" * 200}
    for _ in range(2):
        assert post("/v1/litellm", json.dumps(entries).encode())[1] == {
            "accepted": 2,
            "rejected": [],
            "passedOver": 0,
        }
        assert post("/v1/traces", spans) == (200, {})
        status, answer = post("/v1/events", json.dumps([own, faulty]).encode())
        assert (status, answer["accepted"], len(answer["rejected"])) == (200, 1, 1)
        assert CANARY not in json.dumps(answer)
    wait_for(lambda: world.offered() == 8, 120, world.worker.log)
    totals = world.totals(acme)
    assert (totals["invocations"], totals["inputTokens"], totals["outputTokens"]) == (2, 120, 30)
    assert totals["estimate"]["amount"] == "0.0025"
    wait_for(lambda: world.usage(acme)["orgName"] == "Acme", 60)
    models = Counter((one["provider"], one["modelName"]) for one in world.usage(ORG)["series"])
    assert models == Counter({("anthropic", "claude-x"): 1, ("openai", "gpt-4o-2024-08-06"): 1})
    totals = world.totals(ORG)
    assert (totals["invocations"], totals["inputTokens"]) == (2, 50 + own["inputTokens"])

    # While the broker is away, the spool has what the stream would have.
    rabbitmq.kill()
    wait_for(lambda: world.collector.get_component("stream")["status"] == "unavailable", 60)
    assert post("/v1/litellm", json.dumps([litellm("Acme")]).encode())[0] == 200
    assert post("/v1/traces", traces(ORG))[0] == 200
    kept = [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    spooled = b"".join(path.read_bytes() for path in kept)
    assert str(acme).encode() in spooled
    assert CANARY.encode() not in spooled
    rabbitmq.start()
    wait_for(lambda: world.offered() == 10, 120, world.worker.log)
    assert world.totals(acme)["invocations"] == 3

    stored = b"".join(body for bodies in world.bodies().values() for body in bodies)
    assert stored.count(b"eventId") == 10
    assert CANARY.encode() not in stored
    wait_for(lambda: list((tmp_path / "archive").rglob("*.parquet")), 60, world.worker.log)
    assert CANARY.encode() not in b"".join(
        path.read_bytes() for path in (tmp_path / "archive").rglob("*") if path.is_file()
    )
    assert CANARY not in _everything(world.env["DATABASE_URL"])
    assert CANARY not in world.collector.log(most=None) + world.worker.log(most=None) + world.api.log(
        most=None
    )


def _everything(url: str) -> str:
    """All rows of all tables, as text."""
    found = []
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_schema = 'analytics' AND table_type = 'BASE TABLE'"
        ).fetchall()
        assert len(tables) > 20
        for schema, table in tables:
            rows = connection.execute(f'SELECT t::text FROM "{schema}"."{table}" AS t').fetchall()
            found += [row for (row,) in rows]
    # A bytea stands there in hexadecimal digits.
    return "\n".join(found).replace(CANARY.encode().hex(), CANARY)
