"""The archive on real servers: workers killed, S3 away, figures altered by hand, found and repaired."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.servers import RabbitMQ
from pipeline import config
from pipeline.archive.store import open_store
from pipeline.core.rules import Rules
from tests.support import archives, books, mix, processes, streams
from tests.support import oracle as naive

pytestmark = pytest.mark.timeout(1800)


def waiting(database_url: str) -> int:
    """Rows in the outbox."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM analytics.archive_outbox").fetchone()
    assert row is not None
    return int(row[0])


async def test_the_archive_is_the_stream_though_workers_are_killed_and_s3_goes_away(
    rabbitmq: RabbitMQ, migrated_timescale: str, stack: Any, up: Any, tmp_path: Path
) -> None:
    up(stack.s3)
    luck = random.Random(17)
    stream = f"archive-{random.SystemRandom().getrandbits(48):012x}"
    env = {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_STREAM": stream,
        "FLUSH_INTERVAL": "100ms",
        "ARCHIVE_URL": f"s3://{stack.s3.bucket}/{stream}",
        "ARCHIVE_INTERVAL": "300ms",
        "DIMENSIONS": mix.DIMENSIONS_SETTING,
        **stack.s3.env,
    }
    made = mix.make(24_000, seed=51, now_us=time.time_ns() // 1000, late=0.05)
    worker = processes.worker(env, tmp_path)

    def component() -> str:
        status, page = processes.get(worker.ready_url)
        assert status == 200  # figures do not need the archive
        return str(page["components"]["archive"]["status"])

    published = 0
    try:
        worker.start()
        for i, at in enumerate(range(0, len(made.bodies), 1500)):
            part = made.bodies[at : at + 1500]
            await streams.publish(rabbitmq.url, stream, part, "raw", amqp_url=rabbitmq.amqp_url)
            published += len(part)
            if i in (3, 5, 10, 13):
                await asyncio.sleep(luck.random() * 0.5)
                worker.kill()
                worker.start(wait=False)
            if i == 7:
                worker.wait_ready()
                stack.s3.stop()
            if i == 9:
                streams.wait_committed(migrated_timescale, published, worker)
                processes.wait_for(lambda: component() == "degraded", 180, worker.log)
                assert waiting(migrated_timescale) > 0
        streams.wait_committed(migrated_timescale, published, worker)
        worker.wait_ready()
        up(stack.s3)
        processes.wait_for(lambda: waiting(migrated_timescale) == 0, 300, worker.log)
        processes.wait_for(lambda: component() == "ok", 180, worker.log)

        records = await streams.read_all(rabbitmq.url, stream, upto=published)
        oracle = naive.Oracle(books.oracle_rules(Rules(dimensions=mix.DIMENSIONS)))
        want = archives.accepted(oracle, ((r.offset, r.broker_us, r.body) for r in records))
        archive = config.load(env).archive
        assert archive is not None
        assert archives.archived(migrated_timescale, open_store(archive)) == want
        assert not books.difference(books.stored_in_database(migrated_timescale), books.expected(oracle))

        days = ("--from", "2020-01-01", "--to", "2040-01-01")
        clean = processes.command("reconcile", *days, env=env)
        assert (clean.returncode, clean.stderr) == (0, ""), clean.stdout
        assert f"compared with {len(want)} archived events" in clean.stdout

        with psycopg.connect(migrated_timescale) as connection:
            connection.execute(
                "UPDATE analytics.usage_hour SET cost_microcents = cost_microcents + 1 WHERE bucket_start ="
                " (SELECT max(bucket_start) FROM analytics.usage_hour)"
            )
        found = processes.command("reconcile", *days, env=env)
        assert found.returncode == 1, found
        assert "cost_microcents" in found.stdout

        # The worker has these rows in memory, and more of their events on the way.
        more = mix.make(3000, seed=52, now_us=time.time_ns() // 1000, bad=0).bodies
        publishing = asyncio.create_task(publish_slowly(rabbitmq, stream, more))
        await asyncio.sleep(0.3)
        rebuilt = await asyncio.to_thread(processes.command, "rebuild", *days, env=env)
        assert rebuilt.returncode == 0, rebuilt
        await publishing
        published += len(more)
        streams.wait_committed(migrated_timescale, published, worker)
        again = processes.command("reconcile", *days, env=env)
        assert again.returncode == 0, again.stdout
        assert worker.stop() == 0
    finally:
        worker.__exit__()
        up(stack.s3)

    records = await streams.read_all(rabbitmq.url, stream, upto=published)
    oracle = naive.Oracle(books.oracle_rules(Rules(dimensions=mix.DIMENSIONS)))
    oracle.feed_all((r.offset, r.broker_us, r.body) for r in records)
    assert not books.difference(books.stored_in_database(migrated_timescale), books.expected(oracle))


async def publish_slowly(rabbitmq: RabbitMQ, stream: str, bodies: list[bytes]) -> None:
    for at in range(0, len(bodies), 300):
        await streams.publish(rabbitmq.url, stream, bodies[at : at + 300], "raw", amqp_url=rabbitmq.amqp_url)
        await asyncio.sleep(0.1)
