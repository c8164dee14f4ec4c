"""Translates rows between numbers, as in memory, and real ids, as in the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.batch import Block, SeenRows, StoredRows
from pipeline.core.events import MODEL_NAME, PROVIDER, Reader
from pipeline.core.windows import BUCKET, CLIENT, CODE, MODEL, ORG, RATE, STATUS, Labels, TableRows

IntArray = npt.NDArray[Any]


def numbered(reader: Reader, rows: StoredRows) -> TableRows:
    """Rows with numbers, from rows with real ids. New ids get numbers."""
    parts = [reader.orgs.number(rows.org), rows.bucket, reader.models.number(rows.model), rows.rate_class]
    if CLIENT in rows.grain.key:
        parts.append(reader.clients.numbers(rows.client))
    if STATUS in rows.grain.key:
        assert rows.status is not None
        parts.append(rows.status)
    if CODE in rows.grain.key:
        parts.append(reader.error_codes.numbers(rows.error_code))
    return TableRows(rows.grain, np.stack(parts, axis=1).astype(np.int32), rows.measures, rows.sketches)


def stored(reader: Reader, rows: TableRows) -> StoredRows:
    """Rows with real ids, from rows with numbers."""
    keys, key = rows.keys, rows.grain.key
    return StoredRows(
        grain=rows.grain,
        org=reader.orgs.keys.take(keys[:, ORG], axis=0),
        model=reader.models.keys.take(keys[:, MODEL], axis=0),
        bucket=keys[:, BUCKET].astype(np.int64),
        rate_class=keys[:, RATE],
        measures=rows.measures,
        sketches=rows.sketches,
        client=_texts(reader.clients.texts, keys[:, CLIENT]) if CLIENT in key else (),
        status=keys[:, STATUS] if STATUS in key else None,
        error_code=_texts(reader.error_codes.texts, keys[:, CODE]) if CODE in key else (),
        known=rows.known,
    )


def seen_orgs(reader: Reader, spans: tuple[IntArray, IntArray]) -> SeenRows:
    """Rows of orgs with real ids, from the keys (org) and spans of `windows.Spans.drain`."""
    keys, span_us = spans
    return SeenRows(org=reader.orgs.keys.take(keys[:, 0], axis=0), span_us=span_us)


def seen_models(reader: Reader, spans: tuple[IntArray, IntArray], labels: Labels) -> SeenRows:
    """Rows of models with real ids, from the keys (org, model) and spans of `windows.Spans.drain`.

    ``labels`` are drained.
    """
    keys, span_us = spans
    newest = labels.drain(keys)
    return SeenRows(
        org=reader.orgs.keys.take(keys[:, 0], axis=0),
        span_us=span_us,
        model=reader.models.keys.take(keys[:, 1], axis=0),
        labelled_us=newest[:, 0],
        provider=_texts(reader.labels.texts, newest[:, 1 + PROVIDER]),
        model_name=_texts(reader.labels.texts, newest[:, 1 + MODEL_NAME]),
    )


def seen_clients(reader: Reader, spans: tuple[IntArray, IntArray], dimension: str = "") -> SeenRows:
    """Rows of clients with real ids, from the keys (org, client) and spans of `windows.Spans.drain`.

    With ``dimension`` they are its values.
    """
    keys, span_us = spans
    clients = _texts(reader.clients.texts, keys[:, 1])
    return SeenRows(
        org=reader.orgs.keys.take(keys[:, 0], axis=0), span_us=span_us, client=clients, dimension=dimension
    )


def numbered_orgs(reader: Reader, blocks: Sequence[Block]) -> IntArray:
    """The number (int32[n]) of each block's org."""
    return reader.orgs.number(np.array([block.org for block in blocks], np.uint64).reshape(-1, 2))


def key_order(reader: Reader, keys: IntArray) -> IntArray:
    """Sort keys by org, bucket and model (int64[n]), because the database writes faster in key order.

    The rest of a table's primary key is left out of the order, because sorting by names would cost more.
    """
    if not len(keys):
        return np.empty(0, np.int64)
    org, model = reader.orgs.ranks()[keys[:, ORG]], reader.models.ranks()[keys[:, MODEL]]
    bucket = keys[:, BUCKET].astype(np.int64)
    bucket -= bucket.min()
    return np.argsort((org * (bucket.max() + 1) + bucket) * len(reader.models) + model)


def _texts(texts: Sequence[str], numbers: IntArray) -> list[str]:
    return [texts[number] for number in numbers.tolist()]
