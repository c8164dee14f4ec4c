"""The bodies of requests that make or change a budget. All faults are said at once."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from api.asking.bodies import Body
from api.asking.limits import Limits
from api.budgets.periods import Period, begins_on_hours
from api.budgets.rules import (
    AMOUNT_MAX,
    COST_DECIMALS,
    NAME_CHARS_MAX,
    PERCENT_DECIMALS,
    PERCENT_MAX,
    THRESHOLDS_MAX,
    Basis,
    Metric,
    Plan,
    Scope,
    Threshold,
)
from pipeline.common import ids
from pipeline.common.texts import is_line, is_visible
from pipeline.core import wire

FIELDS: Final = ("name", "scope", "metric", "period", "timeZone", "amount", "thresholds")
NUMBER: Final = r"^(0|[1-9][0-9]{0,15})(\.[0-9]{1,12})?$"
"""What the text of an amount looks like."""
DIMENSION: Final = r"^[a-z][a-z0-9_]{0,31}$"
_DAYS_MAX: Final = {Period.DAY: 2, Period.WEEK: 8, Period.MONTH: 32, Period.QUARTER: 93, Period.YEAR: 367}
_DAY_S: Final = 86_400


def plan(body: bytes, limits: Limits) -> Plan:
    """What the budget is to say. Raises `Problem` 400 with every fault."""
    reader = Body(body, FIELDS)
    name = reader.get("name")
    if not (is_line(name, NAME_CHARS_MAX) and is_visible(name)):
        reader.fault(
            "name", f"expected 1 to {NAME_CHARS_MAX} characters, not blank, without control characters"
        )
    metric = Metric(_choice(reader, "metric", [*Metric]))
    period = Period(_choice(reader, "period", [*Period]))
    scope = _scope(reader)
    zone = reader.zone("timeZone")
    _check_rows(reader, period, zone, scope, limits)
    amount = _number(reader, "amount", reader.get("amount"), metric)
    thresholds = _thresholds(reader, metric)
    found = Plan(
        name=str(name),
        scope=scope,
        metric=metric,
        period=period,
        zone=zone,
        amount=amount or Decimal(1),
        thresholds=thresholds,
    )
    if amount and len(found.levels()) < len(thresholds):
        reader.fault("thresholds", "two of them come to the same amount")
    if amount and any(found.level(one) > found.units(Decimal(AMOUNT_MAX)) for one in thresholds):
        reader.fault("thresholds", f"one of them comes to more than {AMOUNT_MAX}")
    reader.finish()
    return found


def _choice(reader: Body, name: str, choices: list[Any]) -> str:
    words = [choice.value for choice in choices]
    if not reader.has(name):
        reader.fault(name, f"is missing; expected one of {', '.join(words)}")
        return str(words[0])
    return reader.choice(name, words, words[0])


def _scope(reader: Body) -> Scope:
    given = reader.get("scope")
    if given is None:
        if reader.has("scope"):
            reader.fault("scope", "expected an object; without the field the budget is of the whole org")
        return Scope()
    if not isinstance(given, dict) or sorted(given) not in ([], ["modelId"], ["dimension", "value"]):
        reader.fault("scope", "expected an object with modelId, or with dimension and value, or empty")
        return Scope()
    if "modelId" in given:
        try:
            return Scope(model_id=ids.uuid(given["modelId"]))
        except (TypeError, ValueError, AttributeError):
            reader.fault("scope.modelId", "expected a UUID")
    if "dimension" in given:
        dimension, value = given["dimension"], given["value"]
        if not isinstance(dimension, str) or not re.fullmatch(DIMENSION, dimension, re.ASCII):
            reader.fault("scope.dimension", "expected client or the name of a dimension")
        elif not isinstance(value, str) or (value and not is_line(value, wire.VALUE_CHARS_MAX)):
            reader.fault(
                "scope.value",
                f"expected a text of at most {wire.VALUE_CHARS_MAX} characters, without control characters",
            )
        else:
            return Scope(dimension=dimension, value=value)
    return Scope()


def _check_rows(reader: Body, period: Period, zone: ZoneInfo, scope: Scope, limits: Limits) -> None:
    """Will the rows of a whole period still be kept when its figures are final?"""
    ranges = limits.ranges
    kept_s = _DAYS_MAX[period] * _DAY_S + ranges.dedupe_window_s
    if kept_s > ranges.retention_rollup_s:
        reader.fault("period", "is longer than rows are kept (RETENTION_ROLLUP)")
    if begins_on_hours(zone, limits.now):
        return
    if scope.dimension is not None:
        reader.fault(
            "timeZone",
            "its days do not begin on whole hours of UTC, and figures by"
            f" {scope.dimension} exist from the hour grain up",
        )
    elif zone.key not in ranges.day_zones and kept_s > ranges.retention_minute_s:
        reader.fault(
            "timeZone",
            "its days do not begin on whole hours of UTC, which takes minute rows, and those are not kept for"
            " a whole period (RETENTION_MINUTE); take another zone, or name this one in DAY_ZONES",
        )


def _number(reader: Body, name: str, given: Any, metric: Metric) -> Decimal | None:
    """An amount of the metric. None: there is a fault, which is reported."""
    number = None
    if isinstance(given, str) and re.fullmatch(NUMBER, given, re.ASCII):
        number = Decimal(given)
    if number is None or not 0 < number <= AMOUNT_MAX:
        reader.fault(
            name,
            f'expected a text such as "250" or "99.5", above 0 and at most {AMOUNT_MAX}, with at most'
            f" {COST_DECIMALS} decimals",
        )
        return None
    if metric is not Metric.COST and number != int(number):
        reader.fault(name, f"must be a whole number of {metric}")
        return None
    return number


def _thresholds(reader: Body, metric: Metric) -> tuple[Threshold, ...]:
    given = reader.get("thresholds")
    if not isinstance(given, list) or not 1 <= len(given) <= THRESHOLDS_MAX:
        reader.fault("thresholds", f"expected a list of 1 to {THRESHOLDS_MAX} thresholds")
        return ()
    found = [_threshold(reader, f"thresholds[{place}]", one, metric) for place, one in enumerate(given)]
    return tuple(one for one in found if one is not None)


def _threshold(reader: Body, name: str, given: Any, metric: Metric) -> Threshold | None:
    if not isinstance(given, dict) or sorted(given) not in (["on", "percent"], ["amount", "on"]):
        reader.fault(name, "expected an object with the field on, and with one of percent and amount")
        return None
    words = [basis.value for basis in Basis]
    if given["on"] not in words:
        reader.fault(f"{name}.on", f"expected one of {', '.join(words)}")
        return None
    basis = Basis(given["on"])
    if "amount" in given:
        amount = _number(reader, f"{name}.amount", given["amount"], metric)
        return None if amount is None else Threshold(basis=basis, amount=amount)
    percent = given["percent"]
    number = Decimal(0)
    if isinstance(percent, str) and re.fullmatch(NUMBER, percent, re.ASCII):
        number = Decimal(percent)
    elif type(percent) in (int, float) and abs(percent) <= PERCENT_MAX:
        number = Decimal(repr(percent))
    if not 0 < number <= PERCENT_MAX or number != round(number, PERCENT_DECIMALS):
        reader.fault(
            f"{name}.percent",
            f"expected a number above 0 and at most {PERCENT_MAX}, with at most {PERCENT_DECIMALS} decimals",
        )
        return None
    return Threshold(basis=basis, percent=number)
