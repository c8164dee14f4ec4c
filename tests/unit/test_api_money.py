"""Money as text: exact in both directions."""

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.answering.money import MICROCENT_DECIMALS, UNITS_PER_MICROCENT, cents_half_even, dollars


@pytest.mark.parametrize(
    ("microcents", "text"),
    [
        (0, "0.00"),
        (1, "0.00000001"),
        (10**8, "1.00"),
        (1_234_500_000, "12.345"),
        (150_000_000, "1.50"),
        (-1, "-0.00000001"),
        (10**30, "1" + "0" * 22 + ".00"),
    ],
)
def test_dollars_are_exact_without_needless_zeros(microcents: int, text: str) -> None:
    assert dollars(microcents, MICROCENT_DECIMALS) == dollars(microcents * UNITS_PER_MICROCENT) == text


@pytest.mark.parametrize(
    ("microcents", "cents"),
    [
        (0, 0),
        (499_999, 0),
        (500_000, 0),
        (500_001, 1),
        (1_500_000, 2),
        (2_500_000, 2),
        (-500_001, -1),
        (-500_000, 0),
    ],
)
def test_half_a_cent_goes_to_the_even_neighbour(microcents: int, cents: int) -> None:
    assert cents_half_even(microcents * UNITS_PER_MICROCENT) == cents


@given(st.integers(-(10**27), 10**27))  # as far as Decimal's 28 digits go
def test_money_equals_decimal_arithmetic(microcents: int) -> None:
    assert Decimal(dollars(microcents)) == Decimal(microcents).scaleb(-20)
    assert cents_half_even(microcents * UNITS_PER_MICROCENT) == int(
        Decimal(microcents).scaleb(-6).to_integral_value(ROUND_HALF_EVEN)
    )
