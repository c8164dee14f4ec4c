"""Clients of an API that has no database: open to all, or behind a gateway."""

from collections.abc import AsyncIterator

import pytest

from tests.support.api_in_process import Client, serving


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving({}) as client:
        yield client


@pytest.fixture
async def gateway() -> AsyncIterator[Client]:
    async with serving({"AUTH_MODE": "gateway"}) as client:
        yield client
