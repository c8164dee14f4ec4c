"""What several commands on prices take as options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from pipeline.common.connect import Connection


KINDS: Final = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "request",
    "discount",
)
SHOWN: Final = 20
"""Lines of notes, and of prices that would be appended, without --verbose."""
VERSION: Final = click.IntRange(0, 2**63 - 1)


def check_version(connection: Connection, asked: int | None, option: str = "--version") -> None:
    """Raises `click.UsageError` if the book has no such version yet."""
    from pipeline.prices import book

    newest = book.version(connection)
    if asked is not None and asked > newest:
        raise click.UsageError(f"{option}: the price book has no version {asked} yet; its newest is {newest}")
