"""The prices of the package genai-prices, by exact model ids.

The package finds a model by patterns such as "is gpt-4o-2024-08-06" or "begins with claude-opus-4-5". The
book knows exact names only. So a model is imported under its id, and under each exact name in its pattern
that no model before it has. A tier of genai-prices begins above its number: "start 200000" is a price
from 200,001 input tokens on. A service tier that names some rates has the standard rates for the others.

What depends on the time of day, or on a search or a route, is left out and said, as are the rates for audio,
images and whatever else the book has no kind for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from pipeline.prices.price import Price, rounded
from pipeline.prices.source import Read, in_order, package, without_place

SOURCE: Final = "genai-prices"

_KINDS: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_5m_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "requests_kcount": "request",
}
"""What the package calls a kind. Later names win over earlier ones, where a model has both."""
_TIERS: Final = {
    ("processing", "batch"): "batch",
    ("service_tier", "flex"): "flex",
    ("service_tier", "priority"): "priority",
    ("service_tier", "fast"): "fast",
    ("speed", "fast"): "fast",
    ("service_tier", "default"): "standard",
}
_FIRST: Final = datetime.min.replace(tzinfo=UTC)


def read(*, provider: str | None = None) -> Read:
    """The prices of all providers, or of one. Raises `source.SourceMissing`."""
    [data], version = package("genai-prices", "genai_prices.data")
    prices: list[Price] = []
    notes: list[str] = []
    for one in data.providers:
        if provider is not None and one.id != provider:
            continue
        basis = f"{SOURCE} {version}"
        if one.pricing_urls:
            basis += f", {one.pricing_urls[0]}"
        taken = {model.id for model in one.models}
        for model in one.models:
            of_model = list(_of_model(one.id, model, basis, notes))
            prices += of_model
            for name in _exact_names(model.match):
                if name not in taken:
                    taken.add(name)
                    prices += [replace(price, model_name=name) for price in of_model]
    return Read(tuple(prices), in_order(notes))


def _exact_names(clause: Any) -> Iterator[str]:
    """The names that a pattern of the package matches as a whole."""
    for part in getattr(clause, "or_", ()):
        yield from _exact_names(part)
    if hasattr(clause, "equals"):
        yield clause.equals


def _of_model(provider: str, model: Any, basis: str, notes: list[str]) -> Iterator[Price]:
    name = f"{provider} {model.id}"
    standard = model.prices if isinstance(model.prices, list) else None
    constraints = [one.constraint for one in (*(standard or ()), *(model.price_variants or ()))]
    if any(hasattr(constraint, "start_time") for constraint in constraints):
        notes.append(f"{name} is left out: its price depends on the time of day")
        return
    names = _names(model)
    notes += without_place(name, [one for one in names if one not in _KINDS])
    # A model that nothing is charged for but its input, such as one for embeddings.
    only_input = "input_mtok" in names and not any(one.startswith("output") for one in names)
    if only_input:
        notes.append(f"{name}: output costs 0, because the package has a price for input only")
    tiers: dict[str, list[Any]] = {"standard": []}
    for variant in model.price_variants or ():
        tier = _TIERS.get(next(iter(variant.when.items()))) if len(variant.when) == 1 else None
        if tier is None:
            when = ", ".join(f"{key} {value}" for key, value in variant.when.items())
            notes.append(f"{name}: the price for {when} is left out, which the book has no word for")
            continue
        tiers.setdefault(tier, []).append(variant)
    for tier, variants in tiers.items():
        moments = {_start(one.constraint) for one in (*(standard or ()), *variants)} | {_FIRST}
        if tier != "standard" and all(variant.constraint is not None for variant in variants):
            # Before the first of its prices, the tier has none: the standard rates are no price of it.
            moments -= {at for at in moments if at < min(_start(one.constraint) for one in variants)}
        times = [*sorted(moments), None]
        for start, end in pairwise(times):
            assert start is not None
            found = _values(_prices_at(model.prices, start))
            # The first variant that names a rate wins.
            for variant in reversed(variants):
                if _start(variant.constraint) <= start:
                    found |= _values(variant.prices)
            if only_input:
                found["output_mtok"] = Decimal(0)
            for kind, value in _by_kind(found).items():
                yield from _of_rate(
                    value,
                    notes,
                    provider=provider,
                    model_name=model.id,
                    service_tier=tier,
                    kind=kind,
                    valid_from=None if start == _FIRST else start,
                    valid_to=end,
                    source=SOURCE,
                    basis=basis,
                    where=f"{name} {tier} {kind}",
                )


def _names(model: Any) -> list[str]:
    """What the package calls the rates that the model has, at any time and in any variant."""
    prices = [one.prices for one in model.prices] if isinstance(model.prices, list) else [model.prices]
    prices += [variant.prices for variant in model.price_variants or ()]
    return sorted({name for one in prices for name in _values(one)})


def _start(constraint: Any) -> datetime:
    if constraint is None:
        return _FIRST
    at = constraint.start_date
    return datetime(at.year, at.month, at.day, tzinfo=UTC)


def _prices_at(prices: Any, at: datetime) -> Any:
    """The price that holds at a time: the last one in the list that has begun, else the first one."""
    if not isinstance(prices, list):
        return prices
    begun = [one for one in prices if _start(one.constraint) <= at]
    return (begun or prices[:1])[-1].prices if prices else None


def _values(prices: Any) -> dict[str, Any]:
    """The rates of a price object by the package's names, without those that are not set."""
    return {} if prices is None else {k: v for k, v in vars(prices).items() if v is not None}


def _by_kind(found: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: found[name] for name, kind in _KINDS.items() if name in found}


def _of_rate(value: Any, notes: list[str], **fields: Any) -> Iterator[Price]:
    steps = [(0, value)] if isinstance(value, Decimal) else [(0, value.base)]
    if not isinstance(value, Decimal):
        steps += [(tier.start + 1, tier.price) for tier in value.tiers]
    for context, given in steps:
        rate = given / 1000 if fields["kind"] == "request" else rounded(given)
        if fields["kind"] != "request" and rate != given:
            notes.append(f"{fields['where']}: {given} is taken as {rate.normalize():f}")
        yield Price(**fields, context_from=context, rate=rate)
