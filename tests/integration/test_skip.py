"""A record at which the worker crashes, whatever it is: found, named, skipped by an operator, and kept."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import cast

import psycopg
import pytest

from pipeline.config import FlushConfig, StreamConfig
from pipeline.core.bodies import Kept, Unreadable
from pipeline.core.care import Care
from pipeline.core.rules import Rules
from pipeline.sink.timescale import TimescaleSink
from pipeline.transports import Chunk, Subscription, chunks
from pipeline.transports.factory import open_transport
from pipeline.worker.membership import Delivery
from pipeline.worker.partition import PartitionWorker
from tests.support import books, migrated, mix, processes, streams
from tests.support.memory_transport import MemoryBroker, MemoryTransport

POISON = b'{"poison":1}'
RECORDS, PLACE = 3000, 1234
_CRASHES_AT_THE_POISON = """
import os
from pipeline.core import wire
read = wire.read
def read_or_die(body):
    if bytes(body) == %r:
        os.kill(os.getpid(), 9)
    return read(body)
wire.read = read_or_die
"""


@pytest.fixture
def env(request: pytest.FixtureRequest, migrated_timescale: str, tmp_path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": request.getfixturevalue("rabbitmq").url,
        "RABBITMQ_STREAM": f"skip.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
    }


def ask(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def skip(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = processes.command("stream", "skip", *arguments, "--reason", "kills the worker", env=env)
    return done.returncode, done.stdout + done.stderr


async def test_a_record_that_kills_the_worker_is_found_named_and_skipped_once(
    env: dict[str, str], tmp_path: Path
) -> None:
    url, stream = env["DATABASE_URL"], env["RABBITMQ_STREAM"]
    bodies = mix.make(RECORDS, seed=8, now_us=time.time_ns() // 1000).bodies
    bodies[PLACE] = POISON
    transport = open_transport(StreamConfig(url=env["RABBITMQ_URL"], stream=stream, consumer="tests"))
    await transport.open()
    await (await transport.publisher()).publish(bodies)
    await transport.close()

    (tmp_path / "usercustomize.py").write_text(_CRASHES_AT_THE_POISON % POISON)
    deadly = {**env, "PYTHONPATH": str(tmp_path), "PYTHONUSERBASE": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text(_CRASHES_AT_THE_POISON % POISON)
    worker = processes.worker(deadly, tmp_path)
    said = f"spendstream stream skip --stream {stream} --offset {PLACE} --reason"
    for _ in range(12):
        worker.start(wait=False)
        processes.wait_for(
            lambda: worker.process.poll() is not None or said in worker.log(None), 180, worker.log
        )
        if said in worker.log(None):
            break
    assert said in worker.log(None), worker.log()
    if worker.process.poll() is None:
        worker.process.wait(180)  # it tries the record once more
    facts = [line for line in worker.events() if line["event"] == "worker_crashes_here"][-1]
    assert (facts["partition"], facts["offset"], facts["level"]) == (0, PLACE, "critical")
    assert ask(url, "SELECT committed_offset FROM analytics.partitions") == [(PLACE,)]
    doctor = processes.command("doctor", env=env)
    assert said in doctor.stdout, doctor.stdout

    for wrong, reason in (
        (("--partition", "0", "--offset", str(PLACE - 1)), "was taken in before"),
        (("--partition", "0", "--offset", str(RECORDS)), "holds offsets from 0 to"),
        (("--partition", "7", "--offset", str(PLACE)), "name one partition"),
    ):
        code, text = skip(env, *wrong)
        assert (code, reason in text) == (1, True), text
    code, text = skip(env, "--partition", "0", "--offset", str(PLACE))
    assert (code, "becomes a dead letter" in text) == (0, True), text
    code, text = skip(env, "--stream", stream, "--offset", str(PLACE))
    assert (code, "is skipped already" in text) == (1, True), text

    worker.start(wait=False)
    streams.wait_committed(url, RECORDS, worker)
    assert worker.stop() == 0
    ((offset, body, faults),) = ask(
        url, """SELECT "offset", body, faults FROM analytics.dead_letters WHERE reason = 'skipped'"""
    )
    assert (offset, body) == (PLACE, POISON)
    assert "kills the worker" in str(faults)
    exact = "SELECT offered = accepted + duplicate + rejected, crashes FROM analytics.partitions"
    assert ask(url, exact) == [(True, 0)]
    ((count,),) = ask(url, "SELECT count(*) FROM analytics.audit_log WHERE action = 'stream.skip'")
    assert count == 1


def chunk(*bodies: bytes, unreadable: tuple[Unreadable, ...] = ()) -> Chunk:
    records = len(bodies) + sum(run.records for run in unreadable)
    return Chunk(
        partition=0,
        first_offset=100,
        next_offset=100 + records,
        timestamp_us=1,
        bodies=list(bodies),
        unreadable=unreadable,
    )


def test_a_chunk_cut_in_two_is_the_chunk() -> None:
    run = Unreadable(first_offset=102, records=50, fault="a lie", stored=Kept.of(b"batch"))
    whole = chunk(b"0", b"1", b"2", b"3", b"4", unreadable=(run,))
    starts = [100, 101, 102, 152, 153, 154]
    for offset in range(101, 155):
        before, after = chunks.split(whole, offset)
        assert after is not None
        assert (before.first_offset, after.next_offset) == (whole.first_offset, whole.next_offset)
        assert before.next_offset == after.first_offset == min(start for start in starts if start >= offset)
        assert [*before.bodies, *after.bodies] == whole.bodies
        assert [*before.offsets().tolist(), *after.offsets().tolist()] == whole.offsets().tolist()
        assert [*before.unreadable, *after.unreadable] == [run]
        assert all(place < offset for place in before.offsets().tolist())
    assert chunks.split(whole, 155) == (whole, None)
    empty = chunk(unreadable=(Unreadable(first_offset=100, records=9, fault="", stored=Kept.of(b"")),))
    assert chunks.split(empty, 104) == (empty, None)


def test_a_skipped_record_is_one_that_nobody_reads() -> None:
    whole = chunk(b"a", b"b", b"c")
    left = chunks.without(whole, {101: "because", 500: "elsewhere"})
    assert (left.bodies, left.offsets().tolist()) == ([b"a", b"c"], [100, 102])
    ((run),) = left.unreadable
    assert (run.first_offset, run.records, run.stored.body, run.reason) == (101, 1, b"b", "skipped")
    assert chunks.without(whole, {500: "elsewhere"}) is whole


def test_the_record_at_fault_is_found_in_a_few_crashes() -> None:
    for fault in (0, 1, 4_095, 4_096, 9_201, 30_000):
        offset, tried, crashes = 0, None, 1
        while Care.found(crashes, offset=offset, tried=tried) is None:
            crashes += 1
            care = Care.after(crashes, offset=offset, tried=tried)
            assert care is not None
            while offset + care.part <= fault:
                offset += care.part
            tried = (offset, offset + care.part)
            assert crashes < 9
        assert Care.found(crashes, offset=offset, tried=tried) == fault


class Granted:
    """A subscription of which only the credit is of interest."""

    def __init__(self) -> None:
        self.grants = 0

    def grant(self) -> None:
        self.grants += 1


@pytest.mark.parametrize(
    ("tried", "event", "crashes_left"),
    [
        ((0, 64), "worker_crashes_here", 0),
        ((500, 564), "workers_crashed_before", 3),
        (None, "workers_crashed_before", 3),
    ],
)
async def test_the_place_of_a_crash_that_goes_well_is_suspected_no_more(
    embedded_postgres_url: str,
    caplog: pytest.LogCaptureFixture,
    tried: tuple[int, int] | None,
    event: str,
    crashes_left: int,
) -> None:
    """Workers that were killed four times at ever new places must not look like a record that kills."""
    url = embedded_postgres_url
    migrated.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.partitions (partition, stream, crashes, trying_from, trying_to,"
            " updated_at)"
            " VALUES (0, %s, 2, %s, %s, now())",
            (books.STREAM, *(tried or (None, None))),
        )
        worker = PartitionWorker(
            index=0,
            stream=books.STREAM,
            transport=MemoryTransport(MemoryBroker(books.STREAM)),
            sink=TimescaleSink(url),
            rules=Rules(),
            flush=FlushConfig(),
            steady_us=lambda: 0,  # the 30 s after which all is well never pass
        )
        try:
            await worker.activated()
            said = [record for record in caplog.records if "crash" in record.message]
            assert [record.message for record in said] == [event]
            assert not hasattr(said[0], "to_offset") or said[0].to_offset == 64
            bodies = mix.make(64, seed=3, now_us=1_790_000_000_000_000).bodies
            (facts,) = books.chunks_of(bodies, size=64, broker_us=1_790_000_000_000_000)
            subscription = Granted()
            await worker.book(
                Delivery(Chunk(partition=0, **facts), cast(Subscription, subscription), worker._life.term)
            )
            await worker.flush()
            assert subscription.grants == 1
            standing = "SELECT committed_offset, crashes FROM analytics.partitions"
            assert connection.execute(standing).fetchone() == (64, crashes_left)
        finally:
            await worker.close()
