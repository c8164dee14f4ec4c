"""Spans to events: what real SDKs sent, in both encodings; each call counts once."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pipeline.collector import ids
from pipeline.collector.dialects import Offered, TooMuch, Unreadable, gen_ai, otlp, protobuf
from pipeline.core import wire

FOLDER = Path(__file__).resolve().parents[2] / "data/otlp"
ORG = UUID("5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e")
END_US = 1_795_428_000_250_000
SUCCESS, ERROR, TIMEOUT, THROTTLED = range(4)
USAGE: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.usage.input_tokens": 1450,
    "gen_ai.usage.output_tokens": 260,
}
Attributes = dict[str, Any]


def any_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        made = AnyValue()
        made.array_value.values.extend(map(any_value, value))
        return made
    return AnyValue(string_value=value)


def pairs(attributes: Attributes) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def span(
    number: int = 1,
    parent: int = 0,
    *,
    trace: int = 1,
    ms: tuple[int, int] = (0, 812),
    error: str | None = None,
    exception: str = "",
    **attributes: Any,
) -> Span:
    """A span of 812 ms that ends at `END_US`. Names of attributes may have ``__`` for a point."""
    given = {name.replace("__", "."): value for name, value in attributes.items()}
    made = Span(
        trace_id=trace.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name="CANARY name",
        start_time_unix_nano=END_US * 1000 + (ms[0] - 812) * 1_000_000,
        end_time_unix_nano=END_US * 1000 + (ms[1] - 812) * 1_000_000,
        attributes=pairs(given),
    )
    if error is not None:
        made.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=error))
    if exception:
        made.events.add(
            name="exception", attributes=pairs({"exception.type": exception, "exception.message": "CANARY"})
        )
    return made


def request(
    *spans: Span, scope: str = "my.app", resource: Attributes | None = None
) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    of_resource = made.resource_spans.add()
    of_resource.resource.attributes.extend(pairs(resource or {}))
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = scope
    of_scope.spans.extend(spans)
    return made


def as_json(made: ExportTraceServiceRequest, *, numbers: bool = False) -> bytes:
    """OTLP's own JSON: ids in hexadecimal digits."""
    given = MessageToDict(made)
    for of_resource in given.get("resourceSpans", []):
        for of_scope in of_resource.get("scopeSpans", []):
            for one, real in zip(
                of_scope.get("spans", []), made.resource_spans[0].scope_spans[0].spans, strict=True
            ):
                one |= {"traceId": real.trace_id.hex(), "spanId": real.span_id.hex().upper()}
                one["parentSpanId"] = real.parent_span_id.hex()
                if numbers:
                    one["endTimeUnixNano"] = int(one.get("endTimeUnixNano", 0))
                    one["status"] = {**one.get("status", {}), "code": real.status.code}
    return json.dumps(given).encode()


def offered(body: bytes, *, default_org: UUID | None = ORG, **how: Any) -> list[Offered]:
    return list(otlp.read(body, default_org=default_org, **how))


def both(*spans: Span, default_org: UUID | None = ORG, **how: Any) -> list[Offered]:
    """What spans offer; the same in protobuf and in JSON."""
    made = request(*spans, **how)
    found = offered(made.SerializeToString(), default_org=default_org)
    assert (
        offered(as_json(made), default_org=default_org, content_type="application/json; charset=utf-8")
        == found
    )
    assert (
        offered(as_json(made, numbers=True), default_org=default_org, content_type="application/json")
        == found
    )
    assert len(found) == len(spans)
    return found


def event(one: Span, **how: Any) -> wire.Event:
    [found] = both(one, **how)
    assert isinstance(found.event, bytes), found
    read = wire.read(found.event)
    assert isinstance(read, wire.Event)
    return read


def counted(found: list[Offered]) -> list[bool]:
    assert all(not one.faults for one in found)
    return [not one.passed_over for one in found]


