"""What tracing is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.common.settings import Values, of, required
from pipeline.common.traces.forms import Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesConfig:
    """Where spans go, which ones, and how many may wait. ``headers`` hold credentials: never log them."""

    endpoint: str = required("OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol: str = of("OTEL_EXPORTER_OTLP_PROTOCOL")
    headers: Pairs | None = of("OTEL_EXPORTER_OTLP_HEADERS")
    timeout_s: float = of("OTEL_EXPORTER_OTLP_TIMEOUT")
    certificate: Path | None = of("OTEL_EXPORTER_OTLP_CERTIFICATE")
    service_name: str | None = of("OTEL_SERVICE_NAME")
    resource: Pairs | None = of("OTEL_RESOURCE_ATTRIBUTES")
    sampler: str = of("OTEL_TRACES_SAMPLER")
    ratio: float = of("OTEL_TRACES_SAMPLER_ARG")
    queue_spans_max: int = of("OTEL_BSP_MAX_QUEUE_SIZE")
    delay_s: float = of("OTEL_BSP_SCHEDULE_DELAY")


def traces_config(values: Values) -> TracesConfig | None:
    """The configuration of tracing; None: it is off."""
    if values["OTEL_EXPORTER_OTLP_ENDPOINT"] is None or values["OTEL_SDK_DISABLED"]:
        return None
    return values.make(TracesConfig)
