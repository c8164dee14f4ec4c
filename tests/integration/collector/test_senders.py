"""What the real packages of senders send is right in REST, counts once, and leaves no prompt anywhere.

LiteLLM, the OpenTelemetry SDK and the CloudEvents SDK run in an environment of their own. They send through a
relay, which loses an answer of each, so that they try again by themselves. Then the broker goes away and all
requests come again. Every test looks at what the one run left.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import time
import uuid
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from deploy.local import Stack
from deploy.local.server import Server
from pipeline.collector import ids
from pipeline.common import keys
from tests.conftest import or_missing
from tests.support import access, migrated, processes, sender_environment
from tests.support.collector_world import World, archived, rows_of, running, spooled
from tests.support.processes import Process, wait_for
from tests.support.relay import LOSING, Relay, Request

CANARY = f"canary-{uuid.uuid4().hex}"
"""In all prompts, answers and errors, and in whatever else a sender may choose."""
ACME, GLOBEX, INITECH = "Acme", "Globex", uuid.UUID("cccccccc-0000-4000-8000-000000000001")
"""The orgs of LiteLLM, of OpenTelemetry and of CloudEvents."""
OLD = timedelta(days=60)
COUNTS = (
    *("invocations", "inputTokens", "outputTokens"),
    *("cacheReadTokens", "cacheWriteTokens", "reasoningTokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of all senders left."""

    told: list[dict[str, Any]]
    """What LiteLLM told its callers."""
    relay: Relay
    again: list[int]
    """The collector's statuses when all requests came again."""
    usage: dict[str, Any]
    """REST's usage by the org after the first time; ``usage_again`` is that after the second."""
    usage_again: dict[str, Any]
    reliability: dict[str, Any]
    clients: set[str | None]
    """The clients of LiteLLM's calls."""
    places: dict[str, str]
    """All text of each place that could keep a prompt."""


def events() -> list[dict[str, Any]]:
    """Events of the contract: two of now, and one that is too old to be counted."""
    now = datetime.now(UTC)

    def event(number: int, at: datetime, **more: Any) -> dict[str, Any]:
        return {
            "eventId": str(uuid.uuid4()),
            "orgId": str(INITECH),
            "modelId": str(ids.model_id("mistral", "large")),
            "modelName": "large",
            "provider": "mistral",
            "occurredAt": at.isoformat(),
            "latencyMs": 10,
            "status": "success",
            "inputTokens": number,
            "outputTokens": 2 * number,
            "costEstimateCents": "0.125",
            "prompt": CANARY,
            "messages": [{"role": "user", "content": CANARY}],
            **more,
        }

    return [event(100, now), event(10, now, cacheReadTokens=7), event(1, now - OLD)]


def spans() -> bytes:
    """OTLP in JSON, by hand: a call of now, and one that is too old to be counted."""
    now_ns = time.time_ns()

    def attribute(key: str, **value: str) -> dict[str, Any]:
        return {"key": key, "value": value}

    def span(end_ns: int) -> dict[str, Any]:
        return {
            "traceId": uuid.uuid4().hex,
            "spanId": uuid.uuid4().hex[:16],
            "name": f"chat {CANARY}",
            "startTimeUnixNano": str(end_ns - 10**9),
            "endTimeUnixNano": str(end_ns),
            "attributes": [
                attribute("gen_ai.operation.name", stringValue="chat"),
                attribute("gen_ai.provider.name", stringValue="anthropic"),
                attribute("gen_ai.request.model", stringValue="claude-x"),
                attribute("gen_ai.input.messages", stringValue=CANARY),
                attribute("gen_ai.usage.input_tokens", intValue="70"),
                attribute("gen_ai.usage.output_tokens", intValue="8"),
            ],
            "events": [{"name": CANARY, "attributes": [attribute("content", stringValue=CANARY)]}],
        }

    old_ns = now_ns - int(OLD.total_seconds()) * 10**9
    scope = {"scope": {"name": CANARY}, "spans": [span(now_ns), span(old_ns)]}
    return json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [scope]}]}).encode()


def entries(requests: list[Request]) -> dict[tuple[str, str], int]:
    """How often each call of LiteLLM came, by its id and the way it came."""
    found: Counter[tuple[str, str]] = Counter()
    for request in requests:
        if request.path == "/v1/litellm":
            way = "array" if request.body.startswith(b"[") else "lines"
            listed = (
                json.loads(request.body) if way == "array" else map(json.loads, request.body.splitlines())
            )
            found.update((way, entry["litellm_call_id"]) for entry in listed)
    return found


