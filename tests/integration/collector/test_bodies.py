"""Bodies of requests: what is read and unpacked, and what is refused, how soon and with which reason."""

import asyncio
import gzip
import hashlib
import json
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import cramjam
import pytest
from aiohttp import web

from pipeline.collector import requests
from pipeline.collector.config import BodyBounds
from pipeline.collector.in_work import InWork
from pipeline.collector.requests import BodyReader
from pipeline.common.problems import Problem
from pipeline.common.serving import Runner

BOUNDS = BodyBounds(body_bytes_max=300_000, unpacked_bytes_max=500_000, timeout_s=2.0, pace_bytes=20_000)


class Server:
    """A server that reads bodies: it answers with their length and digest, or with the problem."""

    def __init__(self, bounds: BodyBounds) -> None:
        self.in_work = InWork(4_000_000)
        self._reader = BodyReader(bounds)
        app = web.Application()
        app.router.add_post("/", self._take)
        self.runner = Runner(app, auto_decompress=False, lingering_time=0.1)
        self.port = 0

    async def _take(self, request: web.Request) -> web.Response:
        with self.in_work.share("a") as share:
            try:
                body = await self._reader.read(request, share)
            except Problem as problem:
                return web.json_response(
                    {"detail": problem.detail}, status=problem.status, headers=problem.headers
                )
            assert share.bytes == len(body)
        return web.json_response({"size": len(body), "digest": hashlib.sha256(body).hexdigest()})

    async def start(self) -> None:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]


class Answer:
    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        self.status = int(head.split(b" ")[1])
        self.headers = head.decode().lower()
        self.body: dict[str, Any] = json.loads(body)

    def is_of(self, body: bytes) -> bool:
        return self.body == {"size": len(body), "digest": hashlib.sha256(body).hexdigest()}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(BOUNDS)
    await server.start()
    yield server
    await server.runner.cleanup()
    assert server.in_work.bytes == 0


