"""One partition at work: own it, recover it, feed its ledger, flush it, hand it over.

It holds the order of things around the pure ledger: claim before recovery, recovery before reading, the
same batch until its outcome is known, credit only when there is room, a flush before a hand-over. It knows no
Faust (`pipeline.worker.agents` wires it) and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pipeline import metrics
from pipeline.archive.gate import ArchiveGate
from pipeline.config import FlushConfig
from pipeline.core.batch import Batch
from pipeline.core.dedupe import NewLog
from pipeline.core.ledger import Ledger
from pipeline.core.replay import LETTERS_MAX, Opened
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US, BrokerClock
from pipeline.sink import Contested, Fenced, SchemaMissing, Sink, SinkUnavailable, Trouble
from pipeline.transports import Chunk, OffsetGone, ReadFrom, Subscription, Transport, TransportError, chunks
from pipeline.worker.owned import Owned, recover

log = logging.getLogger(__name__)


for _kind in Trouble:  # shown from the start, at 0
    metrics.FLUSH_FAILURES.labels(_kind)

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0


def wall_clock_us() -> int:
    return time.time_ns() // 1000


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


async def in_a_thread(work: Callable[..., Any], **arguments: Any) -> Any:
    """Do long work in a thread, so that the event loop goes on. A cancellation waits until it is done."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, **arguments))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait((doing,))
        raise


MERGE_IDS_INTERVAL_US = 60_000_000
LAG_INTERVAL_S = 1.0
LET_GO_S = 1.0
HAND_OVER_S = 3.0
"""How long a hand-over may wait for the last flush before the next owner is let in."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A chunk, the subscription to which its credit belongs, and the term in which it came."""

    chunk: Chunk
    subscription: Subscription
    term: int


class Backoff(Protocol):
    """Waits longer each time until told that things work again."""

    async def wait(self) -> None: ...
    def reset(self) -> None: ...


