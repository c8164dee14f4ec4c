"""What an adapter makes of a source costs what the source itself says, for every model of the packages."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.prices import genai, litellm_map, model_prices
from pipeline.prices.price import EVER, Faulty, Price, faults_of
from pipeline.prices.source import Read
from tests.support.naive_prices import KINDS, Call, Row, rates_of

AT = [datetime(2024, 1, 1, 5, tzinfo=UTC) + timedelta(days=37 * number) for number in range(30)]
CONTEXTS = 1_000, 128_000, 128_001, 200_000, 200_001, 272_000, 272_001, 900_000

Books = dict[tuple[str, str], list[Row]]


def books(prices: Iterable[Price]) -> Books:
    """The rows of each model, as an import into an empty book would append them."""
    found: Books = defaultdict(list)
    for number, price in enumerate(prices, start=1):
        found[price.provider, price.model_name].append(
            Row(
                id=number,
                provider=price.provider,
                model_name=price.model_name,
                service_tier=price.service_tier,
                context_from=price.context_from,
                kind=price.kind,
                rate=price.rate,
                valid_from=price.valid_from or EVER,
                valid_to=price.valid_to,
            )
        )
    return found


def rates(book: Sequence[Row], tier: str, context: int, at: datetime) -> dict[str, Decimal] | None:
    call = Call(
        org_id=None,
        provider=book[0].provider,
        model_name=book[0].model_name,
        service_tier=tier,
        context=context,
        hour=at.replace(minute=0, second=0, microsecond=0),
    )
    found = rates_of(book, 10**9, call)
    return None if found is None else dict(zip(KINDS, found, strict=True))


def test_genai_prices_costs_what_the_package_says() -> None:
    data = pytest.importorskip("genai_prices.data")
    types = pytest.importorskip("genai_prices.types")
    read = genai.read()
    assert faults_of(read.prices) == []
    found = books(read.prices)
    assert len(found) > 2_000
    usage = types.Usage(input_tokens=1000, output_tokens=500, cache_read_tokens=200, cache_write_tokens=100)
    left_out = {note.partition(" is left out")[0] for note in read.notes if "time of day" in note}
    compared = 0
    context_of = {"batch": {"processing": "batch"}, "flex": {"service_tier": "flex"}, "standard": None}
    for provider in data.providers:
        for model in provider.models:
            book = found.get((provider.id, model.id))
            if book is None or len(found[provider.id, model.id]) > 400:
                assert f"{provider.id} {model.id}" in left_out or not _has_tokens(model), model.id
                continue
            keys = {name for one in _lists(model.prices) for name in vars(one)}
            keys |= {name for one in model.price_variants or () for name in vars(one.prices)}
            if not keys <= {
                "input_mtok",
                "output_mtok",
                "cache_read_mtok",
                "cache_write_mtok",
                "cache_write_1h_mtok",
            }:
                continue  # the package has kinds that the book has not
            for tier, context in context_of.items():
                for at in AT[::4]:
                    for size in CONTEXTS[::3]:
                        ours = rates(book, tier, size, at)
                        if ours is None:
                            continue
                        usage.input_tokens = size
                        theirs = model.calc_price(
                            usage, provider, genai_request_timestamp=at, price_context=context
                        ).total_price
                        cost = (
                            (size - 300) * ours["input"]
                            + 200 * ours["cache_read"]
                            + 100 * ours["cache_write"]
                            + 500 * ours["output"]
                        ) / 10**6
                        assert abs(cost - theirs) <= theirs * Decimal("1e-5"), (
                            provider.id,
                            model.id,
                            tier,
                            size,
                            at,
                        )
                        compared += 1
    assert compared > 20_000


def _lists(prices: Any) -> list[Any]:
    return [one.prices for one in prices] if isinstance(prices, list) else [prices]


def _has_tokens(model: Any) -> bool:
    names = {name for one in _lists(model.prices) for name, value in vars(one).items() if value is not None}
    return bool(names & {"input_mtok", "output_mtok", "requests_kcount"})


def test_a_model_of_genai_prices_has_the_same_prices_under_each_of_its_exact_names() -> None:
    data = pytest.importorskip("genai_prices.data")
    found = books(genai.read().prices)
    ids = {(provider.id, model.id) for provider in data.providers for model in provider.models}
    providers = {provider.id: provider for provider in data.providers}
    others = found.keys() - ids
    assert ("openai", "gpt-4o-mini-2024-07-18") in others

    def rows(key: tuple[str, str]) -> set[tuple[Any, ...]]:
        return {
            (row.service_tier, row.context_from, row.kind, row.rate, row.valid_from, row.valid_to)
            for row in found[key]
        }

    for provider, name in others:
        assert rows((provider, name)) == rows((provider, providers[provider].find_model(name).id))


def test_genai_prices_of_one_provider() -> None:
    pytest.importorskip("genai_prices")
    prices = genai.read(provider="anthropic").prices
    assert {price.provider for price in prices} == {"anthropic"}
    assert {price.source for price in prices} == {"genai-prices"}
    assert all(price.basis.startswith("genai-prices ") for price in prices)


def test_model_prices_costs_what_the_package_says() -> None:
    package = pytest.importorskip("model_prices")
    read = model_prices.read()
    assert faults_of(read.prices) == []
    found = books(read.prices)
    assert len(found) > 500
    compared = 0
    for (provider, model), book in found.items():
        for mode in ("standard", "batch"):
            for at in AT[::3]:
                theirs = package._lookup(provider, model, at, mode, True)
                for size in CONTEXTS[::2]:
                    ours = rates(book, mode, size, at)
                    if ours is None:
                        continue
                    assert theirs is not None, (provider, model, mode, at)
                    cost = theirs.cost(
                        input_tokens=size - 600, cache_read_tokens=100, cache_write_tokens=200,
                        cache_write_1h_tokens=300, output_tokens=700,
                    )  # fmt: skip
                    mine = (
                        (size - 600) * ours["input"]
                        + 100 * ours["cache_read"]
                        + 200 * ours["cache_write"]
                        + 300 * ours["cache_write_1h"]
                        + 700 * ours["output"]
                    ) / 10**6
                    assert float(mine) == pytest.approx(cost, rel=1e-9), (provider, model, mode, at, size)
                    compared += 1
    assert compared > 10_000


def test_hours_with_a_price_by_time_of_day_are_left_out() -> None:
    rates_ = {
        "input": Decimal(1),
        "output": Decimal(2),
        "source": "s",
        "valid_from": "x",
        "valid_from_basis": "b",
    }
    snapshot = {
        "prices": {"p": {"m": {"standard": [{"start": None, "rates": rates_}], "ultra": []}}},
        "schedules": {
            "schedule": [
                {
                    "provider": "p",
                    "valid_from": "2026-01-01T16:30:00Z",
                    "valid_until": "2026-02-01T16:10:00Z",
                    "off_peak_multiplier": {"m": 0.5},
                }
            ]
        },
    }
    read = model_prices.of_snapshot(snapshot, "0")
    spans = {(price.valid_from, price.valid_to) for price in read.prices}
    first, second = datetime(2026, 1, 1, 16, tzinfo=UTC), datetime(2026, 2, 1, 17, tzinfo=UTC)
    assert spans == {(None, first), (second, None)}
    assert len(read.notes) == 2


LITELLM = """{
  "sample_spec": {"input_cost_per_token": 0.0},
  "gemini/gemini-2.5-pro": {
    "litellm_provider": "gemini", "mode": "chat", "source": "https://ai.google.dev/pricing",
    "input_cost_per_token": 1.25e-06, "input_cost_per_token_above_200k_tokens": 2.5e-06,
    "output_cost_per_token": 1e-05, "output_cost_per_token_above_200k_tokens": 1.5e-05,
    "cache_read_input_token_cost": 3.1e-07, "output_cost_per_reasoning_token": 1e-05,
    "input_cost_per_token_batches": 6.25e-07, "output_cost_per_token_batches": 5e-06,
    "max_tokens": 65535
  },
  "claude-sonnet-4": {
    "litellm_provider": "anthropic", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
    "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
    "input_cost_per_request": 0.001
  }
}"""


def test_a_litellm_map_is_read_as_decimals(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(LITELLM)
    read = litellm_map.read(path)
    assert faults_of(read.prices) == []
    found = {
        (price.model_name, price.service_tier, price.context_from, price.kind): price.rate
        for price in read.prices
    }
    gemini = "gemini-2.5-pro"
    assert found[gemini, "standard", 0, "input"] == Decimal("1.25")
    assert found[gemini, "standard", 200_001, "output"] == Decimal(15)
    assert found[gemini, "standard", 0, "cache_read"] == Decimal("0.31")
    assert found[gemini, "batch", 0, "input"] == Decimal("0.625")
    assert found[gemini, "batch", 0, "cache_read"] == Decimal("0.31")
    assert found[gemini, "batch", 0, "reasoning"] == Decimal(5)
    assert (gemini, "batch", 200_001, "input") not in found
    assert found["claude-sonnet-4", "standard", 0, "cache_write_1h"] == Decimal(6)
    assert found["claude-sonnet-4", "standard", 0, "request"] == Decimal("0.001")
    assert {price.provider for price in litellm_map.read(path, provider="gemini").prices} == {"gemini"}


def read_map(folder: Path, models: Any) -> Read:
    path = folder / "map.json"
    path.write_text(models if isinstance(models, str) else json.dumps(models))
    return litellm_map.read(path)


def costs(input_: float, output: float, **others: Any) -> dict[str, Any]:
    return {
        "litellm_provider": "p",
        "input_cost_per_token": input_,
        "output_cost_per_token": output,
        **others,
    }


def test_a_litellm_map_with_nonsense_is_refused_and_every_cost_is_named(tmp_path: Path) -> None:
    models = {
        "m": costs(-1e-06, 1e9),
        "n": costs(float("nan"), 1e-07)
        | {"cache_read_input_token_cost": "1", "input_cost_per_request": True},
        "q": 1,
        "half\ud800": costs(1e-06, 0),
    }
    with pytest.raises(Faulty) as caught:
        read_map(tmp_path, models)
    assert sorted(fault.where for fault in caught.value.faults) == [
        "half\ud800 standard input",
        "half\ud800 standard output",
        "m output_cost_per_token",
        "m standard input",
        "n cache_read_input_token_cost",
        "n input_cost_per_request",
        "n input_cost_per_token",
        "q",
    ]
    huge = '{"m": {"litellm_provider": "p", "input_cost_per_token": 1e999999}}'
    twice = f'{{"m": {json.dumps(costs(1e-06, 1e-06))}, "m": {json.dumps(costs(2e-06, 1e-06))}}}'
    for text in ("[]", "{", "[" * 100_000, '{"m": 1}', huge, twice):
        with pytest.raises(Faulty):
            read_map(tmp_path, text)


def test_a_tier_of_a_litellm_model_keeps_the_proportion_of_rates_to_their_parents(tmp_path: Path) -> None:
    others = {
        "cache_creation_input_token_cost": 6.25e-06,
        "cache_creation_input_token_cost_above_1hr": 1e-05,
        "cache_creation_input_token_cost_batches": 3.125e-06,
        "input_cost_per_token_batches": 2.5e-06,
        "output_cost_per_token_batches": 1.25e-05,
        "output_cost_per_token_priority": 5e-05,
        "output_cost_per_reasoning_token": 5e-05,
        "output_cost_per_token_above_200k_tokens": 3e-05,
    }
    found = {
        (price.service_tier, price.context_from, price.kind): price.rate
        for price in read_map(tmp_path, {"m": costs(5e-06, 2.5e-05, **others)}).prices
    }
    assert found["batch", 0, "cache_write_1h"] == 5
    assert found["batch", 0, "reasoning"] == 25
    assert found["priority", 0, "reasoning"] == 100
    assert found["priority", 0, "cache_write_1h"] == 10
    assert found["priority", 0, "input"] == 5
    assert ("priority", 200_001, "reasoning") not in found


def test_the_noise_of_a_litellm_map_is_rounded_and_said(tmp_path: Path) -> None:
    # Rates of the map of 1.110: 55 of its 16,000 are like these.
    models = {
        "m": costs(8.900000000000001e-07, 1.1428571428571428e-06, cache_read_input_token_cost=3.59375e-08)
    }
    read = read_map(tmp_path, models)
    assert [str(price.rate.normalize()) for price in read.prices] == ["0.89", "1.142857", "0.035938"]
    assert read.notes[0] == "m input_cost_per_token: 0.8900000000000001 is taken as 0.89"
    assert len(read.notes) == 3


def test_a_litellm_rate_too_small_for_the_book_leaves_out_its_model_alone(tmp_path: Path) -> None:
    models = {
        "tiny": costs(1e-14, 1e-06),
        "small": costs(1.5e-12, 1e-06),
        "nobody's": {"input_cost_per_token": 1e-06},
    }
    read = read_map(tmp_path, models)
    assert {(price.model_name, str(price.rate)) for price in read.prices} == {
        ("small", "0.000002"),
        ("small", "1.000000"),
    }
    assert read.notes == (
        "tiny is left out: the book has no rate as small as that of input_cost_per_token",
        "small input_cost_per_token: 0.0000015 is taken as 0.000002",
        "1 model is left out, without a litellm_provider: nobody's",
    )


def test_a_litellm_model_whose_rates_are_all_zero_is_left_out_and_said(tmp_path: Path) -> None:
    models = {
        "rerank": costs(0, 0, input_cost_per_query=0.002),
        "free output": costs(1e-06, 0),
        "embedding": {"litellm_provider": "p", "mode": "embedding", "input_cost_per_token": 2e-08},
    }
    read = read_map(tmp_path, models)
    assert {(price.model_name, price.kind, price.rate.normalize()) for price in read.prices} == {
        ("free output", "input", Decimal(1)),
        ("free output", "output", Decimal(0)),
        ("embedding", "input", Decimal("0.02")),
        ("embedding", "output", Decimal(0)),
    }
    assert read.notes == (
        "rerank is left out: all its rates are 0, as where the map knows no price",
        "rerank: the book has no place for input_cost_per_query",
    )


def test_of_two_keys_for_a_litellm_model_the_one_with_the_provider_counts(tmp_path: Path) -> None:
    for keys in (("p/m", "m"), ("m", "p/m")):
        models = {key: costs(1e-06 if key == "p/m" else 2e-06, 3e-06) for key in keys}
        read = read_map(tmp_path, models)
        assert [price.rate for price in read.prices] == [1, 3]
        assert read.notes == ("m is left out: p/m has other rates for the same model",)
    same = read_map(tmp_path, {"m": costs(1e-06, 3e-06), "p/m": costs(1e-06, 3e-06)})
    assert (len(same.prices), same.notes) == (2, ())


def test_rates_that_the_book_has_no_place_for_are_said(tmp_path: Path) -> None:
    others = {
        "input_cost_per_audio_token": 1e-04,
        "output_cost_per_image": 0.04,
        "input_cost_per_token_ultrafast": 1,
    }
    tiers = {"tiered_pricing": [{"range": [0, 1]}], "output_cost_per_second": 0, "max_tokens": 5}
    assert read_map(tmp_path, {"m": costs(1e-06, 1e-06, **others, **tiers)}).notes == (
        "m: the book has no place for input_cost_per_audio_token, output_cost_per_image,"
        " input_cost_per_token_ultrafast, tiered_pricing",
    )
    pytest.importorskip("genai_prices")
    notes = genai.read(provider="openai").notes
    audio = [note for note in notes if "the book has no place for" in note and "output_audio_mtok" in note]
    assert audio
    assert notes[-1].startswith("openai ")
    assert (
        "openai text-embedding-3-small: output costs 0, because the package has a price for input only"
        in notes
    )


def test_a_model_with_a_price_for_input_only_has_a_whole_price() -> None:
    pytest.importorskip("genai_prices")
    found = books(genai.read(provider="openai").prices)["openai", "text-embedding-3-small"]
    assert rates(found, "standard", 1000, AT[-1]) == dict.fromkeys(KINDS, Decimal(0)) | {
        kind: Decimal("0.02") for kind in ("input", "cache_read", "cache_write", "cache_write_1h")
    }
