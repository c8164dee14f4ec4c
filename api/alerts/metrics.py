"""The metrics of ``spendstream alerts``. No label names an org, a budget or an endpoint."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from api.alerts.judge import Judged

disable_created_metrics()  # type: ignore[no-untyped-call]

_LOOK_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


OUTCOMES: Final = ("delivered", "repeated", "failed", "gone")
"""How an attempt ends. ``repeated``: it failed, and there will be another one. ``failed``: it was the last.
``gone``: the endpoint answered 410."""


class Metrics:
    """What the process has judged."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._budgets = Counter(
            "analytics_budgets_judged",
            "Budgets that were judged, each time that they were.",
            registry=registry,
        )
        self._read = Counter(
            "analytics_budgets_read",
            "Budgets for which all rows of their periods were read. The others have not moved to a level.",
            registry=registry,
        )
        self._alerts = Counter(
            "analytics_budget_alerts",
            "Alerts that were committed: raised (a threshold was crossed) or resolved.",
            ("kind",),
            registry=registry,
        )
        for kind in ("raised", "resolved"):
            self._alerts.labels(kind)
        self._failures = Counter(
            "analytics_budget_failures",
            "Orgs whose budgets could not be judged; the log says why.",
            registry=registry,
        )
        self._faults = Gauge(
            "analytics_budget_periods_without_figure",
            "Periods of the last transaction whose rows are kept no more, so that nobody can judge them.",
            registry=registry,
        )
        self._look_s = Histogram(
            "analytics_budgets_look_seconds",
            "How long a look at all changed budgets took.",
            buckets=_LOOK_BUCKETS_S,
            registry=registry,
        )
        self._last = Gauge(
            "analytics_budgets_last_success_timestamp_seconds",
            "When the last look ended that judged all changed budgets; 0: there was none yet.",
            registry=registry,
        )

        self._deliveries = Counter(
            "analytics_webhook_attempts",
            "Attempts to deliver a message to a webhook, by outcome.",
            ("outcome",),
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._deliveries.labels(outcome)
        self._waiting = Gauge(
            "analytics_webhook_deliveries_waiting",
            "Deliveries of all orgs, to enabled webhooks, that have neither arrived nor failed.",
            registry=registry,
        )
        self._oldest = Gauge(
            "analytics_webhook_oldest_seconds",
            "How long the oldest of these deliveries has waited; 0: there is none.",
            registry=registry,
        )
        self._failing = Gauge(
            "analytics_webhooks_failing",
            "Webhooks whose last attempt failed, or whose endpoint is gone.",
            registry=registry,
        )

    def sent(self, outcome: str) -> None:
        """Count an attempt: one of `OUTCOMES`."""
        self._deliveries.labels(outcome).inc()

    def outbox(self, waiting: int, oldest_s: float, failing: int) -> None:
        """Show what the outbox holds."""
        self._waiting.set(waiting)
        self._oldest.set(oldest_s)
        self._failing.set(failing)

    def judged(self, judged: Judged) -> None:
        """Count what a transaction has committed."""
        self._budgets.inc(judged.budgets)
        self._read.inc(judged.read)
        self._alerts.labels("raised").inc(judged.raised)
        self._alerts.labels("resolved").inc(judged.resolved)
        self._faults.set(judged.faults)

    def unmoved(self, budgets: int) -> None:
        """Count budgets that changed and cannot have reached a level."""
        self._budgets.inc(budgets)

    def failed(self) -> None:
        """Count an org that could not be judged."""
        self._failures.inc()

    def looked(self, took_s: float, *, succeeded: bool) -> None:
        """Note a look at all changed budgets."""
        self._look_s.observe(took_s)
        if succeeded:
            self._last.set_to_current_time()
