"""The database side of one partition: claim it, recover it, and write each batch in one transaction.

The flush, in order, and what holds if the process or the server dies right after each step:

1. Compare-and-set the partition's offset and its count of replays. Not committed: nothing happened. It comes
   first, so a worker that lost the partition fails here and never waits for, or blocks, the owner's rows.
2. COPY the dirty rows into a temporary table and upsert their absolute values; alike what was seen, the new
   dedupe ids, the dead letters, what became of replayed ones, and the events for the archive. Not committed:
   nothing happened.
3. COMMIT. Either everything above is in the database or nothing is; there is no second system to disagree.

If the answer to COMMIT is lost, the same batch is flushed again: step 1 then finds the offset already
there, which says that the first attempt went through.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql as psql

from pipeline.common.connect import AsyncConnection, Refused, Session, connect_async, session_is_dead
from pipeline.core import dedupe, replay
from pipeline.core.accepted import AcceptedEvents
from pipeline.core.ledger import Batch, Block, Position, SeenRows, StoredRows
from pipeline.core.replay import CountedIds, Letter, Opened
from pipeline.core.watermark import NEVER
from pipeline.core.windows import ERRORS, GRAINS, MEASURES, Grain
from pipeline.sink import (
    GROUP_QUIET_S,
    Claim,
    Contested,
    Fenced,
    SchemaMissing,
    Sink,
    SinkUnavailable,
    Trouble,
    copy_binary,
    event_columns,
)
from sql import queries

log = logging.getLogger(__name__)

IntArray = npt.NDArray[Any]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_GRAINS: Final = {grain.name: grain for grain in (*GRAINS, ERRORS)}
_SEEN: Final = {"orgs_seen": "", "models_seen": "model_id", "clients_seen": "client_id"}
_COPY_BYTES: Final = 1 << 20
_DEADLINE_MAX_S: Final = 3600.0

SEGMENTS_MANY: Final = 16
"""Small segments of one hour that are worth merging."""
SEGMENT_BYTES_MAX: Final = 64 * 2**20
"""About the size of a merged segment of ids: 3 million of them."""


LONG_FLUSH_S: Final = 5.0
"""A flush that took longer says at its end when that was."""


class TimescaleSink(Sink):
    """A `Sink` on PostgreSQL, with or without TimescaleDB."""

    def __init__(
        self,
        database_url: str,
        *,
        application_name: str = "spendstream",
        consumer: str = "spendstream",
        timeout_s: float = 60.0,
        silent_s: float = 15.0,
    ):
        """``consumer`` is the consumer group that we read for. ``timeout_s`` bounds each transaction, at
        first (see `_Unit`). ``silent_s`` is how long the server waits for us in one: a worker that freezes in
        a flush must not keep the next owner from its rows.
        """
        self._url = database_url
        self._application_name = application_name
        self._consumer = consumer
        self._timeout_s = timeout_s
        self._longer_s: dict[str, float] = {}
        """How long a kind of work may take that the database could not do in time before."""
        self._silent_s = silent_s
        self._connection: AsyncConnection | None = None

    async def close(self) -> None:
        """Close the connection; a transaction in flight is rolled back. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()

    async def check_schema(self) -> None:
        """Return if the database answers and has been migrated. Raises `SinkUnavailable`, `SchemaMissing`."""
        async with _Unit(self) as connection:
            await connection.execute("SELECT 1 FROM analytics.partitions LIMIT 1")

    # --- ownership and recovery --------------------------------------------------------------------------

    async def claim(self, stream: str) -> tuple[Claim, Position]:
        """Become the only writer of a stream's partition; where it stands.

        Raises:
            SinkUnavailable, SchemaMissing.
            Contested: another consumer group has committed there within `GROUP_QUIET_S`.
        """
        named = {"stream": stream, "consumer": self._consumer, "quiet": f"{GROUP_QUIET_S} s"}
        async with _Unit(self) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('analytics.partitions'))")
            row, other = None, await (await connection.execute(_FLUSH["flushing"], named)).fetchone()
            if other is None:
                row = await (await connection.execute(_FLUSH["claim"], named)).fetchone()
            if row is None:
                other = other or await (await connection.execute(_FLUSH["consumer"], named)).fetchone()
        if row is None:
            assert other is not None
            raise Contested(
                f"the consumer groups {other[0]!r} and {self._consumer!r} (RABBITMQ_CONSUMER) both read"
                f" {stream!r} into this database, where one of them is enough: give all workers of a database"
                f" the same group, or stop those of one group for {GROUP_QUIET_S} s"
            )
        (partition, epoch, offset, offered, accepted, duplicate, rejected, replays), rest = row[:8], row[8:]
        mark, newest, broker, newest_broker, ids_from_hour, was_retired, crashes, *tried = rest
        if was_retired:
            log.warning("retired_stream_is_read_again", extra={"stream": stream, "partition": partition})
        position = Position(
            next_offset=offset,
            newest_us=NEVER if newest is None else newest,
            broker_us=broker or 0,
            newest_broker_us=newest_broker or 0,
            ids_from_hour=ids_from_hour or 0,
            watermark_us=mark,
            offered=offered,
            accepted=accepted,
            duplicate=duplicate,
            rejected=rejected,
            replays=replays,
        )
        place = (tried[0], tried[1]) if tried[0] is not None else None
        return Claim(stream, partition, epoch, crashes, place), position

    async def released(self, claim: Claim) -> None:
        """The partition was let go of on purpose. Raises as `claim`."""
        async with _Unit(self) as connection:
            await connection.execute(_FLUSH["released"], _named(claim))

    async def trying(self, claim: Claim, from_offset: int, to_offset: int) -> None:
        """Note which records are taken in next. Raises as `claim`."""
        async with _Unit(self) as connection:
            await connection.execute(
                _FLUSH["trying"], {**_named(claim), "from_offset": from_offset, "to_offset": to_offset}
            )

    async def skips(self, claim: Claim, *, from_offset: int) -> dict[int, str]:
        """By offset, why and by whom a record is skipped. Raises as `claim`."""
        async with _Unit(self) as connection:
            rows = await connection.execute(
                _FLUSH["skips"], {"stream": claim.stream, "from_offset": from_offset}
            )
            return {offset: f"skipped by {actor}: {note}" for offset, note, actor in await rows.fetchall()}

    async def holds(self, claim: Claim, *, offset: int) -> bool:
        """Is the claim the last one, and the partition committed up to ``offset``? Raises as `claim`."""
        async with _Unit(self) as connection:
            cursor = await connection.execute(
                _FLUSH["standing"], {"partition": claim.partition, "stream": claim.stream}
            )
            standing = await cursor.fetchone()
            return standing is not None and standing[:2] == (claim.epoch, offset)

    async def resident_rows(self, claim: Claim, wanted: Iterable[tuple[Grain, int]]) -> list[StoredRows]:
        """All rows of each table from a bucket on. Raises as `claim`."""
        found = []
        async with _Unit(self, "resident_rows") as connection:
            for grain, bucket in wanted:
                cursor = connection.cursor(binary=True)
                await cursor.execute(
                    _FLUSH["resident_rows"].format(table=grain.name, columns=_columns(grain)),
                    {"start": _bucket_time(grain, max(bucket, 0)), "partition": claim.partition},
                )
                found.append(_stored_rows(grain, await cursor.fetchall()))
        return found

    async def high_days(self, claim: Claim, *, from_day: int, sum_least: int) -> list[Block]:
        """The orgs' days from a day on of which some sum is ``sum_least`` or more. Raises as `claim`."""
        day = GRAINS[2]
        async with _Unit(self) as connection:
            cursor = await connection.execute(
                _FLUSH["high_days"],
                {
                    "partition": claim.partition,
                    "start": _bucket_time(day, max(from_day, 0)),
                    "sum_least": sum_least,
                },
            )
            rows = await cursor.fetchall()
        orgs = _halves(row[0] for row in rows).tolist()
        return [
            Block(grain=day, org=(high, low), bucket=number)
            for (high, low), (_, number) in zip(orgs, rows, strict=True)
        ]

    async def live_ids_count(self, claim: Claim, *, from_hour: int) -> int:
        """About how many ids `live_ids` brings; fewer where version 0.1.0 stored them. Raises as `claim`."""
        async with _Unit(self) as connection:
            first = {"partition": claim.partition, "from_hour": _hour_time(max(from_hour, 0))}
            found = await (await connection.execute(_FLUSH["live_bytes"], first)).fetchone()
            assert found is not None
            return int(found[0]) // dedupe.BYTES_AT_REST

    async def live_ids(self, claim: Claim, *, from_hour: int) -> AsyncIterator[tuple[int, bytes]]:
        """(hour, segment) pairs of the ids that still count, oldest hour first. Raises as `claim`.

        One hour is in memory at a time, and read in a transaction of its own: nobody else writes them.
        """
        async with _Unit(self) as connection:
            first = {"partition": claim.partition, "from_hour": _hour_time(max(from_hour, 0))}
            hours = await (await connection.execute(_FLUSH["live_hours"], first)).fetchall()
        for (hour,) in hours:
            async with _Unit(self) as connection:
                cursor = connection.cursor(binary=True)
                mine = {"partition": claim.partition, "hour": _hour_time(hour)}
                segments = await (await cursor.execute(_FLUSH["live_ids"], mine)).fetchall()
            for (segment,) in segments:
                yield hour, segment

    async def load(self, claim: Claim, blocks: Sequence[Block]) -> list[StoredRows]:
        """The rows of the blocks, by table. Raises as `claim`."""
        found = []
        async with _Unit(self, "load") as connection:
            for grain in _GRAINS.values():
                mine = [block for block in blocks if block.grain is grain]
                if not mine:
                    continue
                starts = [_bucket_time(grain, block.bucket) for block in mine]
                cursor = connection.cursor(binary=True)
                await cursor.execute(
                    _FLUSH["block_rows"].format(table=grain.name, columns=_columns(grain)),
                    {
                        "orgs": [UUID(int=block.org[0] << 64 | block.org[1]) for block in mine],
                        "starts": starts,
                        "first": min(starts),
                        "last": max(starts),
                        "partition": claim.partition,
                    },
                )
                found.append(_stored_rows(grain, await cursor.fetchall()))
        return found

    async def org_models(self, claim: Claim) -> list[tuple[UUID, UUID, int, int]]:
        """(org, model, last event, last rollup) of the partition, in microseconds. Raises as `claim`."""
        async with _Unit(self) as connection:
            cursor = await connection.execute(_FLUSH["org_models"], {"partition": claim.partition})
            return await cursor.fetchall()

    async def merge_ids(self, claim: Claim, *, before_hour: int) -> int:
        """Put the many small segments of one hour before ``before_hour`` into one of at most about 64 MiB.

        Recovery then reads few rows instead of one a flush. Returns how many segments were merged, 0 when
        there was nothing to do.

        Raises:
            SinkUnavailable, SchemaMissing: nothing was changed.
            Fenced: the partition has another owner; nothing was changed.
        """
        partition = {"partition": claim.partition}
        async with _Unit(self) as connection:
            held = {**partition, "stream": claim.stream, "epoch": claim.epoch}
            if await (await connection.execute(_FLUSH["ours"], held)).fetchone() is None:
                raise Fenced(f"partition {claim.partition} of {claim.stream} has another owner")
            bounds = {"before": _hour_time(max(before_hour, 0)), "many": SEGMENTS_MANY}
            small = {**partition, "small": SEGMENT_BYTES_MAX // 2}
            found = await (await connection.execute(_FLUSH["crowded_hour"], {**small, **bounds})).fetchone()
            if found is None:
                return 0
            hour = {**partition, "hour": found[0]}
            cursor = connection.cursor(binary=True)
            await cursor.execute(_FLUSH["small_segments"], {**small, **hour})
            segments: list[int] = []
            parts: list[bytes] = []
            size = 0
            async for segment, ids in cursor:
                size += len(ids)
                if size > SEGMENT_BYTES_MAX and segments:
                    break
                segments.append(segment)
                parts.append(ids)
            merged = await asyncio.to_thread(dedupe.merge_segments, parts)
            await connection.execute(_FLUSH["drop_segments"], {**hour, "segments": segments})
            await connection.execute(_FLUSH["add_ids"], {**hour, "segment": segments[-1], "ids": merged})
            return len(segments)

    # --- replays of dead letters ------------------------------------------------------------------------

    async def waiting_letters(self, claim: Claim, *, most: int) -> list[Letter]:
        """The first ``most`` dead letters that wait to be replayed. Raises as `claim`."""
        async with _Unit(self) as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_REPLAYS["waiting"], {"partition": claim.partition, "most": most})
            names = ("offset", "position", "broker_us", "evidence", "absent_to_hour", "reason", "body")
            return [Letter(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall()]

    async def counted(self, claim: Claim, opened: Opened) -> CountedIds:
        """Which of the letters' events were counted, by earlier replays and by stored hours.

        Raises as `claim`.
        """
        keys = list(dict.fromkeys(opened.keys))
        asked = {
            "partition": claim.partition,
            "orgs": [UUID(int=high << 64 | low) for high, low, _, _ in keys],
            "events": [UUID(int=high << 64 | low) for _, _, high, low in keys],
        }
        by_hour = opened.of_stored_hours()
        hours = [_hour_time(hour) for hour in by_hour]
        async with _Unit(self) as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_REPLAYS["counted"], asked)
            rows = await cursor.fetchall()
            found = [
                CountedIds(
                    org=_halves(row[0] for row in rows),
                    event=_halves(row[1] for row in rows),
                    hour=np.full(len(rows), replay.ANY_HOUR, np.int64),
                    check=np.array([row[2] & _UNSIGNED for row in rows], np.uint64),
                )
            ]
            if hours:
                # One segment at a time: a busy hour has tens of megabytes of them.
                stored = {"partition": claim.partition, "hours": hours}
                async for hour, segment in cursor.stream(_REPLAYS["ids_of_hours"], stored):
                    found.append(await asyncio.to_thread(replay.among, by_hour[hour], hour, segment))
        return CountedIds.join(found)

    # --- the flush -----------------------------------------------------------------------------------------

    async def flush(self, claim: Claim, batch: Batch, *, well: bool = False) -> bool:
        """Write a batch whole, or not at all. True if dead letters wait to be replayed.

        ``well``: the worker has come past whatever made an earlier one crash.

        Raises:
            SinkUnavailable: the outcome may be unknown; flush the very same batch again.
            Fenced: the partition has another owner; nothing was written.
            SchemaMissing.
        """
        events = None
        if batch.accepted is not None:
            events = await asyncio.to_thread(_outbox_row, claim, batch.accepted)
        begun_s = time.monotonic()
        async with _Unit(self, "flush") as connection:
            waiting = await self._advance(connection, claim, batch, well)
            if waiting is None:
                return False
            for rows in batch.tables:
                if len(rows):
                    await self._write_rows(connection, claim, rows)
            for table, seen in zip(_SEEN, (batch.orgs, batch.models, batch.clients), strict=True):
                if len(seen):
                    await self._write_seen(connection, claim, table, seen)
            for hour, ids in batch.id_segments.items():
                await connection.execute(
                    _FLUSH["add_ids"],
                    {
                        "partition": claim.partition,
                        "hour": _hour_time(hour),
                        "segment": batch.segment,
                        "ids": ids,
                    },
                )
            if batch.dead_letters:
                await self._write_dead_letters(connection, claim, batch)
            if events is not None:
                await connection.execute(_ARCHIVE["add_events"], events)
            if batch.settled:
                await self._settle(connection, claim, batch)
            if time.monotonic() - begun_s > LONG_FLUSH_S:
                await connection.execute(_FLUSH["committed_now"], {"partition": claim.partition})
        return waiting

    async def _advance(
        self, connection: psycopg.AsyncConnection[Any], claim: Claim, batch: Batch, well: bool = False
    ) -> bool | None:
        """Step 1: do letters wait for a replay? None: an earlier attempt at this very batch was committed."""
        position = batch.position
        cursor = await connection.execute(
            _FLUSH["advance"],
            {
                "partition": claim.partition,
                "stream": claim.stream,
                "epoch": claim.epoch,
                "from_offset": batch.from_offset,
                "next_offset": position.next_offset,
                "watermark": _time(position.watermark_us),
                "max_event_time": None if position.newest_us == NEVER else _time(position.newest_us),
                "broker_time": _time(position.broker_us) if position.broker_us else None,
                "newest_broker_time": _time(position.newest_broker_us) if position.newest_broker_us else None,
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

    async def _write_rows(
        self, connection: psycopg.AsyncConnection[Any], claim: Claim, rows: StoredRows
    ) -> None:
        grain, m = rows.grain, rows.measures
        start = rows.bucket * grain.length_us - copy_binary.EPOCH_2000_US
        if grain is ERRORS:
            assert rows.status is not None
            stage, upsert = _FLUSH["stage_errors"], _FLUSH["upsert_errors"]
            data = copy_binary.payload(
                [rows.org, start, rows.model, rows.status.astype(np.int16), m[:, 0]],
                [_utf8(rows.client), _utf8(rows.error_code)],
            )
        else:
            by_client = grain.by_client
            stage = _FLUSH["stage_rollup"].format(
                table=grain.name, client_column=", client_id text" if by_client else ""
            )
            upsert = _FLUSH["upsert_rollup"].format(
                table=grain.name, client="client_id, " if by_client else ""
            )
            data = copy_binary.payload(
                [
                    rows.org,
                    start,
                    rows.model,
                    *(m[:, i] for i in range(9)),
                    m[:, 9].astype(np.int32),
                    m[:, 10].astype(np.int32),
                ],
                [_utf8(rows.client), rows.sketches] if by_client else [rows.sketches],
            )
        await self._stage_and_write(connection, claim, grain.name, stage, upsert, data)

    async def _write_seen(
        self, connection: psycopg.AsyncConnection[Any], claim: Claim, table: str, seen: SeenRows
    ) -> None:
        name = _SEEN[table]
        kind = {"": "", "model_id": ", model_id uuid", "client_id": ", client_id text"}[name]
        stage = _FLUSH["stage_seen"].format(table=table, name_column=kind)
        upsert = _FLUSH["upsert_seen"].format(table=table, name=f"{name}, " if name else "")
        first, last = (seen.span_us - copy_binary.EPOCH_2000_US).T
        fixed = [seen.org, first, last] + ([seen.model] if seen.model is not None else [])
        data = copy_binary.payload(fixed, [_utf8(seen.client)] if name == "client_id" else ())
        await self._stage_and_write(connection, claim, table, stage, upsert, data)

    @staticmethod
    async def _stage_and_write(
        connection: psycopg.AsyncConnection[Any],
        claim: Claim,
        table: str,
        stage: str,
        upsert: str,
        data: bytes,
    ) -> None:
        await connection.execute(stage)
        target = psql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(psql.Identifier(f"stage_{table}"))
        async with connection.cursor().copy(target) as copy:
            for at in range(0, len(data), _COPY_BYTES):
                await copy.write(data[at : at + _COPY_BYTES])
        await connection.execute(upsert, {"partition": claim.partition})

    @staticmethod
    async def _write_dead_letters(
        connection: psycopg.AsyncConnection[Any], claim: Claim, batch: Batch
    ) -> None:
        rejected_at = _time(batch.position.broker_us)
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
                        _time(letter.broker_us),
                        letter.records,
                        letter.body_bytes,
                        letter.body_sha256,
                    )
                )

    @staticmethod
    async def _settle(connection: psycopg.AsyncConnection[Any], claim: Claim, batch: Batch) -> None:
        """Say what became of replayed letters, in the transaction that counts them."""
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
                    "org": None if one.org is None else UUID(int=one.org[0] << 64 | one.org[1]),
                    "event": None if one.event is None else UUID(int=one.event[0] << 64 | one.event[1]),
                    "check": None if one.check is None else _signed(one.check),
                    "at_offset": one.at_offset,
                }
                for one in batch.settled
            ],
        )
        if cursor.rowcount != len(batch.settled):
            # A failover lost the request, too: nobody asks for these letters any more.
            raise Fenced(f"{cursor.rowcount} of {len(batch.settled)} letters still waited for their replay")
        if batch.replayed_from_us is not None and batch.accepted is None:
            # These events go to no archive, so it must not be taken for whole where they lie.
            before = {**partition, "before": _time(batch.replayed_from_us)}
            await connection.execute(_REPLAYS["shorten_spans"], before)
            await connection.execute(_REPLAYS["shorten_outbox"], before)

    async def connection(self) -> AsyncConnection:
        """The open connection, made when there is none."""
        if self._connection is None or self._connection.closed:
            session = Session(
                application_name=self._application_name,
                statement_timeout_s=self._timeout_s,
                idle_in_transaction_s=self._silent_s,
            )
            self._connection = await connect_async(self._url, session, autocommit=True)
        return self._connection


