"""What a span says about a call of a model: names of attributes, and which spans are calls at all.

Instrumentations of different makers and years name the same thing differently. `NAMES` has a table for each
scope whose names or meanings are its own, and a default for all others. Read from spans of the
OpenTelemetry semantic conventions (1.27 to 1.43), OpenLLMetry, OpenInference, the Vercel AI SDK (4 to 7),
pydantic-ai and the Anthropic SDK; tests/data/otlp has some.

A call is a span with tokens, or one that failed before it had any. Spans around calls (agents, chains,
tools, ``ai.generateText`` around ``ai.generateText.doGenerate``) often repeat the sum of the calls inside,
so they are told by their kind and passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import msgspec

from pipeline.collector.dialects import Offered, framing
from pipeline.collector.dialects.drafts import (
    SERVICE_TIERS,
    Draft,
    Number,
    Value,
    cents_of_dollars,
    first_text,
    metadata_of,
    text_of,
    value_of,
)
from pipeline.core import wire
from pipeline.core.wire import Fault

NAME: Final = "otlp"
ORG: Final = "spendstream.org_id"
CLIENT: Final = "spendstream.client_id"
ACTOR: Final = "spendstream.actor_id"
METADATA: Final = "spendstream.metadata."
TRACE_BYTES: Final = 16
SPAN_BYTES: Final = 8
METADATA_MAX: Final = 16
"""So many keys of metadata are kept."""
CARRIERS: Final = ("ai.telemetry.metadata.", "traceloop.association.properties.")
"""Prefixes under which SDKs put the attributes of their users:
``ai.telemetry.metadata.spendstream.org_id``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A span as the two encodings of OTLP have it, with those attributes only that are looked at."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    scope: str
    start_ns: int
    end_ns: int
    is_error: bool
    status_message: str
    attributes: Mapping[str, Value]
    """The span's own, and the type of its exception as ``exception.type``."""
    resource: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The attributes that may have a value, the best first. A name with `>` is a path into an attribute of
    JSON."""

    provider: tuple[str, ...]
    model: tuple[str, ...]
    input: tuple[str, ...]
    output: tuple[str, ...]
    cache_read: tuple[str, ...]
    cache_write: tuple[str, ...]
    cache_write_1h: tuple[str, ...] = ("anthropic.usage.cache_creation.ephemeral_1h_input_tokens",)
    reasoning: tuple[str, ...]
    service_tier: tuple[str, ...] = (
        "openai.response.service_tier",
        "gen_ai.openai.response.service_tier",
        "anthropic.response.service_tier",
        "gen_ai.response.service_tier",
    )
    cost: tuple[str, ...] = ("operation.cost", "gen_ai.usage.cost", "llm.cost.total")
    """US dollars."""
    outside: frozenset[str] = frozenset()
    """Providers whose input tokens leave the cached ones out, unless one of `inside` is there."""
    inside: tuple[str, ...] = ()
    is_dotted: bool = False
    """Does the provider's name go on behind a point? ``openai.chat`` is ``openai``."""

    def all(self) -> Iterator[str]:
        """The attributes that these names are found in."""
        for key in ("provider", "model", "service_tier", "cost", "inside", *_TOKENS):
            for name in getattr(self, key):
                yield name.partition(">")[0]


_TOKENS: Final = {
    "input": "inputTokens",
    "output": "outputTokens",
    "cache_read": "cacheReadTokens",
    "cache_write": "cacheWriteTokens",
    "cache_write_1h": "cacheWrite1hTokens",
    "reasoning": "reasoningTokens",
}

