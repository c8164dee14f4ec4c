"""The metrics of notices, on the page of ``spendstream alerts``. No label names an org."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from api.notices.judge import Found


class NoticeMetrics:
    """What was found and told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sent = Counter(
            "analytics_notices",
            "Notices that were committed: unusual (an hour of unusual spend) or daily (a summary of a day).",
            ("kind",),
            registry=registry,
        )
        for kind in ("unusual", "daily"):
            self._sent.labels(kind)
        self._looks = Counter(
            "analytics_notices_looks",
            "Looks at one org that asks for notices.",
            registry=registry,
        )
        self._failures = Counter(
            "analytics_notices_failures",
            "Looks at one org that failed; the log says why.",
            registry=registry,
        )
        self._last = Gauge(
            "analytics_notices_last_success_timestamp_seconds",
            "When the last round ended in which all orgs that ask for notices were up to date; 0: none yet.",
            registry=registry,
        )

    def found(self, found: Found) -> None:
        """Count what a look has committed."""
        self._looks.inc()
        self._sent.labels("unusual").inc(found.hours)
        self._sent.labels("daily").inc(found.days)

    def failed(self) -> None:
        """Count an org that could not be looked at."""
        self._failures.inc()

    def up_to_date(self) -> None:
        """Note a round without a failure."""
        self._last.set_to_current_time()