_FLUSH: Final = queries.load("flush")
_ARCHIVE: Final = queries.load("archive")
_REPLAYS: Final = queries.load("replays")


class _Unit:
    """One transaction on the sink's connection, with the driver's errors translated once, here.

    After any error but `Fenced` the connection is closed, because its state cannot be trusted.
    """

    def __init__(self, sink: TimescaleSink, work: str = "") -> None:
        """``work``: a kind that is repeated until it is done. Its deadline doubles, up to `_DEADLINE_MAX_S`,
        each time that the database was at work when it came: the same one would cut the work off for ever.
        """
        self._sink = sink
        self._work = work
        self._begun = False
        self._timeout_s = sink._longer_s.get(work, sink._timeout_s)
        self._deadline = asyncio.timeout(self._timeout_s)

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        await self._deadline.__aenter__()
        try:
            connection = await self._sink.connection()
            await connection.execute(connection.begin.encode())
            if self._timeout_s > self._sink._timeout_s:
                await connection.execute(
                    f"SET LOCAL statement_timeout = {round(self._timeout_s * 1000)}".encode()
                )
            self._begun = True
        except BaseException as error:
            await self._leave(error)
            raise AssertionError("unreachable") from error
        self._connection = connection
        return connection

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            try:
                await self._connection.execute("COMMIT")
            except BaseException as failure:
                await self._leave(failure)
            self._sink._longer_s.pop(self._work, None)
            await self._deadline.__aexit__(None, None, None)
        elif isinstance(error, Fenced):
            with suppress(psycopg.Error):
                await self._connection.execute("ROLLBACK")
            await self._deadline.__aexit__(None, None, None)
        else:
            await self._leave(error)

    async def _leave(self, error: BaseException) -> None:
        """Close the connection and raise what the error means."""
        await self._sink.close()
        try:
            await self._deadline.__aexit__(type(error), error, error.__traceback__)
        except TimeoutError as late:
            self._was_late()
            raise SinkUnavailable(
                f"the database did not answer within {self._timeout_s:g} s", Trouble.TIMEOUT
            ) from late
        if _trouble(error) is Trouble.TIMEOUT:
            self._was_late()
        if isinstance(
            error,
            (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedColumn),
        ):
            raise SchemaMissing(f"run `spendstream migrate`: {str(error).strip()}") from error
        away = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
        # A primary that a failover demoted says read-only until the address leads to the new one; the second
        # is said to a worker that was frozen in a transaction; a privilege is for an operator to grant.
        waits = (
            psycopg.errors.ReadOnlySqlTransaction,
            psycopg.errors.IdleInTransactionSessionTimeout,
            psycopg.errors.InsufficientPrivilege,
        )
        if isinstance(error, (*away, *waits)) or session_is_dead(error):
            raise SinkUnavailable(str(error).strip() or type(error).__name__, _trouble(error)) from error
        raise error

    def _was_late(self) -> None:
        if self._work and self._begun:
            self._sink._longer_s[self._work] = min(2 * self._timeout_s, _DEADLINE_MAX_S)


