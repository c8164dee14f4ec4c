"""The settings of every process: one table, read from the environment, every fault at once.

It lives here because the pipeline and the API share it and may not import each other. Each of them
turns the values it needs into frozen dataclasses of its own (``pipeline/config.py``,
``api/config.py``). Nothing else reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


class ConfigError(Exception):
    """The environment is not a valid configuration; ``faults`` lists every problem. Exit code 2."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


# --- parsers: text in, value out, ValueError with what is expected -----------------------------

_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float:
    """Seconds from ``500ms``, ``10s``, ``24h``, ``7d`` or a bare number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text.strip())
    if not match:
        raise ValueError("expected a duration such as 500ms, 10s, 5m, 24h or 7d")
    return float(match[1]) * _DURATION_UNITS_S[match[2] or "s"]


def written(seconds: float) -> str:
    """A duration as a person would set it: 3600 is ``1h``, 0.05 is ``50ms``."""
    for unit, length in reversed(_DURATION_UNITS_S.items()):
        count = round(seconds / length)
        if count and abs(count * length - seconds) < 1e-9 * seconds:
            return f"{count}{unit}"
    return f"{seconds:g}s"


_SIZE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size_bytes(text: str) -> int:
    """Bytes from ``65536``, ``64KiB``, ``20GB`` (binary units either way)."""
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)(?:i?b)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError("expected a size such as 64KiB, 512MiB or 20GiB")
    return int(match[1]) * _SIZE_UNITS[match[2].lower()]


def _non_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text.strip()


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise ValueError("expected a port from 0 to 65535")
    return int(text)


def _positive_int(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise ValueError("expected a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise ValueError("expected a whole number")
    return int(text)


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:  # its message may quote a part of the password
            raise ValueError("not a URL; escape / ? # [ ] @ in a password as %2F and so on") from None
        if port == 0:
            raise ValueError("expected a port from 1 to 65535")
        if parts.scheme not in schemes:
            raise ValueError(f"expected a URL with {' or '.join(s + '://' for s in schemes)}")
        return text

    return parse


def _hosts_url(*schemes: str) -> Callable[[str], str]:
    """As libpq reads it: also with several hosts, of which the first that fits is taken."""
    one_host = _url(*schemes)

    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
        except ValueError:
            return one_host(text)  # it says what is wrong
        user, at, hosts = parts.netloc.rpartition("@")
        for host in hosts.split(","):
            one_host(parts._replace(netloc=f"{user}{at}{host}").geturl())
        return text

    return parse


def _database_url(text: str) -> str:
    _hosts_url("postgresql", "postgres")(text)
    # Here, because help, completion and the embedded log need no driver.
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(text)
    except ProgrammingError:  # its message may quote the password
        raise ValueError(
            "libpq does not read it; write a % in a name or password as %25, and behind the ? only parameters"
            " of libpq such as sslmode=require"
        ) from None
    return text


_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_REDIS_PARAMETERS = frozenset({"db", "username", "password", "protocol", *_TLS})


def _redis_url(text: str) -> str:
    _url("redis", "rediss", "unix")(text)
    parameters = dict(parse_qsl(urlsplit(text).query, keep_blank_values=True))
    if unknown := sorted(parameters.keys() - _REDIS_PARAMETERS):
        known = ", ".join(sorted(_REDIS_PARAMETERS))
        raise ValueError(f"{unknown[0]!r} behind the ? is no parameter; there are {known}")
    if not parameters.get("db", "0").isdigit():
        raise ValueError("expected a number as db")
    return text


def _stream_url(text: str) -> str:
    """Several nodes, each with a host of its own; or the folder of the embedded log."""
    _hosts_url("rabbitmq-stream", "rabbitmq-stream+tls", "embedded")(text)
    parts = urlsplit(text)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if parts.scheme != "embedded" and not all(urlsplit(f"//{host}").hostname for host in hosts):
        raise ValueError("expected a host in it, or several with commas between them")
    return text


def _archive_url(text: str) -> str:
    parts = urlsplit(text)
    folder = parts.scheme == "file" and not parts.netloc and parts.path.strip("/")
    bucket = parts.scheme == "s3" and parts.netloc
    if not (folder or bucket) or parts.query or parts.fragment:
        raise ValueError("expected s3://bucket/prefix or file:///folder")
    return text.rstrip("/")


def _folder(text: str) -> Path:
    if not os.path.isabs(text) or not os.access(text, os.W_OK | os.X_OK) or not os.path.isdir(text):
        raise ValueError("expected the absolute path of a folder that exists and can be written")
    return Path(text)


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return text.lower()

    return parse


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def _secret(characters_min: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if len(text) < characters_min:
            raise ValueError(f"expected at least {characters_min} characters")
        return text

    return parse


def _networks(text: str) -> str:
    for part in filter(None, (p.strip() for p in text.split(","))):
        ip_network(part)
    return text


class _OutOfBounds(ValueError):
    """Its text goes on where the setting and its value have been named."""


def _beside(value: float, minimum: float) -> str:
    return "too short" if value < minimum else "too long"


def _span(minimum_s: float, maximum_s: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = duration_s(text)
        if not minimum_s <= value <= maximum_s:
            # A number alone is taken for seconds, which is rarely what was meant where it does not fit.
            size = f"{text.strip()} s" if text.strip()[-1].isdigit() else _beside(value, minimum_s)
            bounds = f"at least {written(minimum_s)}, at most {written(maximum_s)}"
            raise _OutOfBounds(f"is {size}; {bounds}")
        return value

    return parse


def _sized(minimum_bytes: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = size_bytes(text)
        if value < minimum_bytes:
            raise ValueError(f"must be at least {minimum_bytes // 2**20} MiB")
        return value

    return parse


def _whole_seconds(minimum_s: int, maximum_s: int) -> Callable[[str], int]:
    span = _span(minimum_s, maximum_s)

    def parse(text: str) -> int:
        value = span(text)
        if value != int(value):
            raise ValueError("expected whole seconds")
        return int(value)

    return parse


# --- the table ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One environment variable: its parser, its default as text, and what it is for."""

    name: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    secret: bool = False


