"""Values for the optional fields of generated events, and readers that lose one of these fields.

The stateful model and the simulation draw their events from these values. A reader that loses a field is a
bug that they plant, and that they must find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from pipeline.core.events import DETAILS, MODEL_NAME, PROVIDER, TIER, Columns, Reader

INPUT_TOKENS: Final = (10, 199_999, 200_000, 200_001)
"""Below, at and above a boundary of the context, at which the rate class changes."""
OUTPUT_TOKENS: Final = (2, 7)
KINDS: Final[tuple[Mapping[str, int], ...]] = (
    {"cacheReadTokens": 3},
    {"cacheWriteTokens": 2},
    {"cacheWrite1hTokens": 5},
    {"reasoningTokens": 2},
    {"cacheReadTokens": 4, "cacheWriteTokens": 3, "cacheWrite1hTokens": 2, "reasoningTokens": 1},
    {"cacheReadTokens": 199_999, "cacheWriteTokens": 1, "reasoningTokens": 7},
)
"""Parts of the tokens. The last ones are invalid if the event has fewer tokens."""
SERVICE_TIERS: Final = ("standard", "batch", "flex", "priority", "fast")
LABELS: Final[tuple[Mapping[str, str], ...]] = (
    {"provider": "openai", "modelName": "gpt-4o"},
    {"provider": "openai", "modelName": "gpt-4o-2024-08-06"},
    {"provider": "größe"},
    {"modelName": "o1"},
)

Plant = Callable[[pytest.MonkeyPatch], None]


def _a_reader_loses(name: str, lose: Callable[[Reader, Columns], None]) -> Plant:
    """Let each reader change its columns by ``lose`` before anybody else sees them."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        numbered = Reader._numbered

        def broken(self: Reader, *fields: Any) -> Columns:
            columns = numbered(self, *fields)
            lose(self, columns)
            return columns

        patch.setattr(Reader, "_numbered", broken)

    plant.__name__ = f"_the_reader_loses_{name}"
    return plant


def _detail(column: int) -> Callable[[Reader, Columns], None]:
    def lose(reader: Reader, columns: Columns) -> None:
        columns.details[:, column] = 0

    return lose


def _label(column: int) -> Callable[[Reader, Columns], None]:
    def lose(reader: Reader, columns: Columns) -> None:
        columns.labels[:, column] = 0

    return lose


def _tier(reader: Reader, columns: Columns) -> None:
    columns.rate_class = reader._rate_classes.of(0 * columns.details[:, TIER], columns.input_tokens)


def _size(reader: Reader, columns: Columns) -> None:
    columns.rate_class = reader._rate_classes.of(columns.details[:, TIER], 0 * columns.input_tokens)


READERS_THAT_LOSE_A_FIELD: Final = (
    *(_a_reader_loses(name, _detail(column)) for column, name in enumerate(DETAILS)),
    _a_reader_loses("the_service_tier", _tier),
    _a_reader_loses("the_size", _size),
    _a_reader_loses("the_provider", _label(PROVIDER)),
    _a_reader_loses("the_model_name", _label(MODEL_NAME)),
)
"""Planted bugs: one for each field that version 0.1.0 did not read."""
