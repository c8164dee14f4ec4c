"""The prices of the package model-prices: dated history, with the source of each price.

A model's price in the package begins at an instant, such as that of a commit. The book begins prices at
whole hours, so the beginning is rounded down, and ``basis`` keeps the instant. A price of a long context
begins above its number, and names only the rates that differ. What a mode is called in the book: see
`_MODES`. Hours in which a price depends on the time of day are left out and said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from itertools import pairwise
from typing import Any, Final

from pipeline.prices.plan import NEVER
from pipeline.prices.price import EVER, Price, hour_of, rounded
from pipeline.prices.source import Read, package

SOURCE: Final = "model-prices"

_MODES: Final = {"standard": "standard", "batch": "batch", "flex": "flex", "fast": "fast"}
_KINDS: Final = ("input", "output", "cache_read", "cache_write")

_HOUR: Final = timedelta(hours=1)

Window = tuple[datetime, datetime]


def read(*, provider: str | None = None) -> Read:
    """The prices of all providers, or of one. Raises `source.SourceMissing`."""
    _, version = package("model-prices", "model_prices")
    text = files("model_prices").joinpath("snapshot.json").read_text("utf-8")
    return of_snapshot(json.loads(text, parse_float=Decimal, parse_int=Decimal), version, provider=provider)


def of_snapshot(snapshot: dict[str, Any], version: str, *, provider: str | None = None) -> Read:
    """The prices of a snapshot of the package, whose numbers are decimals as the text has them."""
    prices: list[Price] = []
    notes: list[str] = []
    for name, models in snapshot["prices"].items():
        if provider is not None and name != provider:
            continue
        for model, modes in models.items():
            unpriced = _time_of_day(snapshot, name, model)
            if unpriced:
                notes.append(f"{name} {model}: hours with a price by time of day are left out")
            for mode, timeline in modes.items():
                if mode not in _MODES:
                    notes.append(f"{name} {model}: mode {mode} is left out, which the book has no word for")
                    continue
                fields = {
                    "provider": name,
                    "model_name": model,
                    "service_tier": _MODES[mode],
                    "source": SOURCE,
                }
                prices += _of_timeline(timeline, version, unpriced, notes, fields)
    return Read(tuple(prices), tuple(notes))


def _time_of_day(snapshot: dict[str, Any], provider: str, model: str) -> list[Window]:
    """The times in which the provider asks another price of the model at some hours of the day."""
    return [
        (_time(one["valid_from"]), _time(one["valid_until"]) if "valid_until" in one else NEVER)
        for one in snapshot["schedules"].get("schedule", [])
        if one["provider"] == provider
        and ("off_peak_multiplier" not in one or model in one["off_peak_multiplier"])
    ]


def _of_timeline(
    timeline: list[dict[str, Any]],
    version: str,
    unpriced: list[Window],
    notes: list[str],
    fields: dict[str, Any],
) -> Iterator[Price]:
    starts = [EVER if one["start"] is None else hour_of(_time(one["start"])) for one in timeline]
    for number, (start, end) in enumerate(pairwise([*starts, NEVER])):
        rates = timeline[number]["rates"]
        if rates is None:
            continue
        basis = f"{SOURCE} {version}, {rates['valid_from_basis']} {rates['valid_from']}, {rates['source']}"
        for first, last in _without(start, end, unpriced):
            times: dict[str, Any] = {
                # The first price of the package also holds for all time before.
                "valid_from": None if first == EVER else first,
                "valid_to": None if last == NEVER else last,
            }
            for context, kind, given in _steps(rates):
                rate = rounded(given)
                where = f"{fields['provider']} {fields['model_name']} {fields['service_tier']} {kind}"
                if rate != given:
                    notes.append(f"{where}: {given} is taken as {rate.normalize():f}")
                yield Price(
                    **fields, **times, kind=kind, context_from=context, rate=rate, basis=basis, where=where
                )


def _steps(rates: dict[str, Any]) -> Iterator[tuple[int, str, Decimal]]:
    """(context_from, kind, rate) of a price and its long contexts."""
    now = {kind: rates[kind] for kind in _KINDS if rates.get(kind) is not None}
    multiple = rates.get("cache_write_1h_multiple")
    for context, changes in ((0, now), *((int(t["above"]) + 1, t) for t in rates.get("tiers", ()))):
        now = now | {kind: changes[kind] for kind in _KINDS if changes.get(kind) is not None}
        for kind, rate in now.items():
            yield context, kind, rate
        if multiple is not None:
            yield context, "cache_write_1h", now["input"] * multiple


def _without(start: datetime, end: datetime, windows: list[Window]) -> Iterator[Window]:
    """The parts of [start, end) that lie in no window. A window covers every hour that it touches."""
    at = start
    for first, last in sorted(windows):
        if at < min(hour_of(first), end):
            yield at, min(hour_of(first), end)
        at = max(at, last if last == hour_of(last) or last == NEVER else hour_of(last) + _HOUR)
    if at < end:
        yield at, end


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
