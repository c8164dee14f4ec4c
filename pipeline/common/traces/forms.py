"""The forms of OpenTelemetry's settings, and what has to be installed for them.

Parsers work as in `pipeline.common.parsers`: an error holds no part of the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pipeline.common import parsers

PROTOCOLS: Final = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
"""The protocols of OTLP that we export by, and the module of each."""
SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
REMEDY: Final = "pip install 'spendstream[otel]', or set OTEL_SDK_DISABLED=true"
_SDK: Final = "opentelemetry.sdk.trace"
_PAIRS_MAX: Final = 128
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,200}", re.ASCII | re.IGNORECASE)
Pairs = tuple[tuple[str, str], ...]


def faults(values: Mapping[str, Any]) -> list[str]:
    """What is lacking on this host for a process that would send traces by these settings."""
    endpoint, protocol = values["OTEL_EXPORTER_OTLP_ENDPOINT"], values["OTEL_EXPORTER_OTLP_PROTOCOL"]
    if endpoint is None or protocol is None or values["OTEL_SDK_DISABLED"] is not False:
        return []
    if is_installed(_SDK) and is_installed(PROTOCOLS[protocol]):
        return []
    return [f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and what exports traces is not installed: {REMEDY}"]


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is not there
        return False


# --- forms of settings


def endpoint(text: str) -> str:
    """The URL of a receiver. Credentials belong in the headers."""
    parts = urlsplit(parsers.url("http", "https")(text))
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("expected a URL of a host and perhaps a path, such as http://localhost:4318")
    return text.rstrip("/")


def headers(text: str) -> Pairs:
    """Headers as in ``x-api-key=…,x-team=usage``. The error holds no part of the text."""
    pairs = _pairs(text)
    for name, value in pairs:
        if not _HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ValueError("expected names and values of HTTP headers")
    return tuple((name.lower(), value) for name, value in pairs)


def attributes(text: str) -> Pairs:
    """Attributes as in ``deployment.environment.name=production,service.namespace=usage``."""
    return _pairs(text)


def _pairs(text: str) -> Pairs:
    """Names and values of a list with commas, each percent-decoded, as in the header Baggage."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (one.strip() for one in part.partition("="))
        if not part.strip():
            continue
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise ValueError("expected percent-encoded UTF-8") from None
        if not equals or not name:
            raise ValueError("expected name=value, several with commas between; a comma in a value is %2C")
        found[name] = value
    if len(found) > _PAIRS_MAX:
        raise ValueError(f"expected at most {_PAIRS_MAX} of them")
    return tuple(found.items())


def certificate(text: str) -> Path:
    path = Path(text)
    try:
        has_one = b"-----BEGIN CERTIFICATE-----" in path.read_bytes()
    except OSError:
        has_one = False
    if not has_one:
        raise ValueError("expected a file with certificates in PEM form")
    return path


def ratio(text: str) -> float:
    if not re.fullmatch(r"0(\.\d+)?|1(\.0+)?|\.\d+", text):
        raise ValueError("expected a share from 0 to 1, such as 0.01")
    return float(text)


def milliseconds(least: int, most: int) -> Callable[[str], float]:
    """A parser of whole milliseconds, which is how the specification counts; the result is in seconds."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"expected whole milliseconds from {least} to {most}, without a unit")
        return int(text) / 1000

    return parse


def between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return int(text)

    return parse
