"""Event time of one partition: how far it has come, and which events are late.

These are plain functions over integers. The caller brings the clock. All times are UTC microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MINUTE_US = 60_000_000
QUARTER_US = 900_000_000
HOUR_US = 3_600_000_000
DAY_US = 86_400_000_000

NEVER = -(2**62)
"""A time before every event: the newest event time of a partition that has had no event."""


def arrivals(reached_us: npt.NDArray[Any], newest_us: int, lateness_us: int) -> npt.NDArray[Any]:
    """The watermark that each event met on arrival (int64[n]), for events in stream order.

    ``reached_us`` is the event time of each event, or its broker time if that is earlier. ``newest_us`` is
    the newest of these times before the first event. An event meets the newest time before it, less the
    allowed lateness. For example, the lateness is 10 s and the newest time so far is 12:01:15, so the next
    event meets the watermark 12:01:05. If that event is of 12:00:59, it is late for its minute, which ended
    at 12:01:00, but not for its hour, which ends at 13:00.

    The watermark follows from the stream alone and from no clock. So a second reader of the stream finds the
    same events late.
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
    """The partition's watermark after a flush. None: nothing is known yet.

    The watermark is the latest of three times: the watermark before the flush, the newest event time less the
    allowed lateness, and, if the consumer has ``caught_up``, ``now_us`` less the allowed lateness. A consumer
    has caught up when it has read all that the broker had committed at ``now_us``. No older event waits then,
    so the watermark follows the clock, and a quiet stream stays fresh.

    The watermark never goes back, with one exception: it lies after ``now_us`` and after every event. Then it
    comes from a clock that was ahead and has been set right. Such a watermark is dropped, because it would
    hide the lag and call buckets final that are not.
    """
    candidates = []
    if watermark_us is not None and watermark_us <= max(now_us, newest_us):
        candidates.append(watermark_us)
    if newest_us != NEVER:
        candidates.append(newest_us - lateness_us)
    if caught_up:
        candidates.append(now_us - lateness_us)
    return max(candidates, default=None)


def counted(
    counted_us: int | None, *, broker_us: int, newest_broker_us: int, now_us: int, caught_up: bool
) -> int | None:
    """The time up to which the partition is counted after a flush: of the broker's clock, not of events.

    ``broker_us`` is the broker's time of the last chunk, 0 before the first one. Example: the last chunk was
    stored at 12:00:03. While more chunks wait, the partition is counted up to 12:00:03. A consumer that has
    ``caught_up`` at ``now_us`` = 12:00:07 has counted up to 12:00:07. The time never goes back, with the
    exception of `advance`: a time after ``now_us`` and after every chunk is dropped, because a clock was
    ahead.
    """
    candidates = [broker_us] if broker_us else []
    if counted_us is not None and counted_us <= max(now_us, newest_broker_us):
        candidates.append(counted_us)
    if caught_up:
        candidates.append(now_us)
    return max(candidates, default=None)


def hours_passed(before_us: int | None, watermark_us: int | None) -> range:
    """The ends of the hours that a watermark passes on its way from ``before_us``, in order.

    Example: from 10:59:50 to 11:00:02 it passes one end, 11:00:00. Nothing is known of the way to the first
    watermark, so it passes none.
    """
    if before_us is None or watermark_us is None:
        return range(0)
    first_us = (before_us // HOUR_US + 1) * HOUR_US
    return range(first_us, watermark_us + 1, HOUR_US)


@dataclass(slots=True)
class BrokerClock:
    """The broker's clock, worked out from chunks, so that the watermark does not run ahead of the broker.

    The broker's time decides whether an event is too late. So the broker's time decides whether a bucket is
    final, and the host's clock must not. A worker that waits for a chunk gets it as soon as the broker has
    stored it. Such a chunk tells the broker's time of this moment, and a monotonic clock counts on from
    there. Before the first chunk of this kind, the host's clock must do.

    For example, the host's clock says 12:00:00 and is an hour ahead. The worker waits, and a chunk of
    11:00:00 comes. When the monotonic clock has counted ten more seconds, the broker's time is 11:00:10.
    """

    _ahead_us: int | None = None
    """The broker's time less the monotonic clock's."""

    def heard(self, broker_us: int, *, monotonic_us: int) -> None:
        """Note the time of a chunk that the broker has just stored."""
        self._ahead_us = broker_us - monotonic_us

    def now_us(self, *, host_us: int, monotonic_us: int) -> int:
        """The earlier of the host's time and the broker's, so that a clock ahead makes no bucket final."""
        return host_us if self._ahead_us is None else min(host_us, self._ahead_us + monotonic_us)
