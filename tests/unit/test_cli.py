"""The commands as a shell sees them: output, exit codes, masks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.commands.environment import masked
from pipeline.common import settings
from pipeline.config import StreamConfig
from pipeline.processes import child as children
from pipeline.transports.factory import open_transport
from tests.support.oracle import Event, Oracle, decode, records

DATABASE_URL = next(setting for setting in settings.SETTINGS if setting.name == "DATABASE_URL")
S3_SECRET_KEY = next(setting for setting in settings.SETTINGS if setting.name == "S3_SECRET_KEY")
HTTP_HOST = next(setting for setting in settings.SETTINGS if setting.name == "HTTP_HOST")
CLEAN = {setting.name: None for setting in settings.SETTINGS}


def invoke(*arguments: str, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments, env={**CLEAN, **environment}, prog_name="spendstream")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


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
    base = {name: value for name, value in os.environ.items() if name not in CLEAN}
    return subprocess.Popen(
        children.command_line("pipeline.cli", *arguments),
        env=children.environment({**base, **environment}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- help, version ----------------------------------------------------------------------------------


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


def test_every_command_and_option_has_a_help_text() -> None:
    exit_code, output, _ = invoke("--help")
    assert exit_code == 0
    for name in main.commands:
        assert name in output
        assert main.commands[name].help, name
        for parameter in main.commands[name].params:
            assert getattr(parameter, "help", "an argument"), (name, parameter.name)
        assert invoke(name, "--help")[0] == 0


def test_version() -> None:
    exit_code, output, _ = invoke("version")
    assert exit_code == 0
    assert output.startswith("spendstream ")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert invoke("nonsense")[0] == 2


# --- config -------------------------------------------------------------------------------------------


def test_config_shows_every_setting_with_origin_and_help() -> None:
    exit_code, output, _ = invoke("config", HTTP_PORT="9000")
    assert exit_code == 0
    assert "HTTP_PORT=9000  [environment]" in output
    assert "HTTP_HOST=127.0.0.1  [default]" in output
    assert "REDIS_URL=(not set)  [default]" in output
    for setting in settings.SETTINGS:
        assert f"{setting.name}=" in output
        assert setting.help in output


def test_config_warns_of_a_variable_that_resembles_a_setting() -> None:
    exit_code, output, errors = invoke("config", FLUSH_INTERVALL="100ms", OTHERS_FLUSH_INTERVAL="x")
    assert exit_code == 0
    assert "FLUSH_INTERVAL=1s  [default]" in output
    assert [line for line in errors.splitlines() if "FLUSH" in line] == [
        "warning: FLUSH_INTERVALL is not a setting and changes nothing: did you mean FLUSH_INTERVAL?"
    ]


@pytest.mark.parametrize("command", ["worker", "api", "exporter"])
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


def test_config_as_json() -> None:
    exit_code, output, _ = invoke("config", "--json", DATABASE_URL="postgresql://u:geheim@h/d")
    assert exit_code == 0
    shown = json.loads(output)
    assert set(shown) == set(CLEAN)
    assert shown["DATABASE_URL"]["value"] == "postgresql://u:***@h/d"
    assert shown["DATABASE_URL"]["origin"] == "environment"
    assert shown["S3_BUCKET"]["value"] is None


def test_bad_configuration_lists_every_fault_and_exits_2() -> None:
    exit_code, output, errors = invoke("config", HTTP_PORT="x", FLUSH_INTERVAL="soon", AUTH_MODE="open")
    assert exit_code == 2
    assert output == ""
    assert len(errors.splitlines()) == 3
    assert all(name in errors for name in ("HTTP_PORT", "FLUSH_INTERVAL", "AUTH_MODE"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:secret@h:5432/d?sslmode=require", "postgresql://u:***@h:5432/d?sslmode=require"),
        ("postgresql://u:s@c@r/et@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=secret&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://h/d?sslkey=/k&sslpassword=secret", "postgresql://h/d?sslkey=***&sslpassword=***"),
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://token@h:6379/0", "redis://***@h:6379/0"),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql"),
        ("embedded:///var/stream", "embedded:///var/stream"),
        (None, None),
    ],
)
def test_credentials_in_urls_are_masked(text: str | None, shown: str | None) -> None:
    assert masked(DATABASE_URL, text) == shown


def test_secrets_are_masked_whole_and_the_rest_is_not() -> None:
    assert masked(S3_SECRET_KEY, "hunter2") == "***"
    assert masked(HTTP_HOST, "127.0.0.1") == "127.0.0.1"


# --- simulate -----------------------------------------------------------------------------------------


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
        output, errors = running.communicate(timeout=20)
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
        _, errors = running.communicate(timeout=20)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    assert "geheim" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0"],
        ["--rate", "-1"],
        ["--orgs", "0"],
        ["--models", "0"],
        ["--duration", "soon"],
        ["--duration", "0"],
        ["--bad", "1.1"],
        ["--duplicates", "0.7", "--bad", "0.7"],
        ["--seed", "-1"],
        ["--shape", "round"],
    ],
)
def test_wrong_options_of_simulate(tmp_path: Path, arguments: list[str]) -> None:
    exit_code, _, errors = invoke("simulate", *arguments, RABBITMQ_URL=f"embedded://{tmp_path}")
    assert exit_code == 2
    assert errors.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("command", [["simulate"], ["replay-trace", __file__]])
def test_a_missing_stream_url_is_a_configuration_fault(command: list[str]) -> None:
    exit_code, _, errors = invoke(*command)
    assert exit_code == 2
    assert errors.startswith("configuration: RABBITMQ_URL is not set")


def test_a_stream_url_without_a_folder_is_wrong_usage() -> None:
    exit_code, _, errors = invoke("simulate", RABBITMQ_URL="embedded://relative")
    assert exit_code == 2
    assert "embedded:///absolute/folder" in errors


# --- replay-trace -------------------------------------------------------------------------------------

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(
    f"2023-11-16 18:17:{second:02d}.9799609,{second * 10},{second}" for second in range(60)
)


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE, newline="")
    return path


async def replayed(folder: Path, *arguments: str, **environment: str) -> tuple[list[Event], str, str]:
    exit_code, output, errors = await in_thread(
        "replay-trace", *arguments, RABBITMQ_URL=f"embedded://{folder}", **environment
    )
    assert exit_code == 0, errors
    return [e for body in await stored(folder) if isinstance(e := decode(body), Event)], output, errors


async def test_replay_trace_publishes_every_row_ending_now(trace_file: Path, tmp_path: Path) -> None:
    events, output, _ = await replayed(tmp_path, str(trace_file))
    assert "published 60 of 60 rows of trace.csv" in output
    assert [event.input_tokens for event in events] == [second * 10 for second in range(60)]
    assert 0 <= time.time() - events[-1].occurred_us / 1e6 < 30
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


def test_a_bad_row_is_one_line_and_exit_1(trace_file: Path, tmp_path: Path) -> None:
    trace_file.write_text(TRACE.replace("180,18", "180,many"), newline="")
    exit_code, _, errors = invoke("replay-trace", str(trace_file), RABBITMQ_URL=f"embedded://{tmp_path}")
    assert exit_code == 1
    assert "trace.csv, line 20: GeneratedTokens must be a whole number" in errors
    assert len(errors.splitlines()) == 1


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    exit_code, _, errors = invoke(
        "replay-trace", str(tmp_path / "no.csv"), RABBITMQ_URL=f"embedded://{tmp_path}"
    )
    assert exit_code == 2
    assert "no.csv" in errors


def test_an_interrupted_replay_says_how_to_go_on(trace_file: Path, tmp_path: Path) -> None:
    running = process("replay-trace", str(trace_file), "--speed", "1", RABBITMQ_URL=f"embedded://{tmp_path}")
    try:
        wait_for_stream(tmp_path, running)
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=20)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "of 60 rows" in output
    assert "stopped before the end" in errors
    assert "Traceback" not in errors


# --- api ----------------------------------------------------------------------------------------------


def test_api_becomes_the_api_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    assert invoke("api")[0] == 0
    ((path, argv, environment),) = calls
    assert path == sys.executable
    assert argv == [sys.executable, "-P", "-m", "api"]
    assert Path(environment["PYTHONPATH"].split(os.pathsep)[0]).joinpath("api").is_dir()


# --- helpers ------------------------------------------------------------------------------------------


async def in_thread(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command that has an event loop of its own, as a process, beside the test's loop."""
    import asyncio

    def run() -> tuple[int, str, str]:
        running = process(*arguments, **environment)
        output, errors = running.communicate(timeout=60)
        return running.returncode, output, errors

    return await asyncio.to_thread(run)


def wait_for_stream(folder: Path, running: subprocess.Popen[str]) -> None:
    """Until the process has written the first bytes of the embedded log."""
    deadline = time.monotonic() + 30
    while not any(
        path.stat().st_size > 200 for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv"
    ):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
