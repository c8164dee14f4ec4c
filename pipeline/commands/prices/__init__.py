"""``spendstream prices``: options, output and exit codes, one file for each kind of command."""

from __future__ import annotations

import click

from pipeline.commands.prices import change, compare, imports, look_up


@click.group()
def prices() -> None:
    """Fill the price book, look at it, and correct it. Past versions of the book stay as they are."""


for _command in (
    imports.import_prices,
    look_up.list_prices,
    look_up.show,
    look_up.export,
    change.set_price,
    change.retract,
    compare.diff,
    compare.check,
):
    prices.add_command(_command)
