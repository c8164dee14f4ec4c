"""Dead letters in operators' hands: shown, replayed once whatever crashes, purged; on real workers."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.core.rules import Rules
from tests.support import books, mix, processes, streams
from tests.support import oracle as naive
from tests.support.letters_world import HOUR_US, World

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def plain_world(embedded_postgres_url: str, tmp_path: Path) -> World:
    """The embedded log and PostgreSQL, without an archive."""
    env = streams.embedded_env(embedded_postgres_url, tmp_path) | {"RABBITMQ_STREAM": "letters"}
    return World(env, tmp_path)


@pytest.fixture(params=["embedded", "timescale"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The embedded log and PostgreSQL, or RabbitMQ and TimescaleDB; a folder as archive."""
    if request.param == "embedded":
        url = f"embedded://{tmp_path}/stream"
        database_url = request.getfixturevalue("embedded_postgres_url")
    else:
        url = request.getfixturevalue("rabbitmq").url
        database_url = request.getfixturevalue("timescale")
    env = {
        "DATABASE_URL": database_url,
        "RABBITMQ_URL": url,
        "RABBITMQ_STREAM": f"letters.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "100ms",
        "ARCHIVE_URL": f"file://{tmp_path}/archive",
        "ARCHIVE_INTERVAL": "300ms",
    }
    world = World(env, tmp_path)
    yield world
    world.worker.__exit__()


def late_batch(count: int, *, seed: int, ago_us: int, now_us: int) -> list[bytes]:
    return mix.make(count, seed=seed, now_us=now_us - ago_us, span_us=HOUR_US, late=0, bad=0).bodies


async def test_a_late_batch_is_replayed_once_and_the_books_and_the_archive_agree(world: World) -> None:
    now_us = time.time_ns() // 1000
    timely = mix.make(600, seed=71, now_us=now_us, span_us=HOUR_US).bodies
    late = late_batch(900, seed=72, ago_us=26 * HOUR_US, now_us=now_us)
    ancient = late_batch(300, seed=73, ago_us=90 * HOUR_US, now_us=now_us)
    with world.worker as worker:
        await world.publish(timely + late + ancient)
        world.wait_offered(1800)
        assert (
            world.ask("SELECT count(*) FROM analytics.dead_letters WHERE reason = 'too_late'")[0][0] == 1200
        )
        mark = world.ask("SELECT committed_offset, max_event_time FROM analytics.partitions")
        before = books.stored_in_database(world.env["DATABASE_URL"])

        dry = world.replay("--reason", "too_late", "--dry-run")
        assert books.stored_in_database(world.env["DATABASE_URL"]) == before
        done = world.replay("--reason", "too_late", "--limit", "1000")
        assert done["requested"] == sum(done["outcomes"].values()) == 1000
        rest = world.replay("--reason", "too_late")
        outcomes = Counter(done["outcomes"]) + Counter(rest["outcomes"])
        # Those of the first run were asked for again, but where the archive tells by now.
        outcomes["conflict"] = rest["outcomes"]["conflict"] + rest["left"].get("conflict", 0)
        assert outcomes == Counter(dry["outcomes"])
        assert set(outcomes) == {"accepted", "duplicate", "conflict"}
        again = world.replay("--reason", "too_late")
        assert set(again["outcomes"]) <= {"conflict"}

        oracle = await world.check()
        assert oracle.accepted == outcomes["accepted"] + before["counters"][1]
        assert world.ask("SELECT committed_offset, max_event_time FROM analytics.partitions") == mark
        counters = world.ask("SELECT offered, accepted + duplicate + rejected FROM analytics.partitions")
        assert counters[0][0] == counters[0][1] == 1800
        assert f"compared with {oracle.accepted} archived events" in world.reconcile()
        _, page = processes.get(worker.ready_url.replace("/readyz", "/metrics"))
        replayed = f'analytics_dead_letters_replayed_total{{outcome="accepted"}} {outcomes["accepted"]}.0'
        assert replayed in page

        # The rollups of those days as if the batch had come in time.
        in_time = naive.Oracle(books.oracle_rules(Rules()))
        in_time.feed_all((i, now_us - 90 * HOUR_US, body) for i, body in enumerate(ancient))
        in_time.feed_all((i, now_us - 26 * HOUR_US, body) for i, body in enumerate(late))
        for key, row in in_time.usage_hour.items():
            assert oracle.usage_hour[key].measures[:10] == row.measures[:10]

        # Only the archive, or the replays' own keys, can tell of these now.
        await world.publish(ancient)
        world.wait_offered(2100)
        assert "accepted" not in world.replay("--reason", "too_late")["outcomes"]
        assert "deleted" in world.run("purge", "--all", "--yes")
        assert world.ask("SELECT count(*) FROM analytics.dead_letters") == [(0,)]
        await world.publish(ancient[:150])
        world.wait_offered(2250)
        assert "accepted" not in world.replay("--reason", "too_late")["outcomes"]
        await world.check()
        world.reconcile()
        assert worker.stop() == 0


