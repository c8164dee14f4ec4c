"""Prometheus: requests and who was let in, connections, exports, and how far each partition has come.

Labels are bounded: they are route templates and known methods, never a raw path, an org or a user. What the
database says (`Facts`) is asked at each scrape. So a lag grows when the pipeline is dead, and the age of a
job when every exporter is. Without a database there is no lag at all, which an alert can see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.reading.freshness import lag_s
from pipeline.common import process_metrics
from pipeline.common.served import Decisions, Served

disable_created_metrics()  # type: ignore[no-untyped-call]

_BUCKETS_S: Final = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0)
"""2 s and 5 s are bounds of alerts: a quantile is exact at the edge of a bucket, and guessed between two."""
_EXPORT_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
_HOUR: Final = timedelta(hours=1)

OUTCOMES: Final = ("succeeded", "repeated", "failed", "given_back", "lost")
"""How an attempt at an export job ends. ``repeated``: the attempt failed, and the job will be tried again.
``failed``: the job was given up. ``given_back``: the exporter was stopped. ``lost``: another exporter has the
job."""
OPEN: Final = ("pending", "running")
"""The statuses of an export job that has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the database says at a scrape."""

    watermarks: Mapping[int, datetime | None] = field(default_factory=dict)
    """By partition; None: the partition has no watermark yet."""
    open_exports: Mapping[str, int] = field(default_factory=dict)
    """How many export jobs have each status of `OPEN`."""
    oldest_export_at: datetime | None = None
    """When the oldest of these jobs was made; None: there is none."""


class Exports:
    """The metrics of an exporter, whether it is a process of its own or a part of the API."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "analytics_export_attempts_total",
            "Attempts at export jobs by how they ended: succeeded, repeated (failed, to be tried again),"
            " failed (the job was given up), given_back (the exporter was stopped), lost (to another one).",
            ("outcome",),
            registry=registry,
        )
        self._durations = Histogram(
            "analytics_export_duration_seconds",
            "Time from the claim of an export job to the end of the attempt.",
            ("outcome",),
            buckets=_EXPORT_BUCKETS_S,
            registry=registry,
        )
        for outcome in OUTCOMES:  # shown from the start, at 0
            self._ended.labels(outcome)
            self._durations.labels(outcome)

    def ended(self, outcome: str, seconds: float) -> None:
        """Count an attempt that ended with one of `OUTCOMES` after some seconds."""
        assert outcome in OUTCOMES, outcome
        self._ended.labels(outcome).inc()
        self._durations.labels(outcome).observe(seconds)


class Connections(Protocol):
    """What metrics say of a pool of connections."""

    @property
    def size(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Questions(Protocol):
    """What metrics say of `api.access.turns.Turns`."""

    @property
    def waiting(self) -> int: ...


class Metrics:
    """The metrics of one API process (not of the interpreter: tests run several)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        process_metrics.show(self._registry)
        self.served = Served(self._registry, buckets_s=_BUCKETS_S)
        self.decisions = Decisions(self._registry)
        self.exports = Exports(self._registry)
        self._live_clients = Gauge(
            "analytics_live_clients", "Live connections (SSE) now open.", registry=self._registry
        )
        self._live_dropped = Counter(
            "analytics_live_dropped_total",
            "Live connections that the server ended.",
            ("reason",),
            registry=self._registry,
        )
        for reason in ("slow", "shutdown", "time"):
            self._live_dropped.labels(reason)

    def expect(self, routes: Iterable[tuple[str, str]]) -> None:
        """Show the failures of these routes, each a method and a path template, from the start, at 0."""
        for method, route in routes:
            self.served.expect(method, route)

    def watch(self, pool: Connections, questions: Questions, *, stream_max_age_s: float) -> None:
        """Show the database's connections, the questions that wait, and a setting that an alert compares."""
        gauge = self._gauge
        gauge("analytics_database_pool_size", "Connections to the database that this process may have.").set(
            pool.size
        )
        gauge("analytics_database_pool_in_use", "Connections that are in use.").set_function(
            lambda: pool.in_use
        )
        gauge("analytics_database_pool_waiting", "Work that waits for one of the connections.").set_function(
            lambda: pool.waiting
        )
        gauge(
            "analytics_questions_waiting",
            "Requests that wait for their org's, their caller's or the database's turn.",
        ).set_function(lambda: questions.waiting)
        gauge(
            "analytics_stream_max_age_seconds",
            "STREAM_MAX_AGE: how long a stream that we declare keeps records.",
        ).set(stream_max_age_s)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def live_clients(self, count: int) -> None:
        """Show how many live connections are open now."""
        self._live_clients.set(count)

    def live_dropped(self, reason: str) -> None:
        """Count a live connection that the server ended: ``reason`` is slow, shutdown or time."""
        self._live_dropped.labels(reason).inc()

    def exposition(self, facts: Facts, now: datetime) -> bytes:
        """The text of a scrape. A partition without a watermark has no lag."""
        asked = CollectorRegistry()
        asked.register(_Asked(facts, now))
        return generate_latest(self._registry) + generate_latest(asked)


def waiting_hour_s(watermark: datetime, now: datetime) -> float:
    """How long the oldest hour that is over and not complete has been over, in seconds; 0: all are complete.

    An hour is complete once the watermark has passed its end. Example: the watermark is 11:58:00 and the time
    12:03:00. The hour from 11:00 ended three minutes ago and is not complete: 180.
    """
    since_epoch = watermark.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    end = watermark + (_HOUR - since_epoch % _HOUR)
    return max(0.0, (now - end).total_seconds())


class _Asked(Collector):
    def __init__(self, facts: Facts, now: datetime) -> None:
        self._facts = facts
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        facts, now = self._facts, self._now
        lags = GaugeMetricFamily(
            "analytics_freshness_lag_seconds", "Now minus the partition's watermark.", labels=("partition",)
        )
        hours = GaugeMetricFamily(
            "analytics_hour_waiting_seconds",
            "How long the oldest hour that is over has waited to be complete; 0: each hour that is over is.",
            labels=("partition",),
        )
        for partition, watermark in sorted(facts.watermarks.items()):
            lag = lag_s(watermark, now)
            if lag is not None and watermark is not None:
                lags.add_metric((str(partition),), lag)
                hours.add_metric((str(partition),), waiting_hour_s(watermark, now))
        yield lags
        yield hours
        if not facts.open_exports:
            return
        jobs = GaugeMetricFamily(
            "analytics_export_jobs", "Export jobs that have not ended, by status.", labels=("status",)
        )
        for status, count in facts.open_exports.items():
            jobs.add_metric((status,), count)
        yield jobs
        oldest = facts.oldest_export_at
        yield GaugeMetricFamily(
            "analytics_export_oldest_seconds",
            "How long the oldest export job that has not ended has waited for its file; 0: there is none.",
            value=0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()),
        )
