"""The adjustments of an org whose periods begin in a range, for totals and for the lines of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from api.asking.buckets import Span, to_datetime
from pipeline.common.adjustments import SQL

TOTAL: Final = SQL["total"]
LINES: Final = SQL["lines"]


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What some adjustments add to what the org pays, in units, and how many they are."""

    amount: int
    count: int


def values_of(org_id: UUID, span: Span) -> dict[str, Any]:
    """The values of `TOTAL` and `LINES`, but for the edges of the buckets of lines."""
    return {
        "org_id": org_id,
        "adjusted_from": to_datetime(span.start),
        "adjusted_to": to_datetime(span.end),
    }
