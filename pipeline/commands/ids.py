"""``spendstream id``: the ids that the collector makes of names."""

from __future__ import annotations

from uuid import UUID

import click

from pipeline.commands.options import ORG


@click.group("id")
def make_ids() -> None:
    """Print the id that the collector makes of a name. Needs no server; see docs/ids.md."""


@make_ids.command("org")
@click.argument("name")
def org(name: str) -> None:
    """Print the id of the org NAME, taken exactly: acme and Acme are two orgs. A UUID stays as it is."""
    from pipeline.collector import ids

    click.echo(str(ids.org_id(name)))


@make_ids.command("model")
@click.argument("name")
def model(name: str) -> None:
    """Print the id of the model NAME, as PROVIDER/MODEL. An unknown provider is empty: /llama3."""
    from pipeline.collector import ids

    provider, slash, of_provider = name.partition("/")
    if not slash or not of_provider:
        raise click.UsageError(
            f"{name!r} has no provider: write openai/{name}, or /{name} if it is not known"
        )
    click.echo(str(ids.model_id(provider, of_provider)))


@make_ids.command("event")
@click.argument("org_id", metavar="ORG", type=ORG)
@click.argument("dialect", type=click.Choice(("litellm", "otlp", "usage_record")))
@click.argument("source_id", metavar="ID")
def event(org_id: UUID, dialect: str, source_id: str) -> None:
    """Print the id of an event of ORG that its source calls ID. A UUID stays as it is."""
    from pipeline.collector import ids

    click.echo(str(ids.event_id(org_id, dialect, source_id)))