class ExponentialBackoff:
    """0.1 s, doubling up to 5 s."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    async def wait(self) -> None:
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, BACKOFF_LAST_S)
        await asyncio.sleep(wait_s)


class PartitionWorker:
    """One partition in this process: `Owner` of it while the broker says so, standing by otherwise.

    The broker's single active consumer decides who owns a partition, and the database makes sure: claiming
    raises the epoch, so whoever held it before can commit nothing more. A *term* is the time from one
    activation to the next; deliveries of an earlier term are dropped: their offsets belong to another story.
    """

    def __init__(
        self,
        *,
        index: int,
        stream: str,
        transport: Transport,
        sink: Sink,
        rules: Rules,
        flush: FlushConfig,
        redis_url: str | None = None,
        archive: ArchiveGate | None = None,
        new_log: NewLog | None = None,
        clock_us: Callable[[], int] = wall_clock_us,
        steady_us: Callable[[], int] = monotonic_us,
        backoff: Callable[[], Backoff] = ExponentialBackoff,
        apart: Callable[..., Awaitable[Any]] = in_a_thread,
    ) -> None:
        """``index`` is the partition's place among the transport's, ``stream`` the stream it is. ``apart``
        does long work while other tasks go on.
        """
        self.stream = stream
        self._index = index
        self._transport = transport
        self._sink = sink
        self._rules = rules
        self._flush_config = flush
        self._redis_url = redis_url
        self._archive = archive
        self._new_log = new_log
        self._clock_us = clock_us
        self._steady_us = steady_us
        self._broker_clock = BrokerClock()
        self._waits_for_news = False
        self._backoff = backoff
        self._apart = apart
        self._flushing = asyncio.Lock()
        self._books = asyncio.Lock()
        self._term = 0
        self._is_ending = False
        self._owned: Owned | None = None
        self._subscription: Subscription | None = None
        self._withheld: list[Subscription] = []
        self._recovery_failure: Exception | None = None
        self._gap: OffsetGone | None = None
        self._away: str | None = "not connected yet"
        self._contested: str | None = None
        self.flush_wanted = asyncio.Event()
        self.database_error: str | None = None

    @property
    def active(self) -> bool:
        """Is the partition ours?"""
        return self._owned is not None

    @property
    def stream_error(self) -> str | None:
        """Why nothing can be read; a gap stays one, however often the group is joined, until it is passed."""
        gap, owned = self._gap, self._owned
        if self._contested is not None:
            return self._contested
        if gap is not None and owned is not None and owned.ledger.received_offset == gap.wanted_offset:
            return str(gap)
        return self._away

    # --- ownership

    def take_no_more(self) -> None:
        """The worker is stopping: a partition that it lets go must not come back to it."""
        self._is_ending = True

    async def activated(self) -> ReadFrom:
        """The broker gave us the partition: recover it; where to read on. Waits for the database.

        Raises:
            TransportError: the worker is stopping; the broker finds another one when the connection ends.
        """
        try:
            return await self._activate()
        except TransportError:
            raise
        except Exception as error:
            self._recovery_failure = error  # `receive` must not take it for a stream that is away
            raise

    async def _activate(self) -> ReadFrom:
        backoff = self._backoff()
        async with self._flushing:
            while True:
                if self._is_ending:
                    raise TransportError("the worker is stopping")
                try:
                    owned = self._owned
                    if owned is None or not await self._sink.holds(
                        owned.claim, offset=owned.committed.next_offset
                    ):  # after a lost connection somebody else may have claimed the partition
                        owned = await self._recover()
                    break
                except Contested as error:
                    self._contested = str(error)
                    log.critical("two_consumer_groups", extra={"stream": self.stream, "error": str(error)})
                    await backoff.wait()
                except (SinkUnavailable, SchemaMissing) as error:
                    self._database_away("database_not_ready", error)
                    await backoff.wait()
            self.database_error = self._contested = None
            self._term += 1
            return ReadFrom(owned.ledger.received_offset, owned.ledger.received_us)

    async def _recover(self) -> Owned:
        """Claim the partition and build its ledger from the database."""
        await self._release()
        owned = await recover(
            self._sink,
            self.stream,
            rules=self._rules,
            keep_accepted=self._archive is not None,
            new_log=self._new_log,
            redis_url=self._redis_url,
            steady_us=self._steady_us(),
            merge_ids_at_us=self._clock_us() + MERGE_IDS_INTERVAL_US,
        )
        self._owned = owned
        self._show(owned)
        return owned

    def _show(self, owned: Owned) -> None:
        """Gauges that are reckoned when read: they tell the truth also while nothing is committed."""
        partition, ledger = str(owned.claim.partition), owned.ledger
        metrics.FRESHNESS_LAG.labels(partition).set_function(lambda: owned.lag_s(self._clock_us()))
        metrics.BUFFERED_EVENTS.labels(partition).set_function(lambda: ledger.unflushed_events)
        metrics.DIRTY_ROWS.labels(partition).set_function(lambda: ledger.dirty_rows)
        metrics.REMEMBERED_IDS.labels(partition).set_function(lambda: ledger.remembered_ids)
        metrics.LEDGER_BYTES.labels(partition).set_function(lambda: ledger.memory_bytes)

    async def deactivated(self) -> None:
        """Another worker is to take over: commit what we have, within `HAND_OVER_S`, and forget the rest.

        What cannot be committed in time is read again by the next owner.
        """
        self._term += 1
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await self.flush()
        except TimeoutError:
            log.warning(
                "hand_over_without_flush", extra={"stream": self.stream, "error": self.database_error}
            )
        await self._let_go()

    async def _let_go(self) -> None:
        """As `_release`, and say that it is on purpose: whoever comes next need not look for a crash."""
        owned = self._owned
        if owned is not None:
            with suppress(SinkUnavailable, SchemaMissing, TimeoutError):
                async with asyncio.timeout(LET_GO_S), self._flushing:
                    await self._sink.released(owned.claim)
        await self._release()

    async def _release(self) -> None:
        """Forget everything about the partition; the database has what counts."""
        owned, self._owned = self._owned, None
        if owned is not None:
            self._grant_withheld()
            await owned.forget()

    # --- reading

    async def receive(self) -> Delivery:
        """The next chunk; joins the group again for as long as the stream is away."""
        backoff = self._backoff()
        while True:
            try:
                if self._subscription is None:
                    await self._transport.open()
                    self._subscription = await self._transport.compete(partition=self._index, owner=self)
                    log.info("stream_joined", extra={"stream": self.stream})
                    self._away = None
                chunk = await self._subscription.receive()
                if self._waits_for_news:  # all before it had been read, so the broker has just stored it
                    self._broker_clock.heard(chunk.timestamp_us, monotonic_us=self._steady_us())
                    self._waits_for_news = False
                return Delivery(chunk, self._subscription, self._term)
            except TransportError as error:
                if self._recovery_failure is not None:
                    raise self._recovery_failure from error
                self._stream_away(error)
                await self._drop_subscription()
                await backoff.wait()

    def _stream_away(self, error: TransportError) -> None:
        if isinstance(error, OffsetGone):
            self._gap = error
            facts = {"stream": self.stream, "error": str(error), "remedy": error.remedy}
            log.critical("offset_gone", extra=facts)
        elif self._away != str(error):
            log.warning("stream_away", extra={"stream": self.stream, "error": str(error)})
        self._away = str(error)

    async def _drop_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    async def book(self, delivery: Delivery) -> None:
        """Take one chunk into the ledger, and give its credit back if there is room for more.

        Each chunk owes one grant, however late: also one that is dropped because its term is over.
        """
        owned = self._owned
        if owned is None:
            delivery.subscription.grant()
            return
        chunk = chunks.without(delivery.chunk, owned.skips) if owned.skips else delivery.chunk
        take_in = self._take_in if owned.suspicion.care is None else self._with_care
        taken_in = await take_in(delivery, chunk)
        if not taken_in or self._owned is None:
            delivery.subscription.grant()
            return
        ledger = self._owned.ledger
        if self._has_room(ledger):
            delivery.subscription.grant()
        else:
            self._withheld.append(delivery.subscription)
        full = bool(self._withheld) or ledger.unflushed_bytes >= self._flush_config.buffer_bytes_max
        if full or ledger.waits or ledger.unflushed_events >= self._flush_config.events_max:
            self.flush_wanted.set()

    async def _take_in(self, delivery: Delivery, chunk: Chunk) -> bool:
        """Take the chunk, or a part of it, into the ledger; False if its term is over."""
        async with self._books:
            owned = self._owned
            if owned is None or delivery.term != self._term:
                return False
            ledger = owned.ledger
            started = time.perf_counter()
            ingest = partial(
                ledger.ingest,
                first_offset=chunk.first_offset,
                next_offset=chunk.next_offset,
                timestamp_us=chunk.timestamp_us,
                bodies=chunk.bodies,
                unreadable=chunk.unreadable,
            )
            if ledger.is_filled_by(chunk.bodies, chunk.unreadable):
                await self._apart(ingest)
            else:
                ingest()
            if ledger.dirty_rows >= self._flush_config.dirty_rows_max:
                await self._apart(ledger.gather)  # what was read may make far fewer rows than it could
            metrics.FOLD_SECONDS.observe(time.perf_counter() - started)
        owned.chunk_times_us.append(chunk.timestamp_us)
        return True

    async def _with_care(self, delivery: Delivery, chunk: Chunk) -> bool:
        """As `_take_in`, but a part of the stream is noted before, and flushed before the next one is noted.

        A part may hold many small chunks, and a large chunk many parts.
        """
        rest: Chunk | None = chunk
        while rest is not None:
            owned = self._owned
            if owned is None or owned.suspicion.care is None:
                return False
            suspicion, care = owned.suspicion, owned.suspicion.care
            if rest.first_offset >= suspicion.tried_to:
                await self._try_next(owned, rest.first_offset, care.part)
            part, rest = chunks.split(rest, suspicion.tried_to)
            if not await self._take_in(delivery, part):
                return False
            if rest is None and chunk.next_offset >= care.until:
                if care.narrowed:
                    suspicion.well_at_us = 0  # the flush forgets the crashes: their place is passed
                await self.flush()
                suspicion.care = None
        return True

    async def _try_next(self, owned: Owned, offset: int, records: int) -> None:
        await self.flush()
        owned.suspicion.tried_to = offset + records
        with suppress(SinkUnavailable, SchemaMissing):  # then the next worker has to look again
            async with self._flushing:
                await self._sink.trying(owned.claim, offset, owned.suspicion.tried_to)

    def _has_room(self, ledger: Ledger) -> bool:
        return (
            ledger.unflushed_events < self._flush_config.buffer_events_max
            and ledger.unflushed_bytes < self._flush_config.buffer_bytes_max
            and ledger.dirty_rows < self._flush_config.dirty_rows_max
        )

    def _grant_withheld(self) -> None:
        withheld, self._withheld = self._withheld, []
        for subscription in withheld:
            subscription.grant()

    # --- flushing

    async def flush(self) -> None:
        """Commit everything taken in so far, trying until the outcome is known. Standing by, do nothing.

        A partition that turns out to be somebody else's is let go, and the group joined again.
        """
        self.flush_wanted.clear()
        async with self._flushing:
            owned = self._owned
            if owned is None:
                return
            started = time.perf_counter()
            try:
                batch, chunk_times_us = await self._drain(owned)
                if not await self._commit(owned, batch):
                    return
            except Fenced as error:
                log.warning("partition_lost", extra={"stream": self.stream, "error": str(error)})
                self._term += 1
                await self._release()
                await self._drop_subscription()
                return
            owned.committed = batch.position
            took_s = time.perf_counter() - started
            owned.report(batch, chunk_times_us, now_us=self._clock_us(), took_s=took_s)
            if owned.cache is not None:
                await owned.cache.committed(batch, now_us=self._clock_us())
            self._grant_withheld()
            if batch.settled and owned.letters_wait:
                self.flush_wanted.set()  # more of them: no need to let the interval pass
            await self._merge_ids(owned)

    async def _merge_ids(self, owned: Owned) -> None:
        """Now and then, after a flush: keep what recovery must read short. Nothing is lost if it fails."""
        now_us = self._clock_us()
        if now_us < owned.merge_ids_at_us:
            return
        owned.merge_ids_at_us = now_us + MERGE_IDS_INTERVAL_US
        newest_us = owned.ledger.position.newest_us
        try:
            merged = await self._sink.merge_ids(owned.claim, before_hour=newest_us // HOUR_US)
        except (SinkUnavailable, SchemaMissing, Fenced) as error:
            log.warning("merging_ids_failed", extra={"stream": self.stream, "error": str(error)})
        else:
            if merged:
                log.info("ids_merged", extra={"stream": self.stream, "segments": merged})

    async def _drain(self, owned: Owned) -> tuple[Batch, list[int]]:
        """Freeze a batch, with dead letters that wait; what it needs and is not in memory is loaded first."""
        backoff = self._backoff()
        ledger = owned.ledger
        while True:
            # Before the broker is asked, so that it vouches for no later moment.
            now_us = self._broker_clock.now_us(host_us=self._clock_us(), monotonic_us=self._steady_us())
            caught_up = await self._caught_up(owned)
            try:
                async with self._books:
                    await self._apart(ledger.fold)
                    await self._replay(owned)
                    await self._load_missing(owned)
                    batch = await self._apart(ledger.drain, now_us=now_us, caught_up=caught_up)
                    times_us, owned.chunk_times_us = owned.chunk_times_us, []
                left_out = self._archive is not None and self._archive.full and not batch.settled
                if batch.accepted is not None and left_out:
                    metrics.ARCHIVE_LEFT_OUT.inc(len(batch.accepted))
                    batch.accepted = None
                return batch, times_us
            except SinkUnavailable as error:
                self._database_away("load_failed", error)
                await backoff.wait()

    async def _replay(self, owned: Owned) -> None:
        """Take in dead letters that wait, if the last flush saw any; while the archive is full they wait on.

        The archive must not miss them: their hours may be among those that it has whole.
        """
        if not owned.letters_wait or (self._archive is not None and self._archive.full):
            return
        async with self._lag_shown(owned):
            letters = await self._sink.waiting_letters(owned.claim, most=LETTERS_MAX)
            if letters:
                await self._load_missing(owned)  # no event waits any more when the letters are read
                opened = owned.ledger.open(letters)
                await self._load_missing(owned, opened)
                owned.ledger.replay(opened, await self._sink.counted(owned.claim, opened))
            # At once: a hand-over may cancel us at the next wait, and letters read twice would count twice.
            owned.letters_wait = False

    async def _load_missing(self, owned: Owned, opened: Opened | None = None) -> None:
        """Bring into memory all that the next drain needs, or the replay of opened letters."""
        while blocks := await self._apart(owned.ledger.missing, opened=opened):
            async with self._lag_shown(owned):
                rows = await self._sink.load(owned.claim, blocks)
            owned.ledger.adopt(rows, blocks)

    async def _caught_up(self, owned: Owned) -> bool:
        """Is all that the broker has in the ledger? Asked before draining, which can only add to it."""
        subscription = self._subscription
        if subscription is None:
            return False
        try:
            lag = await subscription.offset_lag(owned.ledger.received_offset)
        except TransportError:
            return False
        metrics.OFFSET_LAG.labels(str(owned.claim.partition)).set(lag)
        if lag == 0:  # a lag is no reason to wait no longer: the chunk that makes it is on its way
            self._waits_for_news = True
        return lag == 0

    async def _commit(self, owned: Owned, batch: Batch) -> bool:
        """Flush the very same batch until its outcome is known; False if the partition was let go."""
        backoff = self._backoff()
        attempts = 0
        async with self._lag_shown(owned):
            while self._owned is owned:
                try:
                    well = batch.caught_up or self._steady_us() >= owned.suspicion.well_at_us
                    owned.letters_wait = await self._sink.flush(owned.claim, batch, well=well)
                except SinkUnavailable as error:
                    attempts += 1
                    self._flush_failed(error, attempts)
                    await backoff.wait()
                else:
                    if self.database_error is not None:
                        log.info("database_back")
                    self.database_error = None
                    return True
        return False

    @asynccontextmanager
    async def _lag_shown(self, owned: Owned) -> AsyncIterator[None]:
        """Keep the gauge of the offset lag true while the database takes long; nobody else asks meanwhile."""
        known = asyncio.Event()

        async def show() -> None:
            while True:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes as the event is set.
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAG_INTERVAL_S):
                        await known.wait()
                    return
                if self._owned is owned:
                    await self._caught_up(owned)

        showing = asyncio.create_task(show())
        try:
            yield
        finally:
            known.set()
            await showing

    def _flush_failed(self, error: SinkUnavailable, attempts: int) -> None:
        """Say it each time: the same batch that fails in the same way for ever must not do so in silence."""
        metrics.FLUSH_FAILURES.labels(error.trouble).inc()
        facts = {"error": str(error), "kind": error.trouble, "attempts": attempts, "stream": self.stream}
        log.warning("flush_failed", extra=facts)
        times = f" (the same flush has failed {attempts} times)" if attempts > 1 else ""
        self.database_error = f"{error}{times}"

    def _database_away(self, event: str, error: Exception) -> None:
        if self.database_error != str(error):
            log.warning(event, extra={"error": str(error)})
        self.database_error = str(error)

    # --- end

    async def close(self) -> None:
        """Let go of everything; the last flush, if there is to be one, came before."""
        await self._drop_subscription()
        await self._let_go()
        await self._sink.close()