def _trouble(error: BaseException) -> Trouble:
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, Refused) or state in ("25006", "42501"):
        return Trouble.REFUSED
    if state == "57014":
        return Trouble.TIMEOUT
    if state == "55P03":
        return Trouble.CONFLICT
    by_class = {"53": Trouble.LIMIT, "40": Trouble.CONFLICT, "": Trouble.CONNECTION}
    connection = ("08", "25", "28", "57")
    return Trouble.CONNECTION if state[:2] in connection else by_class.get(state[:2], Trouble.OTHER)


def _named(claim: Claim) -> dict[str, Any]:
    return {"stream": claim.stream, "partition": claim.partition, "epoch": claim.epoch}


# --- between arrays and rows -----------------------------------------------------------------------------


def _time(us: int | None) -> datetime | None:
    return None if us is None else _EPOCH + timedelta(microseconds=us)


_UNSIGNED: Final = 2**64 - 1


def _signed(check: int) -> int:
    """64 bits as a bigint has them."""
    return check - 2**64 if check >= 2**63 else check


def _outbox_row(claim: Claim, accepted: AcceptedEvents) -> dict[str, Any]:
    events = event_columns.encode(event_columns.table_of(accepted))
    return {
        "partition": claim.partition,
        "accepted_from": accepted.first_number,
        "row_count": len(accepted),
        "byte_count": len(events),
        "complete_from": _time(accepted.complete_from_us),
        "complete_to": _time(accepted.complete_to_us),
        "events": events,
    }


