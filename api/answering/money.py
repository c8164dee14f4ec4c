"""Money in answers: integer microcents become exact text. No float ever holds an amount."""

from __future__ import annotations

from typing import Final

MICROCENTS_PER_CENT: Final = 10**6
_MICROCENTS_PER_DOLLAR: Final = 100 * MICROCENTS_PER_CENT


def dollars(microcents: int) -> str:
    """Exact US dollars, with at least two decimals: ``1_234_500_000`` is ``12.345``."""
    whole, rest = divmod(abs(microcents), _MICROCENTS_PER_DOLLAR)
    decimals = f"{rest:08d}".rstrip("0").ljust(2, "0")
    return f"{'-' if microcents < 0 else ''}{whole}.{decimals}"


def cents_half_even(microcents: int) -> int:
    """Whole cents; a half cent goes to the even neighbour."""
    cents, rest = divmod(microcents, MICROCENTS_PER_CENT)
    half = MICROCENTS_PER_CENT // 2
    return cents + (rest > half or (rest == half and cents % 2 == 1))
