"""Servers, and ways to run them: the two abstract halves that know each other.

A `Server` owns a folder: `server.json` (its ports and its process), `server.log` and `data/`. Any process
that opens the same folder has the same handle, so one command brings a server up and another takes it down.
A `Way` starts, stops and signals a server, and knows no protocol. The servers are in `servers/`, and the ways
are in `ways/`.
"""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from . import rootfs
from .ports import free_port, is_free
from .processes import Process


class Unavailable(RuntimeError):
    """Servers or programs cannot be had here. The message says why, for servers by each way."""


class Way(Protocol):
    """A way to start and end the processes of a server.

    `spawn` returns at once, and the server itself tells when it is ready.  `leave` is called when all servers
    of the stack are down.  It removes all that the way has made around the servers, and with `purge` the
    server's data.
    """

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> Path | None: ...
    def spawn(self, server: "Server") -> None: ...
    def alive(self, server: "Server") -> bool: ...
    def stop(self, server: "Server") -> None: ...
    def kill(self, server: "Server") -> None: ...
    def pause(self, server: "Server") -> None: ...
    def resume(self, server: "Server") -> None: ...
    def leave(self, server: "Server", *, purge: bool) -> None: ...
    def log_tail(self, server: "Server") -> str: ...


@dataclass(frozen=True, slots=True)
class Binaries:
    """The paths of the servers' programs, as seen from inside their root folder."""

    rabbitmq_server: Path
    pg_bin: Path
    redis_server: Path


class BinariesWay(Way, Protocol):
    """A way that runs binaries, with the methods that a server may call."""

    @property
    def binaries(self) -> Binaries: ...
    def run(self, server: "Server", *argv: str) -> None:
        """Run a command to its end as the server's user. Raises RuntimeError with the command's output."""

    def data_seen(self, server: "Server") -> Path:
        """The path of the data folder as the server sees it."""


class ServerFailed(RuntimeError):
    """A server did not become ready. The message has the end of its log."""


_PORT_TAKEN: Final = re.compile("address already in use|eaddrinuse", re.IGNORECASE)
"""A server's log says one of these if another process took a port after we chose it."""


ENDED: Final = "its process ended"
"""A `ServerFailed` says this of a server that did not live until it was ready."""


