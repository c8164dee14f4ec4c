"""``spendstream audit``: who did what, as the audit log has it."""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import ORG, TIME, VISIBLE, database_url, plain

if TYPE_CHECKING:
    from pipeline.admin.audit import Audited


@click.command()
@click.option("--action", help="Only these: a whole name such as prices.set, or its beginning: prices.")
@click.option("--org", "org_id", type=ORG, help="Only what was about this org.")
@click.option("--actor", help="Only what this person or caller did, as the list names them.")
@click.option("--since", type=TIME, help="Only what was done at this time (UTC) or later.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def audit(*, as_json: bool, **filters: Any) -> None:
    """List who changed prices, adjustments, names, keys and streams, and whom the API let in or turned away.

    The newest rows come first. Rows are kept for RETENTION_AUDIT.
    """
    from pipeline.admin import audit as log
    from pipeline.admin import seen

    url = database_url()
    found = log.newest(url, **filters)
    names = {} if as_json else seen.org_names(url, (row.org_id for row in found))
    for row in found:
        if as_json:
            values = {name: getattr(row, name) for name in row.__slots__}
            click.echo(json.dumps(values, default=plain, ensure_ascii=False))
            continue
        click.echo(_line(row, names.get(row.org_id, "") if row.org_id else ""))


def _line(row: Audited, name: str) -> str:
    org = "" if row.org_id is None else f", org {row.org_id}{f' ({name})' if name else ''}"
    detail = "" if not row.detail else f": {json.dumps(row.detail, ensure_ascii=False)}"
    at = f"{row.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return f"{at} {row.actor} {row.action} {row.outcome}{org}{detail}".translate(VISIBLE)
