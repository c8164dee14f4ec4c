"""``spendstream prices set`` and ``retract``: corrections of the book by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import ORG, TIME, VISIBLE
from pipeline.commands.prices.lines import change_line, entry_line, named_org, rate_text, tell_past
from pipeline.commands.prices.parameters import KINDS, SHOWN, VERSION
from pipeline.common.texts import counted
from pipeline.core.wire import SERVICE_TIERS

if TYPE_CHECKING:
    from pipeline.prices.book import Entry


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


@click.command("set")
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
            click.echo(change_line(change).translate(VISIBLE))
        click.echo(f"version {done.version}")
    else:
        click.echo(f"the book says so already; version {done.version}")
    if past is not None:
        tell_past(past, done)
    model = (whole.provider, whole.model_name) if whole.model_name and whole.provider else None
    for note in seen.notes(database_url, org_id=whole.org_id, model=model):
        options.note(note)
    for one in kept:
        options.note(f"{one.kind} of this org keeps everyone's price, {rate_text(one.rate)} USD a million")


def _in_options(message: str) -> str:
    """A broken rule of a price in the words of the options that gave it."""
    return re.sub(r"\b[a-z_]+\b", lambda word: _OPTIONS.get(word[0], word[0]), message)


@click.command("retract")
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
        for line in _by_origin(found, names) if number is None else (entry_line(found[0], names),):
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
        f" {'for everyone' if org_id is None else named_org(org_id, names)}"
        for (source, provider, org_id), count in counts.most_common()
    ]
    return (
        lines
        if len(lines) <= SHOWN
        else [*lines[: SHOWN - 1], f"and {len(lines) - SHOWN + 1} more such lines"]
    )