async def test_a_worker_killed_at_any_moment_of_a_replay_counts_each_letter_once(world: World) -> None:
    luck = random.Random(5)
    now_us = time.time_ns() // 1000
    timely = mix.make(200, seed=74, now_us=now_us, span_us=HOUR_US).bodies
    late = late_batch(6000, seed=75, ago_us=25 * HOUR_US, now_us=now_us)
    with world.worker as worker:
        await world.publish(timely + late)
        world.wait_offered(6200)
        worker.kill()
        wanted = world.replay("--reason", "too_late", "--no-wait")["requested"]
        assert wanted == 6000
        in_the_middle = 0
        for beyond in (-1, 0, 0, 2000, 4000):
            worker.start(wait=False)
            processes.wait_for(lambda n=beyond: world.settled() > n, 180, worker.log)
            await asyncio.sleep(luck.random() * (1.5 if beyond < 0 else 0.1))
            worker.kill()
            in_the_middle += 0 < world.settled() < wanted
        assert in_the_middle > 0
        worker.start()
        processes.wait_for(lambda: world.settled() == wanted, 180, worker.log)
        oracle = await world.check()
        assert world.ask("SELECT replays FROM analytics.partitions") == [(6000,)]
        more = world.replay("--reason", "too_late")
        assert set(more["outcomes"]) <= {"conflict"}
        assert f"compared with {oracle.accepted} archived events" in world.reconcile()
        assert worker.stop() == 0


async def test_without_ids_and_archive_a_letter_needs_the_operators_word(plain_world: World) -> None:
    world = plain_world
    now_us = time.time_ns() // 1000
    ancient = late_batch(50, seed=76, ago_us=90 * HOUR_US, now_us=now_us)
    with world.worker as worker:
        await world.publish([*ancient, *mix.make(20, seed=77, now_us=now_us, late=0, bad=0).bodies])
        world.wait_offered(70)
        refused = world.replay(code=1)
        assert refused["left"]["unknown"] == 50
        assert "there is no archive to ask" in refused["letters"][0]["why"]
        assert "--accept" in world.run("replay", "--limit", "1", code=1)
        shown = world.run("show", "0")
        assert "a replay would leave it, as unknown" in shown
        event = naive.decode(ancient[0])
        assert isinstance(event, naive.Event)
        org = str(event.org_id)
        mine = [body for body in ancient if org.encode() in body.lower()]
        accepted = world.replay("--accept", "--org", org)
        assert accepted["requested"] == len(mine)
        assert accepted["outcomes"]["accepted"] > 0
        await world.check()
        assert worker.stop() == 0
    world.do("UPDATE analytics.partitions SET updated_at = now() - interval '1 hour'")
    waiting = world.run("replay", "--accept", "--timeout", "1s", code=1)
    assert "letters still wait, and are replayed once their worker can" in waiting
    assert "no worker owns partition 0 (letters): nothing committed for 36" in waiting
    assert "asked for before, and still waiting" in world.run("replay", "--accept")
    with world.worker as worker:  # they were asked for, and are counted by whoever comes
        processes.wait_for(
            lambda: not world.ask("SELECT 1 FROM analytics.replays WHERE settled_at IS NULL"), 180, worker.log
        )
        await world.check()
        assert worker.stop() == 0


