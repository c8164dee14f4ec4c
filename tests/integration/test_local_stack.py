"""The local stack on processes that are no servers: which ports it takes, and whom it freezes and kills."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import Stack, Unavailable, ports, processes
from deploy.local.processes import Process
from deploy.local.stack import Lifeline
from deploy.local.ways import compose

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
    return processes.wait_until(lambda: not any(map(processes.start_mark, pids)), timeout_s=60)


def test_a_port_is_free_until_somebody_listens_on_it() -> None:
    port = ports.free_port()
    assert ports.is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free(port)


def test_a_server_keeps_its_ports_unless_somebody_took_one(tmp_path: Path) -> None:
    redis = Stack(tmp_path).redis
    redis._choose_ports()
    first = redis.ports
    Stack(tmp_path).redis._choose_ports()
    assert redis.ports == first
    with socket.create_server(("127.0.0.1", first["redis"])):
        redis._choose_ports()
    assert redis.ports != first


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

    def sleeps() -> bool:  # and is not stopped: it may still be being started
        state = processes._stat(sleeper.pid)
        return state is not None and state[0] == "S"

    assert processes.wait_until(sleeps, timeout_s=60)


@linux
def test_kill_takes_children_and_what_daemonized_itself(
    server: Callable[[str], Process], tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    leader = server("setsid -f sleep 601; env -i sleep 602 & sleep 603 & wait")
    assert processes.wait_until(lambda: len(processes.members(leader, str(tmp_path))) == 4, timeout_s=60)
    pids = processes.members(leader, str(tmp_path))
    processes.kill(leader, str(tmp_path))
    assert gone(*pids)
    assert sleeper.poll() is None


@linux
def test_what_a_dead_leader_left_behind_is_found_by_its_mark(
    server: Callable[[str], Process], tmp_path: Path
) -> None:
    leader = server("sleep 604 & wait")
    assert processes.wait_until(lambda: len(processes.members(leader, str(tmp_path))) == 2, timeout_s=60)
    orphan = processes.members(leader, str(tmp_path))[1]
    processes.send([leader.pid], signal.SIGKILL)
    assert gone(leader.pid)
    processes.kill(leader, str(tmp_path))
    assert gone(orphan)


@linux
def test_a_frozen_server_is_alive_and_goes_on(server: Callable[[str], Process], tmp_path: Path) -> None:
    leader = server("while :; do date +%s%N >beat.new; mv beat.new beat; sleep 0.01; done")
    beat = tmp_path / "beat"
    assert processes.wait_until(beat.exists, timeout_s=60)
    frozen = processes.freeze(leader, str(tmp_path))
    last = beat.read_text()
    assert leader.alive()
    assert not processes.wait_until(lambda: beat.read_text() != last, timeout_s=0.2)
    processes.send(frozen, signal.SIGCONT)
    assert processes.wait_until(lambda: beat.read_text() != last, timeout_s=60)


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
    subprocess.run([sys.executable, "-c", owner + end, str(tmp_path / "ran")], check=False, timeout=120)
    ran = processes.wait_until((tmp_path / "ran").exists, timeout_s=60 if ending == "killed" else 0.3)
    assert ran is (ending == "killed")


def test_a_released_lifeline_leaves_no_process() -> None:
    lifeline = Lifeline(["false"])
    lifeline.release()
    assert lifeline._shell.returncode == 0
