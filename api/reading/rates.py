"""The rates of one org's models by a book, for rows that are priced here and not in SQL.

Both ways give the same figures. SQL prices rows before it groups them; see `api.reading.prices`. Plain rows
need no grouping (`api.reading.points`), and pricing them here takes a quarter of the time: a year of days of
five models has 1,950 rows, and PostgreSQL looks up the rates of each one anew.

Example: 1,000 input tokens at 2.50 dollars a million are 1,000 x 250,000,000,000,000 units, 0.0025 dollars.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from api.answering.money import UNITS_PER_MICROCENT
from api.asking.buckets import to_minute
from api.asking.params import CostBasis
from api.reading.seen import NO_LABEL, Label

if TYPE_CHECKING:
    from api.reading.rollups import UsageRow

StoredRow = tuple[int, str, str | None, int, int, int, int, int, int, int, int, int, int]
"""(bucket, model, client, rate class), and the measures of `rollups.STORED`."""

_ALWAYS: Final = (-(1 << 62), 1 << 62)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a model costs from one minute to another, for calls of one service tier and some sizes.

    ``rates`` are units for one: call, input token, output token, token read from the cache, written to it,
    written for an hour, reasoning token. Those of the last four are what is added to the rate of input or
    output, because these tokens are part of input or output.
    """

    service_tier: str
    context_from: int
    context_to: int
    valid_from: int
    valid_to: int
    rates: tuple[int, ...]


Sheets = Mapping[tuple[str, str], Sequence[Sheet]]
"""The sheets that hold for an org by provider and model name, in the order of their time."""


def sheets_of(text: str | None, org_id: UUID) -> Sheets:
    """The sheets that hold for an org, from the JSON of the query ``book``.

    Where the org has sheets of a model of its own, those of everyone do not hold.
    """
    found: dict[tuple[str, str], list[Sheet]] = defaultdict(list)
    org = str(org_id)
    for one in json.loads(text) if text else ():
        if one["org_id"] == org or (one["org_id"] is None and org not in one["excepted"]):
            found[one["provider"], one["model_name"]].append(_sheet(one))
    return {model: sorted(sheets, key=lambda sheet: sheet.valid_from) for model, sheets in found.items()}


def _sheet(one: Mapping[str, Any]) -> Sheet:
    kinds = ("request", "input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
    return Sheet(
        service_tier=one["service_tier"],
        context_from=one["context_from"],
        context_to=one["context_to"],
        valid_from=_minute(one["valid_from"]),
        valid_to=_minute(one["valid_to"]),
        rates=tuple(one[kind] for kind in kinds),
    )


def _minute(time: str) -> int:
    """Minutes since 1970 of a time as PostgreSQL writes it in JSON."""
    return _ALWAYS[1] if time == "infinity" else to_minute(datetime.fromisoformat(time))


def priced(
    rows: Iterable[StoredRow],
    *,
    sheets: Sheets,
    basis: CostBasis,
    labels: Mapping[str, Label],
    classes: Iterable[tuple[int, str, int]],
) -> list[UsageRow]:
    """The rows with what their calls cost, in the same order. No row spans a change of its price.

    ``labels`` are by the model's id as text; ``classes`` are (rate class, service tier, first number of input
    tokens). A row without a price costs what its producers estimated, or, by `CostBasis.BOOK`, has no cost.
    """
    by_estimate = basis is not CostBasis.BOOK
    meanings = {number: (tier, size) for number, tier, size in classes} if sheets else {}
    periods: dict[tuple[str, int], _Periods] = {}
    found: list[UsageRow] = []
    for row in rows:
        bucket, model, client, rate_class, *_ = row
        calls, into, out, microcents, read, write, write_1h, thought, unestimated = row[4:]
        of = periods.get((model, rate_class))
        if of is None:
            of = periods[model, rate_class] = _Periods(_of_class(sheets, labels, model, meanings, rate_class))
        rates = of.rates_at(bucket)
        if rates is not None:
            of_call, of_in, of_out, of_read, of_write, of_write_1h, of_thought = rates
            amount = calls * of_call + into * of_in + out * of_out
            amount += read * of_read + write * of_write + write_1h * of_write_1h + thought * of_thought
            booked, unpriced = calls, 0
        elif by_estimate:
            amount, booked, unpriced = microcents * UNITS_PER_MICROCENT, 0, unestimated
        else:
            amount, booked, unpriced = 0, 0, calls
        usage = (calls, into, out, microcents, read, write, write_1h, thought, unestimated)
        found.append((bucket, model, client, *usage, amount, booked, unpriced))
    return found


def _of_class(
    sheets: Sheets,
    labels: Mapping[str, Label],
    model: str,
    meanings: Mapping[int, tuple[str, int]],
    rate_class: int,
) -> list[Sheet]:
    """The sheets of a model for calls of a rate class, in the order of their time."""
    label = labels.get(model, NO_LABEL)
    of_model = sheets.get((label.provider or "", label.model_name or ""), ())
    if not of_model:
        return []
    tier, size = meanings[rate_class]
    return [
        sheet
        for sheet in of_model
        if sheet.service_tier == tier and sheet.context_from <= size < sheet.context_to
    ]


class _Periods:
    """The rates of one model and rate class by time. Rows come in order, so the last period mostly holds."""

    __slots__ = ("_from", "_rates", "_sheets", "_starts", "_to")

    def __init__(self, sheets: Sequence[Sheet]) -> None:
        self._sheets = sheets
        self._starts = [sheet.valid_from for sheet in sheets]
        self._rates: tuple[int, ...] | None = None
        self._from, self._to = (0, 0) if sheets else _ALWAYS

    def rates_at(self, minute: int) -> tuple[int, ...] | None:
        """The rates of a row that starts at a minute; None if there is no price."""
        if not self._from <= minute < self._to:
            self._find(minute)
        return self._rates

    def _find(self, minute: int) -> None:
        place = bisect_right(self._starts, minute)
        following = self._starts[place] if place < len(self._starts) else _ALWAYS[1]
        self._from, self._to, self._rates = _ALWAYS[0], following, None
        if place:
            sheet = self._sheets[place - 1]
            if minute < sheet.valid_to:
                self._from, self._to, self._rates = sheet.valid_from, sheet.valid_to, sheet.rates
            else:
                self._from = sheet.valid_to
