"""What version 0.1.0 stored stays: its rows over a migration, its stream and its Parquet files when read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from sqlalchemy.exc import DBAPIError

from pipeline.archive import files, rebuild
from pipeline.archive.archiver import Archiver
from pipeline.archive.store import open_store
from pipeline.config import ArchiveConfig
from pipeline.core import sketches
from pipeline.core.events import DETAILS
from pipeline.core.rules import Rules
from pipeline.core.windows import MEASURES
from pipeline.sink import event_columns
from pipeline.sink.timescale import TimescaleSink
from sql import migrate
from sql.schema import HEAD
from tests.support import archives, books, mix, version_0_1_0
from tests.support import oracle as naive

RULES = Rules()
LATER: dict[str, Any] = {
    "counted_model_id": None,
    **dict.fromkeys(("provider", "model_name"), ""),
    **dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"), 0),
    **dict.fromkeys(("reasoning_tokens", "service_tier", "rate_class", "in_quarter"), 0),
    "dimensions": [],
}
"""The columns of the archive that 0.1.0 did not have, each with the value of all of its events."""
ROLLUPS = ("usage_minute", "usage_hour", "usage_day", "client_hour", "client_day")


@pytest.fixture
def config(tmp_path: Path) -> ArchiveConfig:
    return ArchiveConfig(url=f"file://{tmp_path}/archive", interval_s=3600)


@pytest.fixture(params=["embedded_postgres_url", "timescale"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database as version 0.1.0 left it."""
    url: str = request.getfixturevalue(request.param)
    version_0_1_0.restore(url, tmp_path)
    return url


def test_a_migration_keeps_every_row_and_gives_it_class_0_and_no_kinds(url: str) -> None:
    assert version_0_1_0.found(url) == version_0_1_0.left()
    migrate.upgrade(url)
    assert version_0_1_0.found(url) == version_0_1_0.left()
    with psycopg.connect(url) as connection:
        for table in ROLLUPS:
            added = connection.execute(
                f"SELECT DISTINCT rate_class, {', '.join(DETAILS)} FROM analytics.{table}"
            ).fetchall()
            assert added == [(0,) * (1 + len(DETAILS))], table
        assert connection.execute(
            "SELECT DISTINCT rate_class FROM analytics.usage_errors_hour"
        ).fetchall() == [(0,)]
        assert connection.execute(
            "SELECT DISTINCT provider, model_name FROM analytics.models_seen"
        ).fetchall() == [("", "")]


_CUT = """
CREATE FUNCTION public.cut() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = '{cut_at}') THEN
        {end};
    END IF;
END $$;
CREATE EVENT TRIGGER cut ON ddl_command_end EXECUTE FUNCTION public.cut();
"""


@pytest.mark.parametrize("end", ["RAISE 'cut off'", "PERFORM pg_terminate_backend(pg_backend_pid())"])
@pytest.mark.parametrize(
    "cut_at",
    [
        "analytics.client_day",  # after the first of its two changes
        "analytics.usage_errors_hour",  # the last key of migration 0013
        "analytics.usage_quarter",  # migration 0020
    ],
)
def test_a_migration_that_is_cut_off_leaves_what_was_there(
    embedded_postgres_url: str, tmp_path: Path, cut_at: str, end: str
) -> None:
    url = embedded_postgres_url
    version_0_1_0.restore(url, tmp_path)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_CUT.format(cut_at=cut_at, end=end).encode())
    before = _columns(url)
    with pytest.raises(DBAPIError, match=r"cut off|terminating connection"):
        migrate.upgrade(url)
    assert _columns(url) == before
    assert version_0_1_0.found(url) == version_0_1_0.left()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP EVENT TRIGGER cut")
    migrate.upgrade(url)
    assert version_0_1_0.found(url) == version_0_1_0.left()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT version_num FROM analytics.alembic_version").fetchall() == [(HEAD,)]


def _columns(url: str) -> list[Any]:
    """The revision, and every column and key of every table."""
    with psycopg.connect(url) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                "SELECT version_num FROM analytics.alembic_version",
                "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns"
                " WHERE table_schema = 'analytics' ORDER BY 1, 2",
                "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE connamespace = 'analytics'::regnamespace ORDER BY 1, 2",
            )
        ]


@pytest.mark.parametrize("rules", [replace(RULES, context_tiers=()), RULES], ids=["one_size", "sizes"])
async def test_its_stream_gives_the_same_figures_when_it_is_read_again(url: str, rules: Rules) -> None:
    migrate.upgrade(url)
    stored = books.stored_in_database(url)
    bodies = version_0_1_0.bodies()
    assert stored["counters"][0] == len(bodies)
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA analytics CASCADE")
    await _read_again(url, bodies, rules)
    found = books.stored_in_database(url)
    for name in ROLLUPS:
        assert _without_classes(found[name]) == _without_classes(stored[name]), name
    errors = _counts_without_classes(found["usage_errors_hour"])
    assert errors == _counts_without_classes(stored["usage_errors_hour"])
    same = ("orgs_seen", "models_seen", "clients_seen", "dead_letters", "counters")
    assert books.difference(found, {name: stored[name] for name in same}) == []
    classes = {key[-1] for name in ROLLUPS for key in found[name]}
    assert (classes == {0}) == (rules.context_tiers == ())


