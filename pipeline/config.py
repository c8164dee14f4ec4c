"""The configuration of each part of the pipeline: frozen dataclasses, whose fields are settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common import day_zones, settings
from pipeline.common.object_store import ObjectStore
from pipeline.common.settings import of, required
from pipeline.common.traces.config import TracesConfig, traces_config
from pipeline.core.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """The address of the stream, and how to declare it. ``url`` holds credentials: never log it."""

    url: str = required("RABBITMQ_URL")
    stream: str = required("RABBITMQ_STREAM")
    consumer: str = required("RABBITMQ_CONSUMER")
    ca_file: str | None = of("RABBITMQ_CA_FILE")
    max_age_s: float = of("STREAM_MAX_AGE")
    max_bytes: int = of("STREAM_MAX_BYTES")
    heartbeat_s: int = of("RABBITMQ_HEARTBEAT")
    address: str = of("RABBITMQ_ADDRESS")
    """Dial the address by which a node calls itself, or (``given``) only the addresses of ``url``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushConfig:
    """The times of flushes, and the bounds at which a worker stops reading."""

    interval_s: float = of("FLUSH_INTERVAL")
    events_max: int = of("FLUSH_EVENTS_MAX")
    buffer_events_max: int = of("BUFFER_EVENTS_MAX")
    buffer_bytes_max: int = of("BUFFER_BYTES_MAX")
    dirty_rows_max: int = of("DIRTY_ROWS_MAX")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """How long rows of each kind are kept."""

    minute_s: float = of("RETENTION_MINUTE")
    rollup_s: float = of("RETENTION_ROLLUP")
    dead_letters_s: float = of("RETENTION_DEAD_LETTERS")
    audit_s: float = of("RETENTION_AUDIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveConfig:
    """The address of the archive, and its limits; ``store`` is None for a folder."""

    url: str = required("ARCHIVE_URL")
    interval_s: float = of("ARCHIVE_INTERVAL")
    outbox_bytes_max: int = of("ARCHIVE_OUTBOX_MAX")
    retention_s: float = of("RETENTION_ARCHIVE")
    store: ObjectStore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of ``spendstream worker``. No log may show a text of ``secrets``."""

    stream: StreamConfig
    rules: Rules
    flush: FlushConfig
    retention: RetentionConfig
    archive: ArchiveConfig | None = None
    service_name: str = required("SERVICE_NAME")
    log_level: str = required("LOG_LEVEL")
    database_url: str = required("DATABASE_URL")
    redis_url: str | None = required("REDIS_URL")
    metrics_hosts: tuple[str, ...] = required("METRICS_HOST")
    metrics_port: int = required("METRICS_PORT")
    other_ports: tuple[int, ...] = ()
    """The ports of API, collector and exporter by the same environment: they may run on this host, too."""
    dedupe_folder: Path | None = of("DEDUPE_FOLDER")
    traces: TracesConfig | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def load(environment: Mapping[str, str]) -> Config:
    """Build the worker's configuration. Raises `settings.ConfigError` with every fault."""
    values = settings.read(environment, required=("DATABASE_URL", "RABBITMQ_URL"), sends_traces=True)
    return values.make(
        Config,
        stream=stream_config(values),
        rules=rules(values),
        flush=values.make(FlushConfig),
        retention=values.make(RetentionConfig),
        archive=archive_config(values),
        other_ports=(values["HTTP_PORT"], values["COLLECTOR_PORT"], values["EXPORT_METRICS_PORT"] or 0),
        traces=traces_config(values),
        secrets=values.secrets(),
    )


def rules(values: settings.Values) -> Rules:
    """The core's rules, from the settings that decide figures. The core itself knows no settings."""
    return Rules(
        allowed_lateness_us=round(values["ALLOWED_LATENESS"] * 1e6),
        dedupe_window_us=round(values["DEDUPE_WINDOW"] * 1e6),
        models_per_org_hour_max=values["MODELS_PER_ORG_HOUR_MAX"],
        clients_per_org_hour_max=values["CLIENTS_PER_ORG_HOUR_MAX"],
        dimensions=values["DIMENSIONS"],
        split_hours=day_zones.split_hours(values["DAY_ZONES"]),
        values_per_org_hour_max=values["VALUES_PER_ORG_HOUR_MAX"],
        context_tiers=values["CONTEXT_TIERS"],
        dedupe_ids_max=values["DEDUPE_IDS_MAX"],
        dead_letter_bodies_max=values["DEAD_LETTER_BODIES_MAX"],
        dead_letter_bytes_max=values["DEAD_LETTER_BYTES_MAX"],
    )


def archive_config(values: settings.Values) -> ArchiveConfig | None:
    """The configuration of the archive alone; None if there is no archive."""
    if values["ARCHIVE_URL"] is None:
        return None
    in_bucket = values["ARCHIVE_URL"].startswith("s3://")
    return values.make(ArchiveConfig, store=values.make(ObjectStore) if in_bucket else None)


def stream_config(values: settings.Values) -> StreamConfig:
    """The configuration of the stream alone, for commands that need nothing else."""
    return values.make(StreamConfig)