_OPENINFERENCE: Final = Names(
    provider=("llm.provider", "llm.system"),
    model=(
        "llm.response.model_name",
        "llm.model_name",
        "embedding.model_name",
        "llm.request.model_name",
        "llm.invocation_parameters>model",
        "llm.invocation_parameters>model_name",
    ),
    input=("llm.token_count.prompt",),
    output=("llm.token_count.completion",),
    cache_read=("llm.token_count.prompt_details.cache_read",),
    cache_write=("llm.token_count.prompt_details.cache_write",),
    reasoning=("llm.token_count.completion_details.reasoning",),
)
_DEFAULT: Final = Names(
    provider=("gen_ai.provider.name", "gen_ai.system", *_OPENINFERENCE.provider),
    model=(
        "gen_ai.response.model",
        "gen_ai.request.model",
        "llm.response.model",
        "llm.request.model",
        *_OPENINFERENCE.model,
    ),
    input=(
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.prompt_tokens",
        "llm.usage.prompt_tokens",
        *_OPENINFERENCE.input,
    ),
    output=(
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.usage.completion_tokens",
        *_OPENINFERENCE.output,
    ),
    cache_read=(
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.cache_read_tokens",
        "gen_ai.usage.cached_tokens",
        "gen_ai.usage.input_tokens.cached",
        "gen_ai.usage.details.cache_read_tokens",
        "gen_ai.usage.details.cached_tokens",
        "llm.usage.cache_read_input_tokens",
        *_OPENINFERENCE.cache_read,
    ),
    cache_write=(
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.cache_creation_tokens",
        "gen_ai.usage.details.cache_write_tokens",
        "gen_ai.usage.details.cache_creation_input_tokens",
        "llm.usage.cache_creation_input_tokens",
        *_OPENINFERENCE.cache_write,
    ),
    reasoning=(
        "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.reasoning_tokens",
        "gen_ai.usage.output_tokens.reasoning",
        "gen_ai.usage.details.reasoning_tokens",
        "llm.usage.reasoning_tokens",
        *_OPENINFERENCE.reasoning,
    ),
)
_VERCEL_METADATA: Final = "ai.response.providerMetadata>"
_VERCEL: Final = replace(
    _DEFAULT,
    provider=("ai.model.provider", *_DEFAULT.provider),
    model=("ai.response.model", "gen_ai.response.model", "ai.model.id", "gen_ai.request.model"),
    input=("ai.usage.inputTokens", "ai.usage.promptTokens", "ai.usage.tokens", *_DEFAULT.input),
    output=("ai.usage.outputTokens", "ai.usage.completionTokens", *_DEFAULT.output),
    cache_read=(
        "ai.usage.inputTokenDetails.cacheReadTokens",
        "ai.usage.cachedInputTokens",
        f"{_VERCEL_METADATA}anthropic>usage>cache_read_input_tokens",
        f"{_VERCEL_METADATA}openai>cachedPromptTokens",
        *_DEFAULT.cache_read,
    ),
    cache_write=(
        "ai.usage.inputTokenDetails.cacheWriteTokens",
        f"{_VERCEL_METADATA}anthropic>usage>cache_creation_input_tokens",
        f"{_VERCEL_METADATA}anthropic>cacheCreationInputTokens",
        f"{_VERCEL_METADATA}bedrock>usage>cacheWriteInputTokens",
        *_DEFAULT.cache_write,
    ),
    cache_write_1h=(f"{_VERCEL_METADATA}anthropic>usage>cache_creation>ephemeral_1h_input_tokens",),
    reasoning=(
        "ai.usage.outputTokenDetails.reasoningTokens",
        "ai.usage.reasoningTokens",
        f"{_VERCEL_METADATA}openai>reasoningTokens",
        *_DEFAULT.reasoning,
    ),
    service_tier=(f"{_VERCEL_METADATA}openai>serviceTier", f"{_VERCEL_METADATA}anthropic>usage>service_tier"),
    outside=frozenset({"anthropic", "amazon-bedrock"}),
    inside=("ai.usage.inputTokenDetails.noCacheTokens",),
    is_dotted=True,
)
NAMES: Final = {"ai": _VERCEL, "openinference": _OPENINFERENCE, "": _DEFAULT}
"""By the scope's name up to its first point. '' is for all others."""

