"""Traces: what a process does, as spans that OpenTelemetry understands. Off unless an endpoint is set.

The rest of the code says ``with traces.span("flush", partition=3) as span:`` and ``span.set(rows=812)``.
While tracing is off, `span` tests one name and returns `OFF`, and nothing of ours imports opentelemetry.
`running` turns tracing on (`traces.otel`), and ends it with a last export.

A span is true if it is recorded. An attribute that has to be worked out stands behind that question, so that
it costs nothing while tracing is off, or where the sampler has left the span out: ``if span:
span.set(rows=sum(map(len, tables)))``.

An attribute without a dot in its name is ours and gets the prefix ``spendstream.``. A name with a dot stands
as it is, and is one of OpenTelemetry's semantic conventions.

No attribute holds a credential, a text that a sender chose without a bound, or a prompt. Of an error, a span
has the name of its type and never its text, which may quote what somebody sent. The id of an org may be an
attribute. In metrics it may not: a span is stored once, and a metric's series stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

if TYPE_CHECKING:  # settings have forms of ours, and the configuration has settings
    from pipeline.common.traces.config import TracesConfig

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Context = Any
"""Where a span stands, for others that begin below it or refer to it. Opaque."""


class Span(Protocol):
    """One piece of work. As a context manager it is current inside, and ends with the block."""

    def __bool__(self) -> bool:
        """Is the span recorded?"""

    def set(self, **attributes: Any) -> None:
        """Set attributes; None is left out."""

    def add(self, **counts: int) -> None:
        """Add to numbers, each 0 before, of this span and of those of the same process above it."""

    def failed(self, kind: str) -> None:
        """Say that the work failed, with the kind of the error."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Tracer(Protocol):
    """What makes spans while tracing is on (`traces.otel.Tracing`)."""

    def span(
        self,
        name: str,
        kind: Kind,
        parent: Mapping[str, str] | None,
        links: Sequence[Context],
        attributes: Mapping[str, Any],
    ) -> Span: ...
    def current(self) -> Span | None: ...
    def context(self) -> Context: ...
    def headers(self) -> Mapping[str, str]: ...
    def facts(self) -> Mapping[str, str]: ...
    def counts(self) -> Mapping[str, int]: ...


class _Off:
    """The span of a process that is not traced: it does nothing."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def set(self, **attributes: Any) -> None: ...
    def add(self, **counts: int) -> None: ...
    def failed(self, kind: str) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


OFF: Final[Span] = _Off()
LINKS_MAX: Final = 64
"""The most links of a span."""
_tracer: Tracer | None = None


def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: Mapping[str, str] | None = None,
    links: Sequence[Context] = (),
    **attributes: Any,
) -> Span:
    """A span below the current one, or a trace of its own where there is none.

    ``parent`` has the headers ``traceparent`` and perhaps ``tracestate`` of whoever asked for the work; the
    span then continues that trace. ``links`` are `context` of spans that this work is for, too.
    """
    return OFF if _tracer is None else _tracer.span(name, kind, parent, links, attributes)


def child(name: str, kind: Kind = "internal", **attributes: Any) -> Span:
    """A span below the current one. Where there is none, nothing is traced.

    Example: COMMIT is a step of a flush, and a commit of the hourly maintenance is no trace of its own.
    """
    if _tracer is None or _tracer.current() is None:
        return OFF
    return _tracer.span(name, kind, None, (), attributes)


def current() -> Span:
    """The span in which this task is now; `OFF` if there is none."""
    found = None if _tracer is None else _tracer.current()
    return OFF if found is None else found


def context() -> Context | None:
    """The place of the current span, for the ``links`` of another one; None: there is none."""
    return None if _tracer is None else _tracer.context()


def headers() -> Mapping[str, str]:
    """``traceparent`` and perhaps ``tracestate`` of the current span, for work that others do later."""
    return {} if _tracer is None else _tracer.headers()


def facts() -> Mapping[str, str]:
    """``trace_id`` and ``span_id`` of the current span, for a line of the log."""
    return {} if _tracer is None else _tracer.facts()


def counts() -> Mapping[str, int] | None:
    """How many spans had each of `traces.queue.OUTCOMES`; None: tracing is off."""
    return None if _tracer is None else _tracer.counts()


def is_on() -> bool:
    return _tracer is not None


@contextmanager
def running(config: TracesConfig | None, service: str) -> Iterator[None]:
    """Trace this process meanwhile; ``config`` None: do not. At the end, export for some seconds at most.

    ``service`` is the name of the process, unless OTEL_SERVICE_NAME says another one.
    """
    global _tracer
    if config is None:
        yield
        return
    from pipeline.common.traces.otel import Tracing

    tracing = Tracing(config, service)
    _tracer = tracing
    try:
        yield
    finally:
        _tracer = None
        tracing.close()
