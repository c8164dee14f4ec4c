"""From the outbox to files, exactly once.

A cut is some consecutive outbox rows of a partition that become files together. The archiver makes a cut in
three steps. Each step says what holds if the process dies right after it:

1. Settle in the database which outbox rows the cut has. Nothing is uploaded yet. The next attempt takes the
   same rows.
2. Upload the files of the cut. The manifest does not list them yet. The next attempt writes the same bytes
   under the same names.
3. In one transaction, delete the outbox rows, list the files, and widen the span. Either all of this has
   happened or nothing has. An archiver that finds the rows gone has nothing left to do.

An advisory lock lets one archiver at a time work on a partition. An archiver that has lost its lock without
noticing finds no rows in step 3, and changes nothing.
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
from pipeline.common import traces
from pipeline.common.connect import AsyncConnection, Session, connect_async
from pipeline.config import ArchiveConfig
from sql import queries

log = logging.getLogger(__name__)

POLL_S: Final = 10.0
EXPIRE_INTERVAL_S: Final = 3600.0
CUT_BYTES: Final = 16 * 2**20
"""Outbox bytes of a cut (about 450,000 events), to bound the memory. A flush's own row may be larger."""
_TIMEOUT_S: Final = 120

Connection = AsyncConnection


@dataclass(frozen=True, slots=True)
class _Taken:
    """A settled cut, the number of its rows, and the times from and to which its buckets are complete."""

    cut: Cut
    row_count: int
    complete_from: Any
    complete_to: Any

    @property
    def events(self) -> int:
        return self.cut.accepted_to - self.cut.accepted_from


class Archiver:
    """Archives every partition whose lock it gets, until it is cancelled."""

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
        """Run round after round until cancelled. A round that fails is repeated, and changes no figure."""
        pause_s = min(self._config.interval_s, POLL_S)
        expire_at_s = 0.0
        while True:
            try:
                await self.round()
                if time.monotonic() >= expire_at_s:
                    await self.expire(datetime.now(UTC))
                    expire_at_s = time.monotonic() + EXPIRE_INTERVAL_S
            except Exception as error:  # any error: the worker goes on counting, and an operator sees it
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
        """Delete the files that are past their retention; see `expiry`. The number of deleted files.

        Both the host's clock and the database's clock must say that a file is past its retention.

        Raises:
            psycopg.Error, StoreError: some files may be left; the next call deletes them.
        """
        session = Session(application_name="spendstream-archiver", statement_timeout_s=_TIMEOUT_S)
        async with await connect_async(self._url, session, autocommit=True) as connection:
            row = await (await connection.execute(_ARCHIVE["time"])).fetchone()
            assert row is not None
            before = min(host_now, row[0]) - timedelta(seconds=self._config.retention_s)
            return await expiry.expire(connection, self._store, before=before)

    async def round(self, *, everything: bool = False) -> int:
        """Archive the outbox rows that are due, or ``everything`` that waits; the number of cuts.

        Raises:
            psycopg.Error, StoreError: the rows that are left stay in the outbox.
        """
        done = 0
        session = Session(application_name="spendstream-archiver", statement_timeout_s=_TIMEOUT_S)
        connection = await connect_async(self._url, session, autocommit=True)
        async with connection:  # closing the connection gives the locks back, also after an error
            ages_s = await self._measure(connection)
            for partition, age_s in ages_s.items():
                due = everything or age_s >= self._config.interval_s
                done += await self._archive(connection, partition, due=due)
            if done:
                await self._measure(connection)
        return done

    async def _measure(self, connection: Connection) -> dict[int, float]:
        """Measure the outbox, and shut or open the gate; the age (s) of each partition's oldest row."""
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
        # Behind a pooler we take no lock, because the pooler would keep it after our end. Without the lock
        # the result is the same, but two archivers may do the same work.
        cursor = await connection.execute(_ARCHIVE["lock"], key) if not connection.pooled else None
        if cursor is not None and await cursor.fetchone() != (True,):
            return 0
        done = 0
        while (cut := await self._settle(connection, partition, due=due)) is not None:
            taken = await self._take(connection, partition, cut)
            if taken is None:
                continue
            with traces.span("archive", partition=partition, events=taken.events) as span:
                with traces.child("upload", "client"):
                    uploaded = await _abandonable(lambda cut=taken.cut: self._upload(cut))  # type: ignore[misc]
                with traces.child("list files", "client"):
                    await self._enter(connection, taken, uploaded)
                if span:
                    span.set(files=len(uploaded), bytes=sum(file.byte_count for file in uploaded))
            done += 1
        if cursor is not None:
            await connection.execute(_ARCHIVE["unlock"], key)
        return done

    async def _settle(self, connection: Connection, partition: int, *, due: bool) -> int | None:
        """Step 1: settle the next cut; the number at which it ends. None if the cut is not due yet."""
        cursor = await connection.execute(_ARCHIVE["waiting"], {"partition": partition})
        rows = await cursor.fetchall()
        settled = [cut for *_, cut in rows if cut is not None]
        if settled:
            return int(min(settled))
        cut, size = None, 0
        for accepted_from, row_count, byte_count, _ in rows:
            if cut is not None and (accepted_from != cut or size + byte_count > CUT_BYTES):
                due = True  # the cut is full, or a hole follows: it can get no larger
                break
            cut, size = accepted_from + row_count, size + byte_count
        if cut is None or not due:
            return None
        await connection.execute(_ARCHIVE["settle_cut"], {"partition": partition, "cut": cut})
        return int(cut)

    async def _take(self, connection: Connection, partition: int, cut: int) -> _Taken | None:
        """Read the cut with its events; None if another archiver has just finished the cut."""
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
        """Step 2, in a thread: upload the files. The result holds no bytes, so that memory is free again."""
        uploaded = []
        for file in files.files_of(cut):
            self._store.write(file.path, file.data)
            uploaded.append(file.without_data())
        return uploaded

    async def _enter(self, connection: Connection, taken: _Taken, uploaded: list[File]) -> None:
        """Step 3: delete the outbox rows, list the files and widen the span, in one transaction."""
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
    """Do ``work`` in a thread, and return or raise as it does. A worker that ends leaves the thread alone."""
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
