"""Rate classes: what decides the rate of an event beside its model, in one small number.

The service tier and the size of the context decide it. The *context* of a call is its input tokens.
Providers ask another rate beyond a boundary. Some boundaries are meant as "more than 200,000", others as
"200,000 or more". So each boundary cuts twice. For example, the one boundary 200,000 makes the ranges 0 to
199,999, 200,000 alone, and from 200,001 on. A call of exactly 200,000 tokens has a class of its own, so both
kinds of prices are exact.

Nothing here knows a price. The database gives out the numbers of the classes (``analytics.rate_classes``), so
that a number means the same for ever, also after the boundaries have been set anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels
from pipeline.core.wire import SERVICE_TIERS

IntArray = npt.NDArray[Any]

CONTEXT_TIERS: Final = (128_000, 200_000, 272_000)
"""The boundaries unless set, in input tokens."""

UNKNOWN: Final = 0
"""The class of rows from before there were classes: ``standard``, any size. An event gets it only without
boundaries, because ``standard`` is then one class of any size."""


@dataclass(frozen=True, slots=True)
class RateClass:
    """A service tier, and a range of input tokens. ``input_to`` is the last number. None: no end."""

    service_tier: str
    input_from: int
    input_to: int | None


ANY_SIZE: Final = RateClass(SERVICE_TIERS[0], 0, None)
"""What class 0 means."""


def classes_of(boundaries: Sequence[int]) -> list[RateClass]:
    """The classes that some boundaries (ascending, positive) make: each service tier with each range."""
    edges = sorted({0, *boundaries, *(boundary + 1 for boundary in boundaries)})
    ranges = [*((first, after - 1) for first, after in pairwise(edges)), (edges[-1], None)]
    return [RateClass(tier, first, last) for tier in SERVICE_TIERS for first, last in ranges]


class RateClasses:
    """Finds the number of each event's class."""

    def __init__(self, boundaries: Sequence[int], number: Callable[[RateClass], int]) -> None:
        """``number`` tells the number of each class of `classes_of`."""
        classes = classes_of(boundaries)
        ranges = len(classes) // len(SERVICE_TIERS)
        self._starts: IntArray = np.array([one.input_from for one in classes[:ranges]], np.int64)
        self._numbers: IntArray = np.array([number(one) for one in classes], np.int32).reshape(-1, ranges)

    def of(self, tiers: IntArray, input_tokens: IntArray) -> IntArray:
        """The class (int32[n]) of events. ``tiers`` int64[n] are places in `wire.SERVICE_TIERS`."""
        classes = np.empty(len(tiers), np.int32)
        kernels.rows.rate_classes(self._starts, self._numbers, tiers, input_tokens, classes)
        return classes


def in_order(boundaries: Sequence[int] = CONTEXT_TIERS) -> RateClasses:
    """Classes that are numbered from 1 on in the order of `classes_of`, as a new database numbers them."""
    numbers = {one: number for number, one in enumerate(classes_of(boundaries), start=1)}
    numbers[ANY_SIZE] = UNKNOWN
    return RateClasses(boundaries, numbers.__getitem__)
