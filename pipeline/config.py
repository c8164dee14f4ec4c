"""What each component of the pipeline is told: frozen dataclasses made from ``pipeline.common.settings``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common import settings
from pipeline.common.object_store import ObjectStore
from pipeline.core.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Where the stream is and how to declare it. ``url`` holds credentials: never log it."""

    url: str
    stream: str
    consumer: str
    ca_file: str | None = None
    max_age_s: float = 7 * 86400
    max_bytes: int = 20 * 2**30
    heartbeat_s: int = 10
    address: str = "advertised"
    """Dial what a node calls itself, or (``given``) the addresses of ``url`` alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushConfig:
    """When a flush happens, and at which bounds reading stops."""

    interval_s: float = 1.0
    events_max: int = 200_000
    buffer_events_max: int = 2_000_000
    buffer_bytes_max: int = 256 * 2**20
    dirty_rows_max: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    minute_s: float
    rollup_s: float
    dead_letters_s: float
    audit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveConfig:
    """Where the archive is; ``store`` is None for a folder."""

    url: str
    interval_s: float = 300.0
    outbox_bytes_max: int = 10 * 2**30
    retention_s: float = 800 * 86400.0
    store: ObjectStore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything ``spendstream worker`` is built from. ``secrets`` are what no log may show."""

    service_name: str
    log_level: str
    database_url: str
    redis_url: str | None
    metrics_host: str
    metrics_port: int
    stream: StreamConfig
    rules: Rules
    flush: FlushConfig
    retention: RetentionConfig
    dedupe_folder: Path | None = None
    archive: ArchiveConfig | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def load(environment: Mapping[str, str]) -> Config:
    """Build the worker's configuration. Raises `settings.ConfigError` with every fault."""
    v = settings.read(environment, required=("DATABASE_URL", "RABBITMQ_URL"))
    return Config(
        service_name=v["SERVICE_NAME"],
        log_level=v["LOG_LEVEL"],
        database_url=v["DATABASE_URL"],
        redis_url=v["REDIS_URL"],
        metrics_host=v["METRICS_HOST"],
        metrics_port=v["METRICS_PORT"],
        stream=stream_config(v),
        rules=Rules(
            allowed_lateness_us=round(v["ALLOWED_LATENESS"] * 1e6),
            dedupe_window_us=round(v["DEDUPE_WINDOW"] * 1e6),
            models_per_org_hour_max=v["MODELS_PER_ORG_HOUR_MAX"],
            clients_per_org_hour_max=v["CLIENTS_PER_ORG_HOUR_MAX"],
            dedupe_ids_max=v["DEDUPE_IDS_MAX"],
            dead_letter_bodies_max=v["DEAD_LETTER_BODIES_MAX"],
            dead_letter_bytes_max=v["DEAD_LETTER_BYTES_MAX"],
        ),
        flush=FlushConfig(
            interval_s=v["FLUSH_INTERVAL"],
            events_max=v["FLUSH_EVENTS_MAX"],
            buffer_events_max=v["BUFFER_EVENTS_MAX"],
            buffer_bytes_max=v["BUFFER_BYTES_MAX"],
            dirty_rows_max=v["DIRTY_ROWS_MAX"],
        ),
        retention=RetentionConfig(
            minute_s=v["RETENTION_MINUTE"],
            rollup_s=v["RETENTION_ROLLUP"],
            dead_letters_s=v["RETENTION_DEAD_LETTERS"],
            audit_s=v["RETENTION_AUDIT"],
        ),
        dedupe_folder=v["DEDUPE_FOLDER"],
        archive=archive_config(v),
        secrets=v.secrets(),
    )


def archive_config(v: settings.Values) -> ArchiveConfig | None:
    """The archive's part alone; None where there is no archive."""
    if v["ARCHIVE_URL"] is None:
        return None
    return ArchiveConfig(
        url=v["ARCHIVE_URL"],
        interval_s=v["ARCHIVE_INTERVAL"],
        outbox_bytes_max=v["ARCHIVE_OUTBOX_MAX"],
        retention_s=v["RETENTION_ARCHIVE"],
        store=ObjectStore.of(v) if v["ARCHIVE_URL"].startswith("s3://") else None,
    )


def stream_config(v: settings.Values) -> StreamConfig:
    """The stream's part alone, for commands that only publish."""
    return StreamConfig(
        url=v["RABBITMQ_URL"],
        stream=v["RABBITMQ_STREAM"],
        consumer=v["RABBITMQ_CONSUMER"],
        ca_file=v["RABBITMQ_CA_FILE"],
        max_age_s=v["STREAM_MAX_AGE"],
        max_bytes=v["STREAM_MAX_BYTES"],
        heartbeat_s=v["RABBITMQ_HEARTBEAT"],
        address=v["RABBITMQ_ADDRESS"],
    )
