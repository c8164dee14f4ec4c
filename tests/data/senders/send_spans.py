"""Spans of calls, exported by the OpenTelemetry SDK; runs in the senders' environment.

The exporter is set up by OTEL_EXPORTER_OTLP_TRACES_… alone, as the documentation says. CANARY is wherever
instrumentations put prompts, answers and errors. ORG_NAME is the org of the resource.
"""

from __future__ import annotations

import os
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

CANARY = os.environ["CANARY"]
resource = Resource.create(
    {"service.name": "shop", "spendstream.org_id": os.environ["ORG_NAME"], "service.note": CANARY}
)
provider = TracerProvider(resource=resource)
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


class RateLimitError(Exception):
    """What an SDK of a provider raises at 429."""


def call(scope: str, attributes: dict[str, Any], error: Exception | None = None) -> None:
    tracer = provider.get_tracer(scope, "1.0")
    with tracer.start_as_current_span(f"chat {CANARY}", record_exception=False) as span:
        span.set_attributes(attributes)
        span.add_event("gen_ai.content.prompt", {"gen_ai.prompt": CANARY})
        if error is not None:
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, str(error)))


def current(**usage: int | str | float) -> dict[str, Any]:
    """A call by the conventions of OpenTelemetry."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-x",
        "gen_ai.input.messages": f'[{{"role": "user", "parts": [{{"content": "{CANARY}"}}]}}]',
        "gen_ai.output.messages": CANARY,
        "gen_ai.system_instructions": CANARY,
        **{f"gen_ai.usage.{name.replace('__', '.')}": value for name, value in usage.items()},
    }


agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "clerk"}
usage = {
    "input_tokens": 1200,
    "output_tokens": 300,
    "cost": 0.0123,
    "cache_read__input_tokens": 1000,
    "cache_creation__input_tokens": 100,
    "reasoning__output_tokens": 250,
}
with provider.get_tracer("shop").start_as_current_span("answer a customer", attributes=agent):
    call("opentelemetry.instrumentation.anthropic_v1", current(**usage))
call("opentelemetry.instrumentation.anthropic_v1", current(), RateLimitError(f"429: {CANARY} was too much"))
call("opentelemetry.instrumentation.anthropic_v1", current(), TimeoutError(f"{CANARY} took too long"))
call("opentelemetry.instrumentation.anthropic_v1", current(), ValueError(f"{CANARY} is no answer"))
call(  # OpenLLMetry, by Traceloop
    "opentelemetry.instrumentation.openai",
    {
        "llm.request.type": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "o4-mini",
        "gen_ai.response.model": "o4-mini-2025-04-16",
        "gen_ai.prompt.0.content": CANARY,
        "gen_ai.completion.0.content": CANARY,
        "gen_ai.usage.prompt_tokens": 50,
        "gen_ai.usage.completion_tokens": 7,
        "gen_ai.usage.cache_read_input_tokens": 20,
        "llm.usage.total_tokens": 57,
    },
)
call(
    "openinference.instrumentation.openai",
    {
        "openinference.span.kind": "LLM",
        "llm.provider": "openai",
        "llm.model_name": "gpt-4o-2024-08-06",
        "llm.input_messages.0.message.content": CANARY,
        "llm.output_messages.0.message.content": CANARY,
        "llm.invocation_parameters": f'{{"user": "{CANARY}"}}',
        "input.value": CANARY,
        "output.value": CANARY,
        "llm.token_count.prompt": 31,
        "llm.token_count.completion": 9,
        "llm.token_count.completion_details.reasoning": 4,
    },
)
call("opentelemetry.instrumentation.requests", {"http.request.method": "POST", "url.full": f"/{CANARY}"})
provider.shutdown()
