"""LiteLLM's map of prices, ``model_prices_and_context_window.json``, from the disk.

The map gives US dollars a token, as JSON numbers. A number is read as the decimal that its text has, never
as a binary float, so 3e-07 is 0.3 dollars for a million tokens. Some numbers of the map came out of float
arithmetic all the same, and some are very small: they are rounded to 6 decimals and said. A model with a rate
that this makes 0 is left out.

A key of the map such as ``gemini/gemini-2.5-pro`` begins with a provider in most cases. The book's model name
is the rest of the key if the key begins with the model's ``litellm_provider``, else the whole key. If two
keys name the same model with other rates, the one that begins with the provider counts. The map has no dates.
A model whose every rate is 0 is left out, because the map writes 0 also where it knows no price.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pipeline.common.texts import cut
from pipeline.prices.price import Fault, Faulty, Price, faults_of
from pipeline.prices.source import Read, content, in_order, without_place

SOURCE: Final = "litellm"

COST_MAX: Final = 1000
"""The highest cost of a token or a request, in US dollars."""

_KINDS: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_request": "request",
}
_STEP: Final = Decimal("0.000001")
_STEP_OF_A_REQUEST: Final = Decimal("1e-12")
_PARENTS: Final = {"cache_write_1h": "cache_write", "reasoning": "output"}
_NAME: Final = re.compile(
    rf"({'|'.join(_KINDS)})(_above_1hr)?(?:_above_([0-9]{{1,9}})k_tokens)?(?:_(batches|priority|flex))?"
)
Rates = dict[tuple[str, int, str], Decimal]
"""By service tier, context and kind."""

_TIERS: Final = {None: "standard", "batches": "batch", "priority": "priority", "flex": "flex"}


def read(path: Path, *, provider: str | None = None) -> Read:
    """The prices of a map, of all providers or of one.

    Raises:
        Faulty: the file is no such map, or a cost breaks a rule. Every such cost is named.
        OSError: the file cannot be read.
    """
    faults: list[Fault] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                faults.append(Fault(key, "is there twice"))
            found[key] = value
        return found

    try:
        models = json.loads(content(path), parse_float=Decimal, parse_int=Decimal, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Faulty(str(path), [Fault("file", f"is no JSON: {error}")]) from error
    if not isinstance(models, dict):
        raise Faulty(str(path), [Fault("file", "is no object of models")])
    notes: list[str] = []
    nameless: list[str] = []
    found: dict[tuple[str, str], tuple[str, list[Price]]] = {}
    for key, model in models.items():
        if key == "sample_spec":
            continue
        if not isinstance(model, dict) or not isinstance(model.get("litellm_provider", ""), str):
            faults.append(Fault(key, "is no object with a litellm_provider"))
            continue
        of = model.get("litellm_provider", "")
        if not of:
            nameless.append(key)
            continue
        if provider is not None and of != provider:
            continue
        prices = list(_of_model(key, of, model, path.name, faults, notes))
        if prices:
            _keep_one(found, key, prices, notes)
    if nameless:
        count = "1 model is" if len(nameless) == 1 else f"{len(nameless)} models are"
        notes.append(f"{count} left out, without a litellm_provider: {', '.join(map(cut, nameless[:5]))}")
    kept = tuple(price for _, prices in found.values() for price in prices)
    faults += faults_of(kept)
    if faults:
        raise Faulty(str(path), faults)
    return Read(kept, in_order(notes))


def _keep_one(
    found: dict[tuple[str, str], tuple[str, list[Price]]], key: str, prices: list[Price], notes: list[str]
) -> None:
    """Keep the prices of a model, of which the map perhaps has another key."""
    name = prices[0].provider, prices[0].model_name
    other, others = found.setdefault(name, (key, prices))
    if other == key or {(one.key, one.rate) for one in prices} == {(one.key, one.rate) for one in others}:
        return
    if key == "/".join(name):
        found[name], other, key = (key, prices), key, other
    notes.append(f"{key} is left out: {other} has other rates for the same model")


def _of_model(
    key: str, provider: str, model: dict[str, Any], file: str, faults: list[Fault], notes: list[str]
) -> Iterator[Price]:
    found = _rates(key, model, faults, notes)
    if not any(found.values()):
        if found:
            notes.append(f"{key} is left out: all its rates are 0, as where the map knows no price")
        return
    if model.get("mode") == "embedding":
        found.setdefault(("standard", 0, "output"), Decimal(0))
    for tier in sorted({tier for tier, _, _ in found} - {"standard"}):
        found |= _not_named(tier, found)
    for (tier, context, kind), rate in found.items():
        yield Price(
            provider=provider,
            model_name=key.removeprefix(f"{provider}/"),
            service_tier=tier,
            context_from=context,
            kind=kind,
            rate=rate,
            source=SOURCE,
            basis=f"{file}, {model['source']}" if isinstance(model.get("source"), str) else file,
            where=f"{key} {tier} {kind}",
        )


def _not_named(tier: str, found: Rates) -> Rates:
    """The rates of a service tier that the map does not name: as LiteLLM does, those of standard.

    A rate that the tier has a parent of is in the proportion that it has to its parent at standard. Otherwise
    a batch at half the price of output would have the full price of reasoning.
    """
    named = {kind for of_tier, _, kind in found if of_tier == tier}
    missing: Rates = {}
    for (of_tier, context, kind), rate in found.items():
        if of_tier != "standard" or kind in named:
            continue
        parent = _PARENTS.get(kind)
        if parent not in named:
            missing[tier, context, kind] = rate
            continue
        of_parent, at_standard = (found.get((one, context, parent)) for one in (tier, "standard"))
        if of_parent is not None and at_standard:
            missing[tier, context, kind] = (rate * of_parent / at_standard).quantize(_STEP)
    return missing


def _rates(key: str, model: dict[str, Any], faults: list[Fault], notes: list[str]) -> Rates:
    """The rates of a model. None if one of them is too small for the book."""
    placeless: list[str] = []
    vanished: list[str] = []
    found: Rates = {}
    for name, cost in model.items():
        match = _NAME.fullmatch(name)
        if match is None or (match[2] and _KINDS[match[1]] != "cache_write"):
            if cost and ("cost" in name or name == "tiered_pricing"):
                placeless.append(name)
            continue
        if cost is None:
            continue
        if not isinstance(cost, Decimal):
            faults.append(Fault(f"{key} {name}", f"{cost!r} is no number"))
            continue
        if abs(cost) > COST_MAX:
            faults.append(Fault(f"{key} {name}", f"{cost} USD is above {COST_MAX}"))
            continue
        base, hour, thousands, suffix = match.groups()
        kind = "cache_write_1h" if hour else _KINDS[base]
        given = cost if kind == "request" else cost * 10**6
        rate = given.quantize(_STEP_OF_A_REQUEST if kind == "request" else _STEP)
        if given and not rate:
            vanished.append(name)
        elif rate == given:
            rate = given
        else:
            notes.append(f"{key} {name}: {_shown(given)} is taken as {_shown(rate)}")
        found[_TIERS[suffix], int(thousands) * 1000 + 1 if thousands else 0, kind] = rate
    notes += without_place(key, placeless)
    if vanished:
        notes.append(f"{key} is left out: the book has no rate as small as that of {', '.join(vanished)}")
        return {}
    return found


def _shown(rate: Decimal) -> str:
    return f"{rate.normalize():f}" if rate.adjusted() > -100 else f"{rate:.6e}"
