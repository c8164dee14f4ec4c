"""Our own processes, as a user starts them: worker, API and commands, on free ports, with logs kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from deploy.local.ports import free_port
from pipeline.processes import child as children
from tests.support import warm

Running = subprocess.Popen[bytes] | warm.Forked
READY_S = 400.0
SLOW_MACHINE = {"API_DATABASE_TIMEOUT": "5s"}
"""Settings of an API under test: a busy machine may pause for half a second, which is the default."""


def get(url: str, *, timeout_s: float = 60.0) -> tuple[int, Any]:
    """GET a page; returns status and body, decoded if it is JSON. An error status raises nothing."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode()


def command(
    *arguments: str, env: Mapping[str, str], timeout_s: float = 600, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``spendstream …`` to its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = start("pipeline.cli", arguments, env=environment(env), stdout=out, stderr=err, cold=cold)
        try:
            code = started.wait(timeout_s)
        except BaseException:
            started.kill()
            started.wait()
            raise
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(("spendstream", *arguments), code, *said)


def start(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
    cold: bool,
) -> Running:
    """Start a module of ours: as a fork of the warm server, if that is possible and ``cold`` is not said."""
    if cold or not warm.possible() or not warm.server().fits(env):
        return subprocess.Popen(
            children.command_line(module, *arguments), env=dict(env), stdout=stdout, stderr=stderr
        )
    return warm.server().start(module, arguments, env=env, stdout=stdout.fileno(), stderr=stderr.fileno())


def command_line(module: str, *arguments: str, env: Mapping[str, str]) -> list[str]:
    """A command line that runs ``module`` in ``env``, for who must start it in another way than `start`."""
    if not warm.possible() or not warm.server().fits(env):
        return children.command_line(module, *arguments)
    return warm.server().command_line(module, *arguments)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """``env``, and of our own environment all that does not configure Spendstream by accident."""
    return children.environment({**_base(), **env})


def _base() -> dict[str, str]:
    """The environment without variables that would configure Spendstream by accident."""
    from pipeline.common import settings
    from pipeline.common.settings_table import SETTINGS

    return settings.without(os.environ, [setting.name for setting in SETTINGS])


class Process:
    """One long-running process of ours and its log."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        ready: str,
        cold: bool = False,
    ) -> None:
        """``cold`` starts a Python for it: see `tests.support.warm`."""
        self._module, self._arguments = module, tuple(arguments)
        self.env = environment(env)
        self._log = log
        self._cold = cold
        self.ready_url = ready
        self._process: Running | None = None

    def start(self, *, wait: bool = True) -> None:
        with self._log.open("ab") as out:
            self._process = start(
                self._module, self._arguments, env=self.env, stdout=out, stderr=out, cold=self._cold
            )
        if wait:
            self.wait_ready()

    @property
    def process(self) -> Running:
        assert self._process is not None
        return self._process

    def status(self) -> int:
        """The status of the readiness page. 0 while nothing listens."""
        try:
            return get(self.ready_url, timeout_s=10)[0]
        except OSError:
            return 0

    def wait_ready(self) -> None:
        wait_for(lambda: self.status() == 200 or self.process.poll() is not None, READY_S, self.log)
        assert self.process.poll() is None, self.log()

    def has_log(self) -> bool:
        """Has the process been started yet?"""
        return self._log.exists()

    def log(self, most: int | None = 4000) -> str:
        """The last ``most`` characters of the log, or all of it."""
        text = self._log.read_text(errors="replace")
        return text if most is None else text[-most:]

    def events(self) -> list[dict[str, Any]]:
        """The log's JSON lines."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def peak_mib(self) -> float:
        """The most memory that the process itself has had, in MiB."""
        assert isinstance(self.process, subprocess.Popen), "a fork begins with the memory of the warm server"
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def kill(self) -> None:
        """Kill the process (kill -9), and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, timeout_s: float = 120) -> int:
        """Stop the process by SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def worker(env: Mapping[str, str], folder: Path, *, cold: bool = False) -> Process:
    port = free_port()
    return Process(
        "pipeline.cli",
        ["worker"],
        env={**env, "METRICS_PORT": str(port)},
        log=folder / "worker.log",
        ready=f"http://127.0.0.1:{port}/readyz",
        cold=cold,
    )


class Api(Process):
    """The API process, and questions to it."""

    def __init__(self, env: Mapping[str, str], folder: Path, *, cold: bool = False) -> None:
        port = free_port()
        self._root = f"http://127.0.0.1:{port}/analytics/v1"
        super().__init__(
            "api",
            [],
            env={"API_ALLOW_PRIVILEGED": "true", **SLOW_MACHINE, **env, "HTTP_PORT": str(port)},
            log=folder / "api.log",
            ready=f"{self._root}/status/readyz",
            cold=cold,
        )

    def ask(self, path: str, **parameters: Any) -> tuple[int, Any]:
        """GET a path below ``/analytics/v1``. A parameter with a list as its value is repeated."""
        return get(f"{self._root}{path}?{urllib.parse.urlencode(parameters, doseq=True)}")

    def answer(self, path: str, **parameters: Any) -> Any:
        status, body = self.ask(path, **parameters)
        assert status == 200, (status, body)
        return body

    def pages(self, path: str, rows: str = "series", **parameters: Any) -> tuple[list[Any], Any]:
        """All rows of all pages, and the last answer."""
        found: list[Any] = []
        while True:
            answer = self.answer(path, **parameters)
            found.extend(answer[rows])
            if answer["nextCursor"] is None:
                return found, answer
            parameters["cursor"] = answer["nextCursor"]


def wait_for(condition: Any, timeout_s: float, context: Any = lambda: "") -> None:
    """Poll until the condition holds; fail with the context after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s\n{context()}"
        time.sleep(0.05)


def wait_until_answering(
    process: Running, ask: Callable[[], object], log: Path, timeout_s: float = 120
) -> None:
    """Ask a server until no OSError comes; fail with its log if the server ends or the time is over."""

    def answers() -> bool:
        try:
            ask()
        except OSError:
            assert process.poll() is None, log.read_text()[-4000:]
            return False
        return True

    wait_for(answers, timeout_s, lambda: log.read_text()[-4000:])


def metrics(worker: Process) -> dict[str, float]:
    """The values on the worker's page, by name with labels."""
    _, text = get(worker.ready_url.replace("/readyz", "/metrics"))
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
