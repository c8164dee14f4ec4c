"""What each part of the collector is told: frozen dataclasses, whose fields are settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.common import settings
from pipeline.common.access.config import AuthConfig, auth_config
from pipeline.common.settings import of, required
from pipeline.common.traces.config import TracesConfig, traces_config
from pipeline.config import StreamConfig, stream_config


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyBounds:
    """The bounds of one body. Beyond them the sender gets a 408 or a 413."""

    body_bytes_max: int = of("COLLECTOR_BODY_BYTES_MAX")
    unpacked_bytes_max: int = of("COLLECTOR_UNPACKED_BYTES_MAX")
    """Also the bound of all admitted events of one body: a short body can say the same of many events."""
    events_max: int = of("COLLECTOR_EVENTS_MAX")
    timeout_s: float = of("COLLECTOR_BODY_TIMEOUT")
    pace_bytes: int = of("COLLECTOR_BODY_PACE")
    """Bytes a second that a body must have, after its first second."""


SPOOL_NEARLY_FULL: Final = 0.8
"""From this share of its bound on, a spool is not as it should be: readiness and the doctor say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolConfig:
    """The folder of the spool, when events go there, and how many bytes it may hold."""

    folder: Path = required("COLLECTOR_SPOOL")
    after_s: float = of("COLLECTOR_SPOOL_AFTER")
    bytes_max: int = of("COLLECTOR_SPOOL_BYTES_MAX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything ``spendstream collector`` is built from. ``secrets`` are what no log may show.

    ``database_url`` None: there are no API keys, and no names of orgs are registered.
    """

    stream: StreamConfig
    auth: AuthConfig
    bounds: BodyBounds
    spool: SpoolConfig | None = None
    service_name: str = required("SERVICE_NAME")
    log_level: str = required("LOG_LEVEL")
    hosts: tuple[str, ...] = required("COLLECTOR_HOST")
    port: int = required("COLLECTOR_PORT")
    confirm_s: float = of("COLLECTOR_CONFIRM_TIMEOUT")
    memory_bytes_max: int = of("COLLECTOR_MEMORY_MAX")
    connections_max: int = of("COLLECTOR_CONNECTIONS_MAX")
    rate_limit: int = of("COLLECTOR_RATE_LIMIT")
    unknown_rate_limit: int = of("API_UNKNOWN_RATE_LIMIT")
    cors_origins: tuple[str, ...] = of("CORS_ORIGINS")
    redis_url: str | None = of("REDIS_URL")
    database_url: str | None = of("DATABASE_URL")
    database_timeout_s: float = of("API_DATABASE_TIMEOUT")
    traces: TracesConfig | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def load(environment: Mapping[str, str]) -> Config:
    """Build the collector's configuration. Raises `settings.ConfigError` with every fault."""
    values = settings.read(environment, required=("RABBITMQ_URL",), sends_traces=True)
    return values.make(
        Config,
        stream=stream_config(values),
        auth=auth_config(values),
        bounds=values.make(BodyBounds),
        spool=values.make(SpoolConfig) if values["COLLECTOR_SPOOL"] is not None else None,
        service_name=f"{values['SERVICE_NAME']}-collector",
        traces=traces_config(values),
        secrets=values.secrets(),
    )
