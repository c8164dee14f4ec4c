"""The API beside a real worker on a real stream: live, REST and files are one truth as it works and after."""

import asyncio
import json
import random
import threading
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from deploy.local.servers import RabbitMQ
from tests.support import processes, streams
from tests.support.api_facts import MODELS, NEIGHBOUR, ORG, figures, rfc3339, summed
from tests.support.api_server import BASE, Client
from tests.support.exports import downloaded, made, rows_of
from tests.support.live import Events, check_equals_rest

BATCHES_MAX, BATCH = 500, 250


def bodies(rng: random.Random, count: int) -> list[bytes]:
    """Events of two orgs, each with its time of now; a tenth of them twice."""
    found = []
    for _ in range(count):
        event = {
            "eventId": str(uuid.UUID(int=rng.getrandbits(128))),
            "orgId": str(rng.choice((ORG, NEIGHBOUR))),
            "modelId": str(rng.choice(MODELS)),
            "clientId": rng.choice((None, "alpha", "über")),
            "occurredAt": rfc3339(datetime.now(UTC) - timedelta(seconds=rng.randrange(20))),
            "latencyMs": rng.randrange(3000),
            "status": rng.choices(("success", "error", "timeout"), (8, 1, 1))[0],
            "inputTokens": rng.randrange(5000),
            "outputTokens": rng.randrange(500),
            "costEstimateCents": f"{rng.randrange(9)}.{rng.randrange(10**6):06d}",
        }
        found += [json.dumps(event).encode()] * (2 if rng.random() < 0.1 else 1)
    return found


def watermark_of(answer: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(answer["watermark"])


def compared(server: Client, live: dict[str, Any]) -> bool:
    """Is REST still where the message is? Then it must say the same."""
    day = datetime.fromisoformat(live["day"]["bucketStart"])
    query = {"start": rfc3339(day), "end": rfc3339(day + timedelta(days=1)), "groupBy": "none"}
    usage = server.ok(f"{BASE}/orgs/{ORG}/usage", query)
    if usage["freshness"]["watermark"] != live["watermark"]:
        return False
    assert watermark_of(live) < datetime.fromisoformat(live["countedThrough"]) <= datetime.now(UTC)
    assert figures(usage["totals"]) == figures(live["day"])
    return True


def test_live_rest_and_files_agree_while_a_worker_ingests(
    rabbitmq: RabbitMQ, migrated_timescale: str, tmp_path: Path
) -> None:
    stream = f"api.{uuid.uuid4().hex}"
    env = {
        **rabbitmq.env,
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_STREAM": stream,
        "FLUSH_INTERVAL": "500ms",
    }
    serving = {"DATABASE_URL": migrated_timescale, "EXPORT_DIR": str(tmp_path / "exports")}
    batches = sent = 0
    enough = threading.Event()

    def publish() -> None:
        """Until the live messages have shown enough: a quiet stream sends no more of them."""
        nonlocal batches, sent
        rng = random.Random(5)
        while batches < BATCHES_MAX and not enough.wait(0.1):
            batch = bodies(rng, BATCH)
            asyncio.run(streams.publish(env["RABBITMQ_URL"], stream, batch, "amqp", amqp_url=""))
            batches += 1
            sent += len(batch)

    with processes.worker(env, tmp_path) as worker, processes.Api(serving, tmp_path) as api:
        server = Client(urlsplit(api.ready_url).port or 0)
        publisher = threading.Thread(target=publish)
        publisher.start()
        same, growing = 0, set[int]()
        with closing(Events(server, ORG)) as events:
            while publisher.is_alive() and (same < 3 or len(growing) < 3):
                _, live = events.until("usage")
                same += compared(server, live)
                growing.add(live["day"]["invocations"])
        enough.set()
        publisher.join()
        streams.wait_committed(migrated_timescale, sent, worker)
        assert worker.stop() == 0
        assert same >= 3
        assert len(growing) >= 3

        with closing(Events(server, ORG)) as events:
            _, live = events.until("usage")
        check_equals_rest(server, ORG, live)
        month = datetime.fromisoformat(live["month"]["bucketStart"])
        span = {"start": rfc3339(month), "end": rfc3339((month + timedelta(days=32)).replace(day=1))}
        span["start"] = rfc3339(
            month - timedelta(days=1)
        )  # events of before midnight, on the first of a month
        totals = {
            org: server.ok(f"{BASE}/orgs/{org}/usage", {**span, "groupBy": "none"})
            for org in (ORG, NEIGHBOUR)
        }
        with psycopg.connect(migrated_timescale) as connection:
            row = connection.execute(
                "SELECT accepted, duplicate, rejected FROM analytics.partitions"
            ).fetchone()
        assert row is not None
        assert sum(answer["totals"]["invocations"] for answer in totals.values()) == row[0] == batches * BATCH
        assert row[1:] == (sent - row[0], 0)

        of_org = totals[ORG]
        for form, granularity in (
            ("csv", "daily"),
            ("csv", "monthly"),
            ("parquet", "daily"),
            ("focus-1.2", "daily"),
            ("focus-1.2", "monthly"),
        ):
            body = {"timeRange": span, "granularity": granularity, "format": form}
            job = made(server, body)
            assert (job["status"], job["watermark"]) == ("succeeded", of_org["freshness"]["watermark"])
            rows = rows_of(body, downloaded(server, job))
            assert summed(rows.values()) == figures(of_org["totals"]), form
