"""Tracing by OpenTelemetry's SDK. Nothing else imports opentelemetry, and this module only where it is on.

The SDK makes spans, decides which are sampled, and encodes them. Which span is current is kept here, in one
variable of the context: tasks and threads of ``asyncio.to_thread`` inherit it. The queue of spans is ours
(`traces.queue`), because the SDK's own does not say how many spans it has lost, nor end within a bound.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import partial
from importlib import metadata
from typing import Any, Final, Self

from opentelemetry import trace
from opentelemetry.context import Context as OtelContext
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pipeline.common.traces import LINKS_MAX, OFF, Kind, Span
from pipeline.common.traces.config import TracesConfig
from pipeline.common.traces.queue import Queue

_PREFIX: Final = "spendstream."
_LIMITS: Final = SpanLimits(
    max_attributes=64,
    max_events=0,
    max_links=LINKS_MAX,
    max_attribute_length=256,
    max_span_attribute_length=256,
)
"""What one span may hold, about 25 KiB at the very most. A span of ours has some ten short attributes."""
_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_SAMPLERS: Final[Mapping[str, Callable[[float], sampling.Sampler]]] = {
    "always_on": lambda _: sampling.ALWAYS_ON,
    "always_off": lambda _: sampling.ALWAYS_OFF,
    "traceidratio": sampling.TraceIdRatioBased,
    "parentbased_always_on": lambda _: sampling.ParentBased(sampling.ALWAYS_ON),
    "parentbased_always_off": lambda _: sampling.ParentBased(sampling.ALWAYS_OFF),
    "parentbased_traceidratio": lambda ratio: sampling.ParentBased(sampling.TraceIdRatioBased(ratio)),
}
_NOWHERE: Final = OtelContext()
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_CURRENT: Final[ContextVar[_Live | None]] = ContextVar("span", default=None)


class Tracing:
    """A `traces.Tracer` that exports to a receiver of OTLP."""

    def __init__(self, config: TracesConfig, service: str) -> None:
        # What an exporter logs may quote the receiver's answer, and has a line for each try. The queue says
        # what is lost, and why.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _exporter(config)
        self._queue = Queue(self._export, spans_max=config.queue_spans_max, delay_s=config.delay_s)
        provider = TracerProvider(
            sampler=_SAMPLERS[config.sampler](config.ratio),
            resource=_resource(config, service),
            shutdown_on_exit=False,
            span_limits=_LIMITS,
        )
        provider.add_span_processor(_Processor(self._queue))
        self._tracer = provider.get_tracer("spendstream")

    def span(
        self,
        name: str,
        kind: Kind,
        parent: Mapping[str, str] | None,
        links: Sequence[SpanContext],
        attributes: Mapping[str, Any],
    ) -> Span:
        above = _CURRENT.get()
        if parent is not None:
            context = _PROPAGATOR.extract(parent, context=_NOWHERE)
        elif above is None:
            context = _NOWHERE
        elif above.is_sampled:
            context = above.context
        else:
            return OFF  # no sampler takes a span below one that it left out
        started = self._tracer.start_span(
            name,
            context=context,
            kind=_KINDS[kind],
            attributes=_named(attributes),
            links=[Link(one) for one in links],
        )
        return _Live(started, above if parent is None else None, context)

    def current(self) -> Span | None:
        return _CURRENT.get()

    def context(self) -> SpanContext | None:
        span = _CURRENT.get()
        return None if span is None else span.place

    def headers(self) -> Mapping[str, str]:
        span, found = _CURRENT.get(), dict[str, str]()
        if span is not None:
            _PROPAGATOR.inject(found, span.context)
        return found

    def facts(self) -> Mapping[str, str]:
        span = _CURRENT.get()
        if span is None:
            return {}
        return {"trace_id": f"{span.place.trace_id:032x}", "span_id": f"{span.place.span_id:016x}"}

    def counts(self) -> Mapping[str, int]:
        return self._queue.counts()

    def close(self) -> None:
        """Export what waits, for `queue.CLOSE_S` at most."""
        if self._queue.close():
            self._exporter.shutdown()

    def _export(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._exporter.export(spans) is SpanExportResult.SUCCESS


class _Live:
    """A `traces.Span` of the SDK."""

    __slots__ = ("_above", "_span", "_sums", "_token", "context", "is_sampled", "place")

    def __init__(self, span: trace.Span, above: _Live | None, context: OtelContext) -> None:
        self._span = span
        self._above = above
        self._sums: dict[str, int] = {}
        self._token: Token[_Live | None] | None = None
        self.context = trace.set_span_in_context(span, context)
        self.place = span.get_span_context()
        self.is_sampled: bool = self.place.trace_flags.sampled

    def __bool__(self) -> bool:
        return self.is_sampled

    def set(self, **attributes: Any) -> None:
        if self.is_sampled:
            self._span.set_attributes(_named(attributes))

    def add(self, **counts: int) -> None:
        if self.is_sampled:
            for name, count in counts.items():
                self._sums[name] = self._sums.get(name, 0) + count
            if self._above is not None:
                self._above.add(**counts)

    def failed(self, kind: str) -> None:
        self.set(**{"error.type": kind})
        self._span.set_status(Status(StatusCode.ERROR))

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
        if error[0] is not None:
            self.failed(error[0].__name__)
        self.set(**self._sums)
        self._span.end()


class _Processor(SpanProcessor):  # type: ignore[misc]
    """Hands the spans that are sampled to the queue as they end."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._queue.put(span)


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes with their whole names, and with values that OTLP has."""
    return {
        name if "." in name else _PREFIX + name: value
        if isinstance(value, str | bool | int | float)
        else str(value)
        for name, value in attributes.items()
        if value is not None
    }


def _resource(config: TracesConfig, service: str) -> Resource:
    """Who we are. An operator may say more, and other than we do; OTEL_SERVICE_NAME has the last word."""
    attributes = {
        "service.name": service,
        "service.instance.id": str(uuid.uuid4()),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": metadata.version("opentelemetry-sdk"),
    }
    with suppress(metadata.PackageNotFoundError):  # it may run from its source
        attributes["service.version"] = metadata.version("spendstream")
    attributes.update(config.resource or ())
    if config.service_name is not None:
        attributes["service.name"] = config.service_name
    return Resource(attributes)


def _exporter(config: TracesConfig) -> SpanExporter:
    """Every value is given, so that the exporter reads none from the environment in its own way."""
    headers = dict(config.headers or ())
    if config.protocol == "grpc":
        import grpc
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        pem = None if config.certificate is None else config.certificate.read_bytes()
        insecure = config.endpoint.startswith("http:")
        return Grpc(
            endpoint=config.endpoint,
            insecure=insecure,
            credentials=None if insecure else grpc.ssl_channel_credentials(pem),
            headers=tuple(headers.items()),
            timeout=config.timeout_s,
            compression=grpc.Compression.NoCompression,
        )
    import requests
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    session = requests.Session()
    if config.certificate is not None:
        # Said with each request. What a session says, REQUESTS_CA_BUNDLE in the environment would replace.
        session.request = partial(session.request, verify=str(config.certificate))  # type: ignore[method-assign]
    return Http(
        endpoint=f"{config.endpoint}/v1/traces",
        certificate_file=None if config.certificate is None else str(config.certificate),
        session=session,
        headers=headers,
        timeout=config.timeout_s,
        compression=Compression.NoCompression,
    )
