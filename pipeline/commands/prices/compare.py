"""``spendstream prices diff`` and ``check``: what prices do to the cost of calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import ORG, TIME, VISIBLE, fail
from pipeline.commands.prices.lines import in_json, named_org
from pipeline.commands.prices.parameters import VERSION, check_version
from pipeline.common.texts import counted

if TYPE_CHECKING:
    from pipeline.prices.compare import Difference


@click.command("diff")
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
                check_version(connection, before, "--before")
                check_version(connection, after, "--after")
                old = book.version(connection) if before is None else before
                found = compare.between_versions(connection, old, after, **chosen)
    except Faulty as faulty:
        for fault in faulty.faults:
            click.echo(f"{fault.where}: {fault.message}".translate(VISIBLE), err=True)
        fail(str(faulty))
    total = compare.total(found)
    if as_json:
        rows = [{n: in_json(getattr(one, n)) for n in one.__slots__} | {"by": f"{one.by:f}"} for one in found]
        click.echo(json.dumps({"differences": rows, "by": f"{total:f}"}, indent=2, ensure_ascii=False))
        return
    names = seen.org_names(database_url, (one.org_id for one in found))
    for org_id, of_org in groupby(found, key=lambda one: one.org_id):
        _tell_differences(named_org(org_id, names), list(of_org))
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


@click.command("check")
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
