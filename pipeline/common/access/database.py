"""What authentication needs of a database. The API's `Database` has it, and so may any other server's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from pipeline.common.connect import AsyncConnection

T = TypeVar("T")


class Reads(Protocol):
    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]], /) -> T:
        """The result of ``work`` in a read-only snapshot.

        Raises:
            Unavailable: the database cannot answer now.
        """


class Writes(Protocol):
    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]], /) -> T:
        """The result of ``work`` once it is committed.

        Raises:
            Unavailable: the database cannot answer now.
        """


class Database(Reads, Writes, Protocol):
    """Reads API keys, and writes their last use."""
