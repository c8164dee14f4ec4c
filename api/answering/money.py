"""Money in answers: whole numbers become exact text. No float ever holds an amount.

What calls cost is counted in units of 10^-20 dollars. A price has at most 6 decimals for a million tokens,
and 12 for a call, and a discount adds at most 8. So every amount is a whole number of units.
"""

from __future__ import annotations

from typing import Final

MICROCENTS_PER_CENT: Final = 10**6
UNIT_DECIMALS: Final = 20
"""A dollar is ten to the power of this many units."""
UNITS_PER_MICROCENT: Final = 10 ** (UNIT_DECIMALS - 8)


def dollars(units: int) -> str:
    """Exact US dollars, with at least two decimals: 12_345 * 10**17 is ``12.345``."""
    digits = f"{abs(units):0{UNIT_DECIMALS + 1}d}"
    decimals = digits[-UNIT_DECIMALS:].rstrip("0").ljust(2, "0")
    return f"{'-' if units < 0 else ''}{digits[:-UNIT_DECIMALS]}.{decimals}"


def cents_half_even(microcents: int) -> int:
    """Whole cents; a half cent goes to the even neighbour."""
    cents, rest = divmod(microcents, MICROCENTS_PER_CENT)
    half = MICROCENTS_PER_CENT // 2
    return cents + (rest > half or (rest == half and cents % 2 == 1))
