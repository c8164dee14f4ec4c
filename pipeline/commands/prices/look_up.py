"""``spendstream prices list``, ``show`` and ``export``: what the book says."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import ORG, TIME, VISIBLE, fail, plain
from pipeline.commands.prices.lines import entry_line, entry_row, span
from pipeline.commands.prices.parameters import KINDS, VERSION, check_version
from pipeline.core.wire import SERVICE_TIERS


@click.command("list")
@click.option("--provider", help="Only those of this provider.")
@click.option("--model", "model_name", help="Only those of this model.")
@click.option("--tier", "service_tier", type=click.Choice(SERVICE_TIERS), help="Only those of this tier.")
@click.option("--kind", type=click.Choice(KINDS), help="Only those of this kind.")
@click.option("--source", help="Only those from this source.")
@click.option("--org", "org_id", type=ORG, help="Only the prices and discounts of this org.")
@click.option("--at", type=TIME, help="Only those that are valid then (UTC).")
@click.option("--version", type=VERSION, help="As of this version of the book.")
@click.option("--all", "everything", is_flag=True, help="Also retracted prices, and the retractions.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_prices(*, version: int | None, everything: bool, as_json: bool, **filters: Any) -> None:
    """List rows of the book in the order in which they were recorded, each with its id and its source.

    A row ends with who recorded it and when. Ids grow, but leave gaps.
    """
    from pipeline.admin import seen
    from pipeline.prices import book

    database_url = options.database_url()
    with book.connected(database_url) as connection:
        check_version(connection, version)
        chosen = book.Chosen(
            version=book.NEWEST if version is None else version, live=not everything, **filters
        )
        if as_json:
            for entry in book.entries(connection, chosen):
                click.echo(json.dumps(entry_row(entry), ensure_ascii=False))
            return
        found = list(book.entries(connection, chosen))
        newest = book.version(connection)
    names = seen.org_names(database_url, (entry.org_id for entry in found))
    for entry in found:
        click.echo(entry_line(entry, names))
    click.echo(f"version {newest if version is None else min(version, newest)}")


@click.command("show")
@click.argument("model")
@click.option("--provider", help="The provider, if several have a model of this name.")
@click.option("--org", "org_id", type=ORG, help="Also the sheets of this org.")
@click.option("--at", type=TIME, help="Only what is valid then (UTC).")
@click.option("--now", is_flag=True, help="Only what is valid now.")
@click.option("--version", type=VERSION, help="As of this version of the book.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(
    *,
    model: str,
    provider: str | None,
    org_id: UUID | None,
    at: datetime | None,
    now: bool,
    version: int | None,
    as_json: bool,
) -> None:
    """Show what a model costs, by service tier, size of the context and time.

    The rates are in US dollars for a million tokens, and those of `request` in US dollars for a call. A kind
    without a price of its own has the rate of its parent, as in every answer.
    """
    from pipeline.prices import book

    if now and at is not None:
        raise click.UsageError("--now and --at exclude each other")
    when = datetime.now(UTC) if now else at
    with book.connected(options.database_url()) as connection:
        check_version(connection, version)
        providers = book.providers_of(connection, model, provider)
        if not providers:
            fail(f"the book has no model {model!r}{f' of {provider}' if provider else ''}")
        shown = book.version(connection) if version is None else version
        found = book.sheets(connection, shown, models=[(one, model) for one in providers], org_id=org_id)
    found = [
        sheet
        for sheet in found
        if sheet.org_id in (None, org_id)
        and (when is None or (sheet.valid_from <= when and (sheet.valid_to is None or when < sheet.valid_to)))
    ]
    if not found:
        then = "" if when is None else f" at {when:%Y-%m-%d %H:%M}"
        fail(
            f"version {shown} of the book has no full price of {model!r}{then}:"
            " input and output both need one"
        )
    for sheet in found:
        if as_json:
            row = {name: getattr(sheet, name) for name in sheet.__slots__}
            click.echo(json.dumps(row, default=plain, ensure_ascii=False))
            continue
        size = f"{sheet.context_from}" + (
            " tokens and more" if sheet.context_to is None else f" to {sheet.context_to - 1} tokens"
        )
        end = "" if sheet.context_from == 0 and sheet.context_to is None else f", {size}"
        whose = f", org {sheet.org_id}" if sheet.org_id else ""
        click.echo(
            f"{sheet.provider} {sheet.model_name} {sheet.service_tier}{end}{whose},"
            f" {span(sheet.valid_from, sheet.valid_to)}".translate(VISIBLE)
        )
        rates = (f"{kind} {getattr(sheet, kind):f}" for kind in KINDS[:7])
        click.echo(f"    {', '.join(rates)}")
    if not as_json:
        click.echo(f"version {shown}")


@click.command("export")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The file; else stdout.")
@click.option("--provider", help="Only the prices of this provider.")
@click.option("--model", "model_name", help="Only the prices of this model.")
@click.option("--source", help="Only the prices from this source.")
@click.option("--org", "org_id", type=ORG, help="Only the prices and discounts of this org.")
@click.option("--version", type=VERSION, help="As of this version of the book.")
def export(*, output: Path | None, version: int | None, **filters: Any) -> None:
    """Write the prices that count as CSV, which `prices import csv` reads.

    Importing the file into the same book appends nothing, and a new book that imports it says the same.
    """
    from pipeline.prices import book, csv_file

    with book.connected(options.database_url()) as connection:
        check_version(connection, version)
        at = book.version(connection) if version is None else version
        found = book.effective(connection, book.Chosen(version=at, **filters))
        if output is None:
            count = csv_file.write(sys.stdout, found)
        else:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = csv_file.write(file, found)
    click.echo(f"{count} prices of version {at}", err=True)
