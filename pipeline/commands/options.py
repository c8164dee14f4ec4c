"""What the commands' modules share: kinds of options, and how a line is said or a command fails."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click

from pipeline.common import parsers


def fail(message: str) -> NoReturn:
    """End the command with one line and exit code 1."""
    raise click.ClickException(message)


class _Duration(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parsers.duration_s(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail("must be above 0", param, ctx)
        return seconds


class _Time(click.ParamType):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail("expected a date or time such as 2026-11-23 or 2026-11-23T10:00:00Z", param, ctx)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


DURATION: Final = _Duration()
TIME: Final = _Time()
OFFSET: Final = click.IntRange(-(2**63), 2**63 - 1)
"""As the database keeps it."""

VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
"""Control characters must not reach a terminal."""
