"""The processes of `tests.support.warm` behave as those that Python starts anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.processes import child as children
from tests.support import processes, warm

NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "RABBITMQ_URL": "rabbitmq-stream://127.0.0.1:1/"}


def test_a_command_has_the_output_and_the_exit_code_that_it_has_otherwise() -> None:
    for env, code in (({"SERVICE_NAME": "here"}, 0), ({"LOG_LEVEL": "no"}, 2)):
        cold, forked = (processes.command("config", env=env, cold=one) for one in (True, False))
        assert (forked.returncode, forked.stdout, forked.stderr) == (code, cold.stdout, cold.stderr)
        assert cold.returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
def test_a_worker_gets_each_signal_itself_and_is_gone_when_it_has_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    worker = processes.worker({**NOWHERE, "PYTHONFAULTHANDLER": "1"}, tmp_path)
    try:
        worker.start(wait=False)
        assert isinstance(worker.process, warm.Forked)
        processes.wait_for(lambda: worker.status() == 503, 60, worker.log)
        assert worker.process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(0.01)
        worker.process.send_signal(number)
        assert worker.process.wait(60) == (0 if number == signal.SIGTERM else -number)
        assert not Path(f"/proc/{worker.process.pid}").exists()
        assert worker.status() == 0
        worker.process.kill()  # nobody is there to be hurt
    finally:
        worker.__exit__()
    assert ("worker_stopped" in worker.log()) == (number == signal.SIGTERM)
    assert ("Current thread" in worker.log()) == (number == signal.SIGABRT)


def test_a_worker_that_is_stopped_and_continued_answers_again(tmp_path: Path) -> None:
    worker = processes.worker(NOWHERE, tmp_path)
    try:
        worker.start(wait=False)
        processes.wait_for(lambda: worker.status() == 503, 60, worker.log)
        worker.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{worker.process.pid}/stat")
        processes.wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", 60)
        worker.process.send_signal(signal.SIGCONT)
        processes.wait_for(lambda: worker.status() == 503, 60, worker.log)
    finally:
        worker.__exit__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_when_the_script_that_stands_for_it_does(
    tmp_path: Path, number: signal.Signals
) -> None:
    worker = processes.worker(NOWHERE, tmp_path)
    env = worker.env
    with (tmp_path / "worker.log").open("wb") as log:
        script = subprocess.Popen(
            processes.command_line("pipeline.cli", "worker", env=env), env=env, stdout=log, stderr=log
        )
    try:
        processes.wait_for(lambda: worker.status() == 503, 60, worker.log)
        script.send_signal(number)
        assert script.wait(60) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        processes.wait_for(lambda: worker.status() == 0, 60, worker.log)
    finally:
        script.kill()
        script.wait()
    assert ("worker_stopped" in worker.log()) == (number == signal.SIGTERM)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "NUMBA_CACHE_DIR", "LC_ALL"])
def test_what_is_read_at_the_start_alone_makes_a_start(name: str, tmp_path: Path) -> None:
    for given in ({}, {"SERVICE_NAME": "here"}, {"PYTHONFAULTHANDLER": "1"}):
        assert warm.server().fits(processes.environment(given))
    assert not warm.server().fits(processes.environment({name: str(tmp_path)}))


def test_the_server_and_its_folder_go_with_the_process_that_uses_them() -> None:
    code = """
import os, signal
from tests.support import warm
server = warm.server()
print(server.process.pid, server._folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=children.environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder = done.stdout.split()
    processes.wait_for(lambda: not Path(f"/proc/{pid}").exists() and not Path(folder).exists(), 60)