def test_a_call_of_the_current_conventions_arrives_whole() -> None:
    one = span(
        **{
            **USAGE,
            "gen_ai.usage.cache_read.input_tokens": 1000,
            "gen_ai.usage.cache_creation.input_tokens": 200,
            "gen_ai.usage.reasoning.output_tokens": 64,
            "openai.response.service_tier": "flex",
            "gen_ai.input.messages": "CANARY",
        },
    )
    assert event(one, resource={"service.name": "shop"}) == wire.Event(
        event_id=ids.event_id(ORG, "otlp", f"{1:032x}-{1:016x}"),
        org_id=ORG,
        model_id=ids.model_id("openai", "gpt-4o-2024-08-06"),
        client_id="shop",
        occurred_us=END_US,
        latency_ms=812,
        status=SUCCESS,
        error_code="",
        input_tokens=1450,
        output_tokens=260,
        cost_microcents=None,
        cache_read_tokens=1000,
        cache_write_tokens=200,
        reasoning_tokens=64,
        service_tier=wire.SERVICE_TIERS.index("flex"),
        provider="openai",
        model_name="gpt-4o-2024-08-06",
    )


# --- what real SDKs sent ---------------------------------------------

O4 = ("openai", "o4-mini-2025-04-16", 2006, 300, 1920, 0, 0, 192)
CLAUDE = ("anthropic", "claude-sonnet-4-5", 2450, 77, 1000, 200, 1000, 0)
EMBEDDING = ("openai", "text-embedding-3-small", 8, 0, 0, 0, 0, 0)
FAILED = ("openai", "o4-mini", 0, 0, 0, 0, 0, 0)
RESPONSES = ("openai", "gpt-4o", 1500, 90, 1024, 0, 0, 64)


def less(call: tuple[Any, ...], **changes: int) -> tuple[Any, ...]:
    """A call whose SDK does not report all kinds of tokens."""
    names = ("cache_read", "cache_write", "cache_write_1h", "reasoning")
    return (*call[:4], *(changes.get(name, value) for name, value in zip(names, call[4:], strict=True)))


CALLS: dict[str, list[tuple[int, tuple[Any, ...]]]] = {
    "vercel-5.json": [
        (SUCCESS, less(O4, cache_read=0, reasoning=0)),
        (SUCCESS, CLAUDE),
        (SUCCESS, O4),
        (SUCCESS, EMBEDDING),
        (ERROR, FAILED),
    ],
    "vercel-6.json": [(SUCCESS, O4), (SUCCESS, CLAUDE), (SUCCESS, O4), (SUCCESS, EMBEDDING), (ERROR, FAILED)],
    "vercel-7.json": [
        (SUCCESS, less(O4, reasoning=0)),
        (SUCCESS, less(CLAUDE, cache_write=1200, cache_write_1h=0)),
        (SUCCESS, less(O4, reasoning=0)),
        (SUCCESS, EMBEDDING),
        (THROTTLED, FAILED),
    ],
    "traceloop.pb": [
        (SUCCESS, O4),
        (SUCCESS, less(O4, reasoning=0)),
        (SUCCESS, RESPONSES),
        (SUCCESS, EMBEDDING),
        (THROTTLED, FAILED),
        (SUCCESS, CLAUDE),
        (TIMEOUT, FAILED),
    ],
    "openinference.pb": [
        (SUCCESS, O4),
        (SUCCESS, O4),
        (SUCCESS, RESPONSES),
        (SUCCESS, EMBEDDING),
        (SUCCESS, CLAUDE),
        (THROTTLED, FAILED),
        (TIMEOUT, FAILED),
    ],
    "langchain.pb": [(SUCCESS, O4), (THROTTLED, FAILED)],
    "pydantic.pb": [(SUCCESS, O4), (SUCCESS, O4)],
}


@pytest.mark.parametrize("name", CALLS)
def test_what_an_sdk_sent_counts_each_call_once_with_all_its_tokens(name: str) -> None:
    """Agents, chains and second instrumentations are around most of the calls, with the same tokens."""
    body = (FOLDER / name).read_bytes()
    content_type = "application/json" if name.endswith("json") else "application/x-protobuf"
    found = offered(body, content_type=content_type)
    assert sum(one.passed_over for one in found) >= 1
    events = [wire.read(one.event) for one in found if isinstance(one.event, bytes)]
    assert len(events) + sum(one.passed_over for one in found) == len(found)
    made = [
        (
            read.status,
            (
                *(read.provider, read.model_name, read.input_tokens, read.output_tokens),
                *(
                    read.cache_read_tokens,
                    read.cache_write_tokens,
                    read.cache_write_1h_tokens,
                    read.reasoning_tokens,
                ),
            ),
        )
        for read in events
        if isinstance(read, wire.Event)
    ]
    assert made == CALLS[name]
    assert b"CANARY" in body
    assert "CANARY" not in str(found)
    assert {read.client_id for read in events if isinstance(read, wire.Event)} == {"shop"}
    org = None if name == "vercel-7.json" else "acme"  # this SDK has no metadata any more
    assert {one.org_name for one in found if one.event} == {org}
    assert offered(body, content_type=content_type) == found


