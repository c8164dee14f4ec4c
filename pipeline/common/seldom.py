"""Saying a thing in the log again and again, but seldom: at most once a minute, with what was left unsaid."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 60.0
"""How long after a line the next one of its kind may follow."""
_KINDS_MAX: Final = 1000


class Seldom:
    """Counts what happens, by kind, and says when to write a line about it.

    Example: 500 requests are refused within a minute, and 20 in the next. The first one has a line that
    counts 1. The first one of the second minute has a line that counts 500: 499 that were left unsaid, and
    itself.
    """

    def __init__(self, *, pause_s: float = PAUSE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}
        """When a kind was said last, and what it has counted since."""

    def count(self, kind: str, more: int = 1) -> int | None:
        """Count ``more`` of a kind: the number for a line, if it is time for one; else None.

        Beyond 1,000 kinds all are forgotten, so that their memory is bounded. Each may be said anew then.
        """
        now = self._clock()
        said_at, unsaid = self._kinds.get(kind, (None, 0))
        if said_at is not None and now < said_at + self._pause_s:
            self._kinds[kind] = said_at, unsaid + more
            return None
        if said_at is None and len(self._kinds) >= _KINDS_MAX:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        return unsaid + more
