"""One partition at work: own it, recover it, feed its ledger, flush it, hand it over.

It holds the order of things around the pure ledger: claim before recovery, recovery before reading, the
same batch until its outcome is known, credit only when there is room, a flush before a hand-over. It knows no
Faust (`pipeline.worker.agents` wires it) and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from pipeline import metrics
from pipeline.archive.gate import ArchiveGate
from pipeline.config import FlushConfig
from pipeline.core.batch import Batch, Position, Tally
from pipeline.core.care import CRASHES_MIN, Care, remedy
from pipeline.core.dedupe import NewLog
from pipeline.core.ledger import Ledger
from pipeline.core.replay import LETTERS_MAX, Opened
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US, BrokerClock
from pipeline.sink import Claim, Contested, Fenced, SchemaMissing, Sink, SinkUnavailable, Trouble
from pipeline.transports import Chunk, OffsetGone, ReadFrom, Subscription, Transport, TransportError, chunks
from pipeline.worker.freshness_cache import FreshnessCache

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
WELL_US = 30_000_000
"""A worker that has lived so long with a partition has come past whatever made an earlier one crash."""
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
        self._claim: Claim | None = None
        self._ledger: Ledger | None = None
        self._cache: FreshnessCache | None = None
        self._subscription: Subscription | None = None
        self._withheld: list[Subscription] = []
        self._skips: Mapping[int, str] = {}
        self._care: Care | None = None
        self._tried_to = 0
        self._well_at_us = 0
        self._chunk_times_us: list[int] = []
        self._reported = Tally()
        self._committed: Position | None = None
        self._merge_ids_at_us = clock_us() + MERGE_IDS_INTERVAL_US
        self._letters_wait = False
        self._recovery_failure: Exception | None = None
        self._gap: OffsetGone | None = None
        self._away: str | None = "not connected yet"
        self._contested: str | None = None
        self.flush_wanted = asyncio.Event()
        self.database_error: str | None = None

    @property
    def active(self) -> bool:
        """Is the partition ours?"""
        return self._ledger is not None

    @property
    def stream_error(self) -> str | None:
        """Why nothing can be read; a gap stays one, however often the group is joined, until it is passed."""
        gap, ledger = self._gap, self._ledger
        if self._contested is not None:
            return self._contested
        if gap is not None and ledger is not None and ledger.received_offset == gap.wanted_offset:
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
                    if self._ledger is None or not await self._still_ours():
                        await self._recover()
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
            assert self._ledger is not None
            return ReadFrom(self._ledger.received_offset, self._ledger.received_us)

    async def _still_ours(self) -> bool:
        """After a lost connection: did nobody else claim the partition meanwhile?"""
        assert self._claim is not None
        assert self._committed is not None
        return await self._sink.holds(self._claim, offset=self._committed.next_offset)

    async def _recover(self) -> None:
        """Claim the partition and build its ledger from the database."""
        await self._release()
        claim, position = await self._sink.claim(self.stream)
        ledger = Ledger(
            self._rules,
            position,
            keep_accepted=self._archive is not None,
            new_log=self._new_log,
            decoding=metrics.DECODE_SECONDS.time(),
        )
        ledger.adopt(await self._sink.resident_rows(claim, ledger.resident_from()))
        high = await self._sink.high_days(
            claim, from_day=ledger.high_days_from(), sum_least=ledger.high_sum_least
        )
        ledger.recover_high_days(high)
        from_hour = ledger.live_hours_from()
        ledger.expect_ids(await self._sink.live_ids_count(claim, from_hour=from_hour))
        async for hour, segment in self._sink.live_ids(claim, from_hour=from_hour):
            ledger.recover_ids(hour, segment)
        if self._redis_url:
            known = await self._sink.org_models(claim)
            self._cache = FreshnessCache(self._redis_url, partition=claim.partition, known=known)
        self._skips = await self._sink.skips(claim, from_offset=position.next_offset)
        self._take_care(claim, position)
        self._claim, self._ledger, self._committed = claim, ledger, replace(position)
        self._reported = Tally()
        self._show(claim, ledger)
        log.info(
            "partition_recovered",
            extra={
                "stream": self.stream,
                "partition": claim.partition,
                "epoch": claim.epoch,
                "offset": position.next_offset,
                "ids": ledger.remembered_ids,
            },
        )

    def _take_care(self, claim: Claim, position: Position) -> None:
        """Look for the record at fault where workers before us crashed, and say so."""
        self._well_at_us = self._steady_us() + WELL_US
        self._care = Care.after(claim.crashes, offset=position.next_offset, tried=claim.tried)
        self._tried_to = position.next_offset
        if claim.crashes < CRASHES_MIN:
            return
        found = Care.found(claim.crashes, offset=position.next_offset, tried=claim.tried)
        facts: dict[str, object] = {
            "stream": self.stream,
            "partition": claim.partition,
            "crashes": claim.crashes,
            "from_offset": position.next_offset,
        }
        if claim.tried is None or not Care.within(claim.tried, position.next_offset):
            # Workers may have been killed, and at different records: nothing points to one yet.
            facts["remedy"] = "none yet: the worker takes in few records at a time for a while"
            log.warning("workers_crashed_before", extra=facts)
            return
        facts["to_offset"] = claim.tried[1]
        if found is None:
            facts["remedy"] = "none yet: the worker takes in fewer records at a time until it knows which"
        else:
            facts |= {"offset": found, "remedy": remedy(self.stream, found)}
        log.critical("worker_crashes_here", extra=facts)

    def _show(self, claim: Claim, ledger: Ledger) -> None:
        """Gauges that are reckoned when read: they tell the truth also while nothing is committed."""
        partition = str(claim.partition)
        metrics.FRESHNESS_LAG.labels(partition).set_function(self._lag_s)
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
        claim = self._claim
        if claim is not None:
            with suppress(SinkUnavailable, SchemaMissing, TimeoutError):
                async with asyncio.timeout(LET_GO_S), self._flushing:
                    await self._sink.released(claim)
        await self._release()

    async def _release(self) -> None:
        """Forget everything about the partition; the database has what counts."""
        if self._ledger is None:
            return
        assert self._claim is not None
        for gauge in metrics.OF_PARTITION:
            with suppress(KeyError):
                gauge.remove(str(self._claim.partition))
        log.info("partition_released", extra={"stream": self.stream, "partition": self._claim.partition})
        self._ledger = self._claim = self._committed = None
        self._letters_wait = False
        self._care = None
        self._grant_withheld()
        self._chunk_times_us.clear()
        cache, self._cache = self._cache, None
        if cache is not None:
            await cache.close()

    def _lag_s(self) -> float:
        mark = self._committed.watermark_us if self._committed is not None else None
        return float("nan") if mark is None else max(0.0, (self._clock_us() - mark) / 1e6)

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
        chunk = chunks.without(delivery.chunk, self._skips) if self._skips else delivery.chunk
        take_in = self._take_in if self._care is None else self._with_care
        taken_in = await take_in(delivery, chunk)
        ledger = self._ledger
        if not taken_in or ledger is None:
            delivery.subscription.grant()
            return
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
            ledger = self._ledger
            if ledger is None or delivery.term != self._term:
                return False
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
        self._chunk_times_us.append(chunk.timestamp_us)
        return True

    async def _with_care(self, delivery: Delivery, chunk: Chunk) -> bool:
        """As `_take_in`, but a part of the stream is noted before, and flushed before the next one is noted.

        A part may hold many small chunks, and a large chunk many parts.
        """
        rest: Chunk | None = chunk
        while rest is not None:
            claim, care = self._claim, self._care
            if claim is None or care is None:
                return False
            if rest.first_offset >= self._tried_to:
                await self._try_next(claim, rest.first_offset, care.part)
            part, rest = chunks.split(rest, self._tried_to)
            if not await self._take_in(delivery, part):
                return False
        if self._care is not None and chunk.next_offset >= self._care.until:
            if self._care.narrowed:
                self._well_at_us = 0  # the flush forgets the crashes: the place of the last one is passed
            await self.flush()
            self._care = None
        return True

    async def _try_next(self, claim: Claim, offset: int, records: int) -> None:
        await self.flush()
        self._tried_to = offset + records
        with suppress(SinkUnavailable, SchemaMissing):  # then the next worker has to look again
            async with self._flushing:
                await self._sink.trying(claim, offset, self._tried_to)

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
            claim, ledger = self._claim, self._ledger
            if claim is None or ledger is None:
                return
            started = time.perf_counter()
            try:
                batch, chunk_times_us = await self._drain(claim, ledger)
                if not await self._commit(claim, ledger, batch):
                    return
            except Fenced as error:
                log.warning("partition_lost", extra={"stream": self.stream, "error": str(error)})
                self._term += 1
                await self._release()
                await self._drop_subscription()
                return
            self._committed = batch.position
            self._report(ledger, batch, chunk_times_us, time.perf_counter() - started)
            if self._cache is not None:
                await self._cache.committed(batch, now_us=self._clock_us())
            self._grant_withheld()
            if batch.settled and self._letters_wait:
                self.flush_wanted.set()  # more of them: no need to let the interval pass
            await self._merge_ids(claim, ledger)

    async def _merge_ids(self, claim: Claim, ledger: Ledger) -> None:
        """Now and then, after a flush: keep what recovery must read short. Nothing is lost if it fails."""
        now_us = self._clock_us()
        if now_us < self._merge_ids_at_us:
            return
        self._merge_ids_at_us = now_us + MERGE_IDS_INTERVAL_US
        newest_us = ledger.position.newest_us
        try:
            merged = await self._sink.merge_ids(claim, before_hour=newest_us // HOUR_US)
        except (SinkUnavailable, SchemaMissing, Fenced) as error:
            log.warning("merging_ids_failed", extra={"stream": self.stream, "error": str(error)})
        else:
            if merged:
                log.info("ids_merged", extra={"stream": self.stream, "segments": merged})

    async def _drain(self, claim: Claim, ledger: Ledger) -> tuple[Batch, list[int]]:
        """Freeze a batch, with dead letters that wait; what it needs and is not in memory is loaded first."""
        backoff = self._backoff()
        while True:
            # Before the broker is asked, so that it vouches for no later moment.
            now_us = self._broker_clock.now_us(host_us=self._clock_us(), monotonic_us=self._steady_us())
            caught_up = await self._caught_up(claim, ledger)
            try:
                async with self._books:
                    await self._apart(ledger.fold)
                    await self._replay(claim, ledger)
                    await self._load_missing(claim, ledger)
                    batch = await self._apart(ledger.drain, now_us=now_us, caught_up=caught_up)
                    times_us, self._chunk_times_us = self._chunk_times_us, []
                left_out = self._archive is not None and self._archive.full and not batch.settled
                if batch.accepted is not None and left_out:
                    metrics.ARCHIVE_LEFT_OUT.inc(len(batch.accepted))
                    batch.accepted = None
                return batch, times_us
            except SinkUnavailable as error:
                self._database_away("load_failed", error)
                await backoff.wait()

    async def _replay(self, claim: Claim, ledger: Ledger) -> None:
        """Take in dead letters that wait, if the last flush saw any; while the archive is full they wait on.

        The archive must not miss them: their hours may be among those that it has whole.
        """
        if not self._letters_wait or (self._archive is not None and self._archive.full):
            return
        async with self._lag_shown(claim, ledger):
            letters = await self._sink.waiting_letters(claim, most=LETTERS_MAX)
            if letters:
                await self._load_missing(claim, ledger)  # no event waits any more when the letters are read
                opened = ledger.open(letters)
                await self._load_missing(claim, ledger, opened)
                ledger.replay(opened, await self._sink.counted(claim, opened))
            # At once: a hand-over may cancel us at the next wait, and letters read twice would count twice.
            self._letters_wait = False

    async def _load_missing(self, claim: Claim, ledger: Ledger, opened: Opened | None = None) -> None:
        """Bring into memory all that the next drain needs, or the replay of opened letters."""
        while blocks := await self._apart(ledger.missing, opened=opened):
            async with self._lag_shown(claim, ledger):
                rows = await self._sink.load(claim, blocks)
            ledger.adopt(rows, blocks)

    async def _caught_up(self, claim: Claim, ledger: Ledger) -> bool:
        """Is all that the broker has in the ledger? Asked before draining, which can only add to it."""
        subscription = self._subscription
        if subscription is None:
            return False
        try:
            lag = await subscription.offset_lag(ledger.received_offset)
        except TransportError:
            return False
        metrics.OFFSET_LAG.labels(str(claim.partition)).set(lag)
        if lag == 0:  # a lag is no reason to wait no longer: the chunk that makes it is on its way
            self._waits_for_news = True
        return lag == 0

    async def _commit(self, claim: Claim, ledger: Ledger, batch: Batch) -> bool:
        """Flush the very same batch until its outcome is known; False if the partition was let go."""
        backoff = self._backoff()
        attempts = 0
        async with self._lag_shown(claim, ledger):
            while self._claim is claim:
                try:
                    well = batch.caught_up or self._steady_us() >= self._well_at_us
                    self._letters_wait = await self._sink.flush(claim, batch, well=well)
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
    async def _lag_shown(self, claim: Claim, ledger: Ledger) -> AsyncIterator[None]:
        """Keep the gauge of the offset lag true while the database takes long; nobody else asks meanwhile."""
        known = asyncio.Event()

        async def show() -> None:
            while True:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes as the event is set.
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAG_INTERVAL_S):
                        await known.wait()
                    return
                if self._claim is claim:
                    await self._caught_up(claim, ledger)

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

    def _report(self, ledger: Ledger, batch: Batch, chunk_times_us: list[int], took_s: float) -> None:
        now_us = self._clock_us()
        metrics.LAST_SUCCESS.set(now_us / 1e6)
        metrics.FLUSH_SECONDS.observe(took_s)
        metrics.FLUSH_ROWS.observe(batch.row_count)
        for timestamp_us in chunk_times_us:
            metrics.VISIBLE_SECONDS.observe(max(0.0, (now_us - timestamp_us) / 1e6))
        tally, before = ledger.tally, self._reported
        metrics.EVENTS.labels("accepted").inc(tally.accepted - before.accepted)
        metrics.EVENTS.labels("duplicate").inc(tally.duplicate - before.duplicate)
        for reason, count in tally.rejected.items():
            metrics.EVENTS.labels(reason).inc(count - before.rejected[reason])
        for outcome, count in tally.replayed.items():
            metrics.REPLAYED.labels(outcome).inc(count - before.replayed[outcome])
        metrics.CONFLICTS.inc(tally.rejected["conflict"] - before.rejected["conflict"])
        metrics.LATE.inc(tally.late - before.late)
        metrics.CAPPED_MODELS.inc(tally.capped_models - before.capped_models)
        metrics.CAPPED_CLIENTS.inc(tally.capped_clients - before.capped_clients)
        self._reported = tally.copy()
        if chunk_times_us:
            log.debug(
                "flush_committed",
                extra={
                    "rows": batch.row_count,
                    "offset": batch.position.next_offset,
                    "seconds": round(took_s, 4),
                },
            )

    # --- end

    async def close(self) -> None:
        """Let go of everything; the last flush, if there is to be one, came before."""
        await self._drop_subscription()
        await self._let_go()
        await self._sink.close()
