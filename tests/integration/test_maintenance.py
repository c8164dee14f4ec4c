"""Retention: what is past it goes, what is within it stays, on every edition at hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pipeline import metrics
from pipeline.config import RetentionConfig
from pipeline.sink.timescale import TimescaleSink
from pipeline.worker import maintenance
from sql.editions import Edition
from tests.support import community, migrated

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY_S = 86_400.0
RETENTION = RetentionConfig(
    minute_s=14 * DAY_S, rollup_s=400 * DAY_S, dead_letters_s=90 * DAY_S, audit_s=200 * DAY_S
)
WINDOW_US = 24 * 3_600_000_000
ORG, MODEL = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
ROLLUPS = ("usage_minute", "usage_hour", "usage_day", "client_hour", "client_day", "usage_errors_hour")


def insert(connection: psycopg.Connection, table: str, at: datetime) -> None:
    """One row of a rollup table in the bucket that starts then."""
    key = {"org_id": ORG, "bucket_start": at, "model_id": MODEL, "partition": 0}
    if table == "usage_errors_hour":
        row = key | {"client_id": "", "status": 1, "error_code": "", "count": 1}
    else:
        counts = "invocations successes errors timeouts throttles input_tokens output_tokens"
        more = "cost_microcents latency_sum_ms latency_max_ms revision"
        row = key | dict.fromkeys(f"{counts} {more}".split(), 0) | {"latency_sketch": b"", "updated_at": at}
        if table.startswith("client"):
            row["client_id"] = ""
    names = ", ".join(row)
    values = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO analytics.{table} ({names}) VALUES ({values})", row)


def kept(connection: psycopg.Connection, table: str, column: str = "bucket_start") -> list[datetime]:
    rows = connection.execute(f"SELECT {column} FROM analytics.{table} ORDER BY {column}").fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize("fixture", ["embedded_postgres_url", "timescale"])
async def test_old_rows_go_and_young_rows_stay(fixture: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(fixture)
    migrated.upgrade(url)
    old = {name: NOW - timedelta(days=500) for name in ROLLUPS} | {"usage_minute": NOW - timedelta(days=16)}
    young = {name: NOW - timedelta(days=300) for name in ROLLUPS} | {"usage_minute": NOW - timedelta(days=13)}
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, old[name])
            insert(connection, name, young[name])
        for table, name in (("orgs_seen", ""), ("models_seen", "model_id"), ("clients_seen", "client_id")):
            for age, org in ((500, ORG), (300, MODEL)):
                at = NOW - timedelta(days=age)
                key = f", {name}" if name else ""
                value = {"": "", "model_id": f", '{MODEL}'", "client_id": ", 'c'"}[name]
                connection.execute(
                    f"INSERT INTO analytics.{table} (org_id{key}, partition, first_event_at, last_event_at,"
                    f" last_rollup_at) VALUES (%s{value}, 0, %s, %s, %s)",
                    (org, at, at, at),
                )
        broker_time = NOW - timedelta(days=700)  # an old stream is being replayed: its own time counts
        # The broker's clock went back by 4 h: its newest time counts, or the last one where that is all.
        times = broker_time - timedelta(hours=4), broker_time
        for number, (last, newest) in enumerate((times, (broker_time, None))):
            connection.execute(
                "INSERT INTO analytics.partitions"
                " (partition, stream, broker_time, newest_broker_time, updated_at)"
                " VALUES (%s, %s, %s, %s, %s)",
                (number, f"s{number}", last, newest, NOW),
            )
        for hours in (47, 49):
            connection.execute(
                "INSERT INTO analytics.dedupe_ids SELECT partition, %s, 1, '' FROM analytics.partitions",
                (broker_time - timedelta(hours=hours),),
            )
        for days in (91, 89):
            connection.execute(
                "INSERT INTO analytics.dead_letters VALUES (0, %s, 0, 's', 'malformed', '[]', NULL, %s)",
                (days, NOW - timedelta(days=days)),
            )
        for offset, settled in ((1, 401), (2, 399), (3, None)):
            connection.execute(
                "INSERT INTO analytics.replays"
                ' (partition, "offset", position, run, requested_at, broker_time, evidence, settled_at)'
                " VALUES (0, %s, 0, gen_random_uuid(), %s, %s, 'none', %s)",
                (offset, NOW, NOW, None if settled is None else NOW - timedelta(days=settled)),
            )
        for _ in range(2):  # a second round finds nothing more
            done = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
            for name in ROLLUPS:
                assert kept(connection, name) == [young[name]], name
            for name in ("orgs_seen", "models_seen", "clients_seen"):
                assert kept(connection, name, "last_event_at") == [NOW - timedelta(days=300)]
            assert kept(connection, "dedupe_ids", "hour") == [broker_time - timedelta(hours=47)] * 2
            assert kept(connection, "partitions", "ids_from") == [broker_time - timedelta(hours=48)] * 2
            assert kept(connection, "dead_letters", '"offset"') == [89]
            assert kept(connection, "replays", '"offset"') == [2, 3]
        assert (done.gone, done.left) == ({}, set())
    sink = TimescaleSink(url)
    try:
        positions = [(await sink.claim(f"s{number}"))[1] for number in range(2)]
    finally:
        await sink.close()
    for position in positions:
        assert position.ids_from_hour * 3600 == (broker_time - timedelta(hours=48)).timestamp()
        assert position.newest_broker_us == broker_time.timestamp() * 1e6


@pytest.mark.parametrize("fixture", ["embedded_postgres_url", "timescale"])
async def test_what_was_audited_goes_after_its_retention_and_not_what_is_still_in_use(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(fixture)
    migrated.upgrade(url)
    old, young = NOW - timedelta(days=201), NOW - timedelta(days=199)
    with psycopg.connect(url, autocommit=True) as connection:
        for at in (old, young):
            connection.execute(
                "INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)"
                " VALUES (%s, 'a', 'b', 'c', '{}')",
                (at,),
            )
        keys = {"old": (None, old), "young": (None, young), "expired": (old, None), "good": (None, None)}
        for prefix, (expires, revoked) in keys.items():
            connection.execute(
                "INSERT INTO analytics.api_keys"
                " (prefix, digest, org_id, roles, label, created_at, expires_at, revoked_at)"
                " VALUES (%s, '', %s, '{}', '', %s, %s, %s)",
                (prefix, ORG, old, expires, revoked),
            )
        jobs = {
            "failed": (old, old),
            "expired": (old, old),
            "succeeded": (old, old),
            "pending": (old, None),
            "running": (old, None),
        }
        for status, (created, completed) in jobs.items():
            connection.execute(
                "INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start,"
                " range_end, models, created_by, created_at, attempts, completed_at)"
                " VALUES (gen_random_uuid(), %s, %s, 'csv', 'daily', %s, %s, '{}', 'a', %s, 1, %s)",
                (ORG, status, old, young, created, completed),
            )
        connection.execute(
            "INSERT INTO analytics.partitions (partition, stream, committed_offset, updated_at)"
            " VALUES (0, 's', 10, %s)",
            (NOW,),
        )
        for offset, at in ((5, old), (6, NOW), (10, old)):
            connection.execute("INSERT INTO analytics.skips VALUES ('s', %s, 'n', 'a', %s)", (offset, at))
        done = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
        assert done.gone == {"audit_log": 1, "api_keys": 2, "export_jobs": 2, "skips": 1}
        assert kept(connection, "audit_log", "at") == [young]
        assert kept(connection, "api_keys", "prefix") == ["good", "young"]
        assert kept(connection, "export_jobs", "status") == ["pending", "running", "succeeded"]
        assert kept(connection, "skips", '"offset"') == [6, 10], "a skip that nobody has read yet stays"


async def test_a_backlog_goes_in_batches_and_does_not_keep_the_other_tables_waiting(
    embedded_postgres_url: str,
) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    old = NOW - timedelta(days=500)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)"
            " SELECT %s, 'a', 'b', 'c', '{}' FROM generate_series(1, 95)",
            (old,),
        )
        insert(connection, "usage_hour", old)
        connection.execute("CREATE TABLE statements (gone integer)")
        connection.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN INSERT INTO statements SELECT count(*) FROM old; RETURN NULL; END$$"
        )
        connection.execute(
            "CREATE TRIGGER note AFTER DELETE ON analytics.audit_log REFERENCING OLD TABLE AS old"
            " FOR EACH STATEMENT EXECUTE FUNCTION note()"
        )

        async def one_round() -> maintenance.Round:
            return await maintenance.expire(
                url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW, batch_rows=10, batches_max=4
            )

        first = await one_round()
        assert (first.gone, first.left) == ({"audit_log": 40, "usage_hour": 1}, {"audit_log"})
        with psycopg.connect(url) as other:  # another worker's round: its rows are left to it
            other.execute("SELECT FROM analytics.audit_log LIMIT 5 FOR UPDATE")
            second = await one_round()
            assert (second.gone, second.left) == ({"audit_log": 40}, {"audit_log"})
        third = await one_round()
        assert (third.gone, third.left) == ({"audit_log": 15}, set())
        sizes = connection.execute("SELECT gone FROM statements").fetchall()
    assert [size for (size,) in sizes] == [10] * 9 + [5]


async def test_the_ids_of_one_hour_go_at_a_time(embedded_postgres_url: str) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.partitions (partition, stream, broker_time, updated_at)"
            " VALUES (0, 's', %s, %s)",
            (NOW, NOW),
        )
        for hours in (47, 60, 61, 62):
            connection.execute(
                "INSERT INTO analytics.dedupe_ids VALUES (0, %s, 1, ''), (0, %s, 2, '')",
                (NOW - timedelta(hours=hours),) * 2,
            )
        first = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW, batches_max=1)
        assert (first.gone, first.left) == ({"dedupe_ids": 2}, {"dedupe_ids"})
        assert kept(connection, "partitions", "ids_from") == [NOW - timedelta(hours=61)]
        second = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
        assert (second.gone, second.left) == ({"dedupe_ids": 4}, set())
        assert kept(connection, "dedupe_ids", "hour") == [NOW - timedelta(hours=47)] * 2
        assert kept(connection, "partitions", "ids_from") == [NOW - timedelta(hours=59)]


async def test_the_ids_of_one_partition_go_at_a_time_and_no_other_partition_waits(
    embedded_postgres_url: str,
) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        for partition, ahead in ((0, 0), (1, 5)):  # each by its own broker's time
            connection.execute(
                "INSERT INTO analytics.partitions (partition, stream, broker_time, updated_at)"
                " VALUES (%s, %s, %s, %s)",
                (partition, f"s{partition}", NOW + timedelta(hours=ahead), NOW),
            )
            for hours in (47, 50):
                connection.execute(
                    "INSERT INTO analytics.dedupe_ids VALUES (%s, %s, 1, '')",
                    (partition, NOW - timedelta(hours=hours)),
                )
        with psycopg.connect(url) as flush:  # holds partition 1, as a long flush does
            flush.execute("SELECT FROM analytics.partitions WHERE partition = 1 FOR UPDATE")
            expiring = asyncio.create_task(
                maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
            )
            for _ in range(6000):
                if kept(connection, "dedupe_ids", "hour").count(NOW - timedelta(hours=50)) == 1:
                    break
                await asyncio.sleep(0.02)
            else:
                pytest.fail("partition 0 waits for partition 1")
            connection.execute("SET lock_timeout = '60s'")  # partition 0 is free again
            connection.execute("UPDATE analytics.partitions SET updated_at = %s WHERE partition = 0", (NOW,))
            flush.rollback()
        assert (await expiring).gone == {"dedupe_ids": 3}
        assert kept(connection, "dedupe_ids", "hour") == [NOW - timedelta(hours=47)]
        assert kept(connection, "partitions", "ids_from") == [
            NOW - timedelta(hours=49),
            NOW - timedelta(hours=46),
        ]


async def test_a_table_that_refuses_is_named_and_the_others_are_looked_after(
    embedded_postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    old = NOW - timedelta(days=500)
    pauses: list[float] = []
    done = asyncio.Event()

    async def once(pause_s: float) -> None:
        pauses.append(pause_s)
        done.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "sleep", once)
    before = metrics.REGISTRY.get_sample_value(
        "analytics_maintenance_failures_total", {"table": "usage_minute"}
    )
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, old)
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE EXCEPTION 'not these rows'; END$$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE DELETE ON analytics.usage_minute"
            " FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        running = asyncio.create_task(maintenance.run(url, RETENTION, dedupe_window_us=WINDOW_US))
        await done.wait()
        running.cancel()
        assert {name for name in ROLLUPS if kept(connection, name)} == {"usage_minute"}
    failed = [record for record in caplog.records if record.message == "maintenance_failed"]
    assert [
        (record.__dict__["table"], "not these rows" in record.__dict__["error"]) for record in failed
    ] == [("usage_minute", True)]
    after = metrics.REGISTRY.get_sample_value(
        "analytics_maintenance_failures_total", {"table": "usage_minute"}
    )
    assert (after or 0) - (before or 0) == 1
    assert pauses == [maintenance.INTERVAL_S]


async def test_a_round_that_left_something_is_followed_soon(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    done = asyncio.Event()
    left = iter(({"audit_log"}, set()))

    async def expire(*_: object, **__: object) -> maintenance.Round:
        return maintenance.Round(left=next(left))

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            done.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(maintenance, "expire", expire)
    running = asyncio.create_task(maintenance.run(migrated_url, RETENTION, dedupe_window_us=WINDOW_US))
    await done.wait()
    running.cancel()
    assert pauses == [maintenance.BACKLOG_INTERVAL_S, maintenance.INTERVAL_S]


async def test_the_worker_drops_chunks_itself_where_the_database_could_have_jobs(
    embedded_postgres_url: str,
) -> None:
    """Where nobody made a policy, or its job fails, on TimescaleDB Community."""
    url = embedded_postgres_url
    community.shape(url)
    assert migrated.upgrade(url).edition == Edition.COMMUNITY
    old, young = NOW - timedelta(days=500), NOW - timedelta(days=13)
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, old)
            insert(connection, name, young)
        done = await maintenance.expire(url, RETENTION, dedupe_window_us=WINDOW_US, now=NOW)
        assert done.gone == dict.fromkeys(ROLLUPS, 1)
        assert {name: kept(connection, name) for name in ROLLUPS} == {name: [young] for name in ROLLUPS}


async def test_a_host_whose_clock_is_ahead_expires_nothing(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    done = asyncio.Event()

    async def once(_: float) -> None:
        done.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "sleep", once)
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        for name in ROLLUPS:
            insert(connection, name, today)
        running = asyncio.create_task(
            maintenance.run(
                migrated_url,
                RETENTION,
                dedupe_window_us=WINDOW_US,
                clock=lambda: datetime.now(UTC) + timedelta(days=500),
            )
        )
        await done.wait()
        running.cancel()
        assert {name: kept(connection, name) for name in ROLLUPS} == {name: [today] for name in ROLLUPS}
