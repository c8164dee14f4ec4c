"""The main job on real servers: what went into a RabbitMQ stream comes out of REST, exactly.

Each test publishes to a real RabbitMQ 4 stream, runs the worker and the API as the processes they are, on
PostgreSQL 17 with TimescaleDB, reads the stream back, and holds every figure to the naive oracle.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.core import wire
from pipeline.core.rules import Rules
from tests.support import books, mix, processes, streams, traces
from tests.support import oracle as naive
from tests.support.api_facts import figures

pytestmark = pytest.mark.timeout(1800)

DOLLARS_PER_MICROCENT = Decimal("1e-8")
NEW_FIELDS = (*wire.TOKEN_KINDS, "serviceTier", "provider", "modelName")
"""What a producer for version 0.1.0 does not send."""


@dataclass
class Setup:
    """One stream, one migrated database, and the environment that names both."""

    stream: str
    env: dict[str, str]
    rabbitmq: RabbitMQ
    folder: Path

    @property
    def database_url(self) -> str:
        return self.env["DATABASE_URL"]

    async def publish(self, bodies: list[bytes], framing: streams.Sending = "raw") -> None:
        await streams.publish(
            self.rabbitmq.url, self.stream, bodies, framing, amqp_url=self.rabbitmq.amqp_url
        )

    async def records(self, count: int) -> list[streams.Record]:
        return await streams.read_all(self.rabbitmq.url, self.stream, upto=count)


@pytest.fixture
def setup(rabbitmq: RabbitMQ, migrated_timescale: str, redis_url: str, tmp_path: Path) -> Setup:
    stream = f"acceptance-{random.SystemRandom().getrandbits(48):012x}"
    env = {
        "DATABASE_URL": migrated_timescale,
        "REDIS_URL": redis_url,
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_STREAM": stream,
        "FLUSH_INTERVAL": "200ms",
        "DIMENSIONS": mix.DIMENSIONS_SETTING,
    }
    return Setup(stream, env, rabbitmq, tmp_path)


def oracle_of(records: list[streams.Record], rules: Rules | None = None) -> naive.Oracle:
    oracle = naive.Oracle(books.oracle_rules(replace(rules or Rules(), dimensions=mix.DIMENSIONS)))
    oracle.feed_all((record.offset, record.broker_us, record.body) for record in records)
    return oracle


def rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def assert_rest_equals_oracle(api: processes.Api, oracle: naive.Oracle) -> None:
    """Every figure of usage and reliability, for every org, grain and grouping."""
    first = min(seen.first for seen in oracle.orgs_seen.values())
    last = max(seen.last for seen in oracle.orgs_seen.values())
    start = first.replace(hour=0, minute=0, second=0, microsecond=0)
    end = last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    whole = {"start": rfc3339(start), "end": rfc3339(end), "limit": 10_000}
    for org in oracle.orgs_seen:
        for granularity, group, table in (
            ("hour", "model", oracle.usage_hour),
            ("day", "model", oracle.usage_day),
            ("hour", ["model", "client"], oracle.client_hour),
            ("day", ["model", "client"], oracle.client_day),
        ):
            assert_series(api, oracle, org, whole | {"granularity": granularity, "groupBy": group}, table)
        hour = last.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        window = {"start": rfc3339(hour), "end": rfc3339(hour + timedelta(hours=2)), "limit": 10_000}
        in_window = {
            key: row for key, row in oracle.usage_minute.items() if hour <= key[1] < hour + timedelta(hours=2)
        }
        assert_series(api, oracle, org, window | {"granularity": "minute", "groupBy": "model"}, in_window)
        codes = {
            (error["status"], error["errorCode"]): error["count"]
            for error in api.answer(f"/orgs/{org}/reliability", **whole, granularity="day")["errorCodes"]
        }
        want: Counter[tuple[str, str | None]] = Counter()
        for key, count in oracle.usage_errors_hour.items():
            if key[0] == org:
                want[("success", "error", "timeout", "throttled")[key[4]], key[5] or None] += count
        assert codes == dict(want)


def assert_series(
    api: processes.Api,
    oracle: naive.Oracle,
    org: Any,
    parameters: dict[str, Any],
    table: dict[Any, naive.Row],
) -> None:
    want = {
        (rfc3339(key[1]), str(key[2]), (key[3] or None) if len(key) > 3 else None): row
        for key, row in table.items()
        if key[0] == org
    }

    def key_of(point: dict[str, Any]) -> tuple[str, str, str | None]:
        return point["bucketStart"], point["modelId"], point["clientId"]

    points, answer = api.pages(f"/orgs/{org}/usage", **parameters)
    assert {key_of(point): usage_of(point) for point in points} == {
        k: usage_of_row(row) for k, row in want.items()
    }
    for point in points:
        _, *label = oracle.labels.get((org, UUID(point["modelId"])), (0, b"", b""))
        assert [point["provider"], point["modelName"]] == [text.decode() or None for text in label]
    assert usage_of(answer["totals"]) == usage_of_row(naive.total(want.values()))
    points, answer = api.pages(f"/orgs/{org}/reliability", **parameters)
    assert {key_of(point) for point in points} == set(want)
    for point in points:
        assert_reliability(point, want[key_of(point)])
    assert_reliability(answer["totals"], naive.total(want.values()))


def usage_of(point: dict[str, Any]) -> tuple[Any, ...]:
    assert point["cost"]["currency"] == "USD"
    *_, amount = shown = figures(point)
    assert point["costEstimateCents"] == (None if amount is None else round(amount * 100))  # half-even
    return shown


def usage_of_row(row: naive.Row) -> tuple[Any, ...]:
    kinds = (
        row.cache_read_tokens,
        row.cache_write_tokens,
        row.cache_write_1h_tokens,
        row.reasoning_tokens,
        row.unestimated,
    )
    is_known = row.unestimated < row.invocations or not row.invocations
    amount = row.cost_microcents * DOLLARS_PER_MICROCENT if is_known else None
    return (row.invocations, row.input_tokens, row.output_tokens, *kinds, amount)


def assert_reliability(point: dict[str, Any], row: naive.Row) -> None:
    assert point["invocations"] == row.invocations
    assert point["errors"] == {"error": row.errors, "timeout": row.timeouts, "throttled": row.throttles}
    failed = row.errors + row.timeouts + row.throttles
    assert point["errorRate"] == pytest.approx(failed / row.invocations if row.invocations else 0)
    latency = point["latencyMs"]
    if not row.invocations:
        return
    assert latency["max"] == row.latency_max_ms
    assert latency["mean"] == pytest.approx(row.latency_sum_ms / row.invocations, abs=0.01)
    for percent in (50, 95, 99):
        exact = row.percentile_ms(percent)
        assert abs(latency[f"p{percent}"] - exact) <= 0.01 * exact, (percent, latency, exact)


async def test_a_hundred_thousand_nasty_events_come_out_exactly_though_the_worker_is_killed_five_times(
    setup: Setup,
) -> None:
    count = 100_000
    made = mix.make(count, seed=11, now_us=time.time_ns() // 1000)
    assert_both_old_and_new_producers(made)
    luck = random.Random(5)
    worker = processes.worker(setup.env, setup.folder)
    groups = list(mix.groups(made.bodies, streams.SENDINGS, seed=1))
    kill_before = set(luck.sample(range(1, len(groups)), 5))
    published = 0
    with worker:
        for i, (framing, bodies) in enumerate(groups):
            if i in kill_before:
                await asyncio.sleep(luck.random() * 0.4)
                worker.kill()
                worker.start(wait=False)
            await setup.publish(bodies, framing)
            published += len(bodies)
        assert published == len(made.bodies)
        streams.wait_committed(setup.database_url, published, worker)
        assert worker.stop() == 0

    records = await setup.records(published)
    assert Counter(r.body for r in records) == Counter(made.bodies)
    oracle = oracle_of(records)
    assert oracle.offered == oracle.accepted + oracle.duplicate + oracle.rejected == published
    assert Counter(letter.reason for letter in oracle.dead_letters) == Counter(filter(None, made.reasons))
    assert not books.difference(books.stored_in_database(setup.database_url), books.expected(oracle))

    listed = processes.command("dead-letters", "list", "--json", "--limit", "1000000", env=setup.env)
    assert listed.returncode == 0, listed.stderr
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    assert sorted((d["offset"], d["reason"], base64.b64decode(d["body"])) for d in letters) == [
        (letter.offset, letter.reason, letter.body) for letter in oracle.dead_letters
    ]
    with processes.Api(setup.env, setup.folder) as api:
        assert isinstance(api, processes.Api)
        assert_rest_equals_oracle(api, oracle)


def assert_both_old_and_new_producers(made: mix.Mix) -> None:
    """A quarter or more of the good bodies are of version 0.1.0, and each new field is in 1 of 20 or more."""
    good = [body for body, reason in zip(made.bodies, made.reasons, strict=True) if not reason]
    with_field = [
        [
            any(b'"%b"' % spelling.encode() in body for spelling in (name, mix.SNAKE.get(name, name)))
            for body in good
        ]
        for name in NEW_FIELDS
    ]
    assert sum(not any(found) for found in zip(*with_field, strict=True)) > len(good) // 4
    for name, found in zip(NEW_FIELDS, with_field, strict=True):
        assert sum(found) > len(good) // 20, name


@pytest.mark.parametrize("name", traces.NAMES)
async def test_a_public_trace_comes_out_as_it_is_counted_from_its_csv(setup: Setup, name: str) -> None:
    file = traces.path(name)
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    publish = ("replay-trace", str(file), "--seed", "7")
    done = processes.command(*publish, env=setup.env)
    assert done.returncode == 0, done.stderr

    worker = processes.worker(setup.env, setup.folder)
    with worker, processes.Api(setup.env, setup.folder) as api:
        assert isinstance(api, processes.Api)
        streams.wait_committed(setup.database_url, len(rows), worker)
        records = await setup.records(len(rows))
        events = [camel(json.loads(record.body, parse_float=Decimal)) for record in records]
        # The stream holds the file: the same tokens at the same distances in time.
        shift = parsed(events[0]["occurredAt"]) - csv_time(rows[0])
        assert [(parsed(e["occurredAt"]) - shift, e["inputTokens"], e["outputTokens"]) for e in events] == [
            (csv_time(row), int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows
        ]
        want = counted(events)
        assert totals(api, want) == want
        assert sum(figures[0] for key, figures in want.items() if key[0] == "day") == len(rows)
        oracle = oracle_of(records)
        assert_rest_equals_oracle(api, oracle)

        again = processes.command(*publish, env=setup.env)
        assert again.returncode == 0, again.stderr
        streams.wait_committed(setup.database_url, 2 * len(rows), worker)
        assert totals(api, want) == want
        stored = books.stored_in_database(setup.database_url)
        # The same ids at shifted times are other payloads: kept out as conflicts, and kept to be looked at.
        assert stored["counters"] == (2 * len(rows), len(rows), 0, len(rows))
        assert {letter[1] for letter in stored["dead_letters"]} == {"conflict"}
        assert worker.stop() == 0


def camel(event: dict[str, Any]) -> dict[str, Any]:
    """The event's fields by their camelCase names, whichever variant it is."""
    event = event.get("data", event)
    names = {"cost_estimate": "costEstimateCents"} | {snake: name for name, snake in mix.SNAKE.items()}
    return {names.get(name, name): value for name, value in event.items()}


