"""A flush: everything that one batch changes, in one transaction.

The steps of `Flush.flush` are numbered. Each step says what holds if the process or the server dies right
after it. The answer is short: before COMMIT nothing has happened, after COMMIT everything has. There is no
second system that could disagree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql as psql

from pipeline.common import traces
from pipeline.core.accepted import AcceptedEvents
from pipeline.core.batch import Batch, SeenRows, StoredRows
from pipeline.core.watermark import DAY_US, NEVER
from pipeline.core.windows import ERRORS, Grain
from pipeline.sink import Claim, Fenced, Sink, event_columns
from pipeline.sink.connection import Database
from pipeline.sink.rows import bucket_time, hour_time, rollup_copy, seen_copy, signed, time_of, uuid_of
from sql import queries

IntArray = npt.NDArray[Any]

_FLUSH: Final = queries.load("flush")
_ARCHIVE: Final = queries.load("archive")
_REPLAYS: Final = queries.load("replays")

_SEEN_TEXTS: Final = {
    "orgs_seen": (),
    "models_seen": (),
    "clients_seen": ("client_id",),
    "values_seen": ("dimension", "value"),
}
"""The columns of the keys that hold a text."""
_COPY_BYTES: Final = 1 << 20
_NEAR_US: Final = DAY_US
"""How far behind the newest known row another known row may begin and be updated, not upserted."""
LONG_FLUSH_S: Final = 5.0
"""A flush that took longer writes the time of its end into the partition's row."""


class Flush(Sink):
    """The part of `TimescaleSink` that writes."""

    database: Database

    async def flush(self, claim: Claim, batch: Batch, *, well: bool = False) -> bool:
        events = None
        if batch.accepted is not None:
            events = await asyncio.to_thread(_outbox_row, claim, batch.accepted)
        begun_s = time.monotonic()
        async with self.database.transaction("flush") as connection:
            # 1. Compare and set the partition's offset and its count of replays. If we die now, nothing has
            #    happened. This comes first: a worker that lost the partition ends here, and never waits for,
            #    or blocks, the rows of the owner.
            waiting = await advance(connection, claim, batch, well=well)
            if waiting is None:
                return False

            # 2. Rollup rows as absolute values. If we die now, they are rolled back with the offset. The next
            #    owner reads the same events again and writes the same values.
            await connection.execute(_FLUSH["near_rows"])
            for table, rows in _by_table(batch.tables).items():
                await _write_rollups(connection, claim, table, rows)

            # 3. The first and last event of orgs, models, clients and values. If we die now: as after step 2.
            seen = [batch.orgs], [batch.models], [batch.clients], batch.values
            for table, parts in zip(_SEEN_TEXTS, seen, strict=True):
                if any(map(len, parts)):
                    await _write_seen(connection, claim, table, parts)

            # 4. The ids that were accepted. If we die now, they are rolled back with the rows: no event is a
            #    duplicate of one that is not counted.
            for hour, ids in batch.id_segments.items():
                await connection.execute(
                    _FLUSH["add_ids"],
                    {
                        "partition": claim.partition,
                        "hour": hour_time(hour),
                        "segment": batch.segment,
                        "ids": ids,
                    },
                )

            # 5. Dead letters. If we die now, they are rolled back with the offset, so none is stored twice.
            if batch.dead_letters:
                await _write_dead_letters(connection, claim, batch)

            # 6. Accepted events for the archive. If we die now, they are rolled back with the rows: the
            #    archive gets exactly the events that are counted.
            if events is not None:
                await connection.execute(_ARCHIVE["add_events"], events)

            # 7. The outcome of each replayed dead letter. If we die now, the letters wait as before, and
            #    nothing of their replay is counted.
            if batch.settled:
                await _settle(connection, claim, batch)

            # 8. The time of the end, if the flush was long. If we die now: as after step 7.
            if time.monotonic() - begun_s > LONG_FLUSH_S:
                await connection.execute(_FLUSH["committed_now"], {"partition": claim.partition})

            # 9. COMMIT, at the end of this block. If we die now, all of it is stored. If the answer is lost,
            #    we cannot know; the same batch is flushed again, and step 1 finds what is true.
        return waiting


