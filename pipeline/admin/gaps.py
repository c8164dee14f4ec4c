"""Accepting a gap: ``spendstream stream accept-gap``, by which an operator gives some events up for good.

A worker that finds its offset gone from the stream waits. With this command an operator moves the committed
offset over exactly the named gap, and the audit log keeps who did it. Example: 500 is committed, and the
stream now begins at 700. The command moves the offset from 500 to 700, and the worker goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.types.json import Jsonb

from pipeline.common.actor import actor
from pipeline.common.connect import Session, connect
from pipeline.common.operator import OperatorError
from pipeline.config import StreamConfig
from pipeline.transports import Extent, OffsetGone, ReadFrom
from pipeline.transports.factory import open_transport
from pipeline.transports.gap import look
from sql import queries


class GapRefused(OperatorError):
    """There is no gap, or the gap is another one; nothing was changed. The message has the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedGap:
    """The record in the audit log."""

    stream: str
    partition: int
    from_offset: int
    to_offset: int
    epoch: int
    actor: str


async def accept(
    config: StreamConfig, database_url: str, *, stream: str, from_offset: int, to_offset: int
) -> AcceptedGap:
    """Move the committed offset of a partition's ``stream`` over a gap.

    Raises:
        GapRefused: the partition is not committed up to ``from_offset``, or the stream still has events that
            the move would skip.
        TransportError: the broker does not say what the stream holds.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    with connect(database_url, _SESSION) as connection:
        standing = connection.execute(_GAPS["where_it_stands"], {"stream": stream}).fetchone()
    before_us = standing[1] if standing is not None and standing[0] == from_offset else None
    transport = open_transport(config)
    try:
        held = {extent.stream: (number, extent) for number, extent in enumerate(await transport.extents())}
        if stream not in held:
            raise GapRefused(f"{stream!r} is no partition's stream; there are {', '.join(held)}")
        gone = await look(transport, *held[stream], ReadFrom(from_offset, before_us))
    finally:
        await transport.close()
    _check(held[stream][1], gone, from_offset, to_offset)
    return _record(database_url, stream, from_offset, to_offset)


def _check(held: Extent, gone: OffsetGone | None, from_offset: int, to_offset: int) -> None:
    """Raise GapRefused if the stream does not have exactly this gap."""
    if gone is None:
        raise GapRefused(
            f"there is no gap: {held.stream!r} holds offsets from {held.first_offset} to"
            f" {held.end_offset - 1}, and offset {from_offset} can be read from it"
        )
    if to_offset != held.first_offset:
        raise GapRefused(
            f"{held.stream!r} begins at offset {held.first_offset} now: only --to {held.first_offset} skips"
            " nothing that is still there, and leaves no gap"
        )


def _record(database_url: str, stream: str, from_offset: int, to_offset: int) -> AcceptedGap:
    who = actor()
    gap = {"stream": stream, "from_offset": from_offset, "to_offset": to_offset}
    with connect(database_url, _SESSION) as connection:
        moved = connection.execute(_GAPS["accept_gap"], gap).fetchone()
        if moved is None:
            standing = connection.execute(_GAPS["where_it_stands"], gap).fetchone()
            raise GapRefused(
                f"no worker has ever read {stream!r} into this database"
                if standing is None
                else f"{stream!r} is committed up to offset {standing[0]}, not {from_offset}"
            )
        partition, epoch = moved
        if to_offset < from_offset:
            for block in ("retire_segments", "retire_dead_letters", "retire_replays", "retire_skips"):
                connection.execute(_GAPS[block], {**gap, "partition": partition, "epoch": epoch})
        detail = {**gap, "partition": partition, "epoch": epoch}
        connection.execute(_GAPS["audit"], {"actor": who, "detail": Jsonb(detail)})
    return AcceptedGap(
        stream=stream,
        partition=partition,
        from_offset=from_offset,
        to_offset=to_offset,
        epoch=epoch,
        actor=who,
    )


_GAPS = queries.load("gaps")
_SESSION = Session(application_name="spendstream-stream")
