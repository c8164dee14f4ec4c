"""The FOCUS formats: a row for each SKU of a bucket.

A SKU is a kind of tokens of a model, or its requests. A row is about one bucket, model, rate class, SKU and
price, so the unit price times the quantity is the cost, to the last digit. Tokens are priced by the million,
as in the book. The list price is that of everyone, and the contracted price is that of the org.

Days, weeks and months are those of the job's time zone. A week may lie in two months: its charge belongs to
the billing period in which it begins.

In a file by a dimension, a row is about one value, too, which is a tag: ``{"team": "search"}``.

Where the book has no price, the unit prices are empty. The estimate of the producers is of a whole call, so
the row of the requests carries it, and the rows of the tokens cost 0. FOCUS allows no empty cost: calls whose
cost nobody knows cost 0, too, and ``x_UnpricedInvocations`` counts them.

The specification is at https://focus.finops.org. A test holds the rows against its rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from api.asking.buckets import Calendar, Granularity, to_datetime
from api.asking.params import CostBasis
from api.asking.questions import FiguresQuestion
from api.exports.cells import ISO, MODEL_NAME, ORG_NAME, PROVIDER, VALUE_NAME, cell, dollars, selected
from api.exports.jobs import Job
from api.exports.lines import of_adjustments
from api.reading.prices import SKUS

_METERS: Final = {
    "input": "Input tokens",
    "cache_read": "Cache read tokens",
    "cache_write": "Cache write tokens, 5 minutes",
    "cache_write_1h": "Cache write tokens, 1 hour",
    "output": "Output tokens",
    "reasoning": "Reasoning tokens",
    "request": "Requests",
}

_IS_REQUESTS: Final = "(kind = 'request')"
_IS_ESTIMATED: Final = "(%(focus_estimates)s AND unestimated < invocations)"
_PRICING_QUANTITY: Final = f"trim_scale(CASE WHEN {_IS_REQUESTS} THEN quantity ELSE quantity * 0.000001 END)"


def _unit_price(price: str) -> str:
    """Dollars of a request or of a million tokens, from units of 10^-20 dollars of one."""
    scaled = f"CASE WHEN {_IS_REQUESTS} THEN 0.00000000000000000001 ELSE 0.00000000000001 END"
    return f"trim_scale({price} * {scaled})"


def _cost(price: str) -> str:
    """What the quantity costs at a price, or else what its producers estimated."""
    estimate = f"CASE WHEN {_IS_REQUESTS} AND {_IS_ESTIMATED} THEN cost_microcents * 0.00000001 ELSE 0.0 END"
    amount = f"(CASE WHEN price IS NULL THEN {estimate} ELSE quantity * {price} * 0.00000000000000000001 END)"
    return dollars(amount)


_CONTRACTED_COST: Final = _cost("price")
_MODEL: Final = f"COALESCE({MODEL_NAME}, model_id::text)"
_SKU: Final = f"COALESCE({PROVIDER} || '/' || {MODEL_NAME}, model_id::text) || '/' || kind"


_TAGS: Final = "CASE WHEN client_id <> '' THEN json_build_object(%(dimension)s::text, client_id)::text END"


def _edge(edges: str, at: str, later: int) -> str:
    """The edge at or before an instant, or a later one: the calendar is ours, not the server's."""
    return f"(({edges})[width_bucket({at}, {edges}) + {later}])"


def _time(at: str) -> str:
    return f"to_char({at} AT TIME ZONE 'UTC', {ISO})"


_EDGES: Final = "%(edges)s::timestamptz[]"
_START: Final = "GREATEST(bucket, %(focus_start)s::timestamptz)"
_END: Final = f"LEAST({_edge(_EDGES, 'bucket', 1)}, %(focus_end)s::timestamptz)"


def _month(at: str, later: int) -> str:
    """The start of the month in which an instant lies, or of a later month."""
    return _edge("%(focus_months)s::timestamptz[]", at, later)