def parsed(text: str) -> datetime:
    return datetime.fromisoformat(text)


def csv_time(row: dict[str, str]) -> datetime:
    return datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)


Figures = tuple[int, int, int, Decimal]


def counted(events: list[dict[str, Any]]) -> dict[tuple[str, str, str, str], Figures]:
    """Invocations, tokens in and out, and dollars by (grain, org, model, bucket), added up one by one."""
    sums: dict[tuple[str, str, str, str], list[Any]] = defaultdict(lambda: [0, 0, 0, Decimal(0)])
    for event in events:
        at = parsed(event["occurredAt"])
        hour = at.replace(minute=0, second=0, microsecond=0)
        cents = Decimal(event["costEstimateCents"]).quantize(Decimal("1e-6"))
        for grain, bucket in (("hour", hour), ("day", hour.replace(hour=0))):
            figures = sums[grain, event["orgId"], event["modelId"], rfc3339(bucket)]
            figures[0] += 1
            figures[1] += event["inputTokens"]
            figures[2] += event["outputTokens"]
            figures[3] += cents / 100
    return {key: (f[0], f[1], f[2], f[3]) for key, f in sums.items()}


def totals(api: processes.Api, want: dict[tuple[str, str, str, str], Figures]) -> dict[Any, Figures]:
    """The same by REST, for every org that `counted` found."""
    buckets = [parsed(key[3]) for key in want]
    start = min(buckets).replace(hour=0)
    end = max(buckets).replace(hour=0) + timedelta(days=1)
    found: dict[Any, Figures] = {}
    for org in {key[1] for key in want}:
        for grain in ("hour", "day"):
            points, _ = api.pages(
                f"/orgs/{org}/usage", start=rfc3339(start), end=rfc3339(end), granularity=grain, limit=10_000
            )
            for point in points:
                found[grain, org, point["modelId"], point["bucketStart"]] = (
                    point["invocations"],
                    point["inputTokens"],
                    point["outputTokens"],
                    Decimal(point["cost"]["amount"]),
                )
    return found


