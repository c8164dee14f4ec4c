"""Lag and status, and what the worker's hashes in Redis mean."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from api.asking.buckets import Calendar, Granularity, to_minute
from api.config import FreshnessConfig
from api.reading.figures import Finality
from api.reading.freshness import Standing, freshness, standings_from_redis

NOW = datetime(2026, 11, 10, 12, 0, tzinfo=UTC)
MODEL = UUID("11111111-0000-4000-8000-000000000000")


def standing(lag_s: float | None, partition: int = 0) -> Standing:
    watermark = None if lag_s is None else NOW - timedelta(seconds=lag_s)
    return Standing(partition=partition, watermark=watermark, last_event_at=NOW, last_rollup_at=NOW)


@pytest.mark.parametrize(
    ("lags_s", "lag_s", "status"),
    [
        ([0], 0, "fresh"),
        ([59.999], 59.999, "fresh"),
        ([60], 60, "stale"),
        ([299.999], 299.999, "stale"),
        ([300], 300, "delayed"),
        ([5, 61], 61, "stale"),
        ([-30], 0, "fresh"),
        ([5, None], None, "delayed"),
        ([], None, "delayed"),
    ],
)
def test_the_slowest_partition_decides(lags_s: list[float | None], lag_s: float | None, status: str) -> None:
    found = freshness([standing(lag, i) for i, lag in enumerate(lags_s)], NOW, FreshnessConfig())
    assert (found.lag_s, found.status) == (lag_s, status)


def entry(*models: tuple[str, int, int]) -> bytes:
    return json.dumps({"models": models}).encode()


def test_the_workers_hashes_are_read() -> None:
    us = 1_700_000_000_123_456
    found = standings_from_redis(
        {b"3": entry((str(MODEL), us, us + 1))},
        {b"3": str(us - 1).encode(), b"9": b"1"},
        {b"3": str(us + 2).encode()},
    )
    assert found is not None
    (model,) = found
    assert model.model_id == MODEL
    assert model.standing.partition == 3
    assert model.standing.watermark == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us - 1)
    assert model.standing.last_event_at.microsecond == 123_456
    assert model.standing.counted_through == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us + 2)


def test_an_earlier_worker_says_nothing_of_what_is_counted_and_the_rest_is_an_answer() -> None:
    found = standings_from_redis({b"3": entry((str(MODEL), 5, 6))}, {b"3": b"4"}, {b"9": b"1"})
    assert found is not None
    assert [model.standing.counted_through for model in found] == [None]


@pytest.mark.parametrize(
    ("ages_s", "age_s"), [([1], 1), ([1, 40], 40), ([1, None], None), ([None], None), ([], None)]
)
def test_the_slowest_partition_decides_what_is_counted(
    ages_s: list[float | None], age_s: float | None
) -> None:
    """Lags of 5 s everywhere: what is complete does not say what is counted."""
    of_all = [
        replace(standing(5, i), counted_through=None if age is None else NOW - timedelta(seconds=age))
        for i, age in enumerate(ages_s)
    ]
    found = freshness(of_all, NOW, FreshnessConfig())
    assert found.counted_through == (None if age_s is None else NOW - timedelta(seconds=age_s))


@pytest.mark.parametrize(
    ("entries", "watermarks"), [({}, {b"0": b"1"}), ({b"0": entry(), b"1": entry()}, {b"0": b"1"})]
)
def test_what_redis_does_not_wholly_know_is_no_answer(
    entries: dict[bytes, bytes], watermarks: dict[bytes, bytes]
) -> None:
    assert standings_from_redis(entries, watermarks, {}) is None


@pytest.mark.parametrize("bad", [b"", b"{}", b'{"models": [["x", 1, 2]]}', b"[]"])
def test_a_damaged_entry_is_an_error_to_be_caught(bad: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        standings_from_redis({b"0": bad}, {b"0": b"1"}, {})


def test_a_bucket_is_final_once_the_watermark_is_a_dedupe_window_past_its_end() -> None:
    calendar = Calendar(Granularity.HOUR, ZoneInfo("UTC"))
    final = Finality(calendar, [standing(0), standing(3600, 1)], 24 * 3600)
    settled = to_minute(NOW - timedelta(hours=25))
    assert final(settled - 60)
    assert not final(settled)
    assert not Finality(calendar, [standing(0), standing(None, 1)], 24 * 3600)(settled - 6000)
    assert not Finality(calendar, [], 24 * 3600)(settled - 6000)
