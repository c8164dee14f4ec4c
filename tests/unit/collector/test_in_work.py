"""The bytes in work: bounded over all requests and for one caller, after a short wait."""

import asyncio

import pytest

from pipeline.collector import in_work as module
from pipeline.collector.in_work import WAIT_S, InWork
from pipeline.common.problems import Problem


async def test_a_share_holds_what_it_grew_by_until_its_request_ends() -> None:
    in_work = InWork(1000)
    with in_work.share("a") as one, in_work.share("b") as other:
        await one.grow(300)
        await one.grow(100)
        await other.grow(500)
        one.shrink(50)
        assert (in_work.bytes, one.bytes, other.bytes) == (850, 350, 500)
    assert in_work.bytes == 0


async def test_a_request_that_fails_gives_its_bytes_back() -> None:
    in_work = InWork(1000)

    async def fail() -> None:
        with in_work.share("a") as share:
            await share.grow(500)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert in_work.bytes == 0


async def test_a_share_that_does_not_fit_waits_until_another_request_ends() -> None:
    in_work = InWork(1000)
    with in_work.share("a") as one, in_work.share("b") as other, in_work.share("c") as third:
        await one.grow(500)
        await other.grow(400)
        waiting = asyncio.create_task(third.grow(200))
        await asyncio.sleep(0)
        assert not waiting.done()
        other.shrink(100)
        await waiting
        assert in_work.bytes == 1000


async def test_a_share_that_fits_in_no_time_is_a_503_with_retry_after() -> None:
    in_work = InWork(1000)
    with in_work.share("a") as one, in_work.share("b") as other, in_work.share("c") as third:
        await one.grow(500)
        await other.grow(400)
        started = asyncio.get_running_loop().time()
        with pytest.raises(Problem) as refused:
            await third.grow(101)
        assert asyncio.get_running_loop().time() - started >= WAIT_S * 0.9
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
        assert "COLLECTOR_MEMORY_MAX" in refused.value.detail
        await third.grow(100)


async def test_one_caller_has_half_at_most_and_leaves_the_rest_to_others() -> None:
    in_work = InWork(1000)
    with in_work.share("greedy") as one, in_work.share("greedy") as more, in_work.share("b") as other:
        await one.grow(400)
        with pytest.raises(Problem) as refused:
            await more.grow(101)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
        await other.grow(500)
        await more.grow(100)
        assert in_work.bytes == 1000


async def test_large_requests_of_one_caller_get_through_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six requests want 80 of 100 bytes each, in pieces. Each comes again when it is refused."""
    in_work = InWork(200)
    refused = 0

    async def request() -> None:
        nonlocal refused
        while True:
            try:
                with in_work.share("a") as share:
                    for _ in range(16):
                        await share.grow(5)
                        await asyncio.sleep(0)
                    return
            except Problem:
                refused += 1

    for name, value in (("SMALL_BYTES", 0), ("WAIT_S", 0.02), ("OLDEST_WAIT_S", 0.2)):
        monkeypatch.setattr(module, name, value)
    async with asyncio.timeout(60):
        await asyncio.gather(*(request() for _ in range(6)))
    assert refused > 0
    assert in_work.bytes == 0


async def test_a_small_request_passes_by_a_large_one_that_waits() -> None:
    in_work = InWork(1_000_000)
    with in_work.share("a") as one, in_work.share("a") as large, in_work.share("a") as small:
        await one.grow(300_000)
        waiting = asyncio.create_task(large.grow(300_000))
        await asyncio.sleep(0)
        await small.grow(1000)
        assert not waiting.done()
        one.shrink(300_000)
        await waiting


async def test_a_younger_large_request_takes_nothing_before_an_older_one_that_waits() -> None:
    in_work = InWork(1_000_000)
    with in_work.share("a") as one, in_work.share("a") as older, in_work.share("a") as younger:
        await one.grow(300_000)
        first = asyncio.create_task(older.grow(400_000))
        await asyncio.sleep(0)
        second = asyncio.create_task(younger.grow(100_000))
        await asyncio.sleep(0)
        assert not second.done(), "there is room for it, but not its turn"
        one.shrink(300_000)
        await first
        await second
    assert in_work.bytes == 0


async def test_a_request_that_is_cancelled_while_it_waits_holds_nothing_and_blocks_nobody() -> None:
    in_work = InWork(1_000_000)
    with in_work.share("a") as one, in_work.share("a") as older, in_work.share("a") as younger:
        await one.grow(300_000)
        first = asyncio.create_task(older.grow(400_000))
        await asyncio.sleep(0)
        second = asyncio.create_task(younger.grow(100_000))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert in_work.bytes == 400_000
