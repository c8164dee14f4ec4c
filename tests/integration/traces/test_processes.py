"""All four processes send their spans to a real receiver, and one trace goes through several of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.support import collectors, processes
from tests.support.otlp_receiver import Received, Receiver
from tests.support.processes import Process, get, wait_for
from tests.support.usage_events import ORG, EventMill

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
SENDER: Final = "b7ad6b7169203331"
GIVEN: Final = {
    "traceparent": f"00-{TRACE}-{SENDER}-01",
    "tracestate": "vendor=shop",
    "X-Request-ID": "shop/17",
}
SECRET: Final = "hush, hush"
SERVICES: Final = {"spendstream", "spendstream-api", "spendstream-api-exporter", "spendstream-collector"}
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
WAIT_S: Final = 120.0


def curl(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """What a user does: curl with the headers of a trace. Status and answer."""
    given = {**GIVEN, "Content-Type": "application/json", **headers}
    command = ["curl", "-s", "--noproxy", "*", "-w", "\n%{http_code}", url]
    for name, value in given.items():
        command += ["-H", f"{name}: {value}"]
    if body is not None:
        command += ["--data-binary", json.dumps(body)]
    answer, _, status = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=WAIT_S
    ).stdout.rpartition("\n")
    return int(status), json.loads(answer)


def the_one(spans: list[Received]) -> Received:
    assert len(spans) == 1, spans
    return spans[0]


def test_one_trace_goes_from_the_sender_through_every_process(
    receiver: Receiver, protocol: str, env: dict[str, str], redis_url: str, tmp_path: Path
) -> None:
    env |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={SECRET.replace(',', '%2C')}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.namespace=usage",
        "LOG_LEVEL": "debug",
    }
    worker_env = {
        **env,
        "REDIS_URL": redis_url,
        "ARCHIVE_URL": f"file://{tmp_path}/archive",
        "ARCHIVE_INTERVAL": "300ms",
    }
    api_env = {**env, "EXPORT_DIR": str(tmp_path / "exports"), "EXPORT_IN_API": "false"}
    assert processes.command("stream", "create", "--partitions", "1", env=env).returncode == 0
    with ExitStack() as running:
        worker = running.enter_context(processes.worker(worker_env, tmp_path))
        door = running.enter_context(collectors.collector(env, tmp_path))
        api = running.enter_context(processes.Api(api_env, tmp_path))
        exporter = Process(
            "api",
            ["exporter"],
            env={**api_env, "API_ALLOW_PRIVILEGED": "true"},
            log=tmp_path / "exporter.log",
            ready="",
        )
        running.enter_context(started(exporter))

        # Of two good events the broker may make two chunks.
        events = [json.loads(one) for one in EventMill(orgs=1).events(2)]
        events[1]["inputTokens"] = -1
        status, answer = curl(f"http://127.0.0.1:{door.port}/v1/events", events)
        assert (status, answer["accepted"]) == (200, 1), answer
        counted = 'analytics_ingestion_events_total{outcome="accepted"}'
        wait_for(lambda: processes.metrics(worker).get(counted) == 1, WAIT_S, worker.log)
        wait_for(lambda: receiver.named("archive"), WAIT_S, worker.log)

        root = api.ready_url.removesuffix("/status/readyz")
        now = datetime.now(UTC)
        start, end = (f"{now + timedelta(days=days):%Y-%m-%d}T00:00:00Z" for days in (-2, 1))
        assert curl(f"{root}/orgs/{ORG}/usage?start={start}&end={end}&granularity=day")[0] == 200
        order = {"timeRange": {"start": start, "end": end}, "granularity": "daily", "format": "csv"}
        status, job = curl(f"{root}/orgs/{ORG}/exports", order)
        assert status in (201, 202), job
        assert curl(f"{root}/orgs/no-uuid/usage")[0] in (400, 403, 404)

        def made() -> bool:
            _, found = get(f"{root}/orgs/{ORG}/exports/{job['jobId']}")
            return bool(found["status"] == "succeeded")

        wait_for(made, WAIT_S, exporter.log)
        stopped = {one: one.stop() for one in (door, worker, exporter, api)}
        assert set(stopped.values()) == {0}, [one.log() for one, code in stopped.items() if code]

    assert {span.service for span in receiver.spans} == SERVICES
    assert {one["x-api-key"] for one in receiver.headers} == {SECRET}
    check_resource(receiver)
    check_collector(receiver)
    check_worker(receiver)
    check_api(receiver)
    check_export(receiver)
    check_nothing_secret(receiver, tmp_path)
    lines = [
        line for line in api.events() if line["event"] == "request_served" and line["route"].endswith("usage")
    ]
    assert {line.get("traceparent") for line in lines} == {GIVEN["traceparent"]}
    begun = [line for line in exporter.events() if line["event"] == "export_started"]
    assert [line["trace_id"] for line in begun] == [TRACE], "the log leads to the trace"


@contextmanager
def started(exporter: Process) -> Iterator[None]:
    """The exporter without a page: it has no readiness to wait for."""
    try:
        exporter.start(wait=False)
        yield
    finally:
        exporter.__exit__()


def check_resource(receiver: Receiver) -> None:
    instances = {span.resource["service.instance.id"] for span in receiver.spans}
    assert len(instances) == len(SERVICES), "each process has an id of its own"
    for span in receiver.spans:
        assert span.resource["deployment.environment.name"] == "test"
        assert span.resource["service.namespace"] == "usage"


def check_collector(receiver: Receiver) -> None:
    request = the_one(receiver.named("POST /v1/events"))
    assert (request.trace, request.parent, request.state) == (TRACE, SENDER, "vendor=shop")
    assert request.kind == SERVER
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/events",
        "http.response.status_code": 200,
        "spendstream.request_id": "shop/17",
        "spendstream.dialect": "events",
        "spendstream.events": 1,
        "spendstream.rejected": 1,
    }
    publish = the_one(receiver.below(request))
    assert (publish.name, publish.kind) == ("publish", PRODUCER)
    assert publish.attributes == {"spendstream.events": 1, "spendstream.to": "stream"}
    batch = the_one(receiver.named("publish batch"))
    assert batch.links == (publish.span,), "the batch that had the events leads to the request"


def check_worker(receiver: Receiver) -> None:
    chunk = the_one(receiver.named("chunk"))
    assert (chunk.parent, chunk.kind) == ("", CONSUMER)
    assert chunk.attributes == {"spendstream.partition": 0, "spendstream.offset": 0, "spendstream.events": 1}
    assert [span.name for span in receiver.below(chunk)] == ["fold"]

    flushes = receiver.named("flush")
    flush = the_one([one for one in flushes if one.attributes["spendstream.rows"]])
    assert flush.attributes["spendstream.partition"] == 0
    assert flush.attributes["spendstream.next_offset"] > flush.attributes["spendstream.from_offset"]
    steps = {span.name: span for span in receiver.below(flush)}
    assert steps.keys() == {"drain", "write", "cache"}
    written = {span.name: span for span in receiver.below(steps["write"])}
    assert {"COMMIT", "upsert usage_minute", "upsert usage_hour", "upsert usage_day"} <= written.keys()
    size = sum(span.attributes.get("spendstream.bytes", 0) for span in written.values())
    assert flush.attributes["spendstream.bytes"] == steps["write"].attributes["spendstream.bytes"] == size > 0

    archive = the_one(receiver.named("archive"))
    assert (archive.attributes["spendstream.events"], archive.attributes["spendstream.files"]) == (1, 1)
    assert {span.name for span in receiver.below(archive)} == {"upload", "list files"}


def check_api(receiver: Receiver) -> None:
    usage = the_one(receiver.named("GET /analytics/v1/orgs/{orgId}/usage", "spendstream-api")[:1])
    assert (usage.trace, usage.parent, usage.state) == (TRACE, SENDER, "vendor=shop")
    assert usage.attributes == {
        "http.request.method": "GET",
        "http.route": "/analytics/v1/orgs/{orgId}/usage",
        "http.response.status_code": 200,
        "spendstream.request_id": "shop/17",
        "spendstream.org_id": str(ORG),
    }
    reads = [span for span in receiver.below(usage) if span.name.startswith("database")]
    assert reads
    questions = [one for read in reads for one in receiver.below(read) if one.name == "question"]
    assert questions
    assert all(one.kind == CLIENT and one.attributes["spendstream.statements"] for one in questions)
    routes = {span.attributes["http.route"] for span in receiver.spans if "http.route" in span.attributes}
    assert not {route for route in routes if route.endswith(("metrics", "healthz", "readyz"))}, (
        "no probe has a span"
    )


def check_export(receiver: Receiver) -> None:
    order = the_one(receiver.named("POST /analytics/v1/orgs/{orgId}/exports"))
    assert (order.trace, order.parent) == (TRACE, SENDER)
    export = the_one(receiver.named("export", "spendstream-api-exporter"))
    assert (export.trace, export.parent) == (TRACE, order.span), "the job continues the trace of its order"
    assert export.attributes["spendstream.outcome"] == "succeeded"
    assert {span.name for span in receiver.below(export)} == {"file", "upload"}


def check_nothing_secret(receiver: Receiver, folder: Path) -> None:
    """No attribute has a value that a sender chose freely, and no log has the header's secret."""
    values = {str(value) for span in receiver.spans for value in span.attributes.values()}
    assert not {value for value in values if "no-uuid" in value or "?" in value or len(value) > 256}
    for log in folder.glob("*.log"):
        assert SECRET not in log.read_text(), log