_USAGE: Final = {
    "BilledCost": _CONTRACTED_COST,
    "BillingAccountId": "%(focus_org)s",
    "BillingAccountName": f"COALESCE({cell(ORG_NAME)}, %(focus_org)s)",
    "BillingCurrency": "'USD'",
    "BillingPeriodEnd": _time(_month(_START, 1)),
    "BillingPeriodStart": _time(_month(_START, 0)),
    "ChargeCategory": "'Usage'",
    "ChargeClass": "NULL",
    "ChargeDescription": cell(f"{_MODEL} || ': ' || lower(meter)"),
    "ChargeFrequency": "'Usage-Based'",
    "ChargePeriodEnd": _time(_END),
    "ChargePeriodStart": _time(_START),
    "ConsumedQuantity": "quantity",
    "ConsumedUnit": f"CASE WHEN {_IS_REQUESTS} THEN 'Requests' ELSE 'Tokens' END",
    "ContractedCost": _CONTRACTED_COST,
    "ContractedUnitPrice": _unit_price("price"),
    "EffectiveCost": _CONTRACTED_COST,
    "HostProviderName": f"COALESCE({cell(PROVIDER)}, %(focus_provider)s)",
    "InvoiceId": "NULL",
    "InvoiceIssuerName": "%(focus_provider)s",
    "ListCost": _cost("COALESCE(list_price, price)"),
    "ListUnitPrice": _unit_price("list_price"),
    "PricingCategory": "CASE WHEN price IS NULL THEN 'Other' ELSE 'Standard' END",
    "PricingQuantity": _PRICING_QUANTITY,
    "PricingUnit": f"CASE WHEN {_IS_REQUESTS} THEN 'Requests' ELSE '1000000 Tokens' END",
    "ProviderName": "%(focus_provider)s",
    "PublisherName": "%(focus_provider)s",
    "ServiceCategory": "'AI and Machine Learning'",
    "ServiceName": "'LLM inference'",
    "ServiceProviderName": "%(focus_provider)s",
    "ServiceSubcategory": "'Generative AI'",
    "SkuId": cell(_SKU),
    "SkuMeter": "meter",
    "SkuPriceDetails": "json_strip_nulls(json_build_object("
    "'x_ServiceTier', service_tier, 'x_ContextSize', context_size))::text",
    "SkuPriceId": cell(f"concat_ws('/', {_SKU}, service_tier, context_size)"),
    "Tags": cell(_TAGS),
    "x_ModelId": "model_id",
    "x_Provider": cell(PROVIDER),
    "x_ModelName": cell(MODEL_NAME),
    "x_Kind": "kind",
    "x_ServiceTier": "service_tier",
    "x_ContextSize": "context_size",
    "x_CostBasis": "CASE WHEN price IS NOT NULL THEN 'book'"
    f" WHEN {_IS_ESTIMATED} THEN 'estimate' ELSE 'none' END",
    "x_UnpricedInvocations": f"CASE WHEN price IS NOT NULL OR NOT {_IS_REQUESTS} THEN 0"
    " WHEN %(focus_estimates)s THEN unestimated ELSE invocations END",
    "x_EstimateAmount": f"CASE WHEN {_IS_REQUESTS} AND unestimated < invocations"
    " THEN (cost_microcents * 0.00000001)::numeric(40, 8) END",
    "x_PriceVersion": "%(export_version)s::bigint",
    "x_AdjustmentId": "NULL",
    "x_AdjustmentKind": "NULL",
    "x_ValueName": cell(VALUE_NAME),
}
"""The columns of a row of usage: those of the specification by their names, and then our own."""
_KEPT: Final = (
    *("BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("InvoiceIssuerName", "ProviderName", "PublisherName", "ServiceProviderName"),
    *("ServiceCategory", "ServiceName", "ServiceSubcategory", "x_PriceVersion"),
)
"""The columns that say the same of an adjustment as of usage. Most others are empty: it has no SKU."""
_ADJUSTED: Final = {
    **dict.fromkeys(_USAGE, "NULL"),
    **{name: _USAGE[name] for name in _KEPT},
    **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), dollars("amount")),
    "BillingPeriodEnd": _time(_month("period_start", 1)),
    "BillingPeriodStart": _time(_month("period_start", 0)),
    # FOCUS counts a refund as usage, but only with a SKU and a quantity, and ours have none.
    "ChargeCategory": "CASE kind WHEN 'credit' THEN 'Credit' ELSE 'Adjustment' END",
    # A month that has ended was invoiced, as far as anybody here knows.
    "ChargeClass": "CASE WHEN kind <> 'credit'"
    f" AND recorded_at >= {_month('period_start', 1)} THEN 'Correction' END",
    "ChargeDescription": cell("reason"),
    "ChargeFrequency": "'One-Time'",
    "ChargePeriodEnd": _time("period_end"),
    "ChargePeriodStart": _time("period_start"),
    "HostProviderName": "%(focus_provider)s",
    "x_UnpricedInvocations": "0",
    "x_AdjustmentId": "id",
    "x_AdjustmentKind": "kind",
}
_SINCE_1_3: Final = ("HostProviderName", "ServiceProviderName")
_BY_VALUE: Final = ("Tags", "x_ValueName")
"""Only in files by a dimension."""


