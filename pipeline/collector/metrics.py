"""The collector's Prometheus metrics. Labels are bounded: routes, statuses, dialects, outcomes; never a
tenant."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.collector.in_work import InWork
from pipeline.common import process_metrics
from pipeline.common.served import Served

disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


DIALECTS: Final = ("events", "litellm", "traces")
"""The names of `pipeline.collector.doors.DOORS` in metrics. Each is the last part of the door's path, too."""
OUTCOMES: Final = ("stream", "spool", "rejected", "passed_over", "withdrawn", "refused")


class Spooled(Protocol):
    """What metrics say of a `pipeline.collector.spool.Spool`."""

    @property
    def bytes(self) -> int: ...
    @property
    def bytes_max(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def records_lost(self) -> int: ...
    @property
    def records_too_large(self) -> int: ...
    @property
    def oldest_at(self) -> float | None: ...


class Metrics:
    """The metrics of one collector (not of the interpreter: tests run several)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        process_metrics.show(self._registry)
        self.served = Served(self._registry, buckets_s=_SECONDS)
        self._events = Counter(
            "analytics_collector_events_total",
            "Events, log payloads and spans by dialect and outcome: to the stream, to the spool, rejected,"
            " passed over, or refused because they could not be kept.",
            ("dialect", "outcome"),
            registry=self._registry,
        )
        self._confirms = Histogram(
            "analytics_collector_confirm_seconds",
            "Time from the sending of a batch to the broker's confirmation.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        for dialect in DIALECTS:  # shown from the start, at 0
            self.served.expect("POST", f"/v1/{dialect}")
            for outcome in OUTCOMES:
                self._events.labels(dialect, outcome)

    def show(self, in_work: InWork, spool: Spooled | None) -> None:
        """Show these from now on."""
        self._registry.register(_Gauges(in_work, spool))

    def counted(self, dialect: str, outcome: str, events: int) -> None:
        """Count events of a dialect."""
        if events:
            self._events.labels(dialect, outcome).inc(events)

    def confirmed(self, seconds: float) -> None:
        """Observe the confirmation of a batch."""
        self._confirms.observe(seconds)

    def exposition(self) -> bytes:
        """The text of a scrape."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """What is true at the moment of a scrape."""

    def __init__(self, in_work: InWork, spool: Spooled | None) -> None:
        self._in_work = in_work
        self._spool = spool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "analytics_collector_in_work_bytes",
            "Bytes of bodies and events in work; bounded by COLLECTOR_MEMORY_MAX.",
            value=self._in_work.bytes,
        )
        spool = self._spool
        if spool is None:
            return
        oldest_at = spool.oldest_at
        age_s = 0.0 if oldest_at is None else max(0.0, time.time() - oldest_at)
        for name, text, value in (
            ("bytes", "Bytes of the spool's files; bounded by COLLECTOR_SPOOL_BYTES_MAX.", spool.bytes),
            ("bytes_max", "COLLECTOR_SPOOL_BYTES_MAX.", spool.bytes_max),
            ("records", "Events in the spool that the broker has not confirmed.", spool.records),
            ("oldest_seconds", "How long the oldest event of the spool has been there.", age_s),
            ("lost_records", "Events of the spool that damage has made unreadable.", spool.records_lost),
            (
                "too_large_records",
                "Events of the spool that were set aside, because the broker takes none so large.",
                spool.records_too_large,
            ),
        ):
            yield GaugeMetricFamily(f"analytics_collector_spool_{name}", text, value=value)
