"""What each part of the API is told: frozen dataclasses made from ``pipeline.common.settings``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from pipeline.common import settings
from pipeline.common.object_store import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """``url`` holds credentials: never log it.

    ``timeout_s`` bounds the wait for a connection and for a sign of life; a query that is merely slow may
    take ``statement_timeout_s``. A role that may write rollups is refused unless ``allow_privileged``.
    """

    url: str
    service_name: str = "spendstream-api"
    pool_size: int = 10
    timeout_s: float = 0.5
    statement_timeout_s: float = 10.0
    allow_privileged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Exactly one of ``secret`` (HS256), ``jwks_url`` and ``jwks_file`` is set."""

    issuer: str
    audience: str
    secret: str | None = None
    jwks_url: str | None = None
    jwks_file: str | None = None
    jwks_cache_s: float = 600.0
    leeway_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """``mode`` is none, gateway or jwt; ``tokens`` is set for jwt, ``key_secret`` where keys are in use."""

    mode: str = "none"
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    tokens: TokenConfig | None = None
    key_secret: bytes | None = None
    key_cache_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessConfig:
    fresh_lag_s: float = 60.0
    stale_lag_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeConfig:
    """What decides which ranges can be answered, and when a bucket is final."""

    retention_minute_s: float = 14 * 86400.0
    retention_rollup_s: float = 400 * 86400.0
    dedupe_window_s: float = 86400.0
    months_max: int = 13
    points_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """Bounds of server-sent events. A write that takes longer than ``slow_s`` ends the connection."""

    per_org_max: int = 20
    listeners_max: int = 1000
    duration_s: float = 900.0
    slow_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    store: ObjectStore
    bucket: str
    encrypt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """``s3`` or ``folder`` says where files go; without either there are no exports."""

    s3: S3Config | None = None
    folder: str | None = None
    in_process: bool = True
    lease_s: float = 60.0
    retention_s: float = 7 * 86400.0
    open_max: int = 10
    statement_timeout_s: float = 900.0
    provider: str = "Spendstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything ``python -m api`` is built from. ``secrets`` are what no log may show."""

    log_level: str
    host: str
    port: int
    redis_url: str | None
    cursor_secret: bytes
    database: DatabaseConfig
    auth: AuthConfig
    freshness: FreshnessConfig
    ranges: RangeConfig
    live: LiveConfig
    exports: ExportConfig
    rate_limit: int
    unknown_rate_limit: int
    questions_max: int
    request_bytes_max: int
    secrets: tuple[str, ...] = field(default=(), repr=False)


def load(environment: Mapping[str, str]) -> Config:
    """Build the API's configuration. Raises `settings.ConfigError` with every fault."""
    v = settings.read(environment, required=("DATABASE_URL",))
    secret = v["CURSOR_SECRET"]
    return Config(
        log_level=v["LOG_LEVEL"],
        host=v["HTTP_HOST"],
        port=v["HTTP_PORT"],
        redis_url=v["REDIS_URL"],
        cursor_secret=secret.encode() if secret else secrets.token_bytes(32),
        database=DatabaseConfig(
            url=v["DATABASE_URL"],
            service_name=f"{v['SERVICE_NAME']}-api",
            pool_size=v["API_POOL_SIZE"],
            timeout_s=v["API_DATABASE_TIMEOUT"],
            statement_timeout_s=v["API_STATEMENT_TIMEOUT"],
            allow_privileged=v["API_ALLOW_PRIVILEGED"],
        ),
        auth=AuthConfig(
            mode=v["AUTH_MODE"],
            trusted_proxies=tuple(
                ip_network(part.strip()) for part in v["TRUSTED_PROXIES"].split(",") if part.strip()
            ),
            tokens=TokenConfig(
                issuer=v["JWT_ISSUER"],
                audience=v["JWT_AUDIENCE"],
                secret=v["JWT_SECRET"],
                jwks_url=v["JWT_JWKS_URL"],
                jwks_file=v["JWT_JWKS_FILE"],
                jwks_cache_s=v["JWT_JWKS_CACHE"],
                leeway_s=v["JWT_LEEWAY"],
            )
            if v["AUTH_MODE"] == "jwt"
            else None,
            key_secret=v["API_KEY_SECRET"].encode() if v["API_KEY_SECRET"] else None,
            key_cache_s=v["API_KEY_CACHE"],
        ),
        freshness=FreshnessConfig(fresh_lag_s=v["FRESH_LAG"], stale_lag_s=v["STALE_LAG"]),
        ranges=RangeConfig(
            retention_minute_s=v["RETENTION_MINUTE"],
            retention_rollup_s=v["RETENTION_ROLLUP"],
            dedupe_window_s=v["DEDUPE_WINDOW"],
            months_max=v["API_MONTHS_MAX"],
            points_max=v["API_POINTS_MAX"],
        ),
        rate_limit=v["API_RATE_LIMIT"],
        unknown_rate_limit=v["API_UNKNOWN_RATE_LIMIT"],
        questions_max=v["API_QUESTIONS_MAX"],
        request_bytes_max=v["API_REQUEST_BYTES_MAX"],
        secrets=v.secrets(),
        live=LiveConfig(
            per_org_max=v["LIVE_PER_ORG_MAX"],
            listeners_max=v["LIVE_MAX"],
            duration_s=v["LIVE_DURATION"],
            slow_s=v["LIVE_SLOW"],
        ),
        exports=ExportConfig(
            s3=S3Config(
                store=ObjectStore.of(v),
                bucket=v["S3_BUCKET"],
                encrypt=v["S3_ENCRYPTION"] == "aes256",
            )
            if v["S3_BUCKET"]
            else None,
            folder=v["EXPORT_DIR"],
            in_process=v["EXPORT_IN_API"],
            lease_s=v["EXPORT_LEASE"],
            retention_s=v["EXPORT_RETENTION"],
            open_max=v["EXPORT_OPEN_MAX"],
            statement_timeout_s=v["EXPORT_STATEMENT_TIMEOUT"],
            provider=v["EXPORT_PROVIDER"],
        ),
    )