async def test_freshness_is_true_to_fact(setup: Setup) -> None:
    made = mix.make(500, seed=3, now_us=time.time_ns() // 1000, late=0, span_us=60_000_000)
    org = made.orgs[0]
    worker = processes.worker(setup.env | {"ALLOWED_LATENESS": "1s"}, setup.folder)
    env = setup.env | {"FRESH_LAG": "10s", "STALE_LAG": "14s"}
    with worker, processes.Api(env, setup.folder) as api:
        assert isinstance(api, processes.Api)
        await setup.publish(made.bodies)
        streams.wait_committed(setup.database_url, 500, worker)
        idle_s = 12.0  # longer than FRESH_LAG: without the caught-up rule the answer would be stale
        ends = time.monotonic() + idle_s
        while time.monotonic() < ends:
            answer = api.answer(f"/orgs/{org}/freshness")
            await asyncio.sleep(0.5)
        assert answer["status"] == "fresh"
        assert answer["lagSeconds"] < 10
        assert {entry["modelId"] for entry in answer["entries"]} <= set(made.models)

        assert worker.stop() == 0
        last: tuple[float, float, float] | None = None
        deadline = time.monotonic() + 120
        while answer["status"] != "delayed":
            assert time.monotonic() < deadline, answer
            asked = time.monotonic()
            answer = api.answer(f"/orgs/{org}/freshness")
            answered, lag_s = time.monotonic(), answer["lagSeconds"]
            assert answer["status"] == ("fresh" if lag_s < 10 else "stale" if lag_s < 14 else "delayed")
            if last is not None:  # the lag grows as time passes: no machine is too slow for that
                asked_before, answered_before, lag_before_s = last
                grown_s = lag_s - lag_before_s
                assert asked - answered_before - 0.01 <= grown_s <= answered - asked_before + 0.01
            last = asked, answered, lag_s
            await asyncio.sleep(1)
        assert last is not None
        status, problem = api.ask("/orgs/00000000-0000-4000-8000-000000000000/freshness")
        assert (status, problem["status"]) == (404, 404)


def test_bad_configuration_lists_every_fault_and_exits_2() -> None:
    env = {"FLUSH_INTERVAL": "soon", "DATABASE_URL": "mysql://x", "HTTP_PORT": "99999", "LOG_LEVEL": "loud"}
    for arguments in (["worker"], ["migrate"], ["config"]):
        done = processes.command(*arguments, env=env)
        assert done.returncode == 2, (arguments, done)
        for name in env:
            assert name in done.stderr, (arguments, name, done.stderr)
    missing_one = processes.command("worker", env={})
    assert missing_one.returncode == 2
    assert "DATABASE_URL" in missing_one.stderr
    assert "RABBITMQ_URL" in missing_one.stderr


async def test_a_database_and_a_broker_that_are_away_at_start_are_waited_for(
    setup: Setup, stack: Any, up: Any
) -> None:
    stack.postgres.stop()
    stack.rabbitmq.stop()
    worker = processes.worker(setup.env, setup.folder)
    try:
        worker.start(wait=False)
        processes.wait_for(lambda: worker.status() == 503, 180, worker.log)
        processes.wait_for(lambda: "database_not_ready" in worker.log(), 180, worker.log)
        up(stack.postgres)
        processes.wait_for(lambda: "stream_away" in worker.log(), 180, worker.log)

        def components() -> dict[str, str]:
            _, page = processes.get(worker.ready_url)
            return {name: component["status"] for name, component in page["components"].items()}

        here_and_away = {"database": "ok", "stream": "unavailable"}
        processes.wait_for(lambda: components() == here_and_away, 180, worker.log)
        assert worker.status() == 503
        up(stack.rabbitmq)
        worker.wait_ready()
        made = mix.make(300, seed=4, now_us=time.time_ns() // 1000)
        await setup.publish(made.bodies)
        streams.wait_committed(setup.database_url, 300, worker)
        assert worker.stop() == 0
    finally:
        up(stack.postgres)
        up(stack.rabbitmq)
        worker.__exit__()
    oracle = oracle_of(await setup.records(300))
    assert not books.difference(books.stored_in_database(setup.database_url), books.expected(oracle))
