"""The collector's doors over HTTP: what is stored and answered, and what is refused with which reason."""

import asyncio
import gzip
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector import doors
from pipeline.collector.admit import Admission
from pipeline.collector.dialects import Offered, otlp
from pipeline.common.logs import JsonFormatter
from tests.support.collector_in_process import Serving, room_in_the_minute, serving
from tests.support.usage_events import ORG, EventMill, array

CANARY = "canary-6f1d"
DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as found:
        yield found


def event(**more: Any) -> dict[str, Any]:
    (body,) = EventMill(seed=9).events(1)
    found: dict[str, Any] = json.loads(body)
    return {**found, "eventId": str(uuid.uuid4()), **more}


def snake(given: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name): value for name, value in given.items()}


def envelope(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "1",
        "source": "/gateway",
        "type": "analytics.usage.v1",
        "data": given,
    }


# --- what is taken ---------------------------------------------------------------------------------


async def test_every_form_of_an_event_is_stored_as_the_same_canonical_event(collector: Serving) -> None:
    given = [event() for _ in range(14)]
    with_more = [{**one, "prompt": CANARY, "nested": {"eventId": CANARY}} for one in given]
    lines = "\n".join(map(json.dumps, with_more[3:6])).encode() + b"\n\n"
    batch = [envelope(one) for one in with_more[9:11]]
    binary = {"ce_specversion": "1.0", "ce_type": "analytics.usage.v1", "ce_id": "1", "ce_source": "/g"}
    answers = [
        await collector.post(with_more[0]),
        await collector.post(with_more[1:3]),
        await collector.post(lines, Content_Type="application/x-ndjson"),
        await collector.post(snake(with_more[6])),
        await collector.post(envelope(with_more[7])),
        await collector.post(envelope(snake(with_more[8])), Content_Type="application/cloudevents+json"),
        await collector.post(batch, Content_Type="application/cloudevents-batch+json"),
        await collector.post(with_more[11], **binary),
        await collector.post(gzip.compress(json.dumps(with_more[12:]).encode()), Content_Encoding="gzip"),
    ]
    assert [answer.status for answer in answers] == [200] * 9
    assert [answer.json for answer in answers] == [
        {"accepted": count, "rejected": []} for count in (1, 2, 3, 1, 1, 1, 2, 1, 2)
    ]
    stored = await collector.stored()
    assert [json.loads(body) for body in stored] == given
    assert not any(CANARY.encode() in body for body in stored)


async def test_numbers_keep_every_digit_that_the_sender_wrote(collector: Serving) -> None:
    (body,) = EventMill(seed=4).events(1)
    cost = b'"costEstimateCents":0.1234567890123456789'
    before, _, after = body.partition(b'"costEstimateCents":')
    exact = before + cost + after[after.index(b",") :]
    assert (await collector.post(exact)).status == 200
    assert cost in (await collector.stored())[0]


async def test_faulty_events_are_rejected_by_index_and_the_others_stored(collector: Serving) -> None:
    good = [event(), event()]
    answer = await collector.post([good[0], event(latencyMs=-1), good[1], {}, event(status="ok", clientId=7)])
    assert answer.status == 200
    rejected = answer.json["rejected"]
    assert answer.json["accepted"] == 2
    assert [one["index"] for one in rejected] == [1, 3, 4]
    assert [error["field"] for error in rejected[2]["errors"]] == ["clientId", "status"]
    assert "must lie between 0 and" in rejected[0]["errors"][0]["message"]
    assert await collector.events() == good


async def test_faults_are_named_as_the_sender_spells_the_field(collector: Serving) -> None:
    bad = event(latencyMs=-1)
    answers = [await collector.post(body) for body in (bad, snake(bad), envelope(snake(bad)))]
    fields = [answer.json["rejected"][0]["errors"][0]["field"] for answer in answers]
    assert fields == ["latencyMs", "latency_ms", "data.latency_ms"]


