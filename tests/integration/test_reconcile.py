"""Reconciling and rebuilding: any figure changed by hand is found, and repaired while events come in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from pipeline.archive import expiry, rebuild, reconcile
from pipeline.archive.archiver import Archiver
from pipeline.archive.lookup import Lookup
from pipeline.archive.reconcile import Scope
from pipeline.archive.store import Missing, Store, StoreError, open_store
from pipeline.common.connect import Session, connect_async
from pipeline.config import ArchiveConfig
from pipeline.core.events import DETAILS
from pipeline.core.watermark import DAY_US, HOUR_US
from pipeline.sink import Fenced
from tests.support import books, ledgers, mix
from tests.support.archives import END_US, EVERYTHING, NOW_US, Partition, reconciled

SUMMED = (
    "usage_minute",
    "usage_quarter",
    "usage_hour",
    "usage_day",
    "client_hour",
    "client_day",
    "breakdown_hour",
    "breakdown_day",
)
TABLES = (*SUMMED, "usage_errors_hour")


@pytest.fixture
def config(tmp_path: Path) -> ArchiveConfig:
    return ArchiveConfig(url=f"file://{tmp_path}/archive", interval_s=3600)


@pytest.fixture(params=["embedded_postgres_url", "timescale"])
def partition(request: pytest.FixtureRequest) -> Partition:
    bodies = mix.make(2500, seed=41, now_us=NOW_US, late=0.2, bad=0.05).bodies
    return Partition(request.getfixturevalue(request.param), bodies)


def change(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        assert connection.execute(statement).rowcount == 1


async def test_what_the_pipeline_wrote_is_what_the_archive_says(
    partition: Partition, config: ArchiveConfig
) -> None:
    for i, upto in enumerate(range(250, 2501, 250)):
        await partition.feed(upto)
        if i == 6:
            await Archiver(partition.url, open_store(config), config).round(everything=True)
    assert partition.ask("SELECT count(*) > 0 FROM analytics.archive_outbox") == [(True,)]
    report = reconciled(partition.url, config)
    assert (report.differences, report.damaged, report.notes) == ([], [], [])
    assert report.complete
    assert report.events == len(partition.accepted())
    stored = {table: partition.ask(f"SELECT count(*) FROM analytics.{table}")[0][0] for table in TABLES}
    assert report.compared == stored

    org = partition.ask("SELECT org_id FROM analytics.usage_day LIMIT 1")[0][0]
    only = reconciled(partition.url, config, Scope(start_us=0, end_us=END_US, org=org))
    assert only.differences == []
    assert 0 < only.events < report.events


def first_row(table: str, changed: str) -> str:
    """The statement that changes the row that stands first in a table."""
    return f"UPDATE analytics.{table} SET {changed} WHERE ctid = (SELECT min(ctid) FROM analytics.{table})"


def last_row(table: str, changed: str) -> str:
    """The statement that changes the row that stands last in a table."""
    return f"UPDATE analytics.{table} SET {changed} WHERE ctid = (SELECT max(ctid) FROM analytics.{table})"


ALTERATIONS = (
    *(
        first_row(table, figure)
        for table in SUMMED
        for figure in ("cost_microcents = cost_microcents + 1", "revision = revision + 1")
    ),
    first_row("usage_hour", "latency_sketch = ''"),
    last_row("usage_errors_hour", "count = count + 1"),
    *(
        f"DELETE FROM analytics.{table} WHERE ctid = (SELECT max(ctid) FROM analytics.{table})"
        for table in TABLES
    ),
    "INSERT INTO analytics.usage_hour SELECT gen_random_uuid(), bucket_start, model_id, partition,"
    " invocations, successes, errors, timeouts, throttles, input_tokens, output_tokens, cost_microcents,"
    " latency_sum_ms, latency_max_ms, latency_sketch, revision, updated_at FROM analytics.usage_hour LIMIT 1",
    "INSERT INTO analytics.usage_errors_hour SELECT gen_random_uuid(), bucket_start, model_id, client_id,"
    " status, error_code, partition, count FROM analytics.usage_errors_hour LIMIT 1",
)


async def test_a_day_that_is_full_to_its_highest_sum_is_rebuilt_as_it_was(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    """The dearest events fill the sum of their day; the archive has those that had room, and no more."""
    room_for = (2**63 - 1) // 10**14
    dear = [
        ledgers.event(number, costEstimateCents="100000000", clientId=f"c{number % 3}")
        for number in range(room_for + 3)
    ]
    partition = Partition(embedded_postgres_url, dear)
    await partition.feed(len(dear), broker_us=ledgers.NOW_US)
    store = open_store(config)
    await Archiver(partition.url, store, config).round(everything=True)
    true = books.stored_in_database(partition.url)
    assert len(true["dead_letters"]) == 3
    change(partition.url, "UPDATE analytics.usage_day SET cost_microcents = 0, revision = 1")
    [difference] = rebuild.rebuild(partition.url, store, EVERYTHING).differences
    assert f"cost_microcents 0 instead of {room_for * 10**14}" in str(difference)
    assert books.stored_in_database(partition.url) == true


async def test_every_alteration_is_found_and_repaired(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    bodies = mix.make(1500, seed=42, now_us=NOW_US, late=0.2).bodies
    partition = Partition(embedded_postgres_url, bodies)
    await partition.feed(1000)
    store = open_store(config)
    await Archiver(partition.url, store, config).round(everything=True)
    await partition.feed(1500)
    true = books.stored_in_database(partition.url)
    for alteration in ALTERATIONS:
        change(partition.url, alteration)
        report = reconciled(partition.url, config)
        assert len(report.differences) == 1, alteration
        assert report.differences[0].grain.name in str(report.differences[0])
        repaired = rebuild.rebuild(partition.url, store, EVERYTHING)
        assert len(repaired.differences) == 1
        assert reconciled(partition.url, config).differences == [], alteration
        assert books.stored_in_database(partition.url) == true
    assert len(partition.ask("SELECT detail FROM analytics.audit_log")) == len(ALTERATIONS)

    for alteration in ALTERATIONS[:6]:
        change(partition.url, alteration)
    assert len(rebuild.rebuild(partition.url, store, EVERYTHING).differences) >= 3
    assert books.stored_in_database(partition.url) == true


async def test_an_altered_kind_of_tokens_or_rate_class_is_found_by_its_name_in_every_table(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    partition = Partition(embedded_postgres_url, mix.make(800, seed=48, now_us=NOW_US).bodies)
    await partition.feed(800)
    store = open_store(config)
    true = books.stored_in_database(partition.url)
    for figure in DETAILS:
        for table in SUMMED:
            change(partition.url, last_row(table, f"{figure} = {figure} + 1"))
        found = reconciled(partition.url, config).differences
        assert {one.grain.name: str(one).split(": ")[-1].split()[0] for one in found} == dict.fromkeys(
            SUMMED, figure
        )
        assert len(rebuild.rebuild(partition.url, store, EVERYTHING).differences) == len(SUMMED)
        assert books.stored_in_database(partition.url) == true
    for table in TABLES:
        change(partition.url, last_row(table, "rate_class = rate_class + 1000"))
    lines = [str(one) for one in reconciled(partition.url, config).differences]
    for table in TABLES:
        mine = sorted(line.split(": ")[-1] for line in lines if line.startswith(f"{table} "))
        assert mine == ["missing in the database", "no archived event accounts for it"], table
    assert len(rebuild.rebuild(partition.url, store, EVERYTHING).differences) == 2 * len(TABLES)
    assert books.stored_in_database(partition.url) == true


async def test_rows_between_buckets_and_rows_of_no_partition_are_found_and_taken_away(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    """A row that was moved is two differences: one is missing, and one is too many. Both would be shown."""
    partition = Partition(embedded_postgres_url, mix.make(800, seed=44, now_us=NOW_US).bodies)
    await partition.feed(800)
    store = open_store(config)
    true = books.stored_in_database(partition.url)
    for table in TABLES:
        for moved in ("bucket_start = bucket_start + interval '1 second'", "partition = 7"):
            change(partition.url, first_row(table, moved))
            found = sorted(str(one) for one in reconciled(partition.url, config).differences)
            assert len(found) == 2, (table, moved)
            assert "missing in the database" in " ".join(found)
            assert "no archived event accounts for it" in " ".join(found)
            assert len(rebuild.rebuild(partition.url, store, EVERYTHING).differences) == 2
            assert reconciled(partition.url, config).differences == []
            assert books.stored_in_database(partition.url) == true


async def test_a_worker_with_the_rows_in_memory_is_fenced_and_recovers_from_the_repaired_ones(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    bodies = mix.make(1200, seed=43, now_us=NOW_US).bodies
    partition = Partition(embedded_postgres_url, bodies)
    await partition.feed(600)
    change(partition.url, ALTERATIONS[2])
    store = open_store(config)
    untouched = partition.ask("SELECT epoch FROM analytics.partitions")
    assert len(rebuild.rebuild(partition.url, store, EVERYTHING).differences) == 1
    assert partition.ask("SELECT epoch - 1 FROM analytics.partitions") == untouched
    with pytest.raises(Fenced):
        await partition.feed(900)
    await partition.recover()
    await partition.feed(1200)
    partition.accepted()
    assert not books.difference(books.stored_in_database(partition.url), books.expected(partition.oracle))

    standing = partition.ask("SELECT epoch FROM analytics.partitions")
    assert rebuild.rebuild(partition.url, store, EVERYTHING).differences == []
    assert partition.ask("SELECT epoch FROM analytics.partitions") == standing


class FailingStore:
    """Deletes so many files, then fails."""

    def __init__(self, store: Store, deletes: int) -> None:
        self._store, self._left = store, deletes
        self.read, self.write = store.read, store.write

    def delete(self, name: str) -> None:
        if not self._left:
            raise StoreError("away")
        self._left -= 1
        self._store.delete(name)


async def test_an_archive_whose_files_expire_claims_no_more_than_it_has_whenever_that_is_cut_off(
    config: ArchiveConfig, embedded_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = mix.make(800, seed=47, now_us=NOW_US, late=0.3).bodies
    partition = Partition(embedded_postgres_url, bodies)
    await partition.feed(800)
    store = open_store(config)
    await Archiver(partition.url, store, config).round(everything=True)
    true = books.stored_in_database(partition.url)
    hours = [
        hour for (hour,) in partition.ask("SELECT DISTINCT hour FROM analytics.archive_files ORDER BY 1")
    ]
    before = hours[len(hours) // 2]
    everything = partition.ask(f"SELECT path, hour < '{before}' FROM analytics.archive_files")
    kept = {path for path, expired in everything if not expired}
    assert len(kept) < len(everything) - 3

    monkeypatch.setattr(expiry, "BATCH_FILES", 2)
    async with await connect_async(
        partition.url, Session(application_name="t"), autocommit=True
    ) as connection:
        for deletes in (0, 1, 2, 3):
            with pytest.raises(StoreError):
                await expiry.expire(connection, FailingStore(store, deletes), before=before)
            report = reconciled(partition.url, config)
            assert (report.differences, report.damaged) == ([], []), deletes
            assert any("does not have all of their events" in note for note in report.notes), report.notes
            with rebuild.connected(partition.url) as reading:
                lookup = Lookup(reading, store)
                whole = [lookup.has_all(0, round(hour.timestamp()) // 3600) for hour in hours]
            assert whole == [hour >= before for hour in hours]
        while await expiry.expire(connection, store, before=before):
            pass
    assert {path for (path,) in partition.ask("SELECT path FROM analytics.archive_files")} == kept
    for path, expired in everything:
        if expired:
            with pytest.raises(Missing):
                store.read(path)
        else:
            assert store.read(path)
    assert rebuild.rebuild(partition.url, store, EVERYTHING).differences == []
    assert books.stored_in_database(partition.url) == true

    month_s = 30 * 86400.0
    archiver = Archiver(partition.url, store, replace(config, retention_s=month_s))
    after_all = hours[-1] + timedelta(seconds=month_s, hours=1)
    assert await archiver.expire(after_all - timedelta(hours=2)) < len(kept), "the earlier clock decides"
    assert await archiver.expire(after_all) > 0
    assert partition.ask("SELECT count(*) FROM analytics.archive_files") == [(0,)]


async def test_a_damaged_or_missing_file_is_named_and_nothing_is_rebuilt_on_it(
    config: ArchiveConfig, embedded_postgres_url: str, tmp_path: Path
) -> None:
    partition = Partition(embedded_postgres_url, mix.make(800, seed=44, now_us=NOW_US).bodies)
    await partition.feed(800)
    store = open_store(config)
    await Archiver(partition.url, store, config).round(everything=True)
    paths = [path for (path,) in partition.ask("SELECT path FROM analytics.archive_files ORDER BY row_count")]
    kept = store.read(paths[0])
    spoilt = bytearray(kept)
    spoilt[len(kept) // 2] ^= 1
    store.write(paths[0], bytes(spoilt))
    (tmp_path / "archive" / paths[1]).unlink()
    change(partition.url, ALTERATIONS[2])
    report = reconciled(partition.url, config)
    assert sorted(damage.partition(":")[0] for damage in report.damaged) == sorted(paths[:2])
    before = books.stored_in_database(partition.url)
    with pytest.raises(rebuild.Damage, match="nothing was changed"):
        rebuild.rebuild(partition.url, store, EVERYTHING)
    assert books.stored_in_database(partition.url) == before


async def test_buckets_with_events_that_were_never_archived_are_left_alone(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    bodies = mix.make(900, seed=45, now_us=NOW_US, late=0).bodies
    partition = Partition(embedded_postgres_url, bodies)
    await partition.feed(300, leave_out=True)
    await partition.feed(600)
    report = reconciled(partition.url, config)
    assert (report.differences, report.compared) == ([], {})
    assert "the archive does not have all of their events" in report.notes[0]
    after = rebuild.rebuild(partition.url, open_store(config), EVERYTHING)
    assert after.differences == []

    # An hour later, by the broker's clock, whole buckets are in the archive again.
    partition.bodies[600:] = mix.make(300, seed=46, now_us=NOW_US + 4 * HOUR_US, late=0).bodies
    await partition.feed(900, broker_us=NOW_US + 4 * HOUR_US)
    change(
        partition.url,
        "UPDATE analytics.usage_minute SET invocations = invocations + 1 WHERE ctid = (SELECT ctid FROM"
        " analytics.usage_minute ORDER BY bucket_start DESC LIMIT 1)",
    )
    change(partition.url, ALTERATIONS[0])  # of a bucket that the archive cannot judge
    report = reconciled(partition.url, config)
    assert [difference.grain.name for difference in report.differences] == ["usage_minute"]


def test_times_are_taken_in_utc() -> None:
    assert reconcile.us_of(datetime(1970, 1, 2, tzinfo=UTC)) == DAY_US
    assert reconcile.time_of(DAY_US) - timedelta(days=1) == datetime(1970, 1, 1, tzinfo=UTC)
