"""The bench in processes and on real servers: exact on every layout, and nothing of it stays on them."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from deploy.local.servers import RabbitMQ
from pipeline import cli
from pipeline.bench import latency, race, servers, workload
from pipeline.bench.contenders import Task
from pipeline.core.rules import Rules
from pipeline.traffic import generator as traffic
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.bench import bench_flush, bench_growth

pytestmark = pytest.mark.timeout(1200)
SHAPE = workload.Shape(events=5000, orgs=40, models=3)
COPIES = 8
END_US = 1_790_000_000_000_000
SMALL = workload.Shape(events=3000, orgs=20, models=3, clients=4)


def databases(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


@pytest.mark.parametrize(("partitions", "processes"), [(1, 1), (2, 1), (4, 2)])
def test_drain_and_the_worker_read_all_partitions_and_the_answer_is_exact(
    partitions: int, processes: int, rabbitmq: RabbitMQ, timescale: str, tmp_path: Path
) -> None:
    whole = workload.make(SHAPE, end_us=time.time_ns() // 1000 - COPIES * workload.MINUTE_US)
    stream = servers.new_name()
    task = Task(
        file=tmp_path / "none",
        events=COPIES * SHAPE.events,
        minute_us=whole.minute_us,
        rabbitmq_url=rabbitmq.url,
        stream=stream,
        partitions=partitions,
        processes=processes,
        database_url=timescale,
        folder=tmp_path,
    )
    try:
        asyncio.run(servers.fill(rabbitmq.url, stream, map(whole.copy, range(COPIES)), partitions=partitions))
        assert asyncio.run(records(rabbitmq.url, stream)) == task.events
        assert servers.drain(task).events == task.events
        done = servers.committed(task, FLUSH_EVENTS_MAX="1000", FLUSH_INTERVAL="100ms")
    finally:
        asyncio.run(servers.delete_stream(rabbitmq.url, stream))
    assert done.answer is not None
    assert done.answer.faults(whole.truth_of(COPIES)) == []
    assert 0 < done.events < task.events
    assert done.peak_mib > 60 * processes, "not all processes were counted"
    assert asyncio.run(partitions_left(rabbitmq.url, stream)) == []


async def records(url: str, stream: str) -> int:
    """All records of a stream whose every partition has some."""
    transport = RabbitMQTransport(servers.stream_config(url, stream))
    try:
        ends = [extent.end_offset for extent in await transport.extents()]
    finally:
        await transport.close()
    assert all(ends), "a partition is empty"
    return sum(ends)


async def partitions_left(url: str, stream: str) -> list[str]:
    transport = RabbitMQTransport(servers.stream_config(url, stream))
    try:
        control = await transport._live_control()
        names = [stream, *(f"{stream}-{number}" for number in range(4))]
        return [name for name in names if await control.exists(name)]
    finally:
        await transport.close()


def test_a_race_leaves_no_database_and_says_what_was_wrong(rabbitmq: RabbitMQ, timescale: str) -> None:
    before = databases(timescale)
    options = race.Options(
        shape=SHAPE,
        copies=2,
        repeat=1,
        slow_events=2000,
        partitions=(1, 2),
        only=("drain", "committed", "insert"),
        rabbitmq_url=rabbitmq.url,
        database_url=timescale,
    )
    told: list[str] = []
    results = {result.label: result for result in race.race(options, echo=told.append)}
    assert list(results) == [
        "drain, 1 partition",
        "drain, 2 partitions",
        "committed, 1 partition",
        "committed, 2 partitions",
        "insert",
    ]
    for label in ("drain, 1 partition", "drain, 2 partitions", "insert"):
        assert results[label].outcomes, told
        assert not results[label].faults, told
    assert "one flush took everything" in results["committed, 1 partition"].faults[0]
    assert databases(timescale) == before


async def test_flushes_of_the_same_rows_write_them_all_each_time_and_tables_soon_stop_growing(
    migrated_timescale: str,
) -> None:
    found = await bench_flush.flushes(migrated_timescale, 100, 12, Rules())
    assert {flush.rows for flush in found[1:]} == {found[0].rows}
    assert found[0].rows >= 100 * bench_flush.ROWS_A_PAIR
    with psycopg.connect(migrated_timescale) as connection:
        row = connection.execute("SELECT sum(invocations), count(*) FROM analytics.usage_hour").fetchone()
    assert row == (12 * 100, 100)
    assert all(flush.seconds > 0 and flush.wal_bytes > 0 for flush in found)
    assert found[0].table_bytes > 100 * 5 * 100, "the chunks of hypertables are not in it"
    assert bench_flush.steady_line(found).count("|") == 6
    assert bench_flush.growth_line(found).count("|") == 8


def test_latency_is_measured_by_the_api_and_nothing_is_lost(rabbitmq: RabbitMQ, timescale: str) -> None:
    before = databases(timescale)
    options = race.Options(shape=SHAPE, rabbitmq_url=rabbitmq.url, database_url=timescale)
    found = latency.measure(options, rate=500, seconds=6)
    assert databases(timescale) == before
    assert (found.lost, found.published > 0) == (0, True)
    assert 0 < found.p50_s <= found.p95_s <= found.p99_s < latency.VISIBLE_S_MAX
    assert found.api_cpu_s > 0


def test_the_latency_bench_counts_what_never_becomes_visible_as_lost(
    rabbitmq: RabbitMQ, timescale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ForgetfulTraffic(traffic.Traffic):
        """Its second event is the first once more, as if a worker counted one too few."""

        def take(self, times_us: traffic.Ints) -> list[bytes]:
            bodies = super().take(times_us)
            return [bodies[0], bodies[0], *bodies[2:]] if len(bodies) > 1 else bodies

    monkeypatch.setattr(latency, "Traffic", ForgetfulTraffic)
    monkeypatch.setattr(latency, "VISIBLE_S_MAX", 3.0)
    options = race.Options(shape=SHAPE, rabbitmq_url=rabbitmq.url, database_url=timescale)
    found = latency.measure(options, rate=500, seconds=1)
    assert found.lost > 0


@pytest.fixture(scope="module")
def made() -> workload.Workload:
    return workload.make(SMALL, end_us=END_US)


@pytest.mark.parametrize(
    "name", ["core", "python", "faust", "duckdb", "bytewax", "bytewax-hourly", "bytewax-batch"]
)
def test_every_contender_without_servers_is_exact(name: str, made: workload.Workload, tmp_path: Path) -> None:
    contender = race.BY_NAME[name]
    if reason := race.why_not(contender, race.Options()):
        pytest.skip(reason)
    made.save(tmp_path / "events")
    task = Task(
        file=tmp_path / "events",
        events=SMALL.events,
        minute_us=made.minute_us,
        flush_events=1000,
        folder=tmp_path,
    )
    outcome = race.in_a_process_of_its_own(contender, task)
    assert outcome.answer is not None
    assert outcome.answer.faults(made.truth) == []


def test_a_contender_whose_process_fails_is_reported_not_raised(
    made: workload.Workload, tmp_path: Path
) -> None:
    task = Task(file=tmp_path / "missing", events=1, minute_us=0, folder=tmp_path)
    with pytest.raises(servers.BenchError, match="FileNotFoundError"):
        race.in_a_process_of_its_own(race.BY_NAME["decode"], task)


def test_the_command_prints_a_table_writes_both_files_and_skips_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RABBITMQ_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["bench", "--events", "2000", "--repeat", "1", "--only", "decode", "--only", "python"]
    files = ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]
    done = CliRunner().invoke(cli.main, [*arguments, "--only", "committed", *files])
    assert done.exit_code == 0, done.output
    assert "RABBITMQ_URL is not set" in done.output
    found = json.loads((tmp_path / "b.json").read_text())
    assert [one["exact"] for one in found["contenders"]] == [None, True, None]
    assert "| plain Python loop, msgspec (`python`) |" in (tmp_path / "b.md").read_text()
    assert found["machine"]["date"] <= time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def test_the_core_counts_late_events(tmp_path: Path) -> None:
    shape = replace(SMALL, late=0.3)
    (found,) = bench_growth.measure(shape, tmp_path, repeat=1)
    cells = bench_growth.line(shape, [found]).split("|")
    assert [cell.strip() for cell in cells[1:5]] == ["20", "3", "4", "30%"]
    assert found.figures["rows"] > len(workload.make(shape, end_us=END_US).truth.sums)