async def test_with_atomic_one_fault_keeps_everything_out(collector: Serving) -> None:
    answer = await collector.post([event(), event(status="ok"), event()], "/v1/events?atomic=true")
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [one["index"] for one in answer.json["rejected"]] == [1]
    assert "1 of 3 items is faulty, so nothing was taken. Item 1: status: expected" in answer.json["detail"]
    assert await collector.stored() == []
    assert (await collector.post([event()], "/v1/events?atomic=true")).status == 200
    assert (await collector.post([event(), {}], "/v1/events?atomic=false")).status == 200


async def test_a_body_of_faulty_events_alone_is_a_400_with_the_same_list(collector: Serving) -> None:
    answer = await collector.post([{}, event(status="ok")])
    assert answer.status == 400
    assert answer.json["type"] == "urn:spendstream:problem:invalid-events"
    assert [one["index"] for one in answer.json["rejected"]] == [0, 1]


async def test_a_body_without_items_is_taken(collector: Serving) -> None:
    assert (await collector.post([])).json == {"accepted": 0, "rejected": []}


async def test_an_event_that_is_sent_again_is_stored_again_for_the_worker_to_count_once(
    collector: Serving,
) -> None:
    given = event()
    for _ in range(2):
        assert (await collector.post(given)).status == 200
    assert await collector.events() == [given, given]


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1, 2", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"nul", "not JSON"),
        (b"[" * 100_000, ""),
        (b'{"a":' * 100_000, ""),
        (b"[" * 10_000 + b"]" * 10_000, "nested"),
    ],
    ids=["empty", "open", "cut", "bytes", "mark", "word", "deep", "deep objects", "deep and closed"],
)
async def test_a_body_that_is_no_json_is_a_400_with_the_reason(
    collector: Serving, body: bytes, said: str
) -> None:
    answer = await collector.post(body)
    assert answer.status == 400
    assert said in answer.body.decode()


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/v1/events", "text/plain", 415),
        ("/v1/events", "application/x-protobuf", 415),
        ("/v1/events", "application/x-www-form-urlencoded", 415),
        ("/v1/events", "application/json; charset=latin-1", 415),
        ("/v1/events", "application/json; charset=UTF-8", 200),
        ("/v1/events", "Application/JSON", 200),
        ("/v1/litellm", "application/cloudevents+json", 415),
        ("/v1/traces", "application/x-ndjson", 415),
    ],
)
async def test_a_door_takes_its_content_types_alone_and_names_them(
    collector: Serving, path: str, content_type: str, status: int
) -> None:
    answer = await collector.post(event(), path, Content_Type=content_type)
    assert answer.status == status
    if status == 415:
        assert "application/json" in answer.headers["Accept"]


async def test_an_encoding_that_is_unknown_is_a_415_that_names_ours(collector: Serving) -> None:
    answer = await collector.post(event(), Content_Encoding="br")
    assert (answer.status, answer.headers["Accept-Encoding"]) == (415, "gzip, zstd, identity")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?orgId=1", "orgId"),
        ("?atomic=yes", "atomic"),
        ("?atomic=true&atomic=false", "atomic"),
        ("?atomic=true&atomic=true", "atomic"),
    ],
)
async def test_an_unknown_parameter_is_refused(collector: Serving, query: str, field: str) -> None:
    answer = await collector.post(event(), f"/v1/events{query}")
    assert (answer.status, answer.json["errors"][0]["field"]) == (400, field)
    assert await collector.stored() == []


async def test_unknown_paths_and_methods_are_problems_with_a_request_id(collector: Serving) -> None:
    for method, path, status in (
        ("POST", "/v1/event", 404),
        ("GET", "/v1/events", 405),
        ("PUT", "/metrics", 405),
    ):
        answer = await collector.ask(method, path)
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["instance"] == f"urn:uuid:{answer.headers['X-Request-ID']}"


async def test_more_items_than_the_bound_are_a_413_and_none_is_stored(tmp_path: Path) -> None:
    async with serving(tmp_path, COLLECTOR_EVENTS_MAX="600") as collector:
        mill = EventMill(seed=3)
        assert (await collector.post(array(mill.events(600)))).json["accepted"] == 600
        answer = await collector.post(array(mill.events(601)))
        assert answer.status == 413
        assert "COLLECTOR_EVENTS_MAX" in answer.json["detail"]
        assert len(await collector.stored()) == 600
        answer = await collector.post(b"{}\n" * 100_000, Content_Type="application/x-ndjson")
        assert answer.status == 413


