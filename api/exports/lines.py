"""The lines of csv and parquet files: the columns of usage, and of adjustments.

A file by client has one column more than others, and a file by a dimension has three: see `_split_columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from api.asking.questions import FiguresQuestion
from api.exports.cells import ISO, MODEL_NAME, ORG_NAME, PROVIDER, VALUE_NAME, cell, dollars, selected
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
"""The columns of a line of usage of any file. New columns come at the end."""
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
_BY_CLIENT: Final = {"clientName": cell(VALUE_NAME)}
_BY_VALUE: Final = {
    "dimension": "%(dimension)s::text",
    "value": cell("client_id"),
    "valueName": cell(VALUE_NAME),
}
_PARQUET_BY_CLIENT: Final = {"clientName": VALUE_NAME}
_PARQUET_BY_VALUE: Final = _BY_VALUE | {"value": "NULLIF(client_id, '')", "valueName": VALUE_NAME}

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

_SCHEMA: Final = pa.schema(
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
no spreadsheet runs them. Lines of adjustments have no model, and nor has usage that is not by model."""


def schema(question: FiguresQuestion) -> pa.Schema:
    """The schema of the parquet file that answers a question."""
    return pa.schema([*_SCHEMA, *(pa.field(name, pa.string()) for name in _split_columns(question))])


def usage(figures: str, question: FiguresQuestion, *, parquet: bool) -> str:
    """The statement of the lines of usage. ``figures`` is the query of their sums."""
    columns = (_PARQUET if parquet else _CSV) | _split_columns(question, parquet=parquet)
    if question.by_value:
        columns["clientId"] = "NULL::text"
    return f"SELECT {selected(columns, _names(question, parquet=parquet))} FROM ({figures}) AS figures"


def adjustments(question: FiguresQuestion, *, parquet: bool) -> str:
    """The statement of the lines of adjustments."""
    columns = _ADJUSTED_PARQUET if parquet else _ADJUSTED_CSV
    columns = columns | dict.fromkeys(_split_columns(question), "NULL")
    return of_adjustments(columns, _names(question, parquet=parquet))


def _split_columns(question: FiguresQuestion, *, parquet: bool = False) -> dict[str, str]:
    """The columns that only a file by client or by a dimension has. They are its last ones."""
    if question.by_value:
        return dict(_PARQUET_BY_VALUE if parquet else _BY_VALUE)
    if question.by_client:
        return dict(_PARQUET_BY_CLIENT if parquet else _BY_CLIENT)
    return {}


def _names(question: FiguresQuestion, *, parquet: bool) -> Sequence[str]:
    """The columns of a file in their order."""
    return schema(question).names if parquet else (*_CSV, *_split_columns(question))


def of_adjustments(columns: Mapping[str, str], names: Sequence[str]) -> str:
    """The statement of the named columns of adjustments, for any format."""
    return f"SELECT {selected(columns, names)} FROM ({LINES}) AS lines ORDER BY period_start, id"
