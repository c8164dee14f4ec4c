"""What a worker has of a partition while the partition is its own. Nothing of it outlives that time.

`recover` makes an `Owned` from the database, in the order in which a later step may rely on an earlier one:
claim, rows, ids, and what the worker must know before it takes in the first record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline import metrics
from pipeline.core.batch import Batch, Position, Tally
from pipeline.core.care import CRASHES_MIN, Care, remedy
from pipeline.core.dedupe import NewLog
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.sink import Claim, Sink
from pipeline.worker.freshness_cache import FreshnessCache

log = logging.getLogger(__name__)

WELL_US: Final = 30_000_000
"""A worker that has lived so long with a partition has come past whatever made an earlier one crash."""


@dataclass(slots=True, kw_only=True)
class Suspicion:
    """Which records may be those at which earlier workers crashed, and whether they are passed."""

    care: Care | None
    """None: nothing is suspected."""
    tried_to: int
    """The end of the records that are being tried."""
    well_at_us: int
    """By the steady clock: when a flush says that all is well, whatever was suspected."""

    @classmethod
    def after(cls, claim: Claim, position: Position, *, steady_us: int) -> Suspicion:
        """What to suspect after the crashes that the claim tells of; says so in the log."""
        offset = position.next_offset
        _warn_of_crashes(claim, offset)
        care = Care.after(claim.crashes, offset=offset, tried=claim.tried)
        return cls(care=care, tried_to=offset, well_at_us=steady_us + WELL_US)


def _warn_of_crashes(claim: Claim, offset: int) -> None:
    if claim.crashes < CRASHES_MIN:
        return
    facts: dict[str, object] = {
        "stream": claim.stream,
        "partition": claim.partition,
        "crashes": claim.crashes,
        "from_offset": offset,
    }
    if claim.tried is None or not Care.within(claim.tried, offset):
        # Workers may have been killed, and at different records: nothing points to one yet.
        facts["remedy"] = "none yet: the worker takes in few records at a time for a while"
        log.warning("workers_crashed_before", extra=facts)
        return
    facts["to_offset"] = claim.tried[1]
    found = Care.found(claim.crashes, offset=offset, tried=claim.tried)
    if found is None:
        facts["remedy"] = "none yet: the worker takes in fewer records at a time until it knows which"
    else:
        facts |= {"offset": found, "remedy": remedy(claim.stream, found)}
    log.critical("worker_crashes_here", extra=facts)


@dataclass(slots=True, kw_only=True)
class Owned:
    """The claim, the ledger that was recovered under it, and what is kept beside them."""

    claim: Claim
    ledger: Ledger
    committed: Position
    """Where the database stands."""
    suspicion: Suspicion
    skips: Mapping[int, str]
    """Records that an operator has skipped, and why: by offset."""
    merge_ids_at_us: int
    cache: FreshnessCache | None = None
    letters_wait: bool = False
    """Did the last flush see dead letters that wait to be replayed?"""
    chunk_times_us: list[int] = field(default_factory=list)
    """The broker's times of the chunks that wait for a flush."""
    reported: Tally = field(default_factory=Tally)
    """What the metrics have counted already."""

    def lag_s(self, now_us: int) -> float:
        """Now less the committed watermark; not a number while there is none."""
        mark = self.committed.watermark_us
        return float("nan") if mark is None else max(0.0, (now_us - mark) / 1e6)

    def report(self, batch: Batch, chunk_times_us: list[int], *, now_us: int, took_s: float) -> None:
        """Count a committed batch in the metrics."""
        metrics.LAST_SUCCESS.set(now_us / 1e6)
        metrics.FLUSH_SECONDS.observe(took_s)
        metrics.FLUSH_ROWS.observe(batch.row_count)
        for timestamp_us in chunk_times_us:
            metrics.VISIBLE_SECONDS.observe(max(0.0, (now_us - timestamp_us) / 1e6))
        tally, before = self.ledger.tally, self.reported
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
        self.reported = tally.copy()
        if chunk_times_us:
            log.debug(
                "flush_committed",
                extra={
                    "rows": batch.row_count,
                    "offset": batch.position.next_offset,
                    "seconds": round(took_s, 4),
                },
            )

    async def forget(self) -> None:
        """The partition is not ours any more: take its gauges away, and leave the cache."""
        for gauge in metrics.OF_PARTITION:
            with suppress(KeyError):
                gauge.remove(str(self.claim.partition))
        log.info("partition_released", extra={"stream": self.claim.stream, "partition": self.claim.partition})
        if self.cache is not None:
            await self.cache.close()


async def recover(
    sink: Sink,
    stream: str,
    *,
    rules: Rules,
    keep_accepted: bool,
    new_log: NewLog | None,
    redis_url: str | None,
    steady_us: int,
    merge_ids_at_us: int,
) -> Owned:
    """Claim the partition and build its ledger from the database. Raises what `Sink.claim` raises."""
    claim, position = await sink.claim(stream)
    ledger = Ledger(
        rules,
        position,
        keep_accepted=keep_accepted,
        new_log=new_log,
        decoding=metrics.DECODE_SECONDS.time(),
    )
    ledger.adopt(await sink.resident_rows(claim, ledger.resident_from()))
    high = await sink.high_days(claim, from_day=ledger.high_days_from(), sum_least=ledger.high_sum_least)
    ledger.recover_high_days(high)
    from_hour = ledger.live_hours_from()
    ledger.expect_ids(await sink.live_ids_count(claim, from_hour=from_hour))
    async for hour, segment in sink.live_ids(claim, from_hour=from_hour):
        ledger.recover_ids(hour, segment)
    cache = None
    if redis_url:
        known = await sink.org_models(claim)
        cache = FreshnessCache(redis_url, partition=claim.partition, known=known)
    owned = Owned(
        claim=claim,
        ledger=ledger,
        committed=replace(position),
        skips=await sink.skips(claim, from_offset=position.next_offset),
        suspicion=Suspicion.after(claim, position, steady_us=steady_us),
        cache=cache,
        merge_ids_at_us=merge_ids_at_us,
    )
    log.info(
        "partition_recovered",
        extra={
            "stream": stream,
            "partition": claim.partition,
            "epoch": claim.epoch,
            "offset": position.next_offset,
            "ids": ledger.remembered_ids,
        },
    )
    return owned
