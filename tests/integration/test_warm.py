"""The processes of `tests.support.warm` behave as those that Python starts anew."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.warm import Warm

NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "RABBITMQ_URL": "rabbitmq-stream://127.0.0.1:1/"}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(tmp_path_factory.mktemp("warm")) as warm:
        yield warm


def test_a_command_has_the_output_and_the_exit_code_that_it_has_otherwise(warm: Warm) -> None:
    for env, code in (({"SERVICE_NAME": "here"}, 0), ({"LOG_LEVEL": "no"}, 2)):
        cold, forked = (processes.command("config", env=env, warm=one) for one in (None, warm))
        assert (forked.returncode, forked.stdout, forked.stderr) == (code, cold.stdout, cold.stderr)
        assert cold.returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_when_its_client_does(warm: Warm, tmp_path: Path, number: signal.Signals) -> None:
    worker = processes.worker(NOWHERE, tmp_path, warm=warm)
    try:
        worker.start(wait=False)
        processes.wait_for(lambda: worker.status() == 503, 60, worker.log)
        worker.process.send_signal(number)
        assert worker.process.wait(60) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        processes.wait_for(lambda: worker.status() == 0, 60, worker.log)
    finally:
        worker.__exit__()
    assert ("worker_stopped" in worker.log()) == (number == signal.SIGTERM)
