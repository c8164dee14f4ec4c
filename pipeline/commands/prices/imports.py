"""``spendstream prices import``: prices of a source, into the book."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pipeline.commands import options
from pipeline.commands.options import VISIBLE, fail
from pipeline.commands.prices.lines import change_line, in_json, price_line, price_row, tell_past
from pipeline.commands.prices.parameters import SHOWN
from pipeline.common.texts import counted

if TYPE_CHECKING:
    from pipeline.prices.book import Imported, Past
    from pipeline.prices.source import Read


SOURCES: Final = ("genai-prices", "model-prices", "litellm", "csv")


@click.command("import")
@click.argument("source", type=click.Choice(SOURCES))
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--provider", help="Only the prices of this provider, as the source spells it.")
@click.option(
    "--as",
    "as_provider",
    help="With --provider: the name of this provider in your events, such as gcp.gemini for google.",
)
@click.option(
    "--overwrite", is_flag=True, help="Also in place of prices set by hand or from a file of yours."
)
@click.option("--dry-run", is_flag=True, help="Say what would be appended, and change nothing.")
@click.option("--verbose", is_flag=True, help="Print every line, not only the first 20 of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_prices(
    *,
    source: str,
    file: Path | None,
    provider: str | None,
    as_provider: str | None,
    overwrite: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Append the prices that a source has and the book does not.

    SOURCE is one of the packages genai-prices and model-prices (pip install 'spendstream[prices]'), or
    `litellm FILE` for a price map of LiteLLM, or `csv FILE` for prices of your own. Only differences are
    appended, so the same import a second time appends nothing. If one line breaks a rule, nothing is
    imported, and every such line is named.

    Prices that you set by hand, or imported from a CSV, stay where a package or a map has others; they are
    listed. --overwrite takes the others. Every price that takes the place of another one is listed with it.

    A price without a date holds since ever if the book has no price of such calls yet, else from the current
    hour on.
    """
    from pipeline.prices import book
    from pipeline.prices.price import Faulty

    if (file is None) == (source in ("litellm", "csv")):
        raise click.UsageError(
            f"{source} needs a FILE" if file is None else f"{source} is a package: give no FILE"
        )
    if as_provider is not None and provider is None:
        raise click.UsageError("--as needs --provider")
    database_url = options.database_url()
    title = source if file is None else f"{source} {file}"
    try:
        read = _read(source, file, provider)
        if provider is not None and not read.prices:
            fail(f"{title} has no price of the provider {provider!r}")
        if as_provider is not None:
            read = read.under(as_provider)
        with book.connected(database_url) as connection:
            done = book.add(
                connection,
                read.prices,
                action="prices.import",
                title=title,
                dry_run=dry_run,
                overwrite=overwrite,
                edited=source == "csv",
                file_name=file.name if source == "csv" and file is not None else "",
            )
            past = book.past(connection, done.plan.append)
    except Faulty as faulty:
        for fault in faulty.faults:
            click.echo(f"{fault.where}: {fault.message}".translate(VISIBLE), err=True)
        fail(str(faulty))
    if as_json:
        _tell_import_as_json(done, read, past, dry_run=dry_run)
        return
    _tell_import(done, read, dry_run=dry_run, limit=None if verbose else SHOWN)
    if past is not None:
        how = ("--csv", shlex.quote(str(file))) if dry_run and source == "csv" else None
        tell_past(past, done, dry_run=dry_run, how=how)


def _read(source: str, file: Path | None, provider: str | None) -> Read:
    from pipeline.prices import csv_file, genai, litellm_map, model_prices
    from pipeline.prices.source import Read

    if source == "genai-prices":
        return genai.read(provider=provider)
    if source == "model-prices":
        return model_prices.read(provider=provider)
    assert file is not None
    if source == "litellm":
        return litellm_map.read(file, provider=provider)
    read = csv_file.read(file)
    kept = tuple(price for price in read if provider in (None, price.provider))
    return Read(kept, tuple(csv_file.notes(kept)))


def _tell_import_as_json(done: Imported, read: Read, past: Past | None, *, dry_run: bool) -> None:
    plan = done.plan
    row = {
        "read": len(read.prices),
        "appended": 0 if dry_run else len(plan.append),
        "differences": [
            price_row(change.price) | {"before": [price_row(one) for one in change.before]}
            for change in plan.changes
        ],
        "overrides": dict(plan.overrides),
        "kept": [price_row(price) for price in plan.kept],
        "vanished": [price_row(price) for price in plan.vanished],
        "past": None if past is None else {name: in_json(getattr(past, name)) for name in past.__slots__},
        "notes": list(read.notes),
        "version": done.version,
        "dryRun": dry_run,
    }
    click.echo(json.dumps(row, indent=2, ensure_ascii=False))


def _tell_import(done: Imported, read: Read, *, dry_run: bool, limit: int | None) -> None:
    plan = done.plan
    if dry_run:
        _some([change_line(change) for change in plan.changes], limit)
    replacing = [change for change in plan.changes if change.before]
    if replacing:
        take = "would take" if dry_run else "takes" if len(replacing) == 1 else "take"
        sources = sorted({one.source for change in replacing for one in change.before})
        ending = "" if dry_run else ":"
        click.echo(
            f"{counted(len(replacing), 'price')} {take} the place of prices from {', '.join(sources)}{ending}"
        )
        if not dry_run:
            _some([change_line(change) for change in replacing], limit)
    if plan.kept:
        stay = counted(
            len(plan.kept),
            "price that was set by hand or came from a file stays",
            "prices that were set by hand or came from a file stay",
        )
        click.echo(f"{stay}; --overwrite takes those of the source:")
        _some([f"{price.where}: {price_line(price)}" for price in plan.kept], limit)
    if plan.vanished:
        gone = counted(
            len(plan.vanished),
            "price of this source is no longer in it, and stays in the book until you retract it",
            "prices of this source are no longer in it, and stay in the book until you retract them",
        )
        click.echo(f"{gone}:")
        _some([f"{price.where}: {price_line(price)}" for price in plan.vanished], limit)
    if read.notes:
        click.echo(f"{counted(len(read.notes), 'note')} on the source:")
        _some(list(read.notes), limit)
    done_word = "would be appended" if dry_run else "appended"
    click.echo(
        f"{counted(len(read.prices), 'price')} read, {len(plan.append)} {done_word}; version {done.version}"
    )


def _some(lines: list[str], limit: int | None) -> None:
    for line in lines[:limit]:
        click.echo(f"    {line}".translate(VISIBLE))
    if limit is not None and len(lines) > limit:
        click.echo(f"    and {len(lines) - limit} more: see --verbose")
