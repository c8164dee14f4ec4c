"""One answer for all who ask at nearly the same time: what anybody may ask must not cost a query each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

HOLD_S: Final = 0.5
"""How old an answer may be: less than anybody notices of a readiness or a lag."""


class Recent(Generic[T]):
    """Asks ``question`` at most once at a time, and once in `HOLD_S` where the answer is ``good``.

    What it raises, all hear who wait for it. A bad answer is not held: whoever waits for a good one has it at
    once.
    """

    def __init__(self, question: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> None:
        self._question = question
        self._good = good
        self._asking: asyncio.Task[T] | None = None
        self._good_until = 0.0

    async def answer(self) -> T:
        if self._asking is None or (self._asking.done() and time.monotonic() >= self._good_until):
            self._asking = asyncio.ensure_future(self._ask())
        # Shielded: one caller that goes away takes nobody's answer along.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> T:
        answer = await self._question()
        self._good_until = time.monotonic() + HOLD_S if self._good(answer) else 0.0
        return answer

    async def close(self) -> None:
        """End what is being asked."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
            if not self._asking.cancelled():
                self._asking.exception()  # nobody is left to hear it
