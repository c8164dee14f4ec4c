"""``spendstream prices``: options, output and exit codes."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import TIME, VISIBLE, fail, plain
from pipeline.core.wire import SERVICE_TIERS

if TYPE_CHECKING:
    from pipeline.prices.book import Entry, Imported
    from pipeline.prices.price import Price
    from pipeline.prices.source import Read

SOURCES: Final = ("genai-prices", "model-prices", "litellm", "csv")
KINDS: Final = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "request",
    "discount",
)
SHOWN: Final = 20
"""Lines of notes, and of prices that would be appended, without --verbose."""


class _Rate(click.ParamType):
    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        from pipeline.prices.price import number

        try:
            return value if isinstance(value, Decimal) else number(str(value))
        except ValueError:
            self.fail("expected a decimal number such as 2.5", param, ctx)


class _Reason(click.ParamType):
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value) if str(value).strip() else self.fail("say why", param, ctx)


VERSION: Final = click.IntRange(0, 2**63 - 1)


@click.group()
def prices() -> None:
    """Fill the price book, look at it, and correct it. Past versions of the book stay as they are."""


@prices.command("import")
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
    listed. --overwrite takes the others.

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
            )
    except Faulty as faulty:
        for fault in faulty.faults:
            click.echo(f"{fault.where}: {fault.message}".translate(VISIBLE), err=True)
        fail(str(faulty))
    _tell_import(done, read, dry_run=dry_run, limit=None if verbose else SHOWN, as_json=as_json)


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
    return Read(tuple(price for price in read if provider in (None, price.provider)), ())


def _tell_import(done: Imported, read: Read, *, dry_run: bool, limit: int | None, as_json: bool) -> None:
    plan = done.plan
    if as_json:
        row = {
            "read": len(read.prices),
            "appended": 0 if dry_run else len(plan.append),
            "differences": [_price_row(price) for price in plan.append],
            "overrides": dict(plan.overrides),
            "kept": [_price_row(price) for price in plan.kept],
            "vanished": [_price_row(price) for price in plan.vanished],
            "notes": list(read.notes),
            "version": done.version,
            "dryRun": dry_run,
        }
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
        return
    if dry_run:
        _some([_price_line(price) for price in plan.append], limit)
    for source, count in sorted(plan.overrides.items()):
        click.echo(f"{count} of them take the place of a rate from {source}")
    for what, prices in (
        (
            "prices that were set by hand or came from a file stay; --overwrite takes those of the source",
            plan.kept,
        ),
        (
            "prices of this source are no longer in it, and stay in the book until you retract them",
            plan.vanished,
        ),
    ):
        if prices:
            click.echo(f"{len(prices)} {what}:")
            _some([f"{price.where}: {_price_line(price)}" for price in prices], limit)
    if read.notes:
        click.echo(f"{len(read.notes)} notes on the source:")
        _some(list(read.notes), limit)
    done_word = "would be appended" if dry_run else "appended"
    click.echo(f"{len(read.prices)} prices read, {len(plan.append)} {done_word}; version {done.version}")


def _some(lines: list[str], limit: int | None) -> None:
    for line in lines[:limit]:
        click.echo(f"    {line}".translate(VISIBLE))
    if limit is not None and len(lines) > limit:
        click.echo(f"    and {len(lines) - limit} more: see --verbose")


@prices.command("list")
@click.option("--provider", help="Only those of this provider.")
@click.option("--model", "model_name", help="Only those of this model.")
@click.option("--tier", "service_tier", type=click.Choice(SERVICE_TIERS), help="Only those of this tier.")
@click.option("--kind", type=click.Choice(KINDS), help="Only those of this kind.")
@click.option("--source", help="Only those from this source.")
@click.option("--org", "org_id", type=click.UUID, help="Only the prices and discounts of this org.")
@click.option("--at", type=TIME, help="Only those that are valid then (UTC).")
@click.option("--version", type=VERSION, help="As of this version of the book.")
@click.option("--all", "everything", is_flag=True, help="Also retracted prices, and the retractions.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_prices(*, version: int | None, everything: bool, as_json: bool, **filters: Any) -> None:
    """List rows of the book in the order in which they were recorded, each with its id and its source."""
    from pipeline.prices import book

    with book.connected(options.database_url()) as connection:
        chosen = book.Chosen(
            version=book.NEWEST if version is None else version, live=not everything, **filters
        )
        for entry in book.entries(connection, chosen):
            click.echo(json.dumps(_entry_row(entry), ensure_ascii=False) if as_json else _entry_line(entry))
        if not as_json:
            click.echo(f"version {book.version(connection)}")


@prices.command("show")
@click.argument("model")
@click.option("--provider", help="The provider, if several have a model of this name.")
@click.option("--org", "org_id", type=click.UUID, help="Also the sheets of this org.")
@click.option("--version", type=VERSION, help="As of this version of the book.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(
    *, model: str, provider: str | None, org_id: UUID | None, version: int | None, as_json: bool
) -> None:
    """Show what a model costs, by service tier, size of the context and time.

    The rates are in US dollars for a million tokens, and those of `request` in US dollars for a call. A kind
    without a price of its own has the rate of its parent, as in every answer.
    """
    from pipeline.prices import book

    with book.connected(options.database_url()) as connection:
        providers = book.providers_of(connection, model, provider)
        if not providers:
            fail(f"the book has no model {model!r}{f' of {provider}' if provider else ''}")
        at = book.version(connection) if version is None else version
        found = book.sheets(connection, at, models=[(one, model) for one in providers], org_id=org_id)
    found = [sheet for sheet in found if sheet.org_id in (None, org_id)]
    if not found:
        fail(f"version {at} of the book has no full price of {model!r}: input and output both need one")
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
            f" {_span(sheet.valid_from, sheet.valid_to)}".translate(VISIBLE)
        )
        rates = (f"{kind} {getattr(sheet, kind):f}" for kind in KINDS[:7])
        click.echo(f"    {', '.join(rates)}")
    if not as_json:
        click.echo(f"version {at}")


@prices.command("set")
@click.option("--provider", default="", help="The provider; only a discount can leave it out.")
@click.option("--model", "model_name", default="", help="The model; only a discount can leave it out.")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What the rate is for.")
@click.option(
    "--rate",
    type=_Rate(),
    required=True,
    help="US dollars for a million tokens; for `request` US dollars for a call; for `discount` percent.",
)
@click.option(
    "--tier",
    type=click.Choice(SERVICE_TIERS),
    help="The service tier; standard unless said. A discount holds for all tiers.",
)
@click.option(
    "--context-from",
    type=click.IntRange(0),
    default=0,
    help="Only for calls with this many input tokens or more: 200001 for '> 200k', 200000 for '>= 200k'.",
)
@click.option("--from", "valid_from", type=TIME, required=True, help="From this whole hour (UTC) on.")
@click.option("--to", "valid_to", type=TIME, help="Before this whole hour (UTC); without it, for good.")
@click.option("--org", "org_id", type=click.UUID, help="Only for this org; a discount needs it.")
@click.option("--basis", default="", help="Where the price comes from: a contract, a page.")
def set_price(*, tier: str | None, kind: str, **fields: Any) -> None:
    """Set one price, or one discount of an org.

    The price holds from --from on, in the past, too: earlier versions of the book keep what they said.
    """
    from pipeline.prices import book
    from pipeline.prices.price import Faulty, Price

    whole = Price(
        **fields,
        kind=kind,
        service_tier=tier or ("" if kind == "discount" else SERVICE_TIERS[0]),
    )
    try:
        with book.connected(options.database_url()) as connection:
            done = book.add(connection, [whole], action="prices.set", title=f"set {kind}")
    except Faulty as faulty:
        raise click.UsageError("; ".join(fault.message for fault in faulty.faults)) from None
    if not done.plan.append:
        click.echo(f"the book says so already; version {done.version}")
        return
    for price in done.plan.append:
        click.echo(_price_line(price).translate(VISIBLE))
    click.echo(f"version {done.version}")


@prices.command("retract")
@click.argument("number", metavar="[ID]", required=False, type=click.IntRange(1, 2**63 - 1))
@click.option(
    "--after", type=VERSION, help="Instead of ID: every price that was recorded after this version."
)
@click.option("--reason", type=_Reason(), required=True, help="Why the price was wrong, for the audit log.")
def retract(*, number: int | None, after: int | None, reason: str) -> None:
    """Retract a price, by its id in `prices list`, or undo an import with --after.

    The book then says what it would say without the row. Retractions are not undone.
    """
    from pipeline.prices import book

    if (number is None) == (after is None):
        raise click.UsageError("name a price by its ID, or a version with --after")
    with book.connected(options.database_url()) as connection:
        if number is not None:
            version = book.retract(connection, number, reason=reason)
            what = f"row {number} is retracted"
        else:
            assert after is not None
            count, version = book.retract_after(connection, after, reason=reason)
            what = f"{count} prices are retracted"
    click.echo(f"{what}; version {version}")


@prices.command("export")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The file; else stdout.")
@click.option("--provider", help="Only the prices of this provider.")
@click.option("--model", "model_name", help="Only the prices of this model.")
@click.option("--source", help="Only the prices from this source.")
@click.option("--org", "org_id", type=click.UUID, help="Only the prices and discounts of this org.")
@click.option("--version", type=VERSION, help="As of this version of the book.")
def export(*, output: Path | None, version: int | None, **filters: Any) -> None:
    """Write the prices that count as CSV, which `prices import csv` reads.

    Importing the file into the same book appends nothing, and a new book that imports it says the same.
    """
    from pipeline.prices import book, csv_file

    with book.connected(options.database_url()) as connection:
        at = book.version(connection) if version is None else version
        found = book.effective(connection, book.Chosen(version=at, **filters))
        if output is None:
            count = csv_file.write(sys.stdout, found)
        else:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = csv_file.write(file, found)
    click.echo(f"{count} prices of version {at}", err=True)


@prices.command("diff")
@click.option("--start", type=TIME, required=True, help="From this whole hour (UTC) on.")
@click.option("--end", type=TIME, required=True, help="Before this whole hour (UTC).")
@click.option("--before", type=VERSION, help="The version to compare with; the newest unless said.")
@click.option("--after", type=VERSION, help="The version that is compared.")
@click.option(
    "--csv",
    "file",
    type=click.Path(path_type=Path),
    help="Instead of --after: the book as it would be after an import of this file.",
)
@click.option("--org", "orgs", type=click.UUID, multiple=True, help="Only this org; can be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(
    *,
    start: datetime,
    end: datetime,
    before: int | None,
    after: int | None,
    file: Path | None,
    orgs: tuple[UUID, ...],
    as_json: bool,
) -> None:
    """Say how much more or less the calls of some hours cost under other prices. Nothing is changed.

    Compare two versions (--before, --after), or the book and a file of prices (--csv). Every org and model
    whose cost differs has a line. Calls that the book does not price cost what their producer estimated.
    """
    from pipeline.prices import book, compare, csv_file
    from pipeline.prices.price import Faulty, hour_of

    if (after is None) == (file is None):
        raise click.UsageError("name another version with --after, or a file with --csv")
    if file is not None and before is not None:
        raise click.UsageError("--csv is compared with the newest version: give no --before")
    for name, at in (("--start", start), ("--end", end)):
        if at != hour_of(at):
            raise click.UsageError(f"{name} must be a whole hour of UTC")
    if start >= end:
        raise click.UsageError("--end must be after --start")
    chosen: dict[str, Any] = {"start": start, "end": end, "orgs": orgs or None}
    try:
        prices = None if file is None else csv_file.read(file)
        with book.connected(options.database_url()) as connection:
            if prices is not None:
                found = compare.with_prices(connection, prices, title=f"csv {file}", **chosen)
            else:
                assert after is not None
                old = book.version(connection) if before is None else before
                found = compare.between_versions(connection, old, after, **chosen)
    except Faulty as faulty:
        for fault in faulty.faults:
            click.echo(f"{fault.where}: {fault.message}".translate(VISIBLE), err=True)
        fail(str(faulty))
    total = compare.total(found)
    if as_json:
        rows = [{n: _plain(getattr(one, n)) for n in one.__slots__} | {"by": f"{one.by:f}"} for one in found]
        click.echo(json.dumps({"differences": rows, "by": f"{total:f}"}, indent=2, ensure_ascii=False))
        return
    for one in found:
        name = f"{one.provider} {one.model_name}".strip() or "no name"
        unpriced = (
            f", unpriced calls {one.unpriced_before} before and {one.unpriced_after} after"
            if one.unpriced_before or one.unpriced_after
            else ""
        )
        click.echo(
            f"{one.org_id} {name} ({one.model_id}): {_dollars(one.before)} before,"
            f" {_dollars(one.after)} after, {one.by:+f} USD, {one.invocations} calls{unpriced}".translate(
                VISIBLE
            )
        )
    click.echo(f"in all: {total:+f} USD")


def _dollars(amount: Decimal | None) -> str:
    return "unpriced" if amount is None else f"{amount:f} USD"


@prices.command("check")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def check(*, as_json: bool) -> None:
    """List models without a price or a name, and other places where book and usage do not fit.

    These are: models seen without a price, or without provider and modelName; calls of the last 31 days that
    the book does not price; prices that change with the size of the context inside a rate class, so that some
    calls have the wrong price; and rates of which two sources differ by more than 1 %.

    Exits with 1 if an amount is missing or wrong. That two sources differ is only said.
    """
    from pipeline.prices import book, compare

    with book.connected(options.database_url()) as connection:
        found = compare.check(connection, now=datetime.now(UTC))
    for one in found:
        if as_json:
            row = {"kind": one.kind, "text": one.text, "wrong": one.wrong}
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            click.echo(f"{one.kind}: {one.text}".translate(VISIBLE))
    wrong = sum(one.wrong for one in found)
    if wrong:
        fail(f"{wrong} places where an amount is missing or wrong")
    if not as_json and not found:
        click.echo("every model seen has a price")


def _entry_row(entry: Entry) -> dict[str, Any]:
    return {name: _plain(getattr(entry, name)) for name in entry.__slots__}


def _price_row(price: Price) -> dict[str, Any]:
    return {name: _plain(getattr(price, name)) for name in price.__slots__ if name != "where"}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else plain(value)


def _entry_line(entry: Entry) -> str:
    if entry.retracts is not None:
        line = f"{entry.id} retracts {entry.retracts}: {entry.basis}"
    else:
        line = f"{entry.id} {_price_line(entry)}"
    if entry.retracted_by is not None:
        line += f" [retracted by {entry.retracted_by}]"
    return line.translate(VISIBLE)


def _price_line(price: Price | Entry) -> str:
    what = f"{price.provider or 'all providers'} {price.model_name or 'all models'}"
    if price.service_tier:
        what += f" {price.service_tier}"
    if price.context_from:
        what += f" from {price.context_from} tokens"
    unit = {"discount": " %", "request": " USD a call"}.get(price.kind, " USD a million")
    whose = f", org {price.org_id}" if price.org_id else ""
    basis = f" ({price.basis})" if price.basis else ""
    assert price.rate is not None
    return (
        f"{what} {price.kind} {price.rate:f}{unit}, {_span(price.valid_from, price.valid_to)}{whose}"
        f" [{price.source}]{basis}"
    )


def _span(start: datetime | None, end: datetime | None) -> str:
    first = "since ever" if start is None or start.year == 1970 else f"from {_hour(start)}"
    return first if end is None else f"{first} up to {_hour(end)}"


def _hour(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if at.hour == 0 else f"{at:%Y-%m-%d %H:%M}"