async def test_events_that_are_much_larger_than_their_body_are_a_413(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialect may say the same of many events in few bytes, such as the attributes of a resource of
    spans."""
    (large,) = EventMill(seed=1).events(1)
    large = json.dumps({**json.loads(large), "metadata": {"a": "x" * 60_000}}, separators=(",", ":")).encode()

    def read(body: bytes, *_: Any) -> Iterator[Offered]:
        return (Offered(event=large) for _ in range(1000))

    monkeypatch.setattr(doors, "_events", read)
    door = doors.Door(path="/v1/large", dialect="events", content_types=("application/json",), read=read)
    monkeypatch.setattr(doors, "DOORS", (*doors.DOORS, door))
    async with serving(tmp_path) as collector:
        answer = await collector.post({}, "/v1/large")
        assert answer.status == 413
        assert "COLLECTOR_UNPACKED_BYTES_MAX" in answer.json["detail"]
        assert await collector.stored() == []


async def test_many_rejected_items_make_no_endless_answer(collector: Serving) -> None:
    (good,) = EventMill(seed=1).events(1)
    answer = await collector.post([json.loads(good), *[{}] * 5000])
    assert answer.status == 200
    assert [one["index"] for one in answer.json["rejected"]] == list(range(1, 5001))
    assert len(answer.json["rejected"][0]["errors"]) == 8
    assert len(answer.json["rejected"][-1]["errors"]) == 1
    assert len(answer.body) < 100 * 5000


# --- ids, logs, metrics, health --------------------------------------------------------------------


async def test_a_request_id_and_a_traceparent_are_kept_in_answer_and_log(
    collector: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for body in (event(), {}):
        answer = await collector.post(body, X_Request_ID="gateway/17", traceparent=traceparent)
        assert (answer.headers["X-Request-ID"], answer.headers["traceparent"]) == ("gateway/17", traceparent)
    served = [record.__dict__ for record in caplog.records if record.message == "request_served"]
    assert {(one["request_id"], one["traceparent"]) for one in served} == {("gateway/17", traceparent)}


async def test_without_debug_the_log_has_the_refused_requests_alone(
    collector: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await collector.post(event(), X_Request_ID="taken")
    await collector.post({}, X_Request_ID="refused")
    served = [record.__dict__ for record in caplog.records if record.message == "request_served"]
    assert [one["request_id"] for one in served] == ["refused"]
    page = DOCS.joinpath("howto/collector.md").read_text()
    assert "in the log line `request_served` of each request that was refused" in page


@pytest.mark.parametrize("given", ["a b", "x" * 129, "caf\u00e9", ""])
async def test_a_request_id_of_another_form_gives_way_to_one_of_ours(collector: Serving, given: str) -> None:
    answer = await collector.post(event(), X_Request_ID=given, traceparent="00-abc")
    assert str(uuid.UUID(answer.headers["X-Request-ID"])) == answer.headers["X-Request-ID"]
    assert "traceparent" not in answer.headers


async def test_no_log_line_holds_anything_of_a_body(
    collector: Serving,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"cannot read {CANARY}")

    for body in (
        event(prompt=CANARY),
        event(status=CANARY),
        {CANARY: CANARY},
        CANARY,
        f'{{"a": {CANARY}'.encode(),
        f'["{CANARY}'.encode(),
    ):
        await collector.post(body)
    await collector.post(CANARY.encode(), Content_Encoding="gzip")
    monkeypatch.setattr(Admission, "_take_part", broken)
    answer = await collector.post(event())
    assert (answer.status, CANARY in answer.body.decode()) == (500, False)
    lines = [JsonFormatter("test").format(record) for record in caplog.records]
    failed = [json.loads(line) for line in lines if '"request_failed"' in line]
    assert [line["fault"] for line in failed] == ["RuntimeError"]
    assert "admit.py" in failed[0]["places"]
    assert answer.json["instance"] == f"urn:uuid:{failed[0]['request_id']}"
    assert len(lines) > 8
    assert not [line for line in lines if CANARY in line]


async def test_no_answer_quotes_an_unknown_field(collector: Serving) -> None:
    for body in (
        {CANARY: CANARY},
        [event(), {"eventId": CANARY, CANARY: CANARY}],
        event(prompt=CANARY, status="ok"),
        envelope({**event(), CANARY: 1, "status": CANARY}),
    ):
        answer = await collector.post(body)
        assert CANARY not in answer.body.decode()


async def test_metrics_count_requests_events_and_confirmations_with_bounded_labels(
    collector: Serving,
) -> None:
    await collector.post([event(), event(), {}])
    await collector.post([event(), {}], "/v1/events?atomic=true")
    await collector.ask("POST", f"/v1/{CANARY}")
    await collector.ask("TRACE", "/v1/events")
    answer = await collector.ask("GET", "/metrics")
    lines = answer.body.decode().splitlines()
    for line in (
        'http_requests_total{method="POST",route="/v1/events",status="200"} 1.0',
        'http_requests_total{method="POST",route="/v1/events",status="400"} 1.0',
        'http_requests_total{method="POST",route="unmatched",status="404"} 1.0',
        'http_requests_total{method="other",route="unmatched",status="405"} 1.0',
        'analytics_collector_events_total{dialect="events",outcome="stream"} 2.0',
        'analytics_collector_events_total{dialect="events",outcome="rejected"} 2.0',
        'analytics_collector_events_total{dialect="events",outcome="withdrawn"} 1.0',
        "analytics_collector_confirm_seconds_count 1.0",
        "analytics_collector_in_work_bytes 0.0",
    ):
        assert line in lines, line
    assert CANARY not in answer.body.decode()
    assert str(ORG) not in answer.body.decode()


async def test_health_says_how_each_part_is(collector: Serving) -> None:
    assert (await collector.ask("GET", "/status/healthz")).body == b"OK"
    answer = await collector.ask("GET", "/status/readyz")
    assert answer.status == 200
    assert {name: part["status"] for name, part in answer.json["components"].items()} == {
        "stream": "ok",
        "spool": "off",
        "database": "off",
    }


async def test_faults_are_in_the_log_once_a_minute_for_each_caller_and_dialect(
    collector: Serving, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        answer = await collector.post([event(), event(latencyMs=-1), event(status="odd")])
        assert (answer.status, answer.json["accepted"]) == (200, 1)
    used = {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}}
    span = {"traceId": "00", "spanId": "00", "attributes": [used]}
    spans = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    await collector.post(spans, "/v1/traces")
    await collector.post(b"[", "/v1/litellm")
    monkeypatch.setattr(otlp, "JSON_VALUES_MAX", 2)
    assert (await collector.post(spans, "/v1/traces")).status == 413
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [(record.message, record.__dict__["dialect"]) for record in said] == [
        ("events_rejected", "events"),
        ("events_rejected", "traces"),
        ("body_unreadable", "litellm"),
        ("body_too_large", "traces"),
    ]
    first = said[0].__dict__
    assert (first["count"], first["items"], first["actor"]) == (2, 3, "local")
    assert first["fault"].startswith("1: latencyMs: must lie between")


async def test_a_sender_is_told_that_the_spool_is_full_and_nothing_of_our_servers(tmp_path: Path) -> None:
    settings = {"COLLECTOR_SPOOL": str(tmp_path / "spool"), "COLLECTOR_SPOOL_BYTES_MAX": "1MiB"}
    settings |= {"RABBITMQ_URL": "rabbitmq-stream://127.0.0.1:1/", "COLLECTOR_SPOOL_AFTER": "10ms"}
    async with serving(tmp_path, **settings) as collector:
        assert (await collector.post([event() for _ in range(1000)])).status == 200
        for _ in range(9):
            answer = await collector.post([event() for _ in range(1000)])
            if answer.status != 200:
                break
    assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    assert "spool is full (COLLECTOR_SPOOL_BYTES_MAX)" in answer.json["detail"]
    assert "send them again" in answer.json["detail"]
    assert "127.0.0.1" not in answer.json["detail"]


async def test_a_stopping_collector_finishes_what_is_in_work_and_refuses_the_rest(
    collector: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlet = collector.collector.intake._outlet
    assert outlet is not None
    going, may_go_on, send = asyncio.Event(), asyncio.Event(), outlet.send

    async def held(*arguments: Any) -> Any:
        going.set()
        await may_go_on.wait()
        return await send(*arguments)

    monkeypatch.setattr(outlet, "send", held)
    in_work = asyncio.create_task(collector.post(event()))
    await going.wait()
    finishing = asyncio.create_task(collector.collector.finish())
    await asyncio.sleep(0)
    refused = await collector.post(event())
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert (await collector.ask("GET", "/status/readyz")).status == 503
    assert (await collector.ask("GET", "/status/healthz")).status == 200
    assert not finishing.done()
    may_go_on.set()
    assert (await in_work).status == 200
    await finishing


async def test_a_caller_over_its_rate_limit_gets_a_429(tmp_path: Path) -> None:
    async with serving(tmp_path, COLLECTOR_RATE_LIMIT="3") as collector:
        await room_in_the_minute()
        answers = [await collector.post(event()) for _ in range(5)]
    refused = answers[-1]
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert "COLLECTOR_RATE_LIMIT" in refused.json["detail"]
    assert refused.headers["RateLimit-Policy"] == '"caller";q=3;w=60'


async def test_idle_connections_keep_nobody_out(tmp_path: Path) -> None:
    async with serving(tmp_path, COLLECTOR_CONNECTIONS_MAX="5") as collector:
        idle = [await asyncio.open_connection("127.0.0.1", collector.port) for _ in range(20)]
        for _, writer in idle:
            writer.write(b"POST /v1/events HTTP/1.1\r\n")  # a head that never ends
        for _ in range(3):
            assert (await collector.post(event())).status == 200
        for _, writer in idle:
            writer.close()


async def test_pages_of_a_named_origin_may_send_events(tmp_path: Path) -> None:
    origin = "http://localhost:3000"
    async with serving(tmp_path, CORS_ORIGINS=origin) as collector:
        asking = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = await collector.ask("OPTIONS", "/v1/events", headers=asking)
        assert preflight.status == 204
        assert "Content-Encoding" in preflight.headers["Access-Control-Allow-Headers"]
        answer = await collector.post(event(), Origin=origin)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
        refused = await collector.post({}, Origin=origin)
        assert refused.headers["Access-Control-Allow-Origin"] == origin


async def test_the_span_of_the_page_is_taken_as_the_page_says(collector: Serving, tmp_path: Path) -> None:
    page = (DOCS / "howto/collect-opentelemetry.md").read_text()
    (block,) = [one for one in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "span.json" in one]

    async def run(script: str) -> str:
        assert script.count("localhost:8086") == 1
        script = script.replace("localhost:8086", f"127.0.0.1:{collector.port}").replace("$KEY", "none")
        script = script.replace(' -H "X-API-Key: none"', "")
        shell = await asyncio.create_subprocess_exec(
            "bash", "-eu", "-c", script, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await shell.communicate()
        assert shell.returncode == 0
        return said.decode()

    assert await run(block) == "{}"
    (stored,) = await collector.events()
    assert (stored["modelName"], stored["inputTokens"], stored["outputTokens"]) == ("gpt-4o-mini", 1450, 260)
    without = re.sub(r',\s*\{"key": "gen_ai.usage.*(?=\]\}\]\}\]\}\]\})', "", block, flags=re.DOTALL)
    assert "gen_ai.usage" not in without
    assert await run(without) == "{}", "a span that is no call is passed over"
    assert len(await collector.stored()) == 1
    faulty = block.replace('"1450"', '"-1"')
    assert "gen_ai.usage.input_tokens: must lie between" in json.loads(await run(faulty))["message"]
    (right,) = re.findall(r'"spans": \[(.*)\]\}\]\}\]\}\nEOF', block, re.DOTALL)
    both = json.loads(await run(faulty.replace('"spans": [', f'"spans": [{right}, ')))
    assert both["partialSuccess"]["rejectedSpans"] == "1"
    assert len(await collector.stored()) == 2
