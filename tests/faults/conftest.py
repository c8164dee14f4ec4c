"""Fixtures of the tests of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import Stack
from deploy.local.server import Server


@pytest.fixture
def servers(stack: Stack, up: Callable[[Server], None]) -> Stack:
    """The session's stack, with all servers running that a world needs."""
    for server in (stack.rabbitmq, stack.postgres, stack.redis, stack.s3):
        up(server)
    return stack


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own, in which nothing runs yet."""
    with Stack(tmp_path / "second", temporary=True) as second:
        yield second
