"""Repairing the rollup rows that differ from the archive.

The worker that owns a partition holds rows of the partition in memory. Its next flush would write over
repaired rows. So the rebuild locks ``partitions`` from its recount to its commit, and no flush can run
meanwhile. It also raises the epoch of each partition that it repairs. The next flush of that worker then
fails whole, and the worker recovers from the repaired rows.

All repairs are one transaction: if the process dies, nothing has happened, and readers see all of it or
nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql as psql
from psycopg.types.json import Jsonb

from pipeline.archive import reconcile
from pipeline.archive.reconcile import Connection, Difference, Report, Scope, time_of
from pipeline.archive.store import Store
from pipeline.common.actor import actor
from pipeline.common.connect import Session, connect
from pipeline.common.operator import OperatorError
from pipeline.core.watermark import DAY_US
from pipeline.core.windows import ALL_GRAINS, ERRORS, Grain
from pipeline.sink.flush import statements
from sql import queries


class Damage(OperatorError):
    """Files of the range are missing or damaged; nothing was changed. The remedy: restore the named files."""


def rebuild(database_url: str, store: Store, scope: Scope) -> Report:
    """Repair the rows in scope that differ from the archive; the report with the repaired differences.

    Rows that are right are not touched. If all rows are right, no flush is held off.

    Raises:
        Damage, psycopg.Error, StoreError: nothing was changed.
    """
    with connected(database_url) as connection:
        before = reconcile.reconcile(connection, store, scope)
    _refuse_damage(before)
    if not before.differences:
        return before
    with connected(database_url, hold_flushes=True) as connection:
        # Flushes went on until now. No flush can run any more, so compare the days that differed once more.
        found: list[Difference] = []
        for day in sorted({difference.key[1] // DAY_US for difference in before.differences}):
            report = reconcile.reconcile(connection, store, _within(scope, day))
            _refuse_damage(report)
            found += report.differences
        _write(connection, found)
        _record(connection, found, scope)
    return dataclasses.replace(before, differences=found)


def connected(database_url: str, *, hold_flushes: bool = False) -> Any:
    """A connection in one transaction with one snapshot. Leaving ``with`` commits; an exception rolls back.

    ``hold_flushes`` locks ``partitions``, so no flush runs until the end of the transaction. The lock comes
    before the snapshot, so the snapshot has every flush that was committed.

    Raises `psycopg.Error`.
    """
    connection = connect(database_url, Session(application_name="spendstream-archive"))
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    if hold_flushes:
        connection.execute("LOCK TABLE analytics.partitions IN SHARE ROW EXCLUSIVE MODE")
    else:
        connection.read_only = True
    return connection


def _refuse_damage(report: Report) -> None:
    if report.damaged:
        raise Damage("nothing was changed, because the archive is damaged: " + "; ".join(report.damaged))


def _within(scope: Scope, day: int) -> Scope:
    """The part of the scope that lies in one day (days since 1970)."""
    start_us, end_us = max(scope.start_us, day * DAY_US), min(scope.end_us, (day + 1) * DAY_US)
    return dataclasses.replace(scope, start_us=start_us, end_us=end_us)


def _write(connection: Connection, differences: Sequence[Difference]) -> None:
    for grain in ALL_GRAINS:
        mine = [difference for difference in differences if difference.grain is grain]
        _delete(connection, grain, [d for d in mine if d.counted is None])
        for partition in sorted({d.partition for d in mine}):
            _upsert(
                connection,
                grain,
                partition,
                [d for d in mine if d.counted is not None and d.partition == partition],
            )
    partitions = sorted({difference.partition for difference in differences})
    connection.execute(_ARCHIVE["raise_epoch"], {"partitions": partitions})


def _delete(connection: Connection, grain: Grain, differences: Sequence[Difference]) -> None:
    more = "".join(f" AND {name} = %s" for name in reconcile.names_of(grain))
    statement = _ARCHIVE["delete_row"].format(table=grain.name, more=more)
    with connection.cursor() as cursor:
        cursor.executemany(statement, [(*_ids(d), d.partition, *d.key[4:]) for d in differences])


def _upsert(connection: Connection, grain: Grain, partition: int, differences: Sequence[Difference]) -> None:
    """Write rows with the same statements as a flush."""
    if not differences:
        return
    written_by = statements(grain)
    connection.execute(written_by.stage)
    target = psql.SQL("COPY {} FROM STDIN").format(psql.Identifier(f"stage_{grain.name}"))
    with connection.cursor() as cursor:
        with cursor.copy(target) as copy:
            for difference in differences:
                copy.write_row(_staged(difference))
        cursor.execute(written_by.upsert, {"partition": partition, "all": True})
        cursor.execute(psql.SQL("TRUNCATE {}").format(psql.Identifier(f"stage_{grain.name}")))


def _staged(difference: Difference) -> tuple[Any, ...]:
    """The counted row in the order of the staging table's columns."""
    counted, rest = difference.counted, difference.key[4:]
    assert counted is not None
    if difference.grain is ERRORS:
        client, status, code = rest
        return (*_ids(difference), False, status, counted[0], client, code)
    return (*_ids(difference), False, *counted[:-1], *rest, counted[-1])


def _ids(difference: Difference) -> tuple[UUID, Any, UUID, int]:
    org, at_us, model, rate_class, *_ = difference.key
    return UUID(bytes=org), time_of(at_us), UUID(bytes=model), rate_class


def _record(connection: Connection, differences: Sequence[Difference], scope: Scope) -> None:
    if not differences:
        return
    detail = {
        "from": time_of(scope.start_us).isoformat(),
        "to": time_of(scope.end_us).isoformat(),
        "rows": dict(Counter(difference.grain.name for difference in differences)),
        "partitions": sorted({difference.partition for difference in differences}),
    }
    connection.execute(_ARCHIVE["audit"], {"actor": actor(), "detail": Jsonb(detail)})


_ARCHIVE: Final = queries.load("archive")
