"""The series of usage as JSON text, made straight from rows: objects for thousands of points take too long.

The text is what `answers.UsagePoint` describes; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.answering.money import cents_half_even, dollars
from api.asking.buckets import to_datetime
from api.reading.figures import Finality
from api.reading.rollups import UsageRow


def series(rows: Sequence[UsageRow], *, final: Finality) -> msgspec.Raw:
    """The points of a page, in the order of the rows."""
    heads: dict[int, tuple[str, str]] = {}
    clients: dict[str | None, str] = {None: "null", "": "null"}
    models: dict[str | None, str] = {None: "null"}
    points = []
    for bucket, model, client, invocations, input_tokens, output_tokens, cost in rows:
        if bucket not in heads:
            start = to_datetime(bucket).strftime("%Y-%m-%dT%H:%M:%SZ")
            heads[bucket] = (
                f'{{"bucketStart":"{start}","modelId":',
                f'","currency":"USD"}},"final":{"true" if final(bucket) else "false"}}}',
            )
        head, tail = heads[bucket]
        if client not in clients:
            clients[client] = msgspec.json.encode(client).decode()
        if model not in models:
            models[model] = f'"{model}"'
        if cost > 0 and cost % 1_000_000 != 500_000:  # `money` without its calls and its rarer cases
            digits = f"{cost:09d}"
            decimals = digits[-8:].rstrip("0").ljust(2, "0")
            cents, amount = (cost + 500_000) // 1_000_000, f"{digits[:-8]}.{decimals}"
        else:
            cents, amount = cents_half_even(cost), dollars(cost)
        points.append(
            f'{head}{models[model]},"clientId":{clients[client]}'
            f',"invocations":{invocations},"inputTokens":{input_tokens},"outputTokens":{output_tokens}'
            f',"costEstimateCents":{cents},"cost":{{"amount":"{amount}{tail}'
        )
    return msgspec.Raw(f"[{','.join(points)}]".encode())


def totals(rows: Sequence[UsageRow]) -> dict[str, Any]:
    """The measures of all rows together."""
    columns = list(zip(*rows, strict=True))[3:] or [()] * 4
    names = ("invocations", "input_tokens", "output_tokens", "cost_microcents")
    return {name: sum(column) for name, column in zip(names, columns, strict=True)}
