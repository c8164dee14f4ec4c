"""``spendstream prices``: options, output and exit codes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import ORG, TIME, VISIBLE, fail, plain
from pipeline.common.texts import counted
from pipeline.core.wire import SERVICE_TIERS

if TYPE_CHECKING:
    from pipeline.common.connect import Connection
    from pipeline.prices.book import Entry, Imported, Past
    from pipeline.prices.compare import Difference
    from pipeline.prices.plan import Change
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
_OPTIONS: Final = {
    "valid_from": "--from",
    "valid_to": "--to",
    "service_tier": "--tier",
    "context_from": "--context-from",
    "org_id": "--org",
    "model_name": "--model",
    "provider": "--provider",
    "rate": "--rate",
    "basis": "--basis",
}
"""The options of `prices set`, by what the rules of a price call them."""


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
        from pipeline.common.adjustments import REASON_RULE, is_reason

        text = str(value)
        return text if is_reason(text) else self.fail(REASON_RULE if text.strip() else "say why", param, ctx)


VERSION: Final = click.IntRange(0, 2**63 - 1)


def _check_version(connection: Connection, asked: int | None, option: str = "--version") -> None:
    """Raises `click.UsageError` if the book has no such version yet."""
    from pipeline.prices import book

    newest = book.version(connection)
    if asked is not None and asked > newest:
        raise click.UsageError(f"{option}: the price book has no version {asked} yet; its newest is {newest}")


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
        _tell_past(past, done, dry_run=dry_run, how=how)


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
            _price_row(change.price) | {"before": [_price_row(one) for one in change.before]}
            for change in plan.changes
        ],
        "overrides": dict(plan.overrides),
        "kept": [_price_row(price) for price in plan.kept],
        "vanished": [_price_row(price) for price in plan.vanished],
        "past": None if past is None else {name: _plain(getattr(past, name)) for name in past.__slots__},
        "notes": list(read.notes),
        "version": done.version,
        "dryRun": dry_run,
    }
    click.echo(json.dumps(row, indent=2, ensure_ascii=False))


def _tell_import(done: Imported, read: Read, *, dry_run: bool, limit: int | None) -> None:
    plan = done.plan
    if dry_run:
        _some([_change_line(change) for change in plan.changes], limit)
    replacing = [change for change in plan.changes if change.before]
    if replacing:
        take = "would take" if dry_run else "takes" if len(replacing) == 1 else "take"
        sources = sorted({one.source for change in replacing for one in change.before})
        ending = "" if dry_run else ":"
        click.echo(
            f"{counted(len(replacing), 'price')} {take} the place of prices from {', '.join(sources)}{ending}"
        )
        if not dry_run:
            _some([_change_line(change) for change in replacing], limit)
    if plan.kept:
        stay = counted(
            len(plan.kept),
            "price that was set by hand or came from a file stays",
            "prices that were set by hand or came from a file stay",
        )
        click.echo(f"{stay}; --overwrite takes those of the source:")
        _some([f"{price.where}: {_price_line(price)}" for price in plan.kept], limit)
    if plan.vanished:
        gone = counted(
            len(plan.vanished),
            "price of this source is no longer in it, and stays in the book until you retract it",
            "prices of this source are no longer in it, and stay in the book until you retract them",
        )
        click.echo(f"{gone}:")
        _some([f"{price.where}: {_price_line(price)}" for price in plan.vanished], limit)
    if read.notes:
        click.echo(f"{counted(len(read.notes), 'note')} on the source:")
        _some(list(read.notes), limit)
    done_word = "would be appended" if dry_run else "appended"
    click.echo(
        f"{counted(len(read.prices), 'price')} read, {len(plan.append)} {done_word}; version {done.version}"
    )


def _tell_past(
    past: Past, done: Imported, *, dry_run: bool = False, how: tuple[str, str] | None = None
) -> None:
    """Say that the cost of past calls may change, and which command says by how much."""
    holds = "holds" if past.prices == 1 else "hold"
    click.echo(
        f"the cost of past calls {'would change' if dry_run else 'changes'} where these calls have the tier"
        f" and size: {counted(past.prices, 'price')} {holds} for times since {past.start:%Y-%m-%d} from which"
        f" there are calls, of {counted(past.models, 'model')} and {counted(past.orgs, 'org')}"
    )
    if dry_run and how is None:
        return
    end = past.end.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    versions = how or ("--before", f"{done.version_before} --after {done.version}")
    click.echo(
        f"    by how much: spendstream prices diff --start {past.start:%Y-%m-%dT%H:00}"
        f" --end {end:%Y-%m-%dT%H:00} {' '.join(versions)}".translate(VISIBLE)
    )


def _change_line(change: Change) -> str:
    """A price that comes into the book, with the rates in whose place it comes."""
    line = _price_line(change.price)
    if not change.before:
        return line
    unit = _UNITS.get(change.price.kind, _UNIT)
    return f"{line}, in place of " + " and ".join(
        dict.fromkeys(f"{_rate(one.rate)}{unit} [{one.source}]" for one in change.before)
    )


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
        _check_version(connection, version)
        chosen = book.Chosen(
            version=book.NEWEST if version is None else version, live=not everything, **filters
        )
        if as_json:
            for entry in book.entries(connection, chosen):
                click.echo(json.dumps(_entry_row(entry), ensure_ascii=False))
            return
        found = list(book.entries(connection, chosen))
        newest = book.version(connection)
    names = seen.org_names(database_url, (entry.org_id for entry in found))
    for entry in found:
        click.echo(_entry_line(entry, names))
    click.echo(f"version {newest if version is None else min(version, newest)}")


@prices.command("show")
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
        _check_version(connection, version)
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
            f" {_span(sheet.valid_from, sheet.valid_to)}".translate(VISIBLE)
        )
        rates = (f"{kind} {getattr(sheet, kind):f}" for kind in KINDS[:7])
        click.echo(f"    {', '.join(rates)}")
    if not as_json:
        click.echo(f"version {shown}")


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
@click.option("--org", "org_id", type=ORG, help="Only for this org; a discount needs it.")
@click.option("--basis", default="", help="Where the price comes from: a contract, a page.")
def set_price(*, tier: str | None, kind: str, **fields: Any) -> None:
    """Set one price, or one discount of an org.

    The price holds from --from on, in the past, too: earlier versions of the book keep what they said.

    An org's own price holds for one kind of tokens, and for all sizes of the context unless --context-from is
    said. Other kinds keep everyone's price, which the command names. A discount is not taken off an org's own
    price.
    """
    from pipeline.admin import seen
    from pipeline.prices import book
    from pipeline.prices.price import Faulty, Price

    whole = Price(
        **fields,
        kind=kind,
        service_tier=tier or ("" if kind == "discount" else SERVICE_TIERS[0]),
    )
    database_url = options.database_url()
    try:
        with book.connected(database_url) as connection:
            done = book.add(connection, [whole], action="prices.set", title=f"set {kind}")
            past = book.past(connection, done.plan.append)
            kept = book.from_everyone(connection, whole)
    except Faulty as faulty:
        raise click.UsageError("; ".join(_in_options(fault.message) for fault in faulty.faults)) from None
    if done.plan.changes:
        for change in done.plan.changes:
            click.echo(_change_line(change).translate(VISIBLE))
        click.echo(f"version {done.version}")
    else:
        click.echo(f"the book says so already; version {done.version}")
    if past is not None:
        _tell_past(past, done)
    model = (whole.provider, whole.model_name) if whole.model_name and whole.provider else None
    for note in seen.notes(database_url, org_id=whole.org_id, model=model):
        options.note(note)
    for one in kept:
        options.note(f"{one.kind} of this org keeps everyone's price, {_rate(one.rate)} USD a million")


def _in_options(message: str) -> str:
    """A broken rule of a price in the words of the options that gave it."""
    return re.sub(r"\b[a-z_]+\b", lambda word: _OPTIONS.get(word[0], word[0]), message)


@prices.command("retract")
@click.argument("number", metavar="[ID]", required=False, type=click.IntRange(1, 2**63 - 1))
@click.option(
    "--after", type=VERSION, help="Instead of ID: every price that was recorded after this version."
)
@click.option("--reason", type=_Reason(), required=True, help="Why the price was wrong, for the audit log.")
@click.option("--dry-run", is_flag=True, help="Say which prices would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def retract(*, number: int | None, after: int | None, reason: str, dry_run: bool, yes: bool) -> None:
    """Retract a price, by its id in `prices list`, or undo an import with --after.

    --after retracts ALL prices that were recorded after a version and still count, from every source and of
    every org. The command says which prices these are, and asks if there is more than one.

    The book then says what it would say without the rows. A retraction is not undone, but the prices can be
    imported again: `prices export --version`, as of the version before, writes the file.
    """
    from pipeline.admin import seen
    from pipeline.prices import book

    if (number is None) == (after is None):
        raise click.UsageError("name a price by its ID, or a version with --after")
    database_url = options.database_url()
    with book.connected(database_url) as connection:
        if number is not None:
            found = [book.to_retract(connection, number)]
        else:
            assert after is not None
            found = book.to_retract_after(connection, after)
        before = book.version(connection)
        connection.rollback()  # other writers need not wait for the answer
        names = seen.org_names(database_url, (entry.org_id for entry in found))
        for line in _by_origin(found, names) if number is None else (_entry_line(found[0], names),):
            click.echo(line.translate(VISIBLE))
        if dry_run:
            click.echo(f"{counted(len(found), 'price')} would be retracted; version {before}")
            return
        if len(found) > 1 and not yes:
            options.agree(f"retract these {len(found)} prices?")
        if number is not None:
            version = book.retract(connection, number, reason=reason)
            what = f"row {number} is retracted"
        else:
            assert after is not None
            count, version = book.retract_after(connection, after, reason=reason, up_to=before)
            what = f"{counted(count, 'price is', 'prices are')} retracted"
    click.echo(f"{what}; version {version}")
    if number is None:
        click.echo(
            f"the way back: spendstream prices export --version {before} --output back.csv, and then"
            " spendstream prices import csv back.csv"
        )


def _by_origin(entries: Sequence[Entry], names: Mapping[UUID, str]) -> list[str]:
    """How many of some prices are from each source, of each provider and for whom, the most first."""
    counts = Counter((entry.source, entry.provider, entry.org_id) for entry in entries)
    lines = [
        f"{count} from {source} of {provider or 'all providers'},"
        f" {'for everyone' if org_id is None else _org(org_id, names)}"
        for (source, provider, org_id), count in counts.most_common()
    ]
    return (
        lines
        if len(lines) <= SHOWN
        else [*lines[: SHOWN - 1], f"and {len(lines) - SHOWN + 1} more such lines"]
    )


@prices.command("export")
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
        _check_version(connection, version)
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
@click.option("--org", "orgs", type=ORG, multiple=True, help="Only this org; can be repeated.")
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
    from pipeline.admin import seen
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
    database_url = options.database_url()
    try:
        prices = None if file is None else csv_file.read(file)
        with book.connected(database_url) as connection:
            if prices is not None:
                found = compare.with_prices(connection, prices, title=f"csv {file}", **chosen)
            else:
                assert after is not None
                _check_version(connection, before, "--before")
                _check_version(connection, after, "--after")
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
    names = seen.org_names(database_url, (one.org_id for one in found))
    for org_id, of_org in groupby(found, key=lambda one: one.org_id):
        _tell_differences(_org(org_id, names), list(of_org))
    click.echo(f"in all: {total:+f} USD")


def _tell_differences(org: str, differences: Sequence[Difference]) -> None:
    """Print what the models of an org cost before and after, and what that is together."""
    from pipeline.prices import compare

    for one in differences:
        name = f"{one.provider} {one.model_name}".strip() or "no name"
        unpriced = (
            f", unpriced calls {one.unpriced_before} before and {one.unpriced_after} after"
            if one.unpriced_before or one.unpriced_after
            else ""
        )
        click.echo(
            f"{org} {name} ({one.model_id}): {_dollars(one.before)} before,"
            f" {_dollars(one.after)} after, {one.by:+f} USD,"
            f" {counted(one.invocations, 'call')}{unpriced}".translate(VISIBLE)
        )
    click.echo(f"{org} in all: {compare.total(differences):+f} USD".translate(VISIBLE))


def _dollars(amount: Decimal | None) -> str:
    return "unpriced" if amount is None else f"{amount:f} USD"


@prices.command("check")
@click.option(
    "--all", "everything", is_flag=True, help="Also where sources differ about models never seen in events."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def check(*, everything: bool, as_json: bool) -> None:
    """List models without a price or a name, and other places where book and usage do not fit.

    These are: models seen without a price, or without provider and modelName; calls of the last 31 days that
    the book does not price, and what they count at instead; prices that change with the size of the context
    inside a rate class, so that some calls have the wrong price; prices of yours for models that no event has
    named; and rates of which two sources differ by more than 1 %.

    Exits with 1 if an amount is missing or wrong. The last two are only said.
    """
    from pipeline.prices import book, compare

    with book.connected(options.database_url()) as connection:
        found = compare.check(connection, now=datetime.now(UTC), everything=everything)
    for one in found:
        if as_json:
            row = {"kind": one.kind, "text": one.text, "wrong": one.wrong}
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            click.echo(f"{one.kind}: {one.text}".translate(VISIBLE))
    wrong = sum(one.wrong for one in found)
    if wrong:
        fail(f"{counted(wrong, 'place')} where an amount is missing or wrong")
    if not as_json and not found:
        click.echo("every model seen has a price")


def _entry_row(entry: Entry) -> dict[str, Any]:
    return {name: _plain(getattr(entry, name)) for name in entry.__slots__}


def _price_row(price: Price) -> dict[str, Any]:
    return {name: _plain(getattr(price, name)) for name in price.__slots__ if name != "where"}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else plain(value)


def _entry_line(entry: Entry, names: Mapping[UUID, str]) -> str:
    if entry.retracts is not None:
        line = f"{entry.id} retracts {entry.retracts}: {entry.basis}"
    else:
        line = f"{entry.id} {_price_line(entry, names)}"
    line += f", by {entry.recorded_by} {entry.recorded_at.astimezone(UTC):%Y-%m-%d %H:%M}"
    if entry.retracted_by is not None:
        line += f" [retracted by {entry.retracted_by}]"
    return line.translate(VISIBLE)


def _org(org_id: UUID, names: Mapping[UUID, str]) -> str:
    return f"org {org_id} ({names[org_id]})" if org_id in names else f"org {org_id}"


def _rate(rate: Decimal) -> str:
    """A rate without zeros at its end."""
    text = f"{rate:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_UNIT: Final = " USD a million"
_UNITS: Final = {"discount": " %", "request": " USD a call"}


def _price_line(price: Price | Entry, names: Mapping[UUID, str] | None = None) -> str:
    what = f"{price.provider or 'all providers'} {price.model_name or 'all models'}"
    if price.service_tier:
        what += f" {price.service_tier}"
    if price.context_from:
        what += f" from {price.context_from} tokens"
    unit = _UNITS.get(price.kind, _UNIT)
    whose = f", {_org(price.org_id, names or {})}" if price.org_id else ""
    basis = f" ({price.basis})" if price.basis else ""
    assert price.rate is not None
    return (
        f"{what} {price.kind} {_rate(price.rate)}{unit}, {_span(price.valid_from, price.valid_to)}{whose}"
        f" [{price.source}]{basis}"
    )


def _span(start: datetime | None, end: datetime | None) -> str:
    first = "since ever" if start is None or start.year == 1970 else f"from {_hour(start)}"
    return first if end is None else f"{first} up to {_hour(end)}"


def _hour(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if at.hour == 0 else f"{at:%Y-%m-%d %H:%M}"
