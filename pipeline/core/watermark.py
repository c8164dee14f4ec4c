"""Event time of one partition: how far it has come, and which events are late.

Plain functions over integers; the caller brings the clock. All times are UTC microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MINUTE_US = 60_000_000
HOUR_US = 3_600_000_000
DAY_US = 86_400_000_000

NEVER = -(2**62)
"""Earlier than every event: the newest event time of a partition that has seen none."""


def arrivals(reached_us: npt.NDArray[Any], newest_us: int, lateness_us: int) -> npt.NDArray[Any]:
    """The watermark that each event met on arrival (int64[n]), for events in stream order.

    ``reached_us`` is each event's time, or the broker's where that is earlier. The watermark is the newest of
    them before the event (``newest_us`` before the first), less the allowed lateness. It follows from the
    stream alone, never from a clock, so that a replay finds the same events late.
    """
    met = np.empty(len(reached_us), np.int64)
    if len(met):
        met[0] = newest_us
        np.maximum(np.maximum.accumulate(reached_us[:-1]), newest_us, out=met[1:])
    return met - lateness_us


def advance(
    watermark_us: int | None,
    *,
    newest_us: int,
    lateness_us: int,
    now_us: int,
    caught_up: bool,
) -> int | None:
    """The partition's watermark after a flush; it never goes back, but from a time that is yet to come.

    A consumer that has read all that the broker had committed at ``now_us`` knows that nothing older
    waits, so the watermark follows the clock: a quiet stream is fresh. Where that clock was ahead, and has
    been set right, its watermark is ahead of now and of every event; kept, it would hide the lag and call
    buckets final that are not. None: nothing is known yet.
    """
    candidates = []
    if watermark_us is not None and watermark_us <= max(now_us, newest_us):
        candidates.append(watermark_us)
    if newest_us != NEVER:
        candidates.append(newest_us - lateness_us)
    if caught_up:
        candidates.append(now_us - lateness_us)
    return max(candidates, default=None)


@dataclass(slots=True)
class BrokerClock:
    """The broker's time, by what its chunks tell, for a watermark that must not run ahead of it.

    What is final can only be told by the broker's time: an event is too late by that time, whatever our own
    clock says. A chunk that was waited for bears the broker's time of just now, and from then on a monotonic
    clock goes on from it. Until there is such a chunk, the host's clock must do.

    Example: the host says 12:00:00 and is an hour ahead. A chunk of 11:00:00 that was waited for comes; ten
    seconds later, by the monotonic clock, it is 11:00:10 at the broker.
    """

    _ahead_us: int | None = None
    """The broker's time less the monotonic clock's."""

    def heard(self, broker_us: int, *, monotonic_us: int) -> None:
        """A chunk came that the broker had just stored."""
        self._ahead_us = broker_us - monotonic_us

    def now_us(self, *, host_us: int, monotonic_us: int) -> int:
        """The earlier of the host's time and the broker's: neither clock alone makes anything final."""
        return host_us if self._ahead_us is None else min(host_us, self._ahead_us + monotonic_us)
