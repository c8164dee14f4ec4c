"""The demo's budgets: three of the org that spends most, of which one is about to be reached. And notices.

The amounts are made of what the org has spent, and of how fast it spends. With $3.00 spent today and $0.20
a second, the budget "Today" is $15.00: 80 % of it are $12.00, which are reached 45 seconds later. A second
start of the demo changes the same budgets, so they are ahead of the figures again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Decimal
from typing import Any, Final

from pipeline.demo import rest
from pipeline.demo.receiver import Receiver

REACHED_AFTER_S: Final = 45
"""How long after the budgets are set the first threshold is reached."""
NOTICES: Final = {"unusualSpend": {"enabled": True}, "dailySummary": {"enabled": True}}
"""What the org asks to be told of beside its budgets."""
_MEASURED_S: Final = 5.0
_HOUR_S: Final = 3600
_WEEK_S: Final = 604_800
_LEAST: Final = Decimal("0.0001")
_CENT: Final = Decimal("0.01")
_WEBHOOK: Final = "The demo's receiver"


@dataclass(frozen=True, slots=True)
class Spent:
    """What an org has spent in this UTC day and month, in US dollars, and its calls of this month."""

    day: Decimal
    month: Decimal
    calls: int


def plans(spent: Spent, dollars_a_second: Decimal, calls_a_second: float) -> tuple[dict[str, Any], ...]:
    """The budgets, as the API takes them. The first one is about to be reached."""
    speed = max(dollars_a_second, _LEAST)
    today = (spent.day + speed * REACHED_AFTER_S) / Decimal("0.8")
    actual = [{"percent": percent, "on": "actual"} for percent in (80, 100)]
    return (
        {
            "name": "Today",
            "metric": "cost",
            "period": "day",
            "amount": _cents(today),
            "thresholds": actual,
        },
        {
            "name": "This month",
            "metric": "cost",
            "period": "month",
            "amount": _cents(spent.month + speed * _HOUR_S),
            "thresholds": [*actual, {"percent": 100, "on": "forecast"}],
        },
        {
            "name": "Calls of the team search",
            "scope": {"dimension": "team", "value": "search"},
            "metric": "requests",
            "period": "week",
            "amount": str(max(1000, round(calls_a_second * _WEEK_S / 1000) * 1000)),
            "thresholds": actual,
        },
    )


def _cents(amount: Decimal) -> str:
    return f"{amount.quantize(_CENT, ROUND_UP):f}"


@dataclass(slots=True)
class Setting:
    """Sets the budgets of an org once its speed is known. ``api`` is the address with its base."""

    api: str
    org_id: str
    receiver: Receiver
    _first: tuple[float, Spent] | None = field(default=None, init=False)

    def step(self) -> str | None:
        """Measure, and then set the budgets; returns a line that says so, or None while it is too early.

        Raises OSError: the API does not answer. The next step tries again.
        """
        now_s, spent = time.monotonic(), self._spent()
        if self._first is None:
            self._first = now_s, spent
        began_s, before = self._first
        passed_s = now_s - began_s
        if passed_s < _MEASURED_S:
            return None
        self.receiver.secret = self._webhook()
        wanted = plans(
            spent,
            (spent.month - before.month) / Decimal(passed_s),
            (spent.calls - before.calls) / passed_s,
        )
        self._set(wanted)
        self._ask_for_notices()
        return (
            f"three budgets of org {self.org_id} are set; 80 % of today's ${wanted[0]['amount']} are reached"
            f" in about {REACHED_AFTER_S} s, and then a line shows what the webhook was sent"
        )

    def _spent(self) -> Spent:
        now = datetime.now(UTC)
        day = rest.day(now)
        figures = [
            rest.get(
                f"{self.api}/orgs/{self.org_id}/usage?{rest.between(start, day + timedelta(days=1))}"
                "&granularity=month&groupBy=none"
            )["totals"]
            for start in (day, day.replace(day=1))
        ]
        of_day, of_month = (Decimal(one["cost"]["amount"] or 0) for one in figures)
        return Spent(of_day, of_month, figures[1]["invocations"])

    def _webhook(self) -> str:
        """Lead the webhook of the demo to the receiver; returns its secret, which is a new one."""
        there = f"{self.api}/orgs/{self.org_id}/webhooks"
        wanted = {"name": _WEBHOOK, "url": self.receiver.url, "enabled": True}
        for one in rest.get(f"{there}?limit=1000")["items"]:
            if one["name"] == _WEBHOOK:
                changed = rest.send("PUT", f"{there}/{one['webhookId']}", {**wanted, "rotateSecret": True})
                return str(changed["secret"])
        return str(rest.send("POST", there, wanted)["secret"])

    def _ask_for_notices(self) -> None:
        """Ask for hours of unusual spend and for summaries of days, unless somebody has changed that."""
        there = f"{self.api}/orgs/{self.org_id}/notices"
        if rest.get(there)["version"] == 0:
            rest.send("PUT", there, NOTICES)

    def _set(self, wanted: tuple[dict[str, Any], ...]) -> None:
        there = f"{self.api}/orgs/{self.org_id}/budgets"
        known = {one["name"]: one["budgetId"] for one in rest.get(f"{there}?limit=1000")["items"]}
        for plan in wanted:
            if plan["name"] in known:
                rest.send("PUT", f"{there}/{known[plan['name']]}", plan)
            else:
                rest.send("POST", there, plan)