_KINDS: Final = {
    "openinference.span.kind": frozenset({"LLM", "EMBEDDING"}),
    "langsmith.span.kind": frozenset({"llm", "embedding"}),
    "langfuse.observation.type": frozenset({"generation", "embedding"}),
    "traceloop.span.kind": frozenset({"llm", "embedding"}),
}
"""Attributes that tell the kind of a span, and the kinds that are calls."""
_AROUND: Final = re.compile(
    r"agent|tool|workflow|chain|step|task|plan|memory|retriev|framework|guardrail|evaluat|handoff",
    re.IGNORECASE,
)
"""Values of ``gen_ai.operation.name`` for what is around calls."""
_VERCEL_CALL: Final = re.compile(r"ai\..+\.do(?:Generate|Stream|Embed)")
_SIGNS: Final = ("gen_ai.operation.name", "ai.operationId", "openinference.span.kind", "llm.request.type")
"""One of these is on each call, also on one that failed."""
_STATUS_CODES: Final = ("http.response.status_code", "http.status_code")
_ERRORS: Final = ("error.type", "exception.type")
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CLASS: Final = re.compile(r"([A-Za-z_]\w*(?:Error|Exception|Timeout))\b")
_THROTTLED: Final = re.compile(r"RateLimit|rate_limit|TooManyRequests|Throttl", re.IGNORECASE)
_TIMEOUT: Final = re.compile(r"timeout|timed.?out|deadline", re.IGNORECASE)
_USERS: Final = ("enduser.id", "user.id")
_ENVIRONMENTS: Final = ("deployment.environment.name", "deployment.environment")
RESPONSE_ID: Final = "gen_ai.response.id"
WANTED: Final = frozenset(
    {
        *(name for names in NAMES.values() for name in names.all()),
        *(*_KINDS, *_SIGNS, *_STATUS_CODES, *_ERRORS, *_USERS, *_ENVIRONMENTS, RESPONSE_ID),
        *(
            ORG,
            CLIENT,
            ACTOR,
            "service.name",
            "ai.response.id",
            "ai.telemetry.functionId",
            "gen_ai.agent.name",
        ),
    }
)


def wanted(key: str) -> str | None:
    """The name under which an attribute is looked at. None: it is not, and is dropped."""
    for carrier in CARRIERS:
        key = key.removeprefix(carrier)
    return key if key in WANTED or key.startswith(METADATA) else None


def is_call(span: Span) -> bool:
    """Is the span one call of a model, with its tokens or with its failure?"""
    given = span.attributes
    for key, calls in _KINDS.items():
        if key in given and given[key] not in calls:
            return False
    operation, vercel = given.get("gen_ai.operation.name"), given.get("ai.operationId")
    if isinstance(operation, str) and _AROUND.search(operation):
        return False
    if isinstance(vercel, str) and not _VERCEL_CALL.fullmatch(vercel):
        return False
    names = _names(span)
    if any(isinstance(_found(span, key)[0], Number) for key in (names.input, names.output)):
        return True
    return (
        span.is_error and any(sign in given for sign in _SIGNS) and _found(span, names.model)[0] is not None
    )


def is_id(given: bytes, size: int) -> bool:
    """Is it an id of a trace or of a span?"""
    return len(given) == size and any(given)


def same_call(one: Span, other: Span) -> bool:
    """Do two spans of different makers describe one call? Then they say the same answer and the same
    tokens."""
    names, others = _names(one), _names(other)
    return all(
        _found(one, getattr(names, key))[0] == _found(other, getattr(others, key))[0]
        for key in ("input", "output")
    )


def response_id(span: Span) -> str | None:
    """What the provider calls its answer."""
    return first_text(span.attributes.get(RESPONSE_ID), span.attributes.get("ai.response.id"), chars_max=256)


