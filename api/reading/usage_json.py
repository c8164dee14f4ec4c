"""The series of usage as JSON text, made straight from rows: objects for thousands of points take too long.

The text is what `answers.UsagePoint` describes; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from api.answering.money import MICROCENT_DECIMALS, cents_half_even, dollars
from api.asking.buckets import to_datetime
from api.reading.figures import Finality, cost_basis
from api.reading.rollups import USAGE, UsageRow
from api.reading.seen import NO_LABEL, Label


def series(
    rows: Sequence[UsageRow],
    *,
    final: Finality,
    labels: Mapping[str, Label],
    by_value: bool,
    names: Mapping[str, str],
) -> msgspec.Raw:
    """The points of a page, in the order of the rows. ``labels`` are by the model's id as text.

    ``by_value``: the clients of the rows are the values of a dimension. ``names`` are those of the clients or
    values, whichever the rows have.
    """
    heads: dict[int, tuple[str, str]] = {}
    clients: dict[str | None, str] = {}
    models: dict[str | None, str] = {None: _model(None, NO_LABEL)}
    points = []
    for bucket, model, client, *sums in rows:
        invocations, into, out, microcents, read, write, write_1h, thought, *spent = sums
        if bucket not in heads:
            start = to_datetime(bucket).isoformat().replace("+00:00", "Z")  # a third of strftime's time
            heads[bucket] = (
                f'{{"bucketStart":"{start}","modelId":',
                f'}},"final":{"true" if final(bucket) else "false"}}}',
            )
        head, tail = heads[bucket]
        if client not in clients:
            clients[client] = _value(client, names) if by_value else _client(client, names)
        if model is not None and model not in models:
            models[model] = _model(model, labels.get(model, NO_LABEL))
        unestimated, amount, booked, unpriced = spent
        estimated = unestimated < invocations or not invocations
        estimate = f'"{dollars(microcents, MICROCENT_DECIMALS)}"' if estimated else "null"
        basis = cost_basis(invocations, booked, unpriced)
        cents = "null" if basis == "none" else cents_half_even(amount)
        cost = "null" if basis == "none" else estimate if basis == "estimate" else f'"{dollars(amount)}"'
        points.append(
            f'{head}{models[model]},"clientId":{clients[client]}'
            f',"invocations":{invocations},"inputTokens":{into},"outputTokens":{out}'
            f',"cacheReadTokens":{read},"cacheWriteTokens":{write},"cacheWrite1hTokens":{write_1h}'
            f',"reasoningTokens":{thought},"costEstimateCents":{cents}'
            f',"cost":{{"amount":{cost},"currency":"USD","basis":"{basis}"}}'
            f',"estimate":{{"amount":{estimate}}},"unpriced":{{"invocations":{unpriced}{tail}'
        )
    return msgspec.Raw(f"[{','.join(points)}]".encode())


def _model(model: str | None, label: Label) -> str:
    """The id, the name and the provider of a model, from the value of ``modelId`` on."""
    model_id, name, provider = map(_text, (model, label.model_name, label.provider))
    return f'{model_id},"modelName":{name},"provider":{provider}'


def _client(client: str | None, names: Mapping[str, str]) -> str:
    """A client and its name, from the value of ``clientId`` on."""
    name = _text(names.get(client or ""))
    return f'{_text(client or None)},"clientName":{name},"value":null,"valueName":null'


def _value(value: str | None, names: Mapping[str, str]) -> str:
    """The value of a dimension and its name, in place of a client."""
    return (
        f'null,"clientName":null,"value":{_text(value or None)},"valueName":{_text(names.get(value or ""))}'
    )


def _text(text: str | None) -> str:
    return msgspec.json.encode(text).decode()


def totals(rows: Sequence[UsageRow]) -> dict[str, Any]:
    """The measures of all rows together."""
    columns = list(zip(*rows, strict=True))[3:] or [()] * len(USAGE)
    return {name: sum(column) for name, column in zip(USAGE, columns, strict=True)}
