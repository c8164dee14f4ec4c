"""The spans that wait for their export: a queue with a bound, and the thread that empties it.

Whoever ends a span puts it here and goes on, whatever the receiver does. If the queue is full, the span is
lost. If an export fails, the spans of its batch are lost: the exporter has tried for the whole
OTEL_EXPORTER_OTLP_TIMEOUT. Lost spans are counted by reason, and the log says so once a minute. No figure
depends on a span.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pipeline.common.seldom import Seldom

log = logging.getLogger(__name__)

OUTCOMES: Final = ("exported", "queue_full", "not_taken", "at_the_end")
"""What becomes of a span. ``not_taken``: the receiver was away, was too slow or refused it. ``at_the_end``:
the process ended first."""
BATCH_SPANS: Final = 512
CLOSE_S: Final = 3.0
"""How long a process that ends waits for the last export."""


class Queue:
    """Exports spans in batches, in a thread of its own."""

    def __init__(self, export: Callable[[Sequence[Any]], bool], *, spans_max: int, delay_s: float) -> None:
        """``export`` sends a batch, and says whether the receiver has taken it. It may raise, and may wait.

        A batch is sent ``delay_s`` after the one before, or once `BATCH_SPANS` wait.
        """
        self._export = export
        self._spans_max = spans_max
        self._batch = min(BATCH_SPANS, spans_max)
        self._delay_s = delay_s
        self._waiting: deque[Any] = deque()
        self._in_hand = 0
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = False
        self._seldom = Seldom()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def put(self, span: Any) -> None:
        """Take a span that has ended, or count it as lost. Never waits for the receiver."""
        with self._lock:
            if self._closing or len(self._waiting) >= self._spans_max:
                self._counts["at_the_end" if self._closing else "queue_full"] += 1
                return
            self._waiting.append(span)
            enough = len(self._waiting) == self._batch
        if enough:
            self._news.set()

    def counts(self) -> Mapping[str, int]:
        """How many spans had each of `OUTCOMES`."""
        with self._lock:
            return dict(self._counts)

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Export what waits, for ``timeout_s`` at most. What is left is lost. Has the export ended?"""
        with self._lock:
            self._closing = True
        self._news.set()
        self._thread.join(timeout_s)
        with self._lock:
            left = self._in_hand + len(self._waiting)
            self._waiting.clear()
            self._in_hand = 0
            self._counts["at_the_end"] += left
            counts = dict(self._counts)
        lost = {name: count for name, count in counts.items() if name != "exported" and count}
        if lost:
            log.warning("spans_lost", extra={"exported": counts["exported"], **lost})
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._news.wait(self._delay_s)
            self._news.clear()
            while batch := self._next():
                self._send(batch)
            if self._closing:
                return

    def _next(self) -> list[Any]:
        with self._lock:
            count = min(self._batch, len(self._waiting))
            self._in_hand = count
            return [self._waiting.popleft() for _ in range(count)]

    def _send(self, batch: list[Any]) -> None:
        fault = "refused, or not taken in time"
        began = time.monotonic()
        try:
            taken = self._export(batch)
        except Exception as error:  # whatever goes wrong with traces, the process goes on
            taken, fault = False, type(error).__name__
        with self._lock:
            if not self._in_hand:  # `close` has counted this batch
                return
            self._in_hand = 0
            self._counts["exported" if taken else "not_taken"] += len(batch)
        if not taken and (lost := self._seldom.count("spans", len(batch))) is not None:
            after_s = round(time.monotonic() - began, 3)
            log.warning("spans_not_taken", extra={"spans": lost, "fault": fault, "after_s": after_s})
