"""What HTTP doors of ours log of requests that nobody can read: never their bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

import api.config
from api.app import create_app
from api.contract import openapi
from api.contract.operations import BASE
from pipeline.common.serving import Runner
from pipeline.worker.service import serve_page
from tests.support.api_alone import NOWHERE
from tests.support.logs import KEY, Written, written_log


@pytest.fixture
def written() -> Iterator[Written]:
    with written_log() as written:
        yield written


@asynccontextmanager
async def api_door() -> AsyncIterator[int]:
    runner = Runner(create_app(api.config.load({"DATABASE_URL": NOWHERE})))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def worker_door() -> AsyncIterator[int]:
    runner = await serve_page(("127.0.0.1",), 0, web.Application())
    yield runner.addresses[0][1]
    await runner.cleanup()


def post(head: str, body: bytes = b"") -> bytes:
    return (
        f"POST {BASE}/events/validate HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
        f"{head}\r\n\r\n".encode()
        + body
    )


BAD = {
    "control byte": f"GET / HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\x01\r\n\r\n".encode(),
    "NUL": f"GET / HTTP/1.1\r\nX-API-Key: {KEY}\0\r\n\r\n".encode(),
    "bare CR": f"GET / HTTP/1.1\r\nX-API-Key: a\r{KEY}\r\n\r\n".encode(),
    "name": f"GET / HTTP/1.1\r\nAuthorization Bearer {KEY}\r\n\r\n".encode(),
    "folded": f"GET / HTTP/1.1\r\nX: a\r\n {KEY}\r\n\r\n".encode(),
    "request line": f"{KEY}\r\n\r\n".encode(),
    "method": f"G\x01T /?token={KEY} HTTP/1.1\r\n\r\n".encode(),
    "target": f"GET http://[{KEY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "version": f"GET /?token={KEY} HTTP/9.9x\r\n\r\n".encode(),
    "long": f"GET / HTTP/1.1\r\nX-API-Key: {KEY * 2000}\r\n\r\n".encode(),
    "length": f"GET / HTTP/1.1\r\nContent-Length: {KEY}\r\n\r\n".encode(),
    "lengths": post("Content-Length: 3\r\nTransfer-Encoding: chunked", b"abc"),
    "chunk size": post("Transfer-Encoding: chunked", f"{KEY}\r\n".encode()),
    "later chunk": post("Transfer-Encoding: chunked", f"3\r\nabc\r\n{KEY}\r\n".encode()),
    "no gzip": post(f"Content-Encoding: gzip\r\nContent-Length: {len(KEY)}", KEY.encode()),
    "half a body": post("Content-Length: 100", KEY.encode()),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01" + KEY.encode() + b"\r\n\r\n",
}


@pytest.mark.parametrize("door", [api_door, worker_door])
@pytest.mark.parametrize("request_bytes", BAD.values(), ids=BAD)
async def test_a_bad_request_is_one_line_without_its_bytes(
    written: Written, door: Any, request_bytes: bytes
) -> None:
    async with door() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
    assert answer == b"" or answer.split(b" ")[1] in (b"400", b"404", b"501"), answer
    assert KEY.encode() not in answer
    assert KEY not in written.text
    assert "Traceback" not in written.text
    about = [line for line in written.lines if "database" not in json.dumps(line)]
    assert sum(line["event"] in ("bad_request", "request_served") for line in about) <= 2
    assert {line["event"] for line in about} <= {"bad_request", "request_served"}
    assert {line["level"] for line in about} <= {"info"}


@pytest.mark.parametrize("request_bytes", [BAD["control byte"], BAD["request line"], BAD["long"]])
async def test_a_bad_request_is_in_the_log(written: Written, request_bytes: bytes) -> None:
    async with worker_door() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        assert b" 400 " in await reader.read()
        writer.close()
    (line,) = written.lines
    assert (line["event"], line["level"], line["peer"]) == ("bad_request", "info", "127.0.0.1")


async def test_a_fault_of_ours_is_logged_without_the_credentials_it_speaks_of(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError(f"cannot do with {KEY}")

    monkeypatch.setattr(openapi, "document_json", broken)
    async with api_door() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
        writer.write(f"GET {BASE}/openapi.json HTTP/1.1\r\n{head}\r\n".encode())
        assert b" 500 " in await reader.read()
        writer.close()
    line = next(line for line in written.lines if line["event"] == "request_failed")
    assert "in broken" in line["traceback"]
    assert "cannot do with …" in line["traceback"]
    assert KEY not in written.text
