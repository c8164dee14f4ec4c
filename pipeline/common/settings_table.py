"""The table of all settings: each is declared here, once, with name, parser, default and help.

The rest is made from the table: the page docs/settings.md, ``spendstream config``, and the fields of the
frozen dataclasses that say what a part of the pipeline or of the API is told. The values are read by
`pipeline.common.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.common import day_zones, parsers
from pipeline.common.traces import forms
from pipeline.core import dimensions


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One environment variable: its parser, its default as text, and what it is for."""

    name: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    secret: bool = False

    @property
    def file_name(self) -> str | None:
        """The variable that names a file with the setting's text; None: only a secret has such a variable."""
        return f"{self.name}_FILE" if self.secret else None

    def is_given(self, environment: Mapping[str, str]) -> bool:
        """Does the environment have the setting, or its file? An empty variable is none."""
        return bool(environment.get(self.name) or (self.file_name and environment.get(self.file_name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Settings that are shown under one title."""

    title: str
    settings: tuple[Setting, ...]


def _setting(
    name: str, parse: Callable[[str], Any], default: str | None, help: str, secret: bool = False
) -> Setting:
    return Setting(name=name, parse=parse, default=default, help=help, secret=secret)


_DAYS: Final = 86400
_THE_DOZEN: Final = (
    _setting(
        "DATABASE_URL",
        parsers.database_url,
        None,
        "PostgreSQL 15 or newer, with or without TimescaleDB. Several hosts, as in"
        " `postgresql://host1,host2/name?target_session_attrs=read-write`: the first that is a primary is"
        " taken.",
        True,
    ),
    _setting(
        "RABBITMQ_URL",
        parsers.stream_url,
        None,
        "Where the stream is: `rabbitmq-stream://user:pass@host:5552/vhost`, `rabbitmq-stream+tls://…`, or"
        " `embedded:///folder`. Several nodes, as in `host1,host2:5553`: the first that answers is taken.",
        True,
    ),
    _setting(
        "RABBITMQ_STREAM",
        parsers.not_empty,
        "analytics.usage.v1",
        "The stream that carries the usage events.",
    ),
    _setting(
        "REDIS_URL",
        parsers.redis_url,
        None,
        "A cache of freshness and of rate limits. Without Redis the database answers.",
        True,
    ),
    _setting(
        "ARCHIVE_URL",
        parsers.archive_url,
        None,
        "Where accepted events are kept as Parquet: `s3://bucket/prefix` (with the `S3_*` settings) or"
        " `file:///folder`. Each database needs a place of its own. Without the setting there is no archive.",
    ),
    _setting(
        "AUTH_MODE",
        parsers.choice("none", "gateway", "jwt"),
        "none",
        "How the API knows its callers: `none` (on loopback only), `gateway` (headers of a trusted proxy) or"
        " `jwt` (bearer tokens).",
    ),
    _setting(
        "HTTP_HOST",
        parsers.hosts,
        "127.0.0.1",
        "The address on which the API listens, or several, as in `127.0.0.1,::1`. `0.0.0.0` is every IPv4"
        " address, `::` every address of IPv6 and IPv4.",
    ),
    _setting("HTTP_PORT", parsers.port, "8084", "The port on which the API listens. 0 takes a free one."),
    _setting(
        "METRICS_HOST",
        parsers.hosts,
        "127.0.0.1",
        "The address of the metrics and health pages of worker and exporter, or several, as for HTTP_HOST.",
    ),
    _setting(
        "METRICS_PORT",
        parsers.port,
        "8085",
        "The port of the worker's metrics and health pages. 0 takes a free one.",
    ),
    _setting(
        "DEDUPE_WINDOW",
        parsers.span(3600, 3650 * _DAYS),
        "24h",
        "How long an event id is remembered. An event that is older is `too_late`. A longer window brings no"
        " ids back: events from before the shorter window and a day stay `too_late`.",
    ),
    _setting(
        "LOG_LEVEL",
        parsers.choice("debug", "info", "warning", "error"),
        "info",
        "The least severe level that is logged.",
    ),
)
_STREAM: Final = (
    _setting(
        "SERVICE_NAME",
        parsers.not_empty,
        "spendstream",
        "The name of the process in logs and in the database's list of sessions.",
    ),
    _setting(
        "RABBITMQ_CONSUMER",
        parsers.not_empty,
        "spendstream",
        "The name of the consumer group. All workers of a database use the same name.",
    ),
    _setting(
        "RABBITMQ_ADDRESS",
        parsers.choice("advertised", "given"),
        "advertised",
        "Which address of a node is dialled: the one that the node advertises, or (`given`) only those in"
        " RABBITMQ_URL, again and again until the right node answers. For load balancers and NAT.",
    ),
    _setting(
        "RABBITMQ_CA_FILE",
        parsers.not_empty,
        None,
        "The CA bundle for `rabbitmq-stream+tls://`. Without the setting, the system's.",
    ),
    _setting(
        "RABBITMQ_HEARTBEAT",
        parsers.whole_seconds(1, 300),
        "10s",
        "The interval of heartbeats between worker and broker. Two that are missed end a connection. Another"
        " worker has the partitions of a frozen one within three.",
    ),
    _setting(
        "STREAM_MAX_AGE",
        parsers.span(3600, 3650 * _DAYS),
        "7d",
        "The retention of a stream that we declare. A stream that exists keeps the retention that it has.",
    ),
    _setting("STREAM_MAX_BYTES", parsers.size_bytes, "20GiB", "The size bound of a stream that we declare."),
)
_COUNTING: Final = (
    _setting(
        "ALLOWED_LATENESS",
        parsers.span(0, 3600),
        "10s",
        "How far the watermark stays behind the newest event.",
    ),
    _setting("FLUSH_INTERVAL", parsers.span(0.05, 60), "1s", "The longest time between two flushes."),
    _setting("FLUSH_EVENTS_MAX", parsers.positive, "200000", "Buffered events that bring a flush forward."),
    _setting(
        "BUFFER_EVENTS_MAX",
        parsers.positive,
        "2000000",
        "Buffered events at which reading stops until a flush is committed.",
    ),
    _setting(
        "BUFFER_BYTES_MAX",
        parsers.sized(16 * 2**20),
        "256MiB",
        "Bytes of buffered bodies and dead letters at which reading stops until a flush is committed.",
    ),
    _setting(
        "DIRTY_ROWS_MAX",
        parsers.positive,
        "1000000",
        "Changed rows at which reading stops until a flush is committed.",
    ),
    _setting(
        "DEDUPE_IDS_MAX",
        parsers.positive,
        "200000000",
        "Ids that the window of one partition may hold. Beyond that, the worker stops rather than forget an"
        " id.",
    ),
    _setting(
        "DEDUPE_FOLDER",
        parsers.folder,
        None,
        "A folder on a disk for the ids of the window, 32 to 96 bytes an id. Only their index, 11 to 16"
        " bytes an id, then stays in memory. Without the setting, all of that is in memory.",
    ),
    _setting(
        "MODELS_PER_ORG_HOUR_MAX",
        parsers.positive,
        "1000",
        "Models that are counted by their ids, per org and hour. The rest shares the model"
        " `ffffffff-ffff-ffff-ffff-ffffffffffff`.",
    ),
    _setting(
        "CLIENTS_PER_ORG_HOUR_MAX",
        parsers.positive,
        "1000",
        "Clients that are counted by name, per org and hour. The rest shares a row.",
    ),
    _setting(
        "DIMENSIONS",
        dimensions.parse,
        "",
        "Up to 8 dimensions by which events are counted beside their client, such as"
        " `user=actorId,team=metadata.team`. A key of the metadata has 1 to 64 characters without blanks,"
        ' controls, `,`, `=`, `"` and `\\`. A dimension is complete from the first whole hour after it was'
        " set. Each one adds rows of about the number of its values.",
    ),
    _setting(
        "DAY_ZONES",
        day_zones.parse,
        "",
        "Up to 4 time zones whose days begin off the whole hour of UTC, such as `Asia/Kolkata`. From now on,"
        " the hour in which such a day begins has rows by the quarter, kept for `RETENTION_ROLLUP`. So days,"
        " weeks and months of the zone can be asked for when minute rows are gone. The API needs the"
        " setting, too.",
    ),
    _setting(
        "VALUES_PER_ORG_HOUR_MAX",
        parsers.positive,
        "1000",
        "Values of one dimension that are counted by name, per org and hour. The rest shares a row.",
    ),
    _setting(
        "CONTEXT_TIERS",
        parsers.boundaries,
        "128000,200000,272000",
        "Input tokens at which a provider's rate may change. From now on, calls below, at and above each"
        " number are counted in rows of their own, so that a price can begin there.",
    ),
    _setting(
        "DEAD_LETTER_BODIES_MAX",
        parsers.positive,
        "10000",
        "Original bodies that are kept in a flush. A dead letter beyond that has its offset alone.",
    ),
    _setting(
        "DEAD_LETTER_BYTES_MAX",
        parsers.size_bytes,
        "64MiB",
        "Bytes of original bodies that are kept in a flush. A dead letter beyond that has its offset alone.",
    ),
)
_KEPT: Final = (
    _setting("RETENTION_MINUTE", parsers.span(_DAYS, 3650 * _DAYS), "14d", "How long minute rows are kept."),
    _setting(
        "RETENTION_ROLLUP", parsers.span(_DAYS, 3650 * _DAYS), "400d", "How long hour and day rows are kept."
    ),
    _setting(
        "RETENTION_DEAD_LETTERS",
        parsers.span(_DAYS, 3650 * _DAYS),
        "90d",
        "How long dead letters are kept.",
    ),
    _setting(
        "RETENTION_AUDIT",
        parsers.span(_DAYS, 3650 * _DAYS),
        "400d",
        "How long the audit log is kept, and exports that have ended, and API keys that are revoked or"
        " expired.",
    ),
    _setting(
        "RETENTION_ARCHIVE",
        parsers.span(_DAYS, 3650 * _DAYS),
        "800d",
        "How long the files of the archive are kept: at least RETENTION_ROLLUP.",
    ),
)
_ACCESS: Final = (
    _setting(
        "TRUSTED_PROXIES",
        parsers.networks,
        "127.0.0.1/32,::1/128",
        "Networks of the proxies whose `X-Forwarded-For` and (`gateway`) `X-Actor-*` headers are believed."
        " With `gateway` these proxies must set or delete `X-Actor-*`: else every client is who it says.",
    ),
    _setting("JWT_ISSUER", parsers.not_empty, None, "The `iss` of the tokens that are taken (`jwt`)."),
    _setting("JWT_AUDIENCE", parsers.not_empty, None, "The `aud` that a token must name (`jwt`)."),
    _setting(
        "JWT_JWKS_URL",
        parsers.url("https", "http"),
        None,
        "Where the issuer's public keys are (RS256, ES256, EdDSA): https, or http on loopback.",
    ),
    _setting("JWT_JWKS_FILE", parsers.not_empty, None, "The issuer's public keys as a file."),
    _setting(
        "JWT_SECRET",
        parsers.secret(32),
        None,
        "The shared secret of HS256 tokens, in place of public keys: at least 32 characters.",
        True,
    ),
    _setting(
        "JWT_JWKS_CACHE", parsers.span(1, _DAYS), "10m", "The age at which the issuer's keys are read again."
    ),
    _setting("JWT_LEEWAY", parsers.span(0, 600), "30s", "How far the issuer's clock may be off."),
    _setting(
        "JWT_ROLES_CLAIM",
        parsers.claim,
        "roles",
        "The claim that has the caller's roles: a name such as `scope`, a path such as `realm_access.roles`,"
        " or a URL. A dot within a name is written `\\.`.",
    ),
    _setting(
        "JWT_ORGS_CLAIM",
        parsers.claim,
        "orgs",
        "The claim that has the ids of the caller's orgs, named as for JWT_ROLES_CLAIM.",
    ),
    _setting(
        "API_KEY_SECRET",
        parsers.secret(32),
        None,
        "The secret behind API keys (`spendstream keys`): at least 32 characters, the same for all processes."
        " Without the setting,"
        " `X-API-Key` is refused.",
        True,
    ),
    _setting(
        "API_KEY_CACHE",
        parsers.span(0, 3600),
        "5s",
        "How long an API process believes a good key before it asks the database again.",
    ),
    _setting(
        "CORS_ORIGINS",
        parsers.origins,
        "",
        "Origins of web pages that may ask from a browser, separated by commas, such as"
        " `https://app.example.com`. Without the setting, no answer has a header of CORS.",
    ),
)
_API: Final = (
    _setting("FRESH_LAG", parsers.span(1, _DAYS), "60s", "The lag below which figures are `fresh`."),
    _setting(
        "STALE_LAG",
        parsers.span(1, _DAYS),
        "300s",
        "The lag below which figures are `stale`; above it they are `delayed`.",
    ),
    _setting(
        "CURSOR_SECRET",
        parsers.secret(16),
        None,
        "The secret that signs page cursors and links to exports: the same for all processes. Without the"
        " setting, each process draws one at its start.",
        True,
    ),
    _setting(
        "API_ALLOW_PRIVILEGED",
        parsers.flag,
        "false",
        "Lets the API connect as a superuser, an owner or a role that may write rollups.",
    ),
    _setting("API_POOL_SIZE", parsers.positive, "10", "Database connections of one API process."),
    _setting(
        "API_DATABASE_TIMEOUT",
        parsers.span(0.05, 60),
        "500ms",
        "How long the API waits for a connection, or a sign of life of the database, before it answers 503.",
    ),
    _setting(
        "API_STATEMENT_TIMEOUT",
        parsers.span(0.1, 600),
        "10s",
        "The longest query of the API on a database that is alive. Beyond that, the answer is a 503.",
    ),
    _setting(
        "API_RATE_LIMIT",
        parsers.whole,
        "6000",
        "Requests a minute of one caller, over all processes that share REDIS_URL. 0 is no limit.",
    ),
    _setting(
        "API_UNKNOWN_RATE_LIMIT",
        parsers.whole,
        "600",
        "Requests a minute without valid credentials from one address; ten times as many to one API process."
        " Beyond that, the answer is a 429. 0 is no limit.",
    ),
    _setting(
        "API_QUESTIONS_MAX",
        parsers.positive,
        "4",
        "Questions of one org, or of one caller, that an API process asks the database at once: always fewer"
        " than API_POOL_SIZE less 2. Others wait for up to 5 s, then the answer is a 429.",
    ),
    _setting(
        "API_REQUEST_BYTES_MAX",
        parsers.size_bytes,
        "64KiB",
        "The largest body of a request. Beyond that, the answer is a 413.",
    ),
    _setting(
        "API_MONTHS_MAX", parsers.positive, "13", "The longest range of a question or an export, in months."
    ),
    _setting("API_POINTS_MAX", parsers.positive, "10000", "The most points or items of a page."),
    _setting("LIVE_PER_ORG_MAX", parsers.positive, "20", "Live connections to one org, per API process."),
    _setting("LIVE_MAX", parsers.positive, "1000", "Live connections of one API process."),
    _setting(
        "LIVE_DURATION",
        parsers.span(0.1, _DAYS),
        "15m",
        "How long a live connection lasts. Then the client connects again and shows its credentials.",
    ),
    _setting(
        "LIVE_SLOW",
        parsers.span(0.1, 300),
        "10s",
        "How long a client may leave its live connection unread before it is dropped.",
    ),
)
_EXPORTS: Final = (
    _setting("EXPORT_DIR", parsers.not_empty, None, "The folder of exports where there is no object store."),
    _setting(
        "EXPORT_IN_API",
        parsers.flag,
        "true",
        "Makes exports in the API process. With `false`, `spendstream exporter` makes them.",
    ),
    _setting(
        "EXPORT_METRICS_PORT",
        parsers.port,
        None,
        "The port of the metrics and health pages of `spendstream exporter`, at METRICS_HOST. 0 takes a free"
        " one. Without the setting there are no such pages, so any number of exporters share a host.",
    ),
    _setting(
        "EXPORT_LEASE",
        parsers.span(1, 3600),
        "60s",
        "How long an exporter may be silent before another one takes its job.",
    ),
    _setting(
        "EXPORT_RETENTION", parsers.span(60, 3650 * _DAYS), "7d", "How long the file of an export is kept."
    ),
    _setting(
        "EXPORT_OPEN_MAX",
        parsers.positive,
        "10",
        "Export jobs of one org that may wait or run at once.",
    ),
    _setting("EXPORT_STATEMENT_TIMEOUT", parsers.span(1, _DAYS), "15m", "The longest query of an export."),
    _setting(
        "EXPORT_PROVIDER",
        parsers.not_empty,
        "Spendstream",
        "The provider, publisher and issuer in FOCUS files.",
    ),
)
_ALERTS: Final = (
    _setting(
        "WEBHOOK_KEY",
        parsers.secrets_of(32),
        None,
        "What the addresses and secrets of webhooks are encrypted with, for API and `spendstream alerts`: at"
        " least 32 characters. Several keys with commas between them: the first encrypts, all decrypt."
        " Without the setting there are no webhooks.",
        True,
    ),
    _setting(
        "WEBHOOK_ALLOW_PRIVATE",
        parsers.flag,
        "false",
        "Lets webhooks lead to private addresses and use http. Only where every org may call what the"
        " server can.",
    ),
    _setting(
        "WEBHOOK_TIMEOUT",
        parsers.span(0.1, 60),
        "10s",
        "How long an endpoint of a webhook may take to answer.",
    ),
    _setting(
        "ALERTS_METRICS_PORT",
        parsers.port,
        None,
        "The port of the metrics and health pages of `spendstream alerts`, at METRICS_HOST. 0 takes a free"
        " one. Without the setting there are no such pages.",
    ),
)
_OBJECT_STORE: Final = (
    _setting(
        "S3_ENDPOINT",
        parsers.url("http", "https"),
        None,
        "The URL of the object store for exports and, where ARCHIVE_URL is `s3://…`, the archive.",
    ),
    _setting("S3_BUCKET", parsers.not_empty, None, "The bucket of exports. ARCHIVE_URL names the archive's."),
    _setting("S3_ACCESS_KEY", parsers.not_empty, None, "The access key of the object store.", True),
    _setting("S3_SECRET_KEY", parsers.not_empty, None, "The secret key of the object store.", True),
    _setting(
        "S3_REGION", parsers.not_empty, "us-east-1", "The region for which requests and links are signed."
    ),
    _setting(
        "S3_ADDRESSING",
        parsers.choice("path", "virtual"),
        "path",
        "Where the bucket's name stands: `path` (`https://host/bucket/…`) or `virtual`"
        " (`https://bucket.host/…`).",
    ),
    _setting(
        "S3_ENCRYPTION",
        parsers.choice("aes256", "none"),
        "aes256",
        "The server-side encryption that is asked for exports (SSE-S3). `none` where the store encrypts"
        " anyway.",
    ),
    _setting(
        "ARCHIVE_INTERVAL",
        parsers.span(0.1, _DAYS),
        "5m",
        "How long events wait so that they share files of the archive.",
    ),
    _setting(
        "ARCHIVE_OUTBOX_MAX",
        parsers.size_bytes,
        "10GiB",
        "Bytes of events in the database that wait for the archive. Beyond that, the archive leaves events"
        " out; the table `analytics.archive_spans` has which.",
    ),
)

_COLLECTOR: Final = (
    _setting(
        "COLLECTOR_HOST",
        parsers.hosts,
        "127.0.0.1",
        "The address on which the collector listens, or several, as for HTTP_HOST.",
    ),
    _setting(
        "COLLECTOR_PORT", parsers.port, "8086", "The port on which the collector listens. 0 takes a free one."
    ),
    _setting(
        "COLLECTOR_BODY_BYTES_MAX",
        parsers.size_bytes,
        "10MiB",
        "The largest body of a request as it arrives. Beyond that, the answer is a 413.",
    ),
    _setting(
        "COLLECTOR_UNPACKED_BYTES_MAX",
        parsers.size_bytes,
        "10MiB",
        "The largest body once it is unpacked, and the most bytes of all events of one request. Beyond that,"
        " the answer is a 413.",
    ),
    _setting(
        "COLLECTOR_EVENTS_MAX",
        parsers.positive,
        "10000",
        "The most events, log payloads or spans of one request. Beyond that, the answer is a 413.",
    ),
    _setting(
        "COLLECTOR_BODY_TIMEOUT",
        parsers.span(0.1, 600),
        "10s",
        "The longest time in which a body may arrive. Beyond that, the answer is a 408.",
    ),
    _setting(
        "COLLECTOR_BODY_PACE",
        parsers.size_bytes,
        "16KiB",
        "The bytes a second at which a body must arrive, after its first second. The answer to a slower one"
        " is a 408. 0 is no limit.",
    ),
    _setting(
        "COLLECTOR_MEMORY_MAX",
        parsers.size_bytes,
        "40MiB",
        "Bytes of all bodies and events in work at once, and half of that for one caller. A request beyond"
        " that waits for 0.25 s, then the answer is a 503 (429 to the caller with half).",
    ),
    _setting(
        "COLLECTOR_CONNECTIONS_MAX",
        parsers.positive,
        "1000",
        "Connections of senders to one collector. One more is closed at once.",
    ),
    _setting(
        "COLLECTOR_CONFIRM_TIMEOUT",
        parsers.span(0.05, 60),
        "750ms",
        "How long a request waits for the broker's confirmation when there is no spool. Beyond that, the"
        " answer is a 503.",
    ),
    _setting(
        "COLLECTOR_RATE_LIMIT",
        parsers.whole,
        "60000",
        "Requests a minute of one caller to the collector, over all collectors that share REDIS_URL. 0 is no"
        " limit.",
    ),
    _setting(
        "COLLECTOR_SPOOL",
        parsers.own_folder,
        None,
        "A folder on a disk of this host that keeps events while the broker is away, of this collector alone."
        " It is made if it is missing. Without the setting, the answer is a 503 then.",
    ),
    _setting(
        "COLLECTOR_SPOOL_AFTER",
        parsers.span(0.01, 60),
        "250ms",
        "How long a request waits for the broker's confirmation before its events go to the spool.",
    ),
    _setting(
        "COLLECTOR_SPOOL_BYTES_MAX",
        parsers.sized(2**20),
        "10GiB",
        "Bytes of the spool. While it is full, the answer is a 503.",
    ),
)
_CHECK: Final = (
    _setting(
        "CHECK_API_URL",
        parsers.page_url,
        "http://127.0.0.1:8084",
        "The API that `spendstream check` asks.",
    ),
    _setting(
        "CHECK_COLLECTOR_URL",
        parsers.page_url,
        None,
        "The collector that `spendstream check` sends its event to. Without the setting, the event goes into"
        " the stream.",
    ),
    _setting(
        "CHECK_KEY",
        parsers.secret(1),
        None,
        "An API key of the org of `spendstream check`, with the role `analytics:usage:read`, and for a"
        " collector `analytics:events:write`.",
        True,
    ),
    _setting(
        "CHECK_ORG",
        parsers.not_empty,
        "spendstream check",
        "The org of the event of `spendstream check`: a UUID, or a name that makes one.",
    ),
    _setting(
        "CHECK_TIMEOUT",
        parsers.span(0.1, 420),
        "60s",
        "How long `spendstream check` waits until its event is counted.",
    ),
)
_TRACES: Final = (
    _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        forms.endpoint,
        None,
        "Where traces go, by OTLP: `http://localhost:4318`, or `http://localhost:4317` for grpc. By HTTP,"
        " `/v1/traces` is added. Needs `spendstream[otel]`. Without the setting nothing is traced.",
    ),
    _setting(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        parsers.choice(*forms.PROTOCOLS),
        "http/protobuf",
        "How traces go there: `http/protobuf` or `grpc`.",
    ),
    _setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        forms.headers,
        None,
        "Headers of each export, such as `x-api-key=…`, several with commas between. A comma in a value is"
        " `%2C`.",
        True,
    ),
    _setting(
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        forms.milliseconds(1, 600_000),
        "10000",
        "How long an export may take with all its tries, in milliseconds. Its spans are lost after that.",
    ),
    _setting(
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        forms.certificate,
        None,
        "A file with the authorities (PEM) that the receiver's certificate is checked by, instead of the"
        " usual ones.",
    ),
    _setting(
        "OTEL_SERVICE_NAME",
        parsers.not_empty,
        None,
        "The `service.name` of traces. Without it, each process has its own, made of SERVICE_NAME.",
    ),
    _setting(
        "OTEL_RESOURCE_ATTRIBUTES",
        forms.attributes,
        None,
        "What traces say of where they come from, such as `deployment.environment.name=production`.",
    ),
    _setting(
        "OTEL_TRACES_SAMPLER",
        parsers.choice(*forms.SAMPLERS),
        "parentbased_always_on",
        "Which traces are kept: `always_on`, `always_off` or `traceidratio`, each also as `parentbased_…`,"
        " which follows the sender of a request.",
    ),
    _setting(
        "OTEL_TRACES_SAMPLER_ARG",
        forms.ratio,
        "1.0",
        "The share of traces that a sampler with `traceidratio` keeps, from 0 to 1.",
    ),
    _setting(
        "OTEL_BSP_MAX_QUEUE_SIZE",
        forms.between(1, 100_000),
        "2048",
        "How many spans may wait for their export. One more is lost.",
    ),
    _setting(
        "OTEL_BSP_SCHEDULE_DELAY",
        forms.milliseconds(1, 600_000),
        "5000",
        "How long spans wait to be exported together, in milliseconds. 512 of them wait no longer.",
    ),
    _setting("OTEL_SDK_DISABLED", parsers.flag, "false", "Trace nothing, whatever the other settings say."),
)
_TOP: Final = (
    _setting(
        "SPENDSTREAM_API_URL",
        parsers.page_url,
        "http://127.0.0.1:8084",
        "The API that `spendstream top` asks.",
    ),
    _setting(
        "SPENDSTREAM_API_KEY",
        parsers.secret(1),
        None,
        "The API key that `spendstream top` asks with: one org's, with `analytics:usage:read`, and for errors"
        " and latencies `analytics:reliability:read`.",
        True,
    ),
    _setting(
        "SPENDSTREAM_TOKEN",
        parsers.secret(1),
        None,
        "A bearer token in the place of the key: an administrator's sees all orgs.",
        True,
    ),
)

GROUPS: Final = (
    Group(title="The dozen that matter", settings=_THE_DOZEN),
    Group(title="Tuning: the stream", settings=_STREAM),
    Group(title="Tuning: counting", settings=_COUNTING),
    Group(title="Tuning: how long things are kept", settings=_KEPT),
    Group(title="Tuning: who may ask", settings=_ACCESS),
    Group(title="Tuning: the API", settings=_API),
    Group(title="Tuning: the collector", settings=_COLLECTOR),
    Group(title="Tuning: exports", settings=_EXPORTS),
    Group(title="Tuning: alerts", settings=_ALERTS),
    Group(title="Tuning: the object store and the archive", settings=_OBJECT_STORE),
    Group(title="The synthetic check", settings=_CHECK),
    Group(title="Traces", settings=_TRACES),
    Group(title="The live view in a terminal", settings=_TOP),
)
SETTINGS: Final = tuple(setting for group in GROUPS for setting in group.settings)
