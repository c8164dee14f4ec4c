"""One partition at work: own it, recover it, feed its ledger, flush it, hand it over.

The ledger is pure, and this module keeps the order of the steps around the ledger. The worker claims a
partition before it recovers the ledger, and recovers before it reads. It flushes the same batch until the
outcome is known. It gives credit back only while there is room for more records. It flushes before it hands
the partition over. Faust (`pipeline.worker.agents`) and HTTP are left to others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from pipeline import metrics
from pipeline.archive.gate import ArchiveGate
from pipeline.common import traces
from pipeline.common.backoff import Backoff, ExponentialBackoff
from pipeline.config import FlushConfig
from pipeline.core.batch import Batch, Block
from pipeline.core.dedupe import NewLog
from pipeline.core.ledger import Ledger
from pipeline.core.replay import LETTERS_MAX, Opened
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US
from pipeline.sink import Contested, Fenced, SchemaMissing, Sink, SinkUnavailable, Trouble
from pipeline.transports import Chunk, ReadFrom, Subscription, Transport, TransportError, chunks
from pipeline.worker.life import Event, Life
from pipeline.worker.membership import Delivery, Membership
from pipeline.worker.owned import Owned, recover

log = logging.getLogger(__name__)


for _kind in Trouble:  # shown from the start, at 0
    metrics.FLUSH_FAILURES.labels(_kind)


def wall_clock_us() -> int:
    return time.time_ns() // 1000


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


async def in_a_thread(work: Callable[..., Any], **arguments: Any) -> Any:
    """Do long work in a thread, so that the event loop goes on. A cancellation waits until the work ends."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, **arguments))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait((doing,))
        raise


MERGE_IDS_INTERVAL_US = 60_000_000
LAG_INTERVAL_S = 1.0
LET_GO_S = 1.0
LOOK_S = 5.0
"""How long a worker that stands by waits for an answer of the database that was away."""
HAND_OVER_S = 3.0
"""How long a hand-over waits for the last flush. After that the next owner reads these records again."""


