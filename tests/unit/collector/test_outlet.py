"""The outlet: batches of what waits, an answer after each confirmation, and the spool or `Away`."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from pipeline.collector import outlet as module
from pipeline.collector.outlet import BATCH_EVENTS, Away, Outlet
from pipeline.collector.spool import Spool
from tests.support.failing_disk import FailingDisk
from tests.support.memory_stream import MemoryStream

PATIENCE_S = 60.0
"""Long enough for every confirmation on a slow machine."""
SHORT_S = 0.05


class NoWait:
    """A back-off that lets other tasks run, and no more."""

    async def wait(self) -> None:
        await asyncio.sleep(0.001)

    def reset(self) -> None:
        pass


@asynccontextmanager
async def running(
    stream: MemoryStream,
    *,
    patience_s: float = PATIENCE_S,
    spool: Spool | None = None,
    look_s: float = PATIENCE_S,
) -> AsyncIterator[Outlet]:
    outlet = Outlet(stream, patience_s=patience_s, spool=spool, new_backoff=NoWait, look_s=look_s)
    work = asyncio.create_task(outlet.run())
    try:
        yield outlet
        assert not work.done(), work
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


@asynccontextmanager
async def spool_in(folder: Path) -> AsyncIterator[Spool]:
    spool = await Spool.open(folder, bytes_max=2**24)
    try:
        yield spool
    finally:
        await spool.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def numbered(first: int, after: int) -> tuple[list[bytes], list[str]]:
    return [b"%d" % n for n in range(first, after)], [f"org-{n % 3}" for n in range(first, after)]


async def test_events_are_stored_with_their_keys_before_the_answer() -> None:
    stream = MemoryStream()
    async with running(stream) as outlet:
        assert await outlet.send(*numbered(0, 5)) == "stream"
        assert (stream.stored, stream.keys) == numbered(0, 5)
        assert outlet.error is None


async def test_no_events_need_no_broker() -> None:
    outlet = Outlet(MemoryStream(), patience_s=PATIENCE_S)
    assert await outlet.send([], []) == "stream"


async def test_there_is_no_answer_without_a_confirmation() -> None:
    stream = MemoryStream()
    stream.confirms.clear()
    async with running(stream) as outlet:
        sending = asyncio.create_task(outlet.send(*numbered(0, 5)))
        await until(lambda: len(stream.stored) == 5)
        await asyncio.wait([sending], timeout=0.05)
        assert not sending.done()
        stream.confirms.set()
        assert await sending == "stream"


async def test_what_waits_while_a_batch_is_confirmed_is_the_next_batch() -> None:
    stream = MemoryStream()
    stream.confirms.clear()
    async with running(stream) as outlet:
        first = asyncio.create_task(outlet.send(*numbered(0, 1)))
        await until(lambda: stream.batches == [1])
        rest = [asyncio.create_task(outlet.send(*numbered(n, n + 2))) for n in range(1, 21, 2)]
        await asyncio.sleep(0)
        stream.confirms.set()
        await asyncio.gather(first, *rest)
    assert stream.batches == [1, 20]
    assert stream.stored == numbered(0, 21)[0]


async def test_batches_of_several_requests_keep_their_pace_and_a_lone_request_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PACE_S", 3600)
    stream = MemoryStream()
    async with running(stream) as outlet:
        for n in range(20):
            assert await outlet.send(*numbered(n, n + 1)) == "stream"
        stream.confirms.clear()
        sending = [asyncio.create_task(outlet.send(*numbered(20, 21)))]
        await until(lambda: len(stream.stored) == 21)
        sending += [asyncio.create_task(outlet.send(*numbered(n, n + 1))) for n in (21, 22)]
        await asyncio.sleep(0)
        stream.confirms.set()
        await asyncio.gather(*sending)
        late = [asyncio.create_task(outlet.send(*numbered(n, n + 1))) for n in (23, 24)]
        await asyncio.wait(late, timeout=0.05)
        assert stream.batches == [1] * 21 + [2]
        for one in late:
            one.cancel()
        await asyncio.wait(late)


async def test_a_request_larger_than_a_batch_is_answered_once_all_of_it_is_confirmed() -> None:
    stream = MemoryStream()
    bodies, keys = numbered(0, 2 * BATCH_EVENTS + 10)
    async with running(stream) as outlet:
        sending = asyncio.create_task(outlet.send(bodies, keys))
        beside = asyncio.create_task(outlet.send(*numbered(0, 3)))
        await asyncio.gather(sending, beside)
    assert stream.batches == [BATCH_EVENTS, BATCH_EVENTS, 13]
    assert (stream.stored, stream.keys) == (bodies + numbered(0, 3)[0], keys + numbered(0, 3)[1])


async def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    stream = MemoryStream()
    async with running(stream) as outlet:
        await outlet.send([b"a" * 400] * 5, ["k"] * 5)
        await outlet.send([b"a" * 1500] * 2, ["k"] * 2)
    assert stream.batches == [2, 2, 1, 1, 1]


async def test_events_whose_connection_is_cut_are_sent_again_whole_over_the_next() -> None:
    stream = MemoryStream()
    stream.confirms.clear()
    async with running(stream) as outlet:
        sending = asyncio.create_task(outlet.send(*numbered(0, 5)))
        await until(lambda: len(stream.stored) == 5)
        stream.cut()
        stream.confirms.set()
        assert await sending == "stream"
        assert stream.publishers == 2
        assert stream.stored == numbered(0, 5)[0] * 2


async def test_a_broker_that_comes_back_in_time_costs_no_event() -> None:
    stream = MemoryStream()
    stream.away = True
    async with running(stream) as outlet:
        sending = asyncio.create_task(outlet.send(*numbered(0, 5)))
        await until(lambda: outlet.error == "the broker is away")
        stream.come_back()
        assert await sending == "stream"


async def test_a_broker_that_stays_away_is_said_after_the_patience_and_then_at_once() -> None:
    stream = MemoryStream()
    stream.away = True
    async with running(stream, patience_s=SHORT_S) as outlet:
        with pytest.raises(Away, match="the broker is away"):
            await outlet.send(*numbered(0, 5))
        await until(lambda: outlet.is_stuck)
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(Away, match="the broker is away"):
                await outlet.send(*numbered(0, 5))
        assert time.monotonic() - started < 100 * SHORT_S
        stream.come_back()
        await until(lambda: not outlet.is_stuck)
        assert await outlet.send(*numbered(5, 6)) == "stream"
    assert stream.stored == [b"5"], "events that were given up wait no more"


async def test_a_broker_that_stores_and_does_not_confirm_is_said_too() -> None:
    stream = MemoryStream()
    stream.confirms.clear()
    async with running(stream, patience_s=SHORT_S) as outlet:
        with pytest.raises(Away, match=module.SILENT):
            await outlet.send(*numbered(0, 5))
        await until(lambda: outlet.is_stuck)
        with pytest.raises(Away, match=module.SILENT):
            await outlet.send(*numbered(5, 10))
        stream.confirms.set()
        await until(lambda: not outlet.is_stuck)
        assert await outlet.send(*numbered(10, 11)) == "stream"
    assert stream.stored == [*numbered(0, 5)[0], b"10"]


async def test_a_body_that_the_broker_takes_at_no_time_fails_its_request_alone() -> None:
    stream = MemoryStream()
    stream.takes_bytes = 100
    async with running(stream) as outlet:
        sending = [asyncio.create_task(outlet.send(*numbered(n, n + 2))) for n in range(4)]
        bad = asyncio.create_task(outlet.send([b"a", b"a" * 101], ["k"] * 2))
        sending += [asyncio.create_task(outlet.send(*numbered(n, n + 2))) for n in range(4, 8)]
        assert await asyncio.gather(*sending) == ["stream"] * 8
        with pytest.raises(Away, match="takes no such event"):
            await bad


async def test_events_go_to_the_spool_while_the_broker_is_away_and_from_there_to_the_stream(
    tmp_path: Path,
) -> None:
    stream = MemoryStream()
    stream.away = True
    async with spool_in(tmp_path) as spool, running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        for n in range(0, 50, 5):
            assert await outlet.send(*numbered(n, n + 5)) == "spool"
        assert (spool.records, stream.stored) == (50, [])
        stream.come_back()
        await until(lambda: spool.records == 0)
        assert (stream.stored, stream.keys) == numbered(0, 50)


async def test_the_spool_keeps_what_the_broker_has_not_confirmed(tmp_path: Path) -> None:
    stream = MemoryStream()
    stream.confirms.clear()
    async with spool_in(tmp_path) as spool, running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        assert await outlet.send(*numbered(0, 5)) == "spool"
        await asyncio.sleep(SHORT_S)
        assert spool.records == 5
        stream.cut()
        await until(lambda: stream.publishers == 2)
        assert spool.records == 5
        stream.confirms.set()
        await until(lambda: spool.records == 0)
    assert set(stream.stored) == set(numbered(0, 5)[0])


async def test_the_next_process_publishes_what_the_one_before_left_in_the_spool(tmp_path: Path) -> None:
    stream = MemoryStream()
    stream.away = True
    async with spool_in(tmp_path) as spool, running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        await outlet.send(*numbered(0, 5))
    stream.come_back()
    async with spool_in(tmp_path) as spool, running(stream, spool=spool):
        await until(lambda: spool.records == 0)
    assert (stream.stored, stream.keys) == numbered(0, 5)


async def test_a_full_spool_is_said_to_the_sender_and_once_a_minute_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = MemoryStream()
    stream.away = True
    spool = await Spool.open(tmp_path, bytes_max=10_000)

    def said() -> list[str]:
        return [record.message for record in caplog.records if record.message.startswith("spool_")]

    async with running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        assert await outlet.send([b"a" * 5000], ["k"]) == "spool"
        assert said() == []
        assert await outlet.send([b"a" * 3200], ["k"]) == "spool"
        assert said() == ["spool_nearly_full"]
        for _ in range(2):
            with pytest.raises(Away, match=r"the broker is away; .*do not fit") as refused:
                await outlet.send([b"a" * 5000, b"b"], ["k", "k"])
            assert refused.value.spool == module.SPOOL_FULL
        assert said() == ["spool_nearly_full", "spool_full"]
        (full,) = [record for record in caplog.records if record.message == "spool_full"]
        assert (full.__dict__["events_refused"], full.levelname) == (2, "ERROR")
        assert "COLLECTOR_SPOOL_BYTES_MAX" in full.__dict__["remedy"]
        stream.come_back()
        await until(lambda: spool.records == 0)
        assert await outlet.send([b"a" * 5000], ["k"]) in ("stream", "spool")
    await spool.close()


LARGE = [b"a" * 101, b"b" * 102]


def segments(folder: Path) -> list[Path]:
    """The spool's files, of all kinds."""
    return list(folder.glob("*.spool*"))