async def test_an_event_that_the_archive_has_is_not_counted_again(world: World) -> None:
    now_us = time.time_ns() // 1000
    counted = mix.make(400, seed=78, now_us=now_us, span_us=HOUR_US, late=0, bad=0).bodies
    with world.worker as worker:
        await world.publish(counted)
        world.wait_offered(400)
        processes.wait_for(lambda: not world.ask("SELECT 1 FROM analytics.archive_outbox"), 180, worker.log)
        accepted = world.ask("SELECT accepted FROM analytics.partitions")
        assert worker.stop() == 0
    # Four days pass for the partition: its ids are dropped, and the same events are too late now.
    world.do("UPDATE analytics.partitions SET broker_time = broker_time + interval '4 days'")
    world.do("DELETE FROM analytics.dedupe_ids")
    changed = json.loads(
        next(body for body in counted if b'"eventId"' in body and b"specversion" not in body)
    )
    another_hour = datetime.fromisoformat(changed["occurredAt"].upper()) - timedelta(hours=2)
    moved = {**changed, "occurredAt": another_hour.isoformat()}
    changed["inputTokens"] = 12345
    for offset, body in enumerate((*counted, *(json.dumps(one).encode() for one in (changed, moved)))):
        with psycopg.connect(world.env["DATABASE_URL"]) as connection:
            connection.execute(
                "INSERT INTO analytics.dead_letters SELECT partition, %s, 0, stream, 'too_late', '[]', %s,"
                " now(), now() FROM analytics.partitions",
                (1000 + offset, body),
            )
    world.do("UPDATE analytics.partitions SET offered = offered + 402, rejected = rejected + 402")
    dry = world.replay("--dry-run", "--reason", "too_late")
    assert dry["left"].get("conflict", 0) >= 2
    assert set(dry["outcomes"]) == {"duplicate"}
    assert dry["outcomes"]["duplicate"] == dry["requested"] == 402 - dry["left"]["conflict"]
    world.move_archive("archive", "elsewhere")
    damaged = world.replay("--dry-run", "--reason", "too_late", code=1)
    assert (damaged["requested"], damaged["left"]) == (0, {"unknown": 402})
    assert "the archive cannot tell" in damaged["letters"][0]["why"]
    world.move_archive("elsewhere", "archive")
    rows = world.ask("SELECT invocations FROM analytics.usage_day ORDER BY org_id, model_id")
    world.replay("--reason", "too_late", "--no-wait")
    with world.worker as worker:
        processes.wait_for(
            lambda: not world.ask("SELECT 1 FROM analytics.replays WHERE settled_at IS NULL"), 180, worker.log
        )
        assert worker.stop() == 0
    assert world.ask("SELECT accepted FROM analytics.partitions") == accepted
    assert world.ask("SELECT invocations FROM analytics.usage_day ORDER BY org_id, model_id") == rows
    assert {row[0] for row in world.ask("SELECT outcome FROM analytics.replays")} == {"duplicate"}
    world.reconcile()


async def test_bytes_that_a_flood_left_out_are_read_back_from_the_stream(world: World) -> None:
    world.worker = processes.worker(
        world.env | {"DEAD_LETTER_BODIES_MAX": "5", "FLUSH_INTERVAL": "1s"}, Path(world.worker._log).parent
    )
    now_us = time.time_ns() // 1000
    late = late_batch(300, seed=79, ago_us=26 * HOUR_US, now_us=now_us)
    timely = mix.make(300, seed=80, now_us=now_us, span_us=HOUR_US, late=0, bad=0).bodies
    mixed = [body for pair in zip(late, timely, strict=True) for body in pair]
    with world.worker as worker:
        await world.publish(mixed)
        world.wait_offered(600)
        [(left_out,)] = world.ask("SELECT count(*) FROM analytics.dead_letters WHERE body IS NULL")
        assert left_out > 100
        [(offset,)] = world.ask('SELECT max("offset") FROM analytics.dead_letters WHERE body IS NULL')
        shown = json.loads(world.run("show", str(offset), "--json"))
        assert shown["body"] is not None
        assert shown["wouldBe"] in ("accepted", "duplicate", "conflict")
        done = world.replay("--reason", "too_late")
        assert done["outcomes"]["accepted"] > 100
        await world.check()
        assert world.ask("SELECT count(*) FROM analytics.replays WHERE body IS NOT NULL") == [(0,)]
        assert worker.stop() == 0
    world.do(
        'INSERT INTO analytics.dead_letters (partition, "offset", position, stream, reason, faults,'
        " rejected_at) SELECT partition, 99999, 0, stream, 'too_late', '[]', now() FROM analytics.partitions"
    )
    gone = world.replay("--offset", "99999")
    assert gone["left"] == {"gone": 1}
    assert "cannot be read back" in world.run("replay", "--offset", "99999")
    assert "the stream has them no more" in world.run("show", "99999")


