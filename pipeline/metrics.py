"""The worker's Prometheus metrics. Labels are bounded: partitions, outcomes and reasons, never a tenant."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from pipeline.common import process_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY: Final = CollectorRegistry()
process_metrics.show(REGISTRY)

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

FRESHNESS_LAG: Final = Gauge(
    "analytics_freshness_lag_seconds",
    "Now less the committed watermark; grows while nothing is committed.",
    ["partition"],
    registry=REGISTRY,
)
EVENTS: Final = Counter(
    "analytics_ingestion_events",
    "Committed events by outcome: accepted, duplicate, or the reason of a rejection.",
    ["outcome"],
    registry=REGISTRY,
)
CONFLICTS: Final = Counter(
    "analytics_ingestion_dedupe_conflicts",
    "Events rejected because their id was counted before with other contents.",
    registry=REGISTRY,
)
REPLAYED: Final = Counter(
    "analytics_dead_letters_replayed",
    "Dead letters that were replayed, by what became of them; they count in no other outcome again.",
    ["outcome"],
    registry=REGISTRY,
)
LATE: Final = Counter(
    "analytics_ingestion_late_events",
    "Accepted events behind the watermark of their minute.",
    registry=REGISTRY,
)
CAPPED_CLIENTS: Final = Counter(
    "analytics_capped_client_events",
    "Events counted under no client's own name because their org's hour had too many clients.",
    registry=REGISTRY,
)
CAPPED_MODELS: Final = Counter(
    "analytics_capped_model_events",
    "Events counted under no model's own id because their org's hour had too many models.",
    registry=REGISTRY,
)
CAPPED_VALUES: Final = Counter(
    "analytics_capped_value_events",
    "Events counted under no value's own name: their org's hour had too many, or the value was too long.",
    registry=REGISTRY,
)
LAST_SUCCESS: Final = Gauge(
    "analytics_rollup_last_success_timestamp_seconds", "When the last flush was committed.", registry=REGISTRY
)
OFFSET_LAG: Final = Gauge(
    "analytics_stream_offset_lag",
    "Offsets that the broker has and we have not read.",
    ["partition"],
    registry=REGISTRY,
)
RETAINED: Final = Gauge(
    "analytics_stream_retained_offsets",
    "Offsets that the stream still has before the next one that we read. At 0 its retention deletes records"
    " that we have not read.",
    ["partition"],
    registry=REGISTRY,
)
WITHHELD: Final = Gauge(
    "analytics_stream_credit_withheld",
    "Chunks that were taken in and whose credit waits for room. While it waits, the broker sends no more.",
    ["partition"],
    registry=REGISTRY,
)
OWNED: Final = Gauge(
    "analytics_partition_owned",
    "1 where this worker owns the partition of this stream, else 0. Exactly one worker should.",
    ["stream"],
    registry=REGISTRY,
)
HOUR_DELAY: Final = Histogram(
    "analytics_hour_complete_delay_seconds",
    "From the end of an hour to the commit after which it is complete: the watermark has passed its end.",
    buckets=(5, 10, 11, 12, 15, 20, 30, 60, 120, 180, 300, 600, 1800, 3600, 14400, 86400),
    registry=REGISTRY,
)
UNPRICED: Final = Gauge(
    "analytics_unpriced_calls",
    "Calls of the 24 whole hours before the last round of maintenance whose cost neither the price book nor"
    " the producer knows, by reason: unnamed (no provider or modelName), or no_price.",
    ["reason"],
    registry=REGISTRY,
)
FLUSH_SECONDS: Final = Histogram(
    "analytics_flush_duration_seconds",
    "A flush from its first row to its commit, retries included.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
FLUSH_ROWS: Final = Histogram(
    "analytics_flush_rows",
    "Rollup rows written by a flush.",
    buckets=(0, 10, 100, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000),
    registry=REGISTRY,
)
FLUSH_FAILURES: Final = Counter(
    "analytics_flush_failures",
    "Flush attempts that failed and were repeated, by kind of trouble.",
    ["kind"],
    registry=REGISTRY,
)
FOLD_SECONDS: Final = Histogram(
    "analytics_fold_duration_seconds",
    "Taking in one chunk on the event loop: reading, deduplicating and adding up, once enough events wait.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
DECODE_SECONDS: Final = Histogram(
    "analytics_decode_duration_seconds",
    "Reading the JSON of some thousand events (or of those there are at a flush) into columns, a part of"
    " folding or of the flush.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, *_SECONDS[:6]),
    registry=REGISTRY,
)
VISIBLE_SECONDS: Final = Histogram(
    "analytics_event_to_visible_seconds",
    "From the broker's timestamp of a chunk to the commit that made it visible.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
BUFFERED_EVENTS: Final = Gauge(
    "analytics_buffered_events", "Events read and not yet in a flush.", ["partition"], registry=REGISTRY
)
DIRTY_ROWS: Final = Gauge(
    "analytics_dirty_rows", "The most rows that can be waiting for a flush.", ["partition"], registry=REGISTRY
)
REMEMBERED_IDS: Final = Gauge(
    "analytics_dedupe_ids", "Event ids held in memory for dedupe.", ["partition"], registry=REGISTRY
)
LEDGER_BYTES: Final = Gauge(
    "analytics_ledger_memory_bytes",
    "Memory of resident rows, sketches, ids and names.",
    ["partition"],
    registry=REGISTRY,
)
REDIS_FAILURES: Final = Counter(
    "analytics_freshness_cache_failures",
    "Writes to Redis that failed; the database answers instead.",
    registry=REGISTRY,
)

ARCHIVE_OUTBOX_EVENTS: Final = Gauge(
    "analytics_archive_outbox_events",
    "Events in the database that wait for the archive, of all partitions.",
    registry=REGISTRY,
)
ARCHIVE_OUTBOX_BYTES: Final = Gauge(
    "analytics_archive_outbox_bytes",
    "Bytes of the events that wait for the archive. At ARCHIVE_OUTBOX_MAX further events are left out.",
    registry=REGISTRY,
)
ARCHIVE_OUTBOX_AGE: Final = Gauge(
    "analytics_archive_outbox_age_seconds",
    "How long the oldest event has waited for the archive.",
    registry=REGISTRY,
)
ARCHIVE_FILES: Final = Counter(
    "analytics_archive_files",
    "Files that were written and entered into analytics.archive_files.",
    registry=REGISTRY,
)
ARCHIVE_FAILURES: Final = Counter(
    "analytics_archive_failures",
    "Rounds of the archiver that failed and will be repeated.",
    registry=REGISTRY,
)
ARCHIVE_LEFT_OUT: Final = Counter(
    "analytics_archive_left_out_events",
    "Events counted and not archived, because the outbox was full.",
    registry=REGISTRY,
)

MAINTENANCE_FAILURES: Final = Counter(
    "analytics_maintenance_failures",
    "Tables whose rows past their retention could not be dropped, by table; empty: the whole round failed.",
    ["table"],
    registry=REGISTRY,
)
OF_PARTITION: Final = (
    FRESHNESS_LAG,
    OFFSET_LAG,
    RETAINED,
    WITHHELD,
    BUFFERED_EVENTS,
    DIRTY_ROWS,
    REMEMBERED_IDS,
    LEDGER_BYTES,
)
"""The gauges that a worker removes when it lets a partition go: the next owner shows them then."""