def _hour_time(hour: int) -> datetime:
    return _EPOCH + timedelta(hours=hour)


def _bucket_time(grain: Grain, bucket: int) -> datetime:
    return _EPOCH + timedelta(microseconds=bucket * grain.length_us)


def _utf8(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _columns(grain: Grain) -> str:
    if grain is ERRORS:
        return "count, client_id, status, error_code"
    return ", ".join((*MEASURES, "latency_sketch", *(("client_id",) if grain.by_client else ())))


def _halves(ids: Iterable[UUID]) -> IntArray:
    """uint64[n, 2], (high, low)."""
    return np.array([(i.int >> 64, i.int & (2**64 - 1)) for i in ids], np.uint64).reshape(-1, 2)


def _stored_rows(grain: Grain, rows: Sequence[tuple[Any, ...]]) -> StoredRows:
    def halves(column: int) -> IntArray:
        return _halves(row[column] for row in rows)

    measure_count = 1 if grain is ERRORS else len(MEASURES)
    rest = 3 + measure_count
    measures = np.array([row[3:rest] for row in rows], np.int64).reshape(-1, measure_count)
    stored = StoredRows(
        grain=grain,
        org=halves(0),
        model=halves(2),
        bucket=np.array([row[1] // grain.length_us for row in rows], np.int64),
        measures=measures,
    )
    if grain is ERRORS:
        stored.client = [row[rest] for row in rows]
        stored.status = np.array([row[rest + 1] for row in rows], np.int32)
        stored.error_code = [row[rest + 2] for row in rows]
    else:
        stored.sketches = [row[rest] for row in rows]
        stored.client = [row[rest + 1] for row in rows] if grain.by_client else ()
    return stored