async def said(server: Server, *pieces: bytes, pause_s: float = 0.0) -> Answer:
    """Send pieces of a request, with pauses before all but the first, until an answer comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answering = asyncio.create_task(reader.read(100_000))
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.wait([answering], timeout=pause_s)
            if answering.done():
                break
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    answer = await asyncio.wait_for(answering, 20)
    writer.close()
    return Answer(answer)


def head(length: int | None, *lines: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join(("POST / HTTP/1.1", "Host: a", framing, *lines, "", "")).encode()


async def post(server: Server, body: bytes, *lines: str) -> Answer:
    return await said(server, head(len(body), *lines), body)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*filter(None, chunks), b""))


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def zstd(body: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(body))


TEXT = b'{"eventId": "a", "text": "' + b"spend " * 40_000 + b'"}'


@pytest.mark.parametrize("body", [b"", b"{}", TEXT, noise(300_000)], ids=len)
async def test_a_body_is_read_as_it_is(server: Server, body: bytes) -> None:
    assert (await post(server, body)).is_of(body)
    assert (await said(server, head(None) + chunked(body))).is_of(body)


async def test_a_body_in_many_small_chunks_is_read(server: Server) -> None:
    assert (await said(server, head(None), chunked(*(TEXT[at : at + 7] for at in range(0, 7000, 7))))).is_of(
        TEXT[:7000]
    )


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("X-GZIP", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:])),
        ("identity, gzip", gzip.compress(TEXT)),
        ("zstd", zstd(TEXT)),
        ("ZSTD", zstd(TEXT[:1000]) + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd(TEXT[1000:])),
        ("identity", TEXT),
        ("", TEXT),
    ],
    ids=["gzip", "x-gzip", "members", "identity and gzip", "zstd", "frames", "identity", "empty"],
)
async def test_a_packed_body_is_unpacked(server: Server, coding: str, packed: bytes) -> None:
    answer = await post(server, packed, f"Content-Encoding: {coding}")
    assert answer.is_of(TEXT), answer.body


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
async def test_a_large_packed_body_is_unpacked_in_a_thread_and_is_the_same(server: Server, pack: Any) -> None:
    body = noise(290_000) + bytes(200_000)
    packed = pack(body)
    assert len(packed) > requests._LARGE_BYTES
    coding = "gzip" if pack is gzip.compress else "zstd"
    assert (await post(server, packed, f"Content-Encoding: {coding}")).is_of(body)


async def test_bodies_at_the_bounds_are_taken_and_one_byte_more_is_a_413(server: Server) -> None:
    for size, status in ((300_000, 200), (300_001, 413)):
        assert (await said(server, head(None), chunked(noise(size)))).status == status
        assert (await post(server, noise(size))).status == status
    for size, status in ((500_000, 200), (500_001, 413)):
        for coding, pack in (("gzip", gzip.compress), ("zstd", zstd)):
            answer = await post(server, pack(bytes(size)), f"Content-Encoding: {coding}")
            assert answer.status == status, (coding, size)
            assert status == 200 or "COLLECTOR_UNPACKED_BYTES_MAX" in answer.body["detail"]


async def test_a_length_above_the_bound_is_refused_before_a_byte_arrives(server: Server) -> None:
    answer = await said(server, head(300_001))
    assert answer.status == 413
    assert "COLLECTOR_BODY_BYTES_MAX" in answer.body["detail"]


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(200 * 2**20), 9)),
        ("zstd", zstd(bytes(2**30))),
        ("gzip", gzip.compress(b"a") * 12_000),
        ("zstd", zstd(b"") * 30_000),
        ("gzip", b"\x1f\x8b\x08\x18\0\0\0\0\0\0" + b"n" * 290_000),
    ],
    ids=["gzip", "zstd", "members", "frames", "a name without end"],
)
async def test_a_bomb_is_answered_within_a_second(server: Server, coding: str, bomb: bytes) -> None:
    started = time.monotonic()
    answer = await post(server, bomb, f"Content-Encoding: {coding}")
    assert answer.status in (200, 400, 413)
    assert answer.status != 200 or answer.body["size"] <= 12_000
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)[:-3]),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)[:20]),
        ("gzip", gzip.compress(TEXT) + b"garbage"),
        ("gzip", gzip.compress(TEXT)[:-8] + os.urandom(8)),
        ("gzip", TEXT),
        ("zstd", zstd(TEXT)[:-3]),
        ("zstd", zstd(TEXT) + zstd(TEXT)[:10]),
        ("zstd", zstd(TEXT) + b"garbage"),
        ("zstd", TEXT),
        ("zstd", b""),
    ],
)
async def test_a_body_that_is_no_whole_gzip_or_zstd_is_a_400(
    server: Server, coding: str, packed: bytes
) -> None:
    answer = await post(server, packed, f"Content-Encoding: {coding}")
    assert (answer.status, answer.body["detail"]) == (
        400,
        f"The body is no whole {coding}, as its Content-Encoding says.",
    )


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "gzip, zstd", "snappy", "*"])
async def test_another_encoding_is_a_415_that_names_ours(server: Server, coding: str) -> None:
    answer = await post(server, b"{}", f"Content-Encoding: {coding}")
    assert answer.status == 415
    assert "accept-encoding: gzip, zstd, identity" in answer.headers


async def test_a_body_that_trickles_is_a_408_after_about_a_second(server: Server) -> None:
    started = time.monotonic()
    answer = await said(server, head(1000), *([b"a"] * 1000), pause_s=0.05)
    assert answer.status == 408
    assert "COLLECTOR_BODY_PACE" in answer.body["detail"]
    assert 0.9 < time.monotonic() - started < 2.5


async def test_a_body_that_stalls_is_a_408_after_about_a_second(server: Server) -> None:
    started = time.monotonic()
    answer = await said(server, head(1000, "Content-Type: application/json"), b"{", pause_s=5)
    assert answer.status == 408
    assert time.monotonic() - started < 2.5


async def test_a_slow_body_that_keeps_its_pace_is_read(server: Server) -> None:
    """It takes 1.5 s, which is more than the first second."""
    body = noise(60_000)
    answer = await said(
        server, head(60_000), *(body[at : at + 2000] for at in range(0, 60_000, 2000)), pause_s=0.05
    )
    assert answer.is_of(body)


async def test_a_body_that_keeps_its_pace_has_no_longer_than_the_time_limit() -> None:
    server = Server(BodyBounds(body_bytes_max=300_000, timeout_s=1.5, pace_bytes=1000))
    await server.start()
    started = time.monotonic()
    answer = await said(server, head(200_000), *([b"a" * 200] * 1000), pause_s=0.05)
    assert answer.status == 408
    assert 1.4 < time.monotonic() - started < 3
    await server.runner.cleanup()


async def test_a_body_without_end_is_a_413(server: Server) -> None:
    line = chunked(b'{"eventId": 1}\n' * 1000)[:-5]
    answer = await said(server, head(None), *([line] * 1000))
    assert answer.status == 413
