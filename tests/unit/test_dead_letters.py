"""What a dead letter is worth today, and reading back what a flood left out of the table."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from pipeline.config import StreamConfig
from pipeline.core.judge import stored_hours_from
from pipeline.dead_letters import stream
from pipeline.dead_letters.examine import REPLAY, Examined, Terms, examine
from pipeline.dead_letters.table import StoredDeadLetter
from pipeline.transports import Extent, Subscription, Transport, TransportError
from pipeline.transports.factory import open_transport

HOUR_US = 3_600_000_000
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
STREAM = "letters"


def event(ago: timedelta) -> bytes:
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=1)),
            "orgId": str(uuid.UUID(int=2)),
            "modelId": str(uuid.UUID(int=3)),
            "occurredAt": (NOW - ago).isoformat(),
            "latencyMs": 1,
            "status": "success",
            "inputTokens": 1,
            "outputTokens": 1,
            "costEstimateCents": "0.1",
        }
    ).encode()


def examined(body: bytes | None, *, read_back: stream.Found | None = None, **changed: Any) -> Examined:
    record = StoredDeadLetter(
        stream=STREAM,
        partition=0,
        offset=7,
        position=0,
        reason="too_late",
        faults=[],
        body=body,
        rejected_at=NOW,
        broker_time=NOW,
        requested_at=None,
        settled_at=None,
        outcome=None,
    )
    terms: dict[str, Any] = {
        "rollups_from_us": NOW_US - 400 * 24 * HOUR_US,
        "ids_from": {0: stored_hours_from(NOW_US, 24 * HOUR_US, 0)},
        "window_us": 24 * HOUR_US,
        "live": {},
        "lookup": None,
        **changed,
    }
    [letter] = examine([record], read_back or {}, Terms(**terms))
    return letter


@pytest.mark.parametrize(
    ("body", "verdict", "why"),
    [
        (b"{", "malformed", "not JSON"),
        (b"\xef\xbb\xbf{}", "malformed", "not JSON: begins with a byte order mark"),
        (b"{}", "invalid", "eventId: is missing"),
        (event(timedelta(minutes=-6)), "future", "more than 5 minutes"),
        (event(timedelta(minutes=-4)), REPLAY, ""),
        (event(timedelta(hours=47)), REPLAY, ""),
        (event(timedelta(hours=50)), "unknown", "no archive to ask (ARCHIVE_URL): --accept counts it"),
        (event(timedelta(days=401)), "expired", "RETENTION_ROLLUP"),
        (None, "gone", "cannot be read back"),
    ],
)
def test_a_letter_is_judged_as_it_would_be_now(body: bytes | None, verdict: str, why: str) -> None:
    letter = examined(body)
    assert letter.verdict == verdict
    assert why in letter.why


def test_the_operators_word_is_passed_on_and_replaces_nothing_else() -> None:
    letter = examined(event(timedelta(hours=50)), accept=True)
    assert (letter.verdict, letter.evidence) == (REPLAY, "accept")
    assert examined(event(timedelta(days=401)), accept=True).verdict == "expired"
    assert examined(b"{", accept=True).verdict == "malformed"


def test_a_body_that_was_read_back_is_judged_by_the_time_of_its_own_chunk() -> None:
    ahead = event(timedelta(minutes=-6))
    assert examined(None, read_back={(STREAM, 7): (ahead, NOW_US)}).verdict == "future"
    letter = examined(None, read_back={(STREAM, 7): (ahead, NOW_US + 2 * 60_000_000)})
    assert (letter.verdict, letter.body) == (REPLAY, ahead)
    assert examined(None, read_back={("another", 7): (ahead, NOW_US)}).verdict == "gone"


async def test_records_are_read_back_wherever_they_are_in_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StreamConfig(url=f"embedded://{tmp_path}", stream=STREAM, consumer="tests")
    transport = open_transport(config)
    await transport.open()
    publisher = await transport.publisher()
    for chunk in range(20):
        await publisher.publish([b"%d" % (10 * chunk + i) for i in range(10)])
    await transport.close()
    wanted = {STREAM: {0, 3, 9, 57, 58, 199, 200, 5000}, "another": {1}}
    for skipped_max in (stream.SKIPPED_MAX, 15, 0):
        monkeypatch.setattr(stream, "SKIPPED_MAX", skipped_max)
        found = await stream.read_back(config, wanted)
        assert {offset: body for (_, offset), (body, _) in found.items()} == {
            offset: b"%d" % offset for offset in (0, 3, 9, 57, 58, 199)
        }


@pytest.mark.parametrize("lag", [0, 3])
async def test_a_broker_that_sends_nothing_is_not_a_stream_without_the_records(
    lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = AsyncMock(spec=Subscription)
    silent.receive.side_effect = asyncio.Event().wait
    silent.offset_lag.return_value = lag
    transport = AsyncMock(spec=Transport)
    transport.extents.return_value = [Extent(stream=STREAM, first_offset=0, end_offset=10, stored_bytes=None)]
    transport.subscribe.return_value = silent
    monkeypatch.setattr(stream, "open_transport", lambda _: transport)
    monkeypatch.setattr(stream, "_PATIENCE_S", 0.05)
    config = StreamConfig(url="", stream=STREAM, consumer="tests")
    if lag:
        with pytest.raises(TransportError, match=r"sent nothing for 0\.05 s"):
            await stream.read_back(config, {STREAM: {7}})
    else:
        assert await stream.read_back(config, {STREAM: {7}}) == {}
    silent.close.assert_awaited_once()
    transport.close.assert_awaited_once()
