"""Tracing in this process: samplers, parents, links, contexts, and what a span may hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from pipeline.common import traces
from pipeline.common.traces.config import TracesConfig
from tests.support import otlp_receiver
from tests.support.otlp_receiver import Receiver

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
SENDER: Final = "b7ad6b7169203331"


def parent(*, sampled: bool) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{SENDER}-{'01' if sampled else '00'}", "tracestate": "vendor=shop"}


@contextmanager
def tracing(receiver: Receiver, **settings: Any) -> Iterator[None]:
    with traces.running(replace(TracesConfig(endpoint=receiver.url), **settings), "tests"):
        yield


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver.over_http() as found:
        yield found


SAMPLED: Final = {
    # sampler and its argument: of no parent, of a parent that is sampled, of one that is not
    ("always_on", 1.0): (True, True, True),
    ("always_off", 1.0): (False, False, False),
    ("traceidratio", 0.0): (False, False, False),
    ("traceidratio", 1.0): (True, True, True),
    ("parentbased_always_on", 1.0): (True, True, False),
    ("parentbased_always_off", 1.0): (False, True, False),
    ("parentbased_traceidratio", 0.0): (False, True, False),
    ("parentbased_traceidratio", 1.0): (True, True, False),
}


@pytest.mark.parametrize(("sampler", "ratio"), SAMPLED)
def test_a_sampler_decides_on_a_trace_as_a_whole(receiver: Receiver, sampler: str, ratio: float) -> None:
    parents = {"alone": {}, "sampled": parent(sampled=True), "unsampled": parent(sampled=False)}
    with tracing(receiver, sampler=sampler, ratio=ratio):
        for name, headers in parents.items():
            with traces.span(name, parent=headers), traces.child("below"):
                pass
    expected = [name for name, is_taken in zip(parents, SAMPLED[sampler, ratio], strict=True) if is_taken]
    roots = [span for span in receiver.spans if span.name != "below"]
    assert [span.name for span in roots] == expected
    assert len(receiver.named("below")) == len(expected)
    assert all(len(receiver.below(root)) == 1 for root in roots)


def test_half_of_the_traces_are_those_that_every_other_process_would_take(receiver: Receiver) -> None:
    """A ratio looks at the lower half of the trace's id: 7fff… is taken at 0.5, 8000… is not."""
    with tracing(receiver, sampler="traceidratio", ratio=0.5):
        for low in ("7fffffffffffffff", "8000000000000000"):
            headers = {"traceparent": f"00-{'a' * 16}{low}-{SENDER}-01"}
            with traces.span("request", parent=headers):
                pass
    assert [span.trace[16:] for span in receiver.spans] == ["7fffffffffffffff"]


def test_an_unsampled_trace_goes_on_as_unsampled(receiver: Receiver) -> None:
    with tracing(receiver), traces.span("request", parent=parent(sampled=False)):
        handed_on = traces.headers()
    assert handed_on["traceparent"].startswith(f"00-{TRACE}-")
    assert handed_on["traceparent"].endswith("-00")
    assert handed_on["tracestate"] == "vendor=shop"
    assert not receiver.spans


@pytest.mark.parametrize(
    "given", [None, "00-abc", f"00-{'0' * 32}-{SENDER}-01", f"ff-{TRACE}-{SENDER}-01", "é"]
)
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(receiver: Receiver, given: str | None) -> None:
    headers = {} if given is None else {"traceparent": given}
    with tracing(receiver), traces.span("flush"), traces.span("request", parent=headers):
        pass
    (request,) = receiver.named("request")
    (flush,) = receiver.named("flush")
    assert request.parent == ""
    assert request.trace not in (TRACE, flush.trace)


async def test_tasks_and_threads_inherit_the_current_span_and_others_do_not(receiver: Receiver) -> None:
    def step(name: str) -> None:
        with traces.child(name):
            pass

    async def task() -> None:
        step("task")

    with tracing(receiver):
        with traces.span("flush"):
            await asyncio.gather(task(), asyncio.to_thread(step, "thread"))
            apart = threading.Thread(target=step, args=("apart",))
            apart.start()
            apart.join()
        step("afterwards")
        await asyncio.sleep(0)
    (flush,) = receiver.named("flush")
    assert {span.name for span in receiver.below(flush)} == {"task", "thread"}
    assert len(receiver.spans) == 3


def test_counts_add_up_in_the_spans_above(receiver: Receiver) -> None:
    with tracing(receiver), traces.span("flush"):
        for size in (3, 4):
            with traces.child("upsert") as span:
                span.add(bytes=size)
                span.add(bytes=10)
    sizes = [(span.name, span.attributes["spendstream.bytes"]) for span in receiver.spans]
    assert sizes == [("upsert", 13), ("upsert", 14), ("flush", 27)]


def test_a_failed_span_has_the_kind_of_the_error_and_never_its_text(receiver: Receiver) -> None:
    with tracing(receiver), pytest.raises(ValueError, match="hush"), traces.span("publish"):
        raise ValueError("hush: a text of a sender")
    (span,) = receiver.spans
    assert span.failed
    assert span.attributes == {"error.type": "ValueError"}
    assert "hush" not in repr(span)


def test_attributes_and_links_have_bounds(receiver: Receiver) -> None:
    with tracing(receiver):
        with traces.span("one"):
            place = traces.context()
        with traces.span("long", links=[place] * 200, text="x" * 100_000, absent=None) as span:
            span.set(**{f"name{number}": number for number in range(1000)})
    (long,) = receiver.named("long")
    assert len(long.links) == traces.LINKS_MAX
    assert len(long.attributes) <= 64
    assert max(len(str(value)) for value in long.attributes.values()) <= 256
    assert "spendstream.absent" not in long.attributes


def test_the_operator_has_the_last_word_on_the_resource(receiver: Receiver) -> None:
    resource = (("service.name", "theirs"), ("service.version", "9"), ("team", "usage, and é"))
    for name, expected in ((None, "theirs"), ("mine", "mine")):
        with tracing(receiver, resource=resource, service_name=name), traces.span("flush"):
            pass
        said = receiver.spans.pop().resource
        assert said["service.name"] == expected
        assert (said["service.version"], said["team"]) == ("9", "usage, and é")


def test_after_the_end_nothing_is_traced(receiver: Receiver) -> None:
    with tracing(receiver):
        assert traces.is_on()
    assert not traces.is_on()
    assert traces.span("flush") is traces.OFF
    assert traces.counts() is None
    with traces.span("flush") as span:
        span.set(rows=1)
        span.add(bytes=1)
        span.failed("x")
        assert traces.current() is traces.OFF
    assert not receiver.requests
