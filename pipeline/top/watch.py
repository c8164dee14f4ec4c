"""When the questions of a view are asked: by time, by the org's live stream, more seldom on failure.

An org's live stream says that its figures have moved, and the REST API says what they are now. So figures
tick within the interval, an org without traffic costs few questions, and every figure is one that REST gives.
Where there is no live stream, the questions are asked every interval.

The view rests at least four times as long as its questions took. So a slow API is asked less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from pipeline.top import figures
from pipeline.top.client import Api, Away, Refused, pause
from pipeline.top.figures import Freshness, View
from pipeline.top.reading import Reading

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_LAST_S: Final = 30.0
_REST_TIMES: Final = 4.0
QUIET_S: Final = 10.0
"""How long a view of an org waits for its live stream. Then it asks, because a new minute may have begun."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is nothing newer, and when (of the monotonic clock) the API is asked again."""

    text: str
    again_s: float


Told = View | Freshness | Trouble


@dataclass(slots=True)
class _Live:
    connected: bool = False
    moved: asyncio.Event = field(default_factory=asyncio.Event)


async def watch(api: Api, reading: Reading, interval_s: float, tell: Callable[[Told], None]) -> None:
    """Ask the questions of ``reading`` until cancelled; ``tell`` gets what came of them.

    Raises:
        Refused: the API refuses the question.
    """
    live = _Live()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_ask(reading, interval_s, tell, live))
            if reading.org_id is not None:
                tasks.create_task(_follow(api, reading.org_id, tell, live))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _ask(reading: Reading, interval_s: float, tell: Callable[[Told], None], live: _Live) -> None:
    backoff_s = BACKOFF_FIRST_S
    while True:
        live.moved.clear()
        began_s = time.monotonic()
        try:
            view = await reading.read()
        except Away as away:
            wait_s = max(backoff_s, away.retry_after_s)
            backoff_s = min(2 * backoff_s, BACKOFF_LAST_S)
            tell(Trouble(str(away), time.monotonic() + wait_s))
            await asyncio.sleep(wait_s)
            continue
        backoff_s = BACKOFF_FIRST_S
        tell(view)
        rest_s = max(interval_s, _REST_TIMES * (time.monotonic() - began_s))
        await asyncio.sleep(rest_s)
        if live.connected:
            await pause(max(0.0, QUIET_S - rest_s), live.moved)


async def _follow(api: Api, org_id: str, tell: Callable[[Told], None], live: _Live) -> None:
    """Follow the org's live stream. Without it the questions go on, so its failures are not told."""
    backoff_s = BACKOFF_FIRST_S
    while True:
        wait_s = 0.0
        try:
            async with aclosing(api.live(org_id)) as messages:
                async for kind, message in messages:
                    live.connected = True
                    backoff_s = BACKOFF_FIRST_S
                    if kind == "usage":
                        live.moved.set()
                    elif kind == "freshness":
                        tell(figures.freshness_of(message, time.monotonic()))
        except Away as away:
            wait_s = away.retry_after_s
        except Refused:
            wait_s = BACKOFF_LAST_S
        live.connected = False
        live.moved.set()
        await asyncio.sleep(max(backoff_s, wait_s))
        backoff_s = min(2 * backoff_s, BACKOFF_LAST_S)
