"""Skipping a record: ``spendstream stream skip``, for a record at which the worker crashes every time.

The record becomes a dead letter with the operator's reason, and the worker does not read its bytes. A worker
loads the skips of its partition before it takes in the first chunk. A flush commits the dead letter and the
offset in one transaction. So the record becomes a dead letter exactly once, even if the worker crashes again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg.types.json import Jsonb

from pipeline.common.actor import actor
from pipeline.common.connect import Session, connect
from pipeline.common.operator import OperatorError
from pipeline.config import StreamConfig
from pipeline.transports.factory import open_transport
from sql import queries


class SkipRefused(OperatorError):
    """The record cannot be skipped; nothing was changed. The message says why, and what fits instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """The record in the audit log."""

    stream: str
    partition: int
    offset: int
    actor: str


async def skip(
    config: StreamConfig,
    database_url: str,
    *,
    stream: str | None,
    partition: int | None,
    offset: int,
    note: str,
) -> Skipped:
    """Have the worker make one record a dead letter without reading it.

    The partition is named by ``stream`` or by its number ``partition``.

    Raises:
        SkipRefused: the record is committed or skipped already, the stream does not hold the record, or the
            names do not fit exactly one partition.
        TransportError: the broker does not say what the stream holds.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    done = _record(database_url, stream, partition, offset, note, dry=True)
    transport = open_transport(replace(config, stream=done.stream))
    try:
        (extent,) = await transport.extents()
    finally:
        await transport.close()
    if not extent.first_offset <= offset < extent.end_offset:
        raise SkipRefused(
            f"{done.stream!r} holds offsets from {extent.first_offset} to {extent.end_offset - 1},"
            f" not {offset}"
        )
    return _record(database_url, stream, partition, offset, note, dry=False)


def _record(
    database_url: str, stream: str | None, partition: int | None, offset: int, note: str, *, dry: bool
) -> Skipped:
    with connect(database_url, Session(application_name="spendstream-stream")) as connection:
        found = connection.execute(_SKIP["standing"], {"stream": stream, "partition": partition}).fetchall()
        if len(found) != 1:
            named = ", ".join(f"{number} ({name})" for name, number, _ in found) or "none"
            raise SkipRefused(f"name one partition, by --partition or --stream; those that fit: {named}")
        ((name, number, committed),) = found
        if offset < committed:
            raise SkipRefused(
                f"{name!r} is committed up to offset {committed}: the record at {offset} was taken in before"
            )
        done = Skipped(stream=name, partition=number, offset=offset, actor=actor())
        if dry:
            return done
        row = {"stream": name, "offset": offset, "note": note, "actor": done.actor}
        if connection.execute(_SKIP["skip"], row).rowcount == 0:
            raise SkipRefused(f"the record at offset {offset} of {name!r} is skipped already")
        connection.execute(_SKIP["raise_epoch"], {"stream": name})
        detail = {"stream": name, "partition": number, "offset": offset, "note": note}
        connection.execute(_SKIP["audit"], {"actor": done.actor, "detail": Jsonb(detail)})
        return done


_SKIP = queries.load("skip")
