"""Money in answers: whole numbers become exact text. No float ever holds an amount.

What calls cost is counted in units of 10^-20 dollars. A price has at most 6 decimals for a million tokens,
and 12 for a call, and a discount adds at most 8. So every amount is a whole number of units.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

MICROCENT_DECIMALS: Final = 8
"""A dollar is ten to the power of this many microcents, and of so many units:"""
UNIT_DECIMALS: Final = 20
UNITS_PER_MICROCENT: Final = 10 ** (UNIT_DECIMALS - MICROCENT_DECIMALS)
_UNITS_PER_CENT: Final = 10 ** (UNIT_DECIMALS - 2)


def dollars(number: int, decimals: int = UNIT_DECIMALS) -> str:
    """Exact US dollars, with at least two decimals: 12_345 * 10**17 units are ``12.345``.

    ``number`` is in units, or in microcents with their decimals. Answers have thousands of amounts, so this
    is made of what strings do fastest.
    """
    digits = str(abs(number)).zfill(decimals + 1)
    cents = 2 - decimals
    text = f"{digits[:-decimals]}.{digits[-decimals:cents]}{digits[cents:].rstrip('0')}"
    return text if number >= 0 else f"-{text}"


def dollars_of(amount: Decimal) -> str:
    """An exact number of dollars as `dollars` writes it."""
    whole, _, decimals = f"{amount:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0'):0<2}"


def cents_half_even(units: int) -> int:
    """Whole cents; a half cent goes to the even neighbour."""
    cents, rest = divmod(units, _UNITS_PER_CENT)
    half = _UNITS_PER_CENT // 2
    return cents + (rest > half or (rest == half and cents % 2 == 1))
