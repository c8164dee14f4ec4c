"""The promises of a sink, tested with the fake in memory and with the real sink on each edition at hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
import pytest

from pipeline.core.batch import Batch
from pipeline.core.dimensions import Dimension
from pipeline.core.ledger import Ledger
from pipeline.core.replay import Letter
from pipeline.core.rules import Rules
from pipeline.sink import Contested, Fenced, SchemaMissing, Sink, SinkUnavailable, flush, recovery
from pipeline.sink.timescale import TimescaleSink
from pipeline.worker.owned import recover
from sql.schema import HEAD
from tests.support import books, migrated, mix, replays
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink
from tests.support.replays import ReplayingOracle

IntArray = npt.NDArray[Any]
HOUR_US = 3_600_000_000
NOW_US = 1_790_000_000_000_000
RULES = Rules(
    clients_per_org_hour_max=3,
    models_per_org_hour_max=3,
    dimensions=mix.DIMENSIONS,
    split_hours=tuple(range(0, 24, 2)),
    values_per_org_hour_max=3,
)


class Held:
    """A kind of sink, with functions to open it (again) and to read all that it has committed."""

    def __init__(
        self,
        open_: Callable[[], Sink],
        stored: Callable[[], dict[str, Any]],
        request: Callable[[Sequence[Letter]], None],
        dimensions: Callable[[], dict[str, tuple[str, int]]],
    ) -> None:
        self.open = open_
        self.stored = stored
        self.request = request
        """Asks for the backfill of letters."""
        self.dimensions = dimensions
        """By name: the source, and the first hour in which the dimension is complete."""


@pytest.fixture(params=["memory", "postgresql", "timescaledb"])
def held(request: pytest.FixtureRequest) -> Held:
    if request.param == "memory":
        sink = MemorySink()
        return Held(
            lambda: sink,
            lambda: books.stored(sink),
            lambda letters: replays.request(sink, letters),
            lambda: sink.state.dimensions,
        )
    url = request.getfixturevalue("embedded_postgres_url" if request.param == "postgresql" else "timescale")
    migrated.upgrade(url)
    return Held(
        lambda: TimescaleSink(url),
        lambda: books.stored_in_database(url),
        lambda letters: replays.request_in_database(url, letters),
        lambda: _dimensions_in_database(url),
    )


def _dimensions_in_database(database_url: str) -> dict[str, tuple[str, int]]:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT name, source, (EXTRACT(EPOCH FROM since) / 3600)::bigint FROM analytics.dimensions"
        ).fetchall()
    return {name: (source, since) for name, source, since in rows}


def ingest(ledger: Ledger, bodies: list[bytes], *, upto: int, broker_us: int = NOW_US) -> None:
    first = ledger.received_offset
    for chunk in books.chunks_of(bodies[first:upto], size=250, broker_us=broker_us, first_offset=first):
        ledger.ingest(**chunk)


def expected(bodies: list[bytes], *, broker_us: int = NOW_US) -> dict[str, Any]:
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, broker_us, body) for i, body in enumerate(bodies))
    return books.expected(oracle)


async def test_many_flushes_and_restarts_leave_exactly_what_the_oracle_counts(held: Held) -> None:
    bodies = mix.make(4000, seed=5, now_us=NOW_US, late=0.1, bad=0.05).bodies
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    for upto in range(500, len(bodies) + 500, 500):
        ingest(ledger, bodies, upto=upto)
        await books.flush(sink, claim, ledger)
        if upto % 1500 == 0:
            await sink.close()
            sink = held.open()
            claim, ledger = await books.recover(sink, RULES)
    await sink.close()
    assert not books.difference(held.stored(), expected(bodies))


async def test_a_dimension_is_complete_from_the_first_hour_after_the_events_that_it_missed(
    held: Held,
) -> None:
    team, user = Dimension("team", "metadata.team"), Dimension("user", "actorId")
    other_team = Dimension("team", "metadata.squad")
    bodies = mix.make(600, seed=23, now_us=NOW_US, bad=0).bodies
    next_hour = (NOW_US + 300_000_000) // naive.HOUR_US + 1
    sink = held.open()

    async def count(upto: int, *dimensions: Dimension) -> dict[str, tuple[str, int]]:
        claim, ledger = await books.recover(sink, replace(RULES, dimensions=dimensions))
        ingest(ledger, bodies, upto=upto)
        await books.flush(sink, claim, ledger)
        return held.dimensions()

    assert await count(100, team) == {"team": ("metadata.team", 0)}
    assert await count(200, user, team) == {"team": ("metadata.team", 0), "user": ("actorId", next_hour)}
    assert await count(300, user, other_team) == {
        "team": ("metadata.squad", next_hour),
        "user": ("actorId", next_hour),
    }
    assert await count(400) == {}
    assert await count(500, user) == {"user": ("actorId", next_hour)}
    await sink.close()
    since = {name: since for name, (_, since) in held.dimensions().items()}
    assert not books.uneven_sums(held.stored(), since)
    assert books.uneven_sums(held.stored(), {"user": 0})


async def test_a_split_hour_is_complete_from_the_first_hour_after_the_events_that_it_missed(
    migrated_url: str,
) -> None:
    bodies = mix.make(500, seed=25, now_us=NOW_US, bad=0).bodies
    next_hour = (NOW_US + 300_000_000) // naive.HOUR_US + 1
    memory = MemorySink()
    sinks: tuple[Sink, ...] = (memory, TimescaleSink(migrated_url))

    async def count(sink: Sink, upto: int, *hours: int) -> None:
        claim, ledger = await books.recover(sink, replace(RULES, split_hours=hours))
        ingest(ledger, bodies, upto=upto)
        await books.flush(sink, claim, ledger)

    def known() -> dict[int, int]:
        with psycopg.connect(migrated_url) as connection:
            found = connection.execute(
                "SELECT hour, (EXTRACT(EPOCH FROM since) / 3600)::bigint FROM analytics.split_hours"
            ).fetchall()
        assert dict(found) == memory.state.split_hours
        return dict(found)

    for upto, hours, wanted in (
        (100, (18,), {18: 0}),
        (200, (13, 18), {13: next_hour, 18: 0}),
        (300, (13,), {13: next_hour}),
        (400, (), {}),
        (500, (18,), {18: next_hour}),
    ):
        for sink in sinks:
            await count(sink, upto, *hours)
        assert known() == wanted
    assert not books.difference(books.stored_in_database(migrated_url), books.stored(memory))
    await sinks[1].close()


async def test_a_dimension_begins_anew_after_a_worker_that_knew_of_none(migrated_url: str) -> None:
    rules = replace(RULES, dimensions=(Dimension("team", "metadata.team"),))
    bodies = mix.make(400, seed=24, now_us=NOW_US).bodies
    sink = TimescaleSink(migrated_url)

    async def count(upto: int, rules: Rules) -> int:
        claim, ledger = await books.recover(sink, rules)
        ingest(ledger, bodies, upto=upto)
        await books.flush(sink, claim, ledger)
        return _dimensions_in_database(migrated_url)["team"][1]

    assert await count(100, rules) == await count(200, rules) == 0
    with psycopg.connect(migrated_url) as connection:  # as version 0.2.0 leaves it after a flush
        connection.execute("UPDATE analytics.partitions SET accepted = accepted + 1, offered = offered + 1")
    assert await count(300, rules) == (NOW_US + 300_000_000) // naive.HOUR_US + 1
    await sink.close()


async def test_a_rate_class_keeps_its_number_and_new_boundaries_get_new_ones(held: Held) -> None:
    sink = held.open()
    batch, tokens = np.array([1, 1, 1]), np.array([199_999, 200_000, 200_001])

    async def numbers(*boundaries: int) -> list[int]:
        return await _classes(sink, books.STREAM, boundaries, batch, tokens)

    assert await numbers(200_000) == [4, 5, 6]
    assert await numbers(200_000) == [4, 5, 6]
    assert await numbers() == [16, 16, 16]
    # 0 to 99,999 and 100,000 alone are new, of each tier; from 100,001 to 199,999, too.
    assert await numbers(100_000, 200_000) == [25, 5, 6]
    # Two workers that start at once agree.
    others = [held.open(), held.open()]
    first, second = await asyncio.gather(
        *(_classes(other, f"s-{i}", (7,), batch, tokens) for i, other in enumerate(others))
    )
    assert first == second
    for opened in (sink, *others):
        await opened.close()


async def _classes(
    sink: Sink, stream: str, boundaries: Sequence[int], tiers: IntArray, tokens: IntArray
) -> list[int]:
    """The numbers of classes that a claim gives."""
    claim, _ = await sink.claim(stream, context_tiers=boundaries)
    assert claim.rate_classes is not None
    return [int(number) for number in claim.rate_classes.of(tiers, tokens)]


async def test_what_a_new_owner_takes_for_stored_is_stored_by_the_transaction_of_its_claim(
    migrated_url: str,
) -> None:
    """Else a failover could lose the rate classes and keep the claim, and rows would have unknown classes."""
    sink = TimescaleSink(migrated_url)
    rules = replace(RULES, context_tiers=(7,))
    owned = await recover(
        sink,
        books.STREAM,
        rules=rules,
        keep_accepted=False,
        new_log=None,
        redis_url=None,
        steady_us=0,
        merge_ids_at_us=0,
    )
    await sink.close()
    tables = "partitions", "dimensions", "split_hours", "rate_classes WHERE input_from = 8"
    with psycopg.connect(migrated_url) as connection:
        by = {
            table: connection.execute(
                f"SELECT DISTINCT xmin::text FROM analytics.{table}".encode()
            ).fetchall()
            for table in tables
        }
    assert owned.claim.epoch == 1
    assert len(by["partitions"]) == 1
    assert by == dict.fromkeys(tables, by["partitions"])


async def test_what_was_not_flushed_is_gone_and_counts_when_read_again(held: Held) -> None:
    bodies = mix.make(1000, seed=6, now_us=NOW_US).bodies
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    ingest(ledger, bodies, upto=500)
    await books.flush(sink, claim, ledger)
    ingest(ledger, bodies, upto=800)
    claim, ledger = await books.recover(sink, RULES)
    assert ledger.received_offset == 500
    ingest(ledger, bodies, upto=1000)
    await books.flush(sink, claim, ledger)
    await sink.close()
    assert not books.difference(held.stored(), expected(bodies))


async def test_flushing_the_same_batch_again_changes_nothing(held: Held) -> None:
    bodies = mix.make(600, seed=7, now_us=NOW_US).bodies
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    ingest(ledger, bodies, upto=600)
    assert not ledger.missing()
    batch = ledger.drain(now_us=NOW_US, caught_up=True)
    await sink.flush(claim, batch)
    await sink.flush(claim, batch)  # the answer to the first COMMIT was lost
    await sink.close()
    assert not books.difference(held.stored(), expected(bodies))


async def test_a_worker_that_lost_the_partition_writes_nothing(held: Held) -> None:
    bodies = mix.make(600, seed=8, now_us=NOW_US).bodies
    zombie, owner = held.open(), held.open()
    old_claim, old = await books.recover(zombie, RULES)
    ingest(old, bodies, upto=400)
    batch = old.drain(now_us=NOW_US, caught_up=False)
    claim, ledger = await books.recover(owner, RULES)
    assert claim.epoch > old_claim.epoch
    with pytest.raises(Fenced):
        await zombie.flush(old_claim, batch)
    ingest(ledger, bodies, upto=600)
    await books.flush(owner, claim, ledger)
    with pytest.raises(Fenced):
        await zombie.flush(old_claim, batch)
    await zombie.close()
    await owner.close()
    assert not books.difference(held.stored(), expected(bodies))


async def test_a_letter_is_replayed_once_though_the_flush_is_repeated_or_lost(held: Held) -> None:
    made = mix.make(300, seed=13, now_us=NOW_US - 30 * HOUR_US, span_us=HOUR_US, late=0, bad=0.05).bodies
    now = mix.make(100, seed=14, now_us=NOW_US, span_us=HOUR_US, late=0, bad=0).bodies
    oracle = ReplayingOracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate((*made, *now)))
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    ingest(ledger, made + now, upto=400)
    ledger.fold()
    assert not ledger.missing()
    batch = ledger.drain(now_us=0, caught_up=False)
    letters = [
        Letter(offset=d.offset, position=0, broker_us=NOW_US, evidence="none", reason=d.reason, body=d.body)
        for d in batch.dead_letters
    ]
    assert not await sink.flush(claim, batch)
    held.request(letters)
    assert await sink.flush(claim, ledger.drain(now_us=0, caught_up=False))

    async def replay() -> Batch:
        opened = ledger.open(await sink.waiting_letters(claim, most=100))
        ledger.replay(opened, await sink.counted(claim, opened))
        blocks = ledger.missing()
        ledger.adopt(await sink.load(claim, blocks), blocks)
        return ledger.drain(now_us=0, caught_up=False)

    await replay()  # and the worker dies before its flush
    while await sink.waiting_letters(claim, most=1):
        claim, ledger = await books.recover(sink, RULES)
        batch = await replay()
        assert batch.from_offset == batch.position.next_offset
        await sink.flush(claim, batch)
        await sink.flush(claim, batch)  # the answer to the first COMMIT was lost
        for one in batch.settled:
            letter = next(letter for letter in letters if letter.offset == one.offset)
            assert one.outcome == oracle.replay(letter), one
    assert ledger.position.replays == len(letters) > 200
    await sink.close()
    assert oracle.accepted > 300
    assert not books.difference(held.stored(), books.expected(oracle))


async def test_position_and_watermark_come_back_after_a_restart(held: Held) -> None:
    bodies = mix.make(300, seed=9, now_us=NOW_US).bodies
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    assert ledger.position.watermark_us is None
    ingest(ledger, bodies, upto=300)
    batch = ledger.drain(now_us=NOW_US + 5_000_000, caught_up=True)
    await sink.flush(claim, batch)
    _, position = await sink.claim(books.STREAM)
    await sink.close()
    assert position == batch.position
    assert position.watermark_us == NOW_US + 5_000_000 - RULES.allowed_lateness_us
    assert position.counted_us == NOW_US + 5_000_000


async def test_a_claim_does_not_make_what_was_caught_up_current_again(held: Held) -> None:
    """A partition that stood still for an hour was counted an hour ago, whatever its new owner hopes."""
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    ingest(ledger, mix.make(100, seed=9, now_us=NOW_US).bodies, upto=100)
    await sink.flush(claim, ledger.drain(now_us=NOW_US + 5_000_000, caught_up=True))
    claim, ledger = await books.recover(sink, RULES)
    assert ledger.position.counted_us == NOW_US + 5_000_000
    await sink.flush(claim, ledger.drain(now_us=NOW_US + 3_600_000_000, caught_up=False))
    _, position = await sink.claim(books.STREAM)
    await sink.close()
    assert position.counted_us == NOW_US + 5_000_000


async def test_a_partitions_models_come_with_their_last_event(held: Held) -> None:
    bodies = mix.make(300, seed=14, now_us=NOW_US).bodies
    sink = held.open()
    await sink.check_schema()
    claim, ledger = await books.recover(sink, RULES)
    ingest(ledger, bodies, upto=300)
    await books.flush(sink, claim, ledger)
    found = await sink.org_models(claim)
    await sink.close()
    assert {(org, model): last_us for org, model, last_us, _ in found} == {
        key: last_us for key, (_, last_us) in expected(bodies)["models_seen"].items()
    }


async def test_merged_ids_still_tell_every_duplicate(held: Held) -> None:
    made = mix.make(1200, seed=12, now_us=NOW_US, span_us=60_000_000, late=0, bad=0)
    bodies = made.bodies
    sink = held.open()
    claim, ledger = await books.recover(sink, RULES)
    for upto in range(60, 1200 + 60, 60):
        ingest(ledger, bodies, upto=upto)
        await books.flush(sink, claim, ledger)
    before = [pair async for pair in sink.live_ids(claim, from_hour=0)]
    later_hour = NOW_US // 3_600_000_000 + 1
    assert await sink.merge_ids(claim, before_hour=0) == 0
    merged = 0
    while more := await sink.merge_ids(claim, before_hour=later_hour):
        merged += more
    after = [pair async for pair in sink.live_ids(claim, from_hour=0)]
    assert merged >= 16
    assert len(after) < len(before) - 14

    _, again = await books.recover(sink, RULES)
    with pytest.raises(Fenced):
        await sink.merge_ids(claim, before_hour=later_hour)
    assert again.remembered_ids == ledger.remembered_ids
    accepted = again.position.accepted
    again.ingest(first_offset=1200, next_offset=2400, timestamp_us=NOW_US, bodies=bodies)
    again.fold()
    assert again.position.accepted == accepted
    refused_again = sum(kind == "reused" for kind in made.kinds)
    assert refused_again > 0
    assert again.tally.rejected["conflict"] == ledger.tally.rejected["conflict"] == refused_again
    await sink.close()


async def test_streams_get_numbers_of_their_own(migrated_url: str) -> None:
    sinks = [TimescaleSink(migrated_url) for _ in range(4)]
    claims = await asyncio.gather(*(sink.claim(f"s-{i % 3}") for i, sink in enumerate(sinks)))
    await asyncio.gather(*(sink.close() for sink in sinks))
    numbers = {claim.stream: claim.partition for claim, _ in claims}
    assert sorted(numbers.values()) == [0, 1, 2]
    assert sorted(claim.epoch for claim, _ in claims if claim.stream == "s-0") == [1, 2]


async def test_a_database_that_is_away_says_so(embedded_postgres_url: str) -> None:
    sink = TimescaleSink("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(SinkUnavailable):
        await sink.claim("s")
    empty = TimescaleSink(embedded_postgres_url)
    with pytest.raises(SchemaMissing, match="spendstream migrate"):
        await empty.claim("s")
    await empty.close()


async def test_a_schema_that_is_older_is_refused_and_a_newer_one_is_not(embedded_postgres_url: str) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    sink = TimescaleSink(url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute("UPDATE analytics.alembic_version SET version_num = '0010'")
        with pytest.raises(SchemaMissing, match=f"`spendstream migrate`.* revision 0010, .* needs {HEAD}"):
            await sink.check_schema()
        await other.execute("UPDATE analytics.alembic_version SET version_num = '9999'")
        await sink.check_schema()
        await other.execute("DELETE FROM analytics.alembic_version")
        with pytest.raises(SchemaMissing, match="revision None"):
            await sink.check_schema()
    await sink.close()


async def test_a_flush_behind_a_lock_fails_in_time_and_succeeds_later(migrated_url: str) -> None:
    sink = TimescaleSink(migrated_url, timeout_s=2)
    claim, ledger = await books.recover(sink, RULES)
    bodies = mix.make(200, seed=10, now_us=NOW_US).bodies
    ingest(ledger, bodies, upto=200)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    async with await psycopg.AsyncConnection.connect(migrated_url) as other:
        await other.execute("LOCK TABLE analytics.usage_hour IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SinkUnavailable):
            await sink.flush(claim, batch)
    await sink.flush(claim, batch)
    await sink.close()
    assert not books.difference(books.stored_in_database(migrated_url), expected(bodies))


async def test_a_batch_that_the_database_works_on_is_not_cut_off_by_the_same_deadline_again(
    migrated_url: str,
) -> None:
    sink = TimescaleSink(migrated_url, timeout_s=2)
    claim, ledger = await books.recover(sink, RULES)
    bodies = mix.make(200, seed=10, now_us=NOW_US).bodies
    ingest(ledger, bodies, upto=200)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    async with await psycopg.AsyncConnection.connect(migrated_url, autocommit=True) as other:
        await other.execute(
            "CREATE FUNCTION analytics.slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_sleep(3); RETURN NULL; END$$"
        )
        await other.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON analytics.usage_hour"
            " FOR EACH STATEMENT EXECUTE FUNCTION analytics.slow()"
        )
    failures = 0
    while failures < 6:
        try:
            await sink.flush(claim, batch)
        except SinkUnavailable:
            failures += 1
        else:
            break
    await sink.close()
    assert 0 < failures < 6
    assert not books.difference(books.stored_in_database(migrated_url), expected(bodies))


async def test_a_flush_of_another_group_that_takes_long_is_not_taken_for_silence(
    embedded_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    first = TimescaleSink(url, consumer="first")
    claim, ledger = await books.recover(first, RULES)
    ingest(ledger, mix.make(50, seed=12, now_us=NOW_US).bodies, upto=50)
    monkeypatch.setattr(recovery, "GROUP_QUIET_S", 1)
    monkeypatch.setattr(flush, "LONG_FLUSH_S", 1.0)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute(
            "CREATE FUNCTION analytics.slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END$$"
        )
        await other.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON analytics.usage_hour"
            " FOR EACH STATEMENT EXECUTE FUNCTION analytics.slow()"
        )

        async def value(query: str) -> Any:
            row = await (await other.execute(query)).fetchone()
            assert row is not None
            return row[0]

        await other.execute("SELECT pg_advisory_lock(1)")  # holds the flush back
        flushing = asyncio.create_task(first.flush(claim, ledger.drain(now_us=NOW_US, caught_up=False)))
        second = TimescaleSink(url, consumer="second")
        async with asyncio.timeout(120):
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not await value(held):  # noqa: ASYNC110 - the server tells
                await asyncio.sleep(0.01)
            looks_quiet = "SELECT clock_timestamp() > updated_at + interval '2 s' FROM analytics.partitions"
            while not await value(looks_quiet):  # noqa: ASYNC110 - if it were not locked
                await asyncio.sleep(0.1)
        for _ in range(3):
            with pytest.raises(Contested, match="'first' and 'second'"):
                await second.claim(books.STREAM)
        assert not flushing.done()
        released_at = await value("SELECT clock_timestamp()")
        await other.execute("SELECT pg_advisory_unlock(1)")
        await flushing
        ended_at = await value("SELECT updated_at FROM analytics.partitions")
        assert ended_at >= released_at, "the flush began seconds before"
    await first.close()
    await second.close()


async def test_a_day_that_comes_near_the_highest_sum_is_known_after_a_restart(held: Held) -> None:
    rules = replace(RULES, sum_max=4000)
    day_us = 24 * HOUR_US
    now_us = NOW_US // day_us * day_us + 12 * HOUR_US

    def body(number: int, at_us: int, tokens: int) -> bytes:
        at = naive.EPOCH + timedelta(microseconds=at_us)
        made: dict[str, object] = {
            "eventId": str(UUID(int=number)),
            "orgId": str(UUID(int=1)),
            "modelId": str(UUID(int=2 + number % 2)),
            "occurredAt": at.isoformat(),
            "latencyMs": 1,
            "status": "success",
            "inputTokens": tokens,
            "outputTokens": 1,
        }
        return json.dumps({**made, "costEstimateCents": 0}).encode()

    yesterday_us = now_us - 13 * HOUR_US
    sink = held.open()
    bodies = [body(1, yesterday_us, 1500), body(2, yesterday_us, 1500), body(3, now_us, 1)]
    bodies += [body(4, yesterday_us, 1001), body(5, yesterday_us, 1000)]
    oracle = naive.Oracle(books.oracle_rules(rules))
    for offset, one in enumerate(bodies):
        oracle.feed(offset, now_us, one)
    for offset, one in enumerate(bodies):
        claim, ledger = await books.recover(sink, rules)
        ledger.ingest(first_offset=offset, next_offset=offset + 1, timestamp_us=now_us, bodies=[one])
        await books.flush(sink, claim, ledger, now_us=now_us)
    found = await sink.high_days(claim, from_day=ledger.high_days_from(), sum_least=4000)
    assert [(day.org, day.bucket) for day in found] == [((0, 1), yesterday_us // day_us)]
    await sink.close()
    assert [letter.offset for letter in oracle.dead_letters] == [3]
    assert not books.difference(held.stored(), books.expected(oracle))
