"""What the live view shows, as values: spend, figures of a stretch of time, rows, and the whole view.

The module is pure. It reads answers of the API that are already decoded, and adds up exactly: amounts are
decimals, and no float touches them. A cost that nobody knows stays unknown, and its calls are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Context, Decimal, Inexact
from functools import reduce
from typing import Any, Final

OTHER_CHARS_MIN: Final = 129
"""A value that is longer than any real one stands for all that were counted beyond the bound of an hour."""

_EXACT: Final = Context(prec=60, traps=[Inexact])
"""Amounts have up to 20 decimals, so the usual 28 digits are too few for the sum of many orgs."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """``amount`` is of the calls that have a cost, in US dollars; None: no call has one. ``unpriced`` counts
    the others. ``basis`` is that of the API: book, estimate, mixed or none."""

    amount: Decimal | None = None
    unpriced: int = 0
    basis: str = "none"

    def __add__(self, other: Spend) -> Spend:
        amounts = [one for one in (self.amount, other.amount) if one is not None]
        bases = {one.basis for one in (self, other) if one.basis != "none"}
        return Spend(
            amount=reduce(_EXACT.add, amounts) if amounts else None,
            unpriced=self.unpriced + other.unpriced,
            basis=bases.pop() if len(bases) == 1 else "mixed" if bases else "none",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one stretch of time. None: the answer does not say, or nothing was called.

    ``error_share`` is from 0 to 1, and ``p95_ms`` in milliseconds.
    """

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int | None = None
    spend: Spend = Spend()
    error_share: float | None = None
    p95_ms: float | None = None

    def __add__(self, other: Figures) -> Figures:
        """Both together. Percentiles do not add up, so there is none."""
        requests = self.requests + other.requests
        shares = [one for one in (self, other) if one.error_share is not None]
        return Figures(
            requests=requests,
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            cached=None if self.cached is None or other.cached is None else self.cached + other.cached,
            spend=self.spend + other.spend,
            error_share=(
                sum(one.errors for one in shares) / (sum(one.requests for one in shares) or 1)
                if shares
                else None
            ),
        )

    @property
    def errors(self) -> int:
        """The calls that failed: the share is of whole calls, so this is exact."""
        return round((self.error_share or 0.0) * self.requests)