def test_an_estimate_is_taken_where_the_sdk_has_one() -> None:
    found = offered((FOLDER / "pydantic.pb").read_bytes())
    assert b'"costEstimateCents":"0.19426"' in (found[0].event or b"")
    assert event(span(**USAGE, llm__cost__total=0.0125)).cost_microcents == 1_250_000


# --- names ---------------------------------------------


@pytest.mark.parametrize(
    ("scope", "attributes"),
    [
        (
            "x",
            {
                "gen_ai.system": "p",
                "gen_ai.request.model": "m",
                "gen_ai.usage.prompt_tokens": 9,
                "gen_ai.usage.completion_tokens": 5,
                "gen_ai.usage.cache_read_input_tokens": 3,
            },
        ),
        (
            "opentelemetry.instrumentation.openai.v1",
            {
                "gen_ai.system": "p",
                "llm.request.model": "m",
                "llm.usage.prompt_tokens": 9,
                "llm.usage.completion_tokens": 5,
                "gen_ai.usage.cache_read_input_tokens": 3,
            },
        ),
        (
            "openinference.instrumentation.groq",
            {
                "llm.provider": "p",
                "llm.model_name": "m",
                "llm.token_count.prompt": 9,
                "llm.token_count.completion": 5,
                "llm.token_count.prompt_details.cache_read": 3,
            },
        ),
        (
            "",
            {
                "llm.provider": "p",
                "llm.model_name": "m",
                "llm.token_count.prompt": 9,
                "llm.token_count.completion": 5,
                "llm.token_count.prompt_details.cache_read": 3,
            },
        ),
        (
            "ai",
            {
                "ai.operationId": "ai.generateText.doGenerate",
                "ai.model.provider": "p.chat",
                "ai.model.id": "m",
                "ai.usage.promptTokens": 9,
                "ai.usage.completionTokens": 5,
                "ai.usage.cachedInputTokens": 3,
            },
        ),
        (
            "pydantic-ai",
            {
                "gen_ai.system": "p",
                "gen_ai.response.model": "m",
                "gen_ai.request.model": "other",
                "gen_ai.usage.input_tokens": 9,
                "gen_ai.usage.output_tokens": 5,
                "gen_ai.usage.details.cached_tokens": 3,
            },
        ),
    ],
)
def test_older_and_other_names_mean_the_same(scope: str, attributes: Attributes) -> None:
    read = event(span(**attributes), scope=scope)
    assert (read.provider, read.model_name) == ("p", "m")
    assert (read.input_tokens, read.output_tokens, read.cache_read_tokens) == (9, 5, 3)


def test_anthropics_cached_tokens_are_added_where_they_were_left_outside() -> None:
    """The Vercel AI SDK 5 says 5,000 input tokens for 5,000 new ones and 1,000 from the cache."""
    given: Attributes = {
        "ai.operationId": "ai.streamText.doStream",
        "ai.model.id": "m",
        "ai.usage.inputTokens": 5000,
    }
    given |= {"ai.usage.cachedInputTokens": 1000, "ai.usage.outputTokens": 1}
    assert (
        event(span(**{**given, "ai.model.provider": "anthropic.messages"}), scope="ai").input_tokens == 6000
    )
    assert event(span(**{**given, "ai.model.provider": "openai.chat"}), scope="ai").input_tokens == 5000
    inside = {
        **given,
        "ai.model.provider": "anthropic.messages",
        "ai.usage.inputTokenDetails.noCacheTokens": 4000,
    }
    assert event(span(**inside), scope="ai").input_tokens == 5000
    outside: Attributes = {**USAGE, "gen_ai.usage.cache_read.input_tokens": 2000}
    assert event(span(**outside)).input_tokens == 3450, "more than the whole cannot be inside"


