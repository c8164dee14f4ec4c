"""Recording, listing and retracting adjustments: ``spendstream adjustments``.

The statement that appends a row also records in the audit log who did so.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row

from pipeline.common.actor import actor
from pipeline.common.adjustments import SQL, Adjustment, Recorded, refusal
from pipeline.common.connect import Session, connect
from pipeline.common.operator import OperatorError


class AdjustmentRefused(OperatorError):
    """The adjustment cannot be retracted; nothing was changed. The message has the reason."""


def add(database_url: str, adjustment: Adjustment) -> Recorded:
    """Record an adjustment that keeps the rules. Raises `psycopg.Error`."""
    return _rows(database_url, "add", adjustment.values(recorded_by=actor()))[0]


def listed(
    database_url: str,
    *,
    org_id: UUID | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    retracted: bool = False,
    limit: int | None = None,
) -> Iterator[Recorded]:
    """The adjustments of an org or of all, whose periods begin in a range. Raises `psycopg.Error`.

    ``retracted``: also those that are retracted, and the rows that retract them.
    """
    values = {"org_id": org_id, "start": start, "end": end, "retracted": retracted}
    yield from _rows(database_url, "page", values | {"limit": limit, "after": 0})


def retract(database_url: str, number: int, *, reason: str) -> Recorded:
    """Retract an adjustment; the row that does so.

    Raises:
        AdjustmentRefused: there is no such adjustment, or it is retracted already.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    values = {"id": number, "org_id": None, "reason": reason, "recorded_by": actor(), "idempotency_key": None}
    found = _rows(database_url, "one", values)
    if not found:
        raise AdjustmentRefused(f"there is no row {number}: see `spendstream adjustments list`")
    why_not = refusal(found[0])
    if why_not:
        raise AdjustmentRefused(why_not)
    added = _rows(database_url, "retract", values)
    if not added:
        raise AdjustmentRefused(f"row {number} was retracted by somebody else just now")
    return added[0]


def _rows(database_url: str, name: str, values: dict[str, Any]) -> list[Recorded]:
    with connect(database_url, _SESSION) as connection:
        return connection.cursor(row_factory=class_row(Recorded)).execute(SQL[name], values).fetchall()


_SESSION: Final = Session(application_name="spendstream-adjustments", lock_timeout_s=60.0)
