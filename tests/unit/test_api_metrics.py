"""What the API says at a scrape of what the database knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api.metrics import Facts, Metrics, waiting_hour_s

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("watermark", "now", "waits_s"),
    [
        (NOON - timedelta(minutes=2), NOON + timedelta(minutes=3), 180),  # the hour from 11:00
        (NOON, NOON + timedelta(minutes=3), 0),  # it is complete to the microsecond
        (NOON - timedelta(microseconds=1), NOON + timedelta(minutes=3), 180),
        (NOON + timedelta(minutes=30), NOON + timedelta(minutes=31), 0),  # the hour from 12:00 is not over
        (NOON - timedelta(hours=5, minutes=1), NOON, 5 * 3600),  # the oldest of several counts
    ],
)
def test_the_oldest_hour_that_is_over_and_not_complete_decides(
    watermark: datetime, now: datetime, waits_s: float
) -> None:
    assert waiting_hour_s(watermark, now) == waits_s


def test_a_zone_off_the_hour_does_not_move_the_hours() -> None:
    from zoneinfo import ZoneInfo

    there = (NOON - timedelta(minutes=2)).astimezone(ZoneInfo("Asia/Kathmandu"))
    assert waiting_hour_s(there, NOON + timedelta(minutes=3)) == 180


def shown(facts: Facts) -> dict[str, float]:
    text = Metrics().exposition(facts, NOON).decode()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    }


def test_a_scrape_has_the_lag_of_each_partition_and_the_jobs_that_have_not_ended() -> None:
    facts = Facts(
        watermarks={0: NOON - timedelta(seconds=11), 1: None},
        open_exports={"pending": 3, "running": 0},
        oldest_export_at=NOON - timedelta(minutes=40),
    )
    found = shown(facts)
    assert found['analytics_freshness_lag_seconds{partition="0"}'] == 11
    assert found['analytics_hour_waiting_seconds{partition="0"}'] == 0
    assert 'analytics_freshness_lag_seconds{partition="1"}' not in found
    assert found['analytics_export_jobs{status="pending"}'] == 3
    assert found['analytics_export_jobs{status="running"}'] == 0
    assert found["analytics_export_oldest_seconds"] == 2400


def test_without_jobs_nothing_waits_and_without_a_database_nothing_is_claimed() -> None:
    assert shown(Facts(open_exports={"pending": 0, "running": 0}))["analytics_export_oldest_seconds"] == 0
    away = shown(Facts())
    assert not [
        name for name in away if name.startswith(("analytics_export_jobs", "analytics_export_oldest"))
    ]
    assert not [name for name in away if name.startswith("analytics_freshness_lag")]
