"""From the outbox to files, exactly once.

A cut of a partition, in order, and what holds if the process dies right after each step:

1. Settle in the database which outbox rows it has. Nothing is uploaded yet; the next attempt takes the same.
2. Upload its files. No manifest lists them; the next attempt writes the same bytes under the same names.
3. In one transaction: delete its outbox rows, list its files, widen the span. Either all of it happened or
   nothing did, and whoever finds the rows gone has nothing left to do.

One archiver at a time works on a partition (an advisory lock); one that lost its lock without noticing finds
no rows in step 3 and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from pipeline import metrics
from pipeline.archive import expiry, files
from pipeline.archive.files import Cut, File
from pipeline.archive.gate import ArchiveGate
from pipeline.archive.store import Store, StoreError
from pipeline.common.connect import AsyncConnection, Session, connect_async
from pipeline.config import ArchiveConfig
from sql import queries

log = logging.getLogger(__name__)

POLL_S: Final = 10.0
EXPIRE_INTERVAL_S: Final = 3600.0
CUT_BYTES: Final = 16 * 2**20
"""Outbox bytes of a cut (about 450,000 events), unless a single flush brought more: bounds the memory."""
_TIMEOUT_S: Final = 120

Connection = AsyncConnection


@dataclass(frozen=True, slots=True)
class _Taken:
    """A settled cut and what the database says of its ends."""

    cut: Cut
    row_count: int
    complete_from: Any
    complete_to: Any


class Archiver:
    """Archives all partitions whose lock it gets, for as long as it runs."""

    def __init__(
        self, database_url: str, store: Store, config: ArchiveConfig, gate: ArchiveGate | None = None
    ) -> None:
        self._url = database_url
        self._store = store
        self._config = config
        self.gate = gate or ArchiveGate()
        self.error: str | None = None
        """Why the outbox is not getting shorter; None while all is well."""
        self.waiting_bytes = 0

    async def run(self) -> None:
        """Rounds until cancelled; one that fails is repeated, and changes no figure."""
        pause_s = min(self._config.interval_s, POLL_S)
        expire_at_s = 0.0
        while True:
            try:
                await self.round()
                if time.monotonic() >= expire_at_s:
                    await self.expire(datetime.now(UTC))
                    expire_at_s = time.monotonic() + EXPIRE_INTERVAL_S
            except Exception as error:  # whatever it is: the figures must go on, and an operator see it
                metrics.ARCHIVE_FAILURES.inc()
                if not isinstance(error, (psycopg.Error, StoreError)):
                    log.exception("archiver_crashed")
                self._failed(str(error).strip() or type(error).__name__)
            else:
                self._failed(None)
            await asyncio.sleep(pause_s)

    def _failed(self, error: str | None) -> None:
        if self.gate.full:
            error = f"the outbox is full ({self.waiting_bytes} bytes): events are left out; {error or ''}"
        if error != self.error:
            if error is None:
                log.info("archive_back")
            else:
                log.warning("archive_failed", extra={"error": error})
        self.error = error

    async def expire(self, host_now: datetime) -> int:
        """Let go of the files that are past their retention by the earlier of two clocks; see `expiry`.

        Raises:
            psycopg.Error, StoreError: the next time does the rest.
        """
        session = Session(application_name="spendstream-archiver", statement_timeout_s=_TIMEOUT_S)
        async with await connect_async(self._url, session, autocommit=True) as connection:
            row = await (await connection.execute(_ARCHIVE["time"])).fetchone()
            assert row is not None
            before = min(host_now, row[0]) - timedelta(seconds=self._config.retention_s)
            return await expiry.expire(connection, self._store, before=before)

    async def round(self, *, everything: bool = False) -> int:
        """Archive what is due, or ``everything`` that waits; how many cuts that were.

        Raises:
            psycopg.Error, StoreError: the rest stays in the outbox.
        """
        done = 0
        session = Session(application_name="spendstream-archiver", statement_timeout_s=_TIMEOUT_S)
        connection = await connect_async(self._url, session, autocommit=True)
        async with connection:  # closing it gives the locks back, whatever happened
            ages_s = await self._measure(connection)
            for partition, age_s in ages_s.items():
                due = everything or age_s >= self._config.interval_s
                done += await self._archive(connection, partition, due=due)
            if done:
                await self._measure(connection)
        return done

    async def _measure(self, connection: Connection) -> dict[int, float]:
        """Say how much waits, and shut or open the gate; the age of the oldest row of each partition."""
        rows = await (await connection.execute(_ARCHIVE["outbox"])).fetchall()
        self.waiting_bytes = sum(row[3] for row in rows)
        self.gate.full = self.waiting_bytes >= self._config.outbox_bytes_max
        ages_s = {row[0]: row[4] for row in rows}
        metrics.ARCHIVE_OUTBOX_EVENTS.set(sum(row[2] for row in rows))
        metrics.ARCHIVE_OUTBOX_BYTES.set(self.waiting_bytes)
        metrics.ARCHIVE_OUTBOX_AGE.set(max(ages_s.values(), default=0.0))
        return ages_s

    async def _archive(self, connection: Connection, partition: int, *, due: bool) -> int:
        key = {"partition": partition}
        # A pooler would keep the lock when we have long gone. It only saves two archivers the same work.
        cursor = await connection.execute(_ARCHIVE["lock"], key) if not connection.pooled else None
        if cursor is not None and await cursor.fetchone() != (True,):
            return 0
        done = 0
        while (cut := await self._settle(connection, partition, due=due)) is not None:
            taken = await self._take(connection, partition, cut)
            if taken is None:
                continue
            uploaded = await _abandonable(lambda cut=taken.cut: self._upload(cut))  # type: ignore[misc]
            await self._enter(connection, taken, uploaded)
            done += 1
        if cursor is not None:
            await connection.execute(_ARCHIVE["unlock"], key)
        return done

    async def _settle(self, connection: Connection, partition: int, *, due: bool) -> int | None:
        """Step 1: where the next cut ends; None if what waits may wait for more."""
        cursor = await connection.execute(_ARCHIVE["waiting"], {"partition": partition})
        rows = await cursor.fetchall()
        settled = [cut for *_, cut in rows if cut is not None]
        if settled:
            return int(min(settled))
        cut, size = None, 0
        for accepted_from, row_count, byte_count, _ in rows:
            if cut is not None and (accepted_from != cut or size + byte_count > CUT_BYTES):
                due = True  # this one can get no larger
                break
            cut, size = accepted_from + row_count, size + byte_count
        if cut is None or not due:
            return None
        await connection.execute(_ARCHIVE["settle_cut"], {"partition": partition, "cut": cut})
        return int(cut)

    async def _take(self, connection: Connection, partition: int, cut: int) -> _Taken | None:
        """The cut with its events; None if another archiver has just finished it."""
        cursor = connection.cursor(binary=True)
        await cursor.execute(_ARCHIVE["take_cut"], {"partition": partition, "cut": cut})
        rows = await cursor.fetchall()
        if not rows:
            return None
        events = Cut(
            partition=partition, accepted_from=rows[0][0], accepted_to=cut, parts=[row[3] for row in rows]
        )
        return _Taken(events, len(rows), rows[0][1], rows[-1][2])

    def _upload(self, cut: Cut) -> list[File]:
        """Step 2, in a thread. The bytes are let go once they are away."""
        uploaded = []
        for file in files.files_of(cut):
            self._store.write(file.path, file.data)
            uploaded.append(file.without_data())
        return uploaded

    async def _enter(self, connection: Connection, taken: _Taken, uploaded: list[File]) -> None:
        """Step 3."""
        cut = taken.cut
        span = {
            "partition": cut.partition,
            "accepted_from": cut.accepted_from,
            "accepted_to": cut.accepted_to,
            "complete_from": taken.complete_from,
            "complete_to": taken.complete_to,
        }
        async with connection.transaction():
            dropped = await connection.execute(
                _ARCHIVE["drop_cut"], {"partition": cut.partition, "cut": cut.accepted_to}
            )
            if dropped.rowcount != taken.row_count:
                log.info("archive_cut_taken_by_another", extra={"partition": cut.partition})
                raise psycopg.Rollback
            for file in uploaded:
                await connection.execute(
                    _ARCHIVE["list_file"],
                    {
                        "partition": cut.partition,
                        "accepted_from": cut.accepted_from,
                        "accepted_to": cut.accepted_to,
                        **file.listing(),
                    },
                )
            widened = await connection.execute(_ARCHIVE["widen_span"], span)
            if widened.rowcount == 0:
                await connection.execute(_ARCHIVE["begin_span"], span)
        metrics.ARCHIVE_FILES.inc(len(uploaded))
        log.info(
            "archived",
            extra={
                "partition": cut.partition,
                "events": cut.accepted_to - cut.accepted_from,
                "files": len(uploaded),
            },
        )


async def _abandonable(work: Callable[[], list[File]]) -> list[File]:
    """What ``work`` returns or raises, in a thread that a worker does not wait for when it ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[File]] = loop.create_future()

    def settle(result: list[File] | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result or [])

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as failure:
            error = failure
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="archive-upload", daemon=True).start()
    return await done


_ARCHIVE: Final = queries.load("archive")
