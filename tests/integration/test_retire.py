"""A stream that is read no more: no org waits for it once an operator has said so."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import redis

from deploy.local.ports import free_port
from pipeline.config import StreamConfig
from pipeline.transports.factory import open_transport
from tests.support import processes, streams

ORG = str(uuid.UUID(int=7))


def event() -> bytes:
    return json.dumps(
        {
            "eventId": str(uuid.uuid4()),
            "orgId": ORG,
            "modelId": str(uuid.UUID(int=8)),
            "occurredAt": datetime.now(UTC).isoformat(),
            "latencyMs": 1,
            "status": "success",
            "inputTokens": 1,
            "outputTokens": 1,
            "costEstimateCents": 1,
        }
    ).encode()


async def publish(env: dict[str, str], stream: str, count: int) -> None:
    transport = open_transport(StreamConfig(url=env["RABBITMQ_URL"], stream=stream, consumer="tests"))
    try:
        await transport.open()
        await (await transport.publisher()).publish([event() for _ in range(count)])
    finally:
        await transport.close()


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(statement.encode())
        return done.fetchall() if done.description else []


def an_hour_later(env: dict[str, str]) -> None:
    """As if no worker had read the old stream for an hour."""
    with redis.Redis.from_url(env["REDIS_URL"]) as cache:
        hour_us, mark = 3_600_000_000, cache.hget("spendstream:watermarks", "0")
        assert isinstance(mark, bytes)
        cache.hset("spendstream:watermarks", "0", int(mark) - hour_us)
    execute(
        env["DATABASE_URL"],
        "UPDATE analytics.partitions SET updated_at = updated_at - interval '1 hour',"
        " watermark = watermark - interval '1 hour' WHERE stream = 'old'",
    )


def retire(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = processes.command("stream", "retire", *arguments, env=env)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def env(migrated_timescale: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": migrated_timescale,
        "REDIS_URL": redis_url,
        "RABBITMQ_URL": f"embedded://{tmp_path}/log",
        "FLUSH_INTERVAL": "200ms",
    }


async def count_in(env: dict[str, str], stream: str, count: int, folder: Path) -> None:
    """Publish to a stream, and have a worker count all of it."""
    await publish(env, stream, count)
    before = streams.offered(env["DATABASE_URL"])
    with processes.worker({**env, "RABBITMQ_STREAM": stream}, folder) as worker:
        processes.wait_for(lambda: streams.offered(env["DATABASE_URL"]) == before + count, 180, worker.log)
        assert worker.stop() == 0


async def test_a_retired_stream_makes_no_org_delayed_and_a_worker_takes_the_retirement_back(
    env: dict[str, str], tmp_path: Path
) -> None:
    url = env["DATABASE_URL"]
    await count_in(env, "old", 3, tmp_path)
    code, said = retire(env, "old")
    assert (code, "a worker committed to 'old' within the last 30 s" in said) == (1, True), said
    an_hour_later(env)
    await publish(env, "old", 2)
    code, said = retire(env, "old")
    assert (code, "2 offsets of 'old' are not counted yet" in said) == (1, True), said
    code, said = retire(env, "never")
    assert code == 1, said
    with processes.worker({**env, "RABBITMQ_STREAM": "old"}, tmp_path) as worker:
        processes.wait_for(lambda: streams.offered(url) == 5, 180, worker.log)
        assert worker.stop() == 0
    await publish(env, "new", 4)
    port = free_port()
    api = processes.Process(
        "pipeline.cli",
        ["api"],
        env={**processes.SLOW_MACHINE, **env, "HTTP_PORT": str(port), "API_ALLOW_PRIVILEGED": "true"},
        log=tmp_path / "api.log",
        ready=f"http://127.0.0.1:{port}/analytics/v1/status/readyz",
    )
    with processes.worker({**env, "RABBITMQ_STREAM": "new"}, tmp_path) as worker, api:
        processes.wait_for(lambda: streams.offered(url) == 9, 180, worker.log)
        an_hour_later(env)

        def freshness() -> dict[str, object]:
            status, answer = processes.get(f"http://127.0.0.1:{port}/analytics/v1/orgs/{ORG}/freshness")
            assert status == 200, answer
            return dict(answer)

        assert freshness()["status"] == "delayed"
        code, said = retire(env, "old")
        assert (code, "retired: old" in said) == (0, True), said
        processes.wait_for(lambda: freshness()["status"] == "fresh", 120, worker.log)
        lags = processes.get(f"http://127.0.0.1:{port}/metrics")[1]
        assert 'analytics_freshness_lag_seconds{partition="1"}' in lags
        assert 'analytics_freshness_lag_seconds{partition="0"}' not in lags
        code, said = retire(env, "old")
        assert (code, "was retired at" in said) == (1, True), said
        assert worker.stop() == 0
    ((actor, detail),) = execute(
        url, "SELECT actor, detail FROM analytics.audit_log WHERE action = 'stream.retire'"
    )
    assert actor
    assert detail == {"stream": "old", "partition": 0, "committed_offset": 5, "end_offset": 5}

    await publish(env, "old", 1)
    with processes.worker({**env, "RABBITMQ_STREAM": "old"}, tmp_path) as worker:
        processes.wait_for(lambda: streams.offered(url) == 10, 180, worker.log)
        assert "retired_stream_is_read_again" in worker.log(None)
        assert worker.stop() == 0
    assert execute(url, "SELECT count(*) FROM analytics.partitions WHERE retired_at IS NOT NULL") == [(0,)]


async def test_a_stream_that_is_gone_is_retired_where_the_operator_says_so(
    env: dict[str, str], tmp_path: Path
) -> None:
    url = env["DATABASE_URL"]
    await count_in(env, "old", 1, tmp_path)
    an_hour_later(env)
    elsewhere = {**env, "RABBITMQ_URL": f"embedded://{tmp_path}/another"}
    code, said = retire(elsewhere, "old")
    assert code == 1, said
    assert execute(url, "SELECT count(*) FROM analytics.partitions WHERE retired_at IS NOT NULL") == [(0,)]
    code, said = retire(elsewhere, "old", "--gone")
    assert code == 0, said
    assert execute(url, "SELECT count(*) FROM analytics.partitions WHERE retired_at IS NOT NULL") == [(1,)]
