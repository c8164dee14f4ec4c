"""``spendstream names``: what answers and files call orgs, their clients, and values of their dimensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import ORG, VISIBLE, database_url, plain

if TYPE_CHECKING:
    from pipeline.common.names import Name, Naming

F = TypeVar("F", bound=Callable[..., Any])
_ARGUMENTS: Final = {"name": "NAME", "value": "--value"}


def _whose(command: F) -> F:
    """The options that say what is named."""
    for option in (
        click.option("--value", help="Name this value of the dimension."),
        click.option(
            "--dimension",
            help="Name a value of this dimension, and not the org itself; client for the id of a client.",
        ),
        click.option("--org", "org_id", type=ORG, required=True, help="The org, or whose value it is."),
    ):
        command = option(command)
    return command


@click.group()
def names() -> None:
    """Name orgs, their clients, and the values of their dimensions. The events themselves name models."""


@names.command("set")
@_whose
@click.argument("name")
def set_name(*, org_id: UUID, dimension: str | None, value: str | None, name: str) -> None:
    """Set the NAME of an org, or of a value of a dimension, in place of the name that it has.

    Answers, live figures, files and views show it beside the id from then on, also for the past.
    """
    from pipeline.admin import seen

    changed = _change(org_id, dimension, value, name)
    what = _what(org_id, dimension, value)
    click.echo(f"{what} {'is now' if changed else 'was already'} {name}".translate(VISIBLE))
    of_value = (dimension, value) if dimension and value else None
    for note in seen.notes(database_url(), org_id=org_id, value=of_value):
        options.note(note)


@names.command("remove")
@_whose
def remove(*, org_id: UUID, dimension: str | None, value: str | None) -> None:
    """Remove the name of an org, or of a value of a dimension."""
    changed = _change(org_id, dimension, value, None)
    what = _what(org_id, dimension, value)
    click.echo(f"{what} {'has no name any more' if changed else 'had no name'}".translate(VISIBLE))


@names.command("list")
@click.option("--org", "org_id", type=ORG, help="Only names of this org and of its values.")
@click.option("--dimension", help="Only names of values of this dimension.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_names(*, org_id: UUID | None, dimension: str | None, limit: int | None, as_json: bool) -> None:
    """List names by org, dimension and value, each with who set it and when."""
    from pipeline.admin import names as naming

    for one in naming.listed(database_url(), org_id=org_id, dimension=dimension, limit=limit):
        row = {name: getattr(one, name) for name in one.__slots__}
        click.echo(json.dumps(row, default=plain, ensure_ascii=False) if as_json else _line(one))


def _change(org_id: UUID, dimension: str | None, value: str | None, name: str | None) -> int:
    """Set or remove one name; 1 if that has changed it, else 0."""
    from pipeline.admin import names as naming

    of = _naming(org_id, dimension, value, name)  # its faults are said before a missing DATABASE_URL
    return naming.change(database_url(), of)


def _naming(org_id: UUID, dimension: str | None, value: str | None, name: str | None) -> Naming:
    """What is to be named. Raises `click.UsageError` with every fault."""
    from pipeline.common.names import ORG, Naming, faults_of

    if (dimension is None) != (value is None) or dimension == "":
        raise click.UsageError("--dimension and --value belong together")
    of = Naming(org_id=org_id, dimension=dimension or ORG, names={value or ORG: name})
    faults = faults_of(name, value=value, dimension=of.dimension)
    said = "; ".join(f"{_ARGUMENTS[field]} {message}" for field, message in faults)
    if said:
        raise click.UsageError(said)
    return of


def _what(org_id: UUID, dimension: str | None, value: str | None) -> str:
    return f"org {org_id} {dimension} {value}" if dimension else f"org {org_id}"


def _line(one: Name) -> str:
    what = _what(one.org_id, one.dimension, one.value)
    return f"{what}: {one.name} (by {one.set_by}, {one.set_at:%Y-%m-%dT%H:%MZ})".translate(VISIBLE)
