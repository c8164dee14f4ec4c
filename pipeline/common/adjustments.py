"""Adjustments: credits, refunds and corrections of what an org pays. They are not usage.

An adjustment belongs wholly to the instant at which its period begins. So over ranges that follow one
another it counts once, whatever its length. A row is never changed and never deleted: a later row retracts
it. The command (`pipeline.admin.adjustments`) and the API (`api.adjustments`) share this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from pipeline.common.texts import is_visible
from sql import queries

KINDS: Final = ("credit", "refund", "correction")
REASON_CHARS_MAX: Final = 1000
AMOUNT_MAX: Final = 10**9
AMOUNT: Final = r"^-?(0|[1-9][0-9]{0,9})(\.[0-9]{1,12})?$"
"""What the text of an amount looks like."""
_HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """What is to be recorded. ``amount`` is added to what the org pays, in US dollars."""

    org_id: UUID
    kind: str
    amount: Decimal
    period_start: datetime
    period_end: datetime
    reason: str

    def values(self, *, recorded_by: str, idempotency_key: str | None = None) -> dict[str, Any]:
        """The values of the query ``add``."""
        fields = {name: getattr(self, name) for name in Adjustment.__slots__}
        return fields | {"recorded_by": recorded_by, "idempotency_key": idempotency_key}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A row of ``analytics.adjustments``. Either it has an amount, or it retracts an earlier row."""

    id: int
    org_id: UUID
    kind: str
    amount: Decimal | None
    period_start: datetime
    period_end: datetime
    reason: str
    recorded_by: str
    recorded_at: datetime
    retracts: int | None
    retracted_by: int | None

    def is_of(self, adjustment: Adjustment) -> bool:
        """Does the row say the same as the adjustment?"""
        return all(getattr(self, name) == getattr(adjustment, name) for name in Adjustment.__slots__)


COLUMNS: Final = ", ".join(Recorded.__slots__[:-1])
SQL: Final = {name: text.replace("{columns}", COLUMNS) for name, text in queries.load("adjustments").items()}


def amount_of(text: str) -> Decimal:
    """An exact amount. Raises ValueError, whose text says what is expected."""
    if not re.fullmatch(AMOUNT, text, re.ASCII) or abs(Decimal(text)) > AMOUNT_MAX:
        raise ValueError(
            f"expected US dollars such as -12.5, at most {AMOUNT_MAX} of them, with at most 12 decimals"
        )
    return Decimal(text)


def faults_of(adjustment: Adjustment) -> Iterator[tuple[str, str]]:
    """The rules that the adjustment breaks: the field, and what is wrong."""
    if adjustment.kind not in KINDS:
        yield "kind", f"expected one of {', '.join(KINDS)}"
    elif adjustment.kind != "correction" and adjustment.amount >= 0:
        yield "amount", f"must be below 0, because a {adjustment.kind} lowers what the org pays"
    elif not adjustment.amount:
        yield "amount", "must not be 0"
    for name in ("period_start", "period_end"):
        if getattr(adjustment, name).timestamp() % _HOUR_S:
            yield name, "must be a whole hour of UTC"
    if adjustment.period_start.timestamp() < 0:
        yield "period_start", "is before 1970, as no event is"
    if adjustment.period_end <= adjustment.period_start:
        yield "period_end", "must be after the start of the period"
    if not is_reason(adjustment.reason):
        yield "reason", REASON_RULE


REASON_RULE: Final = (
    f"expected a text of 1 to {REASON_CHARS_MAX} characters, not blank or invisible, without NUL and without"
    " characters that separate lines (U+2028) or turn the direction of the text"
)


def is_reason(given: Any) -> bool:
    """Is it a text that can be the reason of an adjustment or of a retraction?"""
    return (
        isinstance(given, str)
        and 1 <= len(given) <= REASON_CHARS_MAX
        and "\0" not in given
        and is_visible(given)
    )


def refusal(found: Recorded) -> str | None:
    """Why this row cannot be retracted; None: it can."""
    if found.retracts is not None:
        return f"row {found.id} is itself a retraction (of row {found.retracts}): record the adjustment anew"
    if found.retracted_by is not None:
        return f"row {found.id} is retracted already, by row {found.retracted_by}"
    return None
