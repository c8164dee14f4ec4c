"""What our processes write: one dialect of JSON, and never what a caller sent or a setting hides."""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import InvalidHeader

import api.config
import pipeline.config
from api.app import create_app
from api.contract import openapi
from api.contract.operations import BASE
from api.serving import Runner
from pipeline.common import http, logs
from pipeline.worker.service import serve_page
from tests.support.api_alone import NOWHERE

KEY = "ssk_0123456789ab_NEVER-IN-A-LOG-0123456789abcdefghijklmnopq"
FIRST = ["time", "level", "event", "logger", "service"]


class Written:
    """What this process wrote to its log."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """The log as `logs.configure` sets it up, at the most talkative level."""
    found = Written()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    monkeypatch.setattr("sys.stderr", found.stream)
    logs.configure("debug", "tested", secrets=("the whole secret", 'pass"word'))
    yield found
    root.handlers[:] = before
    root.setLevel(level)


# --- one dialect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["api.app", "pipeline.worker.service"])
def test_a_line_has_the_same_five_first_of_every_process(written: Written, name: str) -> None:
    logging.getLogger(name).warning("pool_ready", extra={"size": 10, "level": "x", "service": "y", "of": {1}})
    (line,) = written.lines
    assert list(line) == [*FIRST, "size", "of"]
    assert (line["level"], line["event"], line["service"]) == ("warning", "pool_ready", "tested")
    assert line["time"].endswith("Z")


def test_no_text_breaks_a_line(written: Written) -> None:
    logging.getLogger("api").info(
        "a\nb", extra={"name_": "\ud800\0\u2028\x1b", "bytes": b"\xff", "none": None}
    )
    assert len(written.text.splitlines()) == 1
    (line,) = written.lines
    assert line["event"] == "a\nb"


def test_a_library_is_heard_from_warnings_on_and_in_one_line(written: Written) -> None:
    for name in ("asyncio", "aiohttp.server", "botocore.auth", "faust", "something.else"):
        logging.getLogger(name).info("request headers: %s", KEY)
        logging.getLogger(name).error("Task failed\nfuture: %s", KEY)
    assert [(line["event"], line["level"]) for line in written.lines] == [("Task failed", "error")] * 5
    assert KEY not in written.text


def test_no_secret_setting_is_in_a_line(written: Written) -> None:
    try:
        raise ValueError('cannot connect with the whole secret and pass"word')
    except ValueError:
        logging.getLogger("api").exception(
            "failed", extra={"url": 'x://u:pass"word@h', "the whole secret": 1}
        )
    assert "the whole secret" not in written.text
    assert json.dumps('pass"word')[1:-1] not in written.text
    assert written.lines[0]["url"] == "x://u:…@h"


def test_the_passwords_of_urls_are_secrets_and_user_names_are_not() -> None:
    loaded = pipeline.config.load(
        {
            "DATABASE_URL": "postgresql://ana:s3%40cret!@h1,h2/db?sslmode=require&password=behind%20it",
            "RABBITMQ_URL": "rabbitmq-stream://guest:guest@h:5552",
            "S3_ENDPOINT": "http://s3",
            "S3_BUCKET": "b",
            "S3_ACCESS_KEY": "the access key",
            "S3_SECRET_KEY": "the secret key",
        }
    )
    shown = {"s3@cret!", "s3%40cret!", "behind it", "behind%20it", "the access key", "the secret key"}
    assert shown <= set(loaded.secrets)
    assert not {"guest", "ana", "db", ""} & set(loaded.secrets)


# --- what a caller sent -----------------------------------------------------------------------------


@asynccontextmanager
async def api_door() -> AsyncIterator[int]:
    runner = Runner(create_app(api.config.load({"DATABASE_URL": NOWHERE})))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def worker_door() -> AsyncIterator[int]:
    runner = await serve_page("127.0.0.1", 0, web.Application())
    yield runner.addresses[0][1]
    await runner.cleanup()


def post(head: str, body: bytes = b"") -> bytes:
    return (
        f"POST {BASE}/events/validate HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n{head}\r\n\r\n".encode()
        + body
    )


BAD = {
    "control byte": f"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\x01\r\n\r\n".encode(),
    "NUL": f"GET / HTTP/1.1\r\nX-API-Key: {KEY}\0\r\n\r\n".encode(),
    "bare CR": f"GET / HTTP/1.1\r\nX-API-Key: a\r{KEY}\r\n\r\n".encode(),
    "name": f"GET / HTTP/1.1\r\nAuthorization Bearer {KEY}\r\n\r\n".encode(),
    "folded": f"GET / HTTP/1.1\r\nX: a\r\n {KEY}\r\n\r\n".encode(),
    "request line": f"{KEY}\r\n\r\n".encode(),
    "method": f"G\x01T /?token={KEY} HTTP/1.1\r\n\r\n".encode(),
    "target": f"GET http://[{KEY} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
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
        head = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
        writer.write(f"GET {BASE}/openapi.json HTTP/1.1\r\n{head}\r\n".encode())
        assert b" 500 " in await reader.read()
        writer.close()
    line = next(line for line in written.lines if line["event"] == "request_failed")
    assert "in broken" in line["traceback"]
    assert "cannot do with …" in line["traceback"]
    assert KEY not in written.text


def test_what_reaches_the_loops_own_handler_shows_no_bytes_either(written: Written) -> None:
    loop = asyncio.new_event_loop()
    error = InvalidHeader(f"X-API-Key: {KEY}")
    loop.call_exception_handler({"message": "Fatal error", "exception": error, "protocol": KEY})
    try:
        raise RuntimeError("around") from error
    except RuntimeError as outer:
        loop.call_exception_handler({"message": "Fatal error", "exception": outer})
    loop.close()
    assert [line["fault"] for line in written.lines] == ["InvalidHeader"] * 2
    assert KEY not in written.text


def test_every_http_door_of_ours_is_the_quiet_one() -> None:
    """A plain `AppRunner` would log what it cannot read."""
    for package in (api, pipeline):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            code = path.read_text()
            own = path == Path(http.__file__)
            assert own or not re.search(r"web\.(AppRunner|ServerRunner|run_app)\(", code), path
            assert "start_http_server" not in code