async def test_letters_are_shown_listed_and_purged(plain_world: World) -> None:
    world = plain_world
    now_us = time.time_ns() // 1000
    late = late_batch(3, seed=81, ago_us=25 * HOUR_US, now_us=now_us)
    with world.worker as worker:
        await world.publish([b"{\x1b[2J", b'{"eventId":"x"}', *late])
        world.wait_offered(5)
        shown = world.run("show", "1")
        assert "reason:      invalid" in shown
        assert "expected a UUID" in shown
        assert '"eventId": "x"' in shown
        assert "a replay would leave it, as invalid" in shown
        assert "\\x1b" in world.run("show", "0")
        assert "a replay would make it accepted" in world.run("show", "2")
        assert "no dead letter at offset 7" in world.run("show", "7", code=1)
        mixed = world.replay()
        assert mixed["left"] == {"malformed": 1, "invalid": 1}
        assert sum(mixed["outcomes"].values()) == 3
        assert "nothing is left to do" in world.run("show", "2")
        assert "[replay: accepted]" in world.run("list", "--reason", "too_late")
        assert "say which" in world.run("purge", code=2)
        done = processes.command("dead-letters", "purge", "--all", env=world.env)  # nobody says yes
        assert done.returncode == 1
        assert world.ask("SELECT count(*) FROM analytics.dead_letters") == [(5,)]
        assert world.run("purge", "--replayed", "--yes") == "deleted 3 dead letters\n"
        assert world.run("purge", "--reason", "invalid", "--before", "2100-01-01", "--yes") == (
            "deleted 1 dead letters\n"
        )
        assert world.run("replay", "--reason", "too_late") == "no letter to replay\n"
        actions = world.ask("SELECT action FROM analytics.audit_log ORDER BY id")
        assert actions == [("dead_letters.replay",), ("dead_letters.purge",), ("dead_letters.purge",)]
        assert worker.stop() == 0


async def test_letters_of_all_partitions_of_a_super_stream_are_replayed_by_their_workers(
    rabbitmq: Any, timescale: str, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": timescale,
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_STREAM": f"letters.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "500ms",
        "DEAD_LETTER_BODIES_MAX": "10",
    }
    world = World(env, tmp_path)
    made = processes.command("stream", "create", "--partitions", "3", env=env)
    assert made.returncode == 0, made
    now_us = time.time_ns() // 1000
    late = late_batch(600, seed=82, ago_us=26 * HOUR_US, now_us=now_us)
    with world.worker as first, processes.worker(env, tmp_path) as second:
        await world.publish([*late, *mix.make(300, seed=83, now_us=now_us, span_us=HOUR_US, late=0).bodies])
        world.wait_offered(900)
        assert world.ask("SELECT count(*) > 100 FROM analytics.dead_letters WHERE body IS NULL") == [(True,)]
        one = world.replay("--reason", "too_late", "--partition", "1")
        assert world.ask("SELECT DISTINCT partition FROM analytics.replays") == [(1,)]
        rest = world.replay("--reason", "too_late")
        outcomes = Counter(one["outcomes"]) + Counter(rest["outcomes"])
        assert outcomes["accepted"] > 500
        assert world.ask("SELECT DISTINCT partition FROM analytics.replays ORDER BY 1") == [(0,), (1,), (2,)]
        await world.check()
        assert first.stop() == 0
        assert second.stop() == 0


async def test_a_dry_run_foresees_what_a_day_has_no_room_for(plain_world: World) -> None:
    """92,233 events of the highest cost fill the day of an org; the next three have no room, now or later."""
    org, model = uuid.uuid4(), uuid.uuid4()
    bodies = [
        json.dumps(
            {
                "eventId": str(uuid.UUID(int=i)),
                "orgId": str(org),
                "modelId": str(model),
                "occurredAt": datetime.now(UTC).isoformat(),
                "latencyMs": 1,
                "status": "success",
                "inputTokens": 1,
                "outputTokens": 1,
                "costEstimateCents": 100_000_000,
            }
        ).encode()
        for i in range(92_236)
    ]
    with plain_world.worker:
        await plain_world.publish(bodies)
        plain_world.wait_offered(len(bodies))
        assert plain_world.ask("SELECT count(*) FROM analytics.dead_letters") == [(3,)]
        dry = plain_world.replay("--dry-run")
        assert (dry["requested"], dry["outcomes"]) == (3, {"invalid": 3})
        done = plain_world.replay()
        assert done["outcomes"] == dry["outcomes"]
        plain_world.do("UPDATE analytics.usage_day SET cost_microcents = cost_microcents - 2 * 10^14")
        assert plain_world.replay("--dry-run")["outcomes"] == {"accepted": 2, "invalid": 1}


def test_arguments_that_no_letter_can_have_are_refused_as_usage(plain_world: World) -> None:
    for arguments in (("replay", "--stream", "\udcff"), ("list", "--offset", str(10**22))):
        assert "Error: " in plain_world.run(*arguments, code=2)