def _array(items: Iterable[str]) -> str:
    return f"(ARRAY[{', '.join(items)}])[place]"


# No join makes the seven SKUs of a group, because the query may not use loops.
_ROWS: Final = f"""
    SELECT *, {_array(f"'{kind}'" for kind in SKUS)} AS kind,
        {_array(f"'{_METERS[kind]}'" for kind in SKUS)} AS meter,
        {_array(sku.quantity for sku in SKUS.values())} AS quantity,
        prices[place] AS price, list_prices[place] AS list_price
    FROM (
        SELECT groups.*, classes.service_tier, CASE
                WHEN classes.input_to IS NOT NULL THEN classes.input_from || '-' || classes.input_to
                WHEN classes.input_from > 0 THEN classes.input_from || '+'
            END AS context_size,
            generate_series(1, {len(SKUS)}) AS place
        FROM ({{groups}}) AS groups
        LEFT JOIN analytics.rate_classes AS classes ON classes.id = groups.rate_class
    ) AS places
"""


def usage(groups: str, question: FiguresQuestion, version: str) -> str:
    """The statement of the rows of usage. ``groups`` is the query `rollups.sku_groups`."""
    by_value = ", client_id" * question.by_value
    return f"""
        SELECT {selected(_USAGE, _names(question, version))} FROM ({_ROWS.format(groups=groups)}) AS skus
        WHERE quantity > 0
        ORDER BY bucket, model_id{by_value}, rate_class, prices, list_prices, place
    """


def adjustments(question: FiguresQuestion, version: str) -> str:
    """The statement of the rows of adjustments."""
    return of_adjustments(_ADJUSTED, _names(question, version))


def values_of(job: Job, provider: str) -> dict[str, Any]:
    """The values of the columns but ``edges``. ``provider`` is who makes, sells and bills the service."""
    months = Calendar(Granularity.MONTH, job.shape.zone)
    return {
        "focus_org": str(job.org_id),
        "focus_provider": provider,
        "focus_months": [to_datetime(edge) for edge in months.edges(job.span)],
        "focus_start": job.range_start,
        "focus_end": job.range_end,
        "focus_estimates": job.pricing.basis is not CostBasis.BOOK,
    }


def _names(question: FiguresQuestion, version: str) -> list[str]:
    """The columns that a file has in a version of the specification."""
    left_out = _SINCE_1_3 * (version == "focus-1.2") + _BY_VALUE * (not question.by_value)
    return [name for name in _USAGE if name not in left_out]
