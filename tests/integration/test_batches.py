"""Sub-entry batches on their way through broker, worker and database: honest ones, lies and bombs."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cramjam
import psycopg
import pytest
from typing_extensions import Buffer

from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support import mix, processes, streams

CODECS: dict[int, Callable[[bytes], Buffer]] = {
    1: gzip.compress,
    2: cramjam.snappy.compress,
    3: cramjam.lz4.compress,
    4: cramjam.zstd.compress,
}


def batch(stored: bytes, *, codec: int, records: int, unpacked_bytes: int) -> bytes:
    return struct.pack(">BHII", 0x80 | codec << 4, records, unpacked_bytes, len(stored)) + stored


def honest(bodies: Sequence[bytes], codec: int) -> bytes:
    plain = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    stored = bytes(CODECS[codec](plain)) if codec else plain
    return batch(stored, codec=codec, records=len(bodies), unpacked_bytes=len(plain))


async def publish(env: dict[str, str], entries: Sequence[bytes]) -> None:
    """All entries in one publish frame, as they are."""
    transport = RabbitMQTransport(streams.config(env["RABBITMQ_URL"], env["RABBITMQ_STREAM"]))
    await transport.open()
    await transport.close()
    port = urlsplit(env["RABBITMQ_URL"]).port
    connection = StreamConnection("127.0.0.1", port or 5552, tls=None, heartbeat_s=10, name="tests")
    await connection.dial(vhost="/", user="guest", password="guest")
    confirmed: set[int] = set()
    done = asyncio.Event()

    def on_confirm(ids: tuple[int, ...]) -> None:
        confirmed.update(ids)
        if len(confirmed) == len(entries):
            done.set()

    connection.on_confirm = on_confirm
    await connection.declare_publisher(stream=env["RABBITMQ_STREAM"], reference=None, publisher_id=0)
    payload = struct.pack(">BI", 0, len(entries)) + b"".join(
        struct.pack(">Q", number) + entry for number, entry in enumerate(entries, 1)
    )
    assert len(payload) < 2**20
    await connection.write(struct.pack(">IHH", 4 + len(payload), 0x0002, 1) + payload)
    async with asyncio.timeout(180):
        await done.wait()
    await connection.close()


def ask(env: dict[str, str], statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        return connection.execute(statement).fetchall()


def counters(env: dict[str, str]) -> tuple[int, int, int, int]:
    ((offered, accepted, duplicate, rejected),) = ask(
        env, "SELECT offered, accepted, duplicate, rejected FROM analytics.partitions"
    )
    return offered, accepted, duplicate, rejected


def letters(env: dict[str, str], *arguments: str) -> str:
    done = processes.command("dead-letters", *arguments, env=env)
    assert done.returncode == 0, done
    return str(done.stdout)


@pytest.fixture
def env(migrated_timescale: str, rabbitmq: Any) -> dict[str, str]:
    return {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_STREAM": f"batches.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
    }


def good(count: int, seed: int) -> list[bytes]:
    return mix.make(count, seed=seed, now_us=time.time_ns() // 1000, duplicates=0, late=0, bad=0).bodies


async def test_claims_of_a_small_frame_are_one_dead_letter_each_and_count_in_the_books(
    env: dict[str, str], tmp_path: Path
) -> None:
    """1.2 KB that claim 4.2 million records, among good events."""
    bodies = good(200, 1)
    claims = [batch(b"", codec=1, records=65535, unpacked_bytes=0)] * 64
    await publish(env, [honest(bodies[:100], 1), *claims, honest(bodies[100:], 0)])
    end = 200 + 64 * 65535
    with processes.worker(env, tmp_path) as worker:
        await asyncio.to_thread(streams.wait_committed, env["DATABASE_URL"], end, worker)
        _, page = processes.get(worker.ready_url.replace("/readyz", "/metrics"))
        assert worker.stop() == 0
    offered, accepted, duplicate, rejected = counters(env)
    assert (offered, accepted + duplicate, rejected) == (end, 200, 64 * 65535)
    rows = ask(env, 'SELECT "offset", records, reason, body FROM analytics.dead_letters ORDER BY "offset"')
    assert rows == [(100 + n * 65535, 65535, "malformed", b"") for n in range(64)]
    counted = next(line for line in page.splitlines() if 'events_total{outcome="malformed"}' in line)
    assert float(counted.split()[-1]) == 64 * 65535

    listed = letters(env, "list", "--limit", "1")
    first = 100 + 63 * 65535
    assert f"offsets {first} to {first + 65534} (65535 records) malformed" in listed
    assert f"in all: {64 * 65535} malformed" in listed
    shown = json.loads(letters(env, "show", str(first + 7), "--json"))
    assert (shown["offset"], shown["records"], shown["wouldBe"]) == (first, 65535, "malformed")
    report = json.loads(letters(env, "replay", "--json"))
    assert (report["requested"], report["left"]) == (0, {"malformed": 64})
    assert "deleted 64 dead letters" in letters(env, "purge", "--all", "--yes")


async def test_bombs_are_not_unpacked_and_the_worker_stays_small(env: dict[str, str], tmp_path: Path) -> None:
    """Batches of 260 KB that unpack to 256 MiB each."""
    plain = b"\x00" * 2**28
    stored = gzip.compress(plain, compresslevel=9, mtime=0)
    bomb = batch(stored, codec=1, records=65535, unpacked_bytes=len(plain))
    bodies = good(50, 2)
    for _ in range(4):
        await publish(env, [bomb] * 3)
    await publish(env, [honest(bodies, 4)])
    end = 12 * 65535 + 50
    with processes.worker(env, tmp_path, cold=True) as worker:
        await asyncio.to_thread(streams.wait_committed, env["DATABASE_URL"], end, worker)
        peak_mib = worker.peak_mib()
        assert worker.stop() == 0
    assert peak_mib < 780
    assert counters(env)[0] == end
    rows = ask(
        env,
        "SELECT records, octet_length(body), body_bytes, encode(body_sha256, 'hex')"
        " FROM analytics.dead_letters",
    )
    digest = hashlib.sha256(stored).hexdigest()
    assert rows == [(65535, 65537, len(stored), digest)] * 12
    assert f"{len(stored)} bytes; the first 65537 are kept, sha256 of all: {digest}" in letters(
        env, "show", "0"
    )


async def test_every_codec_of_the_protocol_is_counted_and_an_unknown_one_is_a_dead_letter(
    env: dict[str, str], tmp_path: Path
) -> None:
    bodies = good(500, 3)
    entries = [honest(bodies[100 * codec : 100 * codec + 100], codec) for codec in range(5)]
    entries.insert(2, batch(b"riddle", codec=6, records=7, unpacked_bytes=100))
    await publish(env, entries)
    with processes.worker(env, tmp_path) as worker:
        await asyncio.to_thread(streams.wait_committed, env["DATABASE_URL"], 507, worker)
        assert worker.stop() == 0
    offered, accepted, duplicate, rejected = counters(env)
    assert (offered, accepted + duplicate, rejected) == (507, 500, 7)
    ((offset, records, faults),) = ask(env, 'SELECT "offset", records, faults FROM analytics.dead_letters')
    assert (offset, records) == (200, 7)
    assert "codec 6" in faults[0]["message"]
