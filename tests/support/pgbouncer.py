"""A real PgBouncer in front of a test's PostgreSQL, which may give each transaction another session."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy.local.ports import free_port
from tests.support import packages
from tests.support.processes import wait_until_answering

_PACKAGE: Final = "pgbouncer"


@contextmanager
def running(url: str, *, mode: str = "transaction", pool_size: int = 4) -> Iterator[str]:
    """Run a pooler of ``pool_size`` sessions; yields the URL of the same database through the pooler.

    Raises `deploy.local.Unavailable` if PgBouncer cannot be installed here.
    """
    program = packages.executable(_PACKAGE, (_PACKAGE,))
    parts = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        port = free_port()
        (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"""\
[databases]
* = host={parts.hostname} port={parts.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder / "users"}
pool_mode = {mode}
default_pool_size = {pool_size}
query_wait_timeout = 120
"""
        )
        user = ("-u", "nobody") if os.geteuid() == 0 else ()  # it refuses to run as root
        log = (folder / "log").open("wb")
        with (
            log,
            subprocess.Popen((program, *user, str(folder / "pgbouncer.ini")), stdout=log, stderr=log) as it,
        ):
            try:
                wait_until_answering(it, lambda: _connect(port), folder / "log")
                yield parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
            finally:
                it.send_signal(signal.SIGKILL)


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
