"""Prometheus: counts and times of requests, and the freshness lag by partition.

Labels are bounded: they are route templates and known methods, never a raw path, an org or a user. The lag is
computed from the database at each scrape, so it grows when the pipeline is dead. Without a database there is
no lag at all, which an alert can see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.reading.freshness import lag_s
from pipeline.common.served import Served

_BUCKETS_S: Final = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one API process (not of the interpreter: tests run several)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.served = Served(self._registry, buckets_s=_BUCKETS_S)
        self._live_clients = Gauge(
            "analytics_live_clients", "Live connections (SSE) now open.", registry=self._registry
        )
        self._live_dropped = Counter(
            "analytics_live_dropped_total",
            "Live connections that the server ended.",
            ("reason",),
            registry=self._registry,
        )

    def live_clients(self, count: int) -> None:
        """Show how many live connections are open now."""
        self._live_clients.set(count)

    def live_dropped(self, reason: str) -> None:
        """Count a live connection that the server ended: ``reason`` is slow, shutdown or time."""
        self._live_dropped.labels(reason).inc()

    def exposition(self, watermarks: Mapping[int, datetime | None], now: datetime) -> bytes:
        """The text of a scrape. A partition without a watermark has no lag."""
        lags = CollectorRegistry()
        lags.register(_Lags(watermarks, now))
        return generate_latest(self._registry) + generate_latest(lags)


class _Lags(Collector):
    def __init__(self, watermarks: Mapping[int, datetime | None], now: datetime) -> None:
        self._watermarks = watermarks
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "analytics_freshness_lag_seconds", "Now minus the partition's watermark.", labels=("partition",)
        )
        for partition, watermark in sorted(self._watermarks.items()):
            lag = lag_s(watermark, self._now)
            if lag is not None:
                family.add_metric((str(partition),), lag)
        yield family
