"""The body of a request that says what an org asks for. All faults are said at once."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

import msgspec

from api.asking.bodies import Body
from api.budgets.orders import NUMBER
from api.budgets.rules import AMOUNT_MAX
from api.notices.rules import FACTOR_DECIMALS, FACTOR_MAX, Asked, Summary, Unusual

UNUSUAL: Final = "unusualSpend"
SUMMARY: Final = "dailySummary"
FIELDS: Final = (UNUSUAL, SUMMARY)
_UNUSUAL_FIELDS: Final = ("enabled", "factor", "minimumAmount")
_SUMMARY_FIELDS: Final = ("enabled", "timeZone")


def asked(body: bytes) -> Asked:
    """What the org asks for. A part that is absent is off. Raises `Problem` 400 with every fault."""
    reader = Body(body, FIELDS)
    found = Asked(unusual=_unusual(reader), summary=_summary(reader))
    reader.finish()
    return found


def _unusual(reader: Body) -> Unusual:
    part = _part(reader, UNUSUAL, _UNUSUAL_FIELDS)
    if part is None:
        return Unusual()
    default = Unusual()
    factor, minimum = default.factor, default.minimum
    if part.has("factor"):
        found = _number(part.get("factor"))
        if found is None or not 1 < found <= FACTOR_MAX or found != round(found, FACTOR_DECIMALS):
            message = f"expected a number above 1 and at most {FACTOR_MAX}, with at most {FACTOR_DECIMALS}"
            reader.fault(f"{UNUSUAL}.factor", f"{message} decimals")
        else:
            factor = found
    if part.has("minimumAmount"):
        given = part.get("minimumAmount")
        found = _number(given) if isinstance(given, str) else None
        if found is None or not 0 < found <= AMOUNT_MAX:
            reader.fault(
                f"{UNUSUAL}.minimumAmount",
                f'expected US dollars as a text, such as "10" or "2.50", above 0 and at most {AMOUNT_MAX}',
            )
        else:
            minimum = found
    return Unusual(enabled=_enabled(reader, UNUSUAL, part), factor=factor, minimum=minimum)


def _summary(reader: Body) -> Summary:
    part = _part(reader, SUMMARY, _SUMMARY_FIELDS)
    if part is None:
        return Summary()
    zone = part.zone("timeZone")
    for fault in part.faults:
        reader.fault(f"{SUMMARY}.{fault.field}", fault.message)
    return Summary(enabled=_enabled(reader, SUMMARY, part), zone=zone)


def _part(reader: Body, name: str, known: tuple[str, ...]) -> Body | None:
    """An object within the body; None if it is absent or faulty."""
    if not reader.has(name):
        return None
    given = reader.get(name)
    if not isinstance(given, dict):
        reader.fault(name, f"expected an object with the fields {', '.join(known)}")
        return None
    part = Body(msgspec.json.encode(given), known)
    for fault in part.faults:
        reader.fault(f"{name}.{fault.field}", fault.message)
    part.faults.clear()
    return part


def _enabled(reader: Body, name: str, part: Body) -> bool:
    enabled = part.get("enabled")
    if not isinstance(enabled, bool):
        reader.fault(f"{name}.enabled", "expected true or false")
    return enabled is True


def _number(given: Any) -> Decimal | None:
    if isinstance(given, str) and re.fullmatch(NUMBER, given, re.ASCII):
        return Decimal(given)
    if type(given) in (int, float) and abs(given) <= AMOUNT_MAX:
        return Decimal(repr(given))
    return None
