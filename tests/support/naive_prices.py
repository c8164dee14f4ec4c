"""The price of a call, found by plain loops over the rows of a book. Nothing here is shared with the SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

KINDS: Final = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning", "request")
"""In the order of the columns of a sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of ``analytics.prices``, with the columns that matter to a price."""

    id: int
    provider: str = ""
    model_name: str = ""
    service_tier: str = ""
    context_from: int = 0
    kind: str = ""
    rate: Decimal | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    org_id: str | None = None
    retracts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What decides a price. ``context`` is the number of input tokens."""

    org_id: str | None
    provider: str
    model_name: str
    service_tier: str
    context: int
    hour: datetime


def rates_of(book: Sequence[Row], version: int, call: Call) -> tuple[Decimal, ...] | None:
    """The rates of a call in the order of `KINDS`; None: the call has no price."""
    known = [row for row in book if row.id <= version]
    retracted = [row.retracts for row in known if row.retracts is not None]
    live = [row for row in known if row.retracts is None and row.id not in retracted]
    rate = {kind: _rate(live, call, kind) for kind in KINDS}
    input_, output = rate["input"], rate["output"]
    if input_ is None or output is None:
        return None
    if rate["cache_read"] is None:
        rate["cache_read"] = input_
    if rate["cache_write_1h"] is None:
        rate["cache_write_1h"] = rate["cache_write"]
    if rate["cache_write_1h"] is None:
        rate["cache_write_1h"] = input_
    if rate["cache_write"] is None:
        rate["cache_write"] = input_
    if rate["reasoning"] is None:
        rate["reasoning"] = output
    if rate["request"] is None:
        rate["request"] = Decimal(0)
    return tuple(found for kind in KINDS if (found := rate[kind]) is not None)


def _rate(live: Sequence[Row], call: Call, kind: str) -> Decimal | None:
    best: Row | None = None
    for row in live:
        if row.kind != kind or not _covers(row, call.hour):
            continue
        if (row.provider, row.model_name, row.service_tier) != (
            call.provider,
            call.model_name,
            call.service_tier,
        ):
            continue
        if row.context_from > call.context or (row.org_id is not None and row.org_id != call.org_id):
            continue
        if best is None or _rank(row) > _rank(best):
            best = row
    if best is None or best.rate is None:
        return None
    if best.org_id is not None:
        return best.rate
    percent = _discount(live, call)
    return best.rate - best.rate * percent / 100


def _rank(row: Row) -> tuple[bool, int, int]:
    return row.org_id is not None, row.context_from, row.id


def _discount(live: Sequence[Row], call: Call) -> Decimal:
    best: Row | None = None
    for row in live:
        if row.kind != "discount" or row.org_id != call.org_id or not _covers(row, call.hour):
            continue
        if row.provider and row.provider != call.provider:
            continue
        if row.model_name and row.model_name != call.model_name:
            continue
        rank = bool(row.model_name), bool(row.provider), row.id
        if best is None or rank > (bool(best.model_name), bool(best.provider), best.id):
            best = row
    return Decimal(0) if best is None or best.rate is None else best.rate


def _covers(row: Row, hour: datetime) -> bool:
    assert row.valid_from is not None
    return row.valid_from <= hour and (row.valid_to is None or hour < row.valid_to)


def cost(rates: tuple[Decimal, ...], figures: dict[str, int]) -> Decimal:
    """What some calls cost, in US dollars, from the figures of a rollup row."""
    rate = dict(zip(KINDS, rates, strict=True))
    cached = figures["cache_read_tokens"] + figures["cache_write_tokens"] + figures["cache_write_1h_tokens"]
    total = Decimal(0)
    total += (figures["input_tokens"] - cached) * rate["input"]
    total += figures["cache_read_tokens"] * rate["cache_read"]
    total += figures["cache_write_tokens"] * rate["cache_write"]
    total += figures["cache_write_1h_tokens"] * rate["cache_write_1h"]
    total += (figures["output_tokens"] - figures["reasoning_tokens"]) * rate["output"]
    total += figures["reasoning_tokens"] * rate["reasoning"]
    return total / 10**6 + figures["invocations"] * rate["request"]
