"""``spendstream reconcile`` and ``spendstream rebuild``: options, output and exit codes."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pipeline.commands.options import ORG, TIME, VISIBLE, fail
from pipeline.common import settings

if TYPE_CHECKING:
    from pipeline.archive.reconcile import Report, Scope
    from pipeline.archive.store import Store

SHOWN = 100
"""The most differences that are printed without --all."""


def _range(command: Any) -> Any:
    for option in (
        click.option(
            "--to", "end", type=TIME, required=True, help="End of the range (UTC unless it says else)."
        ),
        click.option("--from", "start", type=TIME, required=True, help="Beginning of the range."),
    ):
        command = option(command)
    return command


def _setup(start: datetime, end: datetime, org: UUID | None = None) -> tuple[str, Store, Scope]:
    from pipeline.archive.reconcile import Scope, us_of
    from pipeline.archive.store import open_store
    from pipeline.config import archive_config

    values = settings.read(os.environ, required=("DATABASE_URL", "ARCHIVE_URL"))
    config = archive_config(values)
    assert config is not None
    if start >= end:
        raise click.UsageError("--from must be before --to")
    now_us = time.time_ns() // 1000
    scope = Scope(
        start_us=us_of(start),
        end_us=us_of(end),
        minutes_from_us=now_us - round(values["RETENTION_MINUTE"] * 1e6),
        rollups_from_us=now_us - round(values["RETENTION_ROLLUP"] * 1e6),
        org=org,
    )
    return values["DATABASE_URL"], open_store(config), scope


@click.command()
@_range
@click.option("--org", type=ORG, help="Only this org's rows.")
@click.option("--all", "show_all", is_flag=True, help=f"Print every difference, not the first {SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reconcile(*, start: datetime, end: datetime, org: UUID | None, show_all: bool, as_json: bool) -> None:
    """Count the archive again and compare every rollup row with it. Exits with 1 if any row differs.

    Compares each minute, hour and day that lies wholly in the range, by model and by client, with errors,
    latency sketches and revisions. All rows are compared at one moment of the database, and the service may
    run. Names the times that it cannot compare, because not all of their events were archived. Changes
    nothing.
    """
    from pipeline.archive import rebuild as rebuilding
    from pipeline.archive import reconcile as reconciling

    database_url, store, scope = _setup(start, end, org)
    with rebuilding.connected(database_url) as connection:
        report = reconciling.reconcile(connection, store, scope)
    differences = report.differences if show_all else report.differences[:SHOWN]
    if as_json:
        fields = ("compared", "events", "damaged", "notes", "complete")
        row = {name: getattr(report, name) for name in fields}
        row["differenceCount"] = len(report.differences)
        row["differences"] = [str(difference) for difference in differences]
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
    else:
        for line in (*differences, *report.damaged):
            click.echo(str(line).translate(VISIBLE))
        _tell(report)
    if report.differences or report.damaged:
        fail(
            f"{len(report.differences)} rows differ, {len(report.damaged)} files are damaged;"
            " RETENTION_MINUTE and RETENTION_ROLLUP must be those of the worker"
        )
    if not report.complete:
        fail("nothing of this range is completely archived, so nothing was compared")
    if not as_json:
        click.echo("no row differs" if report.compared else "there is no row in this range")


@click.command()
@_range
def rebuild(*, start: datetime, end: datetime) -> None:
    """Repair the rollup rows that differ from the archive: all of them at once, or none.

    The service may run. Flushes wait while the days that differ are counted again, and the workers of
    repaired partitions recover from the database. After an error nothing was changed. The repair is recorded
    in analytics.audit_log. `spendstream reconcile` shows beforehand which rows differ.
    """
    from pipeline.archive import rebuild as rebuilding

    database_url, store, scope = _setup(start, end)
    report = rebuilding.rebuild(database_url, store, scope)
    for difference in report.differences[:SHOWN]:
        click.echo(str(difference).translate(VISIBLE))
    _tell(report)
    if not report.complete:
        fail("nothing of this range is completely archived, so nothing was rebuilt")
    click.echo(f"{len(report.differences)} rows were written anew")


def _tell(report: Report) -> None:
    for note in report.notes:
        click.echo(f"note: {note}")
    rows = ", ".join(f"{count} {table}" for table, count in report.compared.items()) or "no rows"
    click.echo(f"compared with {report.events} archived events: {rows}")