class PartitionWorker:
    """One partition in this process: its `Owner` while the broker says so, standing by otherwise.

    The broker's single active consumer rule decides which worker owns a partition. The database makes sure
    that only this worker writes: a claim raises the epoch, and a flush with an older epoch fails whole.
    Example: worker A has claimed the partition with epoch 7 and freezes. Worker B claims it and gets epoch 8.
    When A wakes, its flush with epoch 7 writes nothing, and A lets the partition go.

    `Life` has the states of the partition, and `Membership` the subscription. `Owned` is there while the
    partition is owned or handed over.
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
        """``index`` is the number of the partition in the transport, and ``stream`` is the name of its
        stream. ``apart`` does long work while other tasks go on.
        """
        self.stream = stream
        self._sink = sink
        self._rules = rules
        self._flush_config = flush
        self._redis_url = redis_url
        self._archive = archive
        self._new_log = new_log
        self._clock_us = clock_us
        self._steady_us = steady_us
        self._backoff = backoff
        self._apart = apart
        self._flushing = asyncio.Lock()
        self._books = asyncio.Lock()
        self._life = Life()
        self._group = Membership(
            transport,
            index=index,
            stream=stream,
            owner=self,
            life=self._life,
            steady_us=steady_us,
            backoff=backoff,
        )
        self._is_ending = False
        self._owned: Owned | None = None
        self._refusal: str | None = None
        """Why the claim was refused, while an activation tries again and again."""
        self._withheld: list[Subscription] = []
        self.flush_wanted = asyncio.Event()
        self.database_error: str | None = None
        metrics.OWNED.labels(stream).set_function(lambda: float(self.active))

    @property
    def active(self) -> bool:
        """Does this worker own the partition, and has it recovered the ledger?"""
        return self._owned is not None

    @property
    def stream_error(self) -> str | None:
        """Why nothing can be read; None while all is well."""
        if self._refusal is not None:
            return self._refusal
        owned = self._owned
        return self._group.error(None if owned is None else owned.ledger.received_offset)

    # --- ownership

    def take_no_more(self) -> None:
        """Refuse every further activation, because the worker is stopping."""
        self._is_ending = True

    async def activated(self) -> ReadFrom:
        """Recover the partition that the broker gave us; the place to read on. Waits for the database.

        Raises:
            TransportError: the worker is stopping. The broker activates another one when the connection ends.
        """
        try:
            return await self._activate()
        except TransportError:
            raise
        except Exception as error:
            self._group.failure = error
            raise
        finally:
            self._refusal = None  # an activation that was cancelled tries no more: another worker does

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
                    self._life.follow(Event.REFUSED)
                    self._refusal = str(error)
                    log.critical("two_consumer_groups", extra={"stream": self.stream, "error": str(error)})
                    await backoff.wait()
                except (SinkUnavailable, SchemaMissing) as error:
                    self._database_away("database_not_ready", error)
                    await backoff.wait()
            self._life.follow(Event.ACTIVATED)
            self.database_error = None
            return ReadFrom(owned.ledger.received_offset, owned.ledger.received_us)

    async def _recover(self) -> Owned:
        """Claim the partition and build its ledger from the database."""
        await self._release(Event.LOST)
        self._life.follow(Event.RECOVERS)
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
        """Let the partition's gauges be computed when they are read.

        So a gauge is right even while nothing is committed: the lag goes on growing.
        """
        partition, ledger = str(owned.claim.partition), owned.ledger
        metrics.FRESHNESS_LAG.labels(partition).set_function(lambda: owned.lag_s(self._clock_us()))
        metrics.WITHHELD.labels(partition).set_function(lambda: len(self._withheld))
        metrics.BUFFERED_EVENTS.labels(partition).set_function(lambda: ledger.unflushed_events)
        metrics.DIRTY_ROWS.labels(partition).set_function(lambda: ledger.dirty_rows)
        metrics.REMEMBERED_IDS.labels(partition).set_function(lambda: ledger.remembered_ids)
        metrics.LEDGER_BYTES.labels(partition).set_function(lambda: ledger.memory_bytes)

    async def deactivated(self) -> None:
        """Hand over to another worker: commit the ledger within `HAND_OVER_S`, and forget the partition.

        If the time is not enough, the next owner reads the uncommitted records again.
        """
        if self._owned is not None:
            self._life.follow(Event.DEACTIVATED)
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await self.flush()
        except TimeoutError:
            log.warning(
                "hand_over_without_flush", extra={"stream": self.stream, "error": self.database_error}
            )
        await self._let_go()

    async def _let_go(self) -> None:
        """As `_release`, but first note in the database that we let go on purpose.

        So the next owner does not count a crash.
        """
        owned = self._owned
        if owned is not None:
            with suppress(SinkUnavailable, SchemaMissing, TimeoutError):
                async with asyncio.timeout(LET_GO_S), self._flushing:
                    await self._sink.released(owned.claim)
        await self._release(Event.LET_GO)

    async def _release(self, why: Event) -> None:
        """Forget the partition: its ledger, gauges and cache. The database has the committed state."""
        owned, self._owned = self._owned, None
        if owned is not None:
            self._life.follow(why)
            self._grant_withheld()
            await owned.forget()

    # --- reading

    def receive(self) -> Awaitable[Delivery]:
        """The next chunk; see `Membership.receive`. Raises the error of a recovery that has failed."""
        return self._group.receive()

    async def book(self, delivery: Delivery) -> None:
        """Take one chunk into the ledger, and give its credit back if there is room for more.

        Each chunk is owed exactly one grant. If the ledger is full, the grant waits for the next flush. A
        chunk whose term is over is dropped and granted at once.
        """
        owned = self._owned
        if owned is None:
            delivery.subscription.grant()
            return
        chunk = chunks.without(delivery.chunk, owned.skips) if owned.skips else delivery.chunk
        take_in = self._take_in if owned.suspicion.care is None else self._with_care
        with traces.span(
            "chunk",
            "consumer",
            partition=owned.claim.partition,
            offset=chunk.first_offset,
            events=len(chunk.bodies),
        ):
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
        """Take a chunk, or a part of one, into the ledger; False if the term of the chunk is over."""
        async with self._books:
            owned = self._owned
            if owned is None or delivery.term != self._life.term:
                return False
            ledger = owned.ledger
            started = time.perf_counter()
            ledger.receive(
                first_offset=chunk.first_offset,
                next_offset=chunk.next_offset,
                timestamp_us=chunk.timestamp_us,
                bodies=chunk.bodies,
                unreadable=chunk.unreadable,
            )
            with traces.child("fold"):
                if not ledger.fold_if_quick():
                    await self._apart(ledger.fold)
            if ledger.dirty_rows >= self._flush_config.dirty_rows_max:
                await self._apart(ledger.gather)  # the count is a bound; this makes it exact
            metrics.FOLD_SECONDS.observe(time.perf_counter() - started)
        owned.chunk_times_us.append(chunk.timestamp_us)
        return True

    async def _with_care(self, delivery: Delivery, chunk: Chunk) -> bool:
        """As `_take_in`, but in parts, because one of the records may have crashed earlier workers.

        Before each part, the worker flushes the part before and then notes the offsets of the new part in the
        database. If the worker crashes, its successor knows in which part. A part may hold many small chunks,
        and a large chunk may hold many parts.
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
                    suspicion.well_at_us = 0  # the place of the crashes is passed: the flush forgets them
                await self.flush()
                suspicion.care = None
        return True

    async def _try_next(self, owned: Owned, offset: int, records: int) -> None:
        await self.flush()
        owned.suspicion.tried_to = offset + records
        with suppress(SinkUnavailable, SchemaMissing):  # without the note the next worker searches once more
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
        """Commit everything that the ledger has taken in, trying until the outcome is known.

        A worker that stands by commits nothing. If another worker has claimed the partition, this worker lets
        the partition go and joins the consumer group again.
        """
        self.flush_wanted.clear()
        async with self._flushing:
            owned = self._owned
            if owned is None:
                await self._look_again()
                return
            with traces.span("flush", stream=self.stream, partition=owned.claim.partition) as span:
                await self._flush(owned, span)

    async def _flush(self, owned: Owned, span: traces.Span) -> None:
        started = time.perf_counter()
        try:
            with traces.child("drain"):
                batch, chunk_times_us = await self._drain(owned)
            if span:
                offsets = {"from_offset": batch.from_offset, "next_offset": batch.position.next_offset}
                span.set(rows=batch.row_count, **offsets)
            if not await self._commit(owned, batch):
                return
        except Fenced as error:
            span.failed("Fenced")
            log.warning("partition_lost", extra={"stream": self.stream, "error": str(error)})
            self.database_error = None  # the database has answered, and a worker that stands by asks nothing
            await self._release(Event.LOST)
            await self._group.leave()
            return
        owned.committed = batch.position
        took_s = time.perf_counter() - started
        owned.report(batch, chunk_times_us, now_us=self._clock_us(), took_s=took_s)
        if owned.cache is not None:
            with traces.child("cache", "client"):
                await owned.cache.committed(batch, now_us=self._clock_us())
        self._grant_withheld()
        if batch.settled and owned.letters_wait:
            self.flush_wanted.set()  # more dead letters wait, and they need not wait for the interval
        await self._merge_ids(owned)

    async def _look_again(self) -> None:
        """Find out whether the database is back, if a worker that stands by last saw it away.

        The worker asks the database for nothing else while it stands by. Example: the database fails over,
        and the broker gives the partition to worker B before A's flush succeeds. Without this question, A
        would report for ever that the database is away, and would never be ready again.
        """
        if self.database_error is None or self._is_ending:
            return
        try:
            async with asyncio.timeout(LOOK_S):
                await self._sink.check_schema()
        except (SinkUnavailable, SchemaMissing, TimeoutError) as error:
            if str(error):
                self._database_away("database_not_ready", error)
        else:
            log.info("database_back")
            self.database_error = None

    async def _merge_ids(self, owned: Owned) -> None:
        """Merge small id segments once a minute, so that the next recovery reads fewer rows.

        If the merge fails, nothing is lost, and the next minute tries again.
        """
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
        """Load the rows that the next batch needs, take in waiting dead letters, and freeze the batch."""
        backoff = self._backoff()
        ledger = owned.ledger
        while True:
            # The clock is read before the question. Read afterwards, it could count as complete a moment in
            # which the broker has just stored a record.
            now_us = self._group.broker_now_us(host_us=self._clock_us())
            caught_up = await self._caught_up(owned)
            try:
                async with self._books:
                    await self._replay(owned)
                    drain = partial(ledger.drain_or_missing, now_us=now_us, caught_up=caught_up)
                    while not isinstance(batch := await self._apart(drain), Batch):
                        await self._load(owned, batch)
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
        """Take in the dead letters that wait, if the last flush saw any.

        While the archive's outbox is full, the letters wait. Otherwise their events would be left out of the
        archive, perhaps in an hour that the archive has complete.
        """
        if not owned.letters_wait or (self._archive is not None and self._archive.full):
            return
        async with self._lag_shown(owned):
            letters = await self._sink.waiting_letters(owned.claim, most=LETTERS_MAX)
            if letters:
                await self._load_missing(owned)  # so that no event before the letters waits any more
                opened = owned.ledger.open(letters)
                await self._load_missing(owned, opened)
                owned.ledger.replay(opened, await self._sink.counted(owned.claim, opened))
            # Before the next await: a hand-over may cancel us there, and letters taken in twice count twice.
            owned.letters_wait = False

    async def _load_missing(self, owned: Owned, opened: Opened | None = None) -> None:
        """Load the rows that waiting events, and the replay of the opened letters, need in the ledger."""
        while blocks := await self._apart(owned.ledger.missing, opened=opened):
            await self._load(owned, blocks)

    async def _load(self, owned: Owned, blocks: Sequence[Block]) -> None:
        async with self._lag_shown(owned):
            rows = await self._sink.load(owned.claim, blocks)
        owned.ledger.adopt(rows, blocks)

    async def _caught_up(self, owned: Owned) -> bool:
        """Has the ledger every record of the broker? Asked before a drain; later records do no harm."""
        lag = await self._group.lag(owned.ledger.received_offset)
        if lag is not None:
            partition = str(owned.claim.partition)
            metrics.OFFSET_LAG.labels(partition).set(lag)
            retained = owned.ledger.received_offset - (self._group.first_offset or 0)
            metrics.RETAINED.labels(partition).set(max(0, retained))
        return lag == 0

    async def _commit(self, owned: Owned, batch: Batch) -> bool:
        """Flush the same batch until its outcome is known; False if the partition was let go meanwhile."""
        backoff = self._backoff()
        attempts = 0
        async with self._lag_shown(owned):
            while self._owned is owned:
                try:
                    well = batch.caught_up or self._steady_us() >= owned.suspicion.well_at_us
                    with traces.child("write", "client", attempt=attempts + 1):
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
        """Update the gauge of the offset lag each second while the database takes long.

        Nobody else asks the broker for the lag during this time.
        """
        known = asyncio.Event()

        async def show() -> None:
            while True:
                # wait_for would swallow a cancellation that comes as the event is set (Python 3.11).
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
        """Report a failed flush every time, also the same failure: a batch may fail for ever."""
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
        """Let go of the partition and of the connections. The caller has flushed before, if at all."""
        await self._group.leave()
        await self._let_go()
        await self._sink.close()
