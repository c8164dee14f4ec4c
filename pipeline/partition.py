"""One partition at work: recover it, feed its ledger, flush it, and never lie about where it stands.

It owns the order of things around the pure ledger: claim before recovery, recovery before reading, the same
batch until its outcome is known, credit only when there is room. It knows no Faust (`pipeline.agents` wires
it) and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pipeline import metrics
from pipeline.config import FlushConfig
from pipeline.core.ledger import Batch, Ledger, Tally
from pipeline.core.rules import Rules
from pipeline.freshness_cache import FreshnessCache
from pipeline.sink.timescale import Claim, SchemaMissing, SinkUnavailable, TimescaleSink
from pipeline.transports import Chunk, OffsetGone, Subscription, Transport, TransportError

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0


def wall_clock_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A chunk and the subscription to which its credit belongs."""

    chunk: Chunk
    subscription: Subscription


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
    """The life of one partition in this process, from claim to last flush."""

    def __init__(
        self,
        *,
        index: int,
        stream: str,
        transport: Transport,
        sink: TimescaleSink,
        rules: Rules,
        flush: FlushConfig,
        redis_url: str | None = None,
        clock_us: Callable[[], int] = wall_clock_us,
        backoff: Callable[[], Backoff] = ExponentialBackoff,
    ) -> None:
        self._index = index
        self._stream = stream
        self._transport = transport
        self._sink = sink
        self._rules = rules
        self._flush_config = flush
        self._redis_url = redis_url
        self._clock_us = clock_us
        self._backoff = backoff
        self._books = asyncio.Lock()
        self._claim: Claim | None = None
        self._ledger: Ledger | None = None
        self._cache: FreshnessCache | None = None
        self._subscription: Subscription | None = None
        self._delivered_offset = 0
        self._withheld: list[Subscription] = []
        self._chunk_times_us: list[int] = []
        self._reported = Tally()
        self._committed_watermark_us: int | None = None
        self.flush_wanted = asyncio.Event()
        self.stream_error: str | None = "not connected yet"
        self.database_error: str | None = "not connected yet"

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None, "recover() comes first"
        return self._ledger

    # --- start

    async def recover(self) -> None:
        """Claim the partition and rebuild its ledger, waiting for the database as long as it takes.

        Raises:
            SchemaMissing: the database answers, but has not been migrated. Waited for, too, but said so.
        """
        backoff = self._backoff()
        while True:
            try:
                claim, position = await self._sink.claim(self._stream)
                ledger = Ledger(self._rules, position)
                ledger.adopt(await self._sink.resident_rows(claim, ledger.resident_from()))
                ledger.recover_ids(await self._sink.live_ids(claim, from_hour=ledger.live_hours_from()))
                known = await self._sink.org_models(claim) if self._redis_url else []
                break
            except (SinkUnavailable, SchemaMissing) as error:
                self._database_away("database_not_ready", error)
                await backoff.wait()
        self.database_error = None
        self._claim, self._ledger = claim, ledger
        self._delivered_offset = position.next_offset
        self._committed_watermark_us = position.watermark_us
        if self._redis_url:
            self._cache = FreshnessCache(self._redis_url, partition=claim.partition, known=known)
        metrics.FRESHNESS_LAG.labels(str(claim.partition)).set_function(self._lag_s)
        log.info(
            "partition_recovered",
            extra={
                "stream": self._stream,
                "partition": claim.partition,
                "epoch": claim.epoch,
                "offset": position.next_offset,
                "ids": ledger.remembered_ids,
            },
        )

    def _lag_s(self) -> float:
        mark = self._committed_watermark_us
        return float("nan") if mark is None else max(0.0, (self._clock_us() - mark) / 1e6)

    # --- reading

    async def receive(self) -> Delivery:
        """The next chunk; reconnects from where the last one ended for as long as the stream is away.

        Raises:
            OffsetGone: the stream lost events that are not in the database. An operator must decide.
        """
        backoff = self._backoff()
        while True:
            try:
                if self._subscription is None:
                    await self._transport.open()
                    self._subscription = await self._transport.subscribe(
                        partition=self._index, offset=self._delivered_offset
                    )
                    log.info(
                        "stream_subscribed", extra={"stream": self._stream, "offset": self._delivered_offset}
                    )
                    self.stream_error = None
                chunk = await self._subscription.receive()
            except OffsetGone:
                raise
            except TransportError as error:
                if self.stream_error is None or self.stream_error == "not connected yet":
                    log.warning("stream_away", extra={"stream": self._stream, "error": str(error)})
                self.stream_error = str(error)
                await self._drop_subscription()
                await backoff.wait()
                continue
            self._delivered_offset = chunk.next_offset
            return Delivery(chunk, self._subscription)

    async def _drop_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    async def book(self, delivery: Delivery) -> None:
        """Take one chunk into the ledger, and give its credit back if there is room for more."""
        chunk = delivery.chunk
        async with self._books:
            started = time.perf_counter()
            self.ledger.ingest(
                first_offset=chunk.first_offset,
                next_offset=chunk.next_offset,
                timestamp_us=chunk.timestamp_us,
                bodies=chunk.bodies,
            )
            metrics.FOLD_SECONDS.observe(time.perf_counter() - started)
        self._chunk_times_us.append(chunk.timestamp_us)
        if self._has_room():
            delivery.subscription.grant()
        else:
            self._withheld.append(delivery.subscription)
        if self.ledger.unflushed_events >= self._flush_config.events_max:
            self.flush_wanted.set()

    def _has_room(self) -> bool:
        return (
            self.ledger.unflushed_events < self._flush_config.buffer_events_max
            and self.ledger.dirty_rows < self._flush_config.dirty_rows_max
        )

    # --- flushing

    async def flush(self) -> None:
        """Commit everything taken in so far, trying until the outcome is known.

        Raises:
            Fenced: another worker owns the partition; this one must end.
        """
        self.flush_wanted.clear()
        started = time.perf_counter()
        batch, chunk_times_us = await self._drain()
        await self._commit(batch)
        self._committed_watermark_us = batch.position.watermark_us
        self._report(batch, chunk_times_us, time.perf_counter() - started)
        if self._cache is not None:
            await self._cache.committed(batch, now_us=self._clock_us())
        withheld, self._withheld = self._withheld, []
        for subscription in withheld:
            subscription.grant()

    async def _drain(self) -> tuple[Batch, list[int]]:
        """Freeze a batch; events that touch rows outside memory get them loaded first."""
        assert self._claim is not None
        backoff = self._backoff()
        while True:
            now_us = self._clock_us()  # before the broker is asked, so that it vouches for no later moment
            caught_up = await self._caught_up()
            try:
                async with self._books:
                    blocks = self.ledger.missing()
                    if blocks:
                        self.ledger.adopt(await self._sink.load(self._claim, blocks), blocks)
                    batch = self.ledger.drain(now_us=now_us, caught_up=caught_up)
                    times_us, self._chunk_times_us = self._chunk_times_us, []
                return batch, times_us
            except SinkUnavailable as error:
                self._database_away("load_failed", error)
                await backoff.wait()

    async def _caught_up(self) -> bool:
        """Is all that the broker has in the ledger? Asked before draining, which can only add to it."""
        subscription = self._subscription
        if subscription is None:
            return False
        try:
            lag = await subscription.offset_lag(self.ledger.received_offset)
        except TransportError:
            return False
        if self._claim is not None:
            metrics.OFFSET_LAG.labels(str(self._claim.partition)).set(lag)
        return lag == 0

    async def _commit(self, batch: Batch) -> None:
        assert self._claim is not None
        backoff = self._backoff()
        while True:
            try:
                await self._sink.flush(self._claim, batch)
            except SinkUnavailable as error:
                metrics.FLUSH_FAILURES.inc()
                self._database_away("flush_failed", error)
                await backoff.wait()
            else:
                if self.database_error is not None:
                    log.info("database_back")
                self.database_error = None
                return

    def _database_away(self, event: str, error: Exception) -> None:
        if self.database_error != str(error):
            log.warning(event, extra={"error": str(error)})
        self.database_error = str(error)

    def _report(self, batch: Batch, chunk_times_us: list[int], took_s: float) -> None:
        now_us = self._clock_us()
        metrics.LAST_SUCCESS.set(now_us / 1e6)
        metrics.FLUSH_SECONDS.observe(took_s)
        metrics.FLUSH_ROWS.observe(batch.row_count)
        for timestamp_us in chunk_times_us:
            metrics.VISIBLE_SECONDS.observe(max(0.0, (now_us - timestamp_us) / 1e6))
        tally, before = self.ledger.tally, self._reported
        metrics.EVENTS.labels("accepted").inc(tally.accepted - before.accepted)
        metrics.EVENTS.labels("duplicate").inc(tally.duplicate - before.duplicate)
        for reason, count in tally.rejected.items():
            metrics.EVENTS.labels(reason).inc(count - before.rejected[reason])
        metrics.CONFLICTS.inc(tally.conflicts - before.conflicts)
        metrics.LATE.inc(tally.late - before.late)
        metrics.CAPPED_CLIENTS.inc(tally.capped_clients - before.capped_clients)
        self._reported = tally.copy()
        metrics.BUFFERED_EVENTS.set(self.ledger.unflushed_events)
        metrics.DIRTY_ROWS.set(self.ledger.dirty_rows)
        metrics.REMEMBERED_IDS.set(self.ledger.remembered_ids)
        metrics.LEDGER_BYTES.set(self.ledger.memory_bytes)
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
        if self._cache is not None:
            with suppress(OSError):
                await self._cache.close()
        await self._sink.close()
