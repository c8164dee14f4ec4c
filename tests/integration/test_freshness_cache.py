"""The worker's keys in Redis: what lapses, and that nothing lapses from under an answer."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from api.reading import freshness
from api.reading.freshness import OLD
from api.reading.freshness import FreshnessCache as Reader
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.worker import freshness_cache
from pipeline.worker.freshness_cache import LIFE_HOURS, LIFE_S, RENEW_US, FreshnessCache
from pipeline.worker.owned import recover
from tests.support.memory_sink import MemorySink

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
ORG, MODEL = uuid.UUID(int=1), uuid.UUID(int=2)
WATERMARKS, COUNTED = "spendstream:watermarks", "spendstream:counted"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API waits for Redis on a slow machine, too."""
    monkeypatch.setattr(freshness, "REDIS_TIMEOUT_S", 60)


def key(org: uuid.UUID) -> str:
    return f"spendstream:org:{org}"


def quiet_batch(at_us: int) -> Any:
    """Nothing but a watermark, as a partition without events commits it."""
    return Ledger(Rules()).drain(now_us=at_us, caught_up=True)


def worker(url: str, partition: int = 0, org: uuid.UUID = ORG) -> FreshnessCache:
    return FreshnessCache(url, partition=partition, known=[(org, MODEL, NOW_US, NOW_US)])


async def test_what_is_counted_reaches_the_api_and_stands_still_with_the_worker(redis_url: str) -> None:
    cache, reader = worker(redis_url), Reader(redis_url, lambda: NOW)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        await cache.committed(quiet_batch(NOW_US), now_us=NOW_US + 5)
        found = await reader.org(ORG)
        assert found is not None
        assert [model.standing.counted_through for model in found] == [NOW]
        client.delete(COUNTED)  # as if a worker of an earlier version had written
        found = await reader.org(ORG)
        assert found is not None
        assert [model.standing.counted_through for model in found] == [None]
        assert found[0].standing.watermark is not None
    for each in (cache, reader):
        await each.close()


async def test_each_key_lapses_unless_it_is_written_again(redis_url: str) -> None:
    cache = worker(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        await cache.committed(quiet_batch(NOW_US), now_us=NOW_US)
        assert {name.decode() for name in client.keys("*")} == {key(ORG), WATERMARKS, COUNTED}
        assert all(LIFE_S - 60 < client.ttl(name) <= LIFE_S for name in client.keys("*"))
        client.expire(key(ORG), 100)
        client.expire(WATERMARKS, 100)
        await cache.committed(quiet_batch(NOW_US), now_us=NOW_US + RENEW_US - 1)
        assert client.ttl(key(ORG)) <= 100
        assert client.ttl(WATERMARKS) > 100
        # A quiet org that is still known is written again long before its life ends.
        await cache.committed(quiet_batch(NOW_US), now_us=NOW_US + RENEW_US)
        assert client.ttl(key(ORG)) > 100
    await cache.close()


async def test_an_org_not_heard_of_for_as_long_as_its_rows_last_is_not_renewed(redis_url: str) -> None:
    cache = worker(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        at_us = NOW_US + freshness_cache.QUIET_US + 1
        await cache.committed(quiet_batch(at_us), now_us=at_us)
        assert {name.decode() for name in client.keys("*")} == {WATERMARKS, COUNTED}
    assert not cache._orgs
    await cache.close()


async def test_after_keys_were_lost_every_worker_writes_its_part_again(redis_url: str) -> None:
    workers = [worker(redis_url, partition) for partition in (0, 1)]
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        for cache in workers:
            await cache.committed(quiet_batch(NOW_US), now_us=NOW_US)
        client.flushall()
        for _ in range(2):
            for cache in workers:
                await cache.committed(quiet_batch(NOW_US), now_us=NOW_US + 1)
        assert set(client.hkeys(key(ORG))) == {b"0", b"1"}
    for cache in workers:
        await cache.close()


async def test_a_partition_whose_part_may_have_lapsed_is_not_left_out_of_an_answer(redis_url: str) -> None:
    assert timedelta(hours=LIFE_HOURS) == 2 * OLD
    here, gone = worker(redis_url, 0), worker(redis_url, 1)
    reader = Reader(redis_url, lambda: NOW)
    old_us = NOW_US - OLD // timedelta(microseconds=1) - 60_000_000
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        await gone.committed(quiet_batch(old_us), now_us=old_us)
        client.delete(key(ORG))
        await here.committed(quiet_batch(NOW_US), now_us=NOW_US)
        assert client.hkeys(key(ORG)) == [b"0"]
        assert await reader.org(ORG) is None, "the database knows of partition 1"
        client.hdel(WATERMARKS, "1")  # as `stream retire` does
        assert len(await reader.org(ORG) or ()) == 1
    for each in (here, gone, reader):
        await each.close()


async def test_random_orgs_and_models_do_not_make_the_worker_grow(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness_cache, "KNOWN_MAX", 50)
    cache, reader = worker(redis_url), Reader(redis_url, lambda: NOW)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    await cache.committed(quiet_batch(NOW_US), now_us=NOW_US)
    for i in range(200):
        cache._hear(str(uuid.uuid4()), str(MODEL), NOW_US, NOW_US + i)
        assert sum(1 + len(models or ()) for models in cache._orgs.values()) == cache._known <= 50
        assert cache._orgs.keys() == cache._heard_us.keys()
    assert str(ORG) not in cache._orgs
    # The forgotten org comes back with one model; the worker does not take that one for all of them.
    cache._hear(str(ORG), str(uuid.uuid4()), NOW_US, NOW_US)
    cache._unwritten = {str(ORG)}
    await cache._write(quiet_batch(NOW_US).position)
    assert await reader.org(ORG) is None
    for each in (cache, reader):
        await each.close()


async def test_a_claim_takes_back_a_watermark_that_may_be_later_than_the_databases(redis_url: str) -> None:
    """The database was restored from a backup of eight hours ago, and Redis knows the time of the loss."""
    ahead, reader = worker(redis_url), Reader(redis_url, lambda: NOW)
    at_us = NOW_US - 8 * 3_600_000_000
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    await ahead.committed(quiet_batch(NOW_US), now_us=NOW_US)
    assert [NOW - seen < timedelta(minutes=1) for seen in await watermarks(reader)] == [True]

    sink = MemorySink()
    sink.database.state("s").position.watermark_us = at_us
    owned = await recover(
        sink,
        "s",
        rules=Rules(),
        keep_accepted=False,
        new_log=None,
        redis_url=redis_url,
        steady_us=0,
        merge_ids_at_us=0,
    )
    assert owned.cache is not None
    assert await reader.org(ORG) is None, "the database knows, and Redis does not"
    await owned.cache.committed(quiet_batch(at_us), now_us=at_us)
    assert [NOW - seen > timedelta(hours=8) for seen in await watermarks(reader)] == [True]
    for each in (ahead, owned.cache, reader):
        await each.close()


async def watermarks(reader: Reader) -> list[datetime]:
    found = [one.standing.watermark for one in await reader.org(ORG) or ()]
    return [watermark for watermark in found if watermark is not None]
