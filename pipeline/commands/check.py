"""``spendstream check``: a synthetic check for cron, which sends one event through everything."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import DURATION, VISIBLE, fail
from pipeline.common import parsers, settings

if TYPE_CHECKING:
    from pipeline.admin.check import CheckConfig, Outcome


@click.command()
@click.option("--api", "api_url", help="The API to ask. Default: CHECK_API_URL.")
@click.option(
    "--collector",
    "collector_url",
    help="The collector to send to. Default: CHECK_COLLECTOR_URL; without either, into the stream.",
)
@click.option("--org", help="The org of the event: a UUID, or a name that makes one. Default: CHECK_ORG.")
@click.option(
    "--name", default="check", show_default=True, help="The beginning of the event's client; see below."
)
@click.option("--timeout", type=DURATION, help="How long all may take, up to 7m. Default: CHECK_TIMEOUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def check(*, as_json: bool, name: str, **given: Any) -> None:
    """Send one event of a test org through everything, and say how long it took until the API counted it.

    The event goes to the collector, or into the stream (RABBITMQ_URL). It costs nothing and has no tokens.
    An API key of the org is read from CHECK_KEY alone. Runs that begin in the same minute need different
    names.

    Exit codes: 0 if the event was counted, 1 if not in time, 2 if the configuration is wrong.
    """
    import asyncio

    from pipeline.admin import check as checking

    config = _config(name, given)
    outcome = asyncio.run(checking.run(config))
    if as_json:
        click.echo(json.dumps(_fields(outcome, config), ensure_ascii=False))
        if not outcome.is_counted:
            raise click.exceptions.Exit(1)
    elif outcome.is_counted:
        click.echo(_line(outcome))
    else:
        fail(_failure(outcome, config).translate(VISIBLE))


def _config(name: str, given: dict[str, Any]) -> CheckConfig:
    """The configuration: what an option says goes before the environment."""
    from pipeline import config
    from pipeline.admin.check import NAME_CHARS_MAX, CheckConfig
    from pipeline.core import wire

    options = {
        "CHECK_API_URL": given["api_url"],
        "CHECK_COLLECTOR_URL": given["collector_url"],
        "CHECK_ORG": given["org"],
        "CHECK_TIMEOUT": None if given["timeout"] is None else parsers.written(given["timeout"]),
    }
    said = {name: value for name, value in options.items() if value is not None}
    environment = {**os.environ, **said}
    by_stream = not environment.get("CHECK_COLLECTOR_URL")
    values = settings.read(environment, required=("RABBITMQ_URL",) if by_stream else ())
    if not 0 < len(name) <= NAME_CHARS_MAX or not wire.is_storable(name):
        raise click.UsageError(f"--name must have 1 to {NAME_CHARS_MAX} characters")
    stream = config.stream_config(values) if by_stream else None
    return values.make(CheckConfig, name=name, stream=stream)


def _line(outcome: Outcome) -> str:
    return (
        f"counted after {outcome.counted_s:.2f} s: event {outcome.event_id} of org {outcome.org_id}, by the"
        f" {outcome.by}, which had it after {outcome.stored_s:.2f} s"
    )


def _failure(outcome: Outcome, config: CheckConfig) -> str:
    if outcome.stored_s is None:
        return f"not sent within {config.timeout_s:g} s: {outcome.fault}"
    return (
        f"not counted within {config.timeout_s:g} s: event {outcome.event_id} of org {outcome.org_id}; the"
        f" {outcome.by} had it after {outcome.stored_s:.2f} s; {outcome.fault}"
    )


def _fields(outcome: Outcome, config: CheckConfig) -> dict[str, Any]:
    return {
        "counted": outcome.is_counted,
        "counted_s": _rounded(outcome.counted_s),
        "stored_s": _rounded(outcome.stored_s),
        "timeout_s": config.timeout_s,
        "by": outcome.by,
        "event_id": str(outcome.event_id),
        "org_id": str(outcome.org_id),
        "client_id": outcome.client_id,
        "fault": outcome.fault or None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
