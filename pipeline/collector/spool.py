"""The spool: it keeps records on a disk of this host until the broker has confirmed them.

A record is an event's body and its routing key. `Spool.append` returns when its records are durable, so the
collector can answer its caller although the broker is away. `Spool.oldest` gives records back in the order in
which they were appended, and `Spool.published` ends them. The spool knows neither events nor brokers.

Appends that come together share one write and one sync, in a thread. Records lie in segments
(`pipeline.collector.spool_files`). A segment is deleted once all its records are published.

There is no cursor: nothing is written when records are published. After a crash, the records of the segments
that still exist are published again, in their order, and the worker counts them once. A cursor would save
that, at the price of more writes to the disk that the appends wait for, and of one more file whose damage
could lose records. Segments are small instead: in 16 MiB are some 35,000 records.

Bodies are in memory while they are appended, and while they are in a batch that was taken.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

from pipeline.collector import spool_files
from pipeline.collector.spool_files import Extent, Files, Offer, SegmentWriter
from pipeline.collector.spool_recovery import Recovered, take_over
from pipeline.common import folder_lock

SEGMENT_BYTES_MAX: Final = 16 * 2**20
_SEGMENT_BYTES_MIN: Final = 64 * 2**10
_GROUP_BYTES_MAX: Final = spool_files.WRITE_BYTES_MAX
_OVERHEAD_BYTES: Final = spool_files.HEADER_BYTES + spool_files.SEAL_BYTES
_SMALL_BYTES: Final = 1024
"""A spool with less room than for a small event is full."""
_LARGE_BYTES: Final = 68 * 1024
"""The room that the largest event needs."""

_NOTHING: Final = Extent(spool_files.HEADER_BYTES, 0, 0)

log = logging.getLogger(__name__)


class SpoolError(Exception):
    """Records were not taken in, or cannot be read now. The remedy: answer 503, and try again later."""


class SpoolFull(SpoolError):
    """The spool has no room for these records, and none of them was taken in. Publishing makes room."""


class SpoolFailed(SpoolError):
    """The file system failed: the disk is full or broken, or the spool is closed.

    Nothing of the append counts as durable. Parts of it may be published all the same, so its caller may send
    it again: consumers deduplicate.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Records that were taken from the spool and are not published yet, in order."""

    bodies: Sequence[bytes]
    keys: Sequence[str]
    """The routing key of each body."""
    oldest_at: float
    """When the first of these records was appended: wall time in seconds since 1970."""
    place: tuple[int, int]
    """The number of the segment, and the index of the first record in it."""


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    file_bytes: int = 0
    end: int = spool_files.HEADER_BYTES
    """The position after the last durable record."""
    left: int = 0
    """Records that are not published."""
    unread: Extent = _NOTHING
    """Records that were never taken."""
    unread_us: int = 0
    """When the first of them was appended."""
    damaged: bool = False
    lost: int = 0
    """Records that `Spool.oldest` could not read."""
    said_lost: int = 0
    """Records in it that a start could not read, or that were said to be lost since."""


@dataclass(slots=True)
class _Waiting:
    """An append that waits for its sync."""

    offer: Offer
    file_bytes: int
    durable: asyncio.Future[None]


@dataclass(slots=True)
class _InHand:
    """An extent that was taken and is not published."""

    extent: Extent
    at_us: int
    """When its first record was appended."""
    lost: int = 0
    """Records in it that cannot be read."""


class Spool:
    """See the module. `open` makes one; all methods belong to the event loop in which it was opened."""

    def __init__(
        self,
        folder: Path,
        lock_fd: int,
        found: Recovered,
        *,
        bytes_max: int,
        segment_bytes: int,
        files: Files,
        clock: Callable[[], float],
    ) -> None:
        """Use `open`."""
        self.folder = folder
        self.bytes_max = bytes_max
        self.bytes = found.set_aside_bytes
        """Bytes of all files, those that were set aside with them. At most `bytes_max`, unless the bound was
        higher before."""
        self.records_lost = found.lost
        """Records that damage has made unreadable, as far as this process has noticed."""
        self.files_set_aside = found.set_aside
        """Damaged files that are kept for an operator."""
        self.records_too_large = 0
        """Records that this process has set aside, because the broker takes none so large."""
        self.failure: str | None = None
        """Why the last append failed; None if it did not fail. For readiness."""
        self._lock_fd = lock_fd
        self._files = files
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._next_number = found.next_number
        self._segments: dict[int, _Segment] = {}
        """Those with records to be published, and the one that is written, in the order of their numbers."""
        for each in found.segments:
            self._segments[each.number] = _Segment(
                number=each.number,
                path=each.path,
                file_bytes=each.file_bytes,
                end=each.end,
                left=each.first.until - each.first.index,
                unread=each.first,
                unread_us=each.oldest_us,
                damaged=each.damaged,
                said_lost=each.lost + each.torn,
            )
            self.bytes += each.file_bytes
        self._writer: SegmentWriter | None = None
        self._written: _Segment | None = None
        """The segment of the writer."""
        self._waiting: deque[_Waiting] = deque()
        self._reserved_bytes = 0
        self._wanted_bytes = 0
        """What the last append needed, if it found no room; but no more than one event may need."""
        self._in_hand: dict[tuple[int, int], _InHand] = {}
        """By the number of the segment and the index of the first record, as in `Taken.place`."""
        self._put_back: dict[tuple[int, int], _InHand] = {}
        """The same for extents that were taken in vain."""
        self._leaving: deque[_Segment] = deque()
        """Segments whose files are to be deleted or set aside."""
        self._said_stays = False
        self._filled = asyncio.Event()
        self._one_reads = asyncio.Lock()
        self._committing: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._write_thread = ThreadPoolExecutor(1, "spool-write")
        self._read_thread = ThreadPoolExecutor(1, "spool-read")
        self._closed = False
        self._ended = False

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        bytes_max: int,
        segment_bytes: int | None = None,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Take the folder over from an earlier process, or make it, with mode 0700.

        ``bytes_max`` bounds the bytes of all files. A segment is finished when it has ``segment_bytes``: by
        default 1/64 of ``bytes_max``, from 64 KiB to 16 MiB.

        Raises:
            SpoolUnusable: another process has the folder, or it cannot be written.
            FutureFormat: a later version has written a segment. Both are errors of the operator.
        """
        files = files or Files()
        lock_fd, found = await asyncio.to_thread(take_over, folder, files)
        spool = cls(
            folder,
            lock_fd,
            found,
            bytes_max=bytes_max,
            segment_bytes=segment_bytes or min(SEGMENT_BYTES_MAX, max(bytes_max // 64, _SEGMENT_BYTES_MIN)),
            files=files,
            clock=clock,
        )
        await spool.try_disk()
        return spool

    # --- figures ----------------------------------------------------------------------------------

    @property
    def records(self) -> int:
        """Durable records that are not published yet. Unreadable ones count until they are passed over.

        So do not wait in `oldest` without a limit because this is above 0: all the rest may be unreadable.
        """
        return sum(segment.left for segment in self._segments.values())

    @property
    def oldest_at(self) -> float | None:
        """When the oldest of `records` was appended: wall time in seconds since 1970."""
        times = [each.at_us for each in self._in_hand.values()]
        times += [each.at_us for each in self._put_back.values()]
        unread = self._first_unread()
        if unread is not None:
            times.append(unread.unread_us)
        return min(times) / 1e6 if times else None

    @property
    def has_room(self) -> bool:
        """Is there room for an event within ``bytes_max``? Not if the last append found none, until there
        is."""
        wanted = max(self._wanted_bytes, _SMALL_BYTES)
        return self.bytes + self._reserved_bytes + wanted <= self.bytes_max

    # --- in ---------------------------------------------------------------------------------------

    async def try_disk(self) -> None:
        """Find out whether the disk takes an event now, and note it in `failure`. Never raises.

        Otherwise only an append would find out, and while readiness says that the disk fails, none may come.
        """
        size = min(_LARGE_BYTES, self.bytes_max - self.bytes - self._reserved_bytes)
        if self._closed or size < _SMALL_BYTES:
            return
        failure: OSError | None = None
        try:
            await self._in_write_thread(partial(self._files.try_room, self.folder, size))
        except OSError as error:
            failure = error
        self._note_outcome(failure)

    async def append(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Return when these records, each a routing key and a body, are durable.

        The caller bounds how many appends wait at once. An append that is cancelled may be durable or not.

        Raises:
            SpoolFull: no room within ``bytes_max``; nothing was written.
            SpoolFailed: see there.
            ValueError: a body is larger than 1 MiB, or a key than 64 KiB; nothing was written.
        """
        if self._closed:
            raise SpoolFailed("the spool is closed")
        if not records:
            return
        pairs = [(key.encode(), body) for key, body in records]
        # An append may begin a segment, and may end it.
        file_bytes = _OVERHEAD_BYTES + spool_files.RECORD_HEAD_BYTES * len(pairs)
        for key, body in pairs:
            if len(key) > spool_files.KEY_BYTES_MAX or len(body) > spool_files.BODY_BYTES_MAX:
                raise ValueError(f"a record of {len(key)} and {len(body)} bytes is too large for the spool")
            file_bytes += len(key) + len(body)
        if self.bytes + self._reserved_bytes + file_bytes > self.bytes_max:
            self._remove()  # what could not be deleted before
            self._wanted_bytes = min(file_bytes, _LARGE_BYTES)
            raise SpoolFull(
                f"{file_bytes} bytes do not fit: the spool has {self.bytes} of {self.bytes_max} bytes"
            )
        offer = Offer(pairs, self._now_us())
        waiting = _Waiting(offer, file_bytes, asyncio.get_running_loop().create_future())
        self._reserved_bytes += file_bytes
        self._wanted_bytes = 0
        self._waiting.append(waiting)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        await waiting.durable

    async def _commit(self) -> None:
        """Write what waits, group by group, until nothing waits."""
        try:
            while group := self._next_group():
                failure: Exception | None = None
                try:
                    await self._write([each.offer for each in group])
                except Exception as error:
                    failure = error
                self._reserved_bytes -= sum(each.file_bytes for each in group)
                self._note_outcome(failure)
                for each in group:
                    _resolve(each.durable, failure)
        finally:
            self._committing = None
            self._retire(self._written)

    def _next_group(self) -> list[_Waiting]:
        """The appends that share the next sync, at least one if there is one; cancelled ones are dropped."""
        group: list[_Waiting] = []
        group_bytes = 0
        while self._waiting and (not group or group_bytes + self._waiting[0].file_bytes <= _GROUP_BYTES_MAX):
            each = self._waiting.popleft()
            if each.durable.cancelled():
                self._reserved_bytes -= each.file_bytes
                continue
            group.append(each)
            group_bytes += each.file_bytes
        return group

    async def _write(self, offers: Sequence[Offer]) -> None:
        """Write one group. If that fails, abandon the segment: the next group begins another one."""
        writer, segment = self._begun()
        try:
            await self._in_write_thread(partial(self._append, writer, offers))
        except Exception:
            self._writer = self._written = None
            await self._in_write_thread(writer.abandon)
            self._note_size(segment, writer.file_bytes)
            self._retire(segment)
            raise
        self._note_size(segment, writer.file_bytes)
        before = segment.unread
        if before.index == before.until:
            segment.unread_us = offers[0].at_us
        segment.unread = replace(before, until=writer.records)
        segment.left += writer.records - before.until
        segment.end = writer.end
        if writer.sealed:
            self._writer = self._written = None
        self._filled.set()

    def _append(self, writer: SegmentWriter, offers: Sequence[Offer]) -> None:
        """Raises OSError, also where our folder was moved away: its path may be another process's spool
        now."""
        if not folder_lock.is_there(self.folder, self._lock_fd):
            raise OSError(errno.ESTALE, "somebody deleted or moved the folder", str(self.folder))
        writer.append(offers, seal_from=self._segment_bytes)

    def _begun(self) -> tuple[SegmentWriter, _Segment]:
        """The segment that is written, a new one if there is none."""
        if self._writer is None or self._written is None:
            number = self._next_number
            self._next_number += 1
            self._writer = SegmentWriter(self._files, spool_files.segment_path(self.folder, number))
            self._written = self._segments[number] = _Segment(number, self._writer.path)
        return self._writer, self._written

    # --- out --------------------------------------------------------------------------------------

    async def oldest(self, *, bytes_max: int, records_max: int) -> Taken:
        """Take the oldest records that nobody has taken, waiting until there are some.

        At most ``records_max``, with bodies of at most ``bytes_max`` together; a larger body comes alone.
        They are in hand until `published` or `put_back`, and several batches may be in hand. A call that is
        cancelled has taken nothing.

        Raises SpoolFailed: the records cannot be read now, or the spool is closed. Nothing was taken.
        """
        async with self._one_reads:
            while True:
                if self._closed:
                    raise SpoolFailed("the spool is closed")
                if not self._put_back and self._first_unread() is None:
                    self._filled.clear()
                    await self._filled.wait()
                elif (taken := await self._take(bytes_max, records_max)) is not None:
                    return taken

    async def _take(self, bytes_max: int, records_max: int) -> Taken | None:
        """Take from the oldest extent that is not in hand, which must exist; None if all of it is lost."""
        again = bool(self._put_back)
        if again:
            place = min(self._put_back)
            known = self._put_back[place]
        else:
            unread = self._first_unread()
            assert unread is not None
            known = _InHand(unread.unread, unread.unread_us)
            place = unread.number, known.extent.index
        number, _ = place
        segment, extent = self._segments[number], known.extent
        end, begun_us = segment.end, self._now_us()
        found = await self._read(segment, extent, end, bytes_max, records_max)
        # From here on nothing waits, so a call that is cancelled has changed nothing.
        if again:
            del self._put_back[place]
            if found.rest is not None:
                lost = max(0, known.lost - found.lost)
                self._put_back[number, found.rest.index] = _InHand(found.rest, found.rest_us, lost)
        else:
            # What was appended meanwhile is about as old as this call.
            rest = found.rest or Extent(end, extent.until, 0)
            segment.unread = replace(rest, until=segment.unread.until)
            segment.unread_us = found.rest_us if found.rest else begun_us
        if found.lost > known.lost:
            self._note_lost(segment, found.lost - known.lost)
        until = found.rest.index if found.rest else extent.until
        if not found.bodies:
            self._end(segment, until - extent.index)
            return None
        self._in_hand[place] = _InHand(replace(extent, until=until), found.first_us, found.lost)
        return Taken(bodies=found.bodies, keys=found.keys, oldest_at=found.first_us / 1e6, place=place)

    def published(self, taken: Taken) -> None:
        """The broker has confirmed these records. Batches may be confirmed in any order.

        The segment's file is deleted in a thread, soon after its last record. The deletion is not synced: if
        it is undone by a power failure, the records are published again.

        Raises ValueError: the batch is not in hand.
        """
        known = self._let_go(taken)
        self._end(self._segments[taken.place[0]], known.extent.until - known.extent.index)

    def put_back(self, taken: Taken) -> None:
        """The records could not be published. `oldest` gives them again, before all later ones.

        If several batches are in hand and one fails, put all of them back that are not confirmed: otherwise
        later records come before earlier ones. Raises ValueError: the batch is not in hand.
        """
        self._put_back[taken.place] = self._let_go(taken)
        self._filled.set()

    async def set_aside(self, records: Sequence[tuple[str, bytes]], *, at: float) -> Path:
        """Move records that the broker does not take out of the way: keep them in a file of their own.

        Returns the file when the records are durable in it. They are still in hand, too: call `published` for
        their batch afterwards. The next process takes the file for a segment, and publishes its records if
        the broker takes them by then. ``at`` is `Taken.oldest_at`. The file may exceed ``bytes_max``, because
        the segment that had the records is deleted only later.

        Raises SpoolFailed: the records are not in the file.
        """
        if self._closed:
            raise SpoolFailed("the spool is closed")
        number = self._next_number
        self._next_number += 1
        writer = SegmentWriter(self._files, spool_files.too_large_path(self.folder, number))
        offer = Offer([(key.encode(), body) for key, body in records], round(at * 1e6))
        try:
            await self._in_write_thread(partial(writer.append, [offer], seal_from=0))
        except OSError as error:
            await self._in_write_thread(writer.abandon)
            self.bytes += writer.file_bytes
            raise SpoolFailed(f"the spool cannot write {writer.path}: {error}") from error
        self.bytes += writer.file_bytes
        self.records_too_large += len(records)
        return writer.path

    def _let_go(self, taken: Taken) -> _InHand:
        known = self._in_hand.pop(taken.place, None)
        if known is None:
            raise ValueError(f"the records at {taken.place} are not in hand")
        return known

    async def _read(
        self, segment: _Segment, extent: Extent, end: int, bytes_max: int, records_max: int
    ) -> spool_files.Read:
        read = partial(
            spool_files.read,
            self._files,
            segment.path,
            extent,
            end=end,
            bytes_max=bytes_max,
            records_max=records_max,
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_thread, read)
        except OSError as error:
            raise SpoolFailed(f"the spool cannot read {segment.path}: {error}") from error

    def _first_unread(self) -> _Segment | None:
        """The first segment with records that nobody has taken."""
        for segment in self._segments.values():
            if segment.unread.index < segment.unread.until:
                return segment
        return None

    # --- the end of a segment ---------------------------------------------------------------------

    def _end(self, segment: _Segment, records: int) -> None:
        segment.left -= records
        self._retire(segment)

    def _retire(self, segment: _Segment | None) -> None:
        """Have a segment removed that has no records left and gets no more."""
        if segment is None or segment.left or segment.number not in self._segments:
            return
        if segment is self._written:
            if self._committing is not None:
                return  # `_commit` looks again
            assert self._writer is not None
            self._writer.close()
            self._writer = self._written = None
        del self._segments[segment.number]
        self._leaving.append(segment)
        self._remove()

    def _remove(self) -> None:
        if self._leaving and self._removing is None and not self._ended:
            self._removing = asyncio.create_task(self._remove_all())

    async def _remove_all(self) -> None:
        """Delete the files of segments that left, or set them aside; stop at one that stays for now."""
        loop = asyncio.get_running_loop()
        try:
            while self._leaving:
                segment = self._leaving[0]
                try:
                    is_gone = await loop.run_in_executor(self._read_thread, self._remove_file, segment)
                except OSError as error:
                    if not self._said_stays:
                        facts = {"file": str(segment.path), "error": str(error)}
                        log.error("spool_segment_not_deleted", extra=facts)
                    self._said_stays = True
                    return
                self._said_stays = False
                self._leaving.popleft()
                if segment.damaged or not is_gone:
                    self.files_set_aside += 1
                else:
                    self._note_size(segment, 0)
        finally:
            self._removing = None

    def _remove_file(self, segment: _Segment) -> bool:
        """Delete the file of a segment whose records are published, or set it aside. Returns False: it stays,
        because somebody else has written into it, and the next start publishes all of it."""
        if not folder_lock.is_there(self.folder, self._lock_fd):
            raise OSError(errno.ESTALE, "somebody deleted or moved the folder", str(self.folder))
        with suppress(FileNotFoundError):
            if self._files.size(segment.path) > segment.file_bytes:
                log.critical(
                    "spool_segment_grew",
                    extra={
                        "file": str(segment.path),
                        "effect": "another process writes into this spool; the file stays, and the next start"
                        " publishes all of its records",
                        "remedy": "give each collector a folder of its own, on a disk of its host",
                    },
                )
                return False
            if segment.damaged:
                self._files.rename(segment.path, spool_files.set_aside_path(segment.path))
            else:
                self._files.delete(segment.path)
        return True

    async def close(self) -> None:
        """Finish the appends that wait, and let go of the folder. Never raises; safe to call twice.

        End the task that calls `oldest` before. What is in hand is published again by the next process.
        """
        if self._closed:
            return
        self._closed = True
        self._filled.set()
        if self._committing is not None:
            await self._committing
        writer, segment = self._writer, self._written
        if writer is not None and segment is not None:
            try:
                await self._in_write_thread(writer.seal)
            except OSError as error:
                log.warning("spool_segment_not_sealed", extra={"file": str(writer.path), "error": str(error)})
                await self._in_write_thread(writer.abandon)
            self._note_size(segment, writer.file_bytes)
        self._remove()
        if self._removing is not None:
            await self._removing
        self._ended = True
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_thread.shutdown)
        os.close(self._lock_fd)

    # --- notes ------------------------------------------------------------------------------------

    def _note_size(self, segment: _Segment, file_bytes: int) -> None:
        self.bytes += file_bytes - segment.file_bytes
        segment.file_bytes = file_bytes

    def _note_lost(self, segment: _Segment, lost: int) -> None:
        """Damage was found in a segment; what a start has found in it was said then."""
        segment.lost += lost
        if segment.lost > segment.said_lost:
            new = segment.lost - segment.said_lost
            self.records_lost += new
            segment.said_lost = segment.lost
            segment.damaged = True
            spool_files.say_damaged(segment.path, new)

    def _note_outcome(self, error: Exception | None) -> None:
        """Say once that the disk fails, and once that it works again."""
        if error is not None and self.failure is None:
            log.error("spool_append_failed", extra={"folder": str(self.folder), "error": str(error)})
        elif error is None and self.failure is not None:
            log.info("spool_appends_again", extra={"folder": str(self.folder)})
        self.failure = None if error is None else str(error)

    def _now_us(self) -> int:
        return round(self._clock() * 1e6)

    async def _in_write_thread(self, call: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._write_thread, call)


def _resolve(durable: asyncio.Future[None], failure: Exception | None) -> None:
    """Answer an append, unless its caller was cancelled."""
    if durable.done():
        return
    if failure is None:
        durable.set_result(None)
    elif isinstance(failure, OSError):
        answer = SpoolFailed(f"the spool cannot write: {failure}")
        answer.__cause__ = failure
        durable.set_exception(answer)
    else:
        durable.set_exception(failure)