def test_org_client_actor_and_metadata_come_from_the_span_else_from_the_resource() -> None:
    actor = "0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69"
    resource: Attributes = {
        "service.name": "shop",
        "spendstream.org_id": "acme",
        "spendstream.metadata.team": "search",
        "spendstream.metadata.region": "eu",
        "deployment.environment.name": "prod",
        "host.name": "CANARY",
    }
    [found] = both(span(**USAGE), resource=resource, default_org=None)
    assert found.org_name == "acme"
    read = event(span(**USAGE), resource=resource)
    assert (read.org_id, read.client_id) == (ids.org_id("acme"), "shop")
    assert read.metadata == {"team": "search", "region": "eu", "environment": "prod"}
    own: Attributes = {
        "spendstream.org_id": str(ORG),
        "spendstream.client_id": "key-1",
        "spendstream.metadata.team": "ads",
        "enduser.id": actor,
    }
    read = event(span(**USAGE, **own), resource=resource)
    assert (read.org_id, read.client_id, read.actor_id) == (ORG, "key-1", actor)
    assert read.metadata == {"team": "ads", "region": "eu", "environment": "prod", "user": actor}
    for carrier in gen_ai.CARRIERS:
        carried: Attributes = {
            f"{carrier}spendstream.org_id": "acme",
            f"{carrier}spendstream.metadata.team": "ads",
            f"{carrier}x": "CANARY",
        }
        read = event(span(**USAGE, **carried))
        assert (read.org_id, read.metadata) == (ids.org_id("acme"), {"team": "ads"})
    assert event(span(**USAGE), resource={"service.name": "unknown_service:node"}).client_id == ""


def test_without_an_org_a_call_is_a_fault_that_says_how_to_name_one() -> None:
    found = both(span(**USAGE), span(2), default_org=None)
    [fault] = found[0].faults
    assert fault.field == "spendstream.org_id"
    assert "name the org" in fault.message
    assert found[1].passed_over


# --- outcomes ---------------------------------------------

CALL: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


@pytest.mark.parametrize(
    ("attributes", "message", "exception", "status", "code"),
    [
        ({}, "CANARY it broke", "", ERROR, ""),
        ({"error.type": "RateLimitError"}, "CANARY", "", THROTTLED, "RateLimitError"),
        ({"error.type": "429"}, "CANARY", "", THROTTLED, "429"),
        ({"http.response.status_code": 429}, "CANARY", "", THROTTLED, "429"),
        ({"http.status_code": 429}, "", "openai.AuthError", THROTTLED, "AuthError"),
        (
            {"error.type": "_OTHER"},
            "CANARY",
            "google.api_core.exceptions.TooManyRequests",
            THROTTLED,
            "TooManyRequests",
        ),
        ({"error.type": "APITimeoutError"}, "", "", TIMEOUT, "APITimeoutError"),
        ({"http.response.status_code": 504}, "", "", TIMEOUT, "504"),
        ({}, "APITimeoutError: CANARY", "", TIMEOUT, "APITimeoutError"),
        ({}, "", "asyncio.exceptions.TimeoutError", TIMEOUT, "TimeoutError"),
        ({"error.type": "CANARY with spaces"}, "", "httpx.ReadError", ERROR, "ReadError"),
        ({"error.type": "x" * 100}, "", "", ERROR, ""),
    ],
)
def test_a_failed_call_is_an_error_a_timeout_or_throttled(
    attributes: Attributes, message: str, exception: str, status: int, code: str
) -> None:
    read = event(span(**CALL, **attributes, error=message, exception=exception))
    assert (read.status, read.error_code, read.input_tokens, read.output_tokens) == (status, code, 0, 0)
    assert read.cost_microcents is None
    with_tokens = event(span(**USAGE, **attributes, error=message, exception=exception))
    assert (with_tokens.status, with_tokens.input_tokens) == (status, 1450)


def test_a_failure_that_is_no_call_of_a_model_is_passed_over() -> None:
    found = both(
        span(1, error="", http__route="/chat"),
        span(2, error="", **{**CALL, "gen_ai.operation.name": "execute_tool"}),
        span(3, error="", gen_ai__operation__name="chat"),
        span(4, error="", **{**CALL, "openinference.span.kind": "CHAIN"}),
        span(5, **CALL),
    )
    assert counted(found) == [False] * 5


