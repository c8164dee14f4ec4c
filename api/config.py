"""What each part of the API is told: frozen dataclasses, whose fields are settings."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.common import settings
from pipeline.common.access.config import AuthConfig, auth_config
from pipeline.common.object_store import ObjectStore
from pipeline.common.settings import of, required
from pipeline.common.traces.config import TracesConfig, traces_config


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """``url`` holds credentials: never log it.

    ``timeout_s`` bounds the wait for a connection and for a sign of life; a query that is merely slow may
    take ``statement_timeout_s``. A role that may write rollups is refused unless ``allow_privileged``.
    """

    url: str = required("DATABASE_URL")
    service_name: str = "spendstream-api"
    pool_size: int = of("API_POOL_SIZE")
    timeout_s: float = of("API_DATABASE_TIMEOUT")
    statement_timeout_s: float = of("API_STATEMENT_TIMEOUT")
    allow_privileged: bool = of("API_ALLOW_PRIVILEGED")


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessConfig:
    """The lags at which figures stop being fresh, and then stale."""

    fresh_lag_s: float = of("FRESH_LAG")
    stale_lag_s: float = of("STALE_LAG")


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeConfig:
    """What decides which ranges can be answered, and when a bucket is final."""

    retention_minute_s: float = of("RETENTION_MINUTE")
    retention_rollup_s: float = of("RETENTION_ROLLUP")
    dedupe_window_s: float = of("DEDUPE_WINDOW")
    day_zones: tuple[str, ...] = of("DAY_ZONES")
    months_max: int = of("API_MONTHS_MAX")
    points_max: int = of("API_POINTS_MAX")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """Bounds of server-sent events. A write that takes longer than ``slow_s`` ends the connection."""

    per_org_max: int = of("LIVE_PER_ORG_MAX")
    listeners_max: int = of("LIVE_MAX")
    duration_s: float = of("LIVE_DURATION")
    slow_s: float = of("LIVE_SLOW")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """The bucket of exports."""

    store: ObjectStore
    bucket: str = required("S3_BUCKET")
    encryption: str = of("S3_ENCRYPTION")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """``s3`` or ``folder`` says where files go; without either there are no exports."""

    s3: S3Config | None = None
    folder: str | None = of("EXPORT_DIR")
    in_process: bool = of("EXPORT_IN_API")
    lease_s: float = of("EXPORT_LEASE")
    retention_s: float = of("EXPORT_RETENTION")
    open_max: int = of("EXPORT_OPEN_MAX")
    statement_timeout_s: float = of("EXPORT_STATEMENT_TIMEOUT")
    provider: str = of("EXPORT_PROVIDER")
    metrics_hosts: tuple[str, ...] = of("METRICS_HOST")
    metrics_port: int | None = of("EXPORT_METRICS_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """How webhooks are kept and called. Without ``keys`` there are none."""

    keys: tuple[str, ...] | None = of("WEBHOOK_KEY")
    allow_private: bool = of("WEBHOOK_ALLOW_PRIVATE")
    timeout_s: float = of("WEBHOOK_TIMEOUT")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsConfig:
    """The page of ``spendstream alerts``."""

    metrics_hosts: tuple[str, ...] = of("METRICS_HOST")
    metrics_port: int | None = of("ALERTS_METRICS_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything ``python -m api`` is built from. ``secrets`` are what no log may show."""

    database: DatabaseConfig
    auth: AuthConfig
    freshness: FreshnessConfig
    ranges: RangeConfig
    live: LiveConfig
    exports: ExportConfig
    alerts: AlertsConfig
    webhooks: WebhookConfig
    cursor_secret: bytes
    log_level: str = required("LOG_LEVEL")
    hosts: tuple[str, ...] = required("HTTP_HOST")
    port: int = required("HTTP_PORT")
    cors_origins: tuple[str, ...] = required("CORS_ORIGINS")
    redis_url: str | None = required("REDIS_URL")
    rate_limit: int = required("API_RATE_LIMIT")
    unknown_rate_limit: int = required("API_UNKNOWN_RATE_LIMIT")
    questions_max: int = required("API_QUESTIONS_MAX")
    request_bytes_max: int = required("API_REQUEST_BYTES_MAX")
    stream_max_age_s: float = required("STREAM_MAX_AGE")
    traces: TracesConfig | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def alerts_name(self) -> str:
        """What ``spendstream alerts`` is called in logs, in traces and in the database's list of sessions."""
        return self.database.service_name.removesuffix("-api") + "-alerts"


def load(environment: Mapping[str, str]) -> Config:
    """Build the API's configuration. Raises `settings.ConfigError` with every fault."""
    values = settings.read(environment, required=("DATABASE_URL",), sends_traces=True)
    secret = values["CURSOR_SECRET"]
    s3 = values.make(S3Config, store=values.make(ObjectStore)) if values["S3_BUCKET"] else None
    return values.make(
        Config,
        cursor_secret=secret.encode() if secret else secrets.token_bytes(32),
        database=values.make(DatabaseConfig, service_name=f"{values['SERVICE_NAME']}-api"),
        auth=auth_config(values),
        freshness=values.make(FreshnessConfig),
        ranges=values.make(RangeConfig),
        live=values.make(LiveConfig),
        exports=values.make(ExportConfig, s3=s3),
        alerts=values.make(AlertsConfig),
        webhooks=values.make(WebhookConfig),
        traces=traces_config(values),
        secrets=values.secrets(),
    )
