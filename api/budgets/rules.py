"""The rules of budgets: pure, without a clock and without a database.

Amounts are whole numbers of the metric's *unit*: 10^-20 dollars (`api.answering.money`), tokens or requests.
A threshold is crossed when the figure has reached its *level*. For example, 80 % of a budget of 250 dollars
is crossed at exactly 200 dollars.

Each threshold of a period is a small state machine. It is *ok* until its level is reached, then in *alarm*,
and *resolved* when a later look finds the figure below the level, or the budget without such a level. It is
told once a period that the level is reached, and once that it is resolved, however often it changes again.

A budget that counts something else from now on has another *definition*: another scope, metric, period or
time zone. Its thresholds are new ones, each with a state of its own, and the alarms of the old ones in the
periods that run are resolved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from api.answering.money import UNIT_DECIMALS
from api.asking.buckets import Span, to_minute
from api.budgets.periods import Period

NAME_CHARS_MAX: Final = 128
THRESHOLDS_MAX: Final = 10
BUDGETS_MAX: Final = 200
"""How many budgets an org may have."""
AMOUNT_MAX: Final = 10**15
PERCENT_MAX: Final = 1000
COST_DECIMALS: Final = 12
PERCENT_DECIMALS: Final = 2
FORECAST_FROM: Final = 20
"""There is a forecast once this part of a period has passed: a twentieth."""


class Metric(StrEnum):
    """What a budget counts."""

    COST = "cost"
    TOKENS = "tokens"
    REQUESTS = "requests"


class Basis(StrEnum):
    """Which figure a threshold looks at."""

    ACTUAL = "actual"
    FORECAST = "forecast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A level of a budget: a percentage of its amount, or an amount by itself. Exactly one of them is set."""

    basis: Basis
    percent: Decimal | None = None
    amount: Decimal | None = None

    def shown(self) -> dict[str, str]:
        """The threshold as JSON has it."""
        named = ("percent", self.percent) if self.percent is not None else ("amount", self.amount)
        return {named[0]: plain(named[1] or Decimal(0)), "on": self.basis.value}


def threshold_of(shown: Mapping[str, str]) -> Threshold:
    """The threshold that `Threshold.shown` has written."""
    numbers = {name: Decimal(shown[name]) for name in ("percent", "amount") if name in shown}
    return Threshold(basis=Basis(shown["on"]), **numbers)


def scaled(number: Decimal, decimals: int) -> int:
    """A number of at most so many decimals as a whole number of their unit. Decimal's own arithmetic would
    round it to 28 digits."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    whole, shift = int("".join(map(str, digits))), exponent + decimals
    factor: int = 10 ** abs(shift)
    return whole * factor if shift >= 0 else whole // factor


def units(metric: Metric, number: Decimal) -> int:
    """A number of dollars, tokens or requests, in units."""
    return scaled(number, UNIT_DECIMALS if metric is Metric.COST else 0)


def plain(number: Decimal) -> str:
    """An exact number without an exponent and without zeros at its end: ``80``, ``0.5``."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The usage that a budget is of: that of the org, of one model, or of one value of a dimension.

    ``dimension`` may be ``client``. An empty value means events without one.
    """

    model_id: UUID | None = None
    dimension: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a budget says."""

    name: str
    scope: Scope
    metric: Metric
    period: Period
    zone: ZoneInfo
    amount: Decimal
    thresholds: tuple[Threshold, ...]

    @property
    def counted(self) -> dict[str, Any]:
        """What the budget counts, as columns of ``analytics.budgets`` and ``analytics.budget_alerts``."""
        return {
            "model_id": self.scope.model_id,
            "dimension": self.scope.dimension,
            "value": self.scope.value,
            "metric": self.metric.value,
            "period": self.period.value,
            "time_zone": self.zone.key,
        }

    def units(self, number: Decimal) -> int:
        """A number of dollars, tokens or requests, in units."""
        return units(self.metric, number)

    def level(self, threshold: Threshold) -> int:
        """What the figure must reach, in units; rounded up where a percentage is no whole number of them."""
        if threshold.amount is not None:
            return self.units(threshold.amount)
        assert threshold.percent is not None
        hundredths = scaled(threshold.percent, PERCENT_DECIMALS)
        whole: int = 10 ** (2 + PERCENT_DECIMALS)
        return -(-self.units(self.amount) * hundredths // whole)

    def levels(self) -> dict[tuple[Basis, int], Threshold]:
        """The thresholds by what makes an alert of a period unique."""
        return {(one.basis, self.level(one)): one for one in self.thresholds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A plan as it is kept. ``definition``, ``judged_from`` and ``closed_to``: see ``sql.schema.budgets``."""

    budget_id: UUID
    org_id: UUID
    version: int
    definition: int
    plan: Plan
    created_at: datetime
    updated_at: datetime
    judged_from: datetime
    closed_to: datetime | None

    @property
    def open_from(self) -> int:
        """The first minute of the periods that are still judged."""
        since = to_minute(self.judged_from)
        return since if self.closed_to is None else max(since, to_minute(self.closed_to))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent in a period, in units, and how far the org had come then.

    ``watermark`` is that of the org's slowest partition; None: it has none yet, or the org was never seen.
    ``unpriced`` counts the calls of a cost that nobody knows.
    """

    units: int
    unpriced: int
    watermark: datetime | None
    final: bool
    price_version: int


def forecast(spent: int, span: Span, watermark: datetime | None) -> int | None:
    """What a period will come to at its end, if it goes on as it went up to the watermark.

    None: less than a twentieth of the period has passed, so nobody can tell. After the period it is what was
    spent. For example, 30 dollars in the first 6 hours of a day of 24 hours make 120 dollars.
    """
    if watermark is None:
        return None
    passed, length = to_minute(watermark) - span.start, span.end - span.start
    if passed >= length:
        return spent
    if passed * FORECAST_FROM < length:
        return None
    return spent * length // passed


def is_final(span: Span, watermark: datetime | None, dedupe_window_s: float) -> bool:
    """Can only a backfill still change the figures of the period?"""
    return watermark is not None and watermark.timestamp() - dedupe_window_s >= span.end * 60


def reached(figure: int | None, level: int) -> bool:
    return figure is not None and figure >= level


def crossed(plan: Plan, spent: int, expected: int | None) -> Iterator[tuple[Basis, int]]:
    """The thresholds whose level the figures have reached."""
    for basis, level in plan.levels():
        if reached(spent if basis is Basis.ACTUAL else expected, level):
            yield basis, level


class State(StrEnum):
    """The state of a threshold in a period, or the worst one of a budget's thresholds."""

    OK = "ok"
    ALARM = "alarm"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Step:
    """A change of one threshold. ``because``: of a threshold that is resolved, was it the figure or the
    budget that changed?"""

    basis: Basis
    level: int
    to: State
    because: str | None = None


def steps(
    plan: Plan, spent: int, expected: int | None, known: Mapping[tuple[Basis, int], State]
) -> Sequence[Step]:
    """What must change in a period, whose thresholds in ``known`` have been crossed before."""
    due = set(crossed(plan, spent, expected))
    found = [Step(*key, State.ALARM) for key in sorted(due) if known.get(key) is not State.ALARM]
    levels = plan.levels()
    for key, state in sorted(known.items()):
        if state is State.ALARM and key not in due:
            found.append(Step(*key, State.RESOLVED, "figure" if key in levels else "budget"))
    return found


def worst(states: Iterable[State]) -> State:
    """Alarm, if any of the thresholds is in alarm."""
    return State.ALARM if State.ALARM in set(states) else State.OK
