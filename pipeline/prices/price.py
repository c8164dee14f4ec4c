"""A price as a source gives it, and the rules that it must keep. Nothing here knows a database or a file.

The rate of a price is in US dollars for a million tokens. For the kind ``request`` it is in US dollars for a
call, and for the kind ``discount`` it is a percentage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from pipeline.common.operator import OperatorError
from pipeline.common.texts import cut
from pipeline.core.wire import SERVICE_TIERS

TOKEN_KINDS: Final = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
KINDS: Final = (*TOKEN_KINDS, "request", "discount")
CHILDREN: Final = {
    "input": ("cache_read", "cache_write", "cache_write_1h"),
    "cache_write": ("cache_write_1h",),
    "output": ("reasoning",),
}
"""The kinds that have the rate of another one unless they have one of their own, by that kind."""
EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The beginning of a price of which a source does not say when it began, and the earliest one."""
PUBLIC: Final = ("genai-prices", "model-prices", "litellm")
"""Sources that are the same for everybody. A price from elsewhere is one that somebody here decided on."""
MANUAL: Final = "manual"
"""The source of what a person sets by a command."""
FILE: Final = "csv"
"""The source of what a person gives in a file, unless the file names another."""
CHECK_MODEL: Final = ("spendstream", "check")
"""Provider and name of the model of ``spendstream check``. Its events say that they cost nothing."""

TEXT_CHARS_MAX: Final = 1000
"""The longest ``source`` and ``basis``."""

_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_RATE_MAX: Final = Decimal(10**9)
_CONTEXT_MAX: Final = 10**12
_HOUR: Final = timedelta(hours=1)

Key = tuple[UUID | None, str, str, str, int, str]
"""(org_id, provider, model_name, service_tier, context_from, kind): what a price is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One price of a source. Nothing is checked yet; see `faults_of`."""

    provider: str
    model_name: str
    kind: str
    rate: Decimal
    service_tier: str = SERVICE_TIERS[0]
    context_from: int = 0
    """The price holds for calls with this many input tokens or more."""
    valid_from: datetime | None = None
    """None: the source does not say when the price began."""
    valid_to: datetime | None = None
    """None: the price has no end."""
    org_id: UUID | None = None
    """None: the price holds for everyone."""
    source: str = MANUAL
    basis: str = ""
    where: str = ""
    """The place in the source, for messages."""

    @property
    def key(self) -> Key:
        return (
            self.org_id,
            self.provider,
            self.model_name,
            self.service_tier,
            self.context_from,
            self.kind,
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule, and its place in the source."""

    where: str
    message: str


class Faulty(OperatorError):
    """A source breaks rules, so nothing was imported. ``faults`` names every broken rule."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source} has {count}: nothing was imported")
        self.faults = tuple(faults)


def faults_of(prices: Iterable[Price]) -> list[Fault]:
    """Every broken rule of some prices that are to be imported together."""
    faults: list[Fault] = []
    seen: dict[tuple[Key, datetime], Price] = {}
    for price in prices:
        faults += [Fault(price.where, message) for message in _faults(price)]
        first = seen.setdefault((price.key, price.valid_from or EVER), price)
        if first is not price:
            faults.append(Fault(price.where, _twice(first, price)))
    return faults


def _twice(first: Price, second: Price) -> str:
    same = f"is the same price as {first.where or 'another'}"
    if first.rate != second.rate:
        return f"{same}, but rate {cut(first.rate)} and {cut(second.rate)}"
    return f"{same}, but another valid_to" if first.valid_to != second.valid_to else f"{same}: leave one out"


def _faults(price: Price) -> Iterable[str]:
    is_discount = price.kind == "discount"
    if price.kind not in KINDS:
        yield f"kind {cut(price.kind)!r} is unknown: expected one of {', '.join(KINDS)}"
    for name, value in (("provider", price.provider), ("model_name", price.model_name)):
        if not value and not is_discount:
            yield f"{name} is missing"
    for name, value, length_max in (
        ("provider", price.provider, 64),
        ("model_name", price.model_name, 128),
        ("source", price.source, TEXT_CHARS_MAX),
        ("basis", price.basis, TEXT_CHARS_MAX),
    ):
        if len(value) > length_max:
            yield f"{name} has more than {length_max} characters"
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            yield f"{name} holds a character that cannot be stored (U+0000 or half of a surrogate pair)"
    if is_discount:
        if price.service_tier:
            yield "a discount holds for all service tiers: give no service_tier"
        if price.context_from:
            yield "a discount holds for all sizes: give no context_from"
        if price.org_id is None:
            yield "a discount belongs to an org: org_id is missing"
    elif price.service_tier not in SERVICE_TIERS:
        tiers = ", ".join(SERVICE_TIERS)
        yield f"service_tier {cut(price.service_tier)!r} is unknown: expected one of {tiers}"
    if not 0 <= price.context_from <= _CONTEXT_MAX:
        yield f"context_from {cut(price.context_from)} is not between 0 and {_CONTEXT_MAX}"
    yield from _faults_of_rate(price)
    for name, at in (("valid_from", price.valid_from), ("valid_to", price.valid_to)):
        if at is not None and (at - EVER) % _HOUR:
            yield f"{name} {at.isoformat()} is not a whole hour of UTC"
        if at is not None and at < EVER:
            yield f"{name} {at.isoformat()} is before 1970, as no event is"
    if price.valid_to is not None and price.valid_to <= (price.valid_from or EVER):
        yield "valid_to is not after valid_from"


def _faults_of_rate(price: Price) -> Iterable[str]:
    rate = price.rate
    if not rate.is_finite():
        yield f"rate {cut(rate)} is no number"
        return
    if rate < 0:
        yield f"rate {cut(rate)} is negative"
    high = Decimal(100) if price.kind == "discount" else _RATE_MAX
    if rate > high:
        yield f"rate {cut(rate)} is above {high}"
    decimals_max = 12 if price.kind == "request" else 6
    if decimals(rate) > decimals_max:
        yield f"rate {cut(rate)} has more than {decimals_max} decimals: a float has left its noise there"


def number(text: str) -> Decimal:
    """The decimal that a person writes, such as 2.5 or 1e-3. Raises `ValueError`."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return Decimal(text) or Decimal(0)  # no -0


def decimals(number: Decimal) -> int:
    """The decimals of a number, without zeros at its end. Exact for every number of digits."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    zeros = len(text) - len(text.rstrip("0"))
    return max(0, -exponent - zeros) if any(digits) else 0


def hour_of(at: datetime) -> datetime:
    """The beginning of the hour of UTC that a time lies in."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def rounded(rate: Decimal) -> Decimal:
    """A rate of a public source in whole 10^-6 dollars, if that changes it by less than one part in 10^4.

    Such a source holds some rates with the noise of a float (0.30000000000000004 is meant as 0.3), a quotient
    that was cut off (0.0833333333333333), or a seventh decimal (0.0359375). Nobody here can edit the source,
    so such a rate is rounded and said. A rate that would change by more comes back as it is, and `faults_of`
    then names it.
    """
    if abs(rate) > _RATE_MAX:
        return rate
    near = rate.quantize(Decimal("0.000001"))
    return near if abs(near - rate) < abs(rate) * Decimal("1e-4") else rate