# --- a call counts once ---------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        {"gen_ai.operation.name": "invoke_agent"},
        {"gen_ai.operation.name": "execute_tool"},
        {"gen_ai.operation.name": "invoke_workflow"},
        {"gen_ai.operation.name": "agent_step"},
        {"openinference.span.kind": "AGENT"},
        {"openinference.span.kind": "CHAIN"},
        {"openinference.span.kind": True},
        {"traceloop.span.kind": "workflow"},
        {"langsmith.span.kind": "chain"},
        {"langfuse.observation.type": "span"},
        {"ai.operationId": "ai.generateText"},
        {"ai.operationId": "ai.streamObject"},
    ],
)
def test_a_span_around_calls_is_passed_over_although_it_repeats_their_tokens(kind: Attributes) -> None:
    """Also where the calls inside came in an earlier body."""
    assert counted(both(span(**{**USAGE, **kind}))) == [False]


def test_a_span_with_a_call_inside_is_passed_over_whatever_it_calls_itself() -> None:
    outer, between, inner = span(1, **USAGE), span(2, 1), span(3, 2, **USAGE)
    for spans in ([outer, between, inner], [inner, between, outer], [inner, outer, between]):
        by_span = dict(zip((one.span_id[-1] for one in spans), counted(both(*spans)), strict=True))
        assert by_span == {1: False, 2: False, 3: True}
    assert counted(both(outer, span(3, 1, trace=2, **USAGE))) == [True, True], "another trace"
    assert counted(both(outer, between)) == [True, False]
    failed = span(4, 1, error="", **CALL)
    assert counted(both(failed, span(1, error="", **CALL))) == [True, False]


def test_spans_that_are_their_own_parents_end() -> None:
    assert counted(both(span(1, 1, **USAGE))) == [True]


@pytest.mark.parametrize("length", [2, 3, 5])
def test_calls_that_are_inside_of_themselves_are_rejected_by_name(length: int) -> None:
    circle = [span(n + 1, (n + 1) % length + 1, **USAGE) for n in range(length)]
    beside = [span(20, 1, **USAGE), span(21, **USAGE), span(1, trace=2, **USAGE)]
    found = both(*circle, *beside)
    assert [[fault.field for fault in one.faults] for one in found] == [
        *[["parentSpanId"]] * length,
        *[[]] * 3,
    ]
    assert counted(found[length:]) == [True] * 3
    around = [span(1, 2, gen_ai__operation__name="chat"), span(2, 1), span(3, 2, **USAGE)]
    assert counted(both(*around)) == [False, False, True], "no calls, so nothing is lost"


@pytest.mark.parametrize("given", [b"", b"1234", bytes(8)])
@pytest.mark.parametrize("field", ["span_id", "trace_id"])
def test_a_call_without_an_id_is_rejected_by_name_whatever_else_is_in_the_body(
    field: str, given: bytes
) -> None:
    bad = span(1, **USAGE)
    setattr(bad, field, given * (2 if field == "trace_id" else 1))
    root, child = span(2, **USAGE), span(3, trace=2, **USAGE)
    root.trace_id = bad.trace_id
    child.trace_id, child.parent_span_id = bad.trace_id, bad.span_id
    name = {"span_id": "spanId", "trace_id": "traceId"}[field]
    found = both(bad, root, child)
    assert [fault.field for fault in found[0].faults] == [name]
    assert not any(one.passed_over for one in found)


def test_of_two_instrumentations_of_one_call_the_inner_span_counts() -> None:
    """In traces of their own, as OpenLLMetry's and the Anthropic SDK's are: the answer's id joins them."""
    same = {**USAGE, "gen_ai.response.id": "msg_1"}
    outer, inner = span(1, trace=1, ms=(0, 812), **same), span(2, trace=2, ms=(10, 800), **same)
    assert counted(both(outer, inner)) == [False, True]
    assert counted(both(inner, outer)) == [True, False]
    assert counted(both(outer, span(2, trace=2, ms=(0, 812), **same))) == [True, False], (
        "as long: the first one"
    )
    for other in (
        span(2, trace=2, ms=(10, 900), **same),
        span(2, trace=2, ms=(10, 800), **{**same, "gen_ai.response.id": "msg_2"}),
        span(2, trace=2, ms=(10, 800), **{**same, "gen_ai.usage.input_tokens": 9}),
        span(2, trace=2, ms=(10, 800), **USAGE),
    ):
        assert counted(both(outer, other)) == [True, True]
    many = [span(n, trace=n, ms=(n, 800), **same) for n in range(1, 20)]
    assert all(counted(both(*many))), "an id that so many answers have is no id"


