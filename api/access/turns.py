"""Turns at the database: so many questions of one org or one caller at once; the rest waits, or is 429.

Without them whoever asks the most has all of the pool's connections, and others get a 503. A question takes
three turns: its org's, its caller's, and one of those that the pool has for all questions, which leaves
connections to what is no question (API keys, the audit log, live figures). It waits for them in this order,
so one org has at most its own few questions in the common line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from api.answering import problems
from api.errors import TooSlow, Unavailable

WAIT_S: Final = 5.0
"""How long a question waits for its turns, all together."""
WAITING_MAX: Final = 64
"""How many questions of one org or caller wait for a turn."""
ALL_WAITING_MAX: Final = 1000
"""How many wait for one of the turns that all questions share."""
_KEPT_FREE: Final = 2
"""Connections of the pool that no question has."""
_ALL: Final = "all"


class _Line:
    """Those who have a turn now, ``limit`` at most, and those who wait for one, ``waiting_max`` at most."""

    def __init__(self, limit: int, waiting_max: int) -> None:
        self._limit = limit
        self._waiting_max = waiting_max
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        return not self._held and not self._waiting

    async def enter(self, deadline: float) -> None:
        """Raises `Problem` 429 when there is no turn by ``deadline`` (of the loop's clock)."""
        if self._held < self._limit:
            self._held += 1
            return
        if len(self._waiting) >= self._waiting_max:
            raise _busy()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # it was given to us while we gave up
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def leave(self) -> None:
        """Give the turn to who has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._held -= 1

    def give_up(self, error: Unavailable) -> None:
        """Who waits would only hear the same."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)


class Turns:
    """``each``: questions of one org, and of one caller, at once; never all that the pool has."""

    def __init__(self, *, each: int, pool_size: int) -> None:
        self._all = max(1, pool_size - _KEPT_FREE)
        self._each = min(each, max(1, self._all - 1))
        self._lines: dict[str, _Line] = {}

    def _line(self, key: str) -> _Line:
        return _Line(self._all, ALL_WAITING_MAX) if key == _ALL else _Line(self._each, WAITING_MAX)

    @asynccontextmanager
    async def turn(self, keys: Iterable[str]) -> AsyncIterator[None]:
        """Within it the question may be asked.

        Raises:
            Problem: 429, others of the same org or caller are still before it.
            Unavailable: the database has just failed one that was before it.
        """
        deadline = asyncio.get_running_loop().time() + WAIT_S
        asked: list[str] = []
        held: list[_Line] = []
        try:
            for key in (*keys, _ALL):
                line = self._lines.get(key)
                if line is None:
                    line = self._lines[key] = self._line(key)
                asked.append(key)
                await line.enter(deadline)
                held.append(line)
            yield
        except TooSlow:
            raise
        except Unavailable as error:
            for line in self._lines.values():
                line.give_up(error)
            raise
        finally:
            for line in reversed(held):
                line.leave()
            # Also the line in which we gave up: its turn may have come to us in the same moment.
            for key in asked:
                if key in self._lines and self._lines[key].idle:
                    del self._lines[key]


def _busy() -> problems.Problem:
    return problems.too_many(
        "Other questions of this org or caller are being answered (API_QUESTIONS_MAX); ask again.",
        retry_after_s=2,
    )