def offered(span: Span, default_org: UUID | None) -> Offered:
    """The event of a span that is a call."""
    names, draft = _names(span), Draft(NAME)
    attributes, resource = span.attributes, span.resource
    draft.put_org((ORG, attributes.get(ORG)), (ORG, resource.get(ORG)), default=default_org)
    for name, given, size in (
        ("traceId", span.trace_id, TRACE_BYTES),
        ("spanId", span.span_id, SPAN_BYTES),
    ):
        if not is_id(given, size):
            draft.faults.append(Fault(name, f"expected {size} bytes that are not all zero"))
    draft.put_event_id(f"{span.trace_id.hex()}-{span.span_id.hex()}", "spanId")
    provider = text_of(_found(span, names.provider)[0], wire.BODY_BYTES_MAX)
    if provider and names.is_dotted:
        provider = provider.partition(".")[0]
    model, spelled = _found(span, names.model)
    draft.put_model(provider, model, spelled)
    service = resource.get("service.name")
    if isinstance(service, str) and service.startswith("unknown_service"):
        service = None
    draft.put(
        "clientId",
        first_text(attributes.get(CLIENT), resource.get(CLIENT), service, chars_max=wire.CLIENT_ID_CHARS_MAX),
        CLIENT,
    )
    users = [attributes.get(ACTOR), resource.get(ACTOR), *(attributes.get(key) for key in _USERS)]
    for user in users:
        if draft.put_actor(user, ACTOR):
            break
    start_us, end_us = (ns // 1000 if ns else None for ns in (span.start_ns, span.end_ns))
    draft.put_times(start_us, end_us, start="startTimeUnixNano", end="endTimeUnixNano")
    _put_outcome(draft, span)
    _put_tokens(draft, span, names, provider)
    cost, spelled = _found(span, names.cost)
    draft.put("costEstimateCents", cents_of_dollars(cost), spelled)
    tier, spelled = _found(span, names.service_tier)
    draft.put("serviceTier", SERVICE_TIERS.get(tier, "standard") if isinstance(tier, str) else None, spelled)
    draft.put("metadata", _metadata(span) or None, METADATA)
    return draft.offered()


def _names(span: Span) -> Names:
    return NAMES.get(span.scope.partition(".")[0], _DEFAULT)


def _found(span: Span, names: tuple[str, ...]) -> tuple[Value, str]:
    """The first of the attributes that is there, and its name. Without any: None, and the name that is
    best."""
    for name in names:
        key, _, path = name.partition(">")
        value = span.attributes.get(key)
        if path and isinstance(value, str):
            value = _inside(value, path.split(">"))
        if value is not None:
            return value, key
    return None, names[0].partition(">")[0]


_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _inside(text: str, path: list[str]) -> Value:
    """A leaf of an attribute that is JSON. None: it is not there."""
    part: bytes | msgspec.Raw = text.encode("utf-8", "replace")
    try:
        for name in path:
            part = framing.decoded(bytes(part), _MEMBERS).get(name, b"null")
        return value_of(part)
    except (msgspec.DecodeError, RecursionError):
        return None


def _put_outcome(draft: Draft, span: Span) -> None:
    if not span.is_error:
        draft.put("status", "success", "status")
        return
    code = next((str(value) for key in _STATUS_CODES if (value := span.attributes.get(key)) is not None), "")
    given = [text_of(span.attributes.get(key), wire.BODY_BYTES_MAX) or "" for key in _ERRORS]
    kinds = [kind for kind in given if _CODE.fullmatch(kind) and kind != "_OTHER"]
    if kind := _CLASS.match(span.status_message):
        kinds.append(kind[1])
    kinds = [kind.rpartition(".")[2] for kind in kinds]
    status = "error"
    if code == "429" or any(kind == "429" or _THROTTLED.search(kind) for kind in kinds):
        status = "throttled"
    elif code in ("408", "504") or any(kind in ("408", "504") or _TIMEOUT.search(kind) for kind in kinds):
        status = "timeout"
    draft.put("status", status, "status")
    kinds += [code] if _CODE.fullmatch(code) else []
    draft.put("errorCode", kinds[0] if kinds else None, _ERRORS[0])


def _put_tokens(draft: Draft, span: Span, names: Names, provider: str | None) -> None:
    found = {name: _found(span, getattr(names, key)) for key, name in _TOKENS.items()}
    is_outside = provider in names.outside and not any(name in span.attributes for name in names.inside)
    draft.put_tokens(
        {name: value for name, (value, _) in found.items()},
        {name: spelled for name, (_, spelled) in found.items()},
        is_cache_outside=is_outside,
    )


def _metadata(span: Span) -> dict[str, str]:
    labels: dict[str, Value] = {}
    for attributes in (span.resource, span.attributes):
        for key, value in attributes.items():
            if key.startswith(METADATA):
                labels[key.removeprefix(METADATA)[: wire.VALUE_CHARS_MAX]] = value
    for name, keys in {"user": _USERS, "environment": _ENVIRONMENTS}.items():
        found = (source.get(key) for key in keys for source in (span.attributes, span.resource))
        labels.setdefault(name, first_text(*found, chars_max=wire.VALUE_CHARS_MAX))
    labels.setdefault("function", span.attributes.get("ai.telemetry.functionId"))
    labels.setdefault("agent", span.attributes.get("gen_ai.agent.name"))
    clean = metadata_of({name: value for name, value in labels.items() if name})
    return dict(list(clean.items())[:METADATA_MAX])
