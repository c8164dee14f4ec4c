"""The metrics of requests, as every HTTP server of ours has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What an exposition is."""
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Served:
    """Counts requests, and how long they took. Labels are bounded: known methods, routes and statuses."""

    def __init__(self, registry: CollectorRegistry, *, buckets_s: Sequence[float]) -> None:
        self._requests = Counter(
            "http_requests_total",
            "Requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Time from the request's head to its answer.",
            ("method", "route"),
            buckets=buckets_s,
            registry=registry,
        )

    def count(self, method: str, route: str, status: int, duration_s: float | None) -> None:
        """Count a request. ``duration_s`` is None for a stream, which lasts as long as its client likes."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if duration_s is not None:
            self._durations.labels(method, route).observe(duration_s)
