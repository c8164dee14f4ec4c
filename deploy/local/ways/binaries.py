"""Servers as binaries of the host, or of a Debian root folder (`rootfs`).

A server in a root folder has namespaces of its own, which vanish with the server.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .. import network, processes, rootfs
from ..server import Binaries, Server, Unavailable
from .attempt import attempt

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def host() -> "Processes":
    """The way that runs the host's own binaries.

    If we are root, they run in namespaces too, because PostgreSQL refuses to run as root.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable("needs Linux")
    find_binaries(Path("/"))
    if os.geteuid() == 0 and attempt(*rootfs.NAMESPACE, "true").returncode != 0:
        raise Unavailable(
            "PostgreSQL refuses root, and this root may not make namespaces: be an ordinary user"
        )
    return Processes("host", Path("/") if os.geteuid() == 0 else None)


def debian() -> "Processes":
    if reason := rootfs.impossible():
        raise Unavailable(reason)
    try:
        root = rootfs.build()
    except RuntimeError as error:
        raise Unavailable(str(error)) from error
    return Processes("rootfs", root)


@cache
def find_binaries(root: Path) -> Binaries:
    """Find binaries that are new enough, on the host's PATH or in the folders of the packages.

    Raises Unavailable, with the name of each missing binary.
    """

    def first(
        name: str, packaged: Sequence[str], good: Callable[[Path], bool] = lambda _: True
    ) -> Path | None:
        on_path = shutil.which(name) if root == Path("/") else None
        candidates = (
            [Path(on_path)] if on_path else []
        )  # links are not resolved, because some programs look at the name they are called by
        candidates += [path / name for folder in packaged for path in root.glob(folder)]
        return next((path for path in candidates if path.exists() and good(path)), None)

    found = {
        "RabbitMQ >= 4.0": first(
            "rabbitmq-server",
            ("usr/lib/rabbitmq/lib/*/sbin", "opt/rabbitmq*/sbin", "usr/local/lib/rabbitmq*/sbin"),
            lambda path: any(path.resolve().parent.parent.glob("plugins/rabbit-[4-9].*")),
        ),
        "PostgreSQL 17 with TimescaleDB": first(
            "postgres",
            ("usr/lib/postgresql/17/bin", "usr/pgsql-17/bin", "usr/local/pgsql/bin", "opt/postgresql*/bin"),
            lambda path: (
                (root != Path("/") or " 17." in attempt(str(path), "--version").stdout)
                and any(path.resolve().parent.parent.glob("lib/**/timescaledb.so"))
            ),
        ),
        "redis-server": first("redis-server", ("usr/bin", "usr/local/bin")),
    }
    if missing := [name for name, path in found.items() if path is None]:
        raise Unavailable(f"not found: {', '.join(missing)}")
    rabbitmq, postgres, redis = (path for path in found.values() if path is not None)
    beside_initdb = postgres.resolve().parent
    return Binaries(*(Path("/") / path.relative_to(root) for path in (rabbitmq, beside_initdb, redis)))


# Private mounts of the server: its root on itself (df and RabbitMQ's disk monitor want a mounted root), its
# data on /mnt, its own /proc and /dev/shm.  All of them go with the namespace, when its last process ends.
ENTER = """
root=$1 data=$2 user=$3; shift 3
mount --bind "$root" "$root"
mount --bind "$data" "$root/mnt"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev/shm"
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Processes:
    """The way that runs binaries: directly (`root` is None), or in a root folder as the server's own user."""

    name: str
    root: Path | None

    @property
    def binaries(self) -> Binaries:
        return find_binaries(self.root or Path("/"))

    def spawn(self, server: Server) -> None:
        """Start the server, after ending the processes that an earlier run of it may have left."""
        self.kill(server)
        server.data.mkdir(parents=True, exist_ok=True)
        os.chown(server.data, *self._ids(server))
        server.prepare(self)
        argv, env = server.command(self)
        spawned = processes.spawn(
            self._enter(server, argv), env=_env(env), log=server.log, cwd=server.data, mark=server.mark
        )
        server.remember(spawned.process)  # saved before it runs, so that a crash of ours cannot lose it
        spawned.go()

    def run(self, server: Server, *argv: str) -> None:
        """Run a command to its end as the server's user.  Raises RuntimeError with the command's output."""
        env = _env({processes.MARK: server.mark})
        done = subprocess.run(self._enter(server, argv), env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{argv[0]} failed: {(done.stdout + done.stderr).strip()}")

    def data_seen(self, server: Server) -> Path:
        """The path of the data folder as the server sees it."""
        return Path("/mnt") if self._wraps(server) else server.data

    def alive(self, server: Server) -> bool:
        return server.process is not None and server.process.alive()

    def stop(self, server: Server) -> None:
        """Ask the main process to end, and kill all processes that are left after the deadline."""
        self.resume(server)
        if (leader := server.process) is not None and leader.alive():
            main = processes.children(leader.pid) if self._wraps(server) else [leader.pid]
            processes.send(main, server.stop_signal)
            processes.wait_until(lambda: not leader.alive(), timeout_s=server.patience_s)
        self.kill(server)

    def kill(self, server: Server) -> None:
        processes.kill(server.process, server.mark)
        server.tidy()

    def pause(self, server: Server) -> None:
        processes.freeze(server.process, server.mark)

    def resume(self, server: Server) -> None:
        processes.send(processes.members(server.process, server.mark), signal.SIGCONT)

    def leave(self, server: Server, *, purge: bool) -> None:
        if purge:
            shutil.rmtree(server.data, ignore_errors=True)

    def log_tail(self, server: Server) -> str:
        lines = server.log.read_text(errors="replace").splitlines() if server.log.exists() else []
        return "\n".join(lines[-40:])

    def _wraps(self, server: Server) -> bool:
        return self.root is not None and server.user is not None

    def _enter(self, server: Server, argv: Sequence[str]) -> list[str]:
        if not self._wraps(server):
            return [*network.inside(server.namespace), *argv]
        uid, gid = self._ids(server)
        enter = [
            *network.inside(server.namespace),
            *rootfs.NAMESPACE,
            "/bin/sh",
            "-ec",
            ENTER,
            "sh",
            str(self.root),
            str(server.data),
            f"{uid}:{gid}",
        ]
        return enter + list(argv)

    def _ids(self, server: Server) -> tuple[int, int]:
        """Uid and gid of the server's user in its root folder: the packages' user, else nobody."""
        if self.root is None or server.user is None:
            return os.getuid(), os.getgid()
        lines = (self.root / "etc/passwd").read_text().splitlines()
        users = {line.split(":")[0]: line.split(":") for line in lines if line.count(":") >= 6}
        entry = users.get(server.user) or users["nobody"]
        return int(entry[2]), int(entry[3])


def _env(more: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": PATH, "LANG": "C.UTF-8", **more}