async def advance(
    connection: psycopg.AsyncConnection[Any], claim: Claim, batch: Batch, *, well: bool = False
) -> bool | None:
    """Step 1 of a flush. True if dead letters wait for a replay; None if this batch is committed already.

    Raises:
        Fenced: the partition has another owner, or does not stand where the batch begins.
    """
    position = batch.position
    cursor = await connection.execute(
        _FLUSH["advance"],
        {
            "partition": claim.partition,
            "stream": claim.stream,
            "epoch": claim.epoch,
            "from_offset": batch.from_offset,
            "next_offset": position.next_offset,
            "watermark": None if position.watermark_us is None else time_of(position.watermark_us),
            "max_event_time": None if position.newest_us == NEVER else time_of(position.newest_us),
            "broker_time": time_of(position.broker_us) if position.broker_us else None,
            "newest_broker_time": time_of(position.newest_broker_us) if position.newest_broker_us else None,
            "counted_through": None if position.counted_us is None else time_of(position.counted_us),
            "offered": position.offered,
            "accepted": position.accepted,
            "duplicate": position.duplicate,
            "rejected": position.rejected,
            "caught_up": batch.caught_up,
            "replays": position.replays,
            "from_replays": batch.from_replays,
            "well": well,
        },
    )
    moved = await cursor.fetchone()
    if moved is not None:
        return bool(moved[1])
    cursor = await connection.execute(
        _FLUSH["standing"], {"partition": claim.partition, "stream": claim.stream}
    )
    standing = await cursor.fetchone()
    if standing == (claim.epoch, position.next_offset, position.replays):
        return None
    raise Fenced(
        f"partition {claim.partition} of {claim.stream} stands at (epoch, offset, replays) {standing},"
        f" not at {(claim.epoch, batch.from_offset, batch.from_replays)}"
    )


def _by_table(parts: Sequence[StoredRows]) -> dict[str, list[StoredRows]]:
    """The rows by their table: the rows of all dimensions are in one table."""
    found: dict[str, list[StoredRows]] = {}
    for rows in parts:
        if len(rows):
            found.setdefault(rows.grain.name, []).append(rows)
    return found


@dataclass(frozen=True, slots=True)
class Statements:
    """What makes the staging table of a grain, updates the known rows from there, and upserts the others."""

    stage: str
    update: str
    upsert: str


def statements(grain: Grain) -> Statements:
    if grain is ERRORS:
        return Statements(*(_FLUSH[f"{step}_errors"] for step in ("stage", "update", "upsert")))
    texts = grain.texts
    return Statements(
        *(_with_texts(f"{step}_rollup", grain.name, texts) for step in ("stage", "update", "upsert"))
    )


def _with_texts(query: str, table: str, texts: Sequence[str]) -> str:
    return _FLUSH[query].format(
        table=table,
        texts="".join(f"{name}, " for name in texts),
        same_texts="".join(f" AND kept.{name} = staged.{name}" for name in texts),
        text_columns="".join(f", {name} text" for name in texts),
    )


async def _write_rollups(
    connection: psycopg.AsyncConnection[Any], claim: Claim, table: str, parts: Sequence[StoredRows]
) -> None:
    """Update the rows that are in the table, and upsert the others: a row costs twice as much by an upsert.

    Only known rows near the newest one are updated: those of at most two chunks. If fewer or more rows than
    these were updated, somebody has deleted rows or has changed the table's key. Then all rows are upserted,
    which is right in the first case, and refused by the database in the second.
    """
    grain, written_by = parts[0].grain, statements(parts[0].grain)
    near = _near_rows(parts)
    starts = np.concatenate([rows.bucket[one] for rows, one in zip(parts, near, strict=True)])
    with traces.child(f"upsert {table}", "client") as span:
        copied = (rollup_copy(rows, one) for rows, one in zip(parts, near, strict=True))
        await _stage(connection, table, written_by.stage, copied, span)
        updated = 0
        if len(starts):
            first, last = (bucket_time(grain, int(one)) for one in (starts.min(), starts.max()))
            # The statement is planned each time, by what the chunks hold now.
            cursor = await connection.execute(
                written_by.update, {"partition": claim.partition, "first": first, "last": last}, prepare=False
            )
            updated = cursor.rowcount
        await connection.execute(
            written_by.upsert, {"partition": claim.partition, "all": updated != len(starts)}
        )


