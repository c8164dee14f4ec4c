"""What our processes write: one dialect of JSON, and never what a caller sent or a setting hides."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp.http_exceptions import InvalidHeader

import api.config
import pipeline.config
from pipeline.common import http
from tests.support.logs import KEY, Written, written_log

FIRST = ["time", "level", "event", "logger", "service"]


@pytest.fixture
def written() -> Iterator[Written]:
    with written_log() as written:
        yield written


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
