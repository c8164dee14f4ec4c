"""The bytes of all requests in work: a bound on the memory of the process, over all requests together.

A request holds a `Share`. The share grows with each piece of the body that arrives, with each piece that is
unpacked, and with the events that are admitted. A share that does not fit waits shortly for others to end.

One caller may hold half of the bytes at most, so that a caller with many large or slow bodies leaves room for
the others.

Several large requests could each hold a part and wait for the rest, and all would fail. So requests that wait
have their turns by age: the oldest one waits longer than the others, and no younger request takes what comes
free before it. Small requests pass by.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Final, Self

from pipeline.common.problems import Problem, too_many

WAIT_S: Final = 0.25
OLDEST_WAIT_S: Final = 0.75
"""How long a share waits until it fits, and how long the oldest one that waits does. With the time for the
rest, the answer comes within a second."""
SMALL_BYTES: Final = 2**16
"""A share of at most this size passes by larger ones that wait."""
RETRY_AFTER_S: Final = 1


@dataclass(slots=True, eq=False)
class _Waiting:
    share: Share
    more: int
    granted: asyncio.Future[None]


class InWork:
    """Counts the bytes in work. ``bytes_max`` bounds all shares together, half of it those of one caller."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._of_caller: Counter[str] = Counter()
        self._ages = count()
        self._waiting: list[_Waiting] = []
        """Those that wait, the oldest first."""

    def share(self, caller: str) -> Share:
        """A share that holds nothing yet. Its context manager gives all its bytes back."""
        return Share(self, caller, next(self._ages))

    async def take(self, share: Share, more: int) -> None:
        """Count ``more`` bytes for a share, waiting for room if necessary.

        Raises:
            Problem: 429, the caller's own requests have all that it may hold; 503, all requests have.
        """
        if self._has_turn(share, more):
            self._count(share, more)
            return
        waiting = _Waiting(share, more, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting.sort(key=lambda one: one.share.age)
        try:
            await self._wait(waiting)
        except BaseException:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:  # the bytes came in the moment in which we gave up
                self._count(share, -more)
            self._grant()
            raise

    def give_back(self, share: Share, less: int) -> None:
        """The share holds ``less`` bytes less."""
        self._count(share, -less)
        self._grant()

    async def _wait(self, waiting: _Waiting) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        while True:
            patience_s = OLDEST_WAIT_S if not self._is_behind(waiting.share) else WAIT_S
            if clock() >= started + patience_s:
                raise self._full(waiting.more)
            await asyncio.wait([waiting.granted], timeout=started + patience_s - clock())
            if waiting.granted.done():
                return

    def _grant(self) -> None:
        """Give what has come free to those that wait and have a turn."""
        for waiting in tuple(self._waiting):
            if self._has_turn(waiting.share, waiting.more):
                self._waiting.remove(waiting)
                self._count(waiting.share, waiting.more)
                waiting.granted.set_result(None)

    def _has_turn(self, share: Share, more: int) -> bool:
        if self.bytes + more > self._bytes_max or self._of_caller[share.caller] + more > self._bytes_max // 2:
            return False
        return share.bytes + more <= SMALL_BYTES or not self._is_behind(share)

    def _is_behind(self, share: Share) -> bool:
        """Does an older share wait for bytes that this one could take?"""
        for older in self._waiting:
            if older.share.age >= share.age:
                return False
            if older.share.caller == share.caller or self.bytes + older.more > self._bytes_max:
                return True
        return False

    def _count(self, share: Share, more: int) -> None:
        self.bytes += more
        share.bytes += more
        self._of_caller[share.caller] += more
        if not self._of_caller[share.caller]:
            del self._of_caller[share.caller]

    def _full(self, more: int) -> Problem:
        if self.bytes + more > self._bytes_max:
            return Problem(
                status=503,
                kind="busy",
                title="Too much in work",
                detail="The requests in work have all the memory (COLLECTOR_MEMORY_MAX): send again.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        return too_many(
            "Your other requests have all the memory that one caller may have (half of COLLECTOR_MEMORY_MAX):"
            " send fewer at once.",
            retry_after_s=RETRY_AFTER_S,
        )


class Share:
    """The bytes that one request holds."""

    def __init__(self, in_work: InWork, caller: str, age: int) -> None:
        self.bytes = 0
        self.caller = caller
        self.age = age
        """Requests are numbered as they come."""
        self._in_work = in_work

    async def grow(self, more: int) -> None:
        """Hold ``more`` bytes. Raises as `InWork.take`."""
        await self._in_work.take(self, more)

    def shrink(self, less: int) -> None:
        """Give ``less`` bytes back."""
        self._in_work.give_back(self, less)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bytes:
            self.shrink(self.bytes)
