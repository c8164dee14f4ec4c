"""What the collector refuses over HTTP: the status, the reason, and what the sender can do."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector import service
from pipeline.collector.dialects import otlp, protobuf
from pipeline.collector.spool_files import Files
from tests.support.collector_in_process import Serving, serving
from tests.support.usage_events import EventMill, array

PAGE = (Path(__file__).resolve().parents[3] / "docs/howto/collector.md").read_text()
NO_BROKER = {"RABBITMQ_URL": "rabbitmq-stream://guest:guest@127.0.0.1:1/%2F", "COLLECTOR_SPOOL_AFTER": "10ms"}


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as found:
        yield found


async def test_more_fields_of_otlp_than_the_bound_are_a_413_with_the_remedy(collector: Serving) -> None:
    links = protobuf.field(2, b"\x6a\x00" * (otlp.PARTS_MAX + 1))
    body = protobuf.field(1, protobuf.field(2, links))
    answer = await collector.post(body, "/v1/traces", Content_Type=otlp.PROTOBUF)
    assert answer.status == 413
    assert b"make the batches smaller" in answer.body


async def test_what_was_passed_over_is_in_the_answer_to_litellm_and_for_otlp_in_the_metric_alone(
    collector: Serving,
) -> None:
    assert (await collector.post([None], "/v1/litellm")).json == {
        "accepted": 0,
        "rejected": [],
        "passedOver": 1,
    }
    body = protobuf.field(1, protobuf.field(2, protobuf.field(2, protobuf.field(5, b"a span")) * 3))
    answer = await collector.post(body, "/v1/traces", Content_Type=otlp.PROTOBUF)
    assert (answer.status, answer.body) == (200, b"")
    metrics = (await collector.ask("GET", "/metrics")).body.decode()
    for dialect, count in (("litellm", 1), ("traces", 3)):
        line = f'analytics_collector_events_total{{dialect="{dialect}",outcome="passed_over"}} {count}.0'
        assert line in metrics.splitlines()
    assert "`/v1/litellm` says `passedOver`" in PAGE


async def raw(collector: Serving, *parts: bytes) -> bytes:
    """Send bytes, and read until the server closes or is silent for 2 s after the last part."""
    reader, writer = await asyncio.open_connection("127.0.0.1", collector.port)
    for part in parts:
        writer.write(part)
    said = b""
    try:
        async with asyncio.timeout(2):
            while piece := await reader.read(2**16):
                said += piece
    except TimeoutError:
        pass
    writer.close()
    return said


HEAD = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def test_a_transfer_encoding_other_than_chunked_is_a_501(collector: Serving) -> None:
    chunks = b"2\r\n[]\r\n0\r\n\r\n"
    said = await raw(collector, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunks)
    assert said.startswith(b"HTTP/1.1 501 ")
    assert (await raw(collector, HEAD + b"Transfer-Encoding: Chunked\r\n\r\n" + chunks)).startswith(
        b"HTTP/1.1 200 "
    )


async def test_a_body_is_asked_for_only_from_who_may_send_it(collector: Serving, tmp_path: Path) -> None:
    waits = HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n"
    said = await raw(collector, waits + b"\r\n[]")
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    async with serving(tmp_path / "gateway", AUTH_MODE="gateway") as other:
        assert (await raw(other, waits + b"\r\n")).startswith(b"HTTP/1.1 401 ")


# --- readiness is whether events are taken --------------------------------------------------------


async def readiness(collector: Serving) -> tuple[int, Any]:
    answer = await collector.ask("GET", "/status/readyz")
    return answer.status, answer.json["components"]["spool"]


async def test_a_collector_whose_spool_refuses_events_for_lack_of_room_is_not_ready(tmp_path: Path) -> None:
    settings = {**NO_BROKER, "COLLECTOR_SPOOL": f"{tmp_path}/spool", "COLLECTOR_SPOOL_BYTES_MAX": "1MiB"}
    mill = EventMill(seed=5)
    async with serving(tmp_path, **settings) as collector:
        assert (await readiness(collector))[0] == 200
        for size in (1000, 100, 10, 1):
            while (await collector.post(array(mill.events(size)))).status == 200:
                pass
        status, spool = await readiness(collector)
        assert (status, spool["status"], spool["bytes"] > 2**20 - 1024) == (503, "unavailable", True)
        assert "COLLECTOR_SPOOL_BYTES_MAX" in spool["detail"]
    async with serving(tmp_path, **settings) as collector:
        assert (await readiness(collector))[0] == 503, "also before the first event comes"


async def test_a_collector_that_starts_on_a_full_disk_is_ready_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Files, folder: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(service, "_DISK_S", 0.05)
    with monkeypatch.context() as disk:
        disk.setattr(Files, "try_room", full)
        async with serving(tmp_path, **NO_BROKER, COLLECTOR_SPOOL=f"{tmp_path}/spool") as collector:
            status, spool = await readiness(collector)
            assert (status, spool["status"]) == (503, "unavailable")
            disk.undo()
            async with asyncio.timeout(30):
                while (await readiness(collector))[0] != 200:
                    pass


async def test_readiness_says_lost_records_and_files_that_were_set_aside(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    async with serving(tmp_path, COLLECTOR_SPOOL=str(spool)) as collector:
        assert (await readiness(collector))[1]["status"] == "ok"
    (spool / f"{7:020d}.spool.damaged").write_bytes(b"damaged")
    async with serving(tmp_path, COLLECTOR_SPOOL=str(spool)) as collector:
        status, found = await readiness(collector)
        assert (status, found["status"], found["lost"], found["filesSetAside"]) == (200, "degraded", 0, 1)
    assert "`analytics_collector_spool_lost_records`" in PAGE
