"""What the collector refuses over HTTP: the status, the reason, and what the sender can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.collector.dialects import otlp, protobuf
from tests.support.collector_in_process import Serving, serving


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
