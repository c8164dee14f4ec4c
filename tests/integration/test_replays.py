"""Replays beside what else happens to a partition: no archive, a full one, a rebuild, a stream made anew."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from pipeline.admin import gaps
from pipeline.archive import rebuild
from pipeline.archive.archiver import Archiver
from pipeline.archive.gate import ArchiveGate
from pipeline.archive.store import open_store
from pipeline.config import ArchiveConfig, FlushConfig
from pipeline.core.replay import Letter
from pipeline.core.rules import Rules
from pipeline.sink import Fenced
from pipeline.sink.timescale import TimescaleSink
from pipeline.transports import TransportError
from pipeline.worker.partition import PartitionWorker
from tests.support import books, migrated, mix, replays
from tests.support.archives import EVERYTHING, reconciled
from tests.support.memory_transport import MemoryBroker, MemoryTransport
from tests.support.replays import ReplayingOracle

HOUR_US = 3_600_000_000
NOW_US = 1_790_000_000_000_000
RULES = Rules(clients_per_org_hour_max=3, models_per_org_hour_max=3)


@pytest.fixture
def config(tmp_path: Path) -> ArchiveConfig:
    return ArchiveConfig(url=f"file://{tmp_path}/archive", interval_s=3600)


class Standing:
    """A partition's worker over a database, its stream in memory, and the oracle."""

    def __init__(self, url: str) -> None:
        migrated.upgrade(url)
        self.url = url
        self.oracle = ReplayingOracle(books.oracle_rules(RULES))
        self.broker = MemoryBroker(books.STREAM)
        self.bodies: list[bytes] = []

    async def start(self, archive: ArchiveGate | None) -> None:
        self.transport = MemoryTransport(self.broker)
        self.worker = PartitionWorker(
            index=0,
            stream=books.STREAM,
            transport=self.transport,
            sink=TimescaleSink(self.url),
            rules=RULES,
            flush=FlushConfig(),
            archive=archive,
            clock_us=lambda: NOW_US,
        )
        await self.worker.activated()

    async def stop(self) -> None:
        await self.worker.close()

    async def read(self, bodies: list[bytes]) -> None:
        first = len(self.bodies)
        assert self.worker._owned is not None
        ledger = self.worker._owned.ledger
        for chunk in books.chunks_of(bodies, size=50, broker_us=NOW_US, first_offset=first):
            ledger.ingest(**chunk)
        self.bodies += bodies
        self.oracle.feed_all((first + i, NOW_US, body) for i, body in enumerate(bodies))
        await self.worker.flush()

    def letters(self) -> list[Letter]:
        """Those that are too late and were not replayed."""
        with psycopg.connect(self.url) as connection:
            rows = connection.execute(
                'SELECT d."offset", d.body FROM analytics.dead_letters AS d'
                " WHERE d.reason = 'too_late' AND NOT EXISTS"
                ' (SELECT FROM analytics.replays AS r WHERE r."offset" = d."offset") ORDER BY 1'
            ).fetchall()
        return [
            Letter(offset=offset, position=0, broker_us=NOW_US, evidence="none", reason="too_late", body=body)
            for offset, body in rows
        ]

    async def replay(self, letters: list[Letter], *, flushes: int = 2) -> None:
        replays.request_in_database(self.url, letters)
        for _ in range(flushes):
            await self.worker.flush()

    def count(self, letters: list[Letter]) -> None:
        """Tell the oracle what was replayed."""
        for letter in letters:
            self.oracle.replay(letter)

    def check(self) -> None:
        assert not books.difference(books.stored_in_database(self.url), books.expected(self.oracle))

    def waiting(self) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM analytics.replays WHERE settled_at IS NULL"
            ).fetchone()
        assert row is not None
        return int(row[0])


def late(count: int, *, seed: int) -> list[bytes]:
    return mix.make(count, seed=seed, now_us=NOW_US - 26 * HOUR_US, span_us=HOUR_US, late=0, bad=0).bodies


def timely(count: int, *, seed: int) -> list[bytes]:
    return mix.make(count, seed=seed, now_us=NOW_US, span_us=HOUR_US, late=0, bad=0).bodies


