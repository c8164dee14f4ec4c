"""``spendstream webhooks``: what an operator does about the webhooks of all orgs."""

from __future__ import annotations

import os

import click


@click.group()
def webhooks() -> None:
    """Look after the addresses and secrets of webhooks."""


@webhooks.command()
def reseal() -> None:
    """Encrypt every webhook with the first key of WEBHOOK_KEY.

    Put the new key before the old one, with a comma between them, and run this. Then the old one can go.
    Needs DATABASE_URL of a role that owns the tables. Exits with 1 if no key opens some webhook.
    """
    from pipeline.processes import child

    argv = child.command_line("api", "reseal")
    os.execve(argv[0], argv, child.environment(os.environ))
