"""Our commands and processes without a start of Python for each: one process has imported all, and forks.

    with Warm(folder) as warm:
        subprocess.run(warm.command_line("pipeline.cli", "doctor"), env=…)

What a worker imports takes 2.5 s of a processor, and a fork of a process that has imported it 0.02 s. What
runs is the same code, in a process of its own with its own environment, folder and outputs. A test that is
about the start itself (PYTHONPATH, NUMBA_CACHE_DIR, a preloaded library, the memory at the start) needs
`pipeline.processes.child.command_line`.

Three processes take part. The *client* is what a test starts, a small script without imports of ours. The
*server* forks for each client. The *keeper* is such a fork: it forks once more for the command, tells the
client its pid and its exit code, and kills it if the client dies. The client hands SIGTERM and SIGINT on.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, Final, Self

from pipeline.processes import child as children

_CLIENT: Final = Path(__file__).with_name("warm_client.py")
_COLD: Final = ("pipeline.bench", "pipeline.demo", "pipeline.top", "pipeline.common.traces.otel")
"""What is imported by who needs it: it is rare, or has threads that no fork would have."""
_READY_S: Final = 120.0


class Warm:
    """The server, from the test's side. ``folder`` is for its socket and its log; a short path."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "warm"
        self._log = folder / "warm.log"
        self._server: subprocess.Popen[bytes] | None = None

    def command_line(self, module: str, *arguments: str) -> list[str]:
        """The command that runs ``module`` as `pipeline.processes.child.command_line` does."""
        return [sys.executable, "-I", "-S", str(_CLIENT), str(self._socket), module, *arguments]

    def __enter__(self) -> Self:
        command = children.command_line("tests.support.warm", str(self._socket))
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=children.environment(os.environ),
                preexec_fn=children.dies_with_parent(signal.SIGKILL),
            )
        deadline = time.monotonic() + _READY_S
        while not self._socket.exists():
            assert self._server.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "the warm server did not start"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()


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

    for loops in (warm_up, checked.warm_up, copy_binary.warm_up, frames.warm_up):
        loops()


def _orders(path: str) -> Iterator[socket.socket]:
    """The connections of clients, each in a process of its own: the generator forks, and goes on in us."""
    with socket.socket(socket.AF_UNIX) as listener:
        new = f"{path}.new"
        listener.bind(new)
        listener.listen(64)
        os.rename(new, path)  # whoever sees the name finds us listening
        while True:
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
    order: dict[str, Any] = json.loads(body)
    return order, fds


def _keep(client: socket.socket) -> dict[str, Any]:
    """Return the order in the process that must run it. The keeper stays here until that one has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order, fds = _received(client)
    pid = os.fork()
    if pid == 0:
        client.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        return order
    for fd in fds:
        os.close(fd)
    with suppress(OSError):
        client.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, client.fileno()], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def main() -> None:
    _import_all()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all that is imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    order = _keep(next(_orders(sys.argv[1])))
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order["cwd"])
    sys.argv = [order["module"], *order["arguments"]]
    sys.modules.pop(order["module"], None)  # else Python warns of a second one
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
