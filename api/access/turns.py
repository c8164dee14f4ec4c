"""Turns at the database: a bound on how many questions of one org or caller are answered at once.

Without turns, one org that asks much has all connections of the pool, and the other orgs get a 503. A
question takes three turns, in this order: one of its org's, one of its caller's, and one of the pool's, which
all questions share. Because the org's turn comes first, an org has only a few questions in the shared line.

The pool has more connections than turns. The others are kept for work that is no question: API keys, the
audit log, live figures. A question that gets no turn in time is answered with 429.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from pipeline.common import problems
from pipeline.common.errors import TooSlow, Unavailable

WAIT_S: Final = 5.0
"""How long a question waits for all its turns together."""
WAITING_MAX: Final = 64
"""How many questions of one org or caller may wait for a turn."""
ALL_WAITING_MAX: Final = 1000
"""How many questions may wait for one of the shared turns."""
_KEPT_FREE: Final = 2
"""Connections of the pool that questions never get."""
_ALL: Final = "all"


class _Line:
    """At most ``limit`` questions that have a turn, and at most ``waiting_max`` that wait for one."""

    def __init__(self, limit: int, waiting_max: int) -> None:
        self._limit = limit
        self._waiting_max = waiting_max
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for turn in self._waiting)

    @property
    def idle(self) -> bool:
        return not self._held and not self._waiting

    async def enter(self, deadline: float) -> None:
        """Take a turn. Raises `Problem` 429 when none is free by ``deadline`` (of the loop's clock)."""
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
                self.leave()  # we got the turn while we gave up
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def leave(self) -> None:
        """Give the turn to the question that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._held -= 1

    def give_up(self, error: Unavailable) -> None:
        """Fail every question that waits: each would get the same error."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)


class Turns:
    """The lines of all orgs and callers, and the shared line.

    ``each`` is how many questions of one org, or of one caller, are answered at once. It is kept below the
    number of shared turns, so that one org never takes all of them.
    """

    def __init__(self, *, each: int, pool_size: int) -> None:
        self._all = max(1, pool_size - _KEPT_FREE)
        self._each = min(each, max(1, self._all - 1))
        self._lines: dict[str, _Line] = {}

    @property
    def waiting(self) -> int:
        """How many questions wait for a turn now. A question waits in one line at a time."""
        return sum(line.waiting for line in self._lines.values())

    def _line(self, key: str) -> _Line:
        return _Line(self._all, ALL_WAITING_MAX) if key == _ALL else _Line(self._each, WAITING_MAX)

    @asynccontextmanager
    async def turn(self, keys: Iterable[str]) -> AsyncIterator[None]:
        """Hold a turn in each line of ``keys`` and in the shared line for the length of the block.

        Raises:
            Problem: 429, no turn came free in time.
            Unavailable: the database has just failed a question that was answered before this one.
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
