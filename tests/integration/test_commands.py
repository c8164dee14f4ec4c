"""The commands as processes: what they print, publish and leave behind, and how a signal ends them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common.settings_table import SETTINGS
from pipeline.config import StreamConfig
from pipeline.processes import child as children
from pipeline.transports.factory import open_transport
from tests.support import processes, traces
from tests.support.oracle import Event, Oracle, decode, records

CLEAN = {setting.name: None for setting in SETTINGS}


async def stored(folder: Path, stream: str = "analytics.usage.v1") -> list[bytes]:
    transport = open_transport(StreamConfig(url=f"embedded://{folder}", stream=stream, consumer="test"))
    await transport.open()
    subscription = await transport.subscribe(partition=0, offset=0)
    bodies: list[bytes] = []
    offset = 0
    while not await subscription.caught_up(offset):
        chunk = await subscription.receive()
        subscription.grant()
        bodies.extend(body for _, _, body in records([chunk]))
        offset = chunk.next_offset
    await subscription.close()
    await transport.close()
    return bodies


def process(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    env = processes.environment(environment)
    return subprocess.Popen(
        processes.command_line("pipeline.cli", *arguments, env=env),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_needs_none_of_the_heavy_imports() -> None:
    heavy = "('numpy', 'aiohttp', 'faust', 'psycopg', 'sqlalchemy')"
    code = f"import sys, pipeline.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=children.environment(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["worker", "api", "exporter", "alerts"])
def test_a_process_warns_at_start_of_a_variable_that_resembles_a_setting(command: str) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    started = process(
        command,
        DATABASE_URL=url,
        RABBITMQ_URL="embedded:///nonexistent/folder",
        HTTP_PORT="0",
        METRICS_PORT="0",
        EXPORT_DIR="/nonexistent/folder",
        FLUSH_INTERVALL="100ms",
    )
    assert started.stderr is not None
    try:
        lines = (json.loads(line) for line in started.stderr if line.startswith("{"))
        warning = next((line for line in lines if line["event"] == "setting_unknown"), None)
        assert warning is not None
        assert (warning["level"], warning["variable"], warning["meant"]) == (
            "warning",
            "FLUSH_INTERVALL",
            "FLUSH_INTERVAL",
        )
    finally:
        started.kill()
        started.communicate()


def test_the_log_of_a_child_is_nobody_elses_to_read(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    assert children.Child(["/bin/true"], env={}, log=log).wait() == 0
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_simulate_publishes_at_the_rate_for_the_duration(tmp_path: Path) -> None:
    started = time.time()
    arguments = ("simulate", "--rate", "2000", "--duration", "1s", "--orgs", "3", "--models", "2")
    exit_code, output, _ = await in_thread(*arguments, RABBITMQ_URL=f"embedded://{tmp_path}")
    assert exit_code == 0
    assert "done: published 2000 events" in output
    events = [decode(body) for body in await stored(tmp_path)]
    assert len(events) == 2000
    good = [event for event in events if isinstance(event, Event)]
    assert len(good) == 2000
    assert len({event.event_id for event in good}) == 2000
    assert len({event.org_id for event in good}) == 3
    assert len({event.model_id for event in good}) == 2
    assert all(started - 1 <= event.occurred_us / 1e6 <= time.time() for event in good)


async def test_simulate_options_reach_the_traffic(tmp_path: Path) -> None:
    options = (
        "--rate 5000 --duration 1s --seed 9 --duplicates 0.1 --late 0.05 --bad 0.1 --clients 2 --shape flat"
    )
    variants = ("--snake-case", "0", "--cloudevents", "1")
    exit_code, _, _ = await in_thread(
        "simulate",
        *options.split(),
        *variants,
        RABBITMQ_URL=f"embedded://{tmp_path}",
        RABBITMQ_STREAM="other",
    )
    assert exit_code == 0
    bodies = await stored(tmp_path, "other")
    oracle = Oracle()
    for body in bodies:
        oracle.feed(oracle.next_offset, time.time_ns() // 1000, body)
    assert 0.07 < oracle.duplicate / len(bodies) < 0.13
    assert 0.07 < oracle.rejected / len(bodies) < 0.13
    assert len({key[3] for key in oracle.client_hour if key[0] == next(iter(oracle.orgs_seen))}) <= 2
    assert sum(body.startswith(b'{"specversion"') for body in bodies) > 0.85 * len(bodies)


async def test_the_same_seed_twice_counts_once_and_no_seed_counts_anew(tmp_path: Path) -> None:
    for arguments in (["--seed", "4"], ["--seed", "4"], [], []):
        exit_code, _, _ = await in_thread(
            "simulate",
            "--rate",
            "1000",
            "--duration",
            "200ms",
            *arguments,
            RABBITMQ_URL=f"embedded://{tmp_path}",
        )
        assert exit_code == 0
    ids = [event.event_id for body in await stored(tmp_path) if isinstance(event := decode(body), Event)]
    assert len(ids) == 800
    assert len(set(ids)) == 600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_simulate_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    running = process("simulate", "--rate", "500", RABBITMQ_URL=f"embedded://{tmp_path}")
    try:
        wait_for_stream(tmp_path, running)
        running.send_signal(number)
        output, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert "done: published" in output
    assert "Traceback" not in errors


def test_a_signal_ends_simulate_that_waits_for_its_stream(tmp_path: Path) -> None:
    url = "rabbitmq-stream://guest:geheim@127.0.0.1:1/"
    running = process("simulate", "--rate", "500", RABBITMQ_URL=url)
    assert running.stderr is not None
    try:
        assert "stream unavailable" in running.stderr.readline()
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    assert "geheim" not in errors


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(traces.MINUTE, newline="")
    return path


async def replayed(folder: Path, *arguments: str, **environment: str) -> tuple[list[Event], str, str]:
    exit_code, output, errors = await in_thread(
        "replay-trace", *arguments, RABBITMQ_URL=f"embedded://{folder}", **environment
    )
    assert exit_code == 0, errors
    return [e for body in await stored(folder) if isinstance(e := decode(body), Event)], output, errors


async def test_replay_trace_publishes_every_row_ending_now(trace_file: Path, tmp_path: Path) -> None:
    started = time.time()
    events, output, _ = await replayed(tmp_path, str(trace_file))
    assert "published 60 of 60 rows of trace.csv" in output
    assert [event.input_tokens for event in events] == [second * 10 for second in range(60)]
    assert started - 1 <= events[-1].occurred_us / 1e6 <= time.time()
    assert events[-1].occurred_us - events[0].occurred_us == 59_000_000


async def test_replaying_twice_gives_the_same_ids(trace_file: Path, tmp_path: Path) -> None:
    await replayed(tmp_path, str(trace_file))
    events, _, _ = await replayed(tmp_path, str(trace_file))
    assert len(events) == 120
    assert len({(event.org_id, event.event_id) for event in events}) == 60


async def test_original_times_are_kept_and_warned_of(trace_file: Path, tmp_path: Path) -> None:
    events, _, errors = await replayed(tmp_path, str(trace_file), "--original-times", "--limit", "2")
    assert [event.occurred_us for event in events] == [1_700_158_620_979_960, 1_700_158_621_979_960]
    assert "warning: the first row is" in errors
    needed = errors.split("DEDUPE_WINDOW=")[1].split()[0]
    _, _, errors = await replayed(tmp_path, str(trace_file), "--original-times", DEDUPE_WINDOW=needed)
    assert "warning" not in errors


async def test_replay_options(trace_file: Path, tmp_path: Path) -> None:
    options = (
        "--seed",
        "3",
        "--orgs",
        "2",
        "--models",
        "1",
        "--clients",
        "1",
        "--limit",
        "40",
        "--speed",
        "1000",
    )
    events, output, _ = await replayed(
        tmp_path, str(trace_file), *options, "--snake-case", "1", "--cloudevents", "0"
    )
    assert "published 40 of 40 rows" in output
    assert len({event.org_id for event in events}) == 2
    assert len({event.model_id for event in events}) == 1
    assert len({event.client_id for event in events}) == 2
    assert all(body.startswith(b'{"event_id"') for body in await stored(tmp_path))


def test_an_interrupted_replay_says_how_to_go_on(trace_file: Path, tmp_path: Path) -> None:
    running = process("replay-trace", str(trace_file), "--speed", "1", RABBITMQ_URL=f"embedded://{tmp_path}")
    try:
        wait_for_stream(tmp_path, running)
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "of 60 rows" in output
    assert "stopped before the end" in errors
    assert "Traceback" not in errors


async def in_thread(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command that has an event loop of its own, as a process, beside the test's loop."""
    import asyncio

    def run() -> tuple[int, str, str]:
        running = process(*arguments, **environment)
        output, errors = running.communicate(timeout=300)
        return running.returncode, output, errors

    return await asyncio.to_thread(run)


def wait_for_stream(folder: Path, running: subprocess.Popen[str]) -> None:
    """Until the process has written the first bytes of the embedded log."""
    deadline = time.monotonic() + 120
    while not any(
        path.stat().st_size > 200 for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv"
    ):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_commands_need_an_archive_and_a_range() -> None:
    days = ("--from", "2026-01-01", "--to", "2026-01-02T02:00:00+01:00")
    for name in ("reconcile", "rebuild"):
        without = processes.command(name, *days, env={"DATABASE_URL": "postgresql://h/d"})
        assert (without.returncode, "ARCHIVE_URL is not set" in without.stderr) == (2, True)
        env = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "ARCHIVE_URL": "file:///nowhere"}
        assert processes.command(name, "--from", "today", "--to", "2026-01-02", env=env).returncode == 2
        backwards = processes.command(name, "--from", days[3], "--to", days[1], env=env)
        assert (backwards.returncode, "--from must be before --to" in backwards.stderr) == (2, True)
        away = processes.command(name, *days, env=env)
        assert (away.returncode, "the database cannot be" in away.stderr) == (1, True)
