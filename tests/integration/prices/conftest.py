"""What the tests of prices share: a migrated database of the test's own, and a connection to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from sql import migrate


@pytest.fixture
def database_url(embedded_postgres_url: str) -> str:
    migrate.upgrade(embedded_postgres_url)
    return embedded_postgres_url


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection
