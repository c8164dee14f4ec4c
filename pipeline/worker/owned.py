"""The state that a worker keeps while it owns a partition. The state is dropped when the ownership ends.

`recover` makes an `Owned` from the database, and each step may rely on the steps before it. First comes the
claim, then the rows, the ids, and last the suspicions and skips that the first record may need.
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
from pipeline.core.replay import OUTCOMES
from pipeline.core.rules import REASONS, Rules
from pipeline.core.watermark import hours_passed
from pipeline.sink import Claim, Sink
from pipeline.worker.freshness_cache import FreshnessCache

log = logging.getLogger(__name__)

for _outcome in ("accepted", "duplicate", *REASONS):  # shown from the start, at 0
    metrics.EVENTS.labels(_outcome)
for _outcome in OUTCOMES:
    metrics.REPLAYED.labels(_outcome)

WELL_US: Final = 30_000_000
"""After 30 s with a partition, a worker counts as past the record that made an earlier worker crash."""


@dataclass(slots=True, kw_only=True)
class Suspicion:
    """Which records may have crashed earlier workers, and whether this worker has passed them."""

    care: Care | None
    """How to take in the suspected records; None: nothing is suspected."""
    tried_to: int
    """The offset at which the part that is being tried ends."""
    well_at_us: int
    """From this time of the steady clock on, a flush clears the count of crashes."""

    @classmethod
    def after(cls, claim: Claim, position: Position, *, steady_us: int) -> Suspicion:
        """The suspicion after the crashes that the claim counts; the log names the records and the remedy."""
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
        # The workers may have crashed at different records, or been killed: no record is suspected yet.
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
    """The claim, the ledger that was recovered under the claim, and the state beside the ledger."""

    claim: Claim
    ledger: Ledger
    committed: Position
    """The position of the last committed flush."""
    suspicion: Suspicion
    skips: Mapping[int, str]
    """The reason of each record that an operator has skipped, by offset."""
    merge_ids_at_us: int
    cache: FreshnessCache | None = None
    letters_wait: bool = False
    """Did the last flush find dead letters that wait for a replay?"""
    chunk_times_us: list[int] = field(default_factory=list)
    """The broker time of each chunk that waits for a flush."""
    reported: Tally = field(default_factory=Tally)
    """The totals that the metrics have counted already."""
    complete_to_us: int | None = None
    """The watermark up to which the metrics have counted hours as complete."""

    def lag_s(self, now_us: int) -> float:
        """Now less the committed watermark, in seconds; NaN while there is no watermark."""
        mark = self.committed.watermark_us
        return float("nan") if mark is None else max(0.0, (now_us - mark) / 1e6)

    def report(self, batch: Batch, chunk_times_us: list[int], *, now_us: int, took_s: float) -> None:
        """Count a committed batch in the metrics."""
        metrics.LAST_SUCCESS.set(now_us / 1e6)
        metrics.FLUSH_SECONDS.observe(took_s)
        metrics.FLUSH_ROWS.observe(batch.row_count)
        for timestamp_us in chunk_times_us:
            metrics.VISIBLE_SECONDS.observe(max(0.0, (now_us - timestamp_us) / 1e6))
        for end_us in hours_passed(self.complete_to_us, batch.position.watermark_us):
            metrics.HOUR_DELAY.observe(max(0.0, (now_us - end_us) / 1e6))
        self.complete_to_us = batch.position.watermark_us
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
        metrics.CAPPED_VALUES.inc(tally.capped_values - before.capped_values)
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
        """Remove the partition's gauges and leave the cache, because the partition is no longer ours."""
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
    claim, position = await sink.claim(stream, rules.dimensions, rules.split_hours, rules.context_tiers)
    ledger = Ledger(
        rules,
        position,
        keep_accepted=keep_accepted,
        new_log=new_log,
        rate_classes=claim.rate_classes,
        decoding=metrics.DECODE_SECONDS.time(),
    )
    await read_back(sink, claim, ledger)
    cache = None
    if redis_url:
        known = await sink.org_models(claim)
        cache = FreshnessCache(redis_url, partition=claim.partition, known=known)
        await cache.recovered()
    owned = Owned(
        claim=claim,
        ledger=ledger,
        committed=replace(position),
        skips=await sink.skips(claim, from_offset=position.next_offset),
        suspicion=Suspicion.after(claim, position, steady_us=steady_us),
        cache=cache,
        complete_to_us=position.watermark_us,
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


async def read_back(sink: Sink, claim: Claim, ledger: Ledger) -> None:
    """Bring into a new ledger the rows, the nearly full days and the ids that it must know from the start."""
    ledger.adopt(await sink.resident_rows(claim, ledger.resident_from()))
    high = await sink.high_days(claim, from_day=ledger.high_days_from(), sum_least=ledger.high_sum_least)
    ledger.recover_high_days(high)
    from_hour = ledger.live_hours_from()
    ledger.expect_ids(await sink.live_ids_count(claim, from_hour=from_hour))
    async for hour, segment in sink.live_ids(claim, from_hour=from_hour):
        ledger.recover_ids(hour, segment)