async def test_replays_wait_while_the_archive_is_full_and_are_archived_then(
    embedded_postgres_url: str, config: ArchiveConfig
) -> None:
    gate = ArchiveGate()
    standing = Standing(embedded_postgres_url)
    await standing.start(gate)
    await standing.read(timely(200, seed=1) + late(200, seed=2))
    letters = standing.letters()
    assert len(letters) == 200
    gate.full = True
    await standing.replay(letters, flushes=3)
    assert standing.waiting() == 200
    gate.full = False
    await standing.worker.flush()
    assert standing.waiting() == 0
    standing.count(letters)
    standing.check()
    await Archiver(standing.url, open_store(config), config).round(everything=True)
    report = reconciled(standing.url, config)
    assert (report.differences, report.damaged, report.notes) == ([], [], [])
    assert report.events == standing.oracle.accepted
    await standing.stop()


async def test_a_rebuild_keeps_what_replays_have_counted(
    embedded_postgres_url: str, config: ArchiveConfig
) -> None:
    standing = Standing(embedded_postgres_url)
    await standing.start(ArchiveGate())
    await standing.read(timely(200, seed=3) + late(200, seed=4))
    letters = standing.letters()
    await standing.replay(letters)
    standing.count(letters)
    store = open_store(config)
    await Archiver(standing.url, store, config).round(everything=True)
    with psycopg.connect(standing.url) as connection:
        connection.execute("UPDATE analytics.usage_day SET invocations = invocations + 1")
        connection.execute("DELETE FROM analytics.usage_hour")
    assert rebuild.rebuild(standing.url, store, EVERYTHING).differences
    standing.check()
    await standing.stop()


async def test_an_archive_is_not_called_whole_where_replays_went_past_it(
    embedded_postgres_url: str, config: ArchiveConfig
) -> None:
    standing = Standing(embedded_postgres_url)
    await standing.start(ArchiveGate())
    await standing.read(timely(300, seed=5) + late(100, seed=6))
    await Archiver(standing.url, open_store(config), config).round(everything=True)
    await standing.read(late(100, seed=7))  # nothing of it is accepted: the archive still has all there is
    await standing.stop()
    letters = standing.letters()
    assert not reconciled(standing.url, config).notes

    await standing.start(None)  # a worker without an archive counts them
    await standing.replay(letters)
    standing.count(letters)
    standing.check()
    await standing.stop()
    report = reconciled(standing.url, config)
    assert report.differences == []
    assert "the archive does not have all of their events" in "".join(report.notes)
    assert rebuild.rebuild(standing.url, open_store(config), EVERYTHING).differences == []
    standing.check()


async def test_letters_of_a_stream_that_was_made_anew_keep_their_replays(
    embedded_postgres_url: str,
) -> None:
    standing = Standing(embedded_postgres_url)
    await standing.start(None)
    await standing.read(timely(50, seed=8) + late(50, seed=9))
    await standing.replay(standing.letters()[:20])
    await standing.stop()
    gaps._record(standing.url, books.STREAM, 100, 0)
    with psycopg.connect(standing.url) as connection:
        counts = connection.execute(
            'SELECT count(*), count(*) FILTER (WHERE r."offset" < 0), count(r.outcome) FROM'
            ' analytics.dead_letters JOIN analytics.replays AS r USING (partition, "offset", position)'
        ).fetchone()
    assert counts == (20, 20, 20)


async def test_a_request_that_a_failover_lost_costs_the_partition_and_counts_nothing(
    embedded_postgres_url: str,
) -> None:
    standing = Standing(embedded_postgres_url)
    await standing.start(None)
    await standing.read(timely(50, seed=10) + late(50, seed=11))
    replays.request_in_database(standing.url, standing.letters())
    await standing.worker.flush()
    owned = standing.worker._owned
    assert owned is not None
    sink, ledger, claim = TimescaleSink(standing.url), owned.ledger, owned.claim
    opened = ledger.open(await sink.waiting_letters(claim, most=100))
    ledger.replay(opened, await sink.counted(claim, opened))
    with psycopg.connect(standing.url) as connection:
        connection.execute("DELETE FROM analytics.replays")
    blocks = ledger.missing()
    ledger.adopt(await sink.load(claim, blocks), blocks)
    with pytest.raises(Fenced, match="0 of 50"):
        await sink.flush(claim, ledger.drain(now_us=NOW_US, caught_up=False))
    await sink.close()
    await standing.stop()
    standing.check()


async def test_a_worker_that_is_stopping_takes_no_partition_any_more(embedded_postgres_url: str) -> None:
    """Another worker's stop would give it one, whose recovery could outlast the time to stop."""
    standing = Standing(embedded_postgres_url)
    await standing.start(None)
    await standing.worker.deactivated()
    standing.worker.take_no_more()
    with pytest.raises(TransportError, match="stopping"):
        await standing.worker.activated()
    assert not standing.worker.active
    await standing.stop()
