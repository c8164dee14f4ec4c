"""The worker process by itself, on embedded log and PostgreSQL: page, logs, shutdown, Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from pipeline.core.rules import Rules
from sql import migrate
from sql.schema import HEAD
from tests.faults import clock
from tests.support import books, mix, older_schema, processes, streams
from tests.support import oracle as naive
from tests.support.processes import metrics
from tests.support.streams import publish_embedded

BUFFERED = 'analytics_buffered_events{partition="0"}'
METRICS = (
    "analytics_freshness_lag_seconds",
    "analytics_ingestion_events_total",
    "analytics_ingestion_dedupe_conflicts_total",
    "analytics_ingestion_late_events_total",
    "analytics_dead_letters_replayed_total",
    "analytics_capped_client_events_total",
    "analytics_capped_value_events_total",
    "analytics_rollup_last_success_timestamp_seconds",
    "analytics_stream_offset_lag",
    "analytics_flush_duration_seconds_count",
    "analytics_flush_rows_count",
    "analytics_flush_failures_total",
    "analytics_fold_duration_seconds_count",
    "analytics_decode_duration_seconds_count",
    "analytics_event_to_visible_seconds_count",
    "analytics_buffered_events",
    "analytics_dirty_rows",
    "analytics_dedupe_ids",
    "analytics_ledger_memory_bytes",
    "analytics_freshness_cache_failures_total",
)


@pytest.fixture
def env(migrated_url: str, tmp_path: Path) -> dict[str, str]:
    return streams.embedded_env(migrated_url, tmp_path)


async def test_metrics_count_what_happened_and_have_no_tenant_in_a_label(
    env: dict[str, str], tmp_path: Path
) -> None:
    made = mix.make(3000, seed=2, now_us=time.time_ns() // 1000, bad=0.1, late=0.1)
    caps = {"CLIENTS_PER_ORG_HOUR_MAX": "2", "MODELS_PER_ORG_HOUR_MAX": "2", "VALUES_PER_ORG_HOUR_MAX": "2"}
    caps["DIMENSIONS"] = mix.DIMENSIONS_SETTING
    with processes.worker(env | caps, tmp_path) as worker:
        await publish_embedded(env, made.bodies)
        streams.wait_committed(env["DATABASE_URL"], len(made.bodies), worker)
        processes.wait_for(lambda: metrics(worker)["analytics_event_to_visible_seconds_count"] > 0, 60)
        found = metrics(worker)
        for name in METRICS:
            assert any(key.split("{")[0] == name for key in found), name
        outcomes = {
            key.split('"')[1]: int(value)
            for key, value in found.items()
            if key.startswith("analytics_ingestion_events_total")
        }
        with psycopg.connect(env["DATABASE_URL"]) as connection:
            row = connection.execute(
                "SELECT accepted, duplicate, rejected FROM analytics.partitions"
            ).fetchone()
        assert row is not None
        assert found["analytics_ingestion_dedupe_conflicts_total"] == outcomes["conflict"] > 0
        assert (outcomes.pop("accepted"), outcomes.pop("duplicate"), sum(outcomes.values())) == row
        assert found["analytics_capped_client_events_total"] > 0
        assert found["analytics_capped_model_events_total"] > 0
        assert found["analytics_capped_value_events_total"] > 0
        assert found["analytics_decode_duration_seconds_count"] > 0
        decode_s, fold_s, flush_s = (
            found[f"analytics_{part}_duration_seconds_sum"] for part in ("decode", "fold", "flush")
        )
        assert 0 < decode_s < fold_s + flush_s
        assert found['analytics_stream_offset_lag{partition="0"}'] == 0
        assert found['analytics_freshness_lag_seconds{partition="0"}'] < 60
        for key in found:
            assert not any(org in key.lower() for org in (*made.orgs, *made.models)), key
        assert processes.get(worker.ready_url.replace("/readyz", "/healthz")) == (200, "OK")
        assert worker.stop() == 0


async def test_sigterm_commits_what_was_read_and_exits_0(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/proc")  # where nobody can make a file: a worker needs no folder
    made = mix.make(2000, seed=3, now_us=time.time_ns() // 1000)
    slow = env | {"FLUSH_INTERVAL": "60s"}  # only the last flush can have committed it
    with processes.worker(slow, tmp_path) as worker:
        await publish_embedded(env, made.bodies)
        processes.wait_for(lambda: metrics(worker).get(BUFFERED) == len(made.bodies), 120, worker.log)
        assert streams.committed_offset(env["DATABASE_URL"]) == 0
        assert worker.stop() == 0
        assert streams.committed_offset(env["DATABASE_URL"]) == len(made.bodies)
    events = [line["event"] for line in worker.events()]
    assert (
        events.index("worker_stopping")
        < events.index("last_flush_committed")
        < events.index("worker_stopped")
    )
    for line in worker.events():
        assert list(line)[:5] == ["time", "level", "event", "logger", "service"]
    # numpy, numba, faust and SQLAlchemy alone are more than this
    assert worker.events()[events.index("worker_started")]["objects_frozen"] > 50_000


def test_a_worker_takes_no_partition_of_an_older_schema_and_goes_on_once_it_is_migrated(
    env: dict[str, str], tmp_path: Path
) -> None:
    older_schema.make(env["DATABASE_URL"], f"{int(HEAD) - 1:04}")
    worker = processes.worker(env, tmp_path)
    worker.start(wait=False)
    try:
        processes.wait_for(lambda: "database_not_ready" in worker.log(), 180, worker.log)
        status, page = processes.get(worker.ready_url)
        assert (status, page["partitions"]) == (503, {})
        said = page["components"]["database"]["detail"]
        assert f"run `spendstream migrate`: the schema is at revision {int(HEAD) - 1:04}" in said
        migrate.upgrade(env["DATABASE_URL"])
        worker.wait_ready()
        assert worker.stop() == 0
    finally:
        worker.kill()


async def test_a_flood_of_bad_events_keeps_their_offsets_and_bounds_their_bytes(
    env: dict[str, str], tmp_path: Path
) -> None:
    with processes.worker(
        env | {"DEAD_LETTER_BODIES_MAX": "10", "FLUSH_INTERVAL": "60s"}, tmp_path
    ) as worker:
        await publish_embedded(env, [b"{"] * 500)
        processes.wait_for(lambda: metrics(worker).get(BUFFERED) == 500, 120, worker.log)
        assert worker.stop() == 0
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        rows = connection.execute('SELECT "offset", body FROM analytics.dead_letters ORDER BY 1').fetchall()
    assert [offset for offset, _ in rows] == list(range(500))
    assert [body for _, body in rows] == [b"{"] * 10 + [None] * 490
    listed = processes.command("dead-letters", "list", "--limit", "2", "--reason", "malformed", env=env)
    assert listed.returncode == 0
    assert "bytes not kept" in listed.stdout
    assert "in all: 500 malformed" in listed.stdout


async def test_ids_in_files_keep_every_duplicate_out_across_a_restart(
    env: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "ids"
    folder.mkdir()
    env = env | {"DEDUPE_FOLDER": str(folder), "DEDUPE_IDS_MAX": "40000"}
    made = mix.make(30_000, seed=6, now_us=time.time_ns() // 1000)
    oracle = naive.Oracle()
    counted, expected = [], []
    for run in range(2):
        now_us = time.time_ns() // 1000
        oracle.feed_all((oracle.next_offset, now_us, body) for body in made.bodies)
        expected.append((oracle.accepted, oracle.duplicate, oracle.rejected))
        with processes.worker(env, tmp_path) as worker:
            await publish_embedded(env, made.bodies)
            streams.wait_committed(env["DATABASE_URL"], (run + 1) * len(made.bodies), worker)
            in_files = mapped_files(worker, folder)
            ids = metrics(worker)['analytics_dedupe_ids{partition="0"}']
            memory = metrics(worker)['analytics_ledger_memory_bytes{partition="0"}']
            assert worker.stop() == 0
        assert in_files == 16
        assert ids == oracle.accepted > 25_000
        assert memory > 0
        with psycopg.connect(env["DATABASE_URL"]) as connection:
            counted.append(
                connection.execute(
                    "SELECT accepted, duplicate, rejected FROM analytics.partitions"
                ).fetchone()
            )
    assert counted == expected
    assert list(folder.iterdir()) == []

    more = mix.make(30_000, seed=7, now_us=time.time_ns() // 1000, bad=0, duplicates=0)
    with processes.worker(env, tmp_path) as worker:
        await publish_embedded(env, more.bodies)
        processes.wait_for(lambda: worker.process.poll() is not None, 180, worker.log)
    assert worker.process.returncode == 1
    assert "more than DEDUPE_IDS_MAX=40000 ids" in worker.log(None)

    worker = processes.worker(env | {"DEDUPE_IDS_MAX": "5000"}, tmp_path)
    worker.start(wait=False)
    assert worker.process.wait(180) == 1, worker.log()
    assert "more than DEDUPE_IDS_MAX=5000 ids" in worker.log(None)
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT offered, accepted + duplicate + rejected FROM analytics.partitions")
        offered, accounted = row.fetchone() or (None, None)
    assert offered == accounted < 90_000


def mapped_files(worker: processes.Process, folder: Path) -> int:
    return Path(f"/proc/{worker.process.pid}/maps").read_text().count(f" {folder}/")


@pytest.fixture
def redis_away_and_back(stack: Any, up: Any) -> Iterator[Any]:
    yield stack.redis
    up(stack.redis)


async def test_redis_tells_the_same_freshness_and_its_absence_hurts_nothing(
    env: dict[str, str], redis_url: str, redis_away_and_back: Any, up: Any, tmp_path: Path
) -> None:
    now_us = time.time_ns() // 1000
    first = mix.make(400, seed=4, now_us=now_us, late=0, span_us=60_000_000, orgs=5)
    more = mix.make(400, seed=5, now_us=now_us, late=0, span_us=60_000_000, orgs=5)
    env = env | {"REDIS_URL": redis_url}
    with processes.worker(env, tmp_path) as worker, processes.Api(env, tmp_path) as api:
        assert isinstance(api, processes.Api)
        await publish_embedded(env, first.bodies)
        streams.wait_committed(env["DATABASE_URL"], 400, worker)
        oracle = naive.Oracle(books.oracle_rules(Rules()))
        for i, body in enumerate(first.bodies):
            oracle.feed(i, now_us, body)
        cache = redis.Redis.from_url(redis_url)
        orgs = {f"spendstream:org:{org}".encode() for org in oracle.orgs_seen}
        processes.wait_for(lambda: set(cache.keys("spendstream:org:*")) == orgs, 60)
        assert cache.hexists("spendstream:watermarks", "0")
        org = next(iter(oracle.orgs_seen))
        seen = {str(model): seen.last for (of, model), seen in oracle.models_seen.items() if of == org}
        entries = {e["modelId"]: e["lastEventAt"] for e in api.answer(f"/orgs/{org}/freshness")["entries"]}
        assert entries == {model: books_time(at) for model, at in seen.items()}

        redis_away_and_back.stop()
        await publish_embedded(env, more.bodies)
        streams.wait_committed(env["DATABASE_URL"], 800, worker)
        processes.wait_for(lambda: metrics(worker)["analytics_freshness_cache_failures_total"] > 0, 60)
        assert worker.status() == 200
        assert api.answer(f"/orgs/{org}/freshness")["status"] == "fresh"

        up(redis_away_and_back)  # it comes back empty: every org is written anew
        for i, body in enumerate(more.bodies):
            oracle.feed(400 + i, now_us, body)
        orgs = {f"spendstream:org:{org}".encode() for org in oracle.orgs_seen}
        cache = redis.Redis.from_url(redis_url)
        processes.wait_for(lambda: set(cache.keys("spendstream:org:*")) == orgs, 120, worker.log)
        assert worker.stop() == 0


def books_time(at: Any) -> str:
    return str(at.isoformat(timespec="microseconds").replace("+00:00", "Z"))


async def test_a_worker_whose_clock_is_ahead_does_not_let_the_watermark_pass_the_brokers_time(
    env: dict[str, str], tmp_path: Path
) -> None:
    """What the watermark has passed by the dedupe window is final, so no event may come after that."""
    ahead = clock.Clock(tmp_path / "clock")
    ahead.set(3600)
    url = env["DATABASE_URL"]
    bodies = mix.make(20, seed=5, now_us=time.time_ns() // 1000, bad=0.0).bodies
    with processes.worker({**env, **ahead.env()}, tmp_path) as worker:
        for count in (10, 20):  # the second ones come while the worker waits for them
            await publish_embedded(env, bodies[count - 10 : count])
            processes.wait_for(lambda n=count: streams.offered(url) == n and caught_up(url), 180, worker.log)
        processes.wait_for(lambda: -30 < watermark_s(url) - time.time() < 0, 120, worker.log)
        for _ in range(20):  # some flushes, each of which could take it ahead again
            assert watermark_s(url) < time.time()
            await asyncio.sleep(0.05)
        assert worker.stop() == 0


def caught_up(url: str) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT bool_and(caught_up) FROM analytics.partitions").fetchone()
    return bool(row and row[0])


def watermark_s(url: str) -> float:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT EXTRACT(EPOCH FROM max(watermark))::float8 FROM analytics.partitions"
        ).fetchone()
    assert row is not None
    return float(row[0])


async def test_of_two_consumer_groups_on_one_database_the_second_waits_and_says_so(
    env: dict[str, str], tmp_path: Path
) -> None:
    url = env["DATABASE_URL"]
    await publish_embedded(env, mix.make(10, seed=6, now_us=time.time_ns() // 1000).bodies)
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    second = processes.worker({**env, "RABBITMQ_CONSUMER": "second"}, folders[1])
    with processes.worker({**env, "RABBITMQ_CONSUMER": "first"}, folders[0]) as first:
        processes.wait_for(lambda: streams.offered(url) == 10, 180, first.log)
        second.start(wait=False)
        with psycopg.connect(url) as connection:
            before = connection.execute("SELECT epoch, consumer FROM analytics.partitions").fetchone()
        processes.wait_for(lambda: "two_consumer_groups" in second.log(None), 180, second.log)
        status, answer = processes.get(second.ready_url)
        assert status == 503
        detail = answer["components"]["stream"]["detail"]
        assert "'first'" in detail
        assert "'second'" in detail
        assert "RABBITMQ_CONSUMER" in detail
        assert first.status() == 200
        said = processes.command("doctor", env={**env, "RABBITMQ_CONSUMER": "second"}).stdout
        assert "consumer group 'first'" in said
        assert "RABBITMQ_CONSUMER is 'second'" in said
        said = processes.command("doctor", env={**env, "RABBITMQ_CONSUMER": "first"}).stdout
        assert "consumer group" not in said
        with psycopg.connect(url) as connection:
            after = connection.execute("SELECT epoch, consumer FROM analytics.partitions").fetchone()
        second.kill()
        assert after == before, "nobody took the partition from anybody"
