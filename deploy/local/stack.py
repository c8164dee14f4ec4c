"""A stack: the four servers in one folder, run in one way."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType

from . import rootfs, ways
from .server import Server, Way
from .servers import S3, Postgres, RabbitMQ, Redis

SERVICES = ("rabbitmq", "postgres", "redis", "s3")
_REPOSITORY = Path(__file__).parents[2]


def default_folder() -> Path:
    """The folder of `up`'s stack: $SPENDSTREAM_STACK, else the user's state folder."""
    if given := os.environ.get("SPENDSTREAM_STACK"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "spendstream/stack"


class Stack:
    """RabbitMQ, TimescaleDB, Redis and S3 in `folder`.  Start one by its handle, or several together.

    `temporary=True` is for tests: the end of the `with` block purges the stack.  If this process ends before
    that, even by SIGKILL, a watcher purges the stack.  Without `temporary` the servers outlive the process,
    as `up` wants.  `way` is "compose", "host" or "rootfs".  The default is $SPENDSTREAM_WAY, else the first
    way that works.  `durable=False` lets PostgreSQL skip fsync.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        way: str | None = None,
        durable: bool = True,
        temporary: bool = False,
    ) -> None:
        self.folder = (folder or default_folder()).resolve()
        self.name = f"spendstream-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:10]}"
        self._wanted_way = way or os.environ.get("SPENDSTREAM_WAY")
        self._lifeline: Lifeline | None = None
        self._temporary = temporary

        def owned() -> Way:
            self._bind()
            return self.way

        self.rabbitmq = RabbitMQ(self.folder / "rabbitmq", self.name, owned, durable=durable)
        self.postgres = Postgres(self.folder / "postgres", self.name, owned, durable=durable)
        self.redis = Redis(self.folder / "redis", self.name, owned, durable=durable)
        self.s3 = S3(self.folder / "s3", self.name, owned, durable=durable)
        self.servers: dict[str, Server] = {
            server.name: server for server in (self.rabbitmq, self.postgres, self.redis, self.s3)
        }

    def start(self, services: Iterable[str] = SERVICES, timeout_s: float = 300) -> None:
        """Start these servers side by side.  Servers that are up already are left as they are.

        Raises Unavailable if no way works here.  Raises ServerFailed for a server that does not come up.  The
        other servers then keep running.
        """
        self._bind()
        chosen = [self.servers[name] for name in services]
        _ = self.way  # chosen, and built, once
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            started = [pool.submit(server.start, timeout_s) for server in chosen]
        for outcome in started:
            outcome.result()

    def stop(self, *, purge: bool = False) -> None:
        """Stop all running servers.  The data and the ports stay, unless `purge` is set."""
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            stopped = [pool.submit(server.stop) for server in self.servers.values()]
        for outcome in stopped:
            outcome.result()
        for server in self.servers.values():
            server.leave(purge=purge)
        if self._lifeline is not None:
            self._lifeline.release()
            self._lifeline = None

    def purge(self) -> None:
        """Stop the servers, and delete everything that a stack has put into its folder, and nothing else."""
        is_ours = (self.folder / "stack.json").exists()  # else no stack has put anything there
        self.stop(purge=is_ours)
        for server in self.servers.values():
            if is_ours:
                shutil.rmtree(server.folder, ignore_errors=True)
        for name in ("stack.json", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        self.__dict__.pop("way", None)  # the next start chooses the way anew
        with suppress(OSError):  # the folder is missing, or it has files of others
            self.folder.rmdir()

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which programs find the running servers."""
        running = [server for server in self.servers.values() if server.is_running()]
        return {name: value for server in running for name, value in server.env.items()}

    @cached_property
    def way(self) -> Way:
        """The way that runs the servers: the earlier way of this folder, else the first way that works."""
        record = self.folder / "stack.json"
        with rootfs.exclusive(self.folder / "lock"):
            if record.exists():
                known = json.loads(record.read_text())
                if known["root"] is None or Path(known["root"]).is_dir():
                    return ways.recorded(**known)
            way = ways.choose(self._wanted_way)
            new = record.with_suffix(".new")
            new.write_text(json.dumps({"name": way.name, "root": str(way.root) if way.root else None}) + "\n")
            new.rename(record)
            return way

    def __enter__(self) -> "Stack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary:
            self.purge()
        else:
            self.stop()

    def _bind(self) -> None:
        if self._temporary and self._lifeline is None:
            down = (sys.executable, "-m", "deploy.local", "down", "--purge", "--folder", str(self.folder))
            self._lifeline = Lifeline(down, cwd=_REPOSITORY)


class Lifeline:
    """A waiting shell that runs a command if this process ends without `release()`.

    The shell waits for the end of a pipe.  The pipe ends with the process, also by SIGKILL, and does not end
    with a thread.
    """

    def __init__(self, command: Sequence[str], cwd: Path | None = None) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r released || exec "$@" </dev/null', "sh", *command],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """Let the shell end without running its command."""
        self._shell.communicate(b"released\n")