async def test_records_that_became_too_large_for_the_broker_are_set_aside_and_the_spool_drains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = MemoryStream()
    stream.away = True
    async with spool_in(tmp_path) as spool, running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        await outlet.send([b"0", LARGE[0], b"1", LARGE[1]], ["k", "l", "k", "l"])
        await outlet.send([b"2"], ["k"])
        stream.takes_bytes = 100
        stream.come_back()
        await until(lambda: spool.records == 0)
        assert (stream.stored, stream.keys) == ([b"0", b"1", b"2"], ["k"] * 3)
        assert (spool.records_too_large, outlet.body_bytes_max) == (2, 100)
    (said,) = [record for record in caplog.records if record.message == "spool_records_too_large"]
    (kept,) = segments(tmp_path)
    assert (said.__dict__["file"], said.__dict__["records"]) == (str(kept), 2)
    assert "raise stream.frame_max of the broker by 2 or more" in said.__dict__["remedy"]

    stream.takes_bytes = 101  # enough for one of them
    async with spool_in(tmp_path) as spool, running(stream, spool=spool):
        await until(lambda: spool.records == 0)
        assert spool.records_too_large == 1
    stream.takes_bytes = 1000
    async with spool_in(tmp_path) as spool, running(stream, spool=spool):
        await until(lambda: spool.records == 0)
        assert spool.records_too_large == 0
    assert (stream.stored[3:], stream.keys[3:]) == (LARGE, ["l", "l"])
    assert segments(tmp_path) == []


