"""The bodies of requests that record or retract an adjustment."""

from __future__ import annotations

from decimal import Decimal
from typing import Final
from uuid import UUID

from api.asking.bodies import Body
from api.asking.buckets import HOUR, to_datetime
from pipeline.common.adjustments import Adjustment, amount_of, faults_of

_FIELDS: Final = {
    "kind": "kind",
    "amount": "amount",
    "period_start": "periodStart",
    "period_end": "periodEnd",
    "reason": "reason",
}


def adjustment(body: bytes, org_id: UUID) -> Adjustment:
    """The adjustment that is to be recorded. Raises `Problem` 400 with every fault."""
    reader = Body(body, tuple(_FIELDS.values()))
    kind, amount, reason = (reader.get(name) for name in ("kind", "amount", "reason"))
    start, end = (reader.hour(name, reader.get(name)) for name in ("periodStart", "periodEnd"))
    exact = None
    try:
        exact = amount_of(amount)
    except (TypeError, ValueError) as error:
        reader.fault("amount", str(error) if isinstance(amount, str) else 'expected a text such as "-12.5"')
    # A faulty field has its fault. A harmless value in its place lets all others be checked, too.
    begin = 0 if start is None else start
    found = Adjustment(
        org_id=org_id,
        kind=kind,
        amount=Decimal(-1) if exact is None else exact,
        period_start=to_datetime(begin),
        period_end=to_datetime(begin + HOUR if end is None else end),
        reason=reason,
    )
    for name, message in faults_of(found):
        reader.fault(_FIELDS[name], message)
    reader.finish()
    return found
