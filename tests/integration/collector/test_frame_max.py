"""Events that do not fit in the broker's frames: refused by index, and never in the way of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.servers import RabbitMQ
from tests.support import collectors, processes, streams
from tests.support.processes import wait_for
from tests.support.usage_events import EventMill, array

FRAME_BYTES = 8192
FITS_BYTES = FRAME_BYTES - 2048


@pytest.fixture
def small_frames(rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """A broker that may be restarted with small frames (`restart`); with its own ones after the test."""
    yield rabbitmq
    restart(rabbitmq, "")


def restart(rabbitmq: RabbitMQ, conf: str) -> None:
    rabbitmq.more_conf = conf
    rabbitmq.restart()


def events(mill: EventMill, *sizes: int) -> list[bytes]:
    """Events of these sizes in the contract's fields, by texts in their metadata; 0: as they are."""
    made = []
    for body, size in zip(mill.events(len(sizes)), sizes, strict=True):
        event: dict[str, Any] = json.loads(body)
        if size:
            event["metadata"] = {f"k{number}": "v" * 200 for number in range(size // 220)}
            event["metadata"]["rest"] = ""
            lacking = size - len(json.dumps(event, separators=(",", ":")))
            event["metadata"]["rest"] = "r" * lacking
        made.append(json.dumps(event, separators=(",", ":")).encode())
    return made


def counted(env: dict[str, str]) -> int:
    """Events that the worker has counted, in any way."""
    return streams.offered(env["DATABASE_URL"])


def test_an_event_that_is_larger_than_the_brokers_frames_is_rejected_by_index_with_the_reason(
    env: dict[str, str], tmp_path: Path, small_frames: RabbitMQ
) -> None:
    restart(small_frames, f"stream.frame_max = {FRAME_BYTES}")
    mill = EventMill(seed=1)
    with processes.worker(env, tmp_path) as worker, collectors.collector(env, tmp_path) as collector:
        sent = events(mill, 0, FITS_BYTES, FITS_BYTES + 1, 20_000, 0)
        status, answer = collector.post("/v1/events", array(sent))
        assert status == 200
        assert answer == {
            "accepted": 3,
            "rejected": [
                {
                    "index": index,
                    "errors": [
                        {
                            "field": "",
                            "message": f"has {len(sent[index])} bytes, and the broker takes at most"
                            f" {FITS_BYTES} (its stream.frame_max)",
                        }
                    ],
                }
                for index in (2, 3)
            ],
        }
        status, answer = collector.post("/v1/events", sent[3])
        assert (status, [one["index"] for one in answer["rejected"]]) == (400, [0])
        wait_for(lambda: counted(env) == 3, 60, worker.log)


def test_events_in_the_spool_that_became_too_large_stop_none_behind_them_and_come_back(
    env: dict[str, str], tmp_path: Path, small_frames: RabbitMQ
) -> None:
    mill = EventMill(seed=2)
    spool = tmp_path / "spool"
    settings = {**env, "COLLECTOR_SPOOL": str(spool)}
    with processes.worker(env, tmp_path) as worker:
        with collectors.collector(settings, tmp_path) as collector:
            small_frames.kill()
            wait_for(lambda: collector.get_component("stream")["status"] == "unavailable", 60)
            for sizes in ((0, 30_000, 0), (20_000,), (0, 0)):
                status, answer = collector.post("/v1/events", array(events(mill, *sizes)))
                assert (status, answer) == (200, {"accepted": len(sizes), "rejected": []})
            restart(small_frames, f"stream.frame_max = {FRAME_BYTES}")
            wait_for(lambda: collector.metric("analytics_collector_spool_records") == 0, 120, collector.log)
            wait_for(lambda: counted(env) == 4, 60, worker.log)
            assert collector.metric("analytics_collector_spool_too_large_records") == 2
            found = collector.get_component("spool")
            assert (found["status"], found["tooLarge"]) == ("degraded", 2)
            assert "too large for the broker" in found["detail"]
            assert collector.status() == 200, "other events are taken"
            said = [line for line in collector.events() if line["event"] == "spool_records_too_large"]
            assert max(line["largest_bytes"] for line in said) == 30_000
            assert any(
                f"raise stream.frame_max of the broker by {30_000 - FITS_BYTES} or more" in line["remedy"]
                for line in said
            )
            status, answer = collector.post("/v1/events", array(events(mill, 0, 20_000)))
            assert (status, answer["accepted"], len(answer["rejected"])) == (200, 1, 1)
            assert collector.stop() == 0
        assert list(spool.glob("*.too-large"))
        restart(small_frames, "stream.frame_max = 65536")
        with collectors.collector(settings, tmp_path) as collector:
            wait_for(lambda: counted(env) == 7, 120, collector.log)
            assert collector.metric("analytics_collector_spool_too_large_records") == 0
            assert collector.get_component("spool")["status"] == "ok"
            assert collector.stop() == 0
    assert [path.name for path in spool.iterdir()] == ["lock"]
