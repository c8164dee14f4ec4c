"""``spendstream worker --processes``: children that share the partitions, die, return, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.local.ports import free_port, is_free
from deploy.local.processes import children as children_of
from deploy.local.processes import start_mark
from deploy.local.servers import RabbitMQ
from pipeline import config as configuration
from pipeline.config import StreamConfig
from pipeline.processes import child as children
from pipeline.processes import supervisor as workers
from pipeline.transports.factory import open_transport
from tests.support import mix, processes, streams

PATIENCE_S = 240


class Workers(processes.Process):
    """Two workers under one supervisor; ready when both are."""

    def __init__(self, env: dict[str, str], folder: Path, port: int) -> None:
        super().__init__(
            "pipeline.cli",
            ["worker", "--processes", "2"],
            env={**env, "METRICS_PORT": str(port)},
            log=folder / "workers.log",
            ready=f"http://127.0.0.1:{port}/readyz",
        )
        self._pages = [f"http://127.0.0.1:{port + number}/readyz" for number in range(2)]

    def owned(self) -> list[list[str]]:
        """The streams that each owns; none of one that does not answer."""
        owned = []
        for page in self._pages:
            try:
                _, answer = processes.get(page, timeout_s=10)
                owned.append([name for name, active in answer["partitions"].items() if active])
            except (OSError, TypeError):
                owned.append([])
        return owned


def two_free_ports() -> int:
    """The first of two adjacent ones."""
    while True:
        port = free_port()
        if is_free(port + 1):
            return port


async def test_two_processes_share_the_partitions_and_one_that_is_killed_comes_back(
    rabbitmq: RabbitMQ, migrated_timescale: str, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": migrated_timescale,
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_STREAM": f"workers.{os.urandom(8).hex()}",
        "FLUSH_INTERVAL": "200ms",
    }
    config = StreamConfig(url=env["RABBITMQ_URL"], stream=env["RABBITMQ_STREAM"], consumer="tests")
    transport = open_transport(config)
    await transport.create_super_stream(partitions=2)
    publisher = await transport.publisher()
    try:
        with Workers(env, tmp_path, two_free_ports()) as both:
            assert isinstance(both, Workers)
            processes.wait_for(lambda: sorted(map(len, both.owned())) == [1, 1], PATIENCE_S, both.log)
            pids = children_of(both.process.pid)
            assert len(pids) == 2
            os.kill(pids[0], signal.SIGKILL)
            processes.wait_for(lambda: "worker_process_died" in both.log(), PATIENCE_S, both.log)
            await publisher.publish(mix.make(2000, seed=1, now_us=time.time_ns() // 1000).bodies)
            processes.wait_for(lambda: streams.offered(migrated_timescale) == 2000, PATIENCE_S, both.log)
            processes.wait_for(lambda: sorted(map(len, both.owned())) == [1, 1], PATIENCE_S, both.log)
            now = children_of(both.process.pid)
            assert len(now) == 2
            assert pids[1] in now
            assert both.stop() == 0
            assert not any(map(start_mark, now))
            ended = [line["event"] for line in both.events()]
            assert ended.count("last_flush_committed") == 2
    finally:
        await transport.close()


def test_a_configuration_that_is_wrong_starts_none() -> None:
    done = processes.command("worker", "--processes", "2", env={"FLUSH_INTERVAL": "soon"})
    assert done.returncode == 2
    assert "FLUSH_INTERVAL" in done.stderr
    env = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "RABBITMQ_URL": "embedded:///tmp/x"}
    done = processes.command("worker", "--processes", "9", env=env | {"METRICS_PORT": "65530"})
    assert done.returncode == 2
    assert "METRICS_PORT: 9 processes from port 65530" in done.stderr


@pytest.mark.parametrize(
    ("given", "processes", "ports"),
    [
        ({}, 3, [8085, 8087, 8088]),
        ({"METRICS_PORT": "8083"}, 3, [8083, 8085, 8087]),
        ({"COLLECTOR_PORT": "9000"}, 3, [8085, 8086, 8087]),
        ({"EXPORT_METRICS_PORT": "8087"}, 3, [8085, 8088, 8089]),
        ({"METRICS_PORT": "0", "COLLECTOR_PORT": "0"}, 2, [0, 0]),
    ],
)
def test_no_worker_takes_the_port_of_the_api_the_collector_or_the_exporter(
    given: dict[str, str], processes: int, ports: list[int]
) -> None:
    config = configuration.load(
        {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "RABBITMQ_URL": "embedded:///x", **given}
    )
    assert workers.ports(config, processes=processes) == ports


def test_a_child_that_exits_with_2_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration.load(
        {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "RABBITMQ_URL": "embedded:///x"}
    )
    refusing = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(children, "command_line", lambda *_: refusing)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert workers.run(config, os.environ, processes=2) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_them_with_0_though_nothing_is_there_to_work_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "RABBITMQ_URL": f"embedded://{tmp_path}/log",
        "METRICS_PORT": "0",
    }
    process = subprocess.Popen(
        children.command_line("pipeline.cli", "worker", "--processes", "2"),
        env=children.environment({**processes._base(), **env}),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    waiting = 0
    while waiting < 2:
        line = process.stderr.readline()
        assert line, "it ended"
        waiting += "database_not_ready" in line
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 0
