"""``spendstream version``, ``config``, ``migrate``, ``warm-up``, ``doctor``: the environment of processes."""

from __future__ import annotations

import json
import os
import re

import click

from pipeline.commands.options import fail, warn
from pipeline.common import lookalikes, settings
from pipeline.common.settings_table import GROUPS, SETTINGS, Setting


@click.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    try:
        click.echo(f"spendstream {metadata.version('spendstream')}")
    except metadata.PackageNotFoundError:
        click.echo("spendstream (not installed: run from its source)")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def config(as_json: bool) -> None:
    """Print every setting with its value, the origin of the value, and the purpose of the setting.

    Secrets and the passwords in URLs are masked. Exits with 2 and lists every fault if a value is wrong.
    """
    values = settings.read(os.environ)
    for lookalike in lookalikes.find(os.environ):
        warn(str(lookalike))
    rows = [
        {
            "name": setting.name,
            "value": masked(setting, values.texts[setting.name]),
            "origin": values.origins[setting.name],
            "help": setting.help,
        }
        for setting in SETTINGS
    ]
    if as_json:
        click.echo(json.dumps({row["name"]: row for row in rows}, indent=2, ensure_ascii=False))
        return
    by_name = {row["name"]: row for row in rows}
    for group in GROUPS:
        click.echo(f"# {group.title}")
        for setting in group.settings:
            row = by_name[setting.name]
            value = "(not set)" if row["value"] is None else row["value"]
            click.echo(f"{row['name']}={value}  [{row['origin']}]\n    {row['help']}")


def masked(setting: Setting, text: str | None) -> str | None:
    """The value of a setting with its secrets masked: every password, key and token."""
    if text is None or not setting.secret:
        return text
    if not re.match(r"[a-z][a-z0-9+.-]*://", text, flags=re.I):
        return "***"
    # A lone user can be a token, so it is masked too.
    text = re.sub(r"(?<=://)([^/?#@:]*:)?[^?#]*@", lambda match: f"{match[1] or ''}***@", text)
    return re.sub(r"(?<=[?&])([^=&#]*(?:pass|key|secret|token)[^=&#]*)=[^&#]*", r"\1=***", text, flags=re.I)


@click.command()
def migrate() -> None:
    """Create or upgrade the schema in DATABASE_URL, and set its edition's features up. Safe to repeat."""
    from sqlalchemy.exc import DBAPIError

    from sql import migrate as migrations
    from sql import schema

    values = settings.read(os.environ, required=("DATABASE_URL",))
    try:
        applied = migrations.upgrade(
            values["DATABASE_URL"],
            retention_minute_s=values["RETENTION_MINUTE"],
            retention_rollup_s=values["RETENTION_ROLLUP"],
            say=lambda text: click.echo(text, err=True),
        )
    except (migrations.MigrationRefused, DBAPIError) as error:
        why = str(error.orig).strip() if isinstance(error, DBAPIError) else str(error)
        fail(f"the database cannot be migrated: {why}")
    click.echo(f"schema analytics is at revision {schema.HEAD} on {applied.edition}")
    for note in applied.notes:
        click.echo(f"  {note}")


@click.command("warm-up")
def warm_up() -> None:
    """Compile the loops of every process into NUMBA_CACHE_DIR, so that no start waits for a compiler.

    An image is built with it. Afterwards the folder need not be writable. A second run says that nothing was
    compiled, if the folder's loops are for this machine.
    """
    from pipeline.core import checked
    from pipeline.core.kernels import compile as kernels
    from pipeline.core.warm_up import warm_up as core
    from pipeline.sink import copy_binary
    from pipeline.transports.rabbitmq import frames

    for loops in (core, checked.warm_up, copy_binary.warm_up, frames.warm_up):
        loops()
    loaded, compiled = kernels.counts()
    click.echo(f"{loaded} loops were loaded, {compiled} compiled")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each finding.")
@click.option(
    "--for",
    "processes",
    type=click.Choice(("worker", "api", "exporter", "alerts", "collector")),
    multiple=True,
    help="Check what this process needs, and nothing else; can be repeated.",
)
def doctor(as_json: bool, processes: tuple[str, ...]) -> None:
    """Check configuration, database, stream, Redis, object store and this host; say what to do.

    Without --for, it checks what the environment can be for: worker, API and exporter; the collector too if
    a setting COLLECTOR_… is given; and the collector alone if DATABASE_URL is missing then. Changes nothing.
    Exits with 1 if anything fails; a warning alone is no failure.
    """
    from pipeline.admin import doctor as examination

    failed = 0
    for finding in examination.examine(os.environ, processes):
        failed += finding.level is examination.Level.FAIL
        if as_json:
            row = {name: getattr(finding, name) for name in ("level", "name", "detail", "remedy")}
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        click.echo(f"{finding.level:<5} {finding.name:<14} {finding.detail}")
        if finding.remedy:
            click.echo(f"{'':<5} {'':<14} -> {finding.remedy}")
    if failed:
        fail(f"{failed} of the checks failed")