@pytest.mark.parametrize(
    ("start", "end", "field", "message"),
    [
        (0, 812, "startTimeUnixNano", "missing"),
        (1, 0, "endTimeUnixNano", "missing"),
        (END_US * 1000, 2**64 - 1, "endTimeUnixNano", "more than 2147483647 ms after startTimeUnixNano"),
        (1, END_US * 1000, "endTimeUnixNano", "more than 2147483647 ms after startTimeUnixNano"),
        ((END_US + 100_000_000) * 1000, END_US * 1000, "startTimeUnixNano", "more than 10 s after end"),
    ],
)
def test_a_wrong_time_is_named_with_its_reason(start: int, end: int, field: str, message: str) -> None:
    bad = span(**USAGE)
    bad.start_time_unix_nano, bad.end_time_unix_nano = start, end
    [found] = both(bad)
    assert [fault.field for fault in found.faults] == [field]
    assert message in found.faults[0].message


def test_a_span_that_comes_twice_is_the_same_event() -> None:
    first, second = both(span(**USAGE), span(**USAGE))
    assert first == second
    assert (
        event(span(2, **USAGE)).event_id
        != event(span(1, **USAGE)).event_id
        != event(span(1, trace=2, **USAGE)).event_id
    )


# --- bodies ---------------------------------------------


def test_a_span_that_breaks_a_rule_is_one_faulty_item() -> None:
    broken = span(3, **USAGE)
    broken.end_time_unix_nano = 0
    nameless = span(4, **{**USAGE, "gen_ai.response.model": ""})
    found = both(
        span(1, **USAGE), span(2, **{**USAGE, "gen_ai.usage.input_tokens": -1}), broken, nameless, span(5)
    )
    assert [[fault.field for fault in one.faults] for one in found] == [
        [],
        ["gen_ai.usage.input_tokens"],
        ["endTimeUnixNano"],
        ["gen_ai.response.model"],
        [],
    ]
    [no_ids] = both(
        Span(
            trace_id=b"\0" * 16,
            span_id=b"12345",
            start_time_unix_nano=1,
            end_time_unix_nano=2,
            attributes=pairs(USAGE),
        )
    )
    assert [fault.field for fault in no_ids.faults] == ["traceId", "spanId"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"traceId": "CANARY"}, "traceId"),
        ({"startTimeUnixNano": "CANARY"}, "startTimeUnixNano"),
        ({"endTimeUnixNano": 1.5}, "endTimeUnixNano"),
        ({"attributes": "CANARY"}, "attributes"),
        ({"attributes": ["CANARY"]}, "attributes"),
        ({"status": "CANARY"}, "status"),
        ({"events": {"CANARY": 1}}, "events"),
    ],
)
def test_a_broken_span_of_json_is_one_faulty_item(change: Attributes, field: str) -> None:
    given = json.loads(as_json(request(span(1, **USAGE), span(2, **USAGE))))
    given["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= change
    given["resourceSpans"][0]["scopeSpans"][0]["spans"].insert(1, "CANARY")
    found = offered(json.dumps(given).encode(), content_type="application/json")
    assert [[fault.field for fault in one.faults] for one in found] == [[field], ["span"], []]
    assert "CANARY" not in str(found)


def test_a_broken_span_of_protobuf_is_one_faulty_item() -> None:
    good = span(**USAGE).SerializeToString()
    spans = protobuf.field(2, good[:-1]) + protobuf.field(2, good) + protobuf.field(2, b"\x0a\x7f")
    body = protobuf.field(1, protobuf.field(2, spans))
    found = offered(body)
    assert [(one.event is None, len(one.faults)) for one in found] == [(True, 1), (False, 0), (True, 1)]


def test_names_of_enums_nulls_and_unknown_fields_of_json_are_read() -> None:
    given = json.loads(as_json(request(span(1, **CALL, error=""))))
    one = given["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert one["status"]["code"] == "STATUS_CODE_ERROR"
    expected = offered(json.dumps(given).encode(), content_type="application/json")
    one |= {"kind": "SPAN_KIND_CLIENT", "links": None, "events": None, "flags": 257, "new": [{"a": "CANARY"}]}
    given["resourceSpans"].append({"resource": None, "scopeSpans": None})
    given["resourceSpans"].append({"scopeSpans": [{"scope": None, "spans": None}, {}]})
    assert offered(json.dumps(given).encode(), content_type="application/json") == expected
    assert expected[0].event is not None
    for empty in (b"{}", b'{"resourceSpans": null}', b'{"resourceSpans": []}'):
        assert offered(empty, content_type="application/json") == []
    assert offered(b"") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"5",
        b"\xff",
        b'{"resourceSpans": 5}',
        b'{"resourceSpans": [5]}',
        b'{"resourceSpans": [{"scopeSpans": [[]]}]}',
        b'{"resourceSpans": [{"resource": []}]}',
        b"[" * 100_000,
        b'{"resourceSpans": ' + b"[" * 100_000,
    ],
)
def test_json_that_is_no_request_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        offered(body, content_type="application/json")