def _setting(
    name: str, parse: Callable[[str], Any], default: str | None, help: str, secret: bool = False
) -> Setting:
    return Setting(name=name, parse=parse, default=default, help=help, secret=secret)


SETTINGS: tuple[Setting, ...] = (
    _setting("SERVICE_NAME", _non_empty, "spendstream", "name of this process in logs and in the database"),
    _setting("LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info", "least severe level logged"),
    _setting("HTTP_HOST", _non_empty, "127.0.0.1", "address the API listens on"),
    _setting("HTTP_PORT", _port, "8084", "port the API listens on; 0 takes a free one"),
    _setting("METRICS_HOST", _non_empty, "127.0.0.1", "address of the worker's /metrics and health page"),
    _setting(
        "METRICS_PORT", _port, "8085", "port of the worker's /metrics and health page; 0 takes a free one"
    ),
    _setting(
        "DATABASE_URL",
        _database_url,
        None,
        "PostgreSQL 15+, with or without TimescaleDB; after a failover,"
        " `host1,host2/name?target_session_attrs=read-write` finds the new primary",
        True,
    ),
    _setting(
        "REDIS_URL",
        _redis_url,
        None,
        "freshness cache; without it the database answers",
        True,
    ),
    _setting(
        "RABBITMQ_URL",
        _stream_url,
        None,
        "rabbitmq-stream://user:pass@host:5552/vhost, rabbitmq-stream+tls://…, or embedded:///folder;"
        " of several nodes, `host1,host2:5553,host3`, the first that answers is taken",
        True,
    ),
    _setting(
        "RABBITMQ_ADDRESS",
        _choice("advertised", "given"),
        "advertised",
        "the leader of a stream is dialled by the address it advertises; `given`: only by those in"
        " RABBITMQ_URL, again and again until it answers (behind a load balancer or NAT)",
    ),
    _setting("RABBITMQ_STREAM", _non_empty, "analytics.usage.v1", "stream that carries the usage events"),
    _setting("RABBITMQ_CONSUMER", _non_empty, "spendstream", "name of the consumer group"),
    _setting("RABBITMQ_CA_FILE", _non_empty, None, "CA bundle for rabbitmq-stream+tls://; else the system's"),
    _setting(
        "RABBITMQ_HEARTBEAT",
        _whole_seconds(1, 300),
        "10s",
        "sign of life of worker and broker: two missed end a connection, and a frozen worker's partitions are"
        " taken over within three",
    ),
    _setting("STREAM_MAX_AGE", _span(3600, 3650 * 86400), "7d", "retention of a stream that we declare"),
    _setting("STREAM_MAX_BYTES", size_bytes, "20GiB", "size bound of a stream that we declare"),
    _setting("FLUSH_INTERVAL", _span(0.05, 60), "1s", "longest time between two flushes"),
    _setting("FLUSH_EVENTS_MAX", _positive_int, "200000", "buffered events that bring a flush forward"),
    _setting(
        "BUFFER_EVENTS_MAX",
        _positive_int,
        "2000000",
        "buffered events at which reading stops (back-pressure)",
    ),
    _setting(
        "BUFFER_BYTES_MAX",
        _sized(16 * 2**20),
        "256MiB",
        "bytes of buffered bodies and of dead letters at which reading stops (back-pressure)",
    ),
    _setting(
        "DIRTY_ROWS_MAX", _positive_int, "1000000", "unflushed rows at which reading stops (back-pressure)"
    ),
    _setting(
        "ALLOWED_LATENESS", _span(0, 3600), "10s", "how far the watermark stays behind the newest event"
    ),
    _setting(
        "DEDUPE_WINDOW",
        _span(3600, 3650 * 86400),
        "24h",
        "how long an event id is remembered; older events are too_late. Raised later, it brings no ids back:"
        " events from before the former window and a day stay too_late",
    ),
    _setting(
        "DEDUPE_IDS_MAX",
        _positive_int,
        "200000000",
        "ids that the window of one partition may hold; beyond, the worker stops rather than forget one",
    ),
    _setting(
        "DEDUPE_FOLDER",
        _folder,
        None,
        "folder on a disk for the ids of the window, 32 to 96 bytes an id; only their index, 11 to 16 bytes"
        " an id, then stays in memory. Not set: all is in memory",
    ),
    _setting(
        "MODELS_PER_ORG_HOUR_MAX",
        _positive_int,
        "1000",
        "models counted by their ids per org and hour; the rest shares ffffffff-ffff-ffff-ffff-ffffffffffff",
    ),
    _setting(
        "CLIENTS_PER_ORG_HOUR_MAX",
        _positive_int,
        "1000",
        "clients counted by name per org and hour; the rest shares a row of its own",
    ),
    _setting(
        "DEAD_LETTER_BODIES_MAX",
        _positive_int,
        "10000",
        "original bodies kept per flush; beyond, only the offset",
    ),
    _setting(
        "DEAD_LETTER_BYTES_MAX",
        size_bytes,
        "64MiB",
        "bytes of original bodies kept per flush; beyond, only the offset. Of one body at most 64 KiB are"
        " kept",
    ),
    _setting("RETENTION_MINUTE", _span(86400, 3650 * 86400), "14d", "how long minute rows are kept"),
    _setting("RETENTION_ROLLUP", _span(86400, 3650 * 86400), "400d", "how long hour and day rows are kept"),
    _setting(
        "RETENTION_DEAD_LETTERS",
        _span(86400, 3650 * 86400),
        "90d",
        "how long rejected events can be looked at",
    ),
    _setting(
        "RETENTION_AUDIT",
        _span(86400, 3650 * 86400),
        "400d",
        "how long the audit log, ended exports and API keys that are revoked or have expired are kept",
    ),
    _setting(
        "RETENTION_ARCHIVE",
        _span(86400, 3650 * 86400),
        "800d",
        "how long the archive's files are kept; at least RETENTION_ROLLUP",
    ),
    _setting("FRESH_LAG", _span(1, 86400), "60s", "freshness lag below which data is `fresh`"),
    _setting(
        "STALE_LAG", _span(1, 86400), "300s", "freshness lag below which data is `stale`, else `delayed`"
    ),
    _setting(
        "AUTH_MODE",
        _choice("none", "gateway", "jwt"),
        "none",
        "none (loopback only), gateway (trusted proxy headers) or jwt (bearer tokens)",
    ),
    _setting(
        "TRUSTED_PROXIES",
        _networks,
        "127.0.0.1/32,::1/128",
        "networks whose X-Actor-* headers are believed (gateway), and their X-Forwarded-For",
    ),
    _setting("JWT_ISSUER", _non_empty, None, "the `iss` of tokens that are taken (jwt)"),
    _setting("JWT_AUDIENCE", _non_empty, None, "the `aud` that a token must name (jwt)"),
    _setting(
        "JWT_JWKS_URL",
        _url("https", "http"),
        None,
        "where the issuer's public keys are (RS256, ES256, EdDSA); https, or http on loopback",
    ),
    _setting("JWT_JWKS_FILE", _non_empty, None, "the same from a file"),
    _setting("JWT_SECRET", _secret(32), None, "instead of a JWKS: the shared secret of HS256 tokens", True),
    _setting("JWT_JWKS_CACHE", _span(1, 86400), "10m", "age at which the issuer's keys are read again"),
    _setting("JWT_LEEWAY", _span(0, 600), "30s", "how far the issuer's clock may be off"),
    _setting(
        "API_KEY_SECRET",
        _secret(32),
        None,
        "hashes API keys (`spendstream keys`); same on all processes; unset: X-API-Key is refused",
        True,
    ),
    _setting("API_KEY_CACHE", _span(0, 3600), "5s", "how long a good API key is believed unasked"),
    _setting(
        "API_ALLOW_PRIVILEGED",
        _flag,
        "false",
        "let the API connect as a superuser, an owner or a role that may write rollups",
    ),
    _setting("API_POOL_SIZE", _positive_int, "10", "database connections of one API process"),
    _setting(
        "API_DATABASE_TIMEOUT",
        _span(0.05, 60),
        "500ms",
        "the API's wait for a database connection or a sign of life before it answers 503",
    ),
    _setting(
        "API_STATEMENT_TIMEOUT",
        _span(0.1, 600),
        "10s",
        "longest query of the API on a database that is alive; beyond, the answer is a 503",
    ),
    _setting(
        "API_RATE_LIMIT",
        _whole,
        "6000",
        "requests a minute for each caller, over all processes that share REDIS_URL; 0: no limit",
    ),
    _setting(
        "API_UNKNOWN_RATE_LIMIT",
        _whole,
        "600",
        "requests a minute without valid credentials from one address, and ten times as many to one API"
        " process; beyond, the answer is a 429; 0: no limit",
    ),
    _setting(
        "API_QUESTIONS_MAX",
        _positive_int,
        "4",
        "questions of one org, and of one caller, that an API process asks the database at once, always fewer"
        " than API_POOL_SIZE less 2; others wait up to 5 s, then the answer is a 429",
    ),
    _setting(
        "API_REQUEST_BYTES_MAX", size_bytes, "64KiB", "largest body of a request; beyond, the answer is a 413"
    ),
    _setting("API_MONTHS_MAX", _positive_int, "13", "longest range of a question or an export, in months"),
    _setting("API_POINTS_MAX", _positive_int, "10000", "most points or items of a page"),
    _setting("LIVE_PER_ORG_MAX", _positive_int, "20", "live connections (SSE) to one org, per API process"),
    _setting("LIVE_MAX", _positive_int, "1000", "live connections of one API process"),
    _setting(
        "LIVE_DURATION",
        _span(0.1, 86400),
        "15m",
        "how long one live connection lasts before the client connects, and shows its credentials, again",
    ),
    _setting("LIVE_SLOW", _span(0.1, 300), "10s", "how long a live client may not read before it is dropped"),
    _setting("EXPORT_DIR", _non_empty, None, "folder of exports where there is no object store"),
    _setting(
        "EXPORT_IN_API", _flag, "true", "make exports in the API process; else `spendstream exporter` does"
    ),
    _setting(
        "EXPORT_LEASE",
        _span(1, 3600),
        "60s",
        "how long an exporter may be silent before another one takes its job",
    ),
    _setting("EXPORT_RETENTION", _span(60, 3650 * 86400), "7d", "how long the file of an export is kept"),
    _setting("EXPORT_OPEN_MAX", _positive_int, "10", "export jobs of one org that may wait or run at once"),
    _setting("EXPORT_STATEMENT_TIMEOUT", _span(1, 86400), "15m", "longest query of an export"),
    _setting("EXPORT_PROVIDER", _non_empty, "Spendstream", "provider, publisher and issuer in FOCUS files"),
    _setting(
        "CURSOR_SECRET",
        _secret(16),
        None,
        "signs page cursors and links to exports; same on all processes; unset: random at each start",
        True,
    ),
    _setting("S3_ENDPOINT", _url("http", "https"), None, "object store for exports and the archive"),
    _setting("S3_BUCKET", _non_empty, None, "bucket of exports and the archive"),
    _setting("S3_ACCESS_KEY", _non_empty, None, "access key of the object store", True),
    _setting("S3_SECRET_KEY", _non_empty, None, "secret key of the object store", True),
    _setting("S3_REGION", _non_empty, "us-east-1", "region that requests and links are signed for"),
    _setting(
        "S3_ADDRESSING",
        _choice("path", "virtual"),
        "path",
        "where the bucket's name stands: path (https://host/bucket/…) or virtual (https://bucket.host/…)",
    ),
    _setting(
        "S3_ENCRYPTION",
        _choice("aes256", "none"),
        "aes256",
        "server-side encryption asked for exports (SSE-S3); none where the store encrypts by itself",
    ),
    _setting(
        "ARCHIVE_URL",
        _archive_url,
        None,
        "where accepted events are kept as Parquet: s3://bucket/prefix (with the S3 settings) or"
        " file:///folder, one for each database; unset: no archive",
    ),
    _setting("ARCHIVE_INTERVAL", _span(0.1, 86400), "5m", "how long events wait to share archive files"),
    _setting(
        "ARCHIVE_OUTBOX_MAX",
        size_bytes,
        "10GiB",
        "events in the database that wait for the archive; beyond, the archive leaves events out, on record",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Parsed settings by name, and where each came from (``environment`` or ``default``)."""

    by_name: Mapping[str, Any]
    origins: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def secrets(self) -> tuple[str, ...]:
        """Every text that must not be shown: the secret settings, and the passwords in their URLs."""
        found: list[str] = []
        for setting in SETTINGS:
            value = self.by_name[setting.name]
            if setting.secret and value is not None:
                found += [str(value), *_passwords(str(value))]
        return tuple(found)


_MASKED_CHARS_MIN = 6
"""A shorter password is a word that other texts have too."""


def _passwords(url: str) -> list[str]:
    """The passwords of a URL, before the host and behind the ?, as they stand there and unquoted."""
    credentials, _, _ = url.partition("://")[2].rpartition("@")
    user, _, password = credentials.partition(":")
    found = {password}
    for parameter in url.partition("?")[2].split("&"):
        name, _, value = parameter.partition("=")
        if name == "password":
            found.add(value)
    return [
        text
        for text in found | {unquote(one) for one in found}
        if len(text) >= _MASKED_CHARS_MIN and text != unquote(user)
    ]


def read(environment: Mapping[str, str], *, required: Iterable[str] = ()) -> Values:
    """Parse every setting; an empty variable counts as unset.

    Raises:
        ConfigError: with one line for each fault, the missing ``required`` ones among them.
    """
    by_name: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faults: list[str] = []
    required = set(required)
    for setting in SETTINGS:
        given = environment.get(setting.name) or None
        text = given if given is not None else setting.default
        origins[setting.name] = "environment" if given is not None else "default"
        by_name[setting.name] = None
        if text is None:
            if setting.name in required:
                faults.append(f"{setting.name} is not set: {setting.help}")
            continue
        try:
            by_name[setting.name] = setting.parse(text)
        except _OutOfBounds as error:
            faults.append(f"{setting.name}={text} {error}")
        except ValueError as error:
            shown = "…" if setting.secret else repr(text)
            faults.append(f"{setting.name}={shown}: {error}")
    faults.extend(_contradictions(by_name))
    if faults:
        raise ConfigError(faults)
    return Values(by_name=by_name, origins=origins)


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    faults = []
    fresh, stale = values["FRESH_LAG"], values["STALE_LAG"]
    if fresh is not None and stale is not None and fresh >= stale:
        faults.append(f"FRESH_LAG ({written(fresh)}) must be below STALE_LAG ({written(stale)})")
    if values["AUTH_MODE"] == "none" and values["HTTP_HOST"] and not is_loopback(values["HTTP_HOST"]):
        faults.append(
            f"AUTH_MODE=none lets everybody read everything, so HTTP_HOST must be a loopback address,"
            f" not {values['HTTP_HOST']!r}; set AUTH_MODE=jwt, or gateway behind a proxy"
        )
    faults.extend(_token_contradictions(values))
    if (
        values["RETENTION_MINUTE"]
        and values["RETENTION_ROLLUP"]
        and values["RETENTION_MINUTE"] > values["RETENTION_ROLLUP"]
    ):
        faults.append("RETENTION_MINUTE must not be above RETENTION_ROLLUP")
    kept = values["RETENTION_ARCHIVE"], values["RETENTION_ROLLUP"]
    if values["ARCHIVE_URL"] and all(kept) and kept[0] < kept[1]:
        faults.append("RETENTION_ARCHIVE must not be below RETENTION_ROLLUP: reconcile needs the events")
    s3 = [name for name in ("S3_ENDPOINT", "S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY") if not values[name]]
    if len(s3) == 4 and (values["ARCHIVE_URL"] or "").startswith("s3://"):
        faults.append(f"ARCHIVE_URL is in an object store and needs its settings: {', '.join(s3)}")
    if 0 < len(s3) < 4:
        faults.append(f"the object store needs all of its settings or none; missing: {', '.join(s3)}")
    return faults


def _token_contradictions(values: Mapping[str, Any]) -> list[str]:
    if values["AUTH_MODE"] != "jwt":
        return []
    faults = [f"AUTH_MODE=jwt needs {name}" for name in ("JWT_ISSUER", "JWT_AUDIENCE") if not values[name]]
    # One kind of key only: with two, a token could choose which of them it is checked with.
    sources = ("JWT_JWKS_URL", "JWT_JWKS_FILE", "JWT_SECRET")
    if sum(values[name] is not None for name in sources) != 1:
        faults.append(f"AUTH_MODE=jwt needs exactly one of {', '.join(sources)}")
    url = urlsplit(values["JWT_JWKS_URL"] or "https://")
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        faults.append("JWT_JWKS_URL must be https: whoever can answer in its place decides who may read")
    return faults


def is_loopback(host: str) -> bool:
    """Is this host name or address one that only this machine can reach?"""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
