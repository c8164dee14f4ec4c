"""From a sender's body to a figure in REST: every door, a super stream, a worker; and no prompt anywhere."""

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.collector import ids
from tests.support.collector_world import World, archived, rows_of, running, spooled
from tests.support.processes import wait_for
from tests.support.usage_events import EventMill, array

CANARY = "canary-0d5e"
PARTITIONS = 2
ORG = uuid.UUID("bbbbbbbb-0000-4000-8000-000000000001")


@pytest.fixture
def world(env: dict[str, str], tmp_path: Path) -> Iterator[World]:
    with running(env, tmp_path, partitions=PARTITIONS) as world:
        yield world


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
    kept = spooled(tmp_path)
    assert str(acme).encode() in kept
    assert CANARY.encode() not in kept
    rabbitmq.start()
    wait_for(lambda: world.offered() == 10, 120, world.worker.log)
    assert world.totals(acme)["invocations"] == 3

    stored = b"".join(body for bodies in world.bodies().values() for body in bodies)
    assert stored.count(b"eventId") == 10
    assert CANARY.encode() not in stored
    wait_for(lambda: str(acme) in archived(tmp_path), 60, world.worker.log)
    assert CANARY not in archived(tmp_path)
    assert CANARY not in rows_of(world.env["DATABASE_URL"])
    assert CANARY not in world.collector.log(most=None) + world.worker.log(most=None) + world.api.log(
        most=None
    )
