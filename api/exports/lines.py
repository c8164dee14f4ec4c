"""The lines of csv and parquet files: the columns of usage, and of adjustments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from api.exports.cells import ISO, MODEL_NAME, ORG_NAME, PROVIDER, cell, dollars, selected
from api.reading.adjustments import LINES

_COST: Final = dollars("(amount * 0.00000000000000000001)")
# A cost that nobody knows is no amount, and not 0.
_AMOUNT: Final = f"CASE WHEN unpriced < invocations THEN {_COST} END"
_ESTIMATE: Final = (
    "CASE WHEN unestimated < invocations THEN (cost_microcents * 0.00000001)::numeric(40, 8) END"
)
_BASIS: Final = """
    CASE WHEN booked > 0 AND booked + unpriced < invocations THEN 'mixed' WHEN booked > 0 THEN 'book'
        WHEN unpriced < invocations THEN 'estimate' ELSE 'none' END
"""

_CSV: Final = {
    "bucketStart": f"to_char(bucket AT TIME ZONE 'UTC', {ISO})",
    "modelId": "model_id",
    "clientId": cell("client_id"),
    "invocations": "invocations",
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "costAmount": _AMOUNT,
    "costCurrency": "'USD'",
    "cacheReadTokens": "cache_read_tokens",
    "cacheWriteTokens": "cache_write_tokens",
    "cacheWrite1hTokens": "cache_write_1h_tokens",
    "reasoningTokens": "reasoning_tokens",
    "unpricedInvocations": "unpriced",
    "costBasis": _BASIS,
    "estimateAmount": _ESTIMATE,
    "provider": cell(PROVIDER),
    "modelName": cell(MODEL_NAME),
    "priceVersion": "%(export_version)s::bigint",
    "lineType": "'usage'",
    "adjustmentAmount": "NULL::numeric",
    "adjustmentId": "NULL::bigint",
    "adjustmentReason": "NULL::text",
    "orgName": cell(ORG_NAME),
}
"""The columns of a line of usage. New columns come at the end."""
_PARQUET: Final = _CSV | {
    "bucketStart": "bucket",
    "modelId": "model_id::text",
    "clientId": "NULLIF(client_id, '')",
    "invocations": "invocations::bigint",
    "inputTokens": "input_tokens::bigint",
    "outputTokens": "output_tokens::bigint",
    "costAmount": f"({_AMOUNT})::numeric(38, 20)",
    "cacheReadTokens": "cache_read_tokens::bigint",
    "cacheWriteTokens": "cache_write_tokens::bigint",
    "cacheWrite1hTokens": "cache_write_1h_tokens::bigint",
    "reasoningTokens": "reasoning_tokens::bigint",
    "unpricedInvocations": "unpriced::bigint",
    "estimateAmount": f"({_ESTIMATE})::numeric(38, 8)",
    "provider": PROVIDER,
    "modelName": MODEL_NAME,
    "orgName": ORG_NAME,
}

# A line of an adjustment has no usage and no cost of usage: who sums `costAmount` sums the same as before.
_NO_USAGE: Final = {
    **dict.fromkeys(_CSV, "NULL"),
    **dict.fromkeys(
        (
            "invocations",
            "inputTokens",
            "outputTokens",
            "cacheReadTokens",
            "cacheWriteTokens",
            "cacheWrite1hTokens",
            "reasoningTokens",
            "unpricedInvocations",
        ),
        "0::bigint",
    ),
    "costBasis": "'none'",
    "priceVersion": "%(export_version)s::bigint",
    "lineType": "kind",
    "adjustmentId": "id",
}
_ADJUSTED_CSV: Final = _NO_USAGE | {
    "bucketStart": _CSV["bucketStart"],
    "costCurrency": "'USD'",
    "adjustmentAmount": dollars("amount"),
    "adjustmentReason": cell("reason"),
    "orgName": _CSV["orgName"],
}
_ADJUSTED_PARQUET: Final = _NO_USAGE | {
    "bucketStart": "bucket",
    "adjustmentAmount": "amount::numeric(38, 20)",
    "adjustmentReason": "reason",
    "orgName": ORG_NAME,
}

SCHEMA: Final = pa.schema(
    [
        pa.field("bucketStart", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("modelId", pa.string()),
        pa.field("clientId", pa.string()),
        pa.field("invocations", pa.int64(), nullable=False),
        pa.field("inputTokens", pa.int64(), nullable=False),
        pa.field("outputTokens", pa.int64(), nullable=False),
        pa.field("costAmount", pa.decimal128(38, 20)),
        pa.field("cacheReadTokens", pa.int64(), nullable=False),
        pa.field("cacheWriteTokens", pa.int64(), nullable=False),
        pa.field("cacheWrite1hTokens", pa.int64(), nullable=False),
        pa.field("reasoningTokens", pa.int64(), nullable=False),
        pa.field("unpricedInvocations", pa.int64(), nullable=False),
        pa.field("costBasis", pa.string(), nullable=False),
        pa.field("estimateAmount", pa.decimal128(38, 8)),
        pa.field("provider", pa.string()),
        pa.field("modelName", pa.string()),
        pa.field("priceVersion", pa.int64(), nullable=False),
        pa.field("lineType", pa.string(), nullable=False),
        pa.field("adjustmentAmount", pa.decimal128(38, 20)),
        pa.field("adjustmentId", pa.int64()),
        pa.field("adjustmentReason", pa.string()),
        pa.field("orgName", pa.string()),
    ]
)
"""Of a parquet file. Amounts are in US dollars, and null if nobody knows them. Texts are as they are, because
no spreadsheet runs them. Only lines of adjustments have no model."""


def usage(figures: str, *, parquet: bool, by_client: bool) -> str:
    """The statement of the lines of usage. ``figures`` is the query of their sums."""
    columns, names = (_PARQUET, SCHEMA.names) if parquet else (_CSV, tuple(_CSV))
    if not by_client:
        columns = columns | {"clientId": "NULL::text"}
    return f"SELECT {selected(columns, names)} FROM ({figures}) AS figures"


def adjustments(*, parquet: bool) -> str:
    """The statement of the lines of adjustments."""
    if parquet:
        return of_adjustments(_ADJUSTED_PARQUET, SCHEMA.names)
    return of_adjustments(_ADJUSTED_CSV, tuple(_CSV))


def of_adjustments(columns: Mapping[str, str], names: Sequence[str]) -> str:
    """The statement of the named columns of adjustments, for any format."""
    return f"SELECT {selected(columns, names)} FROM ({LINES}) AS lines ORDER BY period_start, id"
