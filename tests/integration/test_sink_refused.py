"""What a database refuses though it is there: the sink says "not now", and the same batch goes in later."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from pipeline.core.rules import Rules
from pipeline.sink import Fenced, SinkUnavailable, flush
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, mix
from tests.support import oracle as naive

NOW_US = 1_790_000_000_000_000
RULES = Rules()
BODIES = mix.make(200, seed=31, now_us=NOW_US).bodies


@pytest.fixture
def url(migrated_url: str) -> str:
    return migrated_url


def expected() -> dict[str, object]:
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(BODIES))
    return books.expected(oracle)


async def test_a_read_only_server_is_waited_for(url: str) -> None:
    """25006: a primary that a failover demoted says it, until the address leads to the new one."""
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    for chunk in books.chunks_of(BODIES, size=50, broker_us=NOW_US):
        ledger.ingest(**chunk)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    read_only = "SET default_transaction_read_only = on"
    await (await sink.database.connection()).execute(read_only)
    with pytest.raises(SinkUnavailable, match="read-only"):
        await sink.flush(claim, batch)
    await (await sink.database.connection()).execute(read_only)
    with pytest.raises(SinkUnavailable, match="read-only"):
        await sink.claim("another")
    await sink.flush(claim, batch)  # on a connection of its own: the refused one was let go
    await sink.close()
    assert not books.difference(books.stored_in_database(url), expected())


async def test_a_number_that_a_failover_gave_to_another_stream_is_not_written_to(url: str) -> None:
    """The standby that took over had not heard of the claim yet; another stream got its number."""
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    for chunk in books.chunks_of(BODIES, size=50, broker_us=NOW_US):
        ledger.ingest(**chunk)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    async with await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("UPDATE analytics.partitions SET stream = 'another'")
    with pytest.raises(Fenced):
        await sink.flush(claim, batch)
    with pytest.raises(Fenced):
        await sink.merge_ids(claim, before_hour=0)
    assert not await sink.holds(claim, offset=0)
    await sink.close()
    assert books.stored_in_database(url)["counters"] == (0, 0, 0, 0)


async def test_a_worker_that_freezes_in_a_flush_does_not_keep_the_next_owner_waiting(url: str) -> None:
    frozen, successor = TimescaleSink(url, silent_s=2), TimescaleSink(url)
    claim, ledger = await books.recover(frozen, RULES)
    for chunk in books.chunks_of(BODIES, size=50, broker_us=NOW_US):
        ledger.ingest(**chunk)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    stopped = await frozen.database.connection()  # in its transaction, right after the compare-and-set
    await stopped.execute("BEGIN")
    assert await flush.advance(stopped, claim, batch) is not None
    async with asyncio.timeout(60):
        next_claim, position = await successor.claim(books.STREAM)
    assert (next_claim.epoch, position.next_offset) == (claim.epoch + 1, 0)
    with pytest.raises(SinkUnavailable):
        await frozen.flush(claim, batch)  # it wakes up on a connection that the server has ended
    with pytest.raises(Fenced):
        await frozen.flush(claim, batch)
    await frozen.close()
    await successor.close()


async def test_a_serialization_failure_is_tried_again(url: str) -> None:
    """40001, where an operator made snapshots stricter than the sink asks for."""
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, RULES)
    for chunk in books.chunks_of(BODIES, size=50, broker_us=NOW_US):
        ledger.ingest(**chunk)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    await (await sink.database.connection()).execute("SET default_transaction_isolation = 'repeatable read'")
    async with await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("UPDATE analytics.partitions SET updated_at = updated_at")
        flushing = asyncio.create_task(sink.flush(claim, batch))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as third:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while (await (await third.execute(waiting)).fetchone()) == (0,):  # noqa: ASYNC110 - the server tells
                await asyncio.sleep(0.01)
        await other.commit()
        with pytest.raises(SinkUnavailable, match="could not serialize"):
            await flushing
    await sink.flush(claim, batch)
    await sink.close()
    assert not books.difference(books.stored_in_database(url), expected())
