"""What a server is, and what a way to run it is: the two halves that know each other.

A `Server` owns a folder: `server.json` (its ports and its process), `server.log` and `data/`. Any process
that opens the same folder has the same handle, so one command brings a server up and another takes it down.
A `Way` starts, stops and signals; it knows no protocol. The servers are in `servers/`, the ways in `ways/`.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from . import rootfs
from .ports import free_port, is_free
from .processes import Process


class Unavailable(RuntimeError):
    """The servers cannot be had here; the message names each way and why not."""


class Way(Protocol):
    """How a server's processes are started and ended.

    `spawn` returns at once; readiness is the server's to tell.  `leave` removes, when all servers of the
    stack are down, what the way itself made around them, and with `purge` the server's data.
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
    """Where the servers are, as seen from inside their root folder."""

    rabbitmq_server: Path
    pg_bin: Path
    redis_server: Path


class BinariesWay(Way, Protocol):
    """A way that runs binaries: what a server may ask of it."""

    @property
    def binaries(self) -> Binaries: ...
    def run(self, server: "Server", *argv: str) -> None:
        """A command of the server's to its end, as its user. Raises RuntimeError with its output."""

    def data_seen(self, server: "Server") -> Path:
        """The data folder's path as the server sees it."""


class ServerFailed(RuntimeError):
    """A server did not become ready; the message carries the end of its log."""


class Server:
    """One server of a stack.  All methods may be called from any thread, also by several processes.

    Its ports and data survive `stop()`, `kill()` and `restart()`.
    """

    name: ClassVar[str]
    user: ClassVar[str | None] = None  # who runs it inside a root folder; None runs it on the host as we are
    port_names: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    patience_s: ClassVar[float] = 30  # how long `stop()` waits before it kills

    def __init__(self, folder: Path, stack_name: str, way: Callable[[], Way], *, durable: bool) -> None:
        self.folder = folder
        self.stack_name = stack_name
        self.durable = durable
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.mark = str(folder)
        self._way = way

    # -- what tests call

    def start(self, timeout_s: float = 90) -> None:
        """Bring it up and wait until it really answers; nothing happens when it already does.

        Raises ServerFailed at the deadline, or at once when its process ends; it then leaves nothing running.
        """
        with self._locked():
            self._start(timeout_s)

    def stop(self) -> None:
        """End it as an operator would: it closes its connections and writes what it holds."""
        with self._locked():
            self._stop()

    def kill(self) -> None:
        """SIGKILL all its processes at one moment."""
        with self._locked():
            if self._known():
                self._way().kill(self)

    def restart(self, timeout_s: float = 90) -> None:
        with self._locked():
            self._stop()
            self._start(timeout_s)

    def pause(self) -> None:
        """SIGSTOP all its processes: connections stay open and nothing answers."""
        with self._locked():
            self._way().pause(self)

    def resume(self) -> None:
        with self._locked():
            self._way().resume(self)

    def leave(self, *, purge: bool) -> None:
        """Clear away what is left once all servers of the stack are down, with `purge` also the data."""
        with self._locked():
            if self._known():
                self._way().leave(self, purge=purge)

    def is_up(self) -> bool:
        """Whether it runs and answers within a second or two."""
        if not self.is_running():
            return False
        try:
            self.probe()
        except Exception:  # whatever a client raises, it means "not up"
            return False
        return True

    def is_running(self) -> bool:
        """Whether its process runs, answering or not."""
        return self._known() and self._way().alive(self)

    @property
    def ports(self) -> dict[str, int]:
        """Its ports, chosen at the first start and kept."""
        ports: dict[str, int] = self._load().get("ports", {})
        if not ports:
            raise ServerFailed(f"{self.name} has no ports yet: it was never started")
        return ports

    @property
    def process(self) -> Process | None:
        """The process we started last; it may be gone."""
        known = self._load().get("process")
        return Process(**known) if known else None

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def env(self) -> dict[str, str]:
        """The environment by which programs find it."""
        raise NotImplementedError

    # -- what each server tells

    def prepare(self, way: BinariesWay) -> None:
        """Write its configuration into `data` (as it is seen at `way.data_seen(self)`)."""

    def command(self, way: BinariesWay) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run it in the foreground."""
        raise NotImplementedError

    def probe(self) -> None:
        """Speak to it in its protocol; raises whatever its client raises when it does not answer."""
        raise NotImplementedError

    def settle(self) -> None:
        """What has to be made once it answers (a database, a bucket); repeated until it works."""

    def compose_env(self) -> dict[str, str]:
        """Variables of compose.yaml: ports, and how durable."""
        known = {
            f"{self.name}_{port}_PORT".upper(): str(number)
            for port, number in self._load().get("ports", {}).items()
        }
        return known | {"POSTGRES_FSYNC": "on" if self.durable else "off"}

    def tidy(self) -> None:
        """Remove what it leaves outside its folder; its processes are gone."""

    # -- inside

    def remember(self, process: Process) -> None:
        self._save(process={"pid": process.pid, "started": process.started})

    def _start(self, timeout_s: float) -> None:
        way, deadline = self._way(), time.monotonic() + timeout_s
        if spawned := not way.alive(self):
            self._choose_ports()
            way.spawn(self)
        else:
            way.resume(self)
        try:
            self._wait_ready(deadline)
        except BaseException:
            if spawned:
                way.kill(self)
            raise
        self._save(env=self.env)  # for who reads the file; we compute it

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
                why = None if way.alive(self) else "its process ended"
                if time.monotonic() > deadline:
                    why = f"not ready in time ({type(error).__name__}: {error})"
                if why:
                    raise ServerFailed(f"{self.name}: {why}; its log ends:\n{way.log_tail(self)}") from error
            time.sleep(0.1)

    def _choose_ports(self) -> None:
        """The ports it had, if they are free or soon are, else new ones."""
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
        """Written whole and renamed: a reader never sees half of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "server.json.new"
        new.write_text(json.dumps(self._load() | changes, indent=1) + "\n")
        new.rename(self.folder / "server.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with rootfs.exclusive(self.folder / "lock"):
            yield