async def test_a_broker_that_takes_less_from_one_moment_to_the_next_stops_no_drain(tmp_path: Path) -> None:
    stream = MemoryStream()
    stream.confirms.clear()
    async with spool_in(tmp_path) as spool, running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        assert await outlet.send([LARGE[0], b"0"], ["k"] * 2) == "spool"
        await until(lambda: bool(outlet._waiting))  # the spool's records, which fit as yet
        stream.takes_bytes = 100
        stream.cut()
        stream.confirms.set()
        await until(lambda: spool.records == 0)
        assert spool.records_too_large == 1
    assert stream.stored[2:] == [b"0"]


async def test_without_room_for_what_is_too_large_nothing_is_lost_and_the_spool_drains_later(
    tmp_path: Path,
) -> None:
    stream, disk = MemoryStream(), FailingDisk(tmp_path)
    stream.away = True
    spool = await Spool.open(tmp_path, bytes_max=2**24, files=disk)
    async with running(stream, patience_s=SHORT_S, spool=spool) as outlet:
        await outlet.send([LARGE[0], b"0"], ["k"] * 2)
        stream.takes_bytes = 100
        disk.fail("create", *[errno.ENOSPC] * 3)
        stream.come_back()
        await until(lambda: not disk.fails["create"])
        assert (spool.records, stream.stored) == (2, [])
        await until(lambda: spool.records == 0)
        assert (spool.records_too_large, stream.stored) == (1, [b"0"])
    await spool.close()
    async with spool_in(tmp_path) as spool:
        assert spool.records == 1


async def test_a_broker_that_goes_while_nobody_sends_is_noticed_and_so_is_its_return() -> None:
    stream = MemoryStream()
    async with running(stream, look_s=0.001) as outlet:
        await until(lambda: outlet.error is None)
        await asyncio.sleep(0.01)
        assert stream.publishers == 1, "a look makes no new connection"
        stream.away = True
        await until(lambda: outlet.error == "the broker is away")
        stream.come_back()
        await until(lambda: outlet.error is None)
        assert await outlet.send(*numbered(0, 1)) == "stream"
