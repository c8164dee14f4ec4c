"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.local import Stack
from deploy.local.servers import Server


@pytest.fixture
def servers(stack: Stack, up: Callable[[Server], None]) -> Stack:
    """The session's stack, with all that a world needs running."""
    for server in (stack.rabbitmq, stack.postgres, stack.redis):
        up(server)
    return stack
