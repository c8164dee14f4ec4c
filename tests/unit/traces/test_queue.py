"""The queue of spans: a bound that holds, an end that comes, and a place for every span in the counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.common import process_metrics, traces
from pipeline.common.traces.queue import BATCH_SPANS, OUTCOMES, Queue

FOREVER_S = 3600.0


class Receiver:
    """Takes batches while its gate is open; ``answer`` says what becomes of them."""

    def __init__(self, answer: bool | Exception = True) -> None:
        self.batches: list[list[Any]] = []
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Event()

    def __call__(self, batch: Sequence[Any]) -> bool:
        self.called.set()
        self.gate.wait()
        self.batches.append(list(batch))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.gate.set()


def counts(**some: int) -> dict[str, int]:
    return dict.fromkeys(OUTCOMES, 0) | some


def test_spans_are_exported_in_order_and_in_batches(receiver: Receiver) -> None:
    queue = Queue(receiver, spans_max=4 * BATCH_SPANS, delay_s=FOREVER_S)
    spans = list(range(2 * BATCH_SPANS + 7))
    for span in spans:
        queue.put(span)
    assert queue.close(60)
    assert [span for batch in receiver.batches for span in batch] == spans
    assert max(map(len, receiver.batches)) <= BATCH_SPANS
    assert queue.counts() == counts(exported=len(spans))


def test_a_full_batch_waits_for_no_delay(receiver: Receiver) -> None:
    queue = Queue(receiver, spans_max=4 * BATCH_SPANS, delay_s=FOREVER_S)
    for span in range(BATCH_SPANS):
        queue.put(span)
    assert receiver.called.wait(60)
    assert queue.close(60)


def test_a_lone_span_waits_for_the_delay_alone(receiver: Receiver) -> None:
    queue = Queue(receiver, spans_max=10, delay_s=0.01)
    queue.put("span")
    assert receiver.called.wait(60)
    assert queue.close(60)


def test_a_full_queue_loses_what_comes_and_keeps_what_waits(receiver: Receiver) -> None:
    receiver.gate.clear()
    queue = Queue(receiver, spans_max=5, delay_s=0.001)
    queue.put("in hand")
    assert receiver.called.wait(60)
    for span in range(8):
        queue.put(span)
    assert queue.counts() == counts(queue_full=3)
    receiver.gate.set()
    assert queue.close(60)
    assert [span for batch in receiver.batches for span in batch] == ["in hand", 0, 1, 2, 3, 4]
    assert queue.counts() == counts(exported=6, queue_full=3)


def test_the_end_leaves_an_export_behind_that_does_not_return(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.gate.clear()
    queue = Queue(receiver, spans_max=10, delay_s=0.001)
    queue.put("in hand")
    assert receiver.called.wait(60)
    queue.put("waiting")
    with caplog.at_level(logging.WARNING):
        assert not queue.close(0.01)
    queue.put("too late")
    assert queue.counts() == counts(at_the_end=3)
    assert [record.__dict__["at_the_end"] for record in caplog.records] == [2]
    receiver.gate.set()  # the export comes back after all: its spans are not counted twice
    queue._thread.join(60)
    assert queue.counts() == counts(at_the_end=3)


@pytest.mark.parametrize("answer", [False, OSError("hush"), ValueError("hush")])
def test_a_receiver_that_does_not_take_spans_loses_them_and_stops_nothing(
    answer: bool | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(answer)
    queue = Queue(receiver, spans_max=10, delay_s=0.001)
    with caplog.at_level(logging.WARNING):
        for span in range(3):
            receiver.called.clear()
            queue.put(span)
            assert receiver.called.wait(60)
        assert queue.close(60)
    assert queue.counts() == counts(not_taken=3)
    events = [record.message for record in caplog.records]
    assert events == ["spans_not_taken", "spans_lost"], "one line a minute, and one at the end"
    assert "hush" not in repr([record.__dict__ for record in caplog.records])


def test_the_page_counts_spans_while_tracing_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    process_metrics.show(registry)
    assert b"analytics_trace_spans" not in generate_latest(registry)

    class On:
        def counts(self) -> dict[str, int]:
            return counts(exported=5, queue_full=2)

    monkeypatch.setattr(traces, "_tracer", On())
    page = generate_latest(registry).decode()
    assert 'analytics_trace_spans_total{outcome="exported"} 5.0' in page
    assert 'analytics_trace_spans_total{outcome="queue_full"} 2.0' in page
    assert 'analytics_trace_spans_total{outcome="at_the_end"} 0.0' in page
