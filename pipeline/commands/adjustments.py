"""``spendstream adjustments``: credits, refunds and corrections of orgs, recorded, listed and retracted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import ORG, TIME, VISIBLE, plain

if TYPE_CHECKING:
    from pipeline.common.adjustments import Recorded

KINDS: Final = ("credit", "refund", "correction")
_OPTIONS: Final = {"period_start": "--from", "period_end": "--to"}


class _Amount(click.ParamType):
    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        from pipeline.common import adjustments

        if isinstance(value, Decimal):
            return value
        try:
            return adjustments.amount_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def adjustments() -> None:
    """Record credits, refunds and corrections of orgs. Events cannot be negative: this is the way."""


@adjustments.command("add")
@click.option("--org", "org_id", type=ORG, required=True, help="The org that it is for.")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is.")
@click.option(
    "--amount",
    type=_Amount(),
    required=True,
    help="What is added to what the org pays, in US dollars: below 0 for a credit or refund.",
)
@click.option(
    "--from", "period_start", type=TIME, required=True, help="The period begins then, a whole hour."
)
@click.option(
    "--to", "period_end", type=TIME, required=True, help="The period ends before then, a whole hour."
)
@click.option("--reason", required=True, help="Why, as files and answers show it.")
def add(**fields: Any) -> None:
    """Record an adjustment of what an org pays.

    It counts in every range that has the beginning of its period, and is a line of its own in exports. The
    cost of usage stays as it is.
    """
    from pipeline.admin import adjustments as recording
    from pipeline.common.adjustments import Adjustment, faults_of

    wanted = Adjustment(**fields)
    faults = [f"{_OPTIONS.get(name, f'--{name}')} {message}" for name, message in faults_of(wanted)]
    if faults:
        raise click.UsageError("; ".join(faults))
    from pipeline.admin import seen

    database_url = options.database_url()
    recorded = recording.add(database_url, wanted)
    click.echo(_line(recorded, seen.org_names(database_url, [wanted.org_id])))
    for note in seen.notes(database_url, org_id=wanted.org_id):
        options.note(note)


@adjustments.command("list")
@click.option("--org", "org_id", type=ORG, help="Only those of this org.")
@click.option("--from", "start", type=TIME, help="Only those whose period begins then or later (UTC).")
@click.option("--to", "end", type=TIME, help="Only those whose period begins before then (UTC).")
@click.option("--all", "retracted", is_flag=True, help="Also retracted ones, and the retractions.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_adjustments(
    *,
    org_id: UUID | None,
    start: datetime | None,
    end: datetime | None,
    retracted: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List adjustments in the order in which they were recorded, each with its id."""
    from pipeline.admin import adjustments as recording
    from pipeline.admin import seen

    database_url = options.database_url()
    found = list(
        recording.listed(database_url, org_id=org_id, start=start, end=end, retracted=retracted, limit=limit)
    )
    names = {} if as_json else seen.org_names(database_url, (one.org_id for one in found))
    for one in found:
        row = {name: getattr(one, name) for name in one.__slots__}
        click.echo(json.dumps(row, default=plain, ensure_ascii=False) if as_json else _line(one, names))


@adjustments.command("retract")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--reason", required=True, help="Why it was wrong.")
def retract(*, number: int, reason: str) -> None:
    """Retract an adjustment, by its id in `adjustments list`. It then counts nowhere, and is still listed."""
    from pipeline.admin import adjustments as recording
    from pipeline.admin import seen
    from pipeline.common.adjustments import REASON_RULE, is_reason

    if not is_reason(reason):
        raise click.UsageError(f"--reason {REASON_RULE}")
    database_url = options.database_url()
    row = recording.retract(database_url, number, reason=reason)
    click.echo(_line(row, seen.org_names(database_url, [row.org_id])))


def _line(one: Recorded, names: Mapping[UUID, str]) -> str:
    what = f"retracts {one.retracts}" if one.amount is None else f"{one.kind} of {one.amount:f} USD"
    state = f" (retracted by {one.retracted_by})" if one.retracted_by else ""
    period = f"{one.period_start:%Y-%m-%dT%H:%MZ} to {one.period_end:%Y-%m-%dT%H:%MZ}"
    org = f"{one.org_id} ({names[one.org_id]})" if one.org_id in names else f"{one.org_id}"
    return f"{one.id} org {org}: {what}, {period}{state}, by {one.recorded_by}: {one.reason}".translate(
        VISIBLE
    )
