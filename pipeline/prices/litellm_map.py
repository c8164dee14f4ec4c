"""LiteLLM's map of prices, ``model_prices_and_context_window.json``, from the disk.

The map gives US dollars a token, as JSON numbers. A number is read as the decimal that its text has, never
as a binary float, so 3e-07 is 0.3 dollars for a million tokens. A key of the map such as
``gemini/gemini-2.5-pro`` begins with a provider in most cases. The book's model name is the rest of the key
if the key begins with the model's ``litellm_provider``, else the whole key. The map has no dates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pipeline.prices.price import Fault, Faulty, Price
from pipeline.prices.source import Read

SOURCE: Final = "litellm"

_KINDS: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_request": "request",
}
_NAME: Final = re.compile(
    rf"({'|'.join(_KINDS)})(_above_1hr)?(?:_above_([0-9]+)k_tokens)?(?:_(batches|priority|flex))?"
)
_TIERS: Final = {None: "standard", "batches": "batch", "priority": "priority", "flex": "flex"}


def read(path: Path, *, provider: str | None = None) -> Read:
    """The prices of a map, of all providers or of one.

    Raises:
        Faulty: the file is no such map, or a cost is no number.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(path.read_bytes(), parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError) as error:
        raise Faulty(str(path), [Fault("file", f"is no JSON: {error}")]) from error
    if not isinstance(content, dict):
        raise Faulty(str(path), [Fault("file", "is no object of models")])
    faults: list[Fault] = []
    prices: list[Price] = []
    for key, model in content.items():
        if key == "sample_spec":
            continue
        if not isinstance(model, dict) or not isinstance(model.get("litellm_provider", ""), str):
            faults.append(Fault(key, "is no object with a litellm_provider"))
            continue
        of = model.get("litellm_provider", "")
        if not of or (provider is not None and of != provider):
            continue
        prices += _of_model(key, of, model, path.name, faults)
    if faults:
        raise Faulty(str(path), faults)
    return Read(tuple(prices), ())


def _of_model(
    key: str, provider: str, model: dict[str, Any], file: str, faults: list[Fault]
) -> Iterator[Price]:
    found: dict[tuple[str, int, str], Decimal] = {}
    for name, cost in model.items():
        match = _NAME.fullmatch(name)
        if match is None or cost is None:
            continue
        if not isinstance(cost, Decimal):
            faults.append(Fault(f"{key} {name}", f"{cost!r} is no number"))
            continue
        base, hour, thousands, suffix = match.groups()
        kind = _KINDS[base]
        if hour and kind != "cache_write":
            continue
        kind = "cache_write_1h" if hour else kind
        context = int(thousands) * 1000 + 1 if thousands else 0
        found[_TIERS[suffix], context, kind] = cost if kind == "request" else cost * 1_000_000
    # A tier that names some kinds has the standard rates for the others.
    for tier in sorted({tier for tier, _, _ in found} - {"standard"}):
        named = {kind for of_tier, _, kind in found if of_tier == tier}
        for of_tier, context, kind in list(found):
            if of_tier == "standard" and kind not in named:
                found[tier, context, kind] = found["standard", context, kind]
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
