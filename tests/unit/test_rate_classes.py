"""Rate classes: each number of tokens has one class of its tier, and a boundary has a class of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common import parsers
from pipeline.core.rate_classes import ANY_SIZE, RateClass, RateClasses, classes_of, in_order
from pipeline.core.wire import SERVICE_TIERS

_BOUNDARIES = st.lists(st.integers(1, 10**12 - 1), max_size=8, unique=True).map(sorted)


@given(_BOUNDARIES, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**12)), min_size=1))
def test_the_class_of_an_event_has_its_tier_and_its_tokens(
    boundaries: list[int], events: list[tuple[int, int]]
) -> None:
    near = [(tier, boundary + step) for tier in range(5) for boundary in boundaries for step in (-1, 0, 1)]
    events = [*events, *near]
    classes = classes_of(boundaries)
    tiers, tokens = np.array(events, np.int64).T
    for number, (tier, size) in zip(
        RateClasses(boundaries, classes.index).of(tiers, tokens), events, strict=True
    ):
        found = classes[number]
        assert found.service_tier == SERVICE_TIERS[tier]
        assert found.input_from <= size
        assert found.input_to is None or size <= found.input_to
        if size in boundaries:
            assert (found.input_from, found.input_to) == (size, size)


def test_below_at_and_above_a_boundary() -> None:
    standard = [one for one in classes_of([200_000]) if one.service_tier == "standard"]
    assert standard == [
        RateClass("standard", 0, 199_999),
        RateClass("standard", 200_000, 200_000),
        RateClass("standard", 200_001, None),
    ]
    assert len(classes_of([128_000, 200_000, 272_000])) == 7 * len(SERVICE_TIERS)
    # Boundaries beside each other leave no empty range between them.
    assert [one.input_from for one in classes_of([5, 6, 7])[:5]] == [0, 5, 6, 7, 8]


def test_without_boundaries_standard_is_the_class_of_rows_from_before() -> None:
    tiers, tokens = np.array([0, 0, 4]), np.array([0, 10**12, 7])
    assert classes_of([])[0] == ANY_SIZE
    assert in_order([]).of(tiers, tokens).tolist() == [0, 0, 5]
    assert in_order().of(tiers, tokens).tolist() == [1, 7, 29]
    assert in_order().of(tiers[:0], tokens[:0]).tolist() == []


def test_the_setting_takes_ascending_numbers_and_says_what_else() -> None:
    assert parsers.boundaries("128000, 200000") == (128_000, 200_000)
    assert parsers.boundaries("") == ()
    for text in ("0", "-5", "1e5", "200000,128000", "5,5", "1,2,3,4,5,6,7,8,9", "9999999999999", "a"):
        with pytest.raises(ValueError, match="expected"):
            parsers.boundaries(text)
