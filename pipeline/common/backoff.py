"""Waiting before another attempt, longer each time, while a server is away."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_LAST_S: Final = 5.0


class Backoff(Protocol):
    """Waits longer each time, until `reset`."""

    async def wait(self) -> None: ...
    def reset(self) -> None: ...


class ExponentialBackoff:
    """Waits 0.1 s, then twice as long each time, up to 5 s."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    async def wait(self) -> None:
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, BACKOFF_LAST_S)
        await asyncio.sleep(wait_s)
