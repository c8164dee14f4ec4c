"""The watermark follows events and, in a quiet stream, the clock; and it survives a clock that was wrong."""

from __future__ import annotations

import pytest

from pipeline.core import watermark
from pipeline.core.watermark import HOUR_US, NEVER

NOW = 1_800_000_000_000_000
LATE = 10_000_000


@pytest.mark.parametrize(
    ("before", "newest", "caught_up", "after"),
    [
        (None, NEVER, False, None),
        (None, NEVER, True, NOW - LATE),
        (None, NOW - 60, False, NOW - 60 - LATE),
        (NOW - HOUR_US, NOW - 60, False, NOW - 60 - LATE),
        (NOW - HOUR_US, NOW - 60, True, NOW - LATE),
        (NOW - LATE - 5, NOW - HOUR_US, False, NOW - LATE - 5),
        (NOW - LATE + 5, NOW - HOUR_US, True, NOW - LATE + 5),  # the clock went back a little: kept
    ],
)
def test_it_is_the_newest_that_is_known(
    before: int | None, newest: int, caught_up: bool, after: int | None
) -> None:
    found = watermark.advance(before, newest_us=newest, lateness_us=LATE, now_us=NOW, caught_up=caught_up)
    assert found == after


@pytest.mark.parametrize("caught_up", [True, False])
def test_one_from_a_clock_that_was_ahead_is_given_up(caught_up: bool) -> None:
    ahead = watermark.advance(
        NOW - LATE, newest_us=NOW - HOUR_US, lateness_us=LATE, now_us=NOW + HOUR_US, caught_up=True
    )
    assert ahead == NOW + HOUR_US - LATE
    mended = watermark.advance(
        ahead, newest_us=NOW - HOUR_US, lateness_us=LATE, now_us=NOW, caught_up=caught_up
    )
    assert mended == (NOW - LATE if caught_up else NOW - HOUR_US - LATE)


def test_one_that_events_have_passed_is_kept_whatever_the_clock_says() -> None:
    slow_clock = NOW - 5 * HOUR_US
    kept = watermark.advance(NOW - LATE, newest_us=NOW, lateness_us=LATE, now_us=slow_clock, caught_up=True)
    assert kept == NOW - LATE


@pytest.mark.parametrize(
    ("before", "broker", "newest_broker", "caught_up", "after"),
    [
        (None, 0, 0, False, None),  # nothing has been read
        (None, 0, 0, True, NOW),  # an empty stream is counted up to now
        (None, NOW - 60, NOW - 60, False, NOW - 60),  # more chunks wait
        (NOW - 90, NOW - 60, NOW - 60, True, NOW),
        (NOW - 30, NOW - 60, NOW - 60, False, NOW - 30),  # caught up before, and the next chunk waits
        (NOW - 30, NOW - 60, NOW - 40, False, NOW - 30),  # the broker's clock went back
        (NOW + HOUR_US, NOW - 60, NOW - 60, False, NOW - 60),  # a clock was ahead, and is right again
        (NOW + 60, NOW - 60, NOW + 90, False, NOW + 60),  # the host's clock is behind the broker's
    ],
)
def test_counted_is_the_last_chunk_and_now_where_all_is_read(
    before: int | None, broker: int, newest_broker: int, caught_up: bool, after: int | None
) -> None:
    found = watermark.counted(
        before, broker_us=broker, newest_broker_us=newest_broker, now_us=NOW, caught_up=caught_up
    )
    assert found == after


def test_a_hosts_clock_that_is_ahead_makes_nothing_final_before_its_time_at_the_broker() -> None:
    clock = watermark.BrokerClock()
    assert clock.now_us(host_us=NOW + HOUR_US, monotonic_us=5) == NOW + HOUR_US, "nothing else is known"
    clock.heard(NOW, monotonic_us=1_000)
    assert clock.now_us(host_us=NOW + HOUR_US, monotonic_us=1_000 + 10_000_000) == NOW + 10_000_000
    assert clock.now_us(host_us=NOW - HOUR_US, monotonic_us=1_000) == NOW - HOUR_US
    clock.heard(NOW - HOUR_US, monotonic_us=2_000)
    assert clock.now_us(host_us=NOW, monotonic_us=2_000) == NOW - HOUR_US, "the newest word counts"


MARKED = NOW // HOUR_US * HOUR_US
"""A whole hour."""


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        (MARKED - LATE, MARKED + 2, [0]),
        (MARKED - LATE, MARKED, [0]),  # at its end, an hour is complete
        (MARKED - LATE, MARKED - 1, []),
        (MARKED, MARKED + 5, []),  # it was passed before
        (MARKED - 1, MARKED + 2 * HOUR_US, [0, 1, 2]),  # after an outage
        (MARKED + 5, MARKED - 5, []),  # a clock was set right
        (None, MARKED, []),
        (MARKED, None, []),
    ],
)
def test_the_hours_that_a_watermark_passes(before: int | None, after: int | None, ends: list[int]) -> None:
    assert list(watermark.hours_passed(before, after)) == [MARKED + end * HOUR_US for end in ends]