class Senders:
    """The programs of tests/data/senders, each with a key of its own org."""

    def __init__(self, python: Path, relay: Relay, key: Callable[[uuid.UUID], str], folder: Path) -> None:
        self._python = python
        self._relay = relay
        self._key = key
        self._folder = folder

    def start(self, program: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with (self._folder / f"{'-'.join((program, *arguments))}.log").open("w") as log:
            return subprocess.Popen(
                [self._python, sender_environment.PROGRAMS / program, *arguments],
                env={**kept, "PYTHONDONTWRITEBYTECODE": "1", "CANARY": CANARY, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def litellm(self, way: str) -> subprocess.Popen[str]:
        return self.start(
            "send_litellm.py",
            *(["lines"] if way == "lines" else []),
            ORG_NAME=ACME,
            GENERIC_LOGGER_ENDPOINT=f"{self._relay.url}{LOSING if way == 'lines' else ''}/v1/litellm",
            GENERIC_LOGGER_HEADERS=f"X-API-Key={self._key(ids.org_id(ACME))}",
            DEFAULT_FLUSH_INTERVAL_SECONDS="1",
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        )

    def opentelemetry(self) -> subprocess.Popen[str]:
        return self.start(
            "send_spans.py",
            ORG_NAME=GLOBEX,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{self._relay.url}{LOSING}/v1/traces",
            OTEL_EXPORTER_OTLP_TRACES_HEADERS=f"x-api-key={self._key(ids.org_id(GLOBEX))}",
            OTEL_EXPORTER_OTLP_TRACES_COMPRESSION="gzip",
        )

    def cloudevents(self) -> subprocess.Popen[str]:
        return self.start(
            "send_cloudevents.py", ENDPOINT=f"{self._relay.url}/v1/events", KEY=self._key(INITECH)
        )

    def run(self) -> list[dict[str, Any]]:
        """Run all of them beside each other to their end; what LiteLLM told its callers."""
        told: list[dict[str, Any]] = []
        with ExitStack() as started:
            litellms = [started.enter_context(ended(self.litellm(way))) for way in ("array", "lines")]
            spans_ = started.enter_context(ended(self.opentelemetry()))
            cloudevents = started.enter_context(ended(self.cloudevents()))
            cloudevents.communicate(json.dumps(events()), timeout=300)
            spans_.communicate(timeout=300)
            assert (cloudevents.returncode, spans_.returncode) == (0, 0), self.logs()
            for program in litellms:
                assert program.stdout is not None
                facts = next((line for line in program.stdout if line.startswith("[{")), None)
                assert facts is not None, self.logs()
                told += json.loads(facts)
            wait_for(lambda: self._have_all_come(len(told)), 60, self.logs)
        return told

    def _have_all_come(self, calls: int) -> bool:
        """Has each call of LiteLLM come, and have those come again whose answer was lost?"""
        found = entries(self._relay.sent)
        return len(found) == calls and any(way == "lines" and times > 1 for (way, _), times in found.items())

    def logs(self) -> str:
        return "\n".join(
            f"{path.name}\n{path.read_text()[-3000:]}" for path in self._folder.glob("send_*.log")
        )


@contextmanager
def ended(program: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End the program at the latest with the block."""
    with program:
        try:
            yield program
        finally:
            program.kill()


def metrics(process: Process) -> str:
    return str(processes.get(urljoin(process.ready_url, "/metrics"))[1])


def reports(world: World) -> list[dict[str, Any]]:
    return [world.usage(org) for org in (ids.org_id(ACME), ids.org_id(GLOBEX), INITECH)]


def kept_by(server: Server, stream: str) -> str:
    """What a broker has of a stream in its folder, and its logs."""
    name = stream.rpartition(".")[2]  # the broker writes other characters for points
    files = [path for path in server.folder.rglob("*") if name in str(path) or path.suffix == ".log"]
    return b"\n".join(path.read_bytes() for path in files if path.is_file()).decode("latin-1")


def dead_letters(env: dict[str, str]) -> str:
    """What the command shows of each."""
    listed = processes.command("dead-letters", "list", "--json", env=env)
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    return "\n".join(f"{one} {b64decode(one['body']).decode()}" for one in letters)


def wait_counted(world: World) -> None:
    """Wait until the worker has committed all that is in the stream."""
    records = sum(len(bodies) for bodies in world.bodies().values())
    wait_for(lambda: world.offered() == records, 120, world.worker.log)


@pytest.fixture(scope="module")
def python() -> Path:
    """The senders' own Python."""
    with or_missing():
        return sender_environment.python()


@pytest.fixture(scope="module")
def run(
    python: Path, stack: Stack, up: Callable[[Server], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    up(stack.rabbitmq)
    up(stack.postgres)
    folder = tmp_path_factory.mktemp("senders")
    name = f"test_{uuid.uuid4().hex}"
    url = stack.postgres.create_database(name)
    migrated.upgrade(url)
    env = {
        **stack.rabbitmq.env,
        "DATABASE_URL": url,
        "RABBITMQ_STREAM": f"senders.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
    }
    with running(env, folder, collector=access.ENV) as world, Relay(world.collector) as relay:
        yield everything_sent(python, stack, world, relay, folder)
    up(stack.postgres)
    stack.postgres.drop_database(name)


def everything_sent(python: Path, stack: Stack, world: World, relay: Relay, folder: Path) -> Run:
    """Send all; send all again while the broker is away; read whatever is kept."""
    url = world.env["DATABASE_URL"]

    def key(org: uuid.UUID) -> str:
        return access.new_key(url, org, keys.EVENTS_WRITE)

    told = Senders(python, relay, key, folder).run()
    by_hand = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    by_hand["X-API-Key"] = key(ids.org_id(GLOBEX))
    relay.pass_on(Request("/v1/traces", by_hand, gzip.compress(spans())))
    wait_counted(world)
    wait_for(lambda: all(one["orgName"] for one in reports(world)[:2]), 60)
    usage = reports(world)
    reliability = [world.reliability(org) for org in (ids.org_id(ACME), ids.org_id(GLOBEX))]

    stack.rabbitmq.kill()
    wait_for(lambda: world.collector.get_component("stream")["status"] == "unavailable", 60)
    again = relay.send_again()
    spool = spooled(folder).decode("latin-1")
    stack.rabbitmq.start()
    wait_for(lambda: world.collector.get_component("spool")["records"] == 0, 120, world.collector.log)
    wait_counted(world)
    wait_for(lambda: str(INITECH) in archived(folder), 60, world.worker.log)
    processes_ = (world.collector, world.worker, world.api)
    return Run(
        told=told,
        relay=relay,
        again=again,
        usage=dict(zip((ACME, GLOBEX, str(INITECH)), usage, strict=True)),
        usage_again=dict(zip((ACME, GLOBEX, str(INITECH)), reports(world), strict=True)),
        reliability=dict(zip((ACME, GLOBEX), reliability, strict=True)),
        clients={one["clientId"] for one in world.usage(ids.org_id(ACME), by="client")["series"]},
        places={
            "stream": b"\n".join(body for bodies in world.bodies().values() for body in bodies).decode(),
            "spool": spool,
            "broker": kept_by(stack.rabbitmq, world.env["RABBITMQ_STREAM"]),
            "dead letters": dead_letters(world.env),
            "database": rows_of(url),
            "archive": archived(folder),
            "logs": "\n".join(process.log(most=None) for process in processes_),
            "metrics": "\n".join(map(metrics, processes_)),
            "answers": b"\n".join(relay.answers).decode("latin-1"),
            "REST": json.dumps([reports(world), reliability]),
        },
    )


def by_model(usage: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Sums over the days of each model. A count of 0 is left out."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for point in usage["series"]:
        sums = found[point["provider"], point["modelName"]]
        sums.update({name: point[name] for name in COUNTS})
        if point["estimate"]["amount"] is not None:
            sums["nanodollars"] += round(Decimal(point["estimate"]["amount"]) * 10**9)
    return {model: dict(+sums) for model, sums in found.items()}


def test_every_request_was_answered_200_though_answers_were_lost_and_the_broker_was_away(run: Run) -> None:
    assert run.relay.lost == {"/v1/litellm", "/v1/traces"}
    assert set(run.relay.statuses) == {200}
    assert set(run.again) == {200}
    assert len(run.again) == len(run.relay.sent)
    retried = [request for request in run.relay.sent if run.relay.sent.count(request) > 1]
    assert {request.path for request in retried} == {"/v1/litellm", "/v1/traces"}


def test_calls_through_litellm_are_in_rest_with_its_tokens_models_and_costs(run: Run) -> None:
    expected: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for call in run.told:
        provider, _, model = call["model"].partition("/")
        sums = expected[provider, model]
        sums["invocations"] += 1
        if call["kind"] != "cached":
            sums["inputTokens"] += call["input"]
            sums["outputTokens"] += call["output"]
            sums["nanodollars"] += round((call["cost"] or 0) * 10**9)
    usage = run.usage[ACME]
    assert by_model(usage) == {model: dict(+sums) for model, sums in expected.items()}
    assert {call["kind"]: call.get("error") for call in run.told} == {
        **dict.fromkeys(("success", "stream", "cached")),
        "failure": "InternalServerError",
        "throttled": "RateLimitError",
        "timeout": "Timeout",
    }
    unknown = next(one for one in usage["series"] if one["modelName"] == "a-model-of-our-own")
    assert unknown["estimate"]["amount"] is None, "LiteLLM knows no price, and says 0"
    mini = by_model(usage)["openai", "gpt-4o-mini"]
    assert mini["inputTokens"] > 2 * 10, "a stream has tokens"
    assert mini["nanodollars"] > 2 * 13_500
    assert usage["orgName"] == ACME
    assert run.clients == {"checkout"}


def test_failures_through_litellm_are_errors_timeouts_and_throttled_calls(run: Run) -> None:
    totals = run.reliability[ACME]["totals"]
    assert totals["errors"] == {"error": 2, "timeout": 2, "throttled": 2}
    codes = {(one["status"], one["errorCode"]): one["count"] for one in run.reliability[ACME]["errorCodes"]}
    assert codes == {
        ("error", "InternalServerError"): 2,
        ("throttled", "RateLimitError"): 2,
        ("timeout", "Timeout"): 2,
    }


def test_spans_of_the_opentelemetry_sdk_are_in_rest_with_their_tokens_by_kind(run: Run) -> None:
    usage = run.usage[GLOBEX]
    assert by_model(usage) == {
        ("anthropic", "claude-x"): {
            "invocations": 5,
            "inputTokens": 1200 + 70,
            "outputTokens": 300 + 8,
            "cacheReadTokens": 1000,
            "cacheWriteTokens": 100,
            "reasoningTokens": 250,
            "nanodollars": 12_300_000,
        },
        ("openai", "o4-mini-2025-04-16"): {
            "invocations": 1,
            "inputTokens": 50,
            "outputTokens": 7,
            "cacheReadTokens": 20,
        },
        ("openai", "gpt-4o-2024-08-06"): {
            "invocations": 1,
            "inputTokens": 31,
            "outputTokens": 9,
            "reasoningTokens": 4,
        },
    }
    assert usage["orgName"] == GLOBEX
    reliability = run.reliability[GLOBEX]
    assert reliability["totals"]["errors"] == {"error": 1, "timeout": 1, "throttled": 1}
    codes = {(one["status"], one["errorCode"]): one["count"] for one in reliability["errorCodes"]}
    assert codes == {
        ("error", "ValueError"): 1,
        ("throttled", "RateLimitError"): 1,
        ("timeout", "TimeoutError"): 1,
    }


def test_events_of_the_cloudevents_sdk_count_once_in_whatever_mode_they_came(run: Run) -> None:
    assert by_model(run.usage[str(INITECH)]) == {
        ("mistral", "large"): {
            "invocations": 2,
            "inputTokens": 110,
            "outputTokens": 220,
            "cacheReadTokens": 7,
            "nanodollars": 2_500_000,
        }
    }
    kinds = {
        request.headers.get("Content-Type") for request in run.relay.sent if request.path == "/v1/events"
    }
    assert kinds == {
        "application/json",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
    }


@pytest.mark.parametrize("org", [ACME, GLOBEX, str(INITECH)])
def test_what_came_again_changed_nothing(run: Run, org: str) -> None:
    assert run.usage_again[org]["totals"] == run.usage[org]["totals"]
    assert run.usage_again[org]["totals"]["invocations"] > 0
    assert by_model(run.usage_again[org]) == by_model(run.usage[org])


def test_the_canary_was_in_what_the_senders_sent(run: Run) -> None:
    for path in ("/v1/litellm", "/v1/traces", "/v1/events"):
        bodies = [request.body for request in run.relay.sent if request.path == path]
        plain = [gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body for body in bodies]
        assert plain
        assert all(CANARY.encode() in body for body in plain)


FOUND = {
    "stream": str(ids.org_id(ACME)),
    "broker": str(ids.org_id(ACME)),
    "spool": str(ids.org_id(GLOBEX)),
    "dead letters": "too_late",
    "database": ACME,
    "archive": str(INITECH),
    "logs": "collector_started",
    "metrics": "analytics_collector_events_total",
    "answers": "accepted",
    "REST": "gpt-4o-mini",
}
"""A text that is in each place: so the place was read."""


@pytest.mark.parametrize("place", FOUND)
def test_no_prompt_and_no_answer_is_found(run: Run, place: str) -> None:
    assert FOUND[place] in run.places[place]
    at = run.places[place].find(CANARY)
    assert at < 0, repr(run.places[place][max(0, at - 300) : at + 100])
