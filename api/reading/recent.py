"""One answer for all who ask at nearly the same time.

Anybody may ask for readiness and metrics, as often as they like. So not every request may cost a query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

HOLD_S: Final = 0.5
"""How old an answer may be. Nobody notices this in a readiness or a lag."""


class Recent(Generic[T]):
    """Asks ``question`` at most once at a time, and keeps a ``good`` answer for `HOLD_S`.

    An exception goes to everybody who waits for the answer. An answer that is not good is not kept, so a
    change for the better shows at once.
    """

    def __init__(self, question: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> None:
        self._question = question
        self._good = good
        self._asking: asyncio.Task[T] | None = None
        self._good_until = 0.0

    async def answer(self) -> T:
        """The kept answer, or a new one. Raises whatever the question raises."""
        if self._asking is None or (self._asking.done() and time.monotonic() >= self._good_until):
            self._asking = asyncio.ensure_future(self._ask())
        # Shielded: a caller that goes away does not cancel the question for the others.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> T:
        answer = await self._question()
        self._good_until = time.monotonic() + HOLD_S if self._good(answer) else 0.0
        return answer

    async def close(self) -> None:
        """Cancel the question that is being asked."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
            if not self._asking.cancelled():
                self._asking.exception()  # nobody is left to hear it