def _near_rows(parts: Sequence[StoredRows]) -> list[IntArray]:
    """Masks (bool[n]) of the known rows that begin at most `_NEAR_US` before the newest known row."""
    known = [np.zeros(len(rows), np.bool_) if rows.known is None else rows.known for rows in parts]
    newest = max(
        (rows.bucket[one].max() for rows, one in zip(parts, known, strict=True) if one.any()), default=0
    )
    oldest = newest - _NEAR_US // parts[0].grain.length_us
    return [one & (rows.bucket >= oldest) for rows, one in zip(parts, known, strict=True)]


async def _write_seen(
    connection: psycopg.AsyncConnection[Any], claim: Claim, table: str, parts: Sequence[SeenRows]
) -> None:
    if table == "models_seen":
        stage, upsert = _FLUSH["stage_models"], _FLUSH["upsert_models"]
    else:
        texts = _SEEN_TEXTS[table]
        stage, upsert = (_with_texts(query, table, texts) for query in ("stage_seen", "upsert_seen"))
    await _stage_and_write(connection, claim, table, stage, upsert, map(seen_copy, filter(len, parts)))


async def _stage_and_write(
    connection: psycopg.AsyncConnection[Any],
    claim: Claim,
    table: str,
    stage: str,
    upsert: str,
    parts: Iterable[bytes],
) -> None:
    """COPY rows into a temporary table, and upsert the target's rows from there."""
    with traces.child(f"upsert {table}", "client") as span:
        await _stage(connection, table, stage, parts, span)
        await connection.execute(upsert, {"partition": claim.partition})


async def _stage(
    connection: psycopg.AsyncConnection[Any],
    table: str,
    stage: str,
    parts: Iterable[bytes],
    span: traces.Span,
) -> None:
    """COPY rows into a temporary table."""
    target = psql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(psql.Identifier(f"stage_{table}"))
    await connection.execute(stage)
    for rows in parts:
        span.add(bytes=len(rows))
        async with connection.cursor().copy(target) as copy:
            for at in range(0, len(rows), _COPY_BYTES):
                await copy.write(rows[at : at + _COPY_BYTES])


async def _write_dead_letters(connection: psycopg.AsyncConnection[Any], claim: Claim, batch: Batch) -> None:
    rejected_at = time_of(batch.position.broker_us)
    async with connection.cursor().copy(_FLUSH["copy_dead_letters"]) as copy:
        for letter in batch.dead_letters:
            faults = msgspec.json.encode(letter.faults).decode()
            await copy.write_row(
                (
                    claim.partition,
                    letter.offset,
                    letter.position,
                    claim.stream,
                    letter.reason,
                    faults,
                    letter.body,
                    rejected_at,
                    time_of(letter.broker_us),
                    letter.records,
                    letter.body_bytes,
                    letter.body_sha256,
                )
            )


def _outbox_row(claim: Claim, accepted: AcceptedEvents) -> dict[str, Any]:
    """The arguments of the query ``add_events``. It encodes the events: work for a thread."""
    events = event_columns.encode(event_columns.table_of(accepted))
    from_us = accepted.complete_from_us
    return {
        "partition": claim.partition,
        "accepted_from": accepted.first_number,
        "row_count": len(accepted),
        "byte_count": len(events),
        "complete_from": None if from_us is None else time_of(from_us),
        "complete_to": time_of(accepted.complete_to_us),
        "events": events,
    }


async def _settle(connection: psycopg.AsyncConnection[Any], claim: Claim, batch: Batch) -> None:
    partition = {"partition": claim.partition}
    cursor = connection.cursor()
    await cursor.executemany(
        _REPLAYS["settle"],
        [
            {
                **partition,
                "offset": one.offset,
                "position": one.position,
                "outcome": one.outcome,
                "org": None if one.org is None else uuid_of(*one.org),
                "event": None if one.event is None else uuid_of(*one.event),
                "check": None if one.check is None else signed(one.check),
                "at_offset": one.at_offset,
            }
            for one in batch.settled
        ],
    )
    if cursor.rowcount != len(batch.settled):
        # A failover has lost the request for some of these letters, so they must not be counted.
        raise Fenced(f"{cursor.rowcount} of {len(batch.settled)} letters still waited for their replay")
    if batch.replayed_from_us is not None and batch.accepted is None:
        # These events go to no archive, so the archive is not complete in their hours.
        before = {**partition, "before": time_of(batch.replayed_from_us)}
        await connection.execute(_REPLAYS["shorten_spans"], before)
        await connection.execute(_REPLAYS["shorten_outbox"], before)
