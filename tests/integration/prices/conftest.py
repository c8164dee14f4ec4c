"""What the tests of prices share: a migrated database of the test's own, and an API of a priced usage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.access import reader_of
from tests.support.api_server import served
from tests.support.priced_place import Place
from tests.support.priced_usage import NOW, loaded
from tests.support.teams import load_teams


@pytest.fixture
def database_url(migrated_url: str) -> str:
    return migrated_url


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection


@pytest.fixture(params=["migrated_url", "migrated_timescale"])
def place(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Place]:
    url = request.getfixturevalue(request.param)
    world = loaded(url)
    load_teams(url)
    narrow = request.param == "migrated_url"  # the other server wants a password of each login
    for login in reader_of(url) if narrow else [url]:
        environment = {
            "DATABASE_URL": login,
            "API_ALLOW_PRIVILEGED": str(not narrow).lower(),
            "EXPORT_DIR": str(tmp_path / "exports"),
        }
        with served(environment, NOW) as server:
            yield Place(url, world, server)
