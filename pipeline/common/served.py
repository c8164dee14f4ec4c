"""The metrics that every server of ours has alike: its requests, and who was let in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What an exposition is."""
_FAILURES: Final = ("500", "503")
"""The statuses of requests that we are to blame for."""
REFUSALS: Final = ("credential", "place", "org", "role", "rate", "unknown")
"""Why a request was refused before it was answered:

- ``credential``: it had none, or one that is not believed (401).
- ``place``: ``AUTH_MODE=none`` answers requests for localhost alone (403).
- ``org``: the org in its path is not the caller's (403).
- ``role``: the caller lacks the role of the route (403).
- ``rate``: the caller has asked too often, or too many wrong credentials came from its address (429).
- ``unknown``: it cannot be found out now, because the database or the issuer is away (503).
"""
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

    def expect(self, method: str, route: str) -> None:
        """Show from the start, at 0, what requests of this route would be counted under if they failed.

        Prometheus sees no increase in a series that begins at 1. Without this call the first 503 of a route
        would be in no error rate.
        """
        for status in _FAILURES:
            self._requests.labels(method, route, status)

    def count(self, method: str, route: str, status: int, duration_s: float | None) -> None:
        """Count a request. ``duration_s`` is None for a stream, which lasts as long as its client likes."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if duration_s is not None:
            self._durations.labels(method, route).observe(duration_s)


class Decisions:
    """Counts who was let in, and why others were not."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "analytics_auth_decisions_total",
            "Requests that were allowed, or refused, by reason: credential, place, org, role, rate, or"
            " unknown (a dependency is away). An allowed request has no reason.",
            ("decision", "reason"),
            registry=registry,
        )
        self._decisions.labels("allowed", "")
        for reason in REFUSALS:
            self._decisions.labels("refused", reason)

    def allowed(self) -> None:
        """Count a request whose caller is known and may ask what it asks."""
        self._decisions.labels("allowed", "").inc()

    def refused(self, reason: str) -> None:
        """Count a request that was refused; ``reason`` is one of `REFUSALS`."""
        assert reason in REFUSALS, reason
        self._decisions.labels("refused", reason).inc()
