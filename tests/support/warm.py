"""Our commands and processes without a start of Python for each: one process has imported all, and forks.

    forked = warm.server().start("pipeline.cli", ["worker"], env=…, stdout=log, stderr=log)
    subprocess.run(warm.server().command_line("pipeline.cli", "doctor"), env=…)

What a worker imports takes 2.5 s of a processor, and a fork of a process that has imported it 0.02 s. What
runs is the same code, in a process of its own with its own environment, folder and outputs. Each process of
pytest has one server, which starts when the first test needs it. `tests.support.processes` uses it for all
that it starts, except where `fits` says no, or the test says ``cold``: a test about the start itself, or
about memory, since a fork begins with the memory of all that the server has imported.

The *server* forks for each order. That fork is a *keeper*: it forks once more for the command, tells the
test the pid and later the exit code, and kills the command if the test's process dies. `Forked` is that
command from the test's side, with the methods of `subprocess.Popen`, and signals go to the command itself.
Where a test needs a real command line, a small script (`warm_client`) orders the command and stands for it:
it hands SIGTERM and SIGINT on, and the command dies when the script does.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, Final

from pipeline.processes import child as children
from tests.support.warm_client import order

_CLIENT: Final = Path(__file__).with_name("warm_client.py")
_COLD: Final = ("pipeline.bench", "pipeline.demo", "pipeline.top", "pipeline.common.traces.otel")
"""What is imported by who needs it: it is rare, or has threads that no fork would have."""
_READ_AT_START: Final = ("LD_", "MALLOC_", "GLIBC_", "PYTHON", "NUMBA_", "LC_", "LANG")
"""How variables begin that the loader, the C library, Python or Numba reads once, before a fork is there."""
_READ_AGAIN: Final = "PYTHONFAULTHANDLER"
_READY_S: Final = 400.0
_ENV: Final = children.environment(os.environ)
"""The environment of the server: ours before any test has changed it."""
_LOCK: Final = threading.Lock()


class Forked:
    """A command that a keeper runs for us, with the methods of `subprocess.Popen`. Threads may share it."""

    def __init__(self, connection: socket.socket, args: Sequence[str]) -> None:
        self.args = [*args]
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()
        told, fds, _, _ = socket.recv_fds(connection, 32, 1)
        self.pid = int(told)
        (self._pidfd,) = fds

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and _readable(self._pidfd, 0):
                self.returncode = int(self._connection.recv(32))
                self._connection.close()
                os.close(self._pidfd)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        pidfd = os.dup(self._pidfd) if self.returncode is None else None
        try:
            if pidfd is not None and not _readable(pidfd, timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        finally:
            if pidfd is not None:
                os.close(pidfd)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: signal.Signals) -> None:
        with self._lock, suppress(ProcessLookupError):
            if self.returncode is None:
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _readable(fd: int, timeout_s: float | None) -> bool:
    poll = select.poll()  # select() takes no number above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


class Server:
    """The server, from the side of the test's process. It ends when that process does."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="spendstream-warm-"))
        self._socket = self._folder / "socket"
        with (self._folder / "log").open("wb") as log:
            # The kernel would end the server with the thread that has started it, so a pipe tells the end.
            self.process = subprocess.Popen(
                children.command_line("tests.support.warm", str(self._socket)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_ENV,
            )
        atexit.register(self.process.kill)
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        deadline = time.monotonic() + _READY_S
        while not self._socket.exists():
            assert self.process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "the warm server did not start"
            time.sleep(0.02)

    def fits(self, env: Mapping[str, str]) -> bool:
        """Is ``env`` like that of the server in all that is read before a fork is there?"""
        return all(
            env.get(name) == _ENV.get(name)
            for name in {*env, *_ENV} - {_READ_AGAIN}
            if name.startswith(_READ_AT_START)
        )

    def start(
        self, module: str, arguments: Sequence[str], *, env: Mapping[str, str], stdout: int, stderr: int
    ) -> Forked:
        """Run ``module`` as `pipeline.processes.child.command_line` does, with our own input."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._socket))
        order(connection, module, [*arguments], dict(env), [0, stdout, stderr])
        return Forked(connection, (module, *arguments))

    def command_line(self, module: str, *arguments: str) -> list[str]:
        """The command that runs ``module`` as `pipeline.processes.child.command_line` does."""
        return [sys.executable, "-I", "-S", str(_CLIENT), str(self._socket), module, *arguments]


@cache
def _server(_pid: int) -> Server:
    return Server()


def server() -> Server:
    """The server of this process. It starts now, if it is the first time that it is needed."""
    with _LOCK:
        return _server(os.getpid())


def possible() -> bool:
    """Is this a test (no measurement), and does the system have what a keeper needs?"""
    return "PYTEST_VERSION" in os.environ and hasattr(os, "pidfd_open")


def _import_all() -> None:
    for package in ("pipeline", "api"):
        for one in walk_packages(import_module(package).__path__, f"{package}."):
            if not one.name.startswith(_COLD) and not one.name.endswith("__main__"):
                import_module(one.name)
    for name in ("sql.migrate", "pyarrow.parquet", "s3fs"):
        import_module(name)
    from pipeline.core import checked
    from pipeline.core.warm_up import warm_up
    from pipeline.sink import copy_binary
    from pipeline.transports.rabbitmq import frames

    with open(Path(tempfile.gettempdir()) / f"spendstream-warm-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first compiles, and the others find the loops in the cache
        for loops in (warm_up, checked.warm_up, copy_binary.warm_up, frames.warm_up):
            loops()


def _orders(path: str) -> Iterator[socket.socket]:
    """The connections of clients, each in a process of its own: the generator forks, and goes on in us."""
    with socket.socket(socket.AF_UNIX) as listener:
        new = f"{path}.new"
        listener.bind(new)
        listener.listen(64)
        os.rename(new, path)  # whoever sees the name finds us listening
        lifeline = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([listener, lifeline], [], [])
            if lifeline in ready:  # our parent has died, since it writes nothing
                shutil.rmtree(Path(path).parent, ignore_errors=True)
                os._exit(0)
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                yield client
                return
            client.close()


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, fds, _, _ = socket.recv_fds(client, 4, 3)
    (size,) = struct.unpack("!I", head)
    body = b""
    while len(body) < size:
        part = client.recv(size - len(body))
        if not part:
            os._exit(0)  # the client has died
        body += part
    asked: dict[str, Any] = json.loads(body)
    return asked, fds


def _keep(client: socket.socket) -> dict[str, Any]:
    """Return the order in the process that must run it. The keeper stays here until that one has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, fds = _received(client)
    pid = os.fork()
    if pid == 0:
        client.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        return asked
    for fd in fds:
        os.close(fd)
    ended = os.pidfd_open(pid)
    with suppress(OSError):
        socket.send_fds(client, [str(pid).encode()], [ended])
    ready, _, _ = select.select([ended, client.fileno()], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


class _End:
    """The end of a fork: what Python does at its end, but not the freeing of all that was imported.

    That would take half of the time of a short command, since a fork must copy each page first.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        atexit.register(self._last)  # the first to be registered is the last to be called

    def _last(self) -> None:
        if self.code is None:
            return
        gc.collect()  # what is not closed says so
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)


def _run(asked: dict[str, Any], end: _End) -> None:
    os.environ.clear()
    os.environ.update(asked["env"])
    if os.environ.get(_READ_AGAIN):
        faulthandler.enable()
    tempfile.tempdir = None  # what the server's environment says
    time.tzset()
    os.chdir(asked["cwd"])
    module = asked["module"]
    sys.argv = [module, *asked["arguments"]]
    if not hasattr(sys.modules.get(module), "__path__"):
        sys.modules.pop(module, None)  # else Python warns of a second one
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        end.code = 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            end.code = (error.code or 0) & 0xFF
        raise


def main() -> None:
    end = _End()
    _import_all()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all that is imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    _run(_keep(next(_orders(sys.argv[1]))), end)


if __name__ == "__main__":
    main()
