"""The servers that a worker and a collector need, for as long as a bench runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import Stack
from sql import migrate


@contextmanager
def running() -> Iterator[tuple[Stack, dict[str, str], Path]]:
    """Run a broker and a database; yields the stack, what the processes are told, and a folder."""
    with (
        tempfile.TemporaryDirectory(prefix="spendstream-collector-") as temporary,
        Stack(Path(temporary) / "stack", temporary=True) as stack,
    ):
        stack.start(("rabbitmq", "postgres"))
        url = stack.postgres.create_database("bench")
        migrate.upgrade(url)
        env = {
            **stack.rabbitmq.env,
            "DATABASE_URL": url,
            "RABBITMQ_STREAM": "bench",
            "COLLECTOR_RATE_LIMIT": "0",
        }
        yield stack, env, Path(temporary)
