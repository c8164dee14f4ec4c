"""FOCUS files: each SKU costs what a naive count says, and the rows keep the rules of the specification."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.support import focus, focus_rules
from tests.support.api_facts import bucket_of, rfc3339
from tests.support.exports import GRANULARITIES
from tests.support.focus import EXACT, Row
from tests.support.priced_place import Place
from tests.support.priced_usage import EVERYTHING, Part, key_of
from tests.support.spend_rows import CLASSES, DAY, FIGURES, MODELS, ORGS

NULL_PRICES = {"ListUnitPrice-C-005-C", "ContractedUnitPrice-C-006-C"}
"""FOCUS wants a unit price of all usage. Where nobody has one, ours is null and not 0."""


def file_of(place: Place, org: str, **body: Any) -> list[Row]:
    _, data = place.exported(org, {"timeRange": EVERYTHING, "format": "focus-1.2", **body})
    return focus.rows_of(data)


def class_of(part: Part) -> tuple[str, str]:
    tier, low, high = CLASSES[part.rate_class]
    return tier, f"{low}-{high}" if high is not None else f"{low}+" if low else ""


def list_cost(place: Place, parts: Sequence[Part], version: int, basis: str) -> Decimal:
    """What everyone would pay; where the book has no price for everyone, what the org pays."""
    amount = Decimal(0)
    for part in parts:
        own = place.world.spent([part], version, basis)
        listed = place.world.spent([replace(part, org="nobody")], version, basis)
        found = listed if own[1] == listed[1] == "book" else own
        amount = EXACT.add(amount, found[0] or 0)
    return amount


def by_group(place: Place, org: str, granularity: str, **asked: Any) -> dict[Any, list[Row]]:
    """The rows of a file by bucket, model and rate class."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in file_of(place, org, granularity=granularity, **asked):
        charged = datetime.fromisoformat(row["ChargePeriodStart"])
        start = rfc3339(bucket_of(charged, GRANULARITIES[granularity], "UTC"))
        groups[start, row["x_ModelId"], (row["x_ServiceTier"], row["x_ContextSize"])].append(row)
    return groups


def parts_of(place: Place, org: str, granularity: str) -> dict[Any, list[Part]]:
    """The calls by the same key as `by_group`."""
    key_of_part = key_of(GRANULARITIES[granularity], "UTC", ("model",))
    groups: dict[Any, list[Part]] = defaultdict(list)
    for part in place.world.parts(org):
        bucket, model, _ = key_of_part(part)
        groups[bucket, model, class_of(part)].append(part)
    return groups


def test_each_sku_costs_what_a_naive_count_says(place: Place) -> None:
    asked = [(ORGS[0], place.version, "auto"), (ORGS[0], place.version, "estimate")]
    asked += [(ORGS[1], place.version, "auto"), (ORGS[1], 7, "book")]
    for granularity in GRANULARITIES:
        for org, version, basis in asked:
            found = by_group(place, org, granularity, costBasis=basis, priceVersion=version)
            expected = parts_of(place, org, granularity)
            assert found.keys() == expected.keys()
            for key, parts in expected.items():
                check_group(place, found[key], parts, version, basis)


def check_group(place: Place, rows: list[Row], parts: list[Part], version: int, basis: str) -> None:
    amount, _, estimate, unpriced = place.world.spent(parts, version, basis)
    assert focus.total(rows) == (amount or 0)
    assert focus.total(rows, "ListCost") == list_cost(place, parts, version, basis)
    assert sum(Decimal(row["x_EstimateAmount"] or 0) for row in rows) == (estimate or 0)
    used = tuple(sum(part.figures[name] for part in parts) for name in FIGURES[:7])
    assert focus.counts(rows) == (*used, unpriced)


def test_the_rows_of_a_bucket_and_model_sum_to_what_rest_says(place: Place) -> None:
    for org in ORGS:
        days = focus.by_bucket(file_of(place, org, granularity="daily"))
        points = place.usage(org, EVERYTHING | {"granularity": "day", "groupBy": "model"})["series"]
        assert {key: focus.total(rows) for key, rows in days.items()} == {
            (point["bucketStart"], point["modelId"]): Decimal(point["cost"]["amount"] or 0)
            for point in points
        }