NOTHING: Final = Figures()
NO_CALLS: Final = Figures(cached=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """How old figures are. ``lag_s`` is that at ``read_s`` (of the monotonic clock), and grows from there."""

    status: str
    lag_s: float | None
    watermark: datetime | None
    counted_through: datetime | None
    read_s: float

    def lag_now_s(self, now_s: float) -> float | None:
        """The lag at ``now_s``."""
        return None if self.lag_s is None else self.lag_s + max(0.0, now_s - self.read_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One org, model, client or value. ``minute`` is the newest whole one; None: not counted by minutes.

    ``trend`` is the spend of equal stretches of time, the oldest first; None: not known yet.
    """

    key: str
    name: str
    minute: Figures | None
    hour: Figures
    today: Figures
    trend: tuple[Decimal | None, ...]
    freshness: Freshness | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that one screen shows, as the API answered it.

    ``minute_start`` is when the newest whole minute began; None: there is no watermark yet. ``hour_words``
    says what the column of the hour covers, ``trend_words`` what the trend covers. ``notes`` are things to
    know.
    """

    title: str
    by: str
    rows: tuple[Row, ...]
    total: Row
    minute_start: datetime | None
    hour_words: str
    trend_words: str
    read_at: datetime
    read_s: float
    notes: tuple[str, ...] = ()
    more_rows: bool = False


# --- reading answers ---------------------------------------------------------------------------------


def spend_of(given: Json) -> Spend:
    """The spend of a point, totals or org of an answer."""
    cost = given["cost"]
    amount = cost["amount"]
    unpriced = int(given["unpriced"]["invocations"])
    return Spend(
        amount=None if amount is None else Decimal(amount), unpriced=unpriced, basis=str(cost["basis"])
    )


def figures_of(given: Json) -> Figures:
    """The figures of a point, totals or org of an answer."""
    cached = given.get("cacheReadTokens")
    return Figures(
        requests=int(given["invocations"]),
        tokens_in=int(given["inputTokens"]),
        tokens_out=int(given["outputTokens"]),
        cached=None if cached is None else int(cached),
        spend=spend_of(given),
        error_share=given.get("errorRate"),
    )


def freshness_of(given: Json, read_s: float) -> Freshness:
    """The freshness of an answer, which came at ``read_s`` of the monotonic clock."""
    return Freshness(
        status=str(given["status"]),
        lag_s=given["lagSeconds"],
        watermark=time_of(given["watermark"]),
        counted_through=time_of(given.get("countedThrough")),
        read_s=read_s,
    )


def time_of(text: str | None) -> datetime | None:
    """A time of an answer."""
    return None if text is None else datetime.fromisoformat(text)


def key_of(point: Json, by: str) -> str:
    """What tells the rows of a series apart."""
    found = {"model": point["modelId"], "client": point["clientId"]}.get(by, point["value"])
    return "" if found is None else str(found)


def name_of(point: Json, by: str) -> str:
    """What people call the row of a point."""
    if by == "model":
        labels = [point["provider"], point["modelName"]]
        return "/".join(label for label in labels if label) or str(point["modelId"])
    key = key_of(point, by)
    given = point["clientName"] if by == "client" else point["valueName"]
    if given:
        return str(given)
    if len(key) >= OTHER_CHARS_MIN:
        return "(all others)"
    return key or "(none)"


def summed(points: Iterable[Json], by: str) -> dict[str, Figures]:
    """The figures of each row of a series, over all its buckets."""
    found: dict[str, Figures] = {}
    for point in points:
        key = key_of(point, by)
        figures = figures_of(point)
        found[key] = found[key] + figures if key in found else figures
    return found


def trends(
    points: Iterable[Json], by: str, starts: Sequence[datetime]
) -> dict[str, tuple[Decimal | None, ...]]:
    """The spend of each row in the buckets that begin at ``starts``."""
    places = {start: place for place, start in enumerate(starts)}
    found: dict[str, list[Decimal | None]] = {}
    for point in points:
        place = places.get(datetime.fromisoformat(point["bucketStart"]))
        if place is None:
            continue
        line = found.setdefault(key_of(point, by), [Decimal(0)] * len(starts))
        line[place] = _EXACT.add(line[place] or Decimal(0), spend_of(point).amount or Decimal(0))
    return {key: tuple(line) for key, line in found.items()}


def with_reliability(figures: Figures, given: Json | None) -> Figures:
    """The same with the error share and the p95 of a point of reliability."""
    if given is None:
        return figures
    return replace(figures, error_share=given["errorRate"], p95_ms=given["latencyMs"].get("p95"))


# --- sorting -----------------------------------------------------------------------------------------

_LEAST: Final = Decimal(-1)


def _amount(figures: Figures | None) -> Decimal:
    found = None if figures is None else figures.spend.amount
    return _LEAST if found is None else found


_SORTS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "minute": lambda row: _amount(row.minute),
    "hour": lambda row: _amount(row.hour),
    "today": lambda row: _amount(row.today),
    "requests": lambda row: row.hour.requests,
    "errors": lambda row: -1.0 if row.hour.error_share is None else row.hour.error_share,
    "p95": lambda row: -1.0 if row.hour.p95_ms is None else row.hour.p95_ms,
}
SORTS: Final = (*_SORTS, "name")


def ordered(rows: Iterable[Row], sort: str) -> list[Row]:
    """The rows with the largest first; by name from A to Z. Ties are by name, so that rows keep still."""
    by_name = sorted(rows, key=lambda row: (row.name.casefold(), row.key))
    return by_name if sort == "name" else sorted(by_name, key=_SORTS[sort], reverse=True)
