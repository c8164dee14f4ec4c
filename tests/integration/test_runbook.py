"""The runbook's pages of tasks: their commands run on real servers, in the situation that each describes."""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from deploy.local import Stack
from deploy.local.server import Server
from deploy.local.ways.binaries import Processes
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from sql import migrate
from sql.schema import HEAD
from tests.conftest import missing
from tests.faults import failover
from tests.support import access, export_servers, processes, runbook, streams, watch
from tests.support.processes import Process
from tests.support.rabbitmq import broker_user
from tests.support.usage_events import ORG, EventMill

BACKUP: Final = watch.ROOT / "docs/howto/backup.md"
SEE, DO, CHECK = "How to see", "What to do", "How to see that it worked"
STREAM: Final = "analytics.usage.v1"
PATIENCE_S: Final = 180
COUNTED: Final = (
    "SELECT committed_offset, offered = accepted + duplicate + rejected FROM analytics.partitions"
)
TESTED: Final = {
    "BackPressure",
    "StuckExport",
    "GapAccepted",
    "PoisonRecord",
    "UpgradeSchema",
    "Restore",
    "Failover",
    "RotateKeys",
    "SuperStream",
    "RetireStream",
}


@dataclass(slots=True)
class Place:
    """A deployment for the pages' commands: servers, a database, a stream, and a folder for the shell."""

    stack: Stack
    folder: Path
    tools: Path
    env: dict[str, str]
    mill: EventMill

    def page(self, page: str | Path, **more: str) -> runbook.Page:
        path = page if isinstance(page, Path) else watch.RUNBOOK / f"{page}.md"
        return runbook.Page(path, self.tools, {**self.env, **more}, self.folder)

    @property
    def stream(self) -> str:
        return self.env["RABBITMQ_STREAM"]

    def worker(self, **more: str) -> Process:
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        return processes.worker({**self.env, **more}, folder)

    async def publish(self, count: int, *, stream: str | None = None) -> None:
        await self.send(self.mill.events(count), stream=stream)

    async def send(self, bodies: list[bytes], *, stream: str | None = None) -> None:
        await streams.publish(self.env["RABBITMQ_URL"], stream or self.stream, bodies, "raw", amqp_url="")

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.env["DATABASE_URL"], autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def committed(self, worker: Process, offset: int) -> None:
        streams.wait_committed(self.env["DATABASE_URL"], offset, worker, timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def tools(stack: Stack, up: Callable[[Server], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    for server in (stack.rabbitmq, stack.postgres, stack.redis):
        up(server)
    if not isinstance(stack.way, Processes):
        missing("the servers run in containers, whose tools are not at hand")
    return runbook.put_tools(tmp_path_factory.mktemp("runbook") / "tools", stack)


@pytest.fixture
def place(stack: Stack, tools: Path, migrated_timescale: str, redis_url: str, tmp_path: Path) -> Place:
    env = {
        **stack.rabbitmq.env,
        "DATABASE_URL": migrated_timescale,
        "REDIS_URL": redis_url,
        "RABBITMQ_STREAM": f"runbook.{uuid.uuid4().hex[:8]}",
        "FLUSH_INTERVAL": "200ms",
        "API_KEY_SECRET": access.SECRET,
        "API_ALLOW_PRIVILEGED": "true",
    }
    return Place(stack, tmp_path, tools, env, EventMill())


def test_each_page_of_a_task_has_its_situation_here_and_its_line_in_the_list() -> None:
    assert runbook.task_pages() == TESTED
    text = (watch.RUNBOOK / "README.md").read_text().partition("## Tasks")[2]
    assert set(re.findall(r"^\| \[[^]]+\]\((\w+)\.md\)", text, re.MULTILINE)) == TESTED


@pytest.mark.parametrize("stem", sorted(TESTED))
def test_a_page_of_a_task_says_how_to_see_what_to_do_and_what_it_costs(stem: str) -> None:
    page = watch.RUNBOOK / f"{stem}.md"
    assert {"how-to-see", "what-to-do", "how-to-see-that-it-worked", "what-it-costs"} <= watch.anchors(page)
    costs = page.read_text().partition("## What it costs")[2]
    assert len(re.findall(r"\d", costs)) >= 2, "an example has numbers"


async def declared(place: Place) -> None:
    """Make the stream of the place."""
    transport = RabbitMQTransport(streams.config(place.env["RABBITMQ_URL"], place.stream))
    await transport.open()
    await transport.close()


async def test_back_pressure_is_seen_and_ends_with_the_session_that_blocks_the_flush(place: Place) -> None:
    page = place.page("BackPressure")
    with place.worker(BUFFER_EVENTS_MAX="10") as worker:
        here = {"127.0.0.1:8085": urlsplit(worker.ready_url).netloc}
        await place.publish(1)
        place.committed(worker, 1)
        with psycopg.connect(place.env["DATABASE_URL"], application_name="report") as forgotten:
            forgotten.execute("LOCK TABLE analytics.partitions")
            for _ in range(8):
                await place.publish(20)

            def withheld() -> bool:
                said = processes.metrics(worker)
                return sum(v for name, v in said.items() if "credit_withheld{" in name) > 0

            processes.wait_for(withheld, PATIENCE_S, worker.log)
            seen = page.run(SEE, instead=here)
            assert re.search(r'analytics_stream_credit_withheld\{partition="0"\} [1-9]', seen), seen
            assert "report" in seen
            page.run(DO)
            with pytest.raises(psycopg.OperationalError):
                forgotten.execute("SELECT 1")
        place.committed(worker, 161)
        processes.wait_for(lambda: not withheld(), PATIENCE_S, worker.log)
        assert re.search(r'withheld\{partition="0"\} 0', page.run(CHECK, instead=here))
    page.nothing_left()


async def test_an_export_that_nobody_makes_is_made_once_an_exporter_runs(place: Place) -> None:
    page = place.page("StuckExport", EXPORT_DIR=str(place.folder / "exports"), EXPORT_IN_API="false")
    job = export_servers.queued(place.env["DATABASE_URL"], ORG)
    assert re.search(rf"{job}\W+pending", page.run(SEE))

    def made() -> None:
        succeeded = f"SELECT 1 FROM analytics.export_jobs WHERE job_id = '{job}' AND status = 'succeeded'"
        processes.wait_for(lambda: place.sql(succeeded), PATIENCE_S)

    page.run(DO, until=made)
    assert re.search(rf"{job}\W+succeeded", page.run(CHECK))
    page.nothing_left()


async def test_a_gap_is_named_and_accepted_and_the_worker_goes_on(place: Place) -> None:
    page = place.page("GapAccepted")
    with place.worker() as worker:
        await place.publish(10)
        place.committed(worker, 10)
        assert worker.stop() == 0
        transport = RabbitMQTransport(streams.config(place.env["RABBITMQ_URL"], place.stream))
        await transport.delete()
        await transport.open()
        await transport.close()
        await place.publish(25)
        worker.start(wait=False)
        processes.wait_for(lambda: "offset_gone" in worker.log(), PATIENCE_S, worker.log)
        gap = f"--stream {place.stream} --from 10 --to 0"
        assert f"spendstream stream accept-gap {gap}" in page.run(SEE)
        page.run(DO, instead={f"--stream {STREAM} --from 500 --to 700": gap})
        place.committed(worker, 25)
        processes.wait_for(lambda: worker.status() == 200, PATIENCE_S, worker.log)
        assert "stream.accept_gap" in page.run(CHECK)
    assert place.sql(COUNTED) == [(25, True)]
    page.nothing_left()


async def test_a_poison_record_is_skipped_and_kept(place: Place) -> None:
    """How the worker finds the record is for `test_skip`."""
    page = place.page("PoisonRecord")
    with place.worker() as worker:
        await place.publish(3)
        place.committed(worker, 3)
        assert worker.stop() == 0
        await place.send([*place.mill.events(2), b'{"poison": 1}', *place.mill.events(2)])
        page.run(SEE)
        page.run(DO, instead={STREAM: place.stream, "90311": "5"})
        worker.start()
        place.committed(worker, 8)
        said = page.run(CHECK, instead={STREAM: place.stream, "90311": "5"})
        assert "reported" in said
        assert "stream.skip" in said
    assert place.sql("SELECT accepted, rejected FROM analytics.partitions") == [(7, 1)]
    page.nothing_left()


async def test_an_old_worker_goes_on_over_a_new_schema_and_a_new_one_takes_over(place: Place) -> None:
    page = place.page("UpgradeSchema")
    page.run(SEE)
    with place.worker() as old:
        await place.publish(50)
        place.committed(old, 50)
        page.run(DO)
        assert place.sql("SELECT version_num FROM analytics.alembic_version") == [(HEAD,)]
        # What the migration of a later version does: a new table, a column with a default, a later number.
        place.sql("ALTER TABLE analytics.usage_hour ADD COLUMN later bigint NOT NULL DEFAULT 0")
        place.sql("CREATE TABLE analytics.later (id bigint PRIMARY KEY)")
        await place.publish(50)
        place.committed(old, 100)
        with place.worker() as new:
            await place.publish(50)
            assert old.stop() == 0
            await place.publish(50)
            place.committed(new, 200)
            page.run(CHECK)
    assert place.sql("SELECT offered, accepted FROM analytics.partitions") == [(200, 200)]
    page.nothing_left()


@contextmanager
def owner(place: Place, stack: Stack) -> Iterator[None]:
    """The database belongs to a role that is no superuser, and everybody logs in as this role."""
    name, role = urlsplit(place.env["DATABASE_URL"]).path[1:], f"owner_{uuid.uuid4().hex[:8]}"
    place.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'owner'")
    try:
        place.sql("DROP SCHEMA analytics CASCADE")
        place.sql(f"ALTER DATABASE {name} OWNER TO {role}")
        place.env["DATABASE_URL"] = place.env["DATABASE_URL"].replace("postgres:postgres@", f"{role}:owner@")
        migrate.upgrade(place.env["DATABASE_URL"])
        yield
    finally:
        for database in (name, f"{name}_old", f"{name}_new"):
            stack.postgres.drop_database(database)
        with psycopg.connect(stack.postgres.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}".encode())


async def test_a_dump_is_restored_and_the_stream_brings_the_rest(place: Place, stack: Stack) -> None:
    with owner(place, stack):
        await restored(place, stack)


async def restored(place: Place, stack: Stack) -> None:
    name = urlsplit(place.env["DATABASE_URL"]).path[1:]
    server = {"SERVER": stack.postgres.database_url("postgres").removesuffix("/postgres"), "DB": name}
    backup, page = place.page(BACKUP, **server), place.page("Restore", **server)
    how = "Take a backup"
    with place.worker() as worker:
        await place.publish(100)
        place.committed(worker, 100)
        backup.run(how, number=0)
        backup.run(how, number=1)
        before = datetime.now(UTC) - timedelta(seconds=1)
        await place.publish(100)
        place.committed(worker, 200)
        key = access.new_key(place.env["DATABASE_URL"])
        assert worker.stop() == 0
        said = page.run(DO)
        assert place.sql(COUNTED) == [(100, True)]
        assert re.search(rf"{place.stream} \| +100 ", said), said
        role = urlsplit(place.env["DATABASE_URL"]).username
        assert re.search(rf"{name} +\| {role}\s.*{name}_new +\| {role}\s", said, re.DOTALL), said
        with redis.Redis.from_url(place.env["REDIS_URL"]) as client:
            assert not client.exists("spendstream:watermarks")
        worker.start()
        place.committed(worker, 200)
        place.sql("CREATE SCHEMA of_the_owner")
        migrate.upgrade(place.env["DATABASE_URL"])
        page.run(CHECK)
        lost = backup.run("What no stream brings back", instead={"2026-11-29T02:00": f"{before:%FT%T}"})
        assert "keys.create" in lost
        assert key.split("_")[1] in lost
        assert place.sql("SELECT count(*) FROM analytics.api_keys") == [(0,)]
    assert place.sql("SELECT offered, accepted FROM analytics.partitions") == [(200, 200)]
    page.nothing_left()


async def test_a_standby_is_promoted_and_the_worker_finds_it(
    place: Place, stack: Stack, tmp_path: Path
) -> None:
    database = urlsplit(place.env["DATABASE_URL"]).path
    with Stack(tmp_path / "second", temporary=True) as second:
        second.start(("postgres",))
        failover.follow(second, stack)
        hosts = ",".join(f"127.0.0.1:{one.postgres.ports['sql']}" for one in (stack, second))
        both = f"postgresql://postgres:postgres@{hosts}{database}?target_session_attrs=read-write"
        standby = second.postgres.database_url(database[1:])
        page = place.page("Failover", DATABASE_URL=both, STANDBY=standby)
        with place.worker(DATABASE_URL=both) as worker:
            await place.publish(100)
            place.committed(worker, 100)
            assert "streaming" in page.run(SEE)
            stack.postgres.kill()
            await place.publish(100)
            page.run(DO)
            streams.wait_committed(standby, 200, worker, timeout_s=PATIENCE_S)
            processes.wait_for(lambda: worker.status() == 200, PATIENCE_S, worker.log)
            page.run(CHECK)
            with psycopg.connect(standby) as connection:
                assert connection.execute(COUNTED.encode()).fetchall() == [(200, True)]
    page.nothing_left()


@contextmanager
def login(place: Place, name: str) -> Iterator[None]:
    """A login of the name, if the server has none yet."""
    place.sql(f"DROP ROLE IF EXISTS {name}")
    place.sql(f"CREATE ROLE {name} LOGIN")
    try:
        yield
    finally:
        place.sql(f"DROP ROLE {name}")


def test_a_key_and_passwords_are_rotated(place: Place, stack: Stack) -> None:
    page = place.page("RotateKeys", NEW="n" * 32, OLD="o" * 32)
    old = access.new_key(place.env["DATABASE_URL"]).split("_")[1]
    assert old in page.run(SEE)
    user = broker_user(stack.rabbitmq, configure="", write="", read="")
    with login(place, "spendstream_api"), user as url:
        name = urlsplit(url).username or ""
        said = page.run(
            DO, instead={"f300451e089b572d": old, "change_password worker": f"change_password {name}"}
        )
        assert "ssk_" in said
        assert "0 of 0 webhooks" in said
        ((hashed,),) = place.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'spendstream_api'")
        assert str(hashed).startswith("SCRAM-SHA-256")
    revoked = dict(place.sql("SELECT prefix, revoked_at IS NOT NULL FROM analytics.api_keys"))
    assert len(revoked) == 2
    assert revoked.pop(old) is True
    assert list(revoked.values()) == [False]
    assert re.search(rf"{old}.*revoked", page.run(CHECK))
    page.nothing_left()


async def test_a_super_stream_takes_over_and_the_old_stream_is_retired(place: Place) -> None:
    page, end = place.page("SuperStream"), place.page("RetireStream")
    new = f"{place.stream}.v2"
    with place.worker() as old:
        await place.publish(100)
        place.committed(old, 100)
        page.run(SEE)
        page.run(DO, instead={f"{STREAM[:-1]}2": new, "--partitions 8": "--partitions 2"})
        with place.worker(RABBITMQ_STREAM=new) as worker:
            await place.publish(50, stream=f"{new}-0")
            await place.publish(50, stream=f"{new}-1")
            both = f"SELECT 1 FROM analytics.partitions WHERE stream LIKE '{new}%' AND committed_offset = 50"
            processes.wait_for(lambda: len(place.sql(both)) == 2, PATIENCE_S, worker.log)
            assert old.stop() == 0
            assert place.stream in end.run(SEE)
            place.sql(
                "UPDATE analytics.partitions SET updated_at = updated_at - interval '31 s'"
                f" WHERE stream = '{place.stream}'"
            )
            end.run(DO, instead={STREAM: place.stream})
            place.env["RABBITMQ_STREAM"] = new
            assert "stream.retire" in end.run(CHECK)
            said = page.run(CHECK)
            assert re.search(rf"{re.escape(new)}-1 +\| +50 ", said), said
    retired = place.sql("SELECT stream FROM analytics.partitions WHERE retired_at IS NOT NULL")
    assert retired == [(new.removesuffix(".v2"),)]
    for one in (page, end):
        one.nothing_left()


async def test_a_longer_retention_goes_before_the_policy_that_a_deployment_has(
    place: Place, tools: Path
) -> None:
    def ctl(*words: str) -> str:
        done = subprocess.run(
            (str(tools / "rabbitmqctl"), *words), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    page = place.page("SpendstreamRetentionNear")
    await declared(place)
    short = '{"max-age":"7D","max-length-bytes":21474836480}'
    ctl("set_policy", "--apply-to", "streams", "spendstream-usage-retention", rf"^{place.stream}$", short)
    try:
        said = page.run(DO, number=0, instead={"^analytics": f"^{place.stream}"})
        (line,) = [line for line in said.splitlines() if line.startswith(place.stream)]
        assert "keep-longer" in line
        assert "30D" in line
    finally:
        for name in ("keep-longer", "spendstream-usage-retention"):
            ctl("clear_policy", name)
