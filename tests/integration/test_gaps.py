"""A stream that lost what the database expects next: the worker waits, an operator accepts, it goes on."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from pathlib import Path

import psycopg
import pytest

from pipeline.config import StreamConfig
from pipeline.transports import Transport
from pipeline.transports.factory import open_transport
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support import processes, streams

PATIENCE_S = 180
JUNK = b"x" * 1000
"""Malformed, so each record is a dead letter: gaps and repeats are easy to see."""


def database(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def standing(url: str) -> tuple[int, int]:
    ((epoch, offset),) = database(url, "SELECT epoch, committed_offset FROM analytics.partitions")
    assert isinstance(epoch, int)
    assert isinstance(offset, int)
    return epoch, offset


async def publish(env: dict[str, str], count: int, size: int = 1) -> None:
    transport = transport_of(env)
    try:
        await transport.open()
        publisher = await transport.publisher()
        for _ in range(count):
            await publisher.publish([JUNK] * size)
    finally:
        await transport.close()


def transport_of(env: dict[str, str]) -> Transport:
    return open_transport(
        StreamConfig(
            url=env["RABBITMQ_URL"], stream=env["RABBITMQ_STREAM"], consumer="tests", max_bytes=512 * 1024
        )
    )


async def first_offset(env: dict[str, str]) -> int:
    transport = transport_of(env)
    try:
        return (await transport.extents())[0].first_offset
    finally:
        await transport.close()


async def truncate(env: dict[str, str], *, beyond: int) -> int:
    """Publish until retention has taken the offset ``beyond``; where the stream begins then."""
    for _ in range(200):
        await publish(env, 1, size=100)
        if (begins := await first_offset(env)) > beyond:
            return begins
    raise AssertionError("retention took nothing")


@pytest.fixture(params=["rabbitmq", "embedded"])
def env(request: pytest.FixtureRequest, migrated_timescale: str, tmp_path: Path) -> dict[str, str]:
    url = f"embedded://{tmp_path}/log"
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
    return {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": url,
        "RABBITMQ_STREAM": f"gaps.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
        "STREAM_MAX_BYTES": "512KiB",
    }


def accept(
    env: dict[str, str], from_offset: int, to_offset: int, stream: str | None = None
) -> tuple[int, str]:
    named = ("--stream", stream or env["RABBITMQ_STREAM"], "--from", str(from_offset), "--to", str(to_offset))
    done = processes.command("stream", "accept-gap", *named, env=env)
    return done.returncode, done.stdout + done.stderr


async def test_a_worker_that_waits_at_a_gap_goes_on_once_it_is_accepted(
    env: dict[str, str], tmp_path: Path
) -> None:
    url = env["DATABASE_URL"]
    worker = processes.worker(env, tmp_path)
    await publish(env, 10)
    with worker:
        streams.wait_committed(url, 10, worker)
        code, said = accept(env, 10, 12)
        assert (code, "there is no gap" in said) == (1, True), said
        assert worker.stop() == 0
        begins = await truncate(env, beyond=10)
        worker.start(wait=False)
        processes.wait_for(lambda: "offset_gone" in worker.log(), PATIENCE_S, worker.log)
        joined = worker.log(None).count("stream_joined")
        while worker.log(None).count("stream_joined") < joined + 3:
            assert worker.status() == 503, "joining again is no recovery"
        assert f"accept-gap --stream {env['RABBITMQ_STREAM']} --from 10 --to {begins}" in worker.log()
        epoch, offset = standing(url)
        assert offset == 10

        for wrong_from, wrong_to, reason in (
            (9, begins, "is committed up to offset 10, not 9"),
            (10, begins + 1, f"only --to {begins}"),
            (10, begins - 1, f"only --to {begins}"),
        ):
            code, said = accept(env, wrong_from, wrong_to)
            assert (code, reason in said) == (1, True), said
        code, said = accept(env, 10, begins, "another")
        assert (code, "no partition's stream" in said) == (1, True), said
        assert standing(url)[1] == 10

        code, said = accept(env, 10, begins)
        assert code == 0, said
        assert f"goes on at offset {begins} instead of 10; {begins - 10} offsets are given up" in said
        assert standing(url)[0] > epoch
        transport = transport_of(env)
        end = (await transport.extents())[0].end_offset
        await transport.close()
        await asyncio.to_thread(streams.wait_committed, url, end, worker)
        assert worker.stop() == 0
    letters = database(url, 'SELECT "offset" FROM analytics.dead_letters ORDER BY "offset"')
    assert [row[0] for row in letters] == [*range(10), *range(begins, end)]
    ((action, outcome, detail),) = database(url, "SELECT action, outcome, detail FROM analytics.audit_log")
    assert (action, outcome) == ("stream.accept_gap", "accepted")
    assert isinstance(detail, dict)
    assert (detail["from_offset"], detail["to_offset"]) == (10, begins)
    assert accept(env, 10, begins)[0] == 1


async def test_a_stream_made_anew_that_is_longer_already_is_not_read_on_in_silence(
    env: dict[str, str], tmp_path: Path
) -> None:
    url = env["DATABASE_URL"]
    worker = processes.worker(env, tmp_path)
    await publish(env, 10)
    with worker:
        streams.wait_committed(url, 10, worker)
        assert worker.stop() == 0
        await remake(env)
        await publish(env, 25)
        worker.start(wait=False)
        processes.wait_for(lambda: "made anew" in worker.log(), PATIENCE_S, worker.log)
        assert worker.status() == 503
        remedy = f"spendstream stream accept-gap --stream {env['RABBITMQ_STREAM']} --from 10 --to 0"
        assert remedy in worker.log()
        assert remedy in processes.command("doctor", env=env).stdout
        assert standing(url)[1] == 10, "the records that are at other offsets now are not read"
        code, said = accept(env, 10, 0)
        assert (code, "read from its beginning" in said) == (0, True), said
        streams.wait_committed(url, 25, worker)
        assert worker.stop() == 0
        worker.start(wait=False)  # the same stream again: nothing to stop at
        await publish(env, 1)
        streams.wait_committed(url, 26, worker)
        assert worker.stop() == 0
        assert remedy not in processes.command("doctor", env=env).stdout
    ((letters, now),) = database(
        url, 'SELECT count(*), count(*) FILTER (WHERE "offset" >= 0) FROM analytics.dead_letters'
    )
    assert (letters, now) == (36, 26)


async def remake(env: dict[str, str]) -> None:
    """Delete the stream, and make it anew."""
    transport = transport_of(env)
    if isinstance(transport, RabbitMQTransport):
        await transport.delete()
    else:
        shutil.rmtree(Path(env["RABBITMQ_URL"].removeprefix("embedded://")) / env["RABBITMQ_STREAM"])
    await transport.open()
    await transport.close()


async def test_a_stream_made_anew_is_read_from_its_beginning_and_its_offsets_come_again(
    migrated_timescale: str, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": f"embedded://{tmp_path}/old",
        "RABBITMQ_STREAM": "gaps",
        "FLUSH_INTERVAL": "200ms",
    }
    for generation, (folder, count) in enumerate((("old", 30), ("new", 20), ("newest", 10))):
        env["RABBITMQ_URL"] = f"embedded://{tmp_path}/{folder}"
        await publish(env, count)
        with processes.worker(env, tmp_path) as worker:
            if generation:
                before = 30 - 10 * (generation - 1)
                processes.wait_for(lambda w=worker: "made anew" in w.log(), PATIENCE_S, worker.log)
                code, said = accept(env, before, 0)
                assert (code, "read from its beginning" in said) == (0, True), said
            processes.wait_for(
                lambda n=count: streams.committed_offset(migrated_timescale) == n, PATIENCE_S, worker.log
            )
            assert worker.stop() == 0
    ((letters, now),) = database(
        migrated_timescale,
        'SELECT count(*), count(*) FILTER (WHERE "offset" >= 0) FROM analytics.dead_letters',
    )
    assert (letters, now) == (60, 10)