class Server:
    """One server of a stack.  Several threads and several processes may call all methods.

    The ports and the data of a server survive `stop()`, `kill()` and `restart()`.
    """

    name: ClassVar[str]
    user: ClassVar[str | None] = None  # its user inside a root folder; None: on the host, as our user
    port_names: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    patience_s: ClassVar[float] = 30  # how long `stop()` waits before it kills
    host: str = "127.0.0.1"
    """The address on which the server listens."""
    namespace: str | None = None
    """The network namespace in which the server runs (see `network`). None: in ours."""

    def __init__(self, folder: Path, stack_name: str, way: Callable[[], Way], *, durable: bool) -> None:
        self.folder = folder
        self.stack_name = stack_name
        self.durable = durable
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.mark = str(folder)
        self._way = way

    # -- what tests call

    def start(self, timeout_s: float = 300) -> None:
        """Start the server, and wait until it answers. If the server answers already, nothing happens.

        Raises ServerFailed at the deadline, or at once if the process ends.  Nothing is left running then.
        """
        with self._locked():
            self._start(timeout_s)

    def stop(self) -> None:
        """Stop the server as an operator would: it closes its connections and writes its data."""
        with self._locked():
            self._stop()

    def kill(self) -> None:
        """Kill all processes of the server at one moment with SIGKILL."""
        with self._locked():
            if self._known():
                self._way().kill(self)

    def restart(self, timeout_s: float = 300) -> None:
        with self._locked():
            self._stop()
            self._start(timeout_s)

    def pause(self) -> None:
        """Stop all processes of the server with SIGSTOP: connections stay open, and nothing answers."""
        with self._locked():
            self._way().pause(self)

    def resume(self) -> None:
        with self._locked():
            self._way().resume(self)

    def leave(self, *, purge: bool) -> None:
        """Clear away the rest once all servers of the stack are down. With `purge` the data go too."""
        with self._locked():
            if self._known():
                self._way().leave(self, purge=purge)

    def is_up(self) -> bool:
        """Does the server run, and does it answer within a second or two?"""
        if not self.is_running():
            return False
        try:
            self.probe()
        except Exception:  # every exception of a client means "not up"
            return False
        return True

    def is_running(self) -> bool:
        """Does the server's process run, even if it does not answer?"""
        return self._known() and self._way().alive(self)

    def was_started(self) -> bool:
        """Was the server ever started in this folder? It may be down now."""
        return self._known()

    @property
    def ports(self) -> dict[str, int]:
        """The ports of the server, chosen at the first start and kept."""
        ports: dict[str, int] = self._load().get("ports", {})
        if not ports:
            raise ServerFailed(f"{self.name} has no ports yet: it was never started")
        return ports

    @property
    def process(self) -> Process | None:
        """The process that was started last. It may be gone."""
        known = self._load().get("process")
        return Process(**known) if known else None

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which programs find the server."""
        raise NotImplementedError

    # -- each server implements these

    def prepare(self, way: BinariesWay) -> None:
        """Write the configuration into `data`, which the server sees at `way.data_seen(self)`."""

    def command(self, way: BinariesWay) -> tuple[list[str], dict[str, str]]:
        """The command line and the environment that run the server in the foreground."""
        raise NotImplementedError

    def probe(self) -> None:
        """Speak to the server in its protocol. Without an answer, the client's own exception is raised."""
        raise NotImplementedError

    def settle(self) -> None:
        """Make the things that the stack needs (a database, a bucket), once the server answers.

        The call is repeated until it works.
        """

    def compose_env(self) -> dict[str, str]:
        """The variables of compose.yaml: the ports, and whether the data must be durable."""
        known = {
            f"{self.name}_{port}_PORT".upper(): str(number)
            for port, number in self._load().get("ports", {}).items()
        }
        return known | {"POSTGRES_FSYNC": "on" if self.durable else "off"}

    def tidy(self) -> None:
        """Remove the server's files outside its folder. Its processes are gone by now."""

    # -- inside

    def remember(self, process: Process) -> None:
        self._save(process={"pid": process.pid, "started": process.started})

    def _start(self, timeout_s: float) -> None:
        way, deadline = self._way(), time.monotonic() + timeout_s
        if way.alive(self):
            way.resume(self)
            self._wait_ready(deadline)
        else:
            for attempts_left in (2, 1, 0):
                self._choose_ports()
                try:
                    way.spawn(self)
                    self._wait_ready(deadline)
                    break
                except BaseException as error:
                    way.kill(self)
                    taken = isinstance(error, ServerFailed) and _PORT_TAKEN.search(str(error))
                    if not attempts_left or not taken:
                        raise
        self._save(env=self.env)  # for readers of the file; we compute the environment ourselves

    def _stop(self) -> None:
        if self._known():
            self._way().stop(self)
            self._save(process=None)

    def _wait_ready(self, deadline: float) -> None:
        way = self._way()
        while True:
            try:
                self.probe()
                self.settle()
                return
            except ImportError:  # a client is not installed; waiting would not help
                raise
            except Exception as error:
                why = None if way.alive(self) else ENDED
                if time.monotonic() > deadline:
                    why = f"not ready in time ({type(error).__name__}: {error})"
                if why:
                    raise ServerFailed(f"{self.name}: {why}; its log ends:\n{way.log_tail(self)}") from error
            time.sleep(0.1)

    def _choose_ports(self) -> None:
        """Choose the ports: the server's old ports if they become free soon, else new ones."""
        ports = self._load().get("ports", {})
        patience = time.monotonic() + 5  # somebody's passing connection, or the end of a killed server
        while not all(map(is_free, ports.values())) and time.monotonic() < patience:
            time.sleep(0.1)
        if set(ports) != set(self.port_names) or not all(map(is_free, ports.values())):
            ports = {}
            for name in self.port_names:
                ports[name] = free_port(taken=ports.values())
        self._save(ports=ports)

    def _known(self) -> bool:
        return bool(self._load())

    def _load(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / "server.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def _save(self, **changes: object) -> None:
        """Save changes to server.json. The file is written whole and then renamed, for readers meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "server.json.new"
        new.write_text(json.dumps(self._load() | changes, indent=1) + "\n")
        new.rename(self.folder / "server.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with rootfs.exclusive(self.folder / "lock"):
            yield