async def _read_again(url: str, bodies: list[bytes], rules: Rules) -> None:
    """Read a stream from its beginning into a new schema, with a flush after each 80 records as 0.1.0 did."""
    migrate.upgrade(url)
    sink = TimescaleSink(url)
    claim, ledger = await books.recover(sink, rules)
    for at in range(0, len(bodies), 80):
        part = bodies[at : at + 80]
        for chunk in books.chunks_of(part, size=50, broker_us=archives.NOW_US, first_offset=at):
            ledger.ingest(**chunk)
        await books.flush(sink, claim, ledger)
    await sink.close()


def _without_classes(rows: dict[Any, Any]) -> dict[Any, Any]:
    """Rows of a rollup table with all rate classes together: the measures by name, and the merged sketch."""
    grouped: dict[Any, list[Any]] = defaultdict(list)
    for (*key, _), row in rows.items():
        grouped[tuple(key)].append(row)
    return {
        key: {
            **{
                name: (max if name == "latency_max_ms" else sum)(row[i] for row in group)
                for i, name in enumerate(MEASURES)
            },
            "sketch": sketches.from_dense(sketches.merge(row[-1] for row in group)),
        }
        for key, group in grouped.items()
    }


def _counts_without_classes(rows: dict[Any, int]) -> dict[Any, int]:
    counts: dict[Any, int] = defaultdict(int)
    for (*key, _), count in rows.items():
        counts[tuple(key)] += count
    return counts


def test_its_parquet_files_are_read_with_the_columns_that_came_later(
    embedded_postgres_url: str, tmp_path: Path, config: ArchiveConfig
) -> None:
    url = embedded_postgres_url
    version_0_1_0.restore(url, tmp_path)
    migrate.upgrade(url)
    store = open_store(config)
    with psycopg.connect(url) as connection:
        listed = connection.execute("SELECT path, row_count, sha256 FROM analytics.archive_files").fetchall()
    assert listed
    for path, row_count, sha256 in listed:
        table = files.read(store, path, row_count=row_count, sha256=sha256)
        assert table.schema == event_columns.SCHEMA
        in_file = pq.read_table(tmp_path / "archive" / path)
        assert table.select(in_file.column_names).equals(in_file.replace_schema_metadata(None))
        later = table.drop_columns(in_file.column_names)
        assert later.to_pylist() == [LATER] * row_count
    oracle = naive.Oracle(books.oracle_rules(RULES))
    stream = ((i, archives.NOW_US, body) for i, body in enumerate(version_0_1_0.bodies()))
    accepted = {row[0]: row for row in archives.accepted(oracle, stream)}
    archived = archives.archived(url, store)
    assert archived == [of_class_0(accepted[row[0]]) for row in archived]


def of_class_0(event: archives.Row) -> archives.Row:
    """The event as version 0.1.0 wrote it: there were no rate classes, so it is read as one of class 0."""
    place = archives.COLUMNS.index("rate_class")
    return (*event[:place], 0, *event[place + 1 :])


async def test_its_archive_agrees_with_its_rows_and_goes_on_with_new_events(
    url: str, config: ArchiveConfig
) -> None:
    migrate.upgrade(url)
    old = version_0_1_0.bodies()
    report = archives.reconciled(url, config)
    assert (report.differences, report.damaged, report.notes) == ([], [], [])
    assert report.complete
    new = mix.make(900, seed=43, now_us=archives.NOW_US, late=0.2).bodies
    partition = archives.Partition(url, [*old, *old[:100], *new])
    counters = "SELECT accepted, duplicate, rejected FROM analytics.partitions"
    [(accepted, duplicate, rejected)] = partition.ask(counters)
    assert report.events == accepted
    await partition.feed(len(old) + 100)
    [again] = partition.ask(counters)
    assert again[0] == accepted, "each old event is known again"
    assert sum(again) == accepted + duplicate + rejected + 100
    await partition.feed(len(partition.bodies))
    report = archives.reconciled(url, config)
    assert (report.differences, report.damaged, report.notes) == ([], [], [])
    assert report.events > accepted
    store = open_store(config)
    await Archiver(url, store, config).round(everything=True)
    true = books.stored_in_database(url)
    with psycopg.connect(url) as connection:
        for table in ROLLUPS:
            connection.execute(
                f"UPDATE analytics.{table} SET cost_microcents = cost_microcents + 1, cache_read_tokens = 7"
                f" WHERE (org_id, bucket_start) = (SELECT org_id, bucket_start FROM analytics.{table}"
                " WHERE rate_class = 0 ORDER BY 1, 2 LIMIT 1) AND rate_class = 0"
            )
    assert books.stored_in_database(url) != true
    assert rebuild.rebuild(url, store, archives.EVERYTHING).differences
    assert books.stored_in_database(url) == true