def test_a_contract_stands_beside_the_list_price(place: Place) -> None:
    span = {"start": rfc3339(DAY + timedelta(hours=8)), "end": rfc3339(DAY + timedelta(hours=24))}
    priced = {
        org: {
            (row["x_ModelName"], row["x_Kind"]): (row["ListUnitPrice"], row["ContractedUnitPrice"])
            for row in file_of(place, org, granularity="hourly", timeRange=span)
            if row["x_Provider"] == "p" and row["SkuPriceId"].endswith("/standard/0-199999")
        }
        for org in ORGS
    }
    own, contract = priced[ORGS[0]], priced[ORGS[1]]
    assert own["m", "input"] == ("2.5", "2.5")
    assert own["m", "request"] == ("0.0001", "0.0001")
    assert contract["m", "input"] == ("2.5", "2"), "a price of the org's own"
    assert contract["m", "output"] == ("10", "8.75"), "12.5 % less"
    assert contract["m", "reasoning"] == ("20", "17.5")
    assert contract["m", "request"] == ("0.0001", "0.0000875")
    assert own["free", "input"] == contract["free", "input"] == ("0", "0"), "zero is a price"
    assert own["m-mini", "input"] == ("", ""), "it has no price yet"


def test_a_month_in_which_a_price_changes_has_a_row_for_each_price(place: Place) -> None:
    rows = file_of(place, ORGS[0], granularity="monthly")
    prices = [row["ListUnitPrice"] for row in rows if row["SkuPriceId"] == "p/m/input/standard/0-199999"]
    assert sorted(prices) == ["2.5", "3"]
    by_sku = defaultdict(list)
    for row in rows:
        by_sku[row["SkuPriceId"]].append(row["ChargeDescription"])
    assert by_sku["p/m-mini/input/standard"] == ["m-mini: input tokens"] * 2, "by estimate, and by the book"
    assert {row["SkuId"].rpartition("/")[0] for row in rows} == {
        f"{provider}/{name}" if name else model for model, (provider, name) in MODELS.items()
    }


def test_rows_with_a_price_keep_every_rule_and_others_lack_unit_prices_alone(place: Place) -> None:
    for org in ORGS:
        for granularity in GRANULARITIES:
            form = "focus-1.3" if granularity == "daily" else "focus-1.2"
            rows = file_of(place, org, granularity=granularity, format=form)
            assert set(focus_rules.broken(rows)) == NULL_PRICES
            priced = [row for row in rows if row["x_CostBasis"] == "book"]
            assert len(priced) > 50
            assert focus_rules.broken(priced) == {}


def test_a_broken_row_breaks_its_rule(place: Place) -> None:
    rows = [row for row in file_of(place, ORGS[0], granularity="daily") if row["ListUnitPrice"]]
    for changes, rule in (
        ({"ListCost": "1"}, "ListCost-C-009-C"),
        ({"ChargeCategory": "Use"}, "ChargeCategory-C-003-M"),
        ({"ServiceSubcategory": "Bots"}, None),
        ({"ServiceSubcategory": "Databases"}, "ServiceSubcategory-C-003-M"),
        ({"PricingUnit": ""}, "PricingUnit-C-006-C"),
        ({"SkuId": "other"}, "SkuPriceId-C-008-M"),
        ({"ChargePeriodEnd": "2026-03-11"}, "ChargePeriodEnd-C-002-M"),
        ({"ListUnitPrice": "1e3"}, "ListUnitPrice-C-002-M"),
        ({"SkuPriceDetails": "[1]"}, "SkuPriceDetails-C-001-M"),
        ({"ConsumedUnit": "Tokens!"}, "ConsumedUnit-C-003-O"),
        ({"InvoiceIssuerName": "Somebody"}, "BilledCost-C-005-C"),
    ):
        found = focus_rules.broken([{**rows[0], **changes}, *rows[1:]])
        assert (rule in found) if rule else found.keys() <= {"ServiceName-C-008-C"}, (changes, found)
    assert "CostAndUsage-D-036-M" in focus_rules.broken(
        [{name: cell for name, cell in row.items() if name != "PricingQuantity"} for row in rows]
    )


def test_version_1_3_names_who_provides_and_who_hosts(place: Place) -> None:
    older, newer = (file_of(place, ORGS[0], granularity="daily", format=f"focus-1.{n}") for n in (2, 3))
    added = {"HostProviderName", "ServiceProviderName"}
    assert [{k: v for k, v in row.items() if k not in added} for row in newer] == older
    assert newer[0].keys() - older[0].keys() == added
    assert {(row["x_Provider"], row["HostProviderName"], row["ServiceProviderName"]) for row in newer} == {
        (provider, provider or "Spendstream", "Spendstream") for provider, _ in MODELS.values()
    }