@pytest.mark.parametrize(
    "body", [b"{}", b"\x0a", b"\x0a\x05", b"\x08\x01\x0a", b"\x0a\x02\x12\x7f", b"\xff" * 50]
)
def test_bytes_that_are_no_request_are_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        offered(body)


def _bomb(empty: bytes) -> bytes:
    """8 MB of the smallest things that can be in a span."""
    return protobuf.field(1, protobuf.field(2, protobuf.field(2, empty * (8_000_000 // len(empty)))))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (protobuf.field(1, protobuf.field(2, b"\x12\x00" * 4_000_000)), "application/x-protobuf"),
        (_bomb(b"\x4a\x00"), "application/x-protobuf"),
        (_bomb(b"\x5a\x00"), "application/x-protobuf"),
        (_bomb(b"\x6a\x00"), "application/x-protobuf"),
        (_bomb(b"\x4a\x02\x0a\x00"), "application/x-protobuf"),
        (
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 2_000_000 + b"{}]}]}]}",
            "application/json",
        ),
        (
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":['
            + b"{}," * 2_000_000
            + b"{}]}]}]}]}",
            "application/json",
        ),
    ],
    ids=["spans", "attributes", "events", "links", "keys", "json spans", "json attributes"],
)
def test_a_bomb_is_too_much_in_bounded_time(body: bytes, content_type: str) -> None:
    started = time.process_time()
    with pytest.raises(TooMuch, match="more than"):
        offered(body, content_type=content_type)
    assert time.process_time() - started < 20


def test_batches_of_a_collector_with_as_many_attributes_as_an_sdk_allows_are_read() -> None:
    """8,192 spans of 128 attributes, as docs/howto/collect-opentelemetry.md promises, 20 of them looked
    at."""
    looked_at = [key for key in sorted(gen_ai.WANTED) if key.startswith("gen_ai.usage.")][:15]
    others = {f"my.attribute.{n}": "x" * (n % 200) for n in range(128 - 15 - len(USAGE))}
    one = span(**{**dict.fromkeys(looked_at, 1), **others, **USAGE})
    assert 120 < len(one.attributes) <= 128
    body = request(*[one] * 8192).SerializeToString()
    assert counted(offered(body)) == [True] * 8192


def test_the_bound_of_fields_is_the_one_that_the_pages_say() -> None:
    spans = otlp.PARTS_MAX // 66 - 1  # each is seen twice: when the scope is looked for, and when it is read
    rest = otlp.PARTS_MAX - 66 * spans - 3
    for size, is_read in ((0, True), (rest, True), (rest + 1, False)):
        links = b"\x6a\x00" * size  # a field of a span that is not looked at counts 1
        body = protobuf.field(
            1, protobuf.field(2, protobuf.field(2, links) + protobuf.field(2, b"") * (spans - 1))
        )
        if is_read:
            assert len(offered(body)) == spans
        else:
            with pytest.raises(TooMuch, match=r"4000000 fields: make the batches smaller"):
                offered(body)
    pages = Path(__file__).resolve().parents[3] / "docs"
    for page in ("faults-and-bounds.md", "howto/collect-opentelemetry.md"):
        text = (pages / page).read_text()
        assert f"{otlp.PARTS_MAX:,} fields of protobuf" in text
        assert f"{otlp.JSON_VALUES_MAX:,} values of JSON" in text


def test_a_body_of_empty_spans_needs_no_memory_for_each() -> None:
    body = protobuf.field(1, protobuf.field(2, b"\x12\x00" * 50_000))
    tracemalloc.start()
    try:
        assert counted(offered(body)) == [False] * 50_000
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


KEYS = sorted(gen_ai.WANTED | {f"{gen_ai.METADATA}{name}" for name in "abc"} | {"prompt", "ai.prompt", "x"})
VALUES = (
    st.integers(-5, 2**62)
    | st.floats()
    | st.booleans()
    | st.text(max_size=6)
    | st.sampled_from(["chat", "LLM", "acme"])
)


@given(
    st.lists(
        st.builds(
            lambda number, parent, error, attributes: span(
                number, parent, error="RateLimitError" if error else None, **attributes
            ),
            st.integers(1, 4),
            st.integers(0, 4),
            st.booleans(),
            st.dictionaries(st.sampled_from(KEYS), VALUES | st.lists(VALUES, max_size=2), max_size=6).map(
                lambda given: {**USAGE, **given}
            ),
        ),
        max_size=4,
    ),
    st.sampled_from(["ai", "openinference.x", "x"]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
)
def test_both_encodings_of_any_spans_are_read_alike(
    spans: list[Span], scope: str, resource: Attributes
) -> None:
    found = both(*spans, scope=scope, resource=resource)
    for one in found:
        assert isinstance(one.event, bytes) or one.faults or one.passed_over


READ = {
    *(
        name
        for names in gen_ai.NAMES.values()
        for key in ("provider", "model", "service_tier")
        for name in getattr(names, key)
    ),
    *(
        "error.type",
        "exception.type",
        "enduser.id",
        "user.id",
        "deployment.environment",
        "deployment.environment.name",
    ),
    *(
        gen_ai.ORG,
        gen_ai.CLIENT,
        gen_ai.ACTOR,
        "service.name",
        "ai.telemetry.functionId",
        "gen_ai.agent.name",
    ),
}


@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith("pb")])
def test_nothing_but_what_the_page_names_leaves_the_parser(name: str) -> None:
    """A canary in each text of each capture: it comes out only where a label is read."""
    made = ExportTraceServiceRequest.FromString((FOLDER / name).read_bytes())
    for of_resource in made.resource_spans:
        attributes = list(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for one in of_scope.spans:
                one.name = one.trace_state = one.status.message = "CANARY-zq9x"
                attributes += [
                    *one.attributes,
                    *(found for happened in one.events for found in happened.attributes),
                ]
        for attribute in attributes:
            if attribute.value.HasField("string_value") and attribute.key not in (
                *READ,
                *gen_ai._SIGNS,
                *gen_ai._KINDS,
            ):
                attribute.value.string_value = "CANARY-zq9x"
    found = offered(made.SerializeToString())
    assert any(one.event for one in found)
    assert "zq9x" not in str(found)


# --- answers ---------------------------------------------


def test_an_answer_is_otlps_own_in_both_encodings() -> None:
    assert otlp.answer() == b"" == ExportTraceServiceResponse().SerializeToString()
    assert otlp.answer(content_type="application/json") == b"{}"
    body = otlp.answer(rejected=300, message="2 spans: é")
    read = ExportTraceServiceResponse.FromString(body)
    assert (read.partial_success.rejected_spans, read.partial_success.error_message) == (300, "2 spans: é")
    said = json.loads(otlp.answer(rejected=300, message="é", content_type="application/json; charset=utf-8"))
    assert said == {"partialSuccess": {"rejectedSpans": "300", "errorMessage": "é"}}
    assert (
        ExportTraceServiceResponse.FromString(otlp.answer(message="a warning")).partial_success.error_message
        == "a warning"
    )


def test_a_failure_is_a_status_with_a_code_and_a_message() -> None:
    assert otlp.failure("x" * 300, code=3) == b"\x08\x03\x12\xac\x02" + b"x" * 300
    said = json.loads(otlp.failure("no", code=14, content_type="application/json"))
    assert said == {"code": 14, "message": "no"}
