"""The parts that all commands share: kinds of options, the stream's settings, warnings and failures."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from pipeline.common import parsers, settings
from pipeline.common.texts import VISIBLE as VISIBLE

if TYPE_CHECKING:
    from pipeline.config import StreamConfig


def fail(message: str) -> NoReturn:
    """End the command with one line and exit code 1."""
    raise click.ClickException(message)


def warn(message: str) -> None:
    """Print a warning to stderr, and go on."""
    click.echo(f"warning: {message}", err=True)


def agree(question: str) -> None:
    """Ask, and end the command if the answer is no, or if nobody is there to answer."""
    try:
        click.confirm(question, abort=True)
    except click.Abort:
        fail("nothing was changed; --yes goes on without asking")


def note(message: str) -> None:
    """Print something to know to stderr: nothing is wrong."""
    click.echo(f"note: {message}".translate(VISIBLE), err=True)


def database_url() -> str:
    """DATABASE_URL from the environment. Raises `settings.ConfigError` with every fault of the settings."""
    return str(settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"])


def stream_config() -> StreamConfig:
    """The stream's configuration from the environment. Raises `settings.ConfigError` with every fault."""
    from pipeline import config

    return config.stream_config(settings.read(os.environ, required=("RABBITMQ_URL",)))


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


class _Org(click.types.UUIDParameterType):
    """A UUID. Of a name, the fault has the id that the collector makes of it, but the name is not taken: a
    UUID with a typing error would be the name of an org that nobody has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            from pipeline.collector import ids

            self.fail(
                f"{value!r} is not a UUID; a sender that calls its org so writes events of the org"
                f" {ids.org_id(value)} (`spendstream id org`)",
                param,
                ctx,
            )


DURATION: Final = _Duration()
ORG: Final = _Org()
TIME: Final = _Time()
OFFSET: Final = click.IntRange(-(2**63), 2**63 - 1)
"""An offset is a bigint in the database."""


def plain(value: Any) -> str:
    """The text of a value that JSON has no form for: exact numbers, times in UTC, ids."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)
